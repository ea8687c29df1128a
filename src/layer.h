/* layer.h: one layer = a norm, a mixer ('P': attention and Mamba side by side, '*', 'M') and maybe a
 * second norm and an MLP (spec section 2.2, design section 5).
 *
 * Between layers every tp rank has a block of the tokens (n_local of n); the mixer and the MLP see all n:
 * one gather and one reduce-scatter serve both branches of a mixer. The residual stream is the sum of two
 * arrays: h, and m, the output of the latest mixer or MLP. The next norm adds them on its way; the gradient
 * of both is the same array dh. Collective over the tp and cp lines. */
#ifndef SK_LAYER_H
#define SK_LAYER_H
#include "src/attention.h"
#include "src/mamba.h"

typedef struct sk_mlp {
  int64_t F;            /* of this rank */
  double gate;          /* mlp_multipliers[0] */
  sk_linear gu, down;   /* gate|up fused; down's alpha = mlp_multipliers[1] */
} sk_mlp;

typedef struct sk_norm_saved {
  const void *x; /* [n_local,d] what was normalised: the residual stream */
  void *u;       /* [n_local,d] the result */
  float *rstd;   /* [n_local] */
} sk_norm_saved;

typedef struct sk_layer {
  char mixer; /* 'P', '*' or 'M' */
  bool mlp;
  int bucket; /* of the registry */
  int64_t d;
  double eps;
  int norm1, norm2; /* input_layernorm, pre_ff_layernorm (-1 without an MLP) */
  sk_attention attention;
  sk_mamba mamba;
  sk_mlp ff;
} sk_layer;

typedef struct sk_layer_saved {
  sk_norm_saved n1, n2;
  sk_attention_saved attention;
  sk_mamba_saved mamba;
  void *gu, *act; /* [n,2F], [n,F] */
} sk_layer_saved;

typedef struct sk_layer_cache {
  sk_attention_cache attention;
  sk_mamba_cache mamba;
} sk_layer_cache;

/* The residual stream: h [n_local,d], and m [n_local,d] or NULL where nothing has been added yet. */
typedef struct sk_stream_pair {
  const void *h;
  void *m;
} sk_stream_pair;

/* Registers the parameters of layer i in a bucket of their own. */
void sk_layer_add(sk_registry *r, const sk_layer_cfg *cfg, int64_t i, sk_layer *l);
/* Normalises h + m: allocates sum (when there is an m), u and rstd. r->h becomes the sum. u is cheap: with
 * selective recomputation it is lost after the layer. */
void sk_norm_forward(sk_ctx *c, int w, double eps, int64_t n, int64_t d, sk_norm_saved *s,
                     sk_stream_pair *r);
/* dh += gradient through the norm; dw += . */
void sk_norm_backward(sk_ctx *c, int w, int64_t n, int64_t d, const sk_norm_saved *s, void *dh,
                      const void *du);

/* m_buf [n_local,d]: where the layer's outputs go; afterwards r->m == m_buf. cache: NULL in training. */
void sk_layer_forward(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, sk_layer_saved *s,
                      sk_stream_pair *r, void *m_buf, sk_layer_cache *cache);
/* dh [n_local,d]: gradient of the residual stream, after the layer -> before it. */
void sk_layer_backward(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, sk_layer_saved *s, void *dh);
#endif
