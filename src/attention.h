/* attention.h: grouped-query attention with rotary positions (spec section 2.3). */
#ifndef SK_ATTENTION_H
#define SK_ATTENTION_H
#include "src/linear.h"

typedef struct sk_attention {
  int64_t H, KV, hd;
  double key;        /* key_multiplier */
  sk_linear qkv, o;  /* q|k|v fused; alpha = attention_in_, attention_out_multiplier */
  const float *rope; /* [positions, hd/2, 2] cos, sin on the device */
} sk_attention;

/* What the backward pass needs; in the saved arena. */
typedef struct sk_attention_saved {
  void *qkv; /* [n, (H+2KV)*hd], q and k rotated */
  void *o;   /* [n, H*hd] */
  float *lse; /* [b, H, T] */
} sk_attention_saved;

/* Generation: keys and values of all positions so far, [capacity, 2*KV*hd] act (k | v). */
typedef struct sk_attention_cache {
  void *kv;
} sk_attention_cache;

void sk_attention_add(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_attention *a);
/* out[n,d] = beta * out + o_proj(attention(qkv_proj(u[n,d]))). cache: NULL in training. */
void sk_attention_forward(sk_ctx *c, const sk_attention *a, const sk_piece *p, sk_attention_saved *s,
                          void *out, double beta, const void *u, sk_attention_cache *cache);
/* du[n,d] = beta * du + gradient; parameters' gradients +=. */
void sk_attention_backward(sk_ctx *c, const sk_attention *a, const sk_piece *p,
                           const sk_attention_saved *s, void *du, double beta, const void *dout,
                           const void *u);
#endif
