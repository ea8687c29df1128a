#include "src/overlap.h"
#include <string.h>

const char *const sk_exchange_name[SK_X_KINDS] = {
    [SK_X_TP_GATHER] = "tp gather",     [SK_X_TP_SCATTER] = "tp reduce-scatter", [SK_X_TP_SUM] = "tp sum",
    [SK_X_CP_GATHER] = "cp gather",     [SK_X_CP_SCATTER] = "cp reduce-scatter", [SK_X_DP_GRADS] = "dp gradients",
    [SK_X_DP_WEIGHTS] = "dp weights", [SK_X_PP] = "pp messages",
};

enum { NO_TICKET = -1 }; /* not noted */
typedef enum call_kind { GATHER, SCATTER, SUM, SEND, RECV, BRACKET, WAIT } call_kind;

/* One call, as it was made. */
typedef struct call {
  call_kind what;
  sk_exchange_kind kind;
  sk_group *group;
  sk_stream *st;
  void *dst, *ws;
  const void *src;
  size_t bytes;
  int64_t count;
  sk_dtype type;
  int peer, tag;
  bool begin;        /* of a bracket */
  int64_t of;        /* wait: the call waited for */
  sk_ticket *ticket; /* while it is repeated */
} call;

/* What the engine's tickets are here. */
typedef struct note {
  struct note *next;
  sk_ticket *base;
  sk_exchange_kind kind;
  int64_t call; /* or NO_TICKET */
} note;

typedef struct stall {
  sk_exchange_kind kind;
  sk_event *from, *to;
} stall;

/* The tables' functions have no argument for it. */
static struct {
  sk_engine *engine;
  const sk_comm_ops *comm, *pipe;
  sk_timer timer, *before; /* where a call comes from; the engine's own timer */
  bool now, on;
  note *pool, *held; /* held: of the bracket that is open */
  call *at;
  int64_t n, cap;
  stall *stall;
  int n_stalls, made, cap_stalls;
} w;

/* ---- groups, kinds, notes ---- */

static bool is_pipe(const sk_group *g) { return w.engine->pp && g == w.engine->pp; }
static const sk_comm_ops *table_of(const sk_group *g) { return is_pipe(g) ? w.pipe : w.comm; }

static sk_exchange_kind kind_of(const sk_group *g, call_kind what) {
  const sk_ctx *c = &w.engine->ctx;
  if (is_pipe(g)) return SK_X_PP;
  if (c->tp && g == c->tp) return what == GATHER ? SK_X_TP_GATHER : what == SCATTER ? SK_X_TP_SCATTER : SK_X_TP_SUM;
  if (c->cp && g == c->cp) return what == GATHER ? SK_X_CP_GATHER : SK_X_CP_SCATTER;
  return w.engine->ctx.timer && w.engine->ctx.timer->stack[w.engine->ctx.timer->depth] == SK_T_GATHER ? SK_X_DP_WEIGHTS
                                                                                                      : SK_X_DP_GRADS;
}

static int64_t remember(call c) {
  if (!w.on) return NO_TICKET;
  if (w.n == w.cap) w.at = sk_realloc(w.at, (size_t)(w.cap = 2 * w.cap + 256) * sizeof *w.at);
  w.at[w.n] = c;
  return w.n++;
}

static void base_wait(sk_group *g, sk_stream *st, sk_ticket *base, sk_exchange_kind kind, int64_t of) {
  const sk_ops *op = w.engine->ctx.op;
  if (!w.on) {
    table_of(g)->wait(g, st, base);
    return;
  }
  if (w.n_stalls == w.cap_stalls)
    w.stall = sk_realloc(w.stall, (size_t)(w.cap_stalls = 2 * w.cap_stalls + 256) * sizeof *w.stall);
  stall *s = &w.stall[w.n_stalls];
  if (w.n_stalls == w.made) {
    s->from = op->event_create(w.engine->ctx.dev);
    s->to = op->event_create(w.engine->ctx.dev);
    w.made++;
  }
  w.n_stalls++;
  s->kind = kind;
  op->record(s->from, st);
  table_of(g)->wait(g, st, base);
  op->record(s->to, st);
  remember((call){.what = WAIT, .kind = kind, .group = g, .st = st, .of = of});
}

static bool in_bracket;

/* The engine's ticket for `base`; NULL when it has been waited for. `now` does not hold for receives of the
 * pipeline, which are posted before their message exists. */
static sk_ticket *ticket(sk_group *g, sk_stream *st, sk_ticket *base, sk_exchange_kind kind, int64_t of, bool early) {
  if (!base) return NULL;
  bool now = w.now && !early;
  if (now && !in_bracket) {
    base_wait(g, st, base, kind, of);
    return NULL;
  }
  note *n = w.pool;
  if (n) w.pool = n->next;
  else n = sk_malloc(sizeof *n);
  *n = (note){.base = base, .kind = kind, .call = of};
  if (!now) return (sk_ticket *)(void *)n;
  n->next = w.held;
  w.held = n;
  return NULL;
}

static void drop(note *n) {
  n->next = w.pool;
  w.pool = n;
}

/* ---- the table ---- */

static sk_ticket *x_gather(sk_group *g, sk_stream *st, void *dst, const void *src, size_t bytes) {
  call c = {.what = GATHER, .kind = kind_of(g, GATHER), .group = g, .st = st, .dst = dst, .src = src, .bytes = bytes};
  int64_t i = remember(c);
  return ticket(g, st, w.comm->all_gather(g, st, dst, src, bytes), c.kind, i, false);
}

static sk_ticket *x_scatter(sk_group *g, sk_stream *st, void *dst, const void *src, int64_t count, sk_dtype t, void *ws) {
  call c = {.what = SCATTER, .kind = kind_of(g, SCATTER), .group = g, .st = st, .dst = dst, .src = src, .count = count,
            .type = t, .ws = ws};
  int64_t i = remember(c);
  return ticket(g, st, w.comm->reduce_scatter(g, st, dst, src, count, t, ws), c.kind, i, false);
}

static sk_ticket *x_sum(sk_group *g, sk_stream *st, void *x, int64_t count, sk_dtype t, void *ws) {
  call c = {.what = SUM, .kind = kind_of(g, SUM), .group = g, .st = st, .dst = x, .count = count, .type = t, .ws = ws};
  int64_t i = remember(c);
  return ticket(g, st, w.comm->all_reduce(g, st, x, count, t, ws), c.kind, i, false);
}

static sk_ticket *x_send(sk_group *g, sk_stream *st, const void *src, size_t bytes, int to, int tag) {
  call c = {.what = SEND, .kind = kind_of(g, SEND), .group = g, .st = st, .src = src, .bytes = bytes, .peer = to, .tag = tag};
  int64_t i = remember(c);
  return ticket(g, st, table_of(g)->send(g, st, src, bytes, to, tag), c.kind, i, false);
}

static sk_ticket *x_recv(sk_group *g, sk_stream *st, void *dst, size_t bytes, int from, int tag) {
  call c = {.what = RECV, .kind = kind_of(g, RECV), .group = g, .st = st, .dst = dst, .bytes = bytes, .peer = from, .tag = tag};
  int64_t i = remember(c);
  return ticket(g, st, table_of(g)->recv(g, st, dst, bytes, from, tag), c.kind, i, is_pipe(g));
}

static void x_together(sk_group *g, sk_stream *st, bool begin) {
  remember((call){.what = BRACKET, .kind = kind_of(g, BRACKET), .group = g, .st = st, .begin = begin});
  table_of(g)->together(g, st, begin);
  in_bracket = begin;
  while (!begin && w.held) {
    note *n = w.held;
    w.held = n->next;
    base_wait(g, st, n->base, n->kind, n->call);
    drop(n);
  }
}

static void x_wait(sk_group *g, sk_stream *st, sk_ticket *t) {
  note *n = (note *)(void *)t;
  if (!n) return;
  base_wait(g, st, n->base, n->kind, n->call);
  drop(n);
}

static size_t x_scatter_ws(int ranks, int64_t count, sk_dtype t) { return w.comm->scatter_ws(ranks, count, t); }
static size_t x_reduce_ws(int ranks, int64_t count, sk_dtype t) { return w.comm->reduce_ws(ranks, count, t); }

static const sk_comm_ops table = {
    .name = "overlap",
    .all_gather = x_gather,
    .scatter_ws = x_scatter_ws,
    .reduce_scatter = x_scatter,
    .reduce_ws = x_reduce_ws,
    .all_reduce = x_sum,
    .together = x_together,
    .send = x_send,
    .recv = x_recv,
    .wait = x_wait,
};

/* ---- opening, measuring ---- */

void sk_overlap_open(sk_engine *g, bool now) {
  SK_CHECK(!w.engine, "the exchanges of two engines at once");
  w.engine = g;
  w.now = now;
  w.comm = g->ctx.comm;
  w.pipe = g->pipe;
  sk_optim_need(&g->opt, &g->ctx, -1); /* tickets of the engine's own tables */
  g->ctx.comm = g->opt.comm = g->pipe = &table;
}

void sk_overlap_close(void) {
  sk_engine *g = w.engine;
  const sk_ops *op = g->ctx.op;
  sk_optim_need(&g->opt, &g->ctx, -1);
  g->ctx.comm = g->opt.comm = w.comm;
  g->pipe = w.pipe;
  for (int i = 0; i < w.made; i++) {
    op->event_destroy(w.stall[i].from);
    op->event_destroy(w.stall[i].to);
  }
  for (note *n = w.pool, *next; n; n = next) {
    next = n->next;
    sk_free(n);
  }
  sk_free(w.stall);
  sk_free(w.at);
  memset(&w, 0, sizeof w);
}

void sk_overlap_begin(void) { /* the last step's weights may still be on their way: waits for them count */
  w.on = true;
  w.n = w.n_stalls = 0;
  w.before = w.engine->ctx.timer;
  sk_timer_start(&w.timer);
  w.engine->ctx.timer = &w.timer;
}

void sk_overlap_end(sk_exchange_cost cost[SK_X_KINDS]) {
  sk_ctx *c = &w.engine->ctx;
  w.on = false;
  c->timer = w.before;
  sk_optim_need(&w.engine->opt, c, -1);
  c->op->sync(c->st);
  memset(cost, 0, SK_X_KINDS * sizeof *cost);
  for (int i = 0; i < w.n_stalls; i++) cost[w.stall[i].kind].waited += c->op->elapsed(w.stall[i].from, w.stall[i].to);
  for (int64_t i = 0; i < w.n; i++)
    cost[w.at[i].kind].calls += w.at[i].what != WAIT && w.at[i].what != BRACKET && w.at[i].what != RECV;
}

static void repeat(call *c) {
  const sk_comm_ops *t = table_of(c->group);
  switch (c->what) {
    case GATHER: c->ticket = t->all_gather(c->group, c->st, c->dst, c->src, c->bytes); break;
    case SCATTER: c->ticket = t->reduce_scatter(c->group, c->st, c->dst, c->src, c->count, c->type, c->ws); break;
    case SUM: c->ticket = t->all_reduce(c->group, c->st, c->dst, c->count, c->type, c->ws); break;
    case SEND: c->ticket = t->send(c->group, c->st, c->src, c->bytes, c->peer, c->tag); break;
    case RECV: c->ticket = t->recv(c->group, c->st, c->dst, c->bytes, c->peer, c->tag); break;
    case BRACKET: t->together(c->group, c->st, c->begin); break;
    case WAIT:
      if (c->of == NO_TICKET) break; /* of the step before */
      t->wait(c->group, c->st, w.at[c->of].ticket);
      w.at[c->of].ticket = NULL;
      break;
  }
}

/* What the next step would have waited for. */
static void finish(call *c) {
  if (!c->ticket) return;
  table_of(c->group)->wait(c->group, c->st, c->ticket);
  c->ticket = NULL;
}

static void sync_all(const sk_ctx *c) {
  c->op->sync(c->st);
  if (c->branch && c->branch->st) c->op->sync(c->branch->st);
}

double sk_overlap_alone(sk_exchange_kind kind) {
  const sk_ctx *c = &w.engine->ctx;
  double best = 0;
  for (int k = 0; k < 3; k++) {
    double seconds;
    bool any = false;
    sync_all(c);
    SK_MPI(MPI_Barrier(w.engine->grid->world));
    double begin = sk_now();
    for (int64_t i = 0; i < w.n; i++) {
      if (w.at[i].kind != kind) continue;
      repeat(&w.at[i]);
      any = true;
    }
    for (int64_t i = 0; i < w.n; i++) finish(&w.at[i]);
    sync_all(c);
    seconds = any ? sk_now() - begin : 0;
    SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, w.engine->grid->world));
    if (k == 0 || seconds < best) best = seconds;
  }
  return best;
}
