#include "src/model.h"
#include "src/optim.h"
#include "src/shard.h"
#include <math.h>
#include <string.h>

/* ---- parameters ---- */

static int add_vocab(sk_registry *r, const char *name, const sk_model_cfg *g) {
  const sk_param_spec s = {.rank = 2, .dim = {g->vocab_size, g->hidden_size}, .n_seg = 1,
                           .seg = {{g->vocab_size, 1, g->vocab_size}}, .init = SK_INIT_NORMAL, .decay = true};
  return sk_param_add(r, name, &s);
}

static void add_embed(sk_model *m, sk_registry *r, bool copy) {
  m->embed = add_vocab(r, "model.embed_tokens.weight", m->cfg);
  r->p[m->embed].pad_row = m->cfg->pad_token_id;
  r->p[m->embed].copy = copy;
  r->p[m->embed].index = 0;
}

static void add_tail(sk_model *m, sk_registry *r, bool has_embed) {
  const sk_model_cfg *g = m->cfg;
  m->tail_bucket = sk_bucket_begin(r);
  m->norm_f = sk_param_add(r, "model.final_layernorm.weight",
                           &(sk_param_spec){.rank = 1, .dim = {g->hidden_size}, .init = SK_INIT_ONE});
  if (!g->tie_word_embeddings) {
    m->head = add_vocab(r, "lm_head.weight", g);
    return;
  }
  if (!has_embed) add_embed(m, r, true);
  m->head = m->embed;
}

/* The parameters of some chunks; the index of each in the whole model is taken from m->all. */
static void add_chunks(sk_model *m, sk_registry *r, const sk_config *cfg, int n, const sk_chunk *chunk) {
  m->embed = m->norm_f = m->head = m->embed_bucket = m->tail_bucket = -1;
  if (chunk[0].first) {
    m->embed_bucket = sk_bucket_begin(r);
    add_embed(m, r, false);
  }
  for (int k = 0; k < n; k++)
    for (int64_t i = chunk[k].layer0; i < chunk[k].layer0 + chunk[k].layers; i++)
      sk_layer_add(r, &cfg->layer[i], i, &m->layer[i]);
  if (chunk[n - 1].last) add_tail(m, r, chunk[0].first);
}

static void take_indices(sk_model *m) {
  int at = 0; /* chunks come in the model's order, so one walk finds all */
  for (int i = 0; i < m->reg.n; i++) {
    sk_param *p = &m->reg.p[i];
    if (p->copy) continue;
    while (strcmp(m->all.p[at].name, p->name) != 0) at++;
    p->index = at;
  }
}

static int find_ropes(sk_model *m, const sk_config *cfg, sk_err *e) {
  for (int64_t i = 0; i < m->n_layers; i++) {
    int64_t hd = cfg->layer[i].m.head_dim;
    if (cfg->layer[i].mixer == 'M') continue;
    int k = 0;
    while (k < m->n_rope && m->rope[k].hd != hd) k++;
    if (k == SK_MAX_ROPE)
      return sk_fail(e, SK_USAGE, "model.overrides: more than %d different head_dim", SK_MAX_ROPE);
    if (k == m->n_rope) m->rope[m->n_rope++] = (sk_rope){.hd = hd, .theta = m->cfg->rope_theta};
  }
  return SK_OK;
}

int sk_model_create(sk_model *m, const sk_config *cfg, const sk_grid *g, int n_chunks, const sk_chunk *chunk,
                    int64_t positions, sk_err *e) {
  const sk_model_cfg *c = &cfg->model;
  *m = (sk_model){.cfg = c, .n_layers = cfg->n_layers, .positions = positions, .n_chunks = n_chunks};
  m->layer = sk_calloc((size_t)m->n_layers, sizeof *m->layer);
  m->chunk = sk_calloc((size_t)n_chunks, sizeof *m->chunk);
  memcpy(m->chunk, chunk, (size_t)n_chunks * sizeof *chunk);
  m->all = (sk_registry){.tp = 1, .init_std = c->initializer_range};
  m->reg = (sk_registry){.tp = g->n[SK_TP], .tp_rank = g->at[SK_TP], .init_std = c->initializer_range};
  add_chunks(m, &m->all, cfg, 1, &(sk_chunk){0, cfg->n_layers, true, true});
  memset(m->layer, 0, (size_t)m->n_layers * sizeof *m->layer);
  add_chunks(m, &m->reg, cfg, n_chunks, chunk);
  take_indices(m);
  m->v0 = sk_block(c->vocab_size, g->n[SK_TP], g->at[SK_TP], &m->nv);
  return find_ropes(m, cfg, e);
}

void sk_model_free(sk_model *m) {
  sk_registry_free(&m->all);
  sk_registry_free(&m->reg);
  sk_free(m->layer);
  sk_free(m->chunk);
  *m = (sk_model){0};
}

/* ---- memory ---- */

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
  if (train && m->embed >= 0 && m->cfg->tie_word_embeddings) {
    int64_t n = m->reg.p[m->embed].count;
    m->tied_grad = sk_take_f32(a, n);
    c->op->zero(c->st, m->tied_grad, (size_t)n * sizeof(float));
  }
}

void sk_slot_create(sk_slot *s, const sk_chunk *chunk) {
  *s = (sk_slot){.chunk = chunk};
  s->layer = sk_calloc((size_t)chunk->layers, sizeof *s->layer);
  s->x = sk_calloc((size_t)chunk->layers, sizeof *s->x);
}

void sk_slot_free(sk_slot *s) {
  sk_free(s->layer);
  sk_free(s->x);
  sk_free(s->queue.at);
}

void sk_slot_begin(const sk_model *m, sk_ctx *c, sk_slot *s, const sk_tokens_here *t, bool train) {
  int64_t n = t->n_local * m->cfg->hidden_size;
  s->t = *t;
  sk_arena_release(&s->saved, 0);
  s->queue.n = 0;
  s->in = s->chunk->first ? NULL : sk_take_act(c, &s->saved, n);
  s->out = s->chunk->last ? NULL : sk_take_act(c, &s->saved, n);
  s->dh = train ? sk_take_act(c, &s->saved, n) : NULL;
}

/* ---- forward ---- */

static void need(sk_ctx *c, int bucket) {
  if (c->opt) sk_optim_need(c->opt, c, bucket);
}

/* h[n_local,d]: the embedding of this rank's tokens. Other ranks' rows of the table give zeros. */
static void embed(sk_model *m, sk_ctx *c, const sk_slot *s, void *h) {
  int64_t d = m->cfg->hidden_size;
  size_t mark = sk_arena_mark(&c->scratch);
  void *part = sk_partial(c, h, &s->t, d);
  sk_timer_begin(c->timer, SK_T_EMBED);
  c->op->embed(c->st, part, s->ids, sk_weight(c, m->embed), m->cfg->embedding_multiplier, s->t.n, d, m->v0,
               m->nv);
  sk_timer_end(c->timer);
  sk_scatter(c, h, part, &s->t, d);
  sk_arena_release(&c->scratch, mark);
}

/* out[n_local,d] = h + m. */
static void close_stream(sk_ctx *c, const sk_slot *s, int64_t d, void *out, const sk_stream_pair *r) {
  int64_t n = s->t.n_local * d;
  if (r->m) c->op->add(c->st, out, r->h, r->m, n);
  else c->op->copy(c->st, out, r->h, (size_t)n * sk_dtype_size(c->act));
}

/* Full recomputation keeps only the layers' inputs; what a layer saves for itself lies in redo. */
static void layers_forward(sk_model *m, sk_ctx *c, sk_slot *s, sk_stream_pair *r, sk_arena *redo,
                           sk_layer_cache *cache) {
  int64_t d = m->cfg->hidden_size, n = s->t.n_local * d;
  bool full = c->recompute == SK_RECOMPUTE_FULL && !cache;
  void *mixed = full ? NULL : sk_take_act(c, &s->saved, n);
  for (int64_t i = 0; i < s->chunk->layers; i++) {
    int64_t at = s->chunk->layer0 + i;
    need(c, m->layer[at].bucket);
    if (!full) {
      sk_layer_forward(c, &m->layer[at], &s->t, &s->layer[i], r, mixed, cache ? &cache[at] : NULL);
      continue;
    }
    s->x[i] = (void *)(uintptr_t)r->h;
    void *next = sk_take_act(c, &s->saved, n);
    c->saved = redo;
    sk_arena_release(redo, 0);
    sk_layer_forward(c, &m->layer[at], &s->t, &s->layer[i], r, sk_take_act(c, redo, n), NULL);
    close_stream(c, s, d, next, r);
    c->saved = &s->saved;
    *r = (sk_stream_pair){.h = next};
  }
}

static void chunk_begin(sk_model *m, sk_ctx *c, sk_slot *s, sk_stream_pair *r) {
  c->saved = &s->saved;
  void *h = s->in;
  if (s->chunk->first) {
    h = sk_take_act(c, &s->saved, s->t.n_local * m->cfg->hidden_size);
    need(c, m->embed_bucket);
    embed(m, c, s, h);
  }
  *r = (sk_stream_pair){.h = h};
}

void *sk_model_hidden(sk_model *m, sk_ctx *c, sk_slot *s, sk_layer_cache *cache) {
  sk_stream_pair r;
  chunk_begin(m, c, s, &r);
  layers_forward(m, c, s, &r, NULL, cache);
  sk_norm_forward(c, m->norm_f, m->cfg->rms_norm_eps, s->t.n_local, m->cfg->hidden_size, &s->final, &r);
  return s->final.u;
}

void sk_chunk_forward(sk_model *m, sk_ctx *c, sk_slot *s, double scale, double *loss, sk_arena *redo) {
  int64_t d = m->cfg->hidden_size;
  size_t mark = sk_arena_mark(&c->scratch);
  sk_stream_pair r;
  chunk_begin(m, c, s, &r);
  layers_forward(m, c, s, &r, redo, NULL);
  if (s->chunk->last) {
    need(c, m->tail_bucket);
    sk_norm_forward(c, m->norm_f, m->cfg->rms_norm_eps, s->t.n_local, d, &s->final, &r);
    if (scale != 0) s->dhidden = sk_take_act(c, &s->saved, s->t.n_local * d);
    sk_head_loss(m, c, s, scale, loss);
  } else {
    close_stream(c, s, d, s->out, &r);
  }
  sk_arena_release(&c->scratch, mark);
}

/* ---- backward ---- */

static void embed_backward(sk_model *m, sk_ctx *c, const sk_slot *s) {
  int64_t d = m->cfg->hidden_size;
  size_t mark = sk_arena_mark(&c->scratch);
  const void *dh = sk_gather(c, &c->scratch, s->dh, &s->t, d);
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_EMBED);
  c->op->embed_grad(c->st, sk_grad(c, m->embed), s->ids, dh, m->cfg->embedding_multiplier, s->t.n, d, m->v0,
                    m->nv, m->cfg->pad_token_id);
  sk_timer_end(c->timer);
  sk_arena_release(&c->scratch, mark);
}

static void layer_again(sk_model *m, sk_ctx *c, sk_slot *s, int64_t i, sk_arena *redo) {
  sk_stream_pair r = {.h = s->x[i]};
  if (!c->queue) {
    c->saved = redo;
    sk_arena_release(redo, 0);
  }
  void *mixed = sk_take_act(c, c->saved, s->t.n_local * m->cfg->hidden_size);
  sk_layer_forward(c, &m->layer[s->chunk->layer0 + i], &s->t, &s->layer[i], &r, mixed, NULL);
}

void sk_chunk_backward(sk_model *m, sk_ctx *c, sk_slot *s, bool queue, sk_arena *redo,
                       void (*done)(void *arg, int bucket), void *arg) {
  int64_t d = m->cfg->hidden_size;
  c->saved = &s->saved;
  c->queue = queue ? &s->queue : NULL;
  if (s->chunk->last) {
    c->op->zero(c->st, s->dh, (size_t)(s->t.n_local * d) * sk_dtype_size(c->act));
    sk_norm_backward(c, m->norm_f, s->t.n_local, d, &s->final, s->dh, s->dhidden);
    if (done) done(arg, m->tail_bucket);
  }
  for (int64_t i = s->chunk->layers - 1; i >= 0; i--) {
    const sk_layer *l = &m->layer[s->chunk->layer0 + i];
    if (c->recompute == SK_RECOMPUTE_FULL) layer_again(m, c, s, i, redo);
    sk_layer_backward(c, l, &s->t, &s->layer[i], s->dh);
    if (done) done(arg, l->bucket);
  }
  if (s->chunk->first) {
    embed_backward(m, c, s);
    if (done) done(arg, m->embed_bucket);
  }
  c->queue = NULL;
  c->saved = &s->saved;
}

/* ---- arithmetic ---- */

sk_flops sk_layer_flops_by(const sk_layer_cfg *l, int64_t T) {
  const sk_model_cfg *m = &l->m;
  double d = (double)m->hidden_size, q = (double)(m->num_attention_heads * m->head_dim);
  double kv = (double)(m->num_key_value_heads * m->head_dim), ds = (double)m->mamba_d_ssm;
  double nh = (double)m->mamba_n_heads, P = (double)m->mamba_d_head, Q = (double)m->mamba_chunk_size;
  double N = (double)m->mamba_d_state, G = (double)m->mamba_n_groups;
  sk_flops f = {0};
  if (l->mixer != 'M') {
    f.weights += 2 * d * q + 2 * d * kv;
    f.attention = 2 * q * (double)(T + 1);
  }
  if (l->mixer != '*') {
    f.weights += d * (2 * ds + 2 * G * N + nh) + ds * d;
    f.ssd = Q * N * G + nh * (Q * P + 4 * P * N);
    f.conv = 2 * (double)m->mamba_d_conv * (ds + 2 * G * N);
  }
  if (l->mlp) f.weights += 3 * d * (double)m->intermediate_size;
  return f;
}

double sk_layer_flops(const sk_layer_cfg *l, int64_t T) {
  sk_flops f = sk_layer_flops_by(l, T);
  return 2 * f.weights + f.attention + f.ssd + f.conv;
}

double sk_model_flops(const sk_config *cfg, int64_t T) {
  double sum = 2.0 * (double)(cfg->model.vocab_size * cfg->model.hidden_size);
  for (int64_t i = 0; i < cfg->n_layers; i++) sum += sk_layer_flops(&cfg->layer[i], T);
  return sum;
}
