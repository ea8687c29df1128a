/* cpu_gate.c: the gate after the SSM and the grouped gated RMSNorm (sections 2.5 and 3.5). */
#include <math.h>
#include <string.h>
#include "kernels/cpu_mamba.h"
#include "kernels/cpu_math.h"

// o = y * silu(z); in the gated norm with the norm last this is what gets normalised.
static void gate_row(float *restrict o, const float *restrict y, const float *restrict z, float m,
                     int64_t cols) {
#pragma omp simd
  for (int64_t c = 0; c < cols; c++) o[c] = y[c] * sk_siluf(m * z[c]);
}

static float whole_width(const sk_gate_dims *d) {
  return (float)(d->width ? d->width : d->ds / d->G);
}

// One token and group of the gated norm; whole: the sum of a^2 over all ranks, or NULL. Returns
// rsqrt(mean(a^2) + eps).
static float norm_row(const sk_gate_dims *d, float *restrict o, const float *restrict y,
                      const float *restrict z, const float *restrict w, const float *whole,
                      int64_t cols) {
  float m = (float)d->zmult, sum = 0;
  if (d->before) {
    memcpy(o, y, (size_t)cols * sizeof *o);
  } else {
    gate_row(o, y, z, m, cols);
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < cols; c++) sum += o[c] * o[c];
  if (whole) sum = *whole;
  float r = (float)(1 / sqrt((double)sum / (double)whole_width(d) + d->eps));
#pragma omp simd
  for (int64_t c = 0; c < cols; c++) o[c] *= r * w[c];
  if (!d->before) return r;
#pragma omp simd
  for (int64_t c = 0; c < cols; c++) o[c] *= sk_siluf(m * z[c]);
  return r;
}

void sk_cpu_gate(sk_stream *s, const sk_gate_dims *d, void *o, float *rstd, const void *y,
                 const void *z, const void *w) {
  (void)s;
  int64_t cols = d->ds / d->G;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < d->n; t++) {
    float *out = (float *)o + t * d->ds;
    const float *in = (const float *)y + t * d->ds, *zt = (const float *)z + t * d->ldz;
    if (!d->norm) {
      gate_row(out, in, zt, (float)d->zmult, d->ds);
      continue;
    }
    for (int64_t g = 0; g < d->G; g++) {
      int64_t c = g * cols;
      rstd[t * d->G + g] = norm_row(d, out + c, in + c, zt + c, (const float *)w + c,
                                    d->whole ? &d->whole[t * d->G + g] : NULL, cols);
    }
  }
}

void sk_cpu_gate_stats(sk_stream *s, const sk_gate_dims *d, float *ss, const void *y,
                       const void *z) {
  (void)s;
  int64_t cols = d->ds / d->G;
  float m = (float)d->zmult;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < d->n * d->G; i++) {
    int64_t t = i / d->G, c0 = i % d->G * cols;
    const float *restrict yt = (const float *)y + t * d->ds + c0, *restrict zt = (const float *)z +
                                                                                 t * d->ldz + c0;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < cols; c++) {
      float a = d->before ? yt[c] : yt[c] * sk_siluf(m * zt[c]);
      sum += a * a;
    }
    ss[i] = sum;
  }
}

// sum of e w a, with e = dout and a = y silu(z) or the other way round: the same product.
static float dot_row(const float *restrict dout, const float *restrict y, const float *restrict z,
                     const float *restrict w, float m, int64_t cols) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < cols; c++) sum += dout[c] * w[c] * (y[c] * sk_siluf(m * z[c]));
  return sum;
}

void sk_cpu_gate_grad_stats(sk_stream *s, const sk_gate_dims *d, float *dots, const void *dout,
                            const void *y, const void *z, const void *w) {
  (void)s;
  int64_t cols = d->ds / d->G;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < d->n * d->G; i++) {
    int64_t t = i / d->G, c = i % d->G * cols;
    dots[i] =
        dot_row((const float *)dout + t * d->ds + c, (const float *)y + t * d->ds + c,
                (const float *)z + t * d->ldz + c, (const float *)w + c, (float)d->zmult, cols);
  }
}

static void gate_row_grad(float *restrict dy, float *restrict dz, const float *restrict dout,
                          const float *restrict y, const float *restrict z, float m, int64_t cols) {
#pragma omp simd
  for (int64_t c = 0; c < cols; c++) {
    float zc = m * z[c], e = dout[c], sig = sk_sigmoidf(zc);
    dy[c] = e * zc * sig;
    dz[c] = m * e * y[c] * sig * (1 + zc * (1 - sig));
  }
}

// Norm last: a = y * silu(z), o = w * a * r. mean: of e w a over the group. dw in double.
static void after_row_grad(float *restrict dy, float *restrict dz, double *restrict dw,
                           const float *restrict dout, const float *restrict y,
                           const float *restrict z, const float *restrict w, float r, float m,
                           float mean, int64_t cols) {
  float back = r * r * mean;
#pragma omp simd
  for (int64_t c = 0; c < cols; c++) {
    float zc = m * z[c], sig = sk_sigmoidf(zc), a = y[c] * (zc * sig), e = dout[c];
    float da = r * (w[c] * e - a * back);
    dw[c] += e * (a * r);
    dy[c] = da * zc * sig;
    dz[c] = m * da * y[c] * sig * (1 + zc * (1 - sig));
  }
}

// Norm first: o = w * y * r * silu(z).
static void before_row_grad(float *restrict dy, float *restrict dz, double *restrict dw,
                            const float *restrict dout, const float *restrict y,
                            const float *restrict z, const float *restrict w, float r, float m,
                            float mean, int64_t cols) {
  float back = r * r * mean;
#pragma omp simd
  for (int64_t c = 0; c < cols; c++) {
    float e = dout[c] * sk_siluf(m * z[c]), n = y[c] * r;
    dw[c] += e * n;
    dz[c] = m * dout[c] * w[c] * n * sk_dsiluf(m * z[c]);
    dy[c] = r * (w[c] * e - y[c] * back);
  }
}

void sk_cpu_gate_grad(sk_stream *s, const sk_gate_dims *d, void *dy, void *dz, float *dw,
                      const void *dout, const void *y, const void *z, const void *w,
                      const float *rstd) {
  int64_t cols = d->ds / d->G;
  float m = (float)d->zmult;
  sk_cpu_blocks cut = sk_cpu_cut(d->n);
  double *part = d->norm ? sk_cpu_scratch(s, (size_t)(cut.count * d->ds) * sizeof *part) : NULL;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < cut.count; i++) {
    double *sum = part ? part + i * d->ds : NULL;
    if (sum) memset(sum, 0, (size_t)d->ds * sizeof *sum);
    for (int64_t t = i * cut.size; t < sk_min64(d->n, (i + 1) * cut.size); t++) {
      float *dyt = (float *)dy + t * d->ds, *dzt = (float *)dz + t * d->ldz;
      const float *yt = (const float *)y + t * d->ds, *zt = (const float *)z + t * d->ldz;
      const float *dot = (const float *)dout + t * d->ds, *wt = w;
      if (!d->norm) {
        gate_row_grad(dyt, dzt, dot, yt, zt, m, d->ds);
        continue;
      }
      for (int64_t g = 0; g < d->G; g++) {
        int64_t c = g * cols;
        float whole =
            d->whole ? d->whole[t * d->G + g] : dot_row(dot + c, yt + c, zt + c, wt + c, m, cols);
        (d->before ? before_row_grad : after_row_grad)(dyt + c, dzt + c, sum + c, dot + c, yt + c,
                                                       zt + c, wt + c, rstd[t * d->G + g], m,
                                                       whole / whole_width(d), cols);
      }
    }
  }
  if (d->norm) sk_cpu_reduce(dw, part, cut.count, d->ds, 1);
}
