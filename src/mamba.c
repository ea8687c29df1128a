#include "src/mamba.h"
#include <math.h>
#include <stdio.h>

#ifndef PAD
enum { PAD = 8 }; /* 16 bytes: rows that all kernels and products take in their fast ways, however tp cuts the heads */
#endif

/* ---- parameters ---- */

bool sk_mamba_fits(const sk_model_cfg *m, int tp) {
  const sk_segment heads = {m->mamba_n_heads, 1, m->mamba_n_heads};
  int64_t per = m->mamba_n_heads / m->mamba_n_groups;
  for (int t = 0; t < tp; t++) {
    int64_t n, h0 = sk_segment_units(&heads, tp, t, &n), size = 0;
    for (int64_t h = h0, next; h < h0 + n; h = next) { /* the heads of one group after the other */
      next = (h / per + 1) * per < h0 + n ? (h / per + 1) * per : h0 + n;
      if (size && next - h != size) return false;
      size = next - h;
    }
  }
  return true;
}

static int add(sk_registry *r, int64_t layer, const char *name, const sk_param_spec *spec) {
  char full[96];
  snprintf(full, sizeof full, "model.layers.%lld.mamba.%s", (long long)layer, name);
  return sk_param_add(r, full, spec);
}

static void add_params(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_mamba *s) {
  const int64_t nh = m->mamba_n_heads, G = m->mamba_n_groups, ds = m->mamba_d_ssm;
  const int64_t cd = ds + 2 * G * s->N;
  const sk_segment channels = {nh, s->P, nh}, heads = {nh, 1, nh}, group = {G, s->N, nh};
  const sk_linear_part in = {"mamba.in_proj", ds + cd + nh, PAD, 5, {channels, channels, group, group, heads}};
  const sk_linear_part out = {"mamba.out_proj", m->hidden_size, 0, 1, {channels}};
  s->in = sk_linear_add(r, layer, &in, 1, m->hidden_size, false, m->mamba_proj_bias, m->ssm_in_multiplier, 1);
  sk_param_spec conv = {.rank = 3, .dim = {cd, 1, s->K}, .n_seg = 3, .seg = {channels, group, group},
                        .init = SK_INIT_UNIFORM, .decay = true};
  s->conv_w = add(r, layer, "conv1d.weight", &conv);
  conv.rank = 1, conv.decay = false;
  s->conv_b = m->mamba_conv_bias ? add(r, layer, "conv1d.bias", &conv) : -1;
  for (int i = s->conv_w; i < r->n; i++) r->p[i].scale = 1 / sqrt((double)s->K);
  sk_param_spec head = {.rank = 1, .dim = {nh}, .n_seg = 1, .seg = {heads}, .init = SK_INIT_DT_BIAS};
  s->dt_bias = add(r, layer, "dt_bias", &head);
  head.init = SK_INIT_A_LOG;
  s->A_log = add(r, layer, "A_log", &head);
  head.init = SK_INIT_ONE;
  s->D = add(r, layer, "D", &head);
  const sk_param_spec norm = {.rank = 1, .dim = {ds}, .n_seg = 1, .seg = {channels}, .init = SK_INIT_ONE};
  s->norm_w = s->norm ? add(r, layer, "norm.weight", &norm) : -1;
  s->out = sk_linear_add(r, layer, &out, 1, ds, true, m->projectors_bias, m->ssm_out_multiplier,
                         m->ssm_out_multiplier);
}

void sk_mamba_add(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_mamba *s) {
  const sk_segment heads = {m->mamba_n_heads, 1, m->mamba_n_heads};
  const sk_segment groups = {m->mamba_n_groups, 1, m->mamba_n_heads};
  *s = (sk_mamba){.P = m->mamba_d_head, .N = m->mamba_d_state, .K = m->mamba_d_conv,
                  .Q = m->mamba_chunk_size, .all_G = m->mamba_n_groups,
                  .group_width = m->mamba_d_ssm / m->mamba_n_groups, .norm = m->mamba_rms_norm,
                  .before = m->mamba_norm_before_gate, .eps = m->rms_norm_eps,
                  .dt_lo = m->time_step_limit[0], .dt_hi = m->time_step_limit[1]};
  sk_segment_units(&heads, r->tp, r->tp_rank, &s->nh);
  s->G0 = sk_segment_units(&groups, r->tp, r->tp_rank, &s->G);
  s->ds = s->nh * s->P;
  s->shared_norm = s->norm && s->all_G % r->tp != 0;
  for (int i = 0; i < 5; i++) s->mult[i] = m->ssm_multipliers[i];
  s->cd = s->ds + 2 * s->G * s->N;
  add_params(r, m, layer, s);
  s->dip = s->in.ld;
}

/* ---- sizes for the ops ---- */

static sk_conv_dims conv_dims(const sk_mamba *m, const sk_piece *p) {
  return (sk_conv_dims){.b = p->b, .T = p->T, .K = m->K, .width = {m->ds, m->G * m->N, m->G * m->N},
                        .mult = {m->mult[1], m->mult[2], m->mult[3]}, .ldx = m->dip, .ldy = m->cd};
}

static sk_ssd_dims ssd_dims(const sk_mamba *m, const sk_piece *p) {
  return (sk_ssd_dims){.b = p->b, .T = p->T, .nh = m->nh, .P = m->P, .G = m->G, .N = m->N, .Q = m->Q,
                       .ld = m->cd, .ldy = m->ds};
}

static sk_gate_dims gate_dims(const sk_mamba *m, const sk_tokens_here *t) {
  return (sk_gate_dims){.n = t->n, .ds = m->ds, .G = m->G, .ldz = m->dip, .zmult = m->mult[0], .eps = m->eps,
                        .norm = m->norm, .before = m->before, .width = m->group_width};
}

/* ---- the pieces of the forward pass ---- */

/* x, B, C of a row of xBC. */
static void *part_x(const sk_ctx *c, const sk_mamba *m, const void *xBC, int64_t row) {
  return sk_at(c, xBC, row * m->cd);
}
static void *part_B(const sk_ctx *c, const sk_mamba *m, const void *xBC, int64_t row) {
  return sk_at(c, xBC, row * m->cd + m->ds);
}
static void *part_C(const sk_ctx *c, const sk_mamba *m, const void *xBC, int64_t row) {
  return sk_at(c, xBC, row * m->cd + m->ds + m->G * m->N);
}

/* Piece i's first row, and its places in the arrays that exist for cp only. */
static int64_t first_row(const sk_tokens_here *t, int i) { return i * t->piece[0].b * t->piece[0].T; }
static void *halo_of(const sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const void *halo, int i) {
  return halo ? sk_at(c, halo, i * t->piece[0].b * (m->K - 1) * m->cd) : NULL;
}
static float *state_of(const sk_mamba *m, const sk_tokens_here *t, float *S, int i) {
  return S ? S + i * t->piece[0].b * m->nh * m->P * m->N : NULL;
}

static void conv(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s,
                 const void *cached_halo) {
  for (int i = 0; i < t->n_pieces; i++) {
    sk_conv_dims d = conv_dims(m, &t->piece[i]);
    int64_t row = first_row(t, i);
    c->op->conv(c->st, &d, part_x(c, m, s->xBC, row), sk_at(c, s->proj, row * m->dip + m->ds),
                cached_halo ? cached_halo : halo_of(c, m, t, s->halo, i), sk_weight(c, m->conv_w),
                sk_weight(c, m->conv_b), t->piece[i].start);
  }
}

/* Adds x[n, G] of this rank's groups over the tp ranks that share them: 4 bytes per token and group. */
static float *sum_groups(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, float *mine) {
  float *all = sk_take_f32(&c->scratch, t->n * m->all_G);
  int64_t count = t->n * m->all_G;
  size_t f = sizeof(float), row = (size_t)m->G * f, pitch = (size_t)m->all_G * f;
  void *ws = sk_arena_take(&c->scratch, c->comm->reduce_ws(c->n_tp, count, SK_F32));
  c->op->zero(c->st, all, (size_t)count * f);
  c->op->copy2d(c->st, all + m->G0, pitch, mine, row, row, t->n);
  sk_timer_begin(c->timer, SK_T_TP);
  c->comm->wait(c->tp, c->st, c->comm->all_reduce(c->tp, c->st, all, count, SK_F32, ws));
  sk_timer_end(c->timer);
  c->op->copy2d(c->st, mine, row, all + m->G0, pitch, row, t->n);
  return mine;
}

static void gate(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s) {
  sk_gate_dims d = gate_dims(m, t);
  size_t mark = sk_arena_mark(&c->scratch);
  if (m->shared_norm) {
    float *ss = sk_take_f32(&c->scratch, t->n * m->G);
    c->op->gate_stats(c->st, &d, ss, s->y, s->proj);
    d.whole = sum_groups(c, m, t, ss);
  }
  c->op->gate(c->st, &d, s->gated, s->rstd, s->y, s->proj, sk_weight(c, m->norm_w));
  sk_arena_release(&c->scratch, mark);
}

/* What each piece adds to the state, to all cp ranks. */
static void send_states(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                        sk_mamba_flight *f) {
  int64_t keeps = t->piece[0].b * m->nh;
  for (int i = 0; i < t->n_pieces; i++) {
    float *keep, *state = sk_mamba_state_slot(c, m, t, f, i, &keep);
    sk_ssd_dims d = ssd_dims(m, &t->piece[i]);
    int64_t row = first_row(t, i);
    size_t mark = sk_arena_mark(&c->scratch);
    void *ws = sk_arena_take(&c->scratch, c->op->ssd_ws(c->dev, c->act, &d));
    c->op->ssd_state(c->st, &d, state, keep, part_x(c, m, s->xBC, row), part_B(c, m, s->xBC, row),
                     s->dt + row * m->nh, sk_weight(c, m->A_log), t->piece[i].start, ws);
    sk_arena_release(&c->scratch, mark);
    c->op->copy(c->st, s->keep + i * keeps, keep, (size_t)keeps * sizeof(float));
  }
  sk_mamba_state_send(c, m, t, f);
}

static void ssd(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s, float *Sf,
                const float *S0) {
  for (int i = 0; i < t->n_pieces; i++) {
    sk_ssd_dims d = ssd_dims(m, &t->piece[i]);
    int64_t row = first_row(t, i);
    size_t mark = sk_arena_mark(&c->scratch);
    void *ws = sk_arena_take(&c->scratch, c->op->ssd_ws(c->dev, c->act, &d));
    c->op->ssd(c->st, &d, sk_at(c, s->y, row * m->ds), Sf, part_x(c, m, s->xBC, row),
               part_B(c, m, s->xBC, row), part_C(c, m, s->xBC, row), s->dt + row * m->nh,
               sk_weight(c, m->A_log), sk_weight(c, m->D), t->piece[i].start,
               S0 ? S0 : state_of(m, t, s->S0, i), ws);
    sk_arena_release(&c->scratch, mark);
  }
}

/* Generation: the last K-1 raw rows for the next piece. In place: every row moves towards the front. */
static void advance_halo(const sk_ctx *c, const sk_mamba *m, const sk_piece *p, void *halo,
                         const void *proj) {
  int64_t keep = m->K - 1;
  for (int64_t j = 0; j < keep; j++) {
    int64_t t = p->T - keep + j; /* the row's token in this piece; negative: still in the halo */
    const void *from = t >= 0 ? sk_at(c, proj, t * m->dip + m->ds) : sk_at(c, halo, (t + keep) * m->cd);
    c->op->copy(c->st, sk_at(c, halo, j * m->cd), from, (size_t)m->cd * sk_dtype_size(c->act));
  }
}

/* ---- forward ---- */

void sk_mamba_own(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s, const sk_gathering *u) {
  sk_timer_begin(c->timer, SK_T_MAMBA);
  *s = (sk_mamba_saved){.proj = sk_take_act(c, c->saved, t->n * m->dip)};
  sk_linear_forward_own(c, &m->in, s->proj, u);
  sk_timer_end(c->timer);
}

void sk_mamba_begin(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                    sk_mamba_flight *f, const sk_gathering *u) {
  sk_timer_begin(c->timer, SK_T_MAMBA);
  *f = (sk_mamba_flight){0};
  sk_linear_forward_others(c, &m->in, s->proj, u);
  sk_linear_bias(c, &m->in, s->proj, t->n);
  if (c->n_cp > 1) sk_mamba_halo_send(c, m, t, f, s->proj);
  sk_timer_end(c->timer);
}

void sk_mamba_middle(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                     sk_mamba_flight *f, sk_mamba_cache *cache) {
  const int64_t b = t->piece[0].b;
  sk_timer_begin(c->timer, SK_T_MAMBA);
  s->xBC = sk_take_act(c, sk_cheap(c), t->n * m->cd);
  s->dt = sk_take_f32(c->saved, t->n * m->nh);
  if (c->n_cp > 1) {
    s->halo = sk_take_act(c, c->saved, 2 * b * (m->K - 1) * m->cd);
    s->S0 = sk_take_f32(c->saved, 2 * b * m->nh * m->P * m->N);
    s->keep = sk_take_f32(c->saved, 2 * b * m->nh);
    sk_mamba_halo_take(c, m, t, f, s->halo);
  }
  conv(c, m, t, s, cache ? cache->halo : NULL);
  if (cache) advance_halo(c, m, &t->piece[0], cache->halo, s->proj);
  c->op->dt(c->st, s->dt, sk_at(c, s->proj, m->ds + m->cd), m->dip, m->mult[4], sk_weight(c, m->dt_bias),
            m->dt_lo, m->dt_hi, t->n, m->nh);
  if (c->n_cp > 1) send_states(c, m, t, s, f);
  sk_timer_end(c->timer);
}

void sk_mamba_end(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                  sk_mamba_flight *f, sk_mamba_cache *cache) {
  sk_timer_begin(c->timer, SK_T_MAMBA);
  s->y = sk_take_act(c, c->saved, t->n * m->ds);
  s->rstd = sk_take_f32(c->saved, t->n * m->G);
  s->gated = sk_take_act(c, sk_cheap(c), t->n * m->ds);
  if (c->n_cp > 1) sk_mamba_state_take(c, m, t, f, s->S0, false);
  ssd(c, m, t, s, cache ? cache->state[1] : NULL, cache ? cache->state[0] : NULL);
  if (cache) {
    float *old = cache->state[0];
    cache->state[0] = cache->state[1];
    cache->state[1] = old;
  }
  gate(c, m, t, s);
  sk_timer_end(c->timer);
}

void sk_mamba_out(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s, void *out,
                  double beta) {
  sk_timer_begin(c->timer, SK_T_MAMBA);
  sk_linear_forward(c, &m->out, out, beta, s->gated, t->n);
  sk_timer_end(c->timer);
}

/* ---- backward ---- */

static void gate_grad(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s,
                      const sk_mamba_flight *f) {
  sk_gate_dims d = gate_dims(m, t);
  size_t mark = sk_arena_mark(&c->scratch);
  if (m->shared_norm) {
    float *dots = sk_take_f32(&c->scratch, t->n * m->G);
    c->op->gate_grad_stats(c->st, &d, dots, f->dgated, s->y, s->proj, sk_weight(c, m->norm_w));
    d.whole = sum_groups(c, m, t, dots);
  }
  c->op->gate_grad(c->st, &d, f->dy, f->dproj, sk_grad(c, m->norm_w), f->dgated, s->y, s->proj,
                   sk_weight(c, m->norm_w), s->rstd);
  sk_arena_release(&c->scratch, mark);
}

/* Gradients of the states before the pieces, to all cp ranks. */
static void send_state_grads(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s,
                             sk_mamba_flight *f) {
  int64_t keeps = t->piece[0].b * m->nh;
  for (int i = 0; i < t->n_pieces; i++) {
    float *keep, *grad = sk_mamba_state_slot(c, m, t, f, i, &keep);
    sk_ssd_dims d = ssd_dims(m, &t->piece[i]);
    int64_t row = first_row(t, i);
    size_t mark = sk_arena_mark(&c->scratch);
    void *ws = sk_arena_take(&c->scratch, c->op->ssd_grad_ws(c->dev, c->act, &d));
    c->op->ssd_state_grad(c->st, &d, grad, sk_at(c, f->dy, row * m->ds), part_C(c, m, s->xBC, row),
                          s->dt + row * m->nh, sk_weight(c, m->A_log), t->piece[i].start, ws);
    sk_arena_release(&c->scratch, mark);
    c->op->copy(c->st, keep, s->keep + i * keeps, (size_t)keeps * sizeof(float));
  }
  sk_mamba_state_send(c, m, t, f);
}

/* dproj's columns behind in_proj's rows: proj's are zero. */
static void clear_padding(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s,
                          const sk_mamba_flight *f) {
  size_t size = sk_dtype_size(c->act), ld = (size_t)m->dip * size;
  int64_t from = m->in.out, more = m->dip - from;
  if (more > 0) c->op->copy2d(c->st, sk_at(c, f->dproj, from), ld, sk_at(c, s->proj, from), ld, (size_t)more * size, t->n);
}

void sk_mamba_back_begin(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                         sk_mamba_flight *f, const void *dout) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_MAMBA);
  *f = (sk_mamba_flight){.dproj = sk_take_act(c, sk_until_wgrad(c), t->n * m->dip)};
  if (c->act == SK_BF16) clear_padding(c, m, t, s, f);
  f->dgated = sk_take_act(c, &c->scratch, t->n * m->ds);
  f->dy = sk_take_act(c, &c->scratch, t->n * m->ds);
  if (c->recompute == SK_RECOMPUTE_SELECTIVE) {
    s->xBC = sk_take_act(c, &c->scratch, t->n * m->cd);
    s->gated = sk_take_act(c, sk_until_wgrad(c), t->n * m->ds);
    conv(c, m, t, s, NULL);
    gate(c, m, t, s);
  }
  sk_linear_backward(c, &m->out, f->dgated, 0, dout, s->gated, t->n);
  gate_grad(c, m, t, s, f);
  if (c->n_cp > 1) send_state_grads(c, m, t, s, f);
  sk_timer_end(c->timer);
}

static void ssd_grad(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s,
                     const sk_mamba_flight *f, void *dxBC, float *ddt, float *dSf) {
  for (int i = 0; i < t->n_pieces; i++) {
    sk_ssd_dims d = ssd_dims(m, &t->piece[i]);
    int64_t row = first_row(t, i);
    size_t mark = sk_arena_mark(&c->scratch);
    void *ws = sk_arena_take(&c->scratch, c->op->ssd_grad_ws(c->dev, c->act, &d));
    c->op->ssd_grad(c->st, &d, part_x(c, m, dxBC, row), part_B(c, m, dxBC, row), part_C(c, m, dxBC, row),
                    ddt + row * m->nh, sk_grad(c, m->A_log), sk_grad(c, m->D), NULL,
                    sk_at(c, f->dy, row * m->ds), part_x(c, m, s->xBC, row), part_B(c, m, s->xBC, row),
                    part_C(c, m, s->xBC, row), s->dt + row * m->nh, sk_weight(c, m->A_log),
                    sk_weight(c, m->D), t->piece[i].start, state_of(m, t, s->S0, i), state_of(m, t, dSf, i),
                    ws);
    sk_arena_release(&c->scratch, mark);
  }
}

void sk_mamba_back_core(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s,
                        sk_mamba_flight *f) {
  const int64_t b = t->piece[0].b;
  float *dSf = NULL;
  void *dhalo = NULL;
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_MAMBA);
  void *dxBC = sk_take_act(c, &c->scratch, t->n * m->cd);
  float *ddt = sk_take_f32(&c->scratch, t->n * m->nh);
  if (c->n_cp > 1) {
    dSf = sk_take_f32(&c->scratch, 2 * b * m->nh * m->P * m->N);
    dhalo = sk_take_act(c, &c->scratch, 2 * b * (m->K - 1) * m->cd);
    sk_mamba_state_take(c, m, t, f, dSf, true);
  }
  ssd_grad(c, m, t, s, f, dxBC, ddt, dSf);
  for (int i = 0; i < t->n_pieces; i++) {
    sk_conv_dims d = conv_dims(m, &t->piece[i]);
    int64_t row = first_row(t, i), raw = row * m->dip + m->ds;
    c->op->conv_grad(c->st, &d, sk_at(c, f->dproj, raw), halo_of(c, m, t, dhalo, i), sk_grad(c, m->conv_w),
                     sk_grad(c, m->conv_b), part_x(c, m, dxBC, row), sk_at(c, s->proj, raw),
                     halo_of(c, m, t, s->halo, i), sk_weight(c, m->conv_w), sk_weight(c, m->conv_b),
                     t->piece[i].start);
  }
  int64_t r = m->ds + m->cd;
  c->op->dt_grad(c->st, sk_at(c, f->dproj, r), sk_grad(c, m->dt_bias), ddt, sk_at(c, s->proj, r), m->dip,
                 m->mult[4], sk_weight(c, m->dt_bias), m->dt_lo, m->dt_hi, t->n, m->nh);
  if (c->n_cp > 1) sk_mamba_dhalo_send(c, m, t, f, dhalo);
  sk_timer_end(c->timer);
}

void sk_mamba_back_end(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f, void *du,
                       double beta) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_MAMBA);
  if (c->n_cp > 1) sk_mamba_dhalo_take(c, m, t, f);
  sk_linear_dgrad(c, &m->in, du, beta, f->dproj, t->n);
  sk_timer_end(c->timer);
}

void sk_mamba_wgrad(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_flight *f,
                    const void *u) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_MAMBA);
  sk_linear_wgrad(c, &m->in, f->dproj, u, t->n);
  sk_linear_bias_grad(c, &m->in, f->dproj, t->n);
  sk_timer_end(c->timer);
}
