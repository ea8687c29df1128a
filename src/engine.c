#include "src/engine.h"

const char *const sk_part_name[SK_PARTS] = {
    [SK_PART_WEIGHTS] = "weights",       [SK_PART_GRADS] = "gradients",
    [SK_PART_OPTIM] = "optimizer state", [SK_PART_TABLES] = "tables",
    [SK_PART_EXCHANGE] = "exchange",     [SK_PART_BATCH] = "batch",
    [SK_PART_SAVED] = "activations",     [SK_PART_SCRATCH] = "scratch",
};

/* Deals out all memory that lives as long as the engine. */
static void bind(sk_engine *g) {
  sk_ctx *c = &g->ctx;
  sk_arena *part = g->part;
  int64_t n = g->b * g->T, total = g->model.reg.total;
  c->weights = sk_take_act(c, &part[SK_PART_WEIGHTS], total);
  sk_model_bind(&g->model, c, &part[SK_PART_TABLES], g->train);
  g->ids = sk_arena_take(&part[SK_PART_BATCH], (size_t)n * sizeof(int32_t));
  g->label = sk_arena_take(&part[SK_PART_BATCH], (size_t)n * sizeof(int32_t));
  g->start = sk_arena_take(&part[SK_PART_BATCH], (size_t)n * sizeof(int32_t));
  g->loss = sk_arena_take(&part[SK_PART_BATCH], sizeof(double));
  c->op->zero(c->st, c->weights, (size_t)total * sk_dtype_size(c->act));
  c->op->zero(c->st, g->loss, sizeof(double));
  if (!g->train) return;
  c->grads = sk_take_f32(&part[SK_PART_GRADS], total);
  c->op->zero(c->st, c->grads, (size_t)total * sizeof(float));
  sk_optim_bind(&g->opt, c, &part[SK_PART_OPTIM], &part[SK_PART_EXCHANGE]);
}

/* Runs everything that training (or, without it, generating) runs, to find the arenas' peaks. */
static void rehearse(sk_engine *g) {
  sk_batch batch = {.b = g->b, .T = g->T, .ids = g->ids, .label = g->label, .start = g->start};
  sk_model_forward(&g->model, &g->ctx, &batch, g->train ? 1 : 0, g->loss);
  if (g->train) sk_model_backward(&g->model, &g->ctx, &batch);
}

static int measure(sk_engine *g, const sk_ops *target, sk_dtype act, size_t bytes[SK_PARTS], sk_err *e) {
  sk_ctx *c = &g->ctx;
  c->op = &sk_plan_ops;
  c->dev = sk_plan_open(target, act);
  if (!c->dev) return sk_fail(e, SK_FAILED, "cannot plan memory for device '%s'", target->name);
  c->st = c->op->stream_create(c->dev);
  for (int i = 0; i < SK_PART_SAVED; i++) sk_arena_plan(&g->part[i], sk_part_name[i]);
  sk_arena_plan(&c->saved, sk_part_name[SK_PART_SAVED]);
  sk_arena_plan(&c->scratch, sk_part_name[SK_PART_SCRATCH]);
  bind(g);
  rehearse(g);
  for (int i = 0; i < SK_PART_SAVED; i++) bytes[i] = g->part[i].peak;
  bytes[SK_PART_SAVED] = c->saved.peak;
  bytes[SK_PART_SCRATCH] = c->scratch.peak;
  c->op->stream_destroy(c->st);
  c->op->close(c->dev);
  c->dev = NULL;
  c->st = NULL;
  return SK_OK;
}

static int create(sk_engine *g, const sk_config *cfg, MPI_Comm dp, int parts, int part, int64_t positions,
                  sk_err *e) {
  g->cfg = cfg;
  g->ctx.act = SK_F32;
  if (sk_model_create(&g->model, cfg, positions, e) != SK_OK) return e->code;
  g->ctx.reg = &g->model.reg;
  if (sk_registry_groups(&g->model.reg, cfg, e) != SK_OK) return e->code;
  sk_optim_create(&g->opt, &g->model.reg, dp, parts, part);
  return SK_OK;
}

int sk_engine_plan(const sk_config *cfg, const sk_ops *op, int parts, int part, size_t bytes[SK_PARTS],
                   sk_err *e) {
  sk_engine g = {.train = true, .b = cfg->train.micro_batch, .T = cfg->data.sequence};
  if (create(&g, cfg, MPI_COMM_NULL, parts, part, g.T, e) == SK_OK) measure(&g, op, SK_F32, bytes, e);
  sk_optim_free(&g.opt);
  sk_model_free(&g.model);
  return e->code;
}

int sk_engine_open(sk_engine *g, const sk_config *cfg, const sk_ops *op, MPI_Comm dp, bool train, int64_t b,
                   int64_t T, int64_t positions, sk_err *e) {
  int parts, part;
  size_t bytes[SK_PARTS];
  *g = (sk_engine){.train = train, .b = b, .T = T};
  SK_MPI(MPI_Comm_size(dp, &parts));
  SK_MPI(MPI_Comm_rank(dp, &part));
  sk_ctx *c = &g->ctx;
  if (create(g, cfg, dp, parts, part, positions, e) == SK_OK) measure(g, op, c->act, bytes, e);
  if (!e->code) {
    c->op = op;
    c->dev = op->open(0, c->act, e);
    if (c->dev) c->st = op->stream_create(c->dev);
  }
  for (int i = 0; i < SK_PART_SAVED && !e->code; i++)
    sk_arena_alloc(&g->part[i], op, c->dev, sk_part_name[i], bytes[i], e);
  if (!e->code)
    sk_arena_alloc(&c->saved, op, c->dev, sk_part_name[SK_PART_SAVED], bytes[SK_PART_SAVED], e);
  if (!e->code)
    sk_arena_alloc(&c->scratch, op, c->dev, sk_part_name[SK_PART_SCRATCH], bytes[SK_PART_SCRATCH], e);
  if (sk_agree(dp, e) != SK_OK) {
    sk_engine_close(g);
    return e->code;
  }
  bind(g);
  return SK_OK;
}

void sk_engine_close(sk_engine *g) {
  sk_ctx *c = &g->ctx;
  if (c->dev) {
    for (int i = 0; i < SK_PART_SAVED; i++) sk_arena_free(&g->part[i], c->op, c->dev);
    sk_arena_free(&c->saved, c->op, c->dev);
    sk_arena_free(&c->scratch, c->op, c->dev);
    c->op->stream_destroy(c->st);
    c->op->close(c->dev);
  }
  sk_optim_free(&g->opt);
  sk_model_free(&g->model);
  *g = (sk_engine){0};
}

void sk_engine_set_weights(sk_engine *g, int64_t first, int64_t n, const float *host) {
  sk_ctx *c = &g->ctx;
  SK_CHECK(c->act == SK_F32, "weights in %zu-byte elements", sk_dtype_size(c->act));
  c->op->from_host(c->st, sk_at(c, c->weights, first), host, (size_t)n * sizeof(float));
}

void sk_engine_init(sk_engine *g) {
  sk_ctx *c = &g->ctx;
  enum { CHUNK = 1 << 20 };
  float *host = sk_malloc(CHUNK * sizeof(float));
  for (int i = 0; i < c->reg->n; i++) {
    const sk_param *p = &c->reg->p[i];
    for (int64_t at = 0; at < p->count; at += CHUNK) {
      int64_t n = p->count - at < CHUNK ? p->count - at : CHUNK;
      sk_param_init(p, (uint64_t)g->cfg->run.seed, at, n, host);
      sk_engine_set_weights(g, p->offset + at, n, host);
    }
  }
  sk_free(host);
  if (g->train) sk_optim_reset(&g->opt, c);
}

void sk_engine_micro(sk_engine *g, int64_t b, int64_t T, const int32_t *ids, const int32_t *label,
                     const int32_t *start, double scale) {
  sk_ctx *c = &g->ctx;
  size_t bytes = (size_t)(b * T) * sizeof(int32_t);
  c->op->from_host(c->st, g->ids, ids, bytes);
  c->op->from_host(c->st, g->label, label, bytes);
  c->op->from_host(c->st, g->start, start, bytes);
  sk_batch batch = {.b = b, .T = T, .ids = g->ids, .label = g->label, .start = g->start};
  sk_model_forward(&g->model, c, &batch, scale, g->loss);
  if (scale != 0) sk_model_backward(&g->model, c, &batch);
}

double sk_engine_take_loss(sk_engine *g) {
  double sum = 0;
  g->ctx.op->to_host(g->ctx.st, &sum, g->loss, sizeof sum);
  g->ctx.op->zero(g->ctx.st, g->loss, sizeof sum);
  return sum;
}
