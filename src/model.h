/* model.h: embedding, layers, final norm and head; the whole forward and backward pass of one
 * micro-batch on one rank (spec section 2). */
#ifndef SK_MODEL_H
#define SK_MODEL_H
#include "src/layer.h"

enum { SK_MAX_ROPE = 16 }; /* different (head_dim, rope_theta) pairs in one model */

typedef struct sk_rope {
  int64_t hd;
  double theta;
  float *table; /* [positions, hd/2, 2] on the device */
} sk_rope;

typedef struct sk_model {
  const sk_model_cfg *cfg;
  sk_registry reg;
  int64_t n_layers, positions;
  sk_layer *layer;
  sk_layer_saved *saved; /* of the micro-batch in flight */
  sk_norm_saved final;
  int embed, norm_f, head; /* registry indices; head == embed when tied */
  int n_rope;
  sk_rope rope[SK_MAX_ROPE];
  float *head_grad; /* tied only: the head's use of the matrix accumulates apart, [V*d] */
  void *dhidden;    /* [n,d] from the loss to the backward pass */
} sk_model;

/* Tokens of one micro-batch, on the device: [b*T] each. label < 0: not counted. */
typedef struct sk_batch {
  int64_t b, T;
  const int32_t *ids, *label, *start;
} sk_batch;

/* Fills in the registry and the layers. positions: longest sequence. SK_USAGE when the model is
 * something this version cannot do. */
int sk_model_create(sk_model *m, const sk_config *cfg, int64_t positions, sk_err *e);
void sk_model_free(sk_model *m);

/* Takes the RoPE tables (and with train the head's extra gradient buffer) from arena a; fills the
 * tables unless the arena is only planning. */
void sk_model_bind(sk_model *m, sk_ctx *c, sk_arena *a, bool train);

/* Final normed hidden states [n,d] of a piece, in the saved arena (which the caller resets). cache:
 * one per layer, or NULL. */
void *sk_model_hidden(sk_model *m, sk_ctx *c, const sk_piece *p, const int32_t *ids,
                      sk_layer_cache *cache);
/* logits[n, V] fp32 = lm_head_multiplier * hidden W^T. */
void sk_model_logits(sk_model *m, sk_ctx *c, float *logits, const void *hidden, int64_t n);

/* Forward pass and loss of a micro-batch: *loss += sum over counted tokens (double, on the device).
 * With scale != 0 also the gradient: the loss is scale * sum, and sk_model_backward must follow. */
void sk_model_forward(sk_model *m, sk_ctx *c, const sk_batch *b, double scale, double *loss);
/* Adds the gradients of all parameters to c->grads (tied: the head's part to head_grad). */
void sk_model_backward(sk_model *m, sk_ctx *c, const sk_batch *b);
/* Once per step, after the last micro-batch: tied weights get their head's part. */
void sk_model_finish_grads(sk_model *m, sk_ctx *c);

/* Floating-point operations of the forward pass per token (spec section 8, causal half counts) at
 * sequence length T; a training step is three times that. */
double sk_model_flops(const sk_config *cfg, int64_t T);
#endif
