#include "src/shard.h"

sk_gathering sk_gather_begin(sk_ctx *c, sk_arena *a, const void *local, const sk_tokens_here *t, int64_t d) {
  if (c->n_tp == 1) return (sk_gathering){.local = local, .full = (void *)(uintptr_t)local, .n = t->n, .over = true};
  sk_gathering g = {.local = local, .full = sk_take_act(c, a, t->n * d), .first = c->tp_rank * t->n_local,
                    .own = t->n_local, .n = t->n};
  size_t bytes = (size_t)(t->n_local * d) * sk_dtype_size(c->act);
  sk_timer_begin(c->timer, SK_T_TP);
  g.ticket = c->comm->all_gather(c->tp, c->st, g.full, local, bytes);
  sk_timer_end(c->timer);
  return g;
}

void *sk_gather_end(sk_ctx *c, sk_gathering *g) {
  if (g->over) return g->full;
  sk_timer_begin(c->timer, SK_T_TP);
  c->comm->wait(c->tp, c->st, g->ticket);
  sk_timer_end(c->timer);
  g->ticket = NULL;
  g->over = true;
  return g->full;
}

void *sk_partial(sk_ctx *c, void *local, const sk_tokens_here *t, int64_t d) {
  return c->n_tp == 1 ? local : sk_take_act(c, &c->scratch, t->n * d);
}

sk_scattering sk_scatter_begin(sk_ctx *c, void *local, const void *partial, const sk_tokens_here *t, int64_t d) {
  if (c->n_tp == 1) return (sk_scattering){0};
  int64_t count = t->n_local * d;
  void *ws = sk_arena_take(&c->scratch, c->comm->scatter_ws(c->n_tp, count, c->act));
  sk_timer_begin(c->timer, SK_T_TP);
  sk_scattering s = {c->comm->reduce_scatter(c->tp, c->st, local, partial, count, c->act, ws)};
  sk_timer_end(c->timer);
  return s;
}

void sk_scatter_end(sk_ctx *c, sk_scattering *s) {
  if (c->n_tp == 1) return;
  sk_timer_begin(c->timer, SK_T_TP);
  c->comm->wait(c->tp, c->st, s->ticket);
  sk_timer_end(c->timer);
  s->ticket = NULL;
}

void sk_scatter(sk_ctx *c, void *local, const void *partial, const sk_tokens_here *t, int64_t d) {
  size_t mark = sk_arena_mark(&c->scratch);
  sk_scattering s = sk_scatter_begin(c, local, partial, t, d);
  sk_scatter_end(c, &s);
  sk_arena_release(&c->scratch, mark);
}
