/* bench_gemm.c: a matrix product by the algorithm that training takes for it, beside all others that the device's
 * library names. */
#include "src/bench.h"

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

/* Training's algorithm is timed before and after the others: what it is compared with is the fastest of several
 * measurements, so it gets two of its own. */
double sk_bench_gemm(const sk_bench *b, sk_device *dev, sk_stream *st, const sk_bench_product *p, double *best) {
  run r = {b, st, p};
  int choices = b->op->gemm_choose(dev, -1);
  double own = sk_bench_time(b, st, product, &r);
  *best = 0;
  for (int i = 0; i < choices; i++) {
    b->op->gemm_choose(dev, i);
    double s = sk_bench_time(b, st, product, &r);
    if (i == 0 || s < *best) *best = s;
  }
  if (choices == 0) return own;
  b->op->gemm_choose(dev, -1);
  double again = sk_bench_time(b, st, product, &r);
  return again < own ? again : own;
}
