#include "tests/ref_ops.h"
#include <math.h>
#include <string.h>

void ref_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const double *A,
              const double *B, double beta, double *C) {
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      double sum = 0;
      for (int64_t l = 0; l < k; l++)
        sum += (ta ? A[l * m + i] : A[i * k + l]) * (tb ? B[j * k + l] : B[l * n + j]);
      C[i * n + j] = alpha * sum + (beta != 0 ? beta * C[i * n + j] : 0);
    }
  }
}

void ref_embed(double *h, const int32_t *ids, const double *E, double mult, int64_t n, int64_t d,
               int64_t v0, int64_t nv) {
  for (int64_t t = 0; t < n; t++)
    for (int64_t c = 0; c < d; c++)
      h[t * d + c] = ids[t] >= v0 && ids[t] < v0 + nv ? mult * E[(ids[t] - v0) * d + c] : 0;
}

void ref_embed_grad(double *dE, const int32_t *ids, const double *dh, double mult, int64_t n,
                    int64_t d, int64_t v0, int64_t nv, int64_t pad) {
  for (int64_t t = 0; t < n; t++) {
    if (ids[t] < v0 || ids[t] >= v0 + nv || ids[t] == pad) continue;
    for (int64_t c = 0; c < d; c++) dE[(ids[t] - v0) * d + c] += mult * dh[t * d + c];
  }
}

void ref_rmsnorm(double *y, double *rstd, const double *x, const double *w, int64_t n, int64_t d,
                 double eps) {
  for (int64_t t = 0; t < n; t++) {
    double mean = 0;
    for (int64_t c = 0; c < d; c++) mean += x[t * d + c] * x[t * d + c] / (double)d;
    rstd[t] = 1 / sqrt(mean + eps);
    for (int64_t c = 0; c < d; c++) y[t * d + c] = w[c] * x[t * d + c] * rstd[t];
  }
}

// y_c = w_c x_c r with r = (mean + eps)^(-1/2), so dr/dx_j = -r^3 x_j / d.
void ref_rmsnorm_grad(double *dx, double *dw, const double *dy, const double *x, const double *w,
                      int64_t n, int64_t d, double eps) {
  for (int64_t t = 0; t < n; t++) {
    const double *xt = x + t * d, *dyt = dy + t * d;
    double mean = 0, dr = 0;
    for (int64_t c = 0; c < d; c++) mean += xt[c] * xt[c] / (double)d;
    double r = 1 / sqrt(mean + eps);
    for (int64_t c = 0; c < d; c++) dr += dyt[c] * w[c] * xt[c];
    for (int64_t c = 0; c < d; c++) {
      dx[t * d + c] += dyt[c] * w[c] * r - dr * r * r * r * xt[c] / (double)d;
      dw[c] += dyt[c] * xt[c] * r;
    }
  }
}

static double sigmoid(double x) {
  return 1 / (1 + exp(-x));
}

void ref_swiglu(double *a, const double *gu, double mgate, int64_t n, int64_t F) {
  for (int64_t t = 0; t < n; t++) {
    for (int64_t c = 0; c < F; c++) {
      double g = mgate * gu[t * 2 * F + c];
      a[t * F + c] = gu[t * 2 * F + F + c] * g * sigmoid(g);
    }
  }
}

void ref_swiglu_grad(double *dgu, const double *da, const double *gu, double mgate, int64_t n,
                     int64_t F) {
  for (int64_t t = 0; t < n; t++) {
    for (int64_t c = 0; c < F; c++) {
      double g = mgate * gu[t * 2 * F + c], up = gu[t * 2 * F + F + c], e = da[t * F + c];
      double dsilu = sigmoid(g) * (1 + g * (1 - sigmoid(g)));
      dgu[t * 2 * F + c] = e * up * dsilu * mgate;
      dgu[t * 2 * F + F + c] = e * g * sigmoid(g);
    }
  }
}

void ref_rope(double *x, const double *table, double mult, int sign, int64_t b, int64_t T,
              int64_t heads, int64_t hd) {
  int64_t half = hd / 2;
  for (int64_t t = 0; t < b * T; t++) {
    for (int64_t h = 0; h < heads; h++) {
      for (int64_t i = 0; i < half; i++) {
        double *p = x + (t * heads + h) * hd;
        double cosine = table[(t % T * half + i) * 2],
               sine = sign * table[(t % T * half + i) * 2 + 1];
        double u = mult * p[i], v = mult * p[i + half];
        p[i] = u * cosine - v * sine;
        p[i + half] = v * cosine + u * sine;
      }
    }
  }
}

// Scores and log-sum-exp of one (sequence, head, query); score[j] is set for lo <= j <= hi.
static double query_scores(const sk_attn_dims *d, double *score, const double *q, const double *k,
                           int64_t bi, int64_t h, int64_t lo, int64_t hi) {
  double max = -INFINITY, sum = 0;
  for (int64_t j = lo; j <= hi; j++) {
    const double *key = k + ((bi * d->Tk + j) * d->KV + h / (d->H / d->KV)) * d->hd;
    score[j] = 0;
    for (int64_t c = 0; c < d->hd; c++) score[j] += d->scale * q[c] * key[c];
    max = fmax(max, score[j]);
  }
  for (int64_t j = lo; j <= hi; j++) sum += exp(score[j] - max);
  return max + log(sum);
}

void ref_attention(const sk_attn_dims *d, double *o, double *lse, const double *q, const double *k,
                   const double *v, const int32_t *start) {
  double *score = sk_malloc((size_t)d->Tk * sizeof *score);
  for (int64_t at = 0; at < d->b * d->Tq * d->H; at++) {
    int64_t h = at % d->H, token = at / d->H, bi = token / d->Tq, i = token % d->Tq;
    int64_t lo = start[token], hi = d->q0 + i;
    double log_sum = query_scores(d, score, q + at * d->hd, k, bi, h, lo, hi);
    lse[(bi * d->H + h) * d->Tq + i] = log_sum;
    memset(o + at * d->hd, 0, (size_t)d->hd * sizeof *o);
    for (int64_t j = lo; j <= hi; j++) {
      const double *value = v + ((bi * d->Tk + j) * d->KV + h / (d->H / d->KV)) * d->hd;
      for (int64_t c = 0; c < d->hd; c++) o[at * d->hd + c] += exp(score[j] - log_sum) * value[c];
    }
  }
  sk_free(score);
}

void ref_attention_grad(const sk_attn_dims *d, double *dq, double *dk, double *dv,
                        const double *dout, const double *q, const double *k, const double *v,
                        const int32_t *start) {
  int64_t hd = d->hd;
  double *score = sk_malloc((size_t)d->Tk * sizeof *score),
         *dp = sk_malloc((size_t)d->Tk * sizeof *dp);
  memset(dq, 0, (size_t)(d->b * d->Tq * d->H * hd) * sizeof *dq);
  memset(dk, 0, (size_t)(d->b * d->Tk * d->KV * hd) * sizeof *dk);
  memset(dv, 0, (size_t)(d->b * d->Tk * d->KV * hd) * sizeof *dv);
  for (int64_t at = 0; at < d->b * d->Tq * d->H; at++) {
    int64_t h = at % d->H, token = at / d->H, bi = token / d->Tq, lo = start[token];
    int64_t hi = d->q0 + token % d->Tq;
    double log_sum = query_scores(d, score, q + at * hd, k, bi, h, lo, hi), mean = 0;
    for (int64_t j = lo; j <= hi; j++) {
      int64_t key = ((bi * d->Tk + j) * d->KV + h / (d->H / d->KV)) * hd;
      double p = exp(score[j] - log_sum);
      dp[j] = 0;
      for (int64_t c = 0; c < hd; c++) {
        dp[j] += dout[at * hd + c] * v[key + c];
        dv[key + c] += p * dout[at * hd + c];
      }
      mean += p * dp[j];
    }
    for (int64_t j = lo; j <= hi; j++) {
      int64_t key = ((bi * d->Tk + j) * d->KV + h / (d->H / d->KV)) * hd;
      double ds = exp(score[j] - log_sum) * (dp[j] - mean) * d->scale;
      for (int64_t c = 0; c < hd; c++) {
        dq[at * hd + c] += ds * k[key + c];
        dk[key + c] += ds * q[at * hd + c];
      }
    }
  }
  sk_free(score);
  sk_free(dp);
}

void ref_xent(double *loss, double *dlogits, const double *logits, const int32_t *label,
              double scale, int64_t n, int64_t V) {
  for (int64_t t = 0; t < n; t++) {
    const double *row = logits + t * V;
    double max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < V; j++) max = fmax(max, row[j]);
    for (int64_t j = 0; j < V; j++) sum += exp(row[j] - max);
    loss[t] = label[t] < 0 ? 0 : log(sum) + max - row[label[t]];
    for (int64_t j = 0; dlogits && j < V; j++) {
      double softmax = exp(row[j] - max) / sum;
      dlogits[t * V + j] = label[t] < 0 ? 0 : scale * (softmax - (j == label[t]));
    }
  }
}

void ref_adamw(double *p, double *m, double *v, const double *g, int64_t n, const sk_adamw *h) {
  for (int64_t i = 0; i < n; i++) {
    double grad = h->gscale * g[i];
    m[i] = h->beta1 * m[i] + (1 - h->beta1) * grad;
    v[i] = h->beta2 * v[i] + (1 - h->beta2) * grad * grad;
    double step = m[i] / h->bias1 / (sqrt(v[i] / h->bias2) + h->eps);
    p[i] -= h->lr * (step + h->wd * p[i]);
  }
}
