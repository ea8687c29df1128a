/* attention.h: grouped-query attention with rotary positions (spec section 2.3), this rank's heads. In steps,
 * so that the exchange of keys and values over cp runs beside the other branch of the mixer; without cp
 * the steps follow each other. Keys and values of all cp ranks are gathered, their gradients
 * reduce-scattered (design section 5). */
#ifndef SK_ATTENTION_H
#define SK_ATTENTION_H
#include "src/linear.h"

enum { SK_MAX_HEAD_SPANS = 3 };

/* Consecutive heads with the same number of query heads for each kv head: one call of the device's op.
 * There is one span unless tp cuts through the query heads of a kv head. */
typedef struct sk_head_span {
  int64_t head, heads, kv, kvs; /* first query head and count, first kv head and count; local */
} sk_head_span;

typedef struct sk_attention {
  int64_t H, KV, hd; /* of this rank */
  int n_spans;
  sk_head_span span[SK_MAX_HEAD_SPANS];
  double key;        /* key_multiplier */
  sk_linear qkv, o;  /* q|k|v fused; alpha = attention_in_, attention_out_multiplier */
  const float *rope; /* [positions, hd/2, 2] cos, sin on the device */
} sk_attention;

/* What the backward pass needs; in the saved arena. */
typedef struct sk_attention_saved {
  void *qkv;  /* [n, (H+2KV)*hd], q and k rotated */
  void *o;    /* [n, H*hd] */
  float *lse; /* [n*H]: [b, heads, T] of every piece and span */
} sk_attention_saved;

/* Generation: keys and values of all positions so far, [capacity, 2*KV*hd] act (k | v). */
typedef struct sk_attention_cache {
  void *kv;
} sk_attention_cache;

/* Between the steps of one pass; in scratch. */
typedef struct sk_attention_flight {
  const void *k, *v;  /* of all keys */
  int64_t ldk;        /* their row stride */
  bool all;           /* the keys of the whole sequence, not of this piece alone */
  void *parts, *kv;   /* cp: [cp][2][b][S][2*KV*hd] as gathered, [b][T][2*KV*hd] in order */
  void *dqkv, *dparts, *dlocal;
  sk_ticket *ticket;
} sk_attention_flight;

void sk_attention_add(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_attention *a);

/* Before the first step: the device may make what it needs for micro-batches of this form. */
void sk_attention_ready(const sk_ctx *c, const sk_attention *a, const sk_tokens_here *t);

/* 1. Projections and rotation of u[n,d], beside its gather or after; starts the exchange. cache: NULL in training. */
void sk_attention_begin(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t, sk_attention_saved *s,
                        sk_attention_flight *f, sk_gathering *u, sk_attention_cache *cache);
/* 2. out[n,d] = beta * out + o_proj(attention), without o_proj's bias; a partial sum under tp. */
void sk_attention_end(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t, sk_attention_saved *s,
                      sk_attention_flight *f, void *out, double beta);

/* Backward: 1. starts to gather the keys. 2. gradients of q, k, v from dout[n,d]; starts their exchange.
 * 3. du[n,d] = beta * du + gradient. 4. weight gradients of q|k|v from u[n,d]. */
void sk_attention_back_begin(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                             const sk_attention_saved *s, sk_attention_flight *f);
void sk_attention_back_core(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                            const sk_attention_saved *s, sk_attention_flight *f, const void *dout);
void sk_attention_back_end(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                           sk_attention_flight *f, void *du, double beta);
void sk_attention_wgrad(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                        const sk_attention_flight *f, const void *u);
#endif
