/* ctx.h: what every layer needs: the device table, where weights and gradients lie, memory for
 * activations. One per rank, owned by the engine. */
#ifndef SK_CTX_H
#define SK_CTX_H
#include "src/arena.h"
#include "src/param.h"
#include "src/timer.h"

typedef struct sk_ctx {
  const sk_ops *op;
  sk_device *dev;
  sk_stream *st;
  sk_dtype act;
  const sk_registry *reg;
  char *weights;    /* [reg->total] act */
  float *grads;     /* [reg->total], NULL when only the forward pass is wanted */
  sk_arena saved;   /* activations that live from the forward to the backward pass */
  sk_arena scratch; /* temporary memory inside one layer */
  sk_timer *timer;  /* NULL: not measured */
} sk_ctx;

/* A piece of b sequences: tokens pos .. pos+T-1 of each. Training: pos = 0 and the whole sequence.
 * Generation: b = 1 and what comes before pos is in the cache. */
typedef struct sk_piece {
  int64_t b, T, pos;
  const int32_t *start;     /* [b*T] on the device, see ops.h */
  const int32_t *key_start; /* the same counted from position 0 of the sequence */
} sk_piece;

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
#endif
