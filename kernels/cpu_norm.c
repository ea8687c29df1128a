#include <math.h>
#include <string.h>
#include "kernels/cpu.h"
#include "kernels/cpu_math.h"

static float sum_squares(const float *restrict x, int64_t d) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < d; c++) sum += x[c] * x[c];
  return sum;
}

void sk_cpu_rmsnorm(sk_stream *s, void *y, float *rstd, void *sum, const void *x, const void *res,
                    const void *w, int64_t n, int64_t d, double eps) {
  (void)s;
  const float *restrict weight = w;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const float *in = (const float *)x + t * d;
    if (res) {
      // sum may be the same memory as x or res.
      const float *add = (const float *)res + t * d;
      float *both = (float *)sum + t * d;
#pragma omp simd
      for (int64_t c = 0; c < d; c++) both[c] = in[c] + add[c];
      in = both;
    }
    float r = (float)(1 / sqrt((double)sum_squares(in, d) / (double)d + eps));
    float *out = (float *)y + t * d;
#pragma omp simd
    for (int64_t c = 0; c < d; c++) out[c] = in[c] * r * weight[c];
    rstd[t] = r;
  }
}

// One token of the norm's backward (section 3.5 with one group and no gate); dw in double.
static void norm_row_grad(float *restrict dx, double *restrict dw, const float *restrict dy,
                          const float *restrict x, float r, const float *restrict w, int64_t d) {
  float mean = 0;
#pragma omp simd reduction(+ : mean)
  for (int64_t c = 0; c < d; c++) mean += dy[c] * w[c] * x[c];
  mean /= (float)d;
  float back = r * r * mean;
#pragma omp simd
  for (int64_t c = 0; c < d; c++) {
    dx[c] += r * (w[c] * dy[c] - x[c] * back);
    dw[c] += dy[c] * (x[c] * r);
  }
}

void sk_cpu_rmsnorm_grad(sk_stream *s, void *dx, float *dw, const void *dy, const void *x,
                         const float *rstd, const void *w, int64_t n, int64_t d) {
  sk_cpu_blocks cut = sk_cpu_cut(n);
  double *part = sk_cpu_scratch(s, (size_t)(cut.count * d) * sizeof *part);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < cut.count; i++) {
    double *sum = part + i * d;
    memset(sum, 0, (size_t)d * sizeof *sum);
    for (int64_t t = i * cut.size; t < sk_min64(n, (i + 1) * cut.size); t++) {
      norm_row_grad((float *)dx + t * d, sum, (const float *)dy + t * d, (const float *)x + t * d,
                    rstd[t], w, d);
    }
  }
  sk_cpu_reduce(dw, part, cut.count, d, 1);
}

void sk_cpu_swiglu(sk_stream *s, void *a, const void *gu, double mgate, int64_t n, int64_t F) {
  (void)s;
  float m = (float)mgate;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    float *restrict out = (float *)a + t * F;
    const float *restrict gate = (const float *)gu + t * 2 * F, *restrict up = gate + F;
#pragma omp simd
    for (int64_t c = 0; c < F; c++) out[c] = up[c] * sk_siluf(gate[c] * m);
  }
}

void sk_cpu_swiglu_grad(sk_stream *s, void *dgu, const void *da, const void *gu, double mgate,
                        int64_t n, int64_t F) {
  (void)s;
  float m = (float)mgate;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    // dgu may be gu: every element is read before it is written.
    const float *gate = (const float *)gu + t * 2 * F, *up = gate + F;
    const float *dout = (const float *)da + t * F;
    float *dgate = (float *)dgu + t * 2 * F, *dup = dgate + F;
#pragma omp simd
    for (int64_t c = 0; c < F; c++) {
      float g = gate[c] * m, sig = sk_sigmoidf(g), u = up[c], e = dout[c];
      dgate[c] = e * u * sig * (1 + g * (1 - sig)) * m;
      dup[c] = e * g * sig;
    }
  }
}
