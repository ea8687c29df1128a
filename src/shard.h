/* shard.h: moving activations between the token shards of the residual stream and the layers, which see all
 * tokens of the cp rank (sequence parallelism, spec section 5). Collective over the tp line; without tensor
 * parallelism nothing is copied. */
#ifndef SK_SHARD_H
#define SK_SHARD_H
#include "src/ctx.h"

/* An all-gather under way. What is computed row by row can take this rank's rows from `local` at once, the others
 * from `full` when it is over. Without tp it never is under way: all rows are `others`. */
typedef struct sk_gathering {
  const void *local;
  void *full;
  int64_t first, own, n; /* full has n rows, local is `own` of them from `first` on */
  bool over;
  sk_ticket *ticket;
} sk_gathering;

/* Starts to gather local[n_local,d] of all tp ranks into full [n,d], taken from arena a; without tp full is
 * local itself. */
sk_gathering sk_gather_begin(sk_ctx *c, sk_arena *a, const void *local, const sk_tokens_here *t, int64_t d);
void *sk_gather_end(sk_ctx *c, sk_gathering *g);
static inline void *sk_gather(sk_ctx *c, sk_arena *a, const void *local, const sk_tokens_here *t, int64_t d) {
  sk_gathering g = sk_gather_begin(c, a, local, t, d);
  return sk_gather_end(c, &g);
}

/* Where the layers' partial sums of all tokens go before they are added over tp: [n,d] from scratch;
 * without tp it is `local` itself. */
void *sk_partial(sk_ctx *c, void *local, const sk_tokens_here *t, int64_t d);
/* A reduce-scatter under way. */
typedef struct sk_scattering {
  sk_ticket *ticket;
} sk_scattering;

/* Starts local[n_local,d] = this rank's tokens of the sum of all ranks' partials. Takes scratch, which must stay until
 * the end. */
sk_scattering sk_scatter_begin(sk_ctx *c, void *local, const void *partial, const sk_tokens_here *t, int64_t d);
void sk_scatter_end(sk_ctx *c, sk_scattering *s);
/* Both at once; no scratch is left taken. */
void sk_scatter(sk_ctx *c, void *local, const void *partial, const sk_tokens_here *t, int64_t d);
#endif
