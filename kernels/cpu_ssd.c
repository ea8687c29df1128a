/* cpu_ssd.c: the SSD recurrence in chunks, forward (section 3.3).
 *
 *   U     = sum_j out_j dt_j x_j B_j^T          what a chunk adds to the state
 *   S     = keep S_in + U                       from chunk to chunk
 *   y_i   = sum_{j <= i} (C_i . B_j) L_ij dt_j x_j + in_i S_in C_i + D x_i */
#include "kernels/cpu_ssd.h"
#include <math.h>
#include <omp.h>
#include <string.h>
#include "kernels/cpu_mamba.h"
#include "kernels/cpu_math.h"

// ---- shared with the backward pass ----

size_t sk_ssd_open_bytes(const sk_ssd_dims *d) {
  return (size_t)sk_ssd_pad(2 * d->nh) * sizeof(float);
}

sk_ssd_call sk_ssd_open(const sk_ssd_dims *d, const float *A_log, const int32_t *start,
                        void *scratch, float **rest) {
  double *A = scratch;
  for (int64_t h = 0; h < d->nh; h++) A[h] = -exp((double)A_log[h]);
  *rest = (float *)(void *)((char *)scratch + sk_ssd_open_bytes(d));
  return (sk_ssd_call){
      .d = d, .chunks = sk_ceil_div(d->T, d->Q), .state = d->P * d->N, .start = start, .A = A};
}

sk_ssd_chunk sk_ssd_chunk_at(const sk_ssd_call *v, int64_t i) {
  sk_ssd_chunk k = {.seq = i / v->chunks, .c = i % v->chunks};
  k.c0 = k.c * v->d->Q;
  k.q = sk_min64(v->d->Q, v->d->T - k.c0);
  k.row = k.seq * v->d->T + k.c0;
  return k;
}

void sk_ssd_fade(const sk_ssd_call *v, const sk_ssd_chunk *k, int64_t h, sk_ssd_decay *w) {
  const int32_t *start = v->start + k->row;
  const float *dt = v->dt + k->row * v->d->nh + h;
  double sum = 0;
  for (int64_t i = 0; i < k->q; i++) {
    double a = (double)dt[i * v->d->nh] * v->A[h];
    // The decay into a document's first token has nothing to act on.
    sum = start[i] == k->c0 + i ? 0 : sum + a;
    w->cs[i] = sum;
  }
  int64_t last = start[k->q - 1] - k->c0; // where the last token's document begins
  for (int64_t i = 0; i < k->q; i++) {
    w->in[i] = start[i] < k->c0 ? sk_expf((float)w->cs[i]) : 0;
    w->out[i] = i >= last ? sk_expf((float)(sum - w->cs[i])) : 0;
  }
  w->keep = w->in[k->q - 1];
}

int64_t sk_ssd_row(const sk_ssd_call *v, const sk_ssd_chunk *k, const sk_ssd_decay *w, int64_t i,
                   float *restrict row) {
  int64_t lo = sk_max64(0, v->start[k->row + i] - k->c0);
  const double *restrict cs = w->cs;
  double here = cs[i];
#pragma omp simd
  for (int64_t j = lo; j <= i; j++) row[j] = sk_expf((float)(here - cs[j]));
  return lo;
}

void sk_ssd_transpose(float *restrict out, int64_t ldo, const float *restrict in, int64_t ldi,
                      int64_t rows, int64_t cols) {
  enum { TILE = 16 };
  for (int64_t r0 = 0; r0 < rows; r0 += TILE)
    for (int64_t c = 0; c < cols; c++)
      for (int64_t r = r0; r < sk_min64(rows, r0 + TILE); r++) out[c * ldo + r] = in[r * ldi + c];
}

float *sk_ssd_mine(float *scratch, int64_t size) {
  return scratch + omp_get_thread_num() * size;
}

int64_t sk_ssd_decay_floats(const sk_ssd_dims *d) {
  int64_t q = sk_min64(d->Q, d->T);
  return sk_ssd_pad(2 * q) + 2 * sk_ssd_pad(q);
}

sk_ssd_decay sk_ssd_decay_take(const sk_ssd_dims *d, float **mine) {
  int64_t q = sk_min64(d->Q, d->T);
  sk_ssd_decay w = {.cs = (double *)(void *)*mine};
  w.in = *mine + sk_ssd_pad(2 * q);
  w.out = w.in + sk_ssd_pad(q);
  *mine += sk_ssd_decay_floats(d);
  return w;
}

void sk_ssd_outer(const sk_ssd_call *v, const sk_ssd_chunk *k, int64_t h, float *out,
                  const float *rows, int64_t ldr, const float *cols, const float *fade,
                  bool with_dt, float *mine) {
  const sk_ssd_dims *d = v->d;
  for (int64_t j = 0; j < k->q; j++) {
    const float *restrict row = rows + j * ldr;
    float f = with_dt ? fade[j] * v->dt[(k->row + j) * d->nh + h] : fade[j];
#pragma omp simd
    for (int64_t p = 0; p < d->P; p++) mine[j * d->P + p] = f * row[p];
  }
  sk_matmul(false, out, d->P, cols, 1, d->ld, mine, d->P, d->N, d->P, k->q);
}

// ---- states ----

int64_t sk_ssd_states_floats(const sk_ssd_dims *d) {
  int64_t q = sk_min64(d->Q, d->T);
  return sk_ssd_decay_floats(d) + sk_ssd_pad(q * d->P);
}

// The slot of the state after the chunk = what the chunk adds to it.
static void chunk_state(const sk_ssd_call *v, float *states, const sk_ssd_chunk *k, int64_t h,
                        float *mine) {
  const sk_ssd_dims *d = v->d;
  sk_ssd_decay w = sk_ssd_decay_take(d, &mine);
  sk_ssd_fade(v, k, h, &w);
  const float *x = v->x + k->row * d->ld + h * d->P;
  const float *B = v->B + k->row * d->ld + h / (d->nh / d->G) * d->N;
  sk_ssd_outer(v, k, h, sk_ssd_slot(v, states, k->seq, k->c + 1, h), x, d->ld, B, w.out, true,
               mine);
}

// From the chunks' own states to the states before and after them, for one head of a sequence.
static void scan_states(const sk_ssd_call *v, float *states, const float *S0, int64_t seq,
                        int64_t h, int64_t slots, float *mine) {
  const sk_ssd_dims *d = v->d;
  float *S = sk_ssd_slot(v, states, seq, 0, h);
  memset(S, 0, (size_t)v->state * sizeof *S);
  if (S0) sk_ssd_transpose(S, d->P, S0 + (seq * d->nh + h) * v->state, d->N, d->P, d->N);
  sk_ssd_decay w = sk_ssd_decay_take(d, &mine);
  for (int64_t c = 0; c < slots; c++) {
    sk_ssd_chunk k = sk_ssd_chunk_at(v, seq * v->chunks + c);
    sk_ssd_fade(v, &k, h, &w);
    float *restrict next = sk_ssd_slot(v, states, seq, c + 1, h);
    const float *restrict before = sk_ssd_slot(v, states, seq, c, h);
#pragma omp simd
    for (int64_t i = 0; i < v->state; i++) next[i] += w.keep * before[i];
  }
}

void sk_ssd_states(const sk_ssd_call *v, float *states, const float *S0, bool last,
                   float *scratch) {
  int64_t nh = v->d->nh, slots = last ? v->chunks : v->chunks - 1;
  int64_t size = sk_ssd_states_floats(v->d);
#pragma omp parallel
  {
    float *mine = sk_ssd_mine(scratch, size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < v->d->b * slots * nh; i++) {
      int64_t seq = i / (slots * nh), c = i / nh % slots;
      sk_ssd_chunk k = sk_ssd_chunk_at(v, seq * v->chunks + c);
      chunk_state(v, states, &k, i % nh, mine);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < v->d->b * nh; i++)
      scan_states(v, states, S0, i / nh, i % nh, slots, mine);
  }
}

// ---- forward ----

size_t sk_cpu_ssd_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *d) {
  (void)dev, (void)act;
  return (size_t)sk_ssd_slots(d) * sizeof(float);
}

// One thread's memory in the output stage.
typedef struct out_scratch {
  sk_ssd_decay w;
  float *BT, *CB, *M, *dt; // [N][q], [q][q], [SK_MR][q], the head's [q]
} out_scratch;

static int64_t out_floats(const sk_ssd_dims *d) {
  int64_t q = sk_min64(d->Q, d->T);
  return sk_ssd_decay_floats(d) + sk_ssd_pad(d->N * q) + sk_ssd_pad(q * q) + sk_ssd_pad(SK_MR * q) +
         sk_ssd_pad(q);
}

static out_scratch out_open(const sk_ssd_dims *d, float *mine) {
  int64_t q = sk_min64(d->Q, d->T);
  out_scratch s = {.w = sk_ssd_decay_take(d, &mine)};
  s.BT = mine;
  s.CB = s.BT + sk_ssd_pad(d->N * q);
  s.M = s.CB + sk_ssd_pad(q * q);
  s.dt = s.M + sk_ssd_pad(SK_MR * q);
  return s;
}

// Rows i0 .. i0+m-1 of y for head h; S is the state before the chunk.
static void output_rows(const sk_ssd_call *v, const sk_ssd_chunk *k, const out_scratch *s,
                        int64_t h, const float *S, float *y, int64_t i0, int64_t m) {
  const sk_ssd_dims *d = v->d;
  int64_t q = k->q, ends = i0 + m, row = k->row;
  const float *x = v->x + row * d->ld + h * d->P, *dt = s->dt;
  const float *C = v->C + (row + i0) * d->ld + h / (d->nh / d->G) * d->N;
  y += (row + i0) * d->ldy + h * d->P;
  if (s->w.in[i0] > 0 || s->w.in[ends - 1] > 0)
    sk_product(false, y, d->ldy, C, d->ld, 1, S, d->P, m, d->P, d->N);
  for (int64_t i = 0; i < m; i++) {
    float *restrict M = s->M + i * q, *restrict out = y + i * d->ldy;
    const float *restrict CB = s->CB + (i0 + i) * q, *restrict xi = x + (i0 + i) * d->ld;
    memset(M, 0, (size_t)ends * sizeof *M);
    int64_t lo = sk_ssd_row(v, k, &s->w, i0 + i, M);
    for (int64_t j = lo; j <= i0 + i; j++) M[j] *= CB[j] * dt[j];
    float in = s->w.in[i0 + i], D = v->D[h];
#pragma omp simd
    for (int64_t p = 0; p < d->P; p++) out[p] = (in > 0 ? in * out[p] : 0) + D * xi[p];
  }
  sk_product(true, y, d->ldy, s->M, q, 1, x, d->ld, m, d->P, ends);
}

static void output_chunk(const sk_ssd_call *v, const sk_ssd_chunk *k, float *states, float *y,
                         const out_scratch *s) {
  const sk_ssd_dims *d = v->d;
  out_scratch mine = *s;
  for (int64_t h = 0; h < d->nh; h++) {
    int64_t heads = d->nh / d->G, g = h / heads, q = k->q;
    if (h % heads == 0) { // C B^T once per group
      const float *B = v->B + k->row * d->ld + g * d->N, *C = v->C + k->row * d->ld + g * d->N;
      sk_ssd_transpose(s->BT, q, B, d->ld, q, d->N);
      for (int64_t i = 0; i < q; i += SK_MR) {
        int64_t m = sk_min64(SK_MR, q - i);
        sk_product(false, s->CB + i * q, q, C + i * d->ld, d->ld, 1, s->BT, q, m,
                   sk_block_up(i + m, q), d->N);
      }
    }
    sk_ssd_fade(v, k, h, &mine.w);
    for (int64_t j = 0; j < q; j++) mine.dt[j] = v->dt[(k->row + j) * d->nh + h];
    const float *S = sk_ssd_slot(v, states, k->seq, k->c, h);
    for (int64_t i = 0; i < q; i += SK_MR)
      output_rows(v, k, &mine, h, S, y, i, sk_min64(SK_MR, q - i));
  }
}

void sk_cpu_ssd(sk_stream *st, const sk_ssd_dims *d, void *y, float *Sf, const void *x,
                const void *B, const void *C, const float *dt, const void *A_log, const void *D,
                const int32_t *start, const float *S0, void *ws) {
  int64_t size = sk_max64(out_floats(d), sk_ssd_states_floats(d));
  size_t bytes = (size_t)(omp_get_max_threads() * size) * sizeof(float);
  float *scratch, *states = ws;
  sk_ssd_call v =
      sk_ssd_open(d, A_log, start, sk_cpu_scratch(st, sk_ssd_open_bytes(d) + bytes), &scratch);
  v.x = x, v.B = B, v.C = C, v.dt = dt, v.D = D;
  sk_ssd_states(&v, states, S0, Sf != NULL, scratch);
#pragma omp parallel
  {
    out_scratch s = out_open(d, sk_ssd_mine(scratch, size));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->b * v.chunks; i++) {
      sk_ssd_chunk k = sk_ssd_chunk_at(&v, i);
      output_chunk(&v, &k, states, y, &s);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (Sf ? d->b * d->nh : 0); i++)
      sk_ssd_transpose(Sf + i * v.state, d->N,
                       sk_ssd_slot(&v, states, i / d->nh, v.chunks, i % d->nh), d->P, d->N, d->P);
  }
}

void sk_cpu_ssd_state(sk_stream *st, const sk_ssd_dims *d, float *Sf, float *keep, const void *x,
                      const void *B, const float *dt, const void *A_log, const int32_t *start,
                      void *ws) {
  int64_t size = sk_ssd_states_floats(d);
  size_t bytes = (size_t)(omp_get_max_threads() * size) * sizeof(float);
  float *scratch, *states = ws;
  sk_ssd_call v =
      sk_ssd_open(d, A_log, start, sk_cpu_scratch(st, sk_ssd_open_bytes(d) + bytes), &scratch);
  v.x = x, v.B = B, v.dt = dt;
  sk_ssd_states(&v, states, NULL, true, scratch);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < d->b * d->nh; i++) {
    int64_t seq = i / d->nh, h = i % d->nh, last = (seq + 1) * d->T - 1;
    double sum = 0;
    for (int64_t t = seq * d->T; t <= last; t++) sum += (double)dt[t * d->nh + h] * v.A[h];
    keep[i] = start[last] < 0 ? (float)exp(sum) : 0; // else a document began in the piece
    sk_ssd_transpose(Sf + i * v.state, d->N, sk_ssd_slot(&v, states, seq, v.chunks, h), d->P, d->N,
                     d->P);
  }
}

void sk_cpu_fade_add(sk_stream *st, float *S, const float *keep, const float *F, int64_t rows,
                     int64_t cols) {
  (void)st;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < rows; i++) {
    float *restrict s = S + i * cols;
    const float *restrict f = F + i * cols;
#pragma omp simd
    for (int64_t c = 0; c < cols; c++) s[c] = keep[i] * s[c] + f[c];
  }
}
