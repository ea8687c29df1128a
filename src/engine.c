#include "src/engine.h"
#include "src/device.h"
#include "src/split.h"
#include <stdio.h>
#include <string.h>

const char *const sk_part_name[SK_PARTS] = {
    [SK_PART_WEIGHTS] = "weights",       [SK_PART_GRADS] = "gradients",
    [SK_PART_OPTIM] = "optimizer state", [SK_PART_TABLES] = "tables",
    [SK_PART_EXCHANGE] = "exchange",     [SK_PART_PIPE] = "pipeline",
    [SK_PART_BATCH] = "batch",           [SK_PART_SAVED] = "activations",
    [SK_PART_REDO] = "recomputation",    [SK_PART_SCRATCH] = "scratch",
};

/* ---- tokens ---- */

sk_tokens_here sk_engine_tokens(const sk_engine *g, int64_t b) {
  const sk_ctx *c = &g->ctx;
  int64_t parts = c->n_cp > 1 ? 2 * c->n_cp : 1, S = g->T / parts;
  sk_tokens_here t = {.n_pieces = c->n_cp > 1 ? 2 : 1, .length = g->T};
  for (int i = 0; i < t.n_pieces; i++) {
    int64_t segment = i ? 2 * c->n_cp - 1 - c->cp_rank : c->cp_rank;
    t.piece[i] = (sk_piece){.b = b, .T = S, .pos = segment * S};
    t.n += b * S;
  }
  t.n_local = t.n / c->n_tp;
  return t;
}

static int32_t *to_device(sk_engine *g, sk_slot *s, const int32_t *host) {
  size_t bytes = (size_t)s->t.n * sizeof *host;
  int32_t *dev = sk_arena_take(&s->saved, bytes);
  g->ctx.op->from_host(g->ctx.st, dev, host, bytes);
  return dev;
}

void sk_engine_load(sk_engine *g, sk_slot *s, int64_t b, const int32_t *ids, const int32_t *label,
                    const int32_t *start) {
  int64_t n = s->t.n, S = s->t.piece[0].T;
  int32_t *h[4] = {g->host, g->host + n, g->host + 2 * n, g->host + 3 * n};
  for (int i = 0; i < s->t.n_pieces; i++) {
    s->t.piece[i].whole = true;
    for (int64_t k = 0; k < b * S; k++) {
      int64_t pos = s->t.piece[i].pos, from = k / S * g->T + pos + k % S, to = i * b * S + k;
      h[0][to] = ids[from];
      h[1][to] = label[from];
      h[2][to] = start[from] - (int32_t)pos;
      h[3][to] = start[from];
      s->t.piece[i].whole &= start[from] == 0;
    }
  }
  s->ids = to_device(g, s, h[0]);
  s->label = to_device(g, s, h[1]);
  const int32_t *rel = to_device(g, s, h[2]), *key = g->ctx.n_cp > 1 ? to_device(g, s, h[3]) : rel;
  for (int i = 0; i < s->t.n_pieces; i++) {
    s->t.piece[i].start = rel + i * b * S;
    s->t.piece[i].key_start = key + i * b * S;
  }
}

/* ---- memory ---- */

/* Deals out all memory that lives as long as the engine. */
static void bind(sk_engine *g) {
  sk_ctx *c = &g->ctx;
  sk_arena *part = g->part;
  int64_t total = g->model.reg.total, message = sk_engine_tokens(g, g->b).n_local * g->cfg->model.hidden_size;
  c->weights = sk_take_act(c, &part[SK_PART_WEIGHTS], total);
  sk_model_bind(&g->model, c, &part[SK_PART_TABLES], g->train);
  g->loss = sk_arena_take(&part[SK_PART_BATCH], sizeof(double));
  c->op->zero(c->st, c->weights, (size_t)total * sk_dtype_size(c->act));
  c->op->zero(c->st, g->loss, sizeof(double));
  if (!g->train) return;
  c->grads = sk_take_f32(&part[SK_PART_GRADS], total);
  c->op->zero(c->st, c->grads, (size_t)total * sizeof(float));
  sk_optim_bind(&g->opt, c, c->comm, g->zero, &part[SK_PART_OPTIM], &part[SK_PART_EXCHANGE]);
  for (int k = 0; k < SK_NMSGS; k++) {
    sk_ring *r = &g->ring[k];
    for (int i = 0; i < r->n_recv; i++) r->recv[i] = sk_take_act(c, &part[SK_PART_PIPE], message);
    for (int i = 0; i < r->n_send; i++) r->send[i] = sk_take_act(c, &part[SK_PART_PIPE], message);
  }
}

/* Runs everything that training runs in one chunk, to find the arenas' peaks. */
static void rehearse(sk_engine *g, sk_slot *s) {
  sk_tokens_here t = sk_engine_tokens(g, g->b);
  sk_arena_plan(&s->saved, sk_part_name[SK_PART_SAVED]);
  sk_slot_begin(&g->model, &g->ctx, s, &t, g->train);
  for (int i = 0; i < (g->ctx.n_cp > 1 ? 4 : 3); i++) /* as sk_engine_load */
    sk_arena_take(&s->saved, (size_t)t.n * sizeof(int32_t));
  sk_chunk_forward(&g->model, &g->ctx, s, g->train ? 1 : 0, g->loss, &g->redo);
  if (g->train)
    sk_chunk_backward(&g->model, &g->ctx, s, g->plan.kind == SK_SCHED_ZB_H1, &g->redo, NULL, NULL);
}

/* For the target's device, NULL where none is open. slot[]: bytes for each slot. */
static int measure(sk_engine *g, const sk_ops *target, const sk_device *dev, sk_dtype act, size_t bytes[SK_PARTS],
                   size_t *slot, sk_err *e) {
  sk_ctx *c = &g->ctx;
  const sk_comm_ops *comm = c->comm;
  sk_comm_plan_for(comm);
  c->op = &sk_plan_ops;
  c->comm = &sk_comm_plan;
  c->dev = sk_plan_open(target, dev, act);
  if (!c->dev) return sk_fail(e, SK_FAILED, "cannot plan memory for device '%s'", target->name);
  c->st = c->op->stream_create(c->dev);
  for (int i = 0; i < SK_PART_SAVED; i++) sk_arena_plan(&g->part[i], sk_part_name[i]);
  sk_arena_plan(&g->redo, sk_part_name[SK_PART_REDO]);
  sk_arena_plan(&c->scratch, sk_part_name[SK_PART_SCRATCH]);
  sk_arena_plan(&g->branch.scratch, sk_part_name[SK_PART_SCRATCH]);
  c->branch = g->train && sk_device_branches(target) ? &g->branch : NULL;
  bind(g);
  bytes[SK_PART_SAVED] = 0;
  for (int i = 0; i < g->model.n_chunks; i++) {
    rehearse(g, &g->slot[g->slot0[i]]);
    for (int k = g->slot0[i]; k < g->slot0[i + 1]; k++) {
      slot[k] = g->slot[g->slot0[i]].saved.peak;
      bytes[SK_PART_SAVED] += slot[k];
    }
  }
  for (int i = 0; i < SK_PART_SAVED; i++) bytes[i] = g->part[i].peak;
  bytes[SK_PART_REDO] = g->redo.peak;
  bytes[SK_PART_SCRATCH] = c->scratch.peak + g->branch.scratch.peak;
  c->op->stream_destroy(c->st);
  c->op->close(c->dev);
  c->dev = NULL;
  c->st = NULL;
  c->comm = comm;
  return SK_OK;
}

/* ---- opening ---- */

/* The layers of this stage's chunks: part k * stages + stage of the whole cut. */
static void find_chunks(const sk_config *cfg, const sk_grid *grid, int n, sk_chunk *chunk) {
  int stages = grid->n[SK_PP], stage = grid->at[SK_PP], parts = stages * n;
  int64_t *first = sk_calloc((size_t)parts + 1, sizeof *first);
  sk_split_layers(cfg, parts, first);
  for (int k = 0; k < n; k++) {
    int p = k * stages + stage;
    chunk[k] = (sk_chunk){.layer0 = first[p], .layers = first[p + 1] - first[p], .first = p == 0,
                          .last = p == parts - 1};
  }
  sk_free(first);
}

static int check_groups(const sk_registry *all, const sk_config *cfg, sk_registry *mine, sk_err *e) {
  bool *hit = sk_calloc((size_t)cfg->optimizer.n_groups + 1, sizeof *hit);
  sk_registry_groups((sk_registry *)(uintptr_t)all, cfg, hit);
  sk_registry_groups(mine, cfg, NULL);
  for (int i = 0; i < cfg->optimizer.n_groups && !e->code; i++)
    if (!hit[i])
      sk_fail(e, SK_USAGE,
              "optimizer.groups[%d]: match \"%s\" matches no parameter; `saker train --dry-run` lists the names",
              i, cfg->optimizer.groups[i].match);
  sk_free(hit);
  return e->code;
}

static int create_schedule(sk_engine *g, sk_err *e) {
  const sk_config *c = g->cfg;
  int64_t micro = g->train ? c->train.global_batch / g->grid->n[SK_DP] / g->b : 1;
  int virtual_stages = g->train ? (int)c->parallel.virtual_stages : 1;
  int kind = g->train ? c->parallel.schedule : SK_SCHED_1F1B;
  if (sk_schedule_create(&g->plan, kind, g->grid->n[SK_PP], g->grid->at[SK_PP], micro, virtual_stages, e))
    return e->code;
  g->slot0 = sk_calloc((size_t)virtual_stages + 1, sizeof *g->slot0);
  for (int k = 0; k < virtual_stages; k++) g->slot0[k + 1] = g->slot0[k] + g->plan.live_of[k];
  g->n_slots = g->slot0[virtual_stages];
  for (int k = 0; k < SK_NMSGS; k++)
    g->ring[k] = (sk_ring){.n_recv = g->plan.recv_buffers[k], .n_send = g->plan.send_buffers[k]};
  return SK_OK;
}

static int create(sk_engine *g, const sk_config *cfg, const sk_grid *grid, int64_t positions, sk_err *e) {
  sk_ctx *c = &g->ctx;
  int parts = grid->n[SK_DP] * grid->n[SK_CP];
  g->cfg = cfg;
  g->grid = grid;
  c->recompute = g->train ? cfg->train.recompute : SK_RECOMPUTE_NONE;
  c->n_tp = grid->n[SK_TP], c->tp_rank = grid->at[SK_TP];
  c->n_cp = grid->n[SK_CP], c->cp_rank = grid->at[SK_CP];
  if (create_schedule(g, e) != SK_OK) return e->code;
  int n = g->plan.virtual_stages;
  sk_chunk *chunk = sk_calloc((size_t)n, sizeof *chunk);
  find_chunks(cfg, grid, n, chunk);
  sk_model_create(&g->model, cfg, grid, n, chunk, positions, e);
  sk_free(chunk);
  if (e->code) return e->code;
  c->reg = &g->model.reg;
  if (check_groups(&g->model.all, cfg, &g->model.reg, e) != SK_OK) return e->code;
  sk_optim_create(&g->opt, &g->model.reg, g->model.all.n, parts, grid->at[SK_DP] * grid->n[SK_CP] + grid->at[SK_CP]);
  g->slot = sk_calloc((size_t)g->n_slots, sizeof *g->slot);
  for (int k = 0; k < n; k++)
    for (int i = g->slot0[k]; i < g->slot0[k + 1]; i++) sk_slot_create(&g->slot[i], &g->model.chunk[k]);
  g->host = sk_calloc((size_t)(g->b * g->T) * 4, sizeof *g->host);
  return SK_OK;
}

/* Everything that needs no device. */
static void discard(sk_engine *g) {
  for (int i = 0; g->slot && i < g->n_slots; i++) sk_slot_free(&g->slot[i]);
  sk_free(g->slot);
  sk_free(g->slot0);
  sk_free(g->host);
  sk_schedule_destroy(&g->plan);
  sk_optim_free(&g->opt);
  sk_model_free(&g->model);
  *g = (sk_engine){0};
}

int sk_engine_plan(const sk_config *cfg, const sk_ops *op, const int n[SK_NAXES], int rank,
                   size_t bytes[SK_PARTS], int64_t *params, char *layers, size_t cap, sk_err *e) {
  sk_grid grid;
  sk_grid_pretend(&grid, n, rank);
  sk_engine g = {.train = true, .b = cfg->train.micro_batch, .T = cfg->data.sequence};
  g.ctx.act = sk_device_act(op, cfg);
  g.ctx.comm = sk_device_comm(op);
  if (create(&g, cfg, &grid, g.T, e) == SK_OK) {
    size_t *slot = sk_calloc((size_t)g.n_slots, sizeof *slot), at = 0;
    measure(&g, op, NULL, g.ctx.act, bytes, slot, e);
    sk_free(slot);
    if (params) *params = g.model.reg.count;
    if (layers) layers[0] = 0;
    for (int k = 0; layers && k < g.model.n_chunks && at < cap; k++) {
      const sk_chunk *c = &g.model.chunk[k];
      at += (size_t)snprintf(layers + at, cap - at, "%s%s%lld-%lld%s", k ? ", " : "", c->first ? "embedding, " : "",
                             (long long)c->layer0, (long long)(c->layer0 + c->layers - 1), c->last ? ", head" : "");
    }
  }
  discard(&g);
  return e->code;
}

static int open_groups(sk_engine *g, sk_err *e) {
  sk_ctx *c = &g->ctx;
  const sk_grid *grid = g->grid;
  const struct {
    sk_group **group;
    const sk_comm_ops *table;
    MPI_Comm comm;
    bool wanted;
  } want[] = {{&c->tp, c->comm, grid->line[SK_TP], c->n_tp > 1},
              {&c->cp, c->comm, grid->line[SK_CP], c->n_cp > 1},
              {&g->pp, g->pipe, grid->line[SK_PP], grid->n[SK_PP] > 1},
              {&g->zero, c->comm, grid->zero, g->opt.parts > 1}};
  for (size_t i = 0; i < sizeof want / sizeof *want && !e->code; i++)
    if (want[i].wanted) *want[i].group = want[i].table->open(want[i].comm, c->op, c->dev, e);
  return e->code;
}

/* Adds the plan to an error: what was to be allocated. */
static void show_plan(const size_t bytes[SK_PARTS], size_t total, sk_err *e) {
  double sum = 0;
  size_t at = strlen(e->msg);
  for (int i = 0; i < SK_PARTS; i++) sum += (double)bytes[i];
  at += (size_t)snprintf(e->msg + at, sizeof e->msg - at, "\nThis rank needs %s", sk_bytes(sum));
  if (total) at += (size_t)snprintf(e->msg + at, sizeof e->msg - at, ", its GPU has %s", sk_bytes((double)total));
  at += (size_t)snprintf(e->msg + at, sizeof e->msg - at, ":");
  for (int i = 0; i < SK_PARTS && at < sizeof e->msg; i++)
    if (bytes[i])
      at += (size_t)snprintf(e->msg + at, sizeof e->msg - at, "\n  %-16s %12s", sk_part_name[i],
                             sk_bytes((double)bytes[i]));
}

/* The second stream's scratch is the end of the first one's, of the size that measure() found. */
static void open_branch(sk_engine *g) {
  sk_ctx *c = &g->ctx;
  sk_arena *a = &g->branch.scratch;
  if (!c->branch) return;
  a->size = a->peak;
  a->used = a->peak = 0;
  c->scratch.size -= a->size;
  a->base = c->scratch.base + c->scratch.size;
  g->branch.st = c->op->stream_create(c->dev);
  g->branch.fork = c->op->event_create(c->dev);
  g->branch.join = c->op->event_create(c->dev);
}

static void close_branch(sk_engine *g) {
  if (!g->branch.st) return;
  g->ctx.op->stream_destroy(g->branch.st);
  g->ctx.op->event_destroy(g->branch.fork);
  g->ctx.op->event_destroy(g->branch.join);
}

static void allocate(sk_engine *g, const size_t bytes[SK_PARTS], const size_t *slot, sk_err *e) {
  sk_ctx *c = &g->ctx;
  for (int i = 0; i < SK_PART_SAVED && !e->code; i++)
    sk_arena_alloc(&g->part[i], c->op, c->dev, sk_part_name[i], bytes[i], e);
  for (int i = 0; i < g->n_slots && !e->code; i++)
    sk_arena_alloc(&g->slot[i].saved, c->op, c->dev, sk_part_name[SK_PART_SAVED], slot[i], e);
  if (!e->code) sk_arena_alloc(&g->redo, c->op, c->dev, sk_part_name[SK_PART_REDO], bytes[SK_PART_REDO], e);
  if (!e->code)
    sk_arena_alloc(&c->scratch, c->op, c->dev, sk_part_name[SK_PART_SCRATCH], bytes[SK_PART_SCRATCH], e);
  if (!e->code) open_branch(g);
  if (e->code) show_plan(bytes, c->op->total(c->dev), e);
}

/* What the device makes once, now rather than in the first step. */
static void make_ready(const sk_engine *g) {
  sk_tokens_here t = sk_engine_tokens(g, g->b);
  for (int k = 0; k < g->model.n_chunks; k++) {
    const sk_layer *l = g->model.layer + g->model.chunk[k].layer0;
    for (int64_t i = 0; i < g->model.chunk[k].layers; i++)
      if (l[i].mixer != 'M') sk_attention_ready(&g->ctx, &l[i].attention, &t);
  }
}

int sk_engine_open(sk_engine *g, const sk_config *cfg, const sk_ops *op, const sk_comm_ops *comm,
                   const sk_grid *grid, bool train, int64_t b, int64_t T, int64_t positions, sk_err *e) {
  size_t bytes[SK_PARTS] = {0}, *slot = NULL;
  *g = (sk_engine){.train = train, .b = b, .T = T, .ctx.comm = comm, .ctx.act = sk_device_act(op, cfg)};
  sk_ctx *c = &g->ctx;
  sk_device *dev = create(g, cfg, grid, positions, e) == SK_OK ? op->open(grid->node_rank, c->act, e) : NULL;
  if (dev) { /* first: what is needed depends on it */
    slot = sk_calloc((size_t)g->n_slots, sizeof *slot);
    measure(g, op, dev, c->act, bytes, slot, e);
    c->op = op;
    c->dev = dev;
    c->st = op->stream_create(dev);
  }
  if (!e->code) allocate(g, bytes, slot, e);
  sk_free(slot);
  if (grid->size > 1) sk_agree(grid->world, e);
  g->pipe = sk_device_pipe(op, comm, cfg);
  if (!e->code) open_groups(g, e);
  if (grid->size > 1) sk_agree(grid->world, e);
  if (e->code) {
    sk_engine_close(g);
    return e->code;
  }
  bind(g);
  if (train) {
    c->opt = &g->opt;
    make_ready(g);
  }
  return SK_OK;
}

void sk_engine_close(sk_engine *g) {
  sk_ctx *c = &g->ctx;
  if (c->opt) sk_optim_need(c->opt, c, -1); /* the last gather may still be under way */
  if (c->dev) {
    c->op->sync(c->st); /* it may still wait for another rank's events */
    c->comm->close(c->tp);
    c->comm->close(c->cp);
    if (g->pp) g->pipe->close(g->pp);
    c->comm->close(g->zero);
    for (int i = 0; i < SK_PART_SAVED; i++) sk_arena_free(&g->part[i], c->op, c->dev);
    for (int i = 0; i < g->n_slots; i++) sk_arena_free(&g->slot[i].saved, c->op, c->dev);
    sk_arena_free(&g->redo, c->op, c->dev);
    sk_arena_free(&c->scratch, c->op, c->dev);
    close_branch(g);
    c->op->stream_destroy(c->st);
    c->op->close(c->dev);
  }
  discard(g);
}

/* ---- weights ---- */

void sk_engine_set_weights(sk_engine *g, int64_t first, int64_t n, const float *host) {
  sk_ctx *c = &g->ctx;
  if (c->act == SK_F32) {
    c->op->from_host(c->st, sk_at(c, c->weights, first), host, (size_t)n * sizeof(float));
    return;
  }
  void *act = sk_malloc((size_t)n * sk_dtype_size(c->act));
  sk_cpu_ops.cast(NULL, act, c->act, host, SK_F32, n); /* needs no stream: host memory is the CPU device's */
  c->op->from_host(c->st, sk_at(c, c->weights, first), act, (size_t)n * sk_dtype_size(c->act));
  sk_free(act);
  if (g->train) sk_optim_set_master(&g->opt, c, first, n, host);
}

/* Rows row .. row+rows-1 of the shard, drawn like the whole parameter. */
static void draw_rows(const sk_engine *g, const sk_param *p, int64_t global_row, int64_t rows, float *host) {
  uint64_t seed = (uint64_t)g->cfg->run.seed;
  if (p->row_len == p->global_len) {
    sk_param_init(p, seed, global_row * p->global_len, rows * p->row_len, host);
    return;
  }
  for (int64_t r = 0; r < rows; r++)
    sk_param_init(p, seed, (global_row + r) * p->global_len + p->col, p->row_len, host + r * p->row_len);
}

void sk_engine_init(sk_engine *g) {
  sk_ctx *c = &g->ctx;
  const sk_registry *r = c->reg;
  enum { CHUNK = 1 << 20 };
  for (int k = 0; k < r->n_runs; k++) {
    const sk_run_of_rows *run = &r->run[k];
    const sk_param *p = &r->p[run->param];
    int64_t step = p->row_len < CHUNK ? CHUNK / p->row_len : 1;
    float *host = sk_malloc((size_t)(step * p->row_len) * sizeof *host);
    for (int64_t at = 0; at < run->rows; at += step) {
      int64_t rows = run->rows - at < step ? run->rows - at : step;
      draw_rows(g, p, run->global_row + at, rows, host);
      sk_engine_set_weights(g, p->offset + (run->row + at) * p->row_len, rows * p->row_len, host);
    }
    sk_free(host);
  }
  if (g->train) sk_optim_reset(&g->opt, c);
}

double sk_engine_take_loss(sk_engine *g) {
  double sum = 0;
  g->ctx.op->to_host(g->ctx.st, &sum, g->loss, sizeof sum);
  g->ctx.op->zero(g->ctx.st, g->loss, sizeof sum);
  return sum;
}
