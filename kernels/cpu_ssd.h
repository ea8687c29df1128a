/* cpu_ssd.h: what the forward and the backward pass of the chunked SSD share (section 3); private
 * to kernels/.
 *
 * A sequence is cut into chunks of Q tokens. States lie in memory as [N][P], the transpose of the
 * contract's [P][N], because every product then reads rows. Log decays are summed in double from
 * the chunk's start or the last document start in it, so that exp of a difference is exact to fp32.
 *
 * Work goes over (sequence, chunk) or (sequence, head) with nothing shared between tasks, so the
 * bits do not depend on the number of threads. */
#ifndef SK_CPU_SSD_H
#define SK_CPU_SSD_H
#include "kernels/cpu_product.h"

typedef struct sk_ssd_call {
  const sk_ssd_dims *d;
  int64_t chunks, state; // chunks per sequence, P * N
  const float *x, *B, *C, *dt, *dy, *D;
  const int32_t *start;
  const double *A; // [nh] -exp(A_log)
} sk_ssd_call;

// Chunk c of a sequence: tokens c0 .. c0+q-1; row is the first one's row in [b * T].
typedef struct sk_ssd_chunk {
  int64_t seq, c, c0, q, row;
} sk_ssd_chunk;

// How one head's state fades within a chunk; arrays of q.
typedef struct sk_ssd_decay {
  double *cs; // log decay from the chunk's start, or the document's start in it, through token i
  float *in;  // from the chunk's start through token i; 0 when i's document began in the chunk
  float *out; // from token j (not included) to the chunk's end; 0 when j's document ended before
  float keep; // of the whole chunk; 0 when a document began in it
} sk_ssd_decay;

// The state before chunk c (c = chunks: after the last one) in an array [b][chunks + 1][nh][N][P].
static inline float *sk_ssd_slot(const sk_ssd_call *v, float *states, int64_t seq, int64_t c,
                                 int64_t h) {
  return states + ((seq * (v->chunks + 1) + c) * v->d->nh + h) * v->state;
}

// The number of floats in such an array.
static inline int64_t sk_ssd_slots(const sk_ssd_dims *d) {
  return d->b * (sk_ceil_div(d->T, d->Q) + 1) * d->nh * d->P * d->N;
}

// A call with its A in the first bytes of scratch; *rest is what follows, 256-byte aligned.
sk_ssd_call sk_ssd_open(const sk_ssd_dims *d, const float *A_log, const int32_t *start,
                        void *scratch, float **rest);
// Bytes that sk_ssd_open takes.
size_t sk_ssd_open_bytes(const sk_ssd_dims *d);

// Task i of b * chunks.
sk_ssd_chunk sk_ssd_chunk_at(const sk_ssd_call *v, int64_t i);

// Fills the arrays of w (q elements each) for head h.
void sk_ssd_fade(const sk_ssd_call *v, const sk_ssd_chunk *k, int64_t h, sk_ssd_decay *w);

// L_ij = exp(decay from j to i) of row i for lo <= j <= i into row[lo .. i]; returns lo.
int64_t sk_ssd_row(const sk_ssd_call *v, const sk_ssd_chunk *k, const sk_ssd_decay *w, int64_t i,
                   float *row);

// out[cols][rows] = the transpose of in[rows][cols], row strides ldo and ldi.
void sk_ssd_transpose(float *out, int64_t ldo, const float *in, int64_t ldi, int64_t rows,
                      int64_t cols);

// One head of a chunk: out[N][P] = sum over its tokens of w_i rows_i[P] (x) cols_i[N]; w_i =
// fade[i], times dt when with_dt. rows and cols point at the chunk's first token. mine: q * P
// floats.
void sk_ssd_outer(const sk_ssd_call *v, const sk_ssd_chunk *k, int64_t h, float *out,
                  const float *rows, int64_t ldr, const float *cols, const float *fade,
                  bool with_dt, float *mine);

// Memory for a sk_ssd_decay, taken from *mine; and how much that is.
sk_ssd_decay sk_ssd_decay_take(const sk_ssd_dims *d, float **mine);
int64_t sk_ssd_decay_floats(const sk_ssd_dims *d);
// Rounded up so that what follows is 256-byte aligned.
static inline int64_t sk_ssd_pad(int64_t floats) {
  return sk_ceil_div(floats, 64) * 64;
}

// Fills the states before every chunk (3.3) from S0 (NULL: zero), and the one after the last when
// `last`. Opens parallel regions. scratch: sk_ssd_states_floats per thread.
void sk_ssd_states(const sk_ssd_call *v, float *states, const float *S0, bool last, float *scratch);
int64_t sk_ssd_states_floats(const sk_ssd_dims *d);

// The thread's part of an array with `size` floats per thread.
float *sk_ssd_mine(float *scratch, int64_t size);
#endif
