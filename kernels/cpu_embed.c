#include <omp.h>
#include "kernels/cpu.h"

void sk_cpu_embed(sk_stream *s, void *h, const int32_t *ids, const void *E, double mult, int64_t n,
                  int64_t d, int64_t v0, int64_t nv) {
  (void)s;
  float f = (float)mult;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    float *restrict out = (float *)h + t * d;
    int64_t id = ids[t] - v0;
    bool here = id >= 0 && id < nv;
    const float *restrict row = (const float *)E + (here ? id * d : 0);
    if (here) {
#pragma omp simd
      for (int64_t c = 0; c < d; c++) out[c] = f * row[c];
    } else {
#pragma omp simd
      for (int64_t c = 0; c < d; c++) out[c] = 0;
    }
  }
}

void sk_cpu_embed_grad(sk_stream *s, float *dE, const int32_t *ids, const void *dh, double mult,
                       int64_t n, int64_t d, int64_t v0, int64_t nv, int64_t pad) {
  // Threads share the columns, so that the gradients of one id are added in the order of the
  // tokens.
  (void)s;
  enum { LINE = 16 };
  int64_t width = sk_ceil_div(sk_ceil_div(d, omp_get_max_threads()), LINE) * LINE;
  float f = (float)mult;
#pragma omp parallel for schedule(static)
  for (int64_t c0 = 0; c0 < d; c0 += width) {
    int64_t cols = sk_min64(width, d - c0);
    for (int64_t t = 0; t < n; t++) {
      int64_t id = ids[t] - v0;
      if (id < 0 || id >= nv || ids[t] == pad) continue;
      float *restrict out = dE + id * d + c0;
      const float *restrict in = (const float *)dh + t * d + c0;
#pragma omp simd
      for (int64_t c = 0; c < cols; c++) out[c] += f * in[c];
    }
  }
}
