#include <math.h>
#include "kernels/cpu.h"
#include "kernels/cpu_math.h"

static float row_max(const float *restrict x, int64_t n) {
  float max = -INFINITY;
#pragma omp simd reduction(max : max)
  for (int64_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
  return max;
}

// Short runs in float, their sums in double.
static double sum_exp(const float *restrict x, float max, int64_t n) {
  enum { RUN = 256 };
  double total = 0;
  for (int64_t i = 0; i < n; i += RUN) {
    float sum = 0;
    int64_t end = sk_min64(n, i + RUN);
#pragma omp simd reduction(+ : sum)
    for (int64_t j = i; j < end; j++) sum += sk_expf(x[j] - max);
    total += sum;
  }
  return total;
}

void sk_cpu_xent_stats(sk_stream *s, float *stats, const float *logits, int64_t ld,
                       const int32_t *label, int64_t n, int64_t v0, int64_t nv) {
  (void)s;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const float *row = logits + t * ld;
    int64_t id = label[t] - v0;
    stats[t] = row_max(row, nv);
    stats[n + t] = (float)sum_exp(row, stats[t], nv);
    stats[2 * n + t] = id >= 0 && id < nv ? row[id] : 0;
  }
}

void sk_cpu_xent_merge(sk_stream *s, float *stats, const float *part, int64_t parts, int64_t n) {
  (void)s;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    float max = -INFINITY, label = 0;
    double sum = 0;
    for (int64_t i = 0; i < parts; i++) max = fmaxf(max, part[3 * i * n + t]);
    for (int64_t i = 0; i < parts; i++) {
      const float *p = part + 3 * i * n + t;
      sum += (double)p[n] * exp((double)p[0] - (double)max);
      label += p[2 * n];
    }
    stats[t] = max;
    stats[n + t] = (float)sum;
    stats[2 * n + t] = label;
  }
}

static void logit_grad(float *drow, const float *row, float max, float f, int64_t nv) {
#pragma omp simd
  for (int64_t j = 0; j < nv; j++) drow[j] = f * sk_expf(row[j] - max);
}

void sk_cpu_xent_grad(sk_stream *s, float *loss, void *dlogits, const float *logits, int64_t ld,
                      const float *stats, const int32_t *label, double scale, int64_t n, int64_t v0,
                      int64_t nv) {
  (void)s;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    bool counted = label[t] >= 0;
    double max = stats[t], sum = stats[n + t];
    loss[t] = counted ? (float)(log(sum) + (max - stats[2 * n + t])) : 0;
    if (!dlogits) continue;
    float *drow = (float *)dlogits + t * ld;
    if (!counted) {
      for (int64_t j = 0; j < nv; j++) drow[j] = 0;
      continue;
    }
    logit_grad(drow, logits + t * ld, stats[t], (float)(scale / sum), nv);
    int64_t id = label[t] - v0;
    if (id >= 0 && id < nv) drow[id] -= (float)scale;
  }
}

void sk_cpu_sum(sk_stream *s, double *sum, const float *x, int64_t n) {
  (void)s;
  for (int64_t i = 0; i < n; i++) *sum += x[i];
}
