/* cpu_ssd_grad.c: the SSD recurrence in chunks, backward (section 3.4). The states before the
 * chunks are computed again, their gradients come from a scan from the last chunk to the first;
 * then every chunk is on its own. S: state before the chunk; R: gradient of the state after it. */
#include <omp.h>
#include <string.h>
#include "kernels/cpu_mamba.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_ssd.h"

typedef struct grad_call {
  sk_ssd_call v;
  const float *dSf;
  float *S, *R; // states before the chunks and their gradients, [b][chunks + 1][nh][N][P]
  float *dx, *dB, *dC, *ddt;
  double *dA, *dD; // [b * chunks][nh] sums over a chunk's tokens; dA is times A
} grad_call;

size_t sk_cpu_ssd_grad_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *d) {
  (void)dev, (void)act;
  return 2 * (size_t)sk_ssd_slots(d) * sizeof(float);
}

// ---- gradients of the states ----

// The slot of the state before chunk k = its gradient through the chunk's own outputs.
static void chunk_state_grad(const grad_call *g, const sk_ssd_chunk *k, int64_t h, float *mine) {
  const sk_ssd_call *v = &g->v;
  const sk_ssd_dims *d = v->d;
  sk_ssd_decay w = sk_ssd_decay_take(d, &mine);
  sk_ssd_fade(v, k, h, &w);
  const float *dy = v->dy + k->row * d->ldy + h * d->P;
  const float *C = v->C + k->row * d->ld + h / (d->nh / d->G) * d->N;
  sk_ssd_outer(v, k, h, sk_ssd_slot(v, g->R, k->seq, k->c, h), dy, d->ldy, C, w.in, false, mine);
}

// From the chunks' own gradients to those of the states before them, from the last to chunk
// `first`.
static void scan_grads(const grad_call *g, int64_t seq, int64_t h, int64_t first, float *mine) {
  const sk_ssd_call *v = &g->v;
  const sk_ssd_dims *d = v->d;
  float *end = sk_ssd_slot(v, g->R, seq, v->chunks, h);
  memset(end, 0, (size_t)v->state * sizeof *end);
  if (g->dSf) sk_ssd_transpose(end, d->P, g->dSf + (seq * d->nh + h) * v->state, d->N, d->P, d->N);
  sk_ssd_decay w = sk_ssd_decay_take(d, &mine);
  for (int64_t c = v->chunks - 1; c >= first; c--) {
    sk_ssd_chunk k = sk_ssd_chunk_at(v, seq * v->chunks + c);
    sk_ssd_fade(v, &k, h, &w);
    const float *restrict after = sk_ssd_slot(v, g->R, seq, c + 1, h);
    float *restrict here = sk_ssd_slot(v, g->R, seq, c, h);
#pragma omp simd
    for (int64_t i = 0; i < v->state; i++) here[i] += w.keep * after[i];
  }
}

static void state_grads(const grad_call *g, float *dS0, float *scratch) {
  const sk_ssd_dims *d = g->v.d;
  int64_t nh = d->nh, size = sk_ssd_states_floats(d), first = dS0 ? 0 : 1;
  int64_t chunks = g->v.chunks, slots = chunks - first;
#pragma omp parallel
  {
    float *mine = sk_ssd_mine(scratch, size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->b * slots * nh; i++) {
      int64_t seq = i / (slots * nh), c = first + i / nh % slots;
      sk_ssd_chunk k = sk_ssd_chunk_at(&g->v, seq * chunks + c);
      chunk_state_grad(g, &k, i % nh, mine);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->b * nh; i++) {
      scan_grads(g, i / nh, i % nh, first, mine);
      if (dS0)
        sk_ssd_transpose(dS0 + i * g->v.state, d->N, sk_ssd_slot(&g->v, g->R, i / nh, 0, i % nh),
                         d->P, d->N, d->P);
    }
  }
}

// ---- one chunk ----

typedef struct grad_scratch {
  sk_ssd_decay w;
  float *BT, *CB, *dCB; // [N][q]; [q][q] of a group: C B^T and its gradient
  float *M, *E;         // [q][q] of a head: CB * L, and the head's part of dCB
  float *xT;            // [P][q] dt * x
  float *SP, *RP;       // [P][N]: S and R transposed
  float *rowP, *rowN;   // [q][P], [q][N]
  float *L;             // [q]; also sums over rows
  double *da;           // [q]
} grad_scratch;

static int64_t grad_floats(const sk_ssd_dims *d) {
  int64_t q = sk_min64(d->Q, d->T);
  return sk_ssd_decay_floats(d) + sk_ssd_pad(d->N * q) + 4 * sk_ssd_pad(q * q) +
         sk_ssd_pad(d->P * q) + 2 * sk_ssd_pad(d->P * d->N) + sk_ssd_pad(q * d->P) +
         sk_ssd_pad(q * d->N) + sk_ssd_pad(q) + sk_ssd_pad(2 * q);
}

static grad_scratch grad_open(const sk_ssd_dims *d, float *mine) {
  int64_t q = sk_min64(d->Q, d->T), qq = sk_ssd_pad(q * q), pn = sk_ssd_pad(d->P * d->N);
  grad_scratch s = {.w = sk_ssd_decay_take(d, &mine)};
  s.BT = mine;
  s.CB = s.BT + sk_ssd_pad(d->N * q);
  s.dCB = s.CB + qq;
  s.M = s.dCB + qq;
  s.E = s.M + qq;
  s.xT = s.E + qq;
  s.SP = s.xT + sk_ssd_pad(d->P * q);
  s.RP = s.SP + pn;
  s.rowP = s.RP + pn;
  s.rowN = s.rowP + sk_ssd_pad(q * d->P);
  s.L = s.rowN + sk_ssd_pad(q * d->N);
  s.da = (double *)(void *)(s.L + sk_ssd_pad(q));
  return s;
}

static double dot(const float *restrict a, const float *restrict b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return (double)sum;
}

// y[n] += f * x
static void add_scaled(float *restrict y, float f, const float *restrict x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] += f * x[i];
}

// C B^T of a group and zeros for what its heads add to.
static void open_group(const grad_call *g, const sk_ssd_chunk *k, int64_t group, grad_scratch *s) {
  const sk_ssd_call *v = &g->v;
  const sk_ssd_dims *d = v->d;
  int64_t q = k->q, at = k->row * d->ld + group * d->N;
  sk_ssd_transpose(s->BT, q, v->B + at, d->ld, q, d->N);
  for (int64_t i = 0; i < q; i += SK_MR) {
    int64_t m = sk_min64(SK_MR, q - i);
    sk_product(false, s->CB + i * q, q, v->C + at + i * d->ld, d->ld, 1, s->BT, q, m,
               sk_block_up(i + m, q), d->N);
  }
  memset(s->dCB, 0, (size_t)(q * q) * sizeof(float));
  for (int64_t i = 0; i < q; i++) {
    memset(g->dB + at + i * d->ld, 0, (size_t)d->N * sizeof(float));
    memset(g->dC + at + i * d->ld, 0, (size_t)d->N * sizeof(float));
  }
}

// After all heads of a group: dC_i += sum_j dCB_ij B_j; dB_j += sum_i dCB_ij C_i.
static void close_group(const grad_call *g, const sk_ssd_chunk *k, int64_t group,
                        const grad_scratch *s) {
  const sk_ssd_dims *d = g->v.d;
  int64_t q = k->q, at = k->row * d->ld + group * d->N;
  const float *B = g->v.B + at, *C = g->v.C + at;
  for (int64_t i = 0; i < q; i += SK_MR) {
    int64_t m = sk_min64(SK_MR, q - i), here = i * d->ld;
    sk_product(true, g->dC + at + here, d->ld, s->dCB + i * q, q, 1, B, d->ld, m, d->N, i + m);
    sk_product(true, g->dB + at + here, d->ld, s->dCB + i * q + i, 1, q, C + here, d->ld, m, d->N,
               q - i);
  }
}

// M and E of a head, E also added to dCB. Both are 0 above the diagonal as far as a block of rows
// reads.
static void score_grads(const grad_call *g, const sk_ssd_chunk *k, int64_t h, grad_scratch *s) {
  const sk_ssd_call *v = &g->v;
  const sk_ssd_dims *d = v->d;
  int64_t q = k->q;
  const float *dy = v->dy + k->row * d->ldy + h * d->P, *dt = v->dt + k->row * d->nh + h;
  sk_ssd_transpose(s->xT, q, v->x + k->row * d->ld + h * d->P, d->ld, q, d->P);
  for (int64_t j = 0; j < q; j++) s->L[j] = dt[j * d->nh];
  for (int64_t p = 0; p < d->P; p++) // dt goes with x
    for (int64_t j = 0; j < q; j++) s->xT[p * q + j] *= s->L[j];
  for (int64_t i0 = 0; i0 < q; i0 += SK_MR) {
    int64_t m = sk_min64(SK_MR, q - i0), ends = i0 + m;
    sk_product(false, s->E + i0 * q, q, dy + i0 * d->ldy, d->ldy, 1, s->xT, q, m,
               sk_block_up(ends, q), d->P);
    for (int64_t i = i0; i < ends; i++) {
      int64_t lo = sk_ssd_row(v, k, &s->w, i, s->L);
      float *restrict M = s->M + i * q, *restrict E = s->E + i * q, *restrict sum = s->dCB + i * q;
      const float *restrict CB = s->CB + i * q, *restrict L = s->L;
      memset(M, 0, (size_t)ends * sizeof *M);
      memset(E, 0, (size_t)lo * sizeof *E);
      for (int64_t j = i + 1; j < ends; j++) E[j] = 0;
      for (int64_t j = lo; j <= i; j++) {
        M[j] = CB[j] * L[j];
        E[j] *= L[j];
        sum[j] += E[j];
      }
    }
  }
}

// da[k] = sum over i >= k > j of E_ij CB_ij: what passes from token j to token i fades at k.
static void decay_grads_inside(const sk_ssd_chunk *k, const grad_scratch *s) {
  int64_t q = k->q;
  float *restrict below = s->L; // sums of a column from row i down
  memset(below, 0, (size_t)q * sizeof *below);
  for (int64_t i = q - 1; i >= 0; i--) {
    const float *restrict E = s->E + i * q, *restrict CB = s->CB + i * q;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < i; j++) {
      below[j] += E[j] * CB[j];
      sum += below[j];
    }
    s->da[i] = (double)sum;
  }
}

// Through the state that comes in: dC and da.
static void incoming_grads(const grad_call *g, const sk_ssd_chunk *k, int64_t h, grad_scratch *s) {
  const sk_ssd_call *v = &g->v;
  const sk_ssd_dims *d = v->d;
  if (s->w.in[0] == 0) return;
  int64_t at = k->row * d->ld + h / (d->nh / d->G) * d->N;
  sk_ssd_transpose(s->SP, d->N, sk_ssd_slot(v, g->S, k->seq, k->c, h), d->P, d->N, d->P);
  sk_matmul(false, s->rowN, d->N, v->dy + k->row * d->ldy + h * d->P, d->ldy, 1, s->SP, d->N, k->q,
            d->N, d->P);
  double later = 0;
  for (int64_t i = k->q - 1; i >= 0; i--) {
    const float *row = s->rowN + i * d->N;
    float in = s->w.in[i];
    add_scaled(g->dC + at + i * d->ld, in, row, d->N);
    later += (double)in * dot(row, v->C + at + i * d->ld, d->N);
    s->da[i] += later;
  }
}

// Through the state that goes out: dB, da, and R B_j into rowP.
static void outgoing_grads(const grad_call *g, const sk_ssd_chunk *k, int64_t h, grad_scratch *s) {
  const sk_ssd_call *v = &g->v;
  const sk_ssd_dims *d = v->d;
  int64_t q = k->q, at = k->row * d->ld + h / (d->nh / d->G) * d->N;
  const float *R = sk_ssd_slot(v, g->R, k->seq, k->c + 1, h), *dt = v->dt + k->row * d->nh + h;
  const float *x = v->x + k->row * d->ld + h * d->P;
  sk_ssd_transpose(s->RP, d->N, R, d->P, d->N, d->P);
  sk_matmul(false, s->rowN, d->N, x, d->ld, 1, s->RP, d->N, q, d->N, d->P);
  sk_matmul(false, s->rowP, d->P, v->B + at, d->ld, 1, R, d->P, q, d->P, d->N);
  double earlier = (double)s->w.keep *
                   dot(R, sk_ssd_slot(v, g->S, k->seq, k->c, h), s->w.keep > 0 ? v->state : 0);
  for (int64_t j = 0; j < q; j++) {
    float f = s->w.out[j] * dt[j * d->nh];
    s->da[j] += earlier;
    add_scaled(g->dB + at + j * d->ld, f, s->rowN + j * d->N, d->N);
    earlier += (double)f * dot(x + j * d->ld, s->rowP + j * d->P, d->P);
  }
}

// dx, ddt and the sums for A_log and D. rowP holds R B_j.
static void input_grads(const grad_call *g, const sk_ssd_chunk *k, int64_t h,
                        const grad_scratch *s) {
  const sk_ssd_call *v = &g->v;
  const sk_ssd_dims *d = v->d;
  int64_t q = k->q, task = k->seq * v->chunks + k->c;
  const float *dy = v->dy + k->row * d->ldy + h * d->P;
  double dA = 0, dD = 0;
  for (int64_t j = 0; j < q; j++)
    for (int64_t p = 0; p < d->P; p++) s->rowP[j * d->P + p] *= s->w.out[j];
  for (int64_t j = 0; j < q; j += SK_MR)
    sk_product(true, s->rowP + j * d->P, d->P, s->M + j * q + j, 1, q, dy + j * d->ldy, d->ldy,
               sk_min64(SK_MR, q - j), d->P, q - j);
  for (int64_t j = 0; j < q; j++) {
    int64_t at = (k->row + j) * d->ld + h * d->P, one = (k->row + j) * d->nh + h;
    const float *restrict dyj = dy + j * d->ldy, *restrict dX = s->rowP + j * d->P;
    float *restrict dx = g->dx + at, dt = v->dt[one], D = v->D[h];
#pragma omp simd
    for (int64_t p = 0; p < d->P; p++) dx[p] = dt * dX[p] + D * dyj[p];
    g->ddt[one] = (float)(dot(dX, v->x + at, d->P) + v->A[h] * s->da[j]);
    dA += (double)dt * s->da[j];
    dD += dot(dyj, v->x + at, d->P);
  }
  g->dA[task * d->nh + h] = v->A[h] * dA;
  g->dD[task * d->nh + h] = dD;
}

static void chunk_grads(const grad_call *g, const sk_ssd_chunk *k, grad_scratch *s) {
  int64_t nh = g->v.d->nh, heads = nh / g->v.d->G;
  for (int64_t h = 0; h < nh; h++) {
    if (h % heads == 0) open_group(g, k, h / heads, s);
    sk_ssd_fade(&g->v, k, h, &s->w);
    score_grads(g, k, h, s);
    decay_grads_inside(k, s);
    incoming_grads(g, k, h, s);
    outgoing_grads(g, k, h, s);
    input_grads(g, k, h, s);
    if ((h + 1) % heads == 0) close_group(g, k, h / heads, s);
  }
}

void sk_cpu_ssd_grad(sk_stream *st, const sk_ssd_dims *d, void *dx, void *dB, void *dC, float *ddt,
                     float *dA_log, float *dD, float *dS0, const void *dy, const void *x,
                     const void *B, const void *C, const float *dt, const void *A_log,
                     const void *D, const int32_t *start, const float *S0, const float *dSf,
                     void *ws) {
  int64_t tasks = d->b * sk_ceil_div(d->T, d->Q), size = grad_floats(d), sums = tasks * d->nh;
  size_t part = (size_t)sk_ssd_pad(4 * sums) * sizeof(float);
  size_t bytes = (size_t)(omp_get_max_threads() * size) * sizeof(float);
  char *all = sk_cpu_scratch(st, part + sk_ssd_open_bytes(d) + bytes);
  float *scratch;
  grad_call g = {.v = sk_ssd_open(d, A_log, start, all + part, &scratch), .dSf = dSf, .S = ws};
  g.v.x = x, g.v.B = B, g.v.C = C, g.v.dt = dt, g.v.D = D, g.v.dy = dy;
  g.R = g.S + sk_ssd_slots(d);
  g.dx = dx, g.dB = dB, g.dC = dC, g.ddt = ddt;
  g.dA = (double *)(void *)all, g.dD = g.dA + sums;
  sk_ssd_states(&g.v, g.S, S0, false, scratch);
  state_grads(&g, dS0, scratch);
#pragma omp parallel
  {
    grad_scratch s = grad_open(d, sk_ssd_mine(scratch, size));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tasks; i++) {
      sk_ssd_chunk k = sk_ssd_chunk_at(&g.v, i);
      chunk_grads(&g, &k, &s);
    }
  }
  sk_cpu_reduce(dA_log, g.dA, tasks, d->nh, 1);
  sk_cpu_reduce(dD, g.dD, tasks, d->nh, 1);
}

void sk_cpu_ssd_state_grad(sk_stream *st, const sk_ssd_dims *d, float *dS0, const void *dy,
                           const void *C, const float *dt, const void *A_log, const int32_t *start,
                           void *ws) {
  int64_t size = sk_ssd_states_floats(d);
  size_t bytes = (size_t)(omp_get_max_threads() * size) * sizeof(float);
  float *scratch;
  void *all = sk_cpu_scratch(st, sk_ssd_open_bytes(d) + bytes);
  grad_call g = {.v = sk_ssd_open(d, A_log, start, all, &scratch), .R = ws};
  g.v.C = C, g.v.dt = dt, g.v.dy = dy;
  state_grads(&g, dS0, scratch);
}
