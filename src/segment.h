/* segment.h: context parallelism's order of tokens. A sequence is cut into 2 cp segments of S tokens; rank r
 * has segments r and 2cp-1-r, so that causal attention is the same work everywhere. Locally all
 * sequences' first segments come before all second ones: [2][b][S]. */
#ifndef SK_SEGMENT_H
#define SK_SEGMENT_H
#include "src/ctx.h"

/* The segment that is piece `half` of cp rank r, and where segment s is. */
static inline int sk_segment_of(int n_cp, int r, int half) { return half ? 2 * n_cp - 1 - r : r; }
static inline int sk_segment_rank(int n_cp, int s) { return s < n_cp ? s : 2 * n_cp - 1 - s; }
static inline int sk_segment_half(int n_cp, int s) { return s >= n_cp; }

/* whole[b][T][w] from parts[cp][2][b][S][w], the order of an all-gather over cp; and back. act elements. */
void sk_segments_join(sk_ctx *c, void *whole, const void *parts, int64_t b, int64_t S, int64_t w);
void sk_segments_part(sk_ctx *c, void *parts, const void *whole, int64_t b, int64_t S, int64_t w);
#endif
