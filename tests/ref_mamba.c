#include "tests/ref_mamba.h"
#include <math.h>
#include <string.h>

static double sigmoid(double x) {
  return 1 / (1 + exp(-x));
}

static double silu(double x) {
  return x * sigmoid(x);
}

static double dsilu(double x) {
  return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
}

// ---- convolution ----

static int64_t conv_channels(const sk_conv_dims *d) {
  return d->width[0] + d->width[1] + d->width[2];
}

static double conv_mult(const sk_conv_dims *d, int64_t c) {
  return d->mult[c < d->width[0] ? 0 : c < d->width[0] + d->width[1] ? 1 : 2];
}

// The sequences with their halo in front, [b, K-1+T, cd]: tap k of token t is row t+k.
static double *conv_rows(const sk_conv_dims *d, const double *x, const double *halo) {
  int64_t cd = conv_channels(d), before = (d->K - 1) * cd, piece = d->T * cd;
  double *rows = sk_calloc((size_t)(d->b * (before + piece)), sizeof *rows), *to = rows;
  for (int64_t seq = 0; seq < d->b; seq++, to += before + piece) {
    for (int64_t i = 0; halo && i < before; i++) to[i] = halo[seq * before + i];
    memcpy(to + before, x + seq * piece, (size_t)piece * sizeof *to);
  }
  return rows;
}

// The first tap of token t of sequence seq that lies in its document.
static int64_t conv_first(const sk_conv_dims *d, int64_t seq, int64_t t, const int32_t *start) {
  int64_t k = start[seq * d->T + t] - t + d->K - 1;
  return k > 0 ? k : 0;
}

// Before SiLU; i: element of y.
static double conv_sum(const sk_conv_dims *d, int64_t i, const double *rows, const double *w,
                       const double *bias, const int32_t *start) {
  int64_t cd = conv_channels(d), c = i % cd, seq = i / cd / d->T, t = i / cd % d->T;
  double v = bias ? bias[c] : 0;
  for (int64_t k = conv_first(d, seq, t, start); k < d->K; k++)
    v += w[c * d->K + k] * conv_mult(d, c) * rows[(seq * (d->K - 1 + d->T) + t + k) * cd + c];
  return v;
}

void ref_conv(const sk_conv_dims *d, double *y, const double *x, const double *halo,
              const double *w, const double *bias, const int32_t *start) {
  double *rows = conv_rows(d, x, halo);
  for (int64_t i = 0; i < d->b * d->T * conv_channels(d); i++)
    y[i] = silu(conv_sum(d, i, rows, w, bias, start));
  sk_free(rows);
}

// The inverse of conv_rows.
static void conv_split(const sk_conv_dims *d, double *x, double *halo, const double *rows) {
  int64_t cd = conv_channels(d), before = (d->K - 1) * cd, piece = d->T * cd;
  for (int64_t seq = 0; seq < d->b; seq++, rows += before + piece) {
    for (int64_t i = 0; halo && i < before; i++) halo[seq * before + i] = rows[i];
    memcpy(x + seq * piece, rows + before, (size_t)piece * sizeof *x);
  }
}

void ref_conv_grad(const sk_conv_dims *d, double *dx, double *dhalo, double *dw, double *dbias,
                   const double *dy, const double *x, const double *halo, const double *w,
                   const double *bias, const int32_t *start) {
  int64_t cd = conv_channels(d), length = d->K - 1 + d->T;
  double *rows = conv_rows(d, x, halo),
         *drows = sk_calloc((size_t)(d->b * length * cd), sizeof *drows);
  for (int64_t i = 0; i < d->b * d->T * cd; i++) {
    int64_t c = i % cd, seq = i / cd / d->T, t = i / cd % d->T;
    double dv = dy[i] * dsilu(conv_sum(d, i, rows, w, bias, start));
    if (dbias) dbias[c] += dv;
    for (int64_t k = conv_first(d, seq, t, start); k < d->K; k++) {
      int64_t at = (seq * length + t + k) * cd + c;
      dw[c * d->K + k] += dv * conv_mult(d, c) * rows[at];
      drows[at] += dv * conv_mult(d, c) * w[c * d->K + k];
    }
  }
  conv_split(d, dx, dhalo, drows);
  sk_free(rows);
  sk_free(drows);
}

// ---- step sizes ----

static double softplus(double r) {
  return r > 20 ? r : log1p(exp(r));
}

void ref_dt(double *dt, const double *r, double mult, const double *dt_bias, double lo, double hi,
            int64_t n, int64_t nh) {
  for (int64_t i = 0; i < n * nh; i++)
    dt[i] = fmin(fmax(softplus(mult * r[i] + dt_bias[i % nh]), lo), hi);
}

void ref_dt_grad(double *dr, double *ddt_bias, const double *ddt, const double *r, double mult,
                 const double *dt_bias, double lo, double hi, int64_t n, int64_t nh) {
  for (int64_t i = 0; i < n * nh; i++) {
    double pre = mult * r[i] + dt_bias[i % nh], v = softplus(pre);
    double g = v < lo || v > hi ? 0 : ddt[i] * (pre > 20 ? 1 : sigmoid(pre));
    dr[i] = mult * g;
    ddt_bias[i % nh] += g;
  }
}

// ---- gate ----

// rsqrt(mean(a^2) + eps) of a token's group; a = y, or y * silu(z) where the norm comes last.
static double gate_rstd(const sk_gate_dims *d, const double *y, const double *z) {
  int64_t cols = d->ds / d->G;
  double mean = 0;
  for (int64_t c = 0; c < cols; c++) {
    double a = y[c] * (d->before ? 1 : silu(d->zmult * z[c]));
    mean += a * a / (double)cols;
  }
  return 1 / sqrt(mean + d->eps);
}

void ref_gate(const sk_gate_dims *d, double *o, double *rstd, const double *y, const double *z,
              const double *w) {
  int64_t cols = d->ds / d->G;
  for (int64_t i = 0; i < d->n * d->G; i++) {
    int64_t at = i * cols; // groups of a token follow each other
    double rho = d->norm ? gate_rstd(d, y + at, z + at) : 1;
    if (d->norm) rstd[i] = rho;
    for (int64_t c = at; c < at + cols; c++)
      o[c] = y[c] * silu(d->zmult * z[c]) * (d->norm ? w[c % d->ds] * rho : 1);
  }
}

// Both orders of the norm are o = w y s rho with s = silu(z), and rho = (mean(a^2) + eps)^(-1/2)
// depends on y and, when it comes last, on z: d rho / d a_j = -rho^3 a_j / cols.
void ref_gate_grad(const sk_gate_dims *d, double *dy, double *dz, double *dw, const double *dout,
                   const double *y, const double *z, const double *w) {
  int64_t cols = d->ds / d->G;
  for (int64_t i = 0; i < d->n * d->G; i++) {
    int64_t at = i * cols;
    double rho = d->norm ? gate_rstd(d, y + at, z + at) : 1, drho = 0;
    for (int64_t c = at; d->norm && c < at + cols; c++) {
      double normal = y[c] * silu(d->zmult * z[c]);
      drho += dout[c] * w[c % d->ds] * normal;
      dw[c % d->ds] += dout[c] * normal * rho;
    }
    for (int64_t c = at; c < at + cols; c++) {
      double zc = d->zmult * z[c], s = silu(zc), e = dout[c] * rho * (d->norm ? w[c % d->ds] : 1);
      double a = y[c] * (d->before ? 1 : s), da = -drho * rho * rho * rho * a / (double)cols;
      if (!d->norm) da = 0;
      dy[c] = e * s + da * (d->before ? 1 : s);
      dz[c] = d->zmult * dsilu(zc) * (e * y[c] + (d->before ? 0 : da * y[c]));
    }
  }
}

// ---- SSD ----

// One head of one sequence: offsets of its first token's parts, and the steps between tokens.
typedef struct head {
  int64_t T, P, N, PN;
  int64_t x, B, C, row; // in xbc and dxbc
  int64_t dt, nh;       // in dt and ddt
  int64_t y, ds;        // in y and dy
  int64_t h, state;     // in A_log and D; in S0, Sf and their gradients
  double A, D;
  const int32_t *start; // of the sequence
} head;

static head head_open(const sk_ssd_dims *d, int64_t i, const double *A_log, const double *D,
                      const int32_t *start) {
  int64_t h = i % d->nh, seq = i / d->nh, g = h / (d->nh / d->G), ds = d->nh * d->P;
  head e = {.T = d->T, .P = d->P, .N = d->N, .PN = d->P * d->N, .nh = d->nh, .ds = ds, .h = h};
  e.row = ds + 2 * d->G * d->N;
  e.x = seq * d->T * e.row + h * d->P;
  e.B = seq * d->T * e.row + ds + g * d->N;
  e.C = e.B + d->G * d->N;
  e.dt = seq * d->T * d->nh + h;
  e.y = seq * d->T * ds + h * d->P;
  e.state = i * e.PN;
  e.A = -exp(A_log[h]);
  e.D = D[h];
  e.start = start + seq * d->T;
  return e;
}

// What is left of the state before token t; 0 at the first token of a document.
static double decay(const head *e, const double *dt, int64_t t) {
  return e->start[t] == t ? 0 : exp(dt[e->dt + t * e->nh] * e->A);
}

// S[t], t = 0 .. T: the state before token t.
static void ssd_states(const head *e, double *S, const double *xbc, const double *dt,
                       const double *S0) {
  for (int64_t i = 0; i < e->PN; i++) S[i] = S0 ? S0[e->state + i] : 0;
  for (int64_t t = 0; t < e->T; t++, S += e->PN) {
    const double *x = xbc + e->x + t * e->row, *B = xbc + e->B + t * e->row;
    double alpha = decay(e, dt, t), step = dt[e->dt + t * e->nh];
    for (int64_t p = 0; p < e->P; p++)
      for (int64_t n = 0; n < e->N; n++)
        S[e->PN + p * e->N + n] = alpha * S[p * e->N + n] + step * x[p] * B[n];
  }
}

void ref_ssd(const sk_ssd_dims *d, double *y, double *Sf, const double *xbc, const double *dt,
             const double *A_log, const double *D, const int32_t *start, const double *S0) {
  double *S = sk_malloc((size_t)((d->T + 1) * d->P * d->N) * sizeof *S);
  for (int64_t i = 0; i < d->b * d->nh; i++) {
    head e = head_open(d, i, A_log, D, start);
    ssd_states(&e, S, xbc, dt, S0);
    for (int64_t t = 0; t < e.T; t++) {
      const double *x = xbc + e.x + t * e.row, *C = xbc + e.C + t * e.row;
      for (int64_t p = 0; p < e.P; p++) {
        double sum = e.D * x[p];
        for (int64_t n = 0; n < e.N; n++) sum += S[(t + 1) * e.PN + p * e.N + n] * C[n];
        y[e.y + t * e.ds + p] = sum;
      }
    }
    if (Sf) memcpy(Sf + e.state, S + e.T * e.PN, (size_t)e.PN * sizeof *S);
  }
  sk_free(S);
}

// Token t of 3.2: R comes in as the gradient of the state after it and leaves as that of the state
// before it. S: the states before and after the token.
static void ssd_token_grad(const head *e, int64_t t, double *R, const double *S, double *dxbc,
                           double *ddt, double *dA_log, double *dD, const double *dy,
                           const double *xbc, const double *dt) {
  const double *x = xbc + e->x + t * e->row, *B = xbc + e->B + t * e->row,
               *C = xbc + e->C + t * e->row;
  double *dx = dxbc + e->x + t * e->row, *dB = dxbc + e->B + t * e->row,
         *dC = dxbc + e->C + t * e->row;
  double step = dt[e->dt + t * e->nh], alpha = decay(e, dt, t), da = 0, dstep = 0;
  dy += e->y + t * e->ds;
  for (int64_t p = 0; p < e->P; p++) {
    double w = 0;
    for (int64_t n = 0; n < e->N; n++) {
      int64_t i = p * e->N + n;
      double G = R[i] + dy[p] * C[n];
      dC[n] += S[e->PN + i] * dy[p];
      dB[n] += step * G * x[p];
      w += G * B[n];
      da += alpha * G * S[i];
      R[i] = alpha * G;
    }
    dx[p] = step * w + e->D * dy[p];
    dstep += w * x[p];
    dD[e->h] += dy[p] * x[p];
  }
  ddt[e->dt + t * e->nh] = dstep + e->A * da;
  dA_log[e->h] += e->A * step * da;
}

void ref_ssd_grad(const sk_ssd_dims *d, double *dxbc, double *ddt, double *dA_log, double *dD,
                  double *dS0, const double *dy, const double *xbc, const double *dt,
                  const double *A_log, const double *D, const int32_t *start, const double *S0,
                  const double *dSf) {
  int64_t PN = d->P * d->N, row = d->nh * d->P + 2 * d->G * d->N;
  double *S = sk_malloc((size_t)((d->T + 2) * PN) * sizeof *S), *R = S + (d->T + 1) * PN;
  memset(dxbc, 0, (size_t)(d->b * d->T * row) * sizeof *dxbc);
  for (int64_t i = 0; i < d->b * d->nh; i++) {
    head e = head_open(d, i, A_log, D, start);
    ssd_states(&e, S, xbc, dt, S0);
    for (int64_t j = 0; j < PN; j++) R[j] = dSf ? dSf[e.state + j] : 0;
    for (int64_t t = e.T - 1; t >= 0; t--)
      ssd_token_grad(&e, t, R, S + t * PN, dxbc, ddt, dA_log, dD, dy, xbc, dt);
    if (dS0) memcpy(dS0 + e.state, R, (size_t)PN * sizeof *R);
  }
  sk_free(S);
}
