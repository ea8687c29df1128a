#include "src/attention.h"
#include <math.h>

void sk_attention_add(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_attention *a) {
  *a = (sk_attention){.H = m->num_attention_heads, .KV = m->num_key_value_heads, .hd = m->head_dim};
  a->key = m->key_multiplier;
  const sk_linear_part qkv[] = {{"self_attn.q_proj", a->H * a->hd},
                                {"self_attn.k_proj", a->KV * a->hd},
                                {"self_attn.v_proj", a->KV * a->hd}};
  const sk_linear_part o = {"self_attn.o_proj", m->hidden_size};
  a->qkv = sk_linear_add(r, layer, qkv, 3, m->hidden_size, m->attention_bias,
                         m->attention_in_multiplier, 1);
  a->o = sk_linear_add(r, layer, &o, 1, a->H * a->hd, m->attention_bias, m->attention_out_multiplier,
                       m->attention_out_multiplier);
}

static sk_attn_dims dims(const sk_attention *a, const sk_piece *p, bool cached) {
  int64_t ld = a->qkv.out, ldk = cached ? 2 * a->KV * a->hd : ld;
  return (sk_attn_dims){.b = p->b, .Tq = p->T, .Tk = cached ? p->pos + p->T : p->T,
                        .q0 = cached ? p->pos : 0, .H = a->H, .KV = a->KV, .hd = a->hd,
                        .ldq = ld, .ldk = ldk, .ldv = ldk, .ldo = a->H * a->hd,
                        .scale = 1 / sqrt((double)a->hd)};
}

/* Rotates q and k in place; the keys' multiplier goes with it (either order is the same). */
static void rotate(const sk_ctx *c, const sk_attention *a, const sk_piece *p, void *qkv, int sign) {
  const float *table = a->rope + p->pos * a->hd;
  c->op->rope(c->st, qkv, a->qkv.out, table, 1.0, sign, p->b, p->T, a->H, a->hd);
  c->op->rope(c->st, sk_at(c, qkv, a->H * a->hd), a->qkv.out, table, a->key, sign, p->b, p->T, a->KV,
              a->hd);
}

void sk_attention_forward(sk_ctx *c, const sk_attention *a, const sk_piece *p, sk_attention_saved *s,
                          void *out, double beta, const void *u, sk_attention_cache *cache) {
  int64_t n = p->b * p->T, q = a->H * a->hd, kv = a->KV * a->hd;
  sk_timer_begin(c->timer, SK_T_ATTENTION);
  s->qkv = sk_take_act(c, &c->saved, n * a->qkv.out);
  s->o = sk_take_act(c, &c->saved, n * q);
  s->lse = sk_take_f32(&c->saved, n * a->H);
  sk_linear_forward(c, &a->qkv, s->qkv, 0, u, n);
  rotate(c, a, p, s->qkv, 1);
  const void *k = sk_at(c, s->qkv, q), *v = sk_at(c, s->qkv, q + kv);
  if (cache) {
    size_t row = (size_t)(2 * kv) * sk_dtype_size(c->act);
    for (int64_t t = 0; t < p->T; t++)
      c->op->copy(c->st, sk_at(c, cache->kv, (p->pos + t) * 2 * kv),
                  sk_at(c, s->qkv, t * a->qkv.out + q), row);
    k = cache->kv;
    v = sk_at(c, cache->kv, kv);
  }
  sk_attn_dims d = dims(a, p, cache != NULL);
  c->op->attention(c->st, &d, s->o, s->lse, s->qkv, k, v, p->key_start);
  sk_linear_forward(c, &a->o, out, beta, s->o, n);
  sk_timer_end(c->timer);
}

void sk_attention_backward(sk_ctx *c, const sk_attention *a, const sk_piece *p,
                           const sk_attention_saved *s, void *du, double beta, const void *dout,
                           const void *u) {
  int64_t n = p->b * p->T, q = a->H * a->hd, kv = a->KV * a->hd;
  sk_attn_dims d = dims(a, p, false);
  size_t mark = sk_arena_mark(&c->scratch);
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_ATTENTION);
  void *dqkv = sk_take_act(c, &c->scratch, n * a->qkv.out), *do_ = sk_take_act(c, &c->scratch, n * q);
  void *ws = sk_arena_take(&c->scratch, c->op->attention_ws(c->act, &d));
  sk_linear_backward(c, &a->o, do_, 0, dout, s->o, n);
  c->op->attention_grad(c->st, &d, dqkv, sk_at(c, dqkv, q), sk_at(c, dqkv, q + kv), do_, s->qkv,
                        sk_at(c, s->qkv, q), sk_at(c, s->qkv, q + kv), s->o, s->lse, p->key_start, ws);
  rotate(c, a, p, dqkv, -1);
  sk_linear_backward(c, &a->qkv, du, beta, dqkv, u, n);
  sk_timer_end(c->timer);
  sk_arena_release(&c->scratch, mark);
}
