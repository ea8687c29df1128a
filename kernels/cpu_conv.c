/* cpu_conv.c: the causal depthwise convolution with SiLU and the step sizes dt (sections 2.4 items 4
 * and 6, 3.5). A task of the convolution is one sequence and BLOCK channels. */
#include <string.h>
#include "kernels/cpu_mamba.h"
#include "kernels/cpu_math.h"

enum { BLOCK = 64, RUN = 32 }; // channels of a task; tokens whose rows stay in cache meanwhile

typedef struct conv_call {
  const sk_conv_dims *d;
  int64_t cd, blocks;
  const float *x, *halo;
  const int32_t *start;
  float *w, *bias, *mult; // [K][cd] with the multiplier, [cd], [cd]
  double *part;           // [b][K+1][cd] sums for dw and dbias; NULL in the forward op
} conv_call;

// A task: channels c0 .. c0+nc-1 of a sequence. Row pointers below point at channel c0.
typedef struct conv_task {
  int64_t seq, c0, nc;
} conv_task;

static conv_call conv_setup(sk_stream *s, const sk_conv_dims *d, const void *x, const void *halo,
                            const float *w, const float *bias, const int32_t *start, bool grad) {
  int64_t cd = d->width[0] + d->width[1] + d->width[2], sums = grad ? d->b * (d->K + 1) * cd : 0;
  size_t part = (size_t)sums * sizeof(double), taps = (size_t)((d->K + 2) * cd) * sizeof(float);
  char *scratch = sk_cpu_scratch(s, part + taps);
  conv_call v = {.d = d, .cd = cd, .blocks = sk_ceil_div(cd, BLOCK), .x = x, .halo = halo};
  v.start = start;
  v.part = grad ? (double *)(void *)scratch : NULL;
  v.w = (float *)(void *)(scratch + part);
  v.bias = v.w + d->K * cd;
  v.mult = v.bias + cd;
  for (int64_t c = 0; c < cd; c++) {
    int segment = c < d->width[0] ? 0 : c < d->width[0] + d->width[1] ? 1 : 2;
    v.mult[c] = (float)d->mult[segment];
    v.bias[c] = bias ? bias[c] : 0;
    for (int64_t k = 0; k < d->K; k++) v.w[k * cd + c] = w[c * d->K + k] * v.mult[c];
  }
  return v;
}

static conv_task conv_open(const conv_call *v, int64_t i) {
  int64_t c0 = i % v->blocks * BLOCK;
  return (conv_task){i / v->blocks, c0, sk_min64(BLOCK, v->cd - c0)};
}

// The first token whose raw row token i uses; the taps are those tokens up to i.
static int64_t conv_first(const conv_call *v, const conv_task *t, int64_t i) {
  int64_t first = sk_max64(v->start[t->seq * v->d->T + i], i - v->d->K + 1);
  return v->halo ? first : sk_max64(first, 0);
}

// The raw row of token j of the task's sequence; j < 0: in the halo.
static const float *conv_row(const conv_call *v, const conv_task *t, int64_t j) {
  if (j >= 0) return v->x + (t->seq * v->d->T + j) * v->d->ldx + t->c0;
  return v->halo + (t->seq * (v->d->K - 1) + v->d->K - 1 + j) * v->cd + t->c0;
}

// The weights between raw row j and token i.
static const float *conv_tap(const conv_call *v, const conv_task *t, int64_t i, int64_t j) {
  return v->w + (j - i + v->d->K - 1) * v->cd + t->c0;
}

// The usual case: four taps, all of them in the token's document and in x.
static bool conv_whole(const conv_call *v, const conv_task *t, int64_t i) {
  return v->d->K == 4 && i >= 3 && v->start[t->seq * v->d->T + i] <= i - 3;
}

// out[nc] = the convolution of token i, before SiLU.
static void conv_sum(const conv_call *v, const conv_task *t, int64_t i, float *restrict out) {
  if (conv_whole(v, t, i)) {
    const float *restrict r = conv_row(v, t, i - 3), *restrict w = v->w + t->c0;
    const float *restrict bias = v->bias + t->c0;
    int64_t ld = v->d->ldx, cd = v->cd;
#pragma omp simd
    for (int64_t c = 0; c < t->nc; c++)
      out[c] = bias[c] + w[c] * r[c] + w[cd + c] * r[ld + c] + w[2 * cd + c] * r[2 * ld + c] +
               w[3 * cd + c] * r[3 * ld + c];
    return;
  }
  memcpy(out, v->bias + t->c0, (size_t)t->nc * sizeof *out);
  for (int64_t j = conv_first(v, t, i); j <= i; j++) {
    const float *restrict row = conv_row(v, t, j), *restrict w = conv_tap(v, t, i, j);
#pragma omp simd
    for (int64_t c = 0; c < t->nc; c++) out[c] += w[c] * row[c];
  }
}

void sk_cpu_conv(sk_stream *s, const sk_conv_dims *d, void *y, const void *x, const void *halo,
                 const void *w, const void *bias, const int32_t *start) {
  conv_call v = conv_setup(s, d, x, halo, w, bias, start, false);
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < d->b * v.blocks; task++) {
    conv_task t = conv_open(&v, task);
    for (int64_t i = 0; i < d->T; i++) {
      float *out = (float *)y + (t.seq * d->T + i) * d->ldy + t.c0;
      conv_sum(&v, &t, i, out);
#pragma omp simd
      for (int64_t c = 0; c < t.nc; c++) out[c] = sk_siluf(out[c]);
    }
  }
}

// Adds the shares of tokens i0 .. i1-1 to the sums for dw and dbias, in double. dv: row i0.
static void conv_add_sums(const conv_call *v, const conv_task *t, int64_t i0, int64_t i1,
                          const float *dv) {
  enum { VL = 8 };
  typedef float some __attribute__((vector_size(4 * VL), aligned(4), may_alias));
  typedef double wide __attribute__((vector_size(8 * VL), aligned(8), may_alias));
  double *sum = v->part + t->seq * (v->d->K + 1) * v->cd + t->c0;
  int64_t ld = v->d->ldx, cd = v->cd, whole = i0, c0 = 0;
  while (whole < i1 && conv_whole(v, t, whole)) whole++;
  for (; whole == i1 && c0 + VL <= t->nc; c0 += VL) { // the sums of VL channels stay in registers
    wide acc[5];
    for (int k = 0; k < 5; k++) acc[k] = *(wide *)(sum + k * cd + c0);
    for (int64_t i = i0; i < i1; i++) {
      const float *row = conv_row(v, t, i - 3) + c0;
      wide g = __builtin_convertvector(*(const some *)(dv + (i - i0) * ld + c0), wide);
      for (int k = 0; k < 4; k++)
        acc[k] += g * __builtin_convertvector(*(const some *)(row + k * ld), wide);
      acc[4] += g;
    }
    for (int k = 0; k < 5; k++) *(wide *)(sum + k * cd + c0) = acc[k];
  }
  for (int64_t i = i0; i < i1; i++) {
    const float *restrict g = dv + (i - i0) * ld;
    for (int64_t j = conv_first(v, t, i); j <= i; j++) {
      const float *restrict row = conv_row(v, t, j);
      double *restrict dw = sum + (j - i + v->d->K - 1) * cd;
#pragma omp simd
      for (int64_t c = c0; c < t->nc; c++) dw[c] += (double)g[c] * (double)row[c];
    }
#pragma omp simd
    for (int64_t c = c0; c < t->nc; c++) sum[v->d->K * cd + c] += (double)g[c];
  }
}

// out[nc] = gradient of raw row j, from the rows dv of tokens j .. j+K-1. out may be row j of dv.
static void conv_input_grad(const conv_call *v, const conv_task *t, int64_t j, float *out,
                            const float *dv) {
  if (j >= 0 && j + 3 < v->d->T && conv_whole(v, t, j + 3)) {
    const float *r = dv + j * v->d->ldx, *w = v->w + t->c0;
    int64_t ld = v->d->ldx, cd = v->cd;
#pragma omp simd
    for (int64_t c = 0; c < t->nc; c++)
      out[c] = w[3 * cd + c] * r[c] + w[2 * cd + c] * r[ld + c] + w[cd + c] * r[2 * ld + c] +
               w[c] * r[3 * ld + c];
    return;
  }
  float sum[BLOCK] = {0};
  for (int64_t i = sk_max64(j, 0); i < sk_min64(v->d->T, j + v->d->K); i++) {
    if (conv_first(v, t, i) > j) continue;
    const float *row = dv + i * v->d->ldx, *w = conv_tap(v, t, i, j);
#pragma omp simd
    for (int64_t c = 0; c < t->nc; c++) sum[c] += w[c] * row[c];
  }
  memcpy(out, sum, (size_t)t->nc * sizeof *out);
}

static void conv_task_grad(const conv_call *v, const conv_task *t, float *dx, float *dhalo,
                           const float *dy) {
  const sk_conv_dims *d = v->d;
  double *sum = v->part + t->seq * (d->K + 1) * v->cd + t->c0;
  for (int64_t k = 0; k <= d->K; k++) memset(sum + k * v->cd, 0, (size_t)t->nc * sizeof *sum);
  // dx holds dv first; a row is replaced when no later row needs it.
  float *dv = dx + t->seq * d->T * d->ldx + t->c0;
  for (int64_t i0 = 0; i0 < d->T; i0 += RUN) {
    int64_t i1 = sk_min64(d->T, i0 + RUN);
    for (int64_t i = i0; i < i1; i++) {
      float *restrict g = dv + i * d->ldx;
      const float *restrict dyi = dy + (t->seq * d->T + i) * d->ldy + t->c0;
      conv_sum(v, t, i, g);
#pragma omp simd
      for (int64_t c = 0; c < t->nc; c++) g[c] = dyi[c] * sk_dsiluf(g[c]);
    }
    conv_add_sums(v, t, i0, i1, dv + i0 * d->ldx);
  }
  for (int64_t j = 1 - d->K; dhalo && j < 0; j++)
    conv_input_grad(v, t, j, dhalo + (t->seq * (d->K - 1) + d->K - 1 + j) * v->cd + t->c0, dv);
  for (int64_t j = 0; j < d->T; j++) conv_input_grad(v, t, j, dv + j * d->ldx, dv);
}

void sk_cpu_conv_grad(sk_stream *s, const sk_conv_dims *d, void *dx, void *dhalo, float *dw,
                      float *dbias, const void *dy, const void *x, const void *halo, const void *w,
                      const void *bias, const int32_t *start) {
  conv_call v = conv_setup(s, d, x, halo, w, bias, start, true);
#pragma omp parallel for schedule(static)
  for (int64_t task = 0; task < d->b * v.blocks; task++) {
    conv_task t = conv_open(&v, task);
    conv_task_grad(&v, &t, dx, dhalo, dy);
  }
  for (int64_t seq = 0; seq < d->b; seq++) {
    const double *sum = v.part + seq * (d->K + 1) * v.cd;
    for (int64_t k = 0; k < d->K; k++)
      for (int64_t c = 0; c < v.cd; c++)
        dw[c * d->K + k] = (float)(dw[c * d->K + k] + (double)v.mult[c] * sum[k * v.cd + c]);
    if (dbias) sk_cpu_reduce(dbias, sum + d->K * v.cd, 1, v.cd, 1);
  }
}

void sk_cpu_dt(sk_stream *s, float *dt, const void *r, int64_t ldr, double mult,
               const void *dt_bias, double lo, double hi, int64_t n, int64_t nh) {
  (void)s;
  const float *bias = dt_bias;
  float m = (float)mult, low = (float)lo, high = (float)hi;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    float *restrict out = dt + t * nh;
    const float *restrict in = (const float *)r + t * ldr;
#pragma omp simd
    for (int64_t h = 0; h < nh; h++) {
      float v = sk_softplusf(m * in[h] + bias[h]);
      v = v < low ? low : v;
      out[h] = v > high ? high : v;
    }
  }
}

void sk_cpu_dt_grad(sk_stream *s, void *dr, float *ddt_bias, const float *ddt, const void *r,
                    int64_t ldr, double mult, const void *dt_bias, double lo, double hi, int64_t n,
                    int64_t nh) {
  const float *bias = dt_bias;
  float m = (float)mult, low = (float)lo, high = (float)hi;
  sk_cpu_blocks cut = sk_cpu_cut(n);
  double *part = sk_cpu_scratch(s, (size_t)(cut.count * nh) * sizeof *part);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < cut.count; i++) {
    double *restrict sum = part + i * nh;
    memset(sum, 0, (size_t)nh * sizeof *sum);
    for (int64_t t = i * cut.size; t < sk_min64(n, (i + 1) * cut.size); t++) {
      float *restrict out = (float *)dr + t * ldr;
      const float *restrict in = (const float *)r + t * ldr, *restrict dout = ddt + t * nh;
#pragma omp simd
      for (int64_t h = 0; h < nh; h++) {
        float pre = m * in[h] + bias[h], v = sk_softplusf(pre);
        float g = v < low || v > high ? 0.0f : dout[h] * sk_sigmoidf(pre);
        sum[h] += (double)g;
        out[h] = m * g;
      }
    }
  }
  sk_cpu_reduce(ddt_bias, part, cut.count, nh, 1);
}
