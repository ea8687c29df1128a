/* model.h: embedding, layers, final norm and head; the forward and backward pass of one micro-batch through
 * one chunk of the model (spec section 2).
 *
 * The layers are cut into parts; a pipeline stage has one part, or several with interleaving: its chunks.
 * Everything here is collective over the tp and cp lines; what goes between stages is the engine's. */
#ifndef SK_MODEL_H
#define SK_MODEL_H
#include "src/layer.h"

enum { SK_MAX_ROPE = 16 }; /* different (head_dim, rope_theta) pairs in one model */

typedef struct sk_rope {
  int64_t hd;
  double theta;
  float *table; /* [positions, hd/2, 2] on the device */
} sk_rope;

/* Consecutive layers; the first chunk of the model has the embedding, the last the head. */
typedef struct sk_chunk {
  int64_t layer0, layers;
  bool first, last;
} sk_chunk;

typedef struct sk_model {
  const sk_model_cfg *cfg;
  sk_registry all; /* of the whole model, without tensor parallelism: names, shapes, counts */
  sk_registry reg; /* of this rank */
  int64_t n_layers, positions;
  sk_layer *layer; /* [n_layers of the whole model]; those of other stages are empty */
  int n_chunks;
  sk_chunk *chunk;
  int embed, norm_f, head;                 /* registry indices, -1: not here; head == embed when tied */
  int embed_bucket, tail_bucket;           /* tail: final norm and head */
  int64_t v0, nv;                          /* this rank's rows of embedding and head */
  int n_rope;
  sk_rope rope[SK_MAX_ROPE];
  float *tied_grad; /* tied: [nv*d], the head's use of the matrix accumulates apart (or, where embedding and
                       head are on two stages, what the other stage sends) */
} sk_model;

/* One micro-batch in one chunk, from its forward pass until its last use. */
typedef struct sk_slot {
  const sk_chunk *chunk;
  sk_arena saved;
  sk_tokens_here t;
  const int32_t *ids, *label;    /* [n] on the device */
  void *in, *out;                /* [n_local,d] residual stream before and after the chunk's layers */
  void *dh;                      /* [n_local,d] its gradient: after the layers, then before them */
  sk_layer_saved *layer;         /* [chunk->layers] */
  void **x;                      /* [chunk->layers] full recomputation: the layers' inputs */
  sk_norm_saved final;
  void *dhidden;                 /* [n_local,d] from the loss to the backward pass */
  sk_wgrad_queue queue;
} sk_slot;

/* Fills in the registries and the layers. chunk: this rank's chunks (copied). positions: longest sequence.
 * SK_USAGE when the model is something this version cannot do. */
int sk_model_create(sk_model *m, const sk_config *cfg, const sk_grid *g, int n_chunks, const sk_chunk *chunk,
                    int64_t positions, sk_err *e);
void sk_model_free(sk_model *m);

/* Takes the RoPE tables (and with train the buffer for tied gradients) from arena a; fills the tables unless
 * the arena is only planning. */
void sk_model_bind(sk_model *m, sk_ctx *c, sk_arena *a, bool train);

/* A slot's arrays that need no device memory. */
void sk_slot_create(sk_slot *s, const sk_chunk *chunk);
void sk_slot_free(sk_slot *s); /* not the arena */

/* Starts a micro-batch: empties the slot and takes `in` (unless the chunk is the first) and, with train, dh, so
 * that both may be received into. t without the arrays of its pieces. */
void sk_slot_begin(const sk_model *m, sk_ctx *c, sk_slot *s, const sk_tokens_here *t, bool train);

/* Forward pass of the chunk. The last chunk ends with the loss: *loss += sum over counted tokens (double, on the
 * device), and with scale != 0 its gradient: the loss is then scale * sum, and sk_chunk_backward must follow.
 * Other chunks leave their result in s->out. redo: memory for one layer under full recomputation. */
void sk_chunk_forward(sk_model *m, sk_ctx *c, sk_slot *s, double scale, double *loss, sk_arena *redo);
/* Adds the gradients of the chunk's parameters to c->grads; s->dh becomes the gradient of s->in. With
 * queue, GEMM weight gradients go to s->queue. done(arg, bucket) is called when the gradients of a bucket are
 * complete as far as this pass goes, or is NULL. */
void sk_chunk_backward(sk_model *m, sk_ctx *c, sk_slot *s, bool queue, sk_arena *redo,
                       void (*done)(void *arg, int bucket), void *arg);

/* Generation (one rank): final normed hidden states [n,d] of a piece, in the slot. cache: one per layer. */
void *sk_model_hidden(sk_model *m, sk_ctx *c, sk_slot *s, sk_layer_cache *cache);
/* head.c: logits[n, nv] fp32, rows of stride ld, = lm_head_multiplier * hidden W^T. */
void sk_model_logits(sk_model *m, sk_ctx *c, float *logits, int64_t ld, const void *hidden, int64_t n);
/* Loss (and its gradient into s->dhidden and the head's weights) of the final hidden states. */
void sk_head_loss(sk_model *m, sk_ctx *c, sk_slot *s, double scale, double *loss);

/* Floating-point operations of the forward pass per token (spec section 8, causal half counts) at
 * sequence length T; a training step is three times that. sk_layer_flops: of one layer. */
double sk_model_flops(const sk_config *cfg, int64_t T);
double sk_layer_flops(const sk_layer_cfg *l, int64_t T);

/* The same of one layer by what they go into. */
typedef struct sk_flops {
  double weights; /* elements of the matrices: two operations each */
  double attention, ssd, conv;
} sk_flops;
sk_flops sk_layer_flops_by(const sk_layer_cfg *l, int64_t T);
#endif
