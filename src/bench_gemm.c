/* bench_gemm.c: a matrix product by the algorithm that training takes for it, beside all others that the device's
 * library names. */
#include "src/bench.h"
#include <stdlib.h>

typedef struct run {
  const sk_bench *b;
  sk_stream *st;
  const sk_bench_product *p;
} run;

static void product(void *arg) {
  const run *r = arg;
  const sk_bench_product *p = r->p;
  r->b->op->gemm(r->st, p->ta, p->tb, p->m, p->n, p->k, 1, p->A, p->lda, p->B, p->ldb, p->beta, p->C, p->ldc, p->ct);
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* In many short rounds, all algorithms in each and each time another first: a GPU's clock falls while it works, and all
 * must see the same. */
double sk_bench_gemm(const sk_bench *b, sk_device *dev, sk_stream *st, const sk_bench_product *p, double *best) {
  run r = {b, st, p};
  int choices = b->op->gemm_choose(dev, -1);
  *best = 0;
  if (choices == 0) return sk_bench_time(b, st, product, &r);
  sk_bench once = *b;
  once.repeat = once.warmup = 1;
  once.sample = 1e-3;
  int64_t rounds = 5 * b->repeat;
  double *s = sk_calloc((size_t)((choices + 1) * rounds), sizeof *s); /* [choice + 1][round] */
  for (int64_t round = 0; round < rounds; round++) {
    for (int j = 0; j <= choices; j++) {
      int i = (int)((j + round) % (choices + 1)) - 1;
      b->op->gemm_choose(dev, i);
      s[(i + 1) * rounds + round] = sk_bench_time(&once, st, product, &r);
    }
  }
  b->op->gemm_choose(dev, -1);
  for (int i = 0; i <= choices; i++) {
    qsort(s + i * rounds, (size_t)rounds, sizeof *s, by_value);
    double median = s[i * rounds + rounds / 2];
    if (i == 0) s[0] = median;
    if (i == 0 || median < *best) *best = median;
  }
  double own = s[0];
  sk_free(s);
  return own;
}
