/* bench_gemm.c: a matrix product by the algorithm that training takes for it, beside all others that the device's
 * library names. */
#include "src/bench.h"

typedef struct run {
  const sk_bench *b;
  sk_device *dev;
  sk_stream *st;
  const sk_bench_product *p;
  int choice; /* as in sk_ops.gemm_choose */
} run;

static void product(void *arg) {
  const run *r = arg;
  const sk_bench_product *p = r->p;
  r->b->op->gemm_choose(r->dev, r->choice);
  r->b->op->gemm(r->st, p->ta, p->tb, p->m, p->n, p->k, 1, p->A, p->lda, p->B, p->ldb, p->beta, p->C, p->ldc, p->ct);
}

double sk_bench_gemm(const sk_bench *b, sk_device *dev, sk_stream *st, const sk_bench_product *p, double *best) {
  int choices = b->op->gemm_choose(dev, -1);
  run *r = sk_calloc((size_t)choices + 1, sizeof *r);
  sk_bench_way *way = sk_calloc((size_t)choices + 1, sizeof *way);
  for (int i = 0; i <= choices; i++) {
    r[i] = (run){b, dev, st, p, i - 1};
    way[i] = (sk_bench_way){product, &r[i], 0};
  }
  if (choices == 0)
    way[0].s = sk_bench_time(b, st, product, r);
  else
    sk_bench_rounds(b, st, 1e-3, way, choices + 1);
  b->op->gemm_choose(dev, -1);
  *best = choices == 0 ? 0 : way[0].s;
  for (int i = 1; i <= choices; i++)
    if (way[i].s < *best) *best = way[i].s;
  double own = way[0].s;
  sk_free(way);
  sk_free(r);
  return own;
}
