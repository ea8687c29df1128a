/* arena.h: plan, allocate once, bind. An arena is one allocation on one device, dealt out from the
 * front; tensors are plain pointers into it. Nothing here is collective.
 *
 * A planning arena has no memory: it hands out addresses that nobody reads (the plan device's ops do
 * nothing) and only counts. Running the same code on it first gives the size to allocate. */
#ifndef SK_ARENA_H
#define SK_ARENA_H
#include "kernels/ops.h"

typedef struct sk_arena {
  const char *name; /* for the memory table: "weights", "gradients", ... */
  char *base;       /* owned by the device */
  size_t used, peak, size;
} sk_arena;

/* Planning: size SIZE_MAX, no memory. */
void sk_arena_plan(sk_arena *a, const char *name);
/* Allocates `bytes` on the device; SK_FAILED (what was asked for) when there is not enough. */
int sk_arena_alloc(sk_arena *a, const sk_ops *op, sk_device *dev, const char *name, size_t bytes,
                   sk_err *e);
void sk_arena_free(sk_arena *a, const sk_ops *op, sk_device *dev);

/* The next `bytes` (256-byte aligned). Asking for more than was planned is our own bug: fatal. */
void *sk_arena_take(sk_arena *a, size_t bytes);

/* Stack use: m = sk_arena_mark(a); take...; sk_arena_release(a, m). */
static inline size_t sk_arena_mark(const sk_arena *a) { return a->used; }
static inline void sk_arena_release(sk_arena *a, size_t mark) { a->used = mark; }
#endif
