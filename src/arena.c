#include "src/arena.h"

enum { ALIGN = 256 };

void sk_arena_plan(sk_arena *a, const char *name) {
  *a = (sk_arena){.name = name, .base = (char *)ALIGN, .size = SIZE_MAX};
}

int sk_arena_alloc(sk_arena *a, const sk_ops *op, sk_device *dev, const char *name, size_t bytes,
                   sk_err *e) {
  *a = (sk_arena){.name = name, .size = bytes};
  a->base = op->alloc(dev, bytes ? bytes : ALIGN);
  if (!a->base)
    return sk_fail(e, SK_FAILED,
                   "out of memory on rank %d (%s): %s for %s cannot be allocated.\n"
                   "Try a smaller train.micro_batch or data.sequence, train.recompute: selective or full, a larger "
                   "parallel.tp, cp or pp, or more ranks; `saker train --dry-run` shows the memory by part.",
                   sk_base_rank(), sk_host(), sk_bytes((double)bytes), name);
  return SK_OK;
}

void sk_arena_free(sk_arena *a, const sk_ops *op, sk_device *dev) {
  if (a->base && a->size != SIZE_MAX) op->free(dev, a->base);
  *a = (sk_arena){0};
}

void *sk_arena_take(sk_arena *a, size_t bytes) {
  size_t need = (bytes + ALIGN - 1) / ALIGN * ALIGN;
  SK_CHECK(need >= bytes && need <= a->size - a->used, "arena '%s': %zu bytes asked for, %zu of %zu used",
           a->name, bytes, a->used, a->size);
  void *p = a->base + a->used;
  a->used += need;
  if (a->used > a->peak) a->peak = a->used;
  return p;
}
