/* pipeline.c: one step's gradients, as the schedule's table says (schedule.h has the contract), and the forward
 * passes of an evaluation. Messages are the residual stream [n_local,d] of one micro-batch and its gradient; a rank
 * talks to those with the same dp, cp and tp coordinates in the stages before and after. */
#include "src/engine.h"

enum { TAG_TIED = 1 << 19, TAG_EVAL };

static size_t message_bytes(const sk_engine *g, const sk_slot *s) {
  return (size_t)(s->t.n_local * g->cfg->model.hidden_size) * sk_dtype_size(g->ctx.act);
}

/* ---- rings ---- */

static void post(sk_engine *g, const sk_action *a, size_t bytes) {
  sk_ring *r = &g->ring[a->msg];
  int i = (int)(r->posted++ % r->n_recv);
  r->receiving[i] = g->pipe->recv(g->pp, g->ctx.st, r->recv[i], bytes, a->peer, a->tag);
}

static void *received(sk_engine *g, int msg) {
  sk_ring *r = &g->ring[msg];
  int i = (int)(r->received++ % r->n_recv);
  sk_timer_begin(g->ctx.timer, SK_T_PP);
  g->pipe->wait(g->pp, g->ctx.st, r->receiving[i]);
  sk_timer_end(g->ctx.timer);
  r->receiving[i] = NULL;
  return r->recv[i];
}

/* The next send buffer, once the send that used it is over. */
static void *to_send(sk_engine *g, int msg) {
  sk_ring *r = &g->ring[msg];
  int i = (int)(r->sent % r->n_send);
  sk_timer_begin(g->ctx.timer, SK_T_PP);
  g->pipe->wait(g->pp, g->ctx.st, r->sending[i]);
  sk_timer_end(g->ctx.timer);
  r->sending[i] = NULL;
  return r->send[i];
}

static void send(sk_engine *g, const sk_action *a, size_t bytes) {
  sk_ring *r = &g->ring[a->msg];
  int i = (int)(r->sent++ % r->n_send);
  r->sending[i] = g->pipe->send(g->pp, g->ctx.st, r->send[i], bytes, a->peer, a->tag);
}

static void finish_sends(sk_engine *g) {
  for (int k = 0; k < SK_NMSGS; k++) {
    sk_ring *r = &g->ring[k];
    for (int i = 0; i < r->n_send; i++) {
      g->pipe->wait(g->pp, g->ctx.st, r->sending[i]);
      r->sending[i] = NULL;
    }
    r->posted = r->received = r->sent = 0;
  }
}

/* ---- one step ---- */

typedef struct step {
  sk_engine *g;
  const int32_t *ids, *label, *start;
  double scale;
} step;

static sk_slot *slot_of(const sk_engine *g, const sk_action *a) {
  return &g->slot[g->slot0[a->chunk] + a->micro % g->plan.live_of[a->chunk]];
}

static void forward(const step *t, const sk_action *a) {
  sk_engine *g = t->g;
  sk_ctx *c = &g->ctx;
  sk_slot *s = slot_of(g, a);
  sk_tokens_here here = sk_engine_tokens(g, g->b);
  int64_t at = a->micro * g->b * g->T;
  sk_slot_begin(&g->model, c, s, &here, true);
  sk_engine_load(g, s, g->b, t->ids + at, t->label + at, t->start + at);
  if (a->in) c->op->copy(c->st, s->in, received(g, SK_MSG_X), message_bytes(g, s));
  sk_chunk_forward(&g->model, c, s, t->scale, g->loss, &g->redo);
  if (a->out) c->op->copy(c->st, to_send(g, SK_MSG_X), s->out, message_bytes(g, s));
}

/* The tied matrix gets its other half before it is given. */
static void give(void *arg, int bucket) {
  sk_engine *g = arg;
  bool tied = g->cfg->model.tie_word_embeddings;
  bool holds = bucket == g->model.embed_bucket || (bucket == g->model.tail_bucket && g->model.embed_bucket < 0);
  if (!(tied && holds)) sk_optim_give(&g->opt, &g->ctx, bucket);
}

static void backward(const step *t, const sk_action *a) {
  sk_engine *g = t->g;
  sk_ctx *c = &g->ctx;
  sk_slot *s = slot_of(g, a);
  bool queue = g->plan.kind == SK_SCHED_ZB_H1, last = a->micro == g->plan.micro - 1;
  if (a->in) c->op->copy(c->st, s->dh, received(g, SK_MSG_DX), message_bytes(g, s));
  sk_chunk_backward(&g->model, c, s, queue, &g->redo, last && !queue ? give : NULL, g);
  if (a->out) c->op->copy(c->st, to_send(g, SK_MSG_DX), s->dh, message_bytes(g, s));
}

static void weights(const step *t, const sk_action *a) {
  sk_engine *g = t->g;
  sk_slot *s = slot_of(g, a);
  sk_timer_begin(g->ctx.timer, SK_T_BACKWARD + SK_T_MLP);
  sk_wgrad_drain(&g->ctx, &s->queue);
  sk_timer_end(g->ctx.timer);
  if (a->micro < g->plan.micro - 1) return;
  if (s->chunk->last) give(g, g->model.tail_bucket);
  for (int64_t i = s->chunk->layers - 1; i >= 0; i--)
    give(g, g->model.layer[s->chunk->layer0 + i].bucket);
  if (s->chunk->first) give(g, g->model.embed_bucket);
}

/* A tied matrix gets the sum of its two uses: embedding + head, on the first stage and on the last. */
static void finish_tied(sk_engine *g) {
  sk_ctx *c = &g->ctx;
  if (!g->model.tied_grad) return;
  const sk_param *p = &g->model.reg.p[g->model.embed];
  size_t bytes = (size_t)p->count * sizeof(float);
  bool first = g->model.embed_bucket >= 0;
  if (g->grid->n[SK_PP] > 1) {
    int other = first ? g->grid->n[SK_PP] - 1 : 0;
    sk_ticket *in = g->pipe->recv(g->pp, c->st, g->model.tied_grad, bytes, other, TAG_TIED);
    sk_ticket *out = g->pipe->send(g->pp, c->st, sk_grad(c, g->model.embed), bytes, other, TAG_TIED);
    sk_timer_begin(c->timer, SK_T_PP);
    g->pipe->wait(g->pp, c->st, in);
    g->pipe->wait(g->pp, c->st, out);
    sk_timer_end(c->timer);
  }
  float *mine = sk_grad(c, g->model.embed);
  c->op->add_f32(c->st, mine, mine, g->model.tied_grad, p->count);
  c->op->zero(c->st, g->model.tied_grad, bytes);
  sk_optim_give(&g->opt, c, first ? g->model.embed_bucket : g->model.tail_bucket);
}

void sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start,
                    double scale) {
  const step t = {g, ids, label, start, scale};
  sk_tokens_here here = sk_engine_tokens(g, g->b);
  size_t bytes = (size_t)(here.n_local * g->cfg->model.hidden_size) * sk_dtype_size(g->ctx.act);
  g->ctx.op->zero(g->ctx.st, g->ctx.grads, (size_t)g->ctx.reg->total * sizeof(float));
  for (int64_t i = 0; i < g->plan.n; i++) {
    const sk_action *a = &g->plan.at[i];
    switch (a->op) {
      case SK_DO_FORWARD: forward(&t, a); break;
      case SK_DO_BACKWARD: backward(&t, a); break;
      case SK_DO_WEIGHTS: weights(&t, a); break;
      case SK_DO_RECV: post(g, a, bytes); break;
      case SK_DO_SEND: send(g, a, bytes); break;
    }
  }
  finish_sends(g);
  finish_tied(g);
  sk_optim_reduced(&g->opt, &g->ctx);
}

/* ---- evaluation ---- */

/* One micro-batch through all chunks of this stage, in the model's order. */
static void eval_micro(sk_engine *g, int64_t b, const int32_t *ids, const int32_t *label, const int32_t *start,
                       sk_ticket **sending) {
  sk_ctx *c = &g->ctx;
  sk_tokens_here here = sk_engine_tokens(g, b);
  int stages = g->grid->n[SK_PP], stage = g->grid->at[SK_PP];
  for (int k = 0; k < g->model.n_chunks; k++) {
    sk_slot *s = &g->slot[g->slot0[k]];
    g->pipe->wait(g->pp, c->st, sending[k]);
    sending[k] = NULL;
    sk_slot_begin(&g->model, c, s, &here, false);
    sk_engine_load(g, s, b, ids, label, start);
    size_t bytes = message_bytes(g, s);
    if (s->in)
      g->pipe->wait(g->pp, c->st, g->pipe->recv(g->pp, c->st, s->in, bytes, (stage + stages - 1) % stages, TAG_EVAL));
    sk_chunk_forward(&g->model, c, s, 0, g->loss, &g->redo);
    if (s->out) sending[k] = g->pipe->send(g->pp, c->st, s->out, bytes, (stage + 1) % stages, TAG_EVAL);
  }
}

void sk_engine_eval(sk_engine *g, int64_t n, const int32_t *ids, const int32_t *label, const int32_t *start) {
  sk_ticket **sending = sk_calloc((size_t)g->model.n_chunks, sizeof *sending);
  for (int64_t k = 0; k < n; k += g->b) {
    int64_t b = n - k < g->b ? n - k : g->b, at = k * g->T;
    eval_micro(g, b, ids + at, label + at, start + at, sending);
  }
  for (int k = 0; k < g->model.n_chunks; k++)
    if (sending[k]) g->pipe->wait(g->pp, g->ctx.st, sending[k]);
  sk_free(sending);
}
