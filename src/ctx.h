/* ctx.h: what every layer needs: the device table, where weights and gradients lie, memory for
 * activations, and the ranks that share the work. One per rank, owned by the engine. */
#ifndef SK_CTX_H
#define SK_CTX_H
#include "src/arena.h"
#include "src/comm.h"
#include "src/param.h"
#include "src/timer.h"

/* A weight gradient that is put off: dw[out,in] += alpha * dy[n,out]^T x[n,in]. */
typedef struct sk_wgrad {
  float *dw;
  const void *dy, *x; /* rows of stride ldy, in */
  int64_t ldy, n, out, in;
  double alpha;
} sk_wgrad;

/* Weight gradients of one micro-batch, first in, first out. */
typedef struct sk_wgrad_queue {
  sk_wgrad *at;
  int n, cap;
} sk_wgrad_queue;

/* A second stream, on which one branch of a mixer runs beside the other, with scratch of its own. */
typedef struct sk_branch {
  sk_stream *st;
  sk_arena scratch; /* part of the context's */
  sk_event *fork, *join;
} sk_branch;

typedef struct sk_ctx {
  const sk_ops *op;
  sk_device *dev;
  sk_stream *st;
  sk_dtype act;
  const sk_registry *reg;
  char *weights;    /* [reg->total] act */
  float *grads;     /* [reg->total], NULL when only the forward pass is wanted */
  sk_arena *saved;  /* activations that live from the forward to the backward pass of a micro-batch; not
                       owned */
  sk_arena scratch; /* temporary memory inside one layer */
  int recompute;    /* SK_RECOMPUTE_... */
  sk_wgrad_queue *queue; /* not NULL: weight gradients are put off, and what they read is saved */
  const sk_comm_ops *comm;
  sk_group *tp, *cp; /* not NULL when the line has more than one rank */
  int n_tp, tp_rank, n_cp, cp_rank;
  sk_branch *branch; /* NULL: a mixer's branches run one after the other */
  struct sk_optim *opt; /* not NULL: a bucket's weights may still be on their way (sk_optim_need) */
  sk_timer *timer; /* NULL: not measured */
} sk_ctx;

/* b sequences' tokens pos .. pos+T-1. Training without cp: pos = 0 and the whole sequence. With cp every
 * rank has two pieces, segments r and 2cp-1-r of all sequences (design section 5). Generation: b = 1 and
 * what comes before pos is in the cache. */
typedef struct sk_piece {
  int64_t b, T, pos;
  const int32_t *start;     /* [b*T] on the device, see ops.h */
  const int32_t *key_start; /* the same counted from position 0 of the sequence */
  bool whole;               /* key_start is known to be 0 throughout: no document begins inside a sequence */
} sk_piece;

/* The tokens of a micro-batch on this cp rank, piece after piece. The tp ranks of a cp rank work on the
 * same tokens; between the layers each has the block tp_rank of them (sequence parallelism). */
typedef struct sk_tokens_here {
  int n_pieces;
  sk_piece piece[2];
  int64_t n;       /* tokens of all pieces */
  int64_t n_local; /* n / tp */
  int64_t length;  /* of the whole sequences, for the keys of all cp ranks */
} sk_tokens_here;

static inline void *sk_weight(const sk_ctx *c, int p) {
  return p < 0 ? NULL : c->weights + (size_t)c->reg->p[p].offset * sk_dtype_size(c->act);
}
static inline float *sk_grad(const sk_ctx *c, int p) {
  return p < 0 ? NULL : c->grads + c->reg->p[p].offset;
}
/* Element i of an act array. */
static inline void *sk_at(const sk_ctx *c, const void *p, int64_t i) {
  return (char *)(uintptr_t)p + (size_t)i * sk_dtype_size(c->act);
}
static inline void *sk_take_act(const sk_ctx *c, sk_arena *a, int64_t n) {
  return sk_arena_take(a, (size_t)n * sk_dtype_size(c->act));
}
static inline float *sk_take_f32(sk_arena *a, int64_t n) {
  return sk_arena_take(a, (size_t)n * sizeof(float));
}
/* Where activations go that selective recomputation makes again in the backward pass. */
static inline sk_arena *sk_cheap(sk_ctx *c) {
  return c->recompute == SK_RECOMPUTE_SELECTIVE ? &c->scratch : c->saved;
}
/* Where the backward pass puts what a weight gradient reads. */
static inline sk_arena *sk_until_wgrad(sk_ctx *c) { return c->queue ? c->saved : &c->scratch; }
#endif
