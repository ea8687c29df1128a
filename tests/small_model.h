/* small_model.h: small models for whole-model tests. Header only. */
#ifndef SK_SMALL_MODEL_H
#define SK_SMALL_MODEL_H
#include "src/engine.h"
#include <math.h>
#include <string.h>

/* A deck-free configuration of `layers` layers, each with the sub-layers of its entry in `pattern`
 * (e.g. {"P-", "M", "*-"}). Every multiplier differs from 1. Owned parts: c->layer. */
static inline void small_config(sk_config *c, int layers, const char *const *pattern) {
  *c = (sk_config){.n_layers = layers};
  c->model = (sk_model_cfg){
      .vocab_size = 53, .hidden_size = 24, .intermediate_size = 40, .num_hidden_layers = layers,
      .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6, .mamba_d_ssm = 32,
      .mamba_n_heads = 4, .mamba_d_head = 8, .mamba_n_groups = 2, .mamba_d_state = 10, .mamba_d_conv = 4,
      .mamba_expand = 2, .mamba_chunk_size = 8, .pad_token_id = -1, .bos_token_id = -1,
      .eos_token_id = -1, .max_position_embeddings = 512, .mamba_conv_bias = true,
      .mamba_rms_norm = true, .initializer_range = 0.2, .rms_norm_eps = 1e-5, .rope_theta = 1e4,
      .time_step_limit = {0, INFINITY}, .embedding_multiplier = 1.3, .lm_head_multiplier = 0.7,
      .key_multiplier = 0.8, .attention_in_multiplier = 1.1, .attention_out_multiplier = 0.9,
      .ssm_in_multiplier = 1.2, .ssm_out_multiplier = 0.6, .mlp_multipliers = {0.9, 0.65},
      .ssm_multipliers = {0.75, 0.85, 1.2, 0.9, 0.7}};
  c->layer = sk_calloc((size_t)layers, sizeof *c->layer);
  for (int i = 0; i < layers; i++)
    c->layer[i] = (sk_layer_cfg){.mixer = pattern[i][0], .mlp = pattern[i][1] == '-', .m = c->model};
  c->run.seed = 7;
}

/* Opens a training engine on this rank alone for b x T tokens with initial weights; aborts on failure. The
 * config is set to one micro-batch per step and must stay. */
static inline void small_engine(sk_engine *g, sk_config *c, int64_t b, int64_t T) {
  static sk_grid alone;
  sk_err e = {0};
  if (!alone.size) sk_grid_create(&alone, MPI_COMM_SELF, (const int[SK_NAXES]){1, 1, 1, 1});
  c->parallel.virtual_stages = 1;
  c->train.global_batch = c->train.micro_batch = b;
  SK_CHECK(sk_engine_open(g, c, &sk_cpu_ops, &sk_comm_mpi, &alone, true, b, T, T, &e) == SK_OK, "%s", e.msg);
  sk_engine_init(g);
}

/* One micro-batch of b x T tokens, of any T up to the engine's; gradients (with scale != 0) are added. */
static inline void small_micro(sk_engine *g, int64_t b, int64_t T, const int32_t *ids, const int32_t *label,
                               const int32_t *start, double scale) {
  int64_t longest = g->T;
  g->T = T;
  sk_slot *s = &g->slot[0];
  sk_tokens_here t = sk_engine_tokens(g, b);
  sk_slot_begin(&g->model, &g->ctx, s, &t, true);
  sk_engine_load(g, s, b, ids, label, start);
  sk_chunk_forward(&g->model, &g->ctx, s, scale, g->loss, &g->redo);
  if (scale != 0) sk_chunk_backward(&g->model, &g->ctx, s, false, &g->redo, NULL, NULL);
  g->T = longest;
}

/* n pseudo-random token ids. */
static inline void small_ids(int32_t *ids, int64_t n, int64_t vocab, uint64_t key) {
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(sk_rand(key, (uint64_t)i) % (uint64_t)vocab);
}

/* Where a parameter's weights or gradients lie (CPU: host memory). */
static inline float *small_at(const sk_engine *g, const float *base, const char *name, int64_t *n) {
  int i = sk_param_find(g->ctx.reg, name);
  SK_CHECK(i >= 0, "no parameter %s", name);
  *n = g->ctx.reg->p[i].count;
  return (float *)(uintptr_t)base + g->ctx.reg->p[i].offset;
}

/* Copies every parameter of `from` that `to` has as well. */
static inline void small_copy_weights(sk_engine *to, const sk_engine *from) {
  for (int i = 0; i < to->ctx.reg->n; i++) {
    const sk_param *p = &to->ctx.reg->p[i];
    int64_t n;
    if (sk_param_find(from->ctx.reg, p->name) < 0) continue;
    const float *w = small_at(from, (const float *)from->ctx.weights, p->name, &n);
    sk_engine_set_weights(to, p->offset, n, w);
  }
}

/* max|a-b| / max|b|; infinity for NaN. */
static inline double small_error(const float *a, const float *b, int64_t n) {
  double diff = 0, scale = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = fabs((double)a[i] - (double)b[i]);
    if (!(d <= diff)) diff = isnan(d) ? INFINITY : d;
    if (fabs((double)b[i]) > scale) scale = fabs((double)b[i]);
  }
  return scale > 0 ? diff / scale : diff;
}
#endif
