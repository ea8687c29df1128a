#include <math.h>
#include "kernels/cpu.h"

enum { LANES = 16 };

void sk_cpu_sqnorm(sk_stream *s, double *out, const float *x, const int64_t *off, int64_t nblk) {
  (void)s;
#pragma omp parallel for schedule(dynamic, 8)
  for (int64_t i = 0; i < nblk; i++) {
    // By position in the block, not by what a vector loop makes of its length: see sk_ops.
    double sum[LANES] = {0};
    const float *at = x + off[i], *end = x + off[i + 1];
    for (; end - at >= LANES; at += LANES)
#pragma omp simd
      for (int k = 0; k < LANES; k++) sum[k] += (double)at[k] * at[k];
    for (int k = 0; k < end - at; k++) sum[k] += (double)at[k] * at[k];
    for (int k = 1; k < LANES; k++) sum[0] += sum[k];
    out[i] = sum[0];
  }
}

void sk_cpu_adamw(sk_stream *s, void *w, float *p, float *m, float *v, const float *g, int64_t n,
                  const sk_adamw *h) {
  (void)s;
  float b1 = (float)h->beta1, c1 = (float)(1 - h->beta1), b2 = (float)h->beta2;
  float c2 = (float)(1 - h->beta2), scale = (float)h->gscale, eps = (float)h->eps;
  float unbias1 = (float)(1 / h->bias1), unbias2 = (float)(1 / h->bias2);
  float lr = (float)h->lr, wd = (float)h->wd;
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; i++) {
    float grad = g[i] * scale;
    m[i] = b1 * m[i] + c1 * grad;
    v[i] = b2 * v[i] + c2 * (grad * grad);
    p[i] -= lr * (m[i] * unbias1 / (sqrtf(v[i] * unbias2) + eps) + wd * p[i]);
  }
  if (!w) return;
  float *copy = w;
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; i++) copy[i] = p[i];
}
