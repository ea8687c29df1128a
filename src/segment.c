#include "src/segment.h"

static void move(sk_ctx *c, char *whole, char *parts, int64_t b, int64_t S, int64_t w, bool join) {
  size_t row = (size_t)(S * w) * sk_dtype_size(c->act), pitch = row * 2 * (size_t)c->n_cp;
  for (int r = 0; r < c->n_cp; r++) {
    for (int half = 0; half < 2; half++) {
      char *in_whole = whole + row * (size_t)sk_segment_of(c->n_cp, r, half);
      char *in_parts = parts + row * (size_t)((2 * r + half) * b);
      if (join) c->op->copy2d(c->st, in_whole, pitch, in_parts, row, row, b);
      else c->op->copy2d(c->st, in_parts, row, in_whole, pitch, row, b);
    }
  }
}

void sk_segments_join(sk_ctx *c, void *whole, const void *parts, int64_t b, int64_t S, int64_t w) {
  move(c, whole, (char *)(uintptr_t)parts, b, S, w, true);
}

void sk_segments_part(sk_ctx *c, void *parts, const void *whole, int64_t b, int64_t S, int64_t w) {
  move(c, (char *)(uintptr_t)whole, parts, b, S, w, false);
}
