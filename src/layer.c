#include "src/layer.h"
#include <stdio.h>

static int add_norm(sk_registry *r, int64_t layer, const char *name, int64_t d) {
  char full[96];
  snprintf(full, sizeof full, "model.layers.%lld.%s.weight", (long long)layer, name);
  return sk_param_add(r, full, 1, &d, SK_INIT_ONE, false, false);
}

void sk_layer_add(sk_registry *r, const sk_layer_cfg *cfg, int64_t i, sk_layer *l) {
  const sk_model_cfg *m = &cfg->m;
  *l = (sk_layer){.mixer = cfg->mixer, .mlp = cfg->mlp, .d = m->hidden_size, .eps = m->rms_norm_eps,
                  .norm2 = -1};
  l->norm1 = add_norm(r, i, "input_layernorm", l->d);
  if (l->mixer != '*') sk_mamba_add(r, m, i, &l->mamba);
  if (l->mixer != 'M') sk_attention_add(r, m, i, &l->attention);
  if (!l->mlp) return;
  l->norm2 = add_norm(r, i, "pre_ff_layernorm", l->d);
  l->ff.F = m->intermediate_size;
  l->ff.gate = m->mlp_multipliers[0];
  const sk_linear_part gu[] = {{"feed_forward.gate_proj", l->ff.F}, {"feed_forward.up_proj", l->ff.F}};
  const sk_linear_part down = {"feed_forward.down_proj", l->d};
  l->ff.gu = sk_linear_add(r, i, gu, 2, l->d, m->mlp_bias, 1, 1);
  l->ff.down = sk_linear_add(r, i, &down, 1, l->ff.F, m->mlp_bias, m->mlp_multipliers[1],
                             m->mlp_multipliers[1]);
}

void sk_norm_forward(sk_ctx *c, int w, double eps, int64_t n, int64_t d, sk_norm_saved *s,
                     sk_stream_pair *r) {
  sk_timer_begin(c->timer, SK_T_NORM);
  void *sum = r->m ? sk_take_act(c, &c->saved, n * d) : NULL;
  s->u = sk_take_act(c, &c->saved, n * d);
  s->rstd = sk_take_f32(&c->saved, n);
  c->op->rmsnorm(c->st, s->u, s->rstd, sum, r->h, r->m, sk_weight(c, w), n, d, eps);
  if (sum) r->h = sum;
  s->x = r->h;
  sk_timer_end(c->timer);
}

void sk_norm_backward(sk_ctx *c, int w, int64_t n, int64_t d, const sk_norm_saved *s, void *dh,
                      const void *du) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_NORM);
  c->op->rmsnorm_grad(c->st, dh, sk_grad(c, w), du, s->x, s->rstd, sk_weight(c, w), n, d);
  sk_timer_end(c->timer);
}

static void mlp_forward(sk_ctx *c, const sk_mlp *f, int64_t n, sk_layer_saved *s, void *out) {
  sk_timer_begin(c->timer, SK_T_MLP);
  s->gu = sk_take_act(c, &c->saved, n * 2 * f->F);
  s->act = sk_take_act(c, &c->saved, n * f->F);
  sk_linear_forward(c, &f->gu, s->gu, 0, s->n2.u, n);
  c->op->swiglu(c->st, s->act, s->gu, f->gate, n, f->F);
  sk_linear_forward(c, &f->down, out, 0, s->act, n);
  sk_timer_end(c->timer);
}

static void mlp_backward(sk_ctx *c, const sk_mlp *f, int64_t n, const sk_layer_saved *s, void *du,
                         const void *dout) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_MLP);
  void *dact = sk_take_act(c, &c->scratch, n * f->F), *dgu = sk_take_act(c, &c->scratch, n * 2 * f->F);
  sk_linear_backward(c, &f->down, dact, 0, dout, s->act, n);
  c->op->swiglu_grad(c->st, dgu, dact, s->gu, f->gate, n, f->F);
  sk_linear_backward(c, &f->gu, du, 0, dgu, s->n2.u, n);
  sk_timer_end(c->timer);
}

void sk_layer_forward(sk_ctx *c, const sk_layer *l, const sk_piece *p, sk_layer_saved *s,
                      sk_stream_pair *r, void *m_buf, sk_layer_cache *cache) {
  int64_t n = p->b * p->T;
  sk_norm_forward(c, l->norm1, l->eps, n, l->d, &s->n1, r);
  r->m = m_buf;
  if (l->mixer != '*')
    sk_mamba_forward(c, &l->mamba, p, &s->mamba, m_buf, 0, s->n1.u, cache ? &cache->mamba : NULL);
  if (l->mixer != 'M')
    sk_attention_forward(c, &l->attention, p, &s->attention, m_buf, l->mixer == 'P', s->n1.u,
                         cache ? &cache->attention : NULL);
  if (!l->mlp) return;
  sk_norm_forward(c, l->norm2, l->eps, n, l->d, &s->n2, r);
  mlp_forward(c, &l->ff, n, s, m_buf);
}

void sk_layer_backward(sk_ctx *c, const sk_layer *l, const sk_piece *p, const sk_layer_saved *s,
                       void *dh) {
  int64_t n = p->b * p->T;
  size_t mark = sk_arena_mark(&c->scratch);
  void *du = sk_take_act(c, &c->scratch, n * l->d);
  if (l->mlp) {
    size_t inner = sk_arena_mark(&c->scratch);
    mlp_backward(c, &l->ff, n, s, du, dh);
    sk_arena_release(&c->scratch, inner);
    sk_norm_backward(c, l->norm2, n, l->d, &s->n2, dh, du);
  }
  if (l->mixer != '*') sk_mamba_backward(c, &l->mamba, p, &s->mamba, du, 0, dh, s->n1.u);
  if (l->mixer != 'M')
    sk_attention_backward(c, &l->attention, p, &s->attention, du, l->mixer == 'P', dh, s->n1.u);
  sk_norm_backward(c, l->norm1, n, l->d, &s->n1, dh, du);
  sk_arena_release(&c->scratch, mark);
}
