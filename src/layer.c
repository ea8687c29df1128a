#include "src/layer.h"
#include "src/shard.h"
#include <stdio.h>

static int add_norm(sk_registry *r, int64_t layer, const char *name, int64_t d) {
  char full[96];
  snprintf(full, sizeof full, "model.layers.%lld.%s.weight", (long long)layer, name);
  return sk_param_add(r, full, &(sk_param_spec){.rank = 1, .dim = {d}, .init = SK_INIT_ONE});
}

void sk_layer_add(sk_registry *r, const sk_layer_cfg *cfg, int64_t i, sk_layer *l) {
  const sk_model_cfg *m = &cfg->m;
  const int64_t F = m->intermediate_size;
  *l = (sk_layer){.mixer = cfg->mixer, .mlp = cfg->mlp, .d = m->hidden_size, .eps = m->rms_norm_eps,
                  .norm2 = -1};
  l->bucket = sk_bucket_begin(r);
  l->norm1 = add_norm(r, i, "input_layernorm", l->d);
  if (l->mixer != '*') sk_mamba_add(r, m, i, &l->mamba);
  if (l->mixer != 'M') sk_attention_add(r, m, i, &l->attention);
  if (!l->mlp) return;
  const sk_segment units = {F, 1, F};
  const sk_linear_part gu[] = {{"feed_forward.gate_proj", F, 0, 1, {units}},
                               {"feed_forward.up_proj", F, 0, 1, {units}}};
  const sk_linear_part down = {"feed_forward.down_proj", l->d, 0, 1, {units}};
  l->norm2 = add_norm(r, i, "pre_ff_layernorm", l->d);
  l->ff.gate = m->mlp_multipliers[0];
  l->ff.gu = sk_linear_add(r, i, gu, 2, l->d, false, m->mlp_bias, 1, 1);
  l->ff.down = sk_linear_add(r, i, &down, 1, F, true, m->mlp_bias, m->mlp_multipliers[1],
                             m->mlp_multipliers[1]);
  l->ff.F = l->ff.down.in;
}

/* ---- norms ---- */

void sk_norm_forward(sk_ctx *c, int w, double eps, int64_t n, int64_t d, sk_norm_saved *s,
                     sk_stream_pair *r) {
  sk_timer_begin(c->timer, SK_T_NORM);
  void *sum = r->m ? sk_take_act(c, c->saved, n * d) : NULL;
  s->rstd = sk_take_f32(c->saved, n);
  s->u = sk_take_act(c, sk_cheap(c), n * d);
  c->op->rmsnorm(c->st, s->u, s->rstd, sum, r->h, r->m, sk_weight(c, w), n, d, eps);
  if (sum) r->h = sum;
  s->x = r->h;
  sk_timer_end(c->timer);
}

/* Makes u again where it was not kept. */
static void norm_again(sk_ctx *c, int w, double eps, int64_t n, int64_t d, sk_norm_saved *s) {
  if (c->recompute != SK_RECOMPUTE_SELECTIVE) return;
  s->u = sk_take_act(c, sk_until_wgrad(c), n * d);
  c->op->rmsnorm(c->st, s->u, s->rstd, NULL, s->x, NULL, sk_weight(c, w), n, d, eps);
}

void sk_norm_backward(sk_ctx *c, int w, int64_t n, int64_t d, const sk_norm_saved *s, void *dh,
                      const void *du) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_NORM);
  c->op->rmsnorm_grad(c->st, dh, sk_grad(c, w), du, s->x, s->rstd, sk_weight(c, w), n, d);
  sk_timer_end(c->timer);
}

/* ---- two branches ---- */

/* The context for the attention of a mixer with both branches: on the second stream, where there is one, behind
 * what c's stream has by now. */
static sk_ctx *fork_branch(sk_ctx *c, sk_ctx *side, bool both) {
  if (!c->branch || !both) return c;
  *side = *c;
  side->st = c->branch->st;
  side->scratch = c->branch->scratch;
  c->op->record(c->branch->fork, c->st);
  c->op->wait(side->st, c->branch->fork);
  return side;
}

/* The second stream waits for c's once more. */
static void follow(sk_ctx *c, const sk_ctx *a) {
  if (a == c) return;
  c->op->record(c->branch->fork, c->st);
  c->op->wait(a->st, c->branch->fork);
}

/* Later work on c's stream finds the branch's done. */
static void join_branch(sk_ctx *c, const sk_ctx *a) {
  if (a == c) return;
  c->op->record(c->branch->join, a->st);
  c->op->wait(c->st, c->branch->join);
  c->branch->scratch.peak = a->scratch.peak;
}

/* ---- forward ---- */

static void mixer_forward(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, sk_layer_saved *s, void *out,
                          sk_layer_cache *cache) {
  const bool mamba = l->mixer != '*', attention = l->mixer != 'M';
  sk_mamba_cache *mc = cache ? &cache->mamba : NULL;
  sk_mamba_flight mf;
  sk_attention_flight af;
  sk_ctx side;
  sk_gathering u = sk_gather_begin(c, &c->scratch, s->n1.u, t, l->d);
  void *part = sk_partial(c, out, t, l->d);
  if (mamba) {
    sk_mamba_own(c, &l->mamba, t, &s->mamba, &u);
    sk_gather_end(c, &u); /* before the fork: both branches read u */
  }
  sk_ctx *a = fork_branch(c, &side, mamba && attention);
  /* The exchanges of one branch run beside the work of the other. */
  if (mamba) sk_mamba_begin(c, &l->mamba, t, &s->mamba, &mf, &u);
  if (attention) sk_attention_begin(a, &l->attention, t, &s->attention, &af, &u, cache ? &cache->attention : NULL);
  if (mamba) sk_mamba_middle(c, &l->mamba, t, &s->mamba, &mf, mc);
  if (attention) sk_attention_end(a, &l->attention, t, &s->attention, &af, part, 0);
  if (mamba) sk_mamba_end(c, &l->mamba, t, &s->mamba, &mf, mc);
  join_branch(c, a);
  if (mamba) sk_mamba_out(c, &l->mamba, t, &s->mamba, part, attention);
  sk_scatter(c, out, part, t, l->d);
  if (mamba) sk_linear_bias(c, &l->mamba.out, out, t->n_local);
  if (attention) sk_linear_bias(c, &l->attention.o, out, t->n_local);
}

static void mlp_forward(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, sk_layer_saved *s, void *out) {
  const sk_mlp *f = &l->ff;
  sk_gathering u = sk_gather_begin(c, &c->scratch, s->n2.u, t, l->d);
  void *part = sk_partial(c, out, t, l->d);
  sk_timer_begin(c->timer, SK_T_MLP);
  s->gu = sk_take_act(c, c->saved, t->n * 2 * f->F);
  s->act = sk_take_act(c, sk_cheap(c), t->n * f->F);
  sk_linear_forward_gathered(c, &f->gu, s->gu, &u);
  sk_linear_bias(c, &f->gu, s->gu, t->n);
  c->op->swiglu(c->st, s->act, s->gu, f->gate, t->n, f->F);
  sk_linear_forward(c, &f->down, part, 0, s->act, t->n);
  sk_timer_end(c->timer);
  sk_scatter(c, out, part, t, l->d);
  sk_linear_bias(c, &f->down, out, t->n_local);
}

void sk_layer_forward(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, sk_layer_saved *s,
                      sk_stream_pair *r, void *m_buf, sk_layer_cache *cache) {
  size_t mark = sk_arena_mark(&c->scratch);
  sk_norm_forward(c, l->norm1, l->eps, t->n_local, l->d, &s->n1, r);
  r->m = m_buf;
  mixer_forward(c, l, t, s, m_buf, cache);
  sk_arena_release(&c->scratch, mark);
  if (!l->mlp) return;
  sk_norm_forward(c, l->norm2, l->eps, t->n_local, l->d, &s->n2, r);
  mlp_forward(c, l, t, s, m_buf);
  sk_arena_release(&c->scratch, mark);
}

/* ---- backward ---- */

/* Starts to gather the gradient of all tokens' outputs. dh itself changes on the way to the layer before, so weight
 * gradients that are put off need a copy. */
static sk_gathering outputs_grad(sk_ctx *c, const sk_tokens_here *t, int64_t d, const void *dh) {
  if (c->n_tp == 1 && c->queue) {
    void *copy = sk_take_act(c, c->saved, t->n * d);
    c->op->copy(c->st, copy, dh, (size_t)(t->n * d) * sk_dtype_size(c->act));
    dh = copy;
  }
  return sk_gather_begin(c, sk_until_wgrad(c), dh, t, d);
}

/* What the MLP's last weight gradient reads. It is computed beside the mixer's first exchange. */
typedef struct mlp_flight {
  const void *dgu, *u;
} mlp_flight;

static void mlp_wgrad(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, const mlp_flight *f) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_MLP);
  sk_linear_wgrad(c, &l->ff.gu, f->dgu, f->u, t->n);
  sk_linear_bias_grad(c, &l->ff.gu, f->dgu, t->n);
  sk_timer_end(c->timer);
}

/* Under tp the input's gradient is exchanged beside the weight gradient of `down`, and the gather of u, which only
 * the other one needs, beside everything. */
static void mlp_backward(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, sk_layer_saved *s, void *du,
                         const void *dh, mlp_flight *flight) {
  const sk_mlp *f = &l->ff;
  sk_gathering dout = outputs_grad(c, t, l->d, dh);
  norm_again(c, l->norm2, l->eps, t->n_local, l->d, &s->n2);
  sk_gathering u = sk_gather_begin(c, sk_until_wgrad(c), s->n2.u, t, l->d);
  void *part = sk_partial(c, du, t, l->d);
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_MLP);
  sk_linear_bias_grad(c, &f->down, dh, t->n_local);
  void *dact = sk_take_act(c, &c->scratch, t->n * f->F);
  void *dgu = sk_take_act(c, sk_until_wgrad(c), t->n * 2 * f->F);
  if (c->recompute == SK_RECOMPUTE_SELECTIVE) {
    s->act = sk_take_act(c, sk_until_wgrad(c), t->n * f->F);
    c->op->swiglu(c->st, s->act, s->gu, f->gate, t->n, f->F);
  }
  sk_linear_dgrad_gathered(c, &f->down, dact, &dout);
  c->op->swiglu_grad(c->st, dgu, dact, s->gu, f->gate, t->n, f->F);
  sk_linear_dgrad(c, &f->gu, part, 0, dgu, t->n);
  sk_scattering sum = sk_scatter_begin(c, du, part, t, l->d);
  sk_linear_wgrad(c, &f->down, dout.full, s->act, t->n);
  sk_timer_end(c->timer);
  *flight = (mlp_flight){dgu, sk_gather_end(c, &u)};
  sk_scatter_end(c, &sum);
}

/* before: the MLP of the layer, whose last weight gradient is still to be computed; NULL: none. */
static void mixer_backward(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, sk_layer_saved *s, void *du,
                           const void *dh, const mlp_flight *before) {
  const bool mamba = l->mixer != '*', attention = l->mixer != 'M';
  sk_mamba_flight mf;
  sk_attention_flight af;
  sk_ctx side;
  sk_gathering dout = outputs_grad(c, t, l->d, dh);
  if (before) mlp_wgrad(c, l, t, before);
  norm_again(c, l->norm1, l->eps, t->n_local, l->d, &s->n1);
  void *part = sk_partial(c, du, t, l->d);
  if (mamba) sk_linear_bias_grad(c, &l->mamba.out, dh, t->n_local);
  if (attention) sk_linear_bias_grad(c, &l->attention.o, dh, t->n_local);
  const void *dout_all = sk_gather_end(c, &dout);
  sk_ctx *a = fork_branch(c, &side, mamba && attention);
  if (attention) sk_attention_back_begin(a, &l->attention, t, &s->attention, &af);
  if (mamba) sk_mamba_back_begin(c, &l->mamba, t, &s->mamba, &mf, dout_all);
  sk_gathering u = sk_gather_begin(c, sk_until_wgrad(c), s->n1.u, t, l->d); /* behind the gated norm's sums */
  if (attention) sk_attention_back_core(a, &l->attention, t, &s->attention, &af, dout_all);
  if (mamba) sk_mamba_back_core(c, &l->mamba, t, &s->mamba, &mf);
  if (attention) sk_attention_back_end(a, &l->attention, t, &af, part, 0);
  join_branch(c, a);
  if (mamba) sk_mamba_back_end(c, &l->mamba, t, &mf, part, attention);
  sk_scattering sum = sk_scatter_begin(c, du, part, t, l->d); /* beside the weight gradients */
  const void *u_all = sk_gather_end(c, &u);
  if (c->n_tp > 1) follow(c, a); /* u_all has come */
  if (attention) sk_attention_wgrad(a, &l->attention, t, &af, u_all);
  if (mamba) sk_mamba_wgrad(c, &l->mamba, t, &mf, u_all);
  join_branch(c, a);
  sk_scatter_end(c, &sum);
}

/* Without tp there is nothing to hide: what the MLP's weight gradient reads is not kept for the mixer. */
void sk_layer_backward(sk_ctx *c, const sk_layer *l, const sk_tokens_here *t, sk_layer_saved *s, void *dh) {
  size_t mark = sk_arena_mark(&c->scratch);
  void *du = sk_take_act(c, &c->scratch, t->n_local * l->d);
  size_t inner = sk_arena_mark(&c->scratch);
  mlp_flight flight;
  const bool later = l->mlp && c->n_tp > 1 && !c->queue;
  if (l->mlp) {
    mlp_backward(c, l, t, s, du, dh, &flight);
    if (!later) {
      mlp_wgrad(c, l, t, &flight);
      sk_arena_release(&c->scratch, inner);
    }
    sk_norm_backward(c, l->norm2, t->n_local, l->d, &s->n2, dh, du);
  }
  mixer_backward(c, l, t, s, du, dh, later ? &flight : NULL);
  sk_arena_release(&c->scratch, inner);
  sk_norm_backward(c, l->norm1, t->n_local, l->d, &s->n1, dh, du);
  sk_arena_release(&c->scratch, mark);
}
