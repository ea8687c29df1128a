#include "src/mamba.h"
#include <math.h>
#include <stdio.h>

static int add(sk_registry *r, int64_t layer, const char *name, int rank, const int64_t *dim,
               sk_init init, bool decay) {
  char full[96];
  snprintf(full, sizeof full, "model.layers.%lld.mamba.%s", (long long)layer, name);
  return sk_param_add(r, full, rank, dim, init, decay, false);
}

void sk_mamba_add(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_mamba *s) {
  *s = (sk_mamba){.ds = m->mamba_d_ssm, .nh = m->mamba_n_heads, .P = m->mamba_d_head,
                  .G = m->mamba_n_groups, .N = m->mamba_d_state, .K = m->mamba_d_conv,
                  .Q = m->mamba_chunk_size, .norm = m->mamba_rms_norm,
                  .before = m->mamba_norm_before_gate, .eps = m->rms_norm_eps,
                  .dt_lo = m->time_step_limit[0], .dt_hi = m->time_step_limit[1]};
  for (int i = 0; i < 5; i++) s->mult[i] = m->ssm_multipliers[i];
  s->cd = s->ds + 2 * s->G * s->N;
  s->dip = s->ds + s->cd + s->nh;
  const sk_linear_part in = {"mamba.in_proj", s->dip}, out = {"mamba.out_proj", m->hidden_size};
  s->in = sk_linear_add(r, layer, &in, 1, m->hidden_size, m->mamba_proj_bias, m->ssm_in_multiplier, 1);
  s->conv_w = add(r, layer, "conv1d.weight", 3, (int64_t[]){s->cd, 1, s->K}, SK_INIT_UNIFORM, true);
  s->conv_b = -1;
  if (m->mamba_conv_bias) s->conv_b = add(r, layer, "conv1d.bias", 1, &s->cd, SK_INIT_UNIFORM, false);
  for (int i = s->conv_w; i < r->n; i++) r->p[i].scale = 1 / sqrt((double)s->K);
  s->dt_bias = add(r, layer, "dt_bias", 1, &s->nh, SK_INIT_DT_BIAS, false);
  s->A_log = add(r, layer, "A_log", 1, &s->nh, SK_INIT_A_LOG, false);
  s->D = add(r, layer, "D", 1, &s->nh, SK_INIT_ONE, false);
  s->norm_w = s->norm ? add(r, layer, "norm.weight", 1, &s->ds, SK_INIT_ONE, false) : -1;
  s->out = sk_linear_add(r, layer, &out, 1, s->ds, m->projectors_bias, m->ssm_out_multiplier,
                         m->ssm_out_multiplier);
}

static sk_conv_dims conv_dims(const sk_mamba *m, const sk_piece *p) {
  return (sk_conv_dims){.b = p->b, .T = p->T, .K = m->K, .width = {m->ds, m->G * m->N, m->G * m->N},
                        .mult = {m->mult[1], m->mult[2], m->mult[3]}, .ldx = m->dip, .ldy = m->cd};
}

static sk_ssd_dims ssd_dims(const sk_mamba *m, const sk_piece *p) {
  return (sk_ssd_dims){.b = p->b, .T = p->T, .nh = m->nh, .P = m->P, .G = m->G, .N = m->N, .Q = m->Q,
                       .ld = m->cd, .ldy = m->ds};
}

static sk_gate_dims gate_dims(const sk_mamba *m, const sk_piece *p) {
  return (sk_gate_dims){.n = p->b * p->T, .ds = m->ds, .G = m->G, .ldz = m->dip, .zmult = m->mult[0],
                        .eps = m->eps, .norm = m->norm, .before = m->before};
}

/* The last K-1 raw rows for the next piece. In place: every row moves towards the front. */
static void advance_halo(const sk_ctx *c, const sk_mamba *m, const sk_piece *p, void *halo,
                         const void *proj) {
  int64_t keep = m->K - 1;
  for (int64_t j = 0; j < keep; j++) {
    int64_t t = p->T - keep + j; /* the row's token in this piece; negative: still in the halo */
    const void *from = t >= 0 ? sk_at(c, proj, t * m->dip + m->ds) : sk_at(c, halo, (t + keep) * m->cd);
    c->op->copy(c->st, sk_at(c, halo, j * m->cd), from, (size_t)m->cd * sk_dtype_size(c->act));
  }
}

void sk_mamba_forward(sk_ctx *c, const sk_mamba *m, const sk_piece *p, sk_mamba_saved *s, void *out,
                      double beta, const void *u, sk_mamba_cache *cache) {
  int64_t n = p->b * p->T, gn = m->G * m->N;
  sk_conv_dims cv = conv_dims(m, p);
  sk_ssd_dims sd = ssd_dims(m, p);
  sk_gate_dims gd = gate_dims(m, p);
  sk_timer_begin(c->timer, SK_T_MAMBA);
  s->proj = sk_take_act(c, &c->saved, n * m->dip);
  s->xBC = sk_take_act(c, &c->saved, n * m->cd);
  s->dt = sk_take_f32(&c->saved, n * m->nh);
  s->y = sk_take_act(c, &c->saved, n * m->ds);
  s->gated = sk_take_act(c, &c->saved, n * m->ds);
  s->rstd = sk_take_f32(&c->saved, n * m->G);
  size_t mark = sk_arena_mark(&c->scratch);
  void *ws = sk_arena_take(&c->scratch, c->op->ssd_ws(c->act, &sd));

  sk_linear_forward(c, &m->in, s->proj, 0, u, n);
  const void *raw = sk_at(c, s->proj, m->ds), *r = sk_at(c, s->proj, m->ds + m->cd);
  c->op->conv(c->st, &cv, s->xBC, raw, cache ? cache->halo : NULL, sk_weight(c, m->conv_w),
              sk_weight(c, m->conv_b), p->start);
  if (cache) advance_halo(c, m, p, cache->halo, s->proj);
  c->op->dt(c->st, s->dt, r, m->dip, m->mult[4], sk_weight(c, m->dt_bias), m->dt_lo, m->dt_hi, n, m->nh);
  c->op->ssd(c->st, &sd, s->y, cache ? cache->state[1] : NULL, s->xBC, sk_at(c, s->xBC, m->ds),
             sk_at(c, s->xBC, m->ds + gn), s->dt, sk_weight(c, m->A_log), sk_weight(c, m->D), p->start,
             cache ? cache->state[0] : NULL, ws);
  if (cache) {
    float *old = cache->state[0];
    cache->state[0] = cache->state[1];
    cache->state[1] = old;
  }
  c->op->gate(c->st, &gd, s->gated, s->rstd, s->y, s->proj, sk_weight(c, m->norm_w));
  sk_linear_forward(c, &m->out, out, beta, s->gated, n);
  sk_timer_end(c->timer);
  sk_arena_release(&c->scratch, mark);
}

void sk_mamba_backward(sk_ctx *c, const sk_mamba *m, const sk_piece *p, const sk_mamba_saved *s, void *du,
                       double beta, const void *dout, const void *u) {
  int64_t n = p->b * p->T, gn = m->G * m->N;
  sk_conv_dims cv = conv_dims(m, p);
  sk_ssd_dims sd = ssd_dims(m, p);
  sk_gate_dims gd = gate_dims(m, p);
  size_t mark = sk_arena_mark(&c->scratch);
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_MAMBA);
  void *dproj = sk_take_act(c, &c->scratch, n * m->dip), *dxBC = sk_take_act(c, &c->scratch, n * m->cd);
  void *dgated = sk_take_act(c, &c->scratch, n * m->ds), *dy = sk_take_act(c, &c->scratch, n * m->ds);
  float *ddt = sk_take_f32(&c->scratch, n * m->nh);
  void *ws = sk_arena_take(&c->scratch, c->op->ssd_grad_ws(c->act, &sd));
  const void *raw = sk_at(c, s->proj, m->ds), *r = sk_at(c, s->proj, m->ds + m->cd);

  sk_linear_backward(c, &m->out, dgated, 0, dout, s->gated, n);
  c->op->gate_grad(c->st, &gd, dy, dproj, sk_grad(c, m->norm_w), dgated, s->y, s->proj,
                   sk_weight(c, m->norm_w), s->rstd);
  c->op->ssd_grad(c->st, &sd, dxBC, sk_at(c, dxBC, m->ds), sk_at(c, dxBC, m->ds + gn), ddt,
                  sk_grad(c, m->A_log), sk_grad(c, m->D), NULL, dy, s->xBC, sk_at(c, s->xBC, m->ds),
                  sk_at(c, s->xBC, m->ds + gn), s->dt, sk_weight(c, m->A_log), sk_weight(c, m->D),
                  p->start, NULL, NULL, ws);
  c->op->conv_grad(c->st, &cv, sk_at(c, dproj, m->ds), NULL, sk_grad(c, m->conv_w),
                   sk_grad(c, m->conv_b), dxBC, raw, NULL, sk_weight(c, m->conv_w),
                   sk_weight(c, m->conv_b), p->start);
  c->op->dt_grad(c->st, sk_at(c, dproj, m->ds + m->cd), sk_grad(c, m->dt_bias), ddt, r, m->dip,
                 m->mult[4], sk_weight(c, m->dt_bias), m->dt_lo, m->dt_hi, n, m->nh);
  sk_linear_backward(c, &m->in, du, beta, dproj, u, n);
  sk_timer_end(c->timer);
  sk_arena_release(&c->scratch, mark);
}
