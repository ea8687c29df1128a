#include "src/model.h"
#include <math.h>
#include <string.h>

int sk_model_create(sk_model *m, const sk_config *cfg, int64_t positions, sk_err *e) {
  const sk_model_cfg *g = &cfg->model;
  *m = (sk_model){.cfg = g, .n_layers = cfg->n_layers, .positions = positions};
  m->reg.init_std = g->initializer_range;
  m->layer = sk_calloc((size_t)m->n_layers, sizeof *m->layer);
  m->saved = sk_calloc((size_t)m->n_layers, sizeof *m->saved);
  const int64_t vd[2] = {g->vocab_size, g->hidden_size};
  m->embed = sk_param_add(&m->reg, "model.embed_tokens.weight", 2, vd, SK_INIT_NORMAL, true, false);
  m->reg.p[m->embed].pad_row = g->pad_token_id;
  for (int64_t i = 0; i < m->n_layers; i++) sk_layer_add(&m->reg, &cfg->layer[i], i, &m->layer[i]);
  m->norm_f = sk_param_add(&m->reg, "model.final_layernorm.weight", 1, &g->hidden_size, SK_INIT_ONE,
                           false, false);
  m->head = m->embed;
  if (!g->tie_word_embeddings)
    m->head = sk_param_add(&m->reg, "lm_head.weight", 2, vd, SK_INIT_NORMAL, true, false);
  for (int64_t i = 0; i < m->n_layers; i++) {
    const sk_attention *a = &m->layer[i].attention;
    if (m->layer[i].mixer == 'M') continue;
    int k = 0;
    while (k < m->n_rope && m->rope[k].hd != a->hd) k++;
    if (k == SK_MAX_ROPE)
      return sk_fail(e, SK_USAGE, "model.overrides: more than %d different head_dim", SK_MAX_ROPE);
    if (k == m->n_rope) m->rope[m->n_rope++] = (sk_rope){.hd = a->hd, .theta = g->rope_theta};
  }
  return SK_OK;
}

void sk_model_free(sk_model *m) {
  sk_registry_free(&m->reg);
  sk_free(m->layer);
  sk_free(m->saved);
  *m = (sk_model){0};
}

/* cos, sin of position * theta^(-2i/hd), computed in double (spec section 2.3). */
static void fill_rope(const sk_rope *r, int64_t positions, float *table) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < positions; t++)
    for (int64_t i = 0; i < r->hd / 2; i++) {
      double angle = (double)t * pow(r->theta, -2.0 * (double)i / (double)r->hd);
      table[t * r->hd + 2 * i] = (float)cos(angle);
      table[t * r->hd + 2 * i + 1] = (float)sin(angle);
    }
}

void sk_model_bind(sk_model *m, sk_ctx *c, sk_arena *a, bool train) {
  bool plan = a->size == SIZE_MAX;
  for (int k = 0; k < m->n_rope; k++) {
    size_t bytes = (size_t)(m->positions * m->rope[k].hd) * sizeof(float);
    m->rope[k].table = sk_arena_take(a, bytes);
    if (plan) continue;
    float *host = sk_malloc(bytes);
    fill_rope(&m->rope[k], m->positions, host);
    c->op->from_host(c->st, m->rope[k].table, host, bytes);
    sk_free(host);
  }
  for (int64_t i = 0; i < m->n_layers; i++)
    for (int k = 0; k < m->n_rope; k++)
      if (m->layer[i].attention.hd == m->rope[k].hd) m->layer[i].attention.rope = m->rope[k].table;
  if (train && m->head == m->embed) {
    int64_t n = m->reg.p[m->head].count;
    m->head_grad = sk_take_f32(a, n);
    c->op->zero(c->st, m->head_grad, (size_t)n * sizeof(float));
  }
}

void *sk_model_hidden(sk_model *m, sk_ctx *c, const sk_piece *p, const int32_t *ids,
                      sk_layer_cache *cache) {
  int64_t n = p->b * p->T, d = m->cfg->hidden_size;
  sk_timer_begin(c->timer, SK_T_EMBED);
  void *h = sk_take_act(c, &c->saved, n * d), *mixed = sk_take_act(c, &c->saved, n * d);
  c->op->embed(c->st, h, ids, sk_weight(c, m->embed), m->cfg->embedding_multiplier, n, d, 0,
               m->cfg->vocab_size);
  sk_timer_end(c->timer);
  sk_stream_pair r = {.h = h};
  for (int64_t i = 0; i < m->n_layers; i++)
    sk_layer_forward(c, &m->layer[i], p, &m->saved[i], &r, mixed, cache ? &cache[i] : NULL);
  sk_norm_forward(c, m->norm_f, m->cfg->rms_norm_eps, n, d, &m->final, &r);
  return m->final.u;
}

void sk_model_logits(sk_model *m, sk_ctx *c, float *logits, const void *hidden, int64_t n) {
  int64_t d = m->cfg->hidden_size, V = m->cfg->vocab_size;
  c->op->gemm(c->st, false, true, n, V, d, m->cfg->lm_head_multiplier, hidden, d, sk_weight(c, m->head),
              d, 0, logits, V, SK_F32);
}

/* Tokens per slice of the loss: the logits of a slice take at most 64 MiB. */
static int64_t slice_tokens(int64_t n, int64_t V) {
  int64_t k = (16 << 20) / V;
  return k < 1 ? 1 : k < n ? k : n;
}

/* Loss of tokens t0 .. t0+n-1; with scale != 0 their gradient into dhidden and the head's weights. */
static void loss_slice(sk_model *m, sk_ctx *c, const sk_batch *b, int64_t t0, int64_t n, double scale,
                       double *loss, const void *hidden) {
  int64_t d = m->cfg->hidden_size, V = m->cfg->vocab_size;
  const void *x = sk_at(c, hidden, t0 * d);
  size_t mark = sk_arena_mark(&c->scratch);
  float *logits = sk_take_f32(&c->scratch, n * V), *stats = sk_take_f32(&c->scratch, 3 * n);
  float *each = sk_take_f32(&c->scratch, n);
  void *dlogits = NULL;
  if (scale != 0) dlogits = c->act == SK_F32 ? (void *)logits : sk_take_act(c, &c->scratch, n * V);
  sk_timer_begin(c->timer, SK_T_HEAD);
  sk_model_logits(m, c, logits, x, n);
  c->op->xent_stats(c->st, stats, logits, b->label + t0, n, 0, V);
  c->op->xent_grad(c->st, each, dlogits, logits, stats, b->label + t0, scale, n, 0, V);
  c->op->sum(c->st, loss, each, n);
  sk_timer_end(c->timer);
  if (scale != 0) {
    float *dw = m->head == m->embed ? m->head_grad : sk_grad(c, m->head);
    sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_HEAD);
    c->op->gemm(c->st, false, false, n, d, V, m->cfg->lm_head_multiplier, dlogits, V,
                sk_weight(c, m->head), d, 0, sk_at(c, m->dhidden, t0 * d), d, c->act);
    sk_linear_wgrad(c, dw, dlogits, x, n, V, d, m->cfg->lm_head_multiplier);
    sk_timer_end(c->timer);
  }
  sk_arena_release(&c->scratch, mark);
}

void sk_model_forward(sk_model *m, sk_ctx *c, const sk_batch *b, double scale, double *loss) {
  int64_t n = b->b * b->T, step = slice_tokens(n, m->cfg->vocab_size);
  sk_piece p = {.b = b->b, .T = b->T, .start = b->start, .key_start = b->start};
  sk_arena_release(&c->saved, 0);
  const void *hidden = sk_model_hidden(m, c, &p, b->ids, NULL);
  if (scale != 0) m->dhidden = sk_take_act(c, &c->saved, n * m->cfg->hidden_size);
  for (int64_t t = 0; t < n; t += step)
    loss_slice(m, c, b, t, t + step < n ? step : n - t, scale, loss, hidden);
}

void sk_model_backward(sk_model *m, sk_ctx *c, const sk_batch *b) {
  int64_t n = b->b * b->T, d = m->cfg->hidden_size;
  sk_piece p = {.b = b->b, .T = b->T, .start = b->start, .key_start = b->start};
  void *dh = sk_take_act(c, &c->saved, n * d);
  c->op->zero(c->st, dh, (size_t)(n * d) * sk_dtype_size(c->act));
  sk_norm_backward(c, m->norm_f, n, d, &m->final, dh, m->dhidden);
  for (int64_t i = m->n_layers - 1; i >= 0; i--)
    sk_layer_backward(c, &m->layer[i], &p, &m->saved[i], dh);
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_EMBED);
  c->op->embed_grad(c->st, sk_grad(c, m->embed), b->ids, dh, m->cfg->embedding_multiplier, n, d, 0,
                    m->cfg->vocab_size, m->cfg->pad_token_id);
  sk_timer_end(c->timer);
}

void sk_model_finish_grads(sk_model *m, sk_ctx *c) {
  if (!m->head_grad) return;
  int64_t n = m->reg.p[m->head].count;
  c->op->add_f32(c->st, sk_grad(c, m->embed), m->head_grad, n);
  c->op->zero(c->st, m->head_grad, (size_t)n * sizeof(float));
}

double sk_model_flops(const sk_config *cfg, int64_t T) {
  double sum = 2.0 * (double)(cfg->model.vocab_size * cfg->model.hidden_size);
  for (int64_t i = 0; i < cfg->n_layers; i++) {
    const sk_model_cfg *m = &cfg->layer[i].m;
    double d = (double)m->hidden_size, q = (double)(m->num_attention_heads * m->head_dim);
    double kv = (double)(m->num_key_value_heads * m->head_dim), ds = (double)m->mamba_d_ssm;
    double nh = (double)m->mamba_n_heads, P = (double)m->mamba_d_head, Q = (double)m->mamba_chunk_size;
    double N = (double)m->mamba_d_state, G = (double)m->mamba_n_groups;
    if (cfg->layer[i].mixer != 'M') sum += 2 * (2 * d * q + 2 * d * kv) + 2 * q * (double)(T + 1);
    if (cfg->layer[i].mixer != '*')
      sum += 2 * (d * (2 * ds + 2 * G * N + nh) + ds * d) + Q * N * G + nh * (Q * P + 4 * P * N) +
             2 * (double)m->mamba_d_conv * (ds + 2 * G * N);
    if (cfg->layer[i].mlp) sum += 2 * 3 * d * (double)m->intermediate_size;
  }
  return sum;
}
