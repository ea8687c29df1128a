#include "src/attention.h"
#include "src/segment.h"
#include <math.h>

/* The rank's query heads h0 .. h0+H-1, `per` for each kv head, in runs of whole kv heads and parts. */
static void find_spans(sk_attention *a, int64_t h0, int64_t per) {
  int64_t h = h0, end = h0 + a->H, kv0 = h0 / per;
  a->n_spans = 0;
  while (h < end) {
    sk_head_span *s = &a->span[a->n_spans++];
    int64_t next = h % per || end - h < per ? (h / per + 1) * per : end / per * per;
    if (next > end) next = end;
    *s = (sk_head_span){.head = h - h0, .heads = next - h, .kv = h / per - kv0,
                        .kvs = (next - 1) / per - h / per + 1};
    h = next;
    /* Two parts of the same size side by side are one uniform span. */
    if (a->n_spans < 2 || s[-1].heads * s->kvs != s->heads * s[-1].kvs) continue;
    s[-1].heads += s->heads;
    s[-1].kvs += s->kvs;
    a->n_spans--;
  }
}

void sk_attention_add(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_attention *a) {
  const int64_t H = m->num_attention_heads, KV = m->num_key_value_heads, hd = m->head_dim;
  const sk_segment q = {H, hd, H}, kv = {KV, hd, H};
  *a = (sk_attention){.hd = hd, .key = m->key_multiplier};
  int64_t h0 = sk_segment_units(&q, r->tp, r->tp_rank, &a->H);
  sk_segment_units(&kv, r->tp, r->tp_rank, &a->KV);
  find_spans(a, h0, H / KV);
  const sk_linear_part qkv[] = {{"self_attn.q_proj", H * hd, 0, 1, {q}},
                                {"self_attn.k_proj", KV * hd, 0, 1, {kv}},
                                {"self_attn.v_proj", KV * hd, 0, 1, {kv}}};
  const sk_linear_part o = {"self_attn.o_proj", m->hidden_size, 0, 1, {q}};
  a->qkv = sk_linear_add(r, layer, qkv, 3, m->hidden_size, false, m->attention_bias,
                         m->attention_in_multiplier, 1);
  a->o = sk_linear_add(r, layer, &o, 1, H * hd, true, m->attention_bias, m->attention_out_multiplier,
                       m->attention_out_multiplier);
}

/* Rotates q and k of a piece in place; the keys' multiplier goes with it (either order is the same). */
static void rotate(const sk_ctx *c, const sk_attention *a, const sk_tokens_here *t, void *qkv, int sign) {
  for (int i = 0; i < t->n_pieces; i++) {
    const sk_piece *p = &t->piece[i];
    const float *table = a->rope + p->pos * a->hd;
    void *q = sk_at(c, qkv, i * p->b * p->T * a->qkv.out);
    c->op->rope(c->st, q, a->qkv.out, table, 1.0, sign, p->b, p->T, a->H, a->hd);
    c->op->rope(c->st, sk_at(c, q, a->H * a->hd), a->qkv.out, table, a->key, sign, p->b, p->T, a->KV, a->hd);
  }
}

static void to_cache(sk_ctx *c, const sk_attention *a, const sk_piece *p, const void *qkv, sk_attention_cache *k,
                     sk_attention_flight *f) {
  int64_t w = 2 * a->KV * a->hd;
  size_t size = sk_dtype_size(c->act), row = (size_t)w * size;
  c->op->copy2d(c->st, sk_at(c, k->kv, p->pos * w), row, sk_at(c, qkv, a->H * a->hd),
                (size_t)a->qkv.out * size, row, p->T);
  f->k = k->kv;
  f->v = sk_at(c, k->kv, a->KV * a->hd);
  f->ldk = w;
  f->all = true;
}

/* Starts to gather k | v of all cp ranks. */
static void gather_begin(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t, const void *qkv,
                         sk_attention_flight *f) {
  int64_t w = 2 * a->KV * a->hd;
  size_t size = sk_dtype_size(c->act), row = (size_t)w * size, mine = (size_t)t->n * row;
  f->parts = sk_take_act(c, &c->scratch, c->n_cp * t->n * w);
  f->kv = sk_take_act(c, &c->scratch, c->n_cp * t->n * w);
  f->k = f->kv;
  f->v = sk_at(c, f->kv, a->KV * a->hd);
  f->ldk = w;
  f->all = true;
  char *here = (char *)f->parts + (size_t)c->cp_rank * mine;
  c->op->copy2d(c->st, here, row, sk_at(c, qkv, a->H * a->hd), (size_t)a->qkv.out * size, row, t->n);
  sk_timer_begin(c->timer, SK_T_CP);
  f->ticket = c->comm->all_gather(c->cp, c->st, f->parts, here, mine);
  sk_timer_end(c->timer);
}

static void gather_end(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t, sk_attention_flight *f) {
  if (c->n_cp == 1) return;
  sk_timer_begin(c->timer, SK_T_CP);
  c->comm->wait(c->cp, c->st, f->ticket);
  sk_timer_end(c->timer);
  sk_segments_join(c, f->kv, f->parts, t->piece[0].b, t->piece[0].T, 2 * a->KV * a->hd);
}

static void keys_here(const sk_ctx *c, const sk_attention *a, const void *qkv, sk_attention_flight *f) {
  f->k = sk_at(c, qkv, a->H * a->hd);
  f->v = sk_at(c, qkv, (a->H + a->KV) * a->hd);
  f->ldk = a->qkv.out;
}

void sk_attention_begin(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t, sk_attention_saved *s,
                        sk_attention_flight *f, sk_gathering *u, sk_attention_cache *cache) {
  sk_timer_begin(c->timer, SK_T_ATTENTION);
  *f = (sk_attention_flight){0};
  s->qkv = sk_take_act(c, c->saved, t->n * a->qkv.out);
  s->o = sk_take_act(c, c->saved, t->n * a->H * a->hd);
  s->lse = sk_take_f32(c->saved, t->n * a->H);
  sk_linear_forward_gathered(c, &a->qkv, s->qkv, u);
  sk_linear_bias(c, &a->qkv, s->qkv, t->n);
  rotate(c, a, t, s->qkv, 1);
  if (cache) to_cache(c, a, &t->piece[0], s->qkv, cache, f);
  else if (c->n_cp > 1) gather_begin(c, a, t, s->qkv, f);
  else keys_here(c, a, s->qkv, f);
  sk_timer_end(c->timer);
}

/* One span of heads of one piece. */
static sk_attn_dims dims(const sk_attention *a, const sk_tokens_here *t, const sk_piece *p,
                         const sk_head_span *s, const sk_attention_flight *f) {
  return (sk_attn_dims){.b = p->b, .Tq = p->T, .Tk = f->all ? t->length : p->T,
                        .q0 = f->all ? p->pos : 0,
                        .H = s->heads, .KV = s->kvs, .hd = a->hd, .ldq = a->qkv.out, .ldk = f->ldk,
                        .ldv = f->ldk,
                        .ldo = a->H * a->hd, .scale = 1 / sqrt((double)a->hd), .whole = p->whole};
}

void sk_attention_ready(const sk_ctx *c, const sk_attention *a, const sk_tokens_here *t) {
  sk_attention_flight f = {.ldk = c->n_cp > 1 ? 2 * a->KV * a->hd : a->qkv.out, .all = c->n_cp > 1};
  for (int i = 0; i < t->n_pieces; i++) {
    for (int k = 0; k < a->n_spans; k++) {
      sk_attn_dims d = dims(a, t, &t->piece[i], &a->span[k], &f);
      c->op->attention_ready(c->dev, &d);
    }
  }
}

void sk_attention_end(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t, sk_attention_saved *s,
                      sk_attention_flight *f, void *out, double beta) {
  sk_timer_begin(c->timer, SK_T_ATTENTION);
  if (f->parts) gather_end(c, a, t, f);
  for (int i = 0; i < t->n_pieces; i++) {
    const sk_piece *p = &t->piece[i];
    int64_t row = i * p->b * p->T;
    for (int k = 0; k < a->n_spans; k++) {
      const sk_head_span *h = &a->span[k];
      sk_attn_dims d = dims(a, t, p, h, f);
      c->op->attention(c->st, &d, sk_at(c, s->o, row * d.ldo + h->head * a->hd),
                       s->lse + row * a->H + p->b * p->T * h->head,
                       sk_at(c, s->qkv, row * d.ldq + h->head * a->hd), sk_at(c, f->k, h->kv * a->hd),
                       sk_at(c, f->v, h->kv * a->hd), p->key_start);
    }
  }
  sk_linear_forward(c, &a->o, out, beta, s->o, t->n);
  sk_timer_end(c->timer);
}

void sk_attention_back_begin(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                             const sk_attention_saved *s, sk_attention_flight *f) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_ATTENTION);
  *f = (sk_attention_flight){0};
  f->dqkv = sk_take_act(c, sk_until_wgrad(c), t->n * a->qkv.out);
  if (c->n_cp > 1) gather_begin(c, a, t, s->qkv, f);
  else keys_here(c, a, s->qkv, f);
  sk_timer_end(c->timer);
}

/* Gradients of one piece; dk, dv [keys] with the keys' strides. */
static void piece_grad(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t, int i,
                       const sk_attention_saved *s, const sk_attention_flight *f, const void *do_, void *dk,
                       void *dv) {
  const sk_piece *p = &t->piece[i];
  int64_t row = i * p->b * p->T;
  for (int k = 0; k < a->n_spans; k++) {
    const sk_head_span *h = &a->span[k];
    sk_attn_dims d = dims(a, t, p, h, f);
    size_t mark = sk_arena_mark(&c->scratch);
    void *ws = sk_arena_take(&c->scratch, c->op->attention_ws(c->dev, c->act, &d));
    int64_t q = row * d.ldq + h->head * a->hd, o = row * d.ldo + h->head * a->hd, kv = h->kv * a->hd;
    c->op->attention_grad(c->st, &d, sk_at(c, f->dqkv, q), sk_at(c, dk, kv), sk_at(c, dv, kv),
                          sk_at(c, do_, o), sk_at(c, s->qkv, q), sk_at(c, f->k, kv), sk_at(c, f->v, kv),
                          sk_at(c, s->o, o), s->lse + row * a->H + p->b * p->T * h->head, p->key_start, ws);
    sk_arena_release(&c->scratch, mark);
  }
}

/* Both pieces' gradients of all keys are added, then reduce-scattered over cp. */
static void exchange_begin(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                           const sk_attention_saved *s, sk_attention_flight *f, const void *do_) {
  int64_t kv = a->KV * a->hd, w = 2 * kv, all = c->n_cp * t->n * w;
  void *first = sk_take_act(c, &c->scratch, all), *second = sk_take_act(c, &c->scratch, all);
  piece_grad(c, a, t, 0, s, f, do_, first, sk_at(c, first, kv));
  piece_grad(c, a, t, 1, s, f, do_, second, sk_at(c, second, kv));
  c->op->add(c->st, first, first, second, all);
  f->dparts = second;
  f->dlocal = sk_take_act(c, &c->scratch, t->n * w);
  sk_segments_part(c, f->dparts, first, t->piece[0].b, t->piece[0].T, w);
  void *ws = sk_arena_take(&c->scratch, c->comm->scatter_ws(c->n_cp, t->n * w, c->act));
  sk_timer_begin(c->timer, SK_T_CP);
  f->ticket = c->comm->reduce_scatter(c->cp, c->st, f->dlocal, f->dparts, t->n * w, c->act, ws);
  sk_timer_end(c->timer);
}

void sk_attention_back_core(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                            const sk_attention_saved *s, sk_attention_flight *f, const void *dout) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_ATTENTION);
  if (f->parts) gather_end(c, a, t, f);
  int64_t q = a->H * a->hd, kv = a->KV * a->hd;
  void *do_ = sk_take_act(c, &c->scratch, t->n * q);
  sk_linear_backward(c, &a->o, do_, 0, dout, s->o, t->n);
  if (c->n_cp > 1) exchange_begin(c, a, t, s, f, do_);
  else piece_grad(c, a, t, 0, s, f, do_, sk_at(c, f->dqkv, q), sk_at(c, f->dqkv, q + kv));
  sk_timer_end(c->timer);
}

void sk_attention_back_end(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                           sk_attention_flight *f, void *du, double beta) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_ATTENTION);
  if (c->n_cp > 1) {
    size_t size = sk_dtype_size(c->act), row = (size_t)(2 * a->KV * a->hd) * size;
    sk_timer_begin(c->timer, SK_T_CP);
    c->comm->wait(c->cp, c->st, f->ticket);
    sk_timer_end(c->timer);
    c->op->copy2d(c->st, sk_at(c, f->dqkv, a->H * a->hd), (size_t)a->qkv.out * size, f->dlocal, row, row, t->n);
  }
  rotate(c, a, t, f->dqkv, -1);
  sk_linear_dgrad(c, &a->qkv, du, beta, f->dqkv, t->n);
  sk_timer_end(c->timer);
}

void sk_attention_wgrad(sk_ctx *c, const sk_attention *a, const sk_tokens_here *t,
                        const sk_attention_flight *f, const void *u) {
  sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_ATTENTION);
  sk_linear_wgrad(c, &a->qkv, f->dqkv, u, t->n);
  sk_linear_bias_grad(c, &a->qkv, f->dqkv, t->n);
  sk_timer_end(c->timer);
}
