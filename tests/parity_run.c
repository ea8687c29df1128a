/* parity_run.c: see parity.h. The step is src/train.c's without data set, run folder and report. */
#include "tests/parity.h"
#include "src/layout.h"
#include "src/train.h"
#include <limits.h>
#include <string.h>

typedef struct trial {
  const parity_model *m;
  sk_config cfg; /* the model's with the case's grid; borrows its layers */
  sk_grid grid;
  sk_engine g;
  int64_t local; /* sequences of this rank */
  int32_t *ids, *label, *start;
} trial;

/* ---- data ---- */

/* begins[t]: a document begins at token t of sequence s. */
static void find_documents(const parity_model *m, int64_t s, bool *begins) {
  const int64_t T = m->cfg.data.sequence, S = m->segment;
  int kind = m->documents == PARITY_MIXED ? (int)(s % PARITY_MIXED) : m->documents;
  for (int64_t t = 0; t <= T; t++) {
    bool at = false;
    if (kind == PARITY_BORDERS) at = t % S == 0;
    if (kind == PARITY_INSIDE) at = t % S == (t / S % 2 ? S - 1 : 1);
    if (kind == PARITY_SPANNING) at = t == (s % 2 ? 1 : S - 1) || t == T - 1 - s % 3;
    if (kind == PARITY_SHORT) at = sk_rand(77, (uint64_t)(s * (T + 1) + t)) % 2 == 0;
    begins[t] = at;
  }
}

/* Sequence s of the training data as sk_data_sample would give it. */
static void draw_sequence(const parity_model *m, int64_t s, int32_t *ids, int32_t *label,
                          int32_t *start) {
  const int64_t T = m->cfg.data.sequence, V = m->cfg.model.vocab_size;
  bool *begins = sk_calloc((size_t)T + 1, sizeof *begins);
  int32_t from = 0;
  find_documents(m, s, begins);
  for (int64_t t = 0; t < T; t++) {
    uint64_t at = (uint64_t)(s * (T + 1) + t);
    if (begins[t]) from = (int32_t)t;
    ids[t] = (int32_t)(sk_rand(5, at) % (uint64_t)V);
    label[t] = begins[t + 1] ? -1 : (int32_t)(sk_rand(5, at + 1) % (uint64_t)V);
    start[t] = from;
  }
  sk_free(begins);
}

/* This rank's sequences of a step; returns the counted tokens of all. */
static int64_t load(trial *r, int step) {
  const int64_t T = r->cfg.data.sequence;
  const int64_t first = step * r->cfg.train.global_batch + r->grid.at[SK_DP] * r->local;
  int64_t counted = 0, all;
  for (int64_t k = 0; k < r->local; k++)
    draw_sequence(r->m, first + k, r->ids + k * T, r->label + k * T, r->start + k * T);
  for (int64_t i = 0; i < r->local * T; i++) counted += r->label[i] >= 0;
  SK_MPI(MPI_Allreduce(&counted, &all, 1, MPI_INT64_T, MPI_SUM, r->grid.line[SK_DP]));
  return all;
}

/* ---- weights ---- */

/* What starts at exactly 0 or 1 would hide mistakes: biases, norms and D get noise; dt_bias is
 * raised, so that the SSM's states matter. */
static void stir_weights(sk_engine *g) {
  const sk_registry *r = g->ctx.reg;
  for (int k = 0; k < r->n_runs; k++) {
    const sk_run_of_rows *rows = &r->run[k];
    const sk_param *p = &r->p[rows->param];
    if (p->init != SK_INIT_ZERO && p->init != SK_INIT_ONE && p->init != SK_INIT_DT_BIAS) continue;
    SK_CHECK(p->row_len == p->global_len, "%s is cut along its columns", p->name);
    int64_t n = rows->rows * p->row_len, first = rows->global_row * p->row_len;
    uint64_t key = sk_hash_str(99, p->name);
    float *host = sk_malloc((size_t)n * sizeof *host);
    sk_param_init(p, (uint64_t)g->cfg->run.seed, first, n, host);
    for (int64_t i = 0; i < n; i++) {
      double noise = 0.3 * sk_normal(key, (uint64_t)(first + i));
      host[i] += p->init == SK_INIT_DT_BIAS ? 2 : (float)noise;
    }
    sk_engine_set_weights(g, p->offset + rows->row * p->row_len, n, host);
    sk_free(host);
  }
}

/* ---- whole parameters ---- */

/* Rows row .. row+rows-1 of a shard, whose values begin at `values`, to their place in full[]. */
static void put_rows(const sk_engine *g, const sk_run_of_rows *run, int64_t row, int64_t rows,
                     const float *values, float *full) {
  const sk_param *p = &g->ctx.reg->p[run->param], *whole = &g->model.all.p[p->index];
  for (int64_t i = 0; i < rows; i++) {
    int64_t global_row = run->global_row + row - run->row + i;
    memcpy(full + whole->offset + global_row * p->global_len + p->col, values + i * p->row_len,
           (size_t)p->row_len * sizeof *full);
  }
}

/* full[] on rank 0 from what every rank owns: the same mapping as src/checkpoint.c. state: host
 * copy of my slices in the order of the optimizer's state. */
static float *collect(const trial *r, const float *state) {
  const sk_registry *reg = r->g.ctx.reg;
  size_t total = (size_t)r->g.model.all.total;
  float *mine = sk_calloc(total, sizeof *mine), *full = NULL;
  if (r->grid.rank == 0) full = sk_calloc(total, sizeof *full);
  for (int k = 0, run = 0; k < reg->n_buckets; k++) {
    const sk_bucket *b = &reg->bucket[k];
    int64_t lo, hi, at = sk_optim_slice(&r->g.opt, k, &lo, &hi), row, rows;
    for (; run < reg->n_runs && reg->run[run].param < b->param0 + b->n_params; run++) {
      const sk_run_of_rows *part = &reg->run[run];
      const sk_param *p = &reg->p[part->param];
      if (part->first != reg->tp_rank || p->copy || !sk_run_overlap(reg, part, lo, hi, &row, &rows))
        continue;
      put_rows(&r->g, part, row, rows, state + at + p->offset + row * p->row_len - lo, mine);
    }
  }
  /* Sums of one value and zeros. */
  SK_MPI(MPI_Reduce(mine, full, (int)total, MPI_FLOAT, MPI_SUM, 0, r->grid.world));
  sk_free(mine);
  return full;
}

static float *collect_moment(trial *r) {
  size_t n = (size_t)sk_optim_count(&r->g.opt, r->g.ctx.reg);
  float *host = sk_calloc(n + 1, sizeof *host);
  r->g.ctx.op->to_host(r->g.ctx.st, host, r->g.opt.m, n * sizeof *host);
  float *full = collect(r, host);
  sk_free(host);
  return full;
}

static float *collect_weights(trial *r) {
  float *host = sk_calloc((size_t)sk_optim_count(&r->g.opt, r->g.ctx.reg) + 1, sizeof *host);
  for (int k = 0; k < r->g.ctx.reg->n_buckets; k++) {
    int64_t lo, hi, state = sk_optim_slice(&r->g.opt, k, &lo, &hi);
    r->g.ctx.op->to_host(r->g.ctx.st, host + state, sk_optim_master(&r->g.opt, &r->g.ctx, k),
                         (size_t)(hi - lo) * sizeof *host);
  }
  float *full = collect(r, host);
  sk_free(host);
  return full;
}

/* Whether this rank's shard of a parameter, owned rows or not, is what full[] says. */
static bool same_shard(const trial *r, const float *weights, const sk_run_of_rows *run,
                       const float *full) {
  const sk_param *p = &r->g.ctx.reg->p[run->param], *whole = &r->g.model.all.p[p->index];
  for (int64_t i = 0; i < run->rows; i++) {
    const float *a = weights + p->offset + (run->row + i) * p->row_len;
    const float *b = full + whole->offset + (run->global_row + i) * p->global_len + p->col;
    for (int64_t k = 0; k < p->row_len; k++)
      if (!(a[k] == b[k])) return false;
  }
  return true;
}

/* All copies of every weight are equal: over dp and cp after the gather, over tp where rows are
 * shared, of the tied matrix on two stages. Returns the first parameter that is not, or -1. */
static int find_unequal(trial *r, const float *weight) {
  const sk_registry *reg = r->g.ctx.reg;
  int64_t total = r->g.model.all.total;
  float *full = sk_malloc((size_t)total * sizeof *full);
  float *mine = sk_malloc((size_t)reg->total * sizeof *mine);
  int bad = INT_MAX, first;
  if (weight) memcpy(full, weight, (size_t)total * sizeof *full);
  SK_MPI(MPI_Bcast(full, (int)total, MPI_FLOAT, 0, r->grid.world));
  r->g.ctx.op->to_host(r->g.ctx.st, mine, r->g.ctx.weights, (size_t)reg->total * sizeof *mine);
  for (int k = 0; k < reg->n_runs; k++) {
    int index = reg->p[reg->run[k].param].index;
    if (index < bad && !same_shard(r, mine, &reg->run[k], full)) bad = index;
  }
  SK_MPI(MPI_Allreduce(&bad, &first, 1, MPI_INT, MPI_MIN, r->grid.world));
  sk_free(full);
  sk_free(mine);
  return first == INT_MAX ? -1 : first;
}

/* ---- training ---- */

/* The loss of the last stage; all tp ranks have the same one. */
static double total_loss(trial *r) {
  const sk_grid *grid = &r->grid;
  bool counts = grid->at[SK_PP] == grid->n[SK_PP] - 1 && grid->at[SK_TP] == 0;
  double mine = sk_engine_take_loss(&r->g);
  return sk_sum_ranks(grid->world, counts ? mine : 0);
}

static void train_step(trial *r, const sk_config *cfg, int step, double *loss, double *norm) {
  sk_engine *g = &r->g;
  int bad;
  int64_t counted = load(r, step);
  sk_engine_step(g, r->ids, r->label, r->start, 1.0 / (double)counted);
  *loss = total_loss(r) / (double)counted;
  *norm = sk_optim_norm(&g->opt, &g->ctx, r->grid.zero, r->grid.model, g->model.all.n, &bad);
  double clip = cfg->optimizer.clip, gscale = clip > 0 && *norm > clip ? clip / *norm : 1;
  sk_optim_update(&g->opt, &g->ctx, cfg, step ? step : 1, cfg->optimizer.lr, gscale);
  sk_optim_gather(&g->opt, &g->ctx);
  g->ctx.op->sync(g->ctx.st);
}

/* One sequence, then the others: with micro-batches of 2 some are not full. */
static double evaluate(trial *r) {
  int64_t counted = load(r, PARITY_STEPS + 1), T = r->cfg.data.sequence;
  sk_optim_need(&r->g.opt, &r->g.ctx, -1);
  sk_engine_eval(&r->g, 1, r->ids, r->label, r->start);
  sk_engine_eval(&r->g, r->local - 1, r->ids + T, r->label + T, r->start + T);
  return total_loss(r) / (double)counted;
}

static void open_trial(trial *r, MPI_Comm comm, const parity_model *m, const parity_case *c) {
  int n[SK_NAXES], size = c->n[SK_PP] * c->n[SK_DP] * c->n[SK_CP] * c->n[SK_TP];
  sk_err e = {0};
  *r = (trial){.m = m, .cfg = m->cfg};
  r->cfg.parallel.tp = c->n[SK_TP];
  r->cfg.parallel.cp = c->n[SK_CP];
  r->cfg.parallel.pp = c->n[SK_PP];
  r->cfg.parallel.schedule = c->schedule;
  r->cfg.parallel.virtual_stages = c->virtual_stages;
  r->cfg.train.recompute = c->recompute;
  r->cfg.train.micro_batch = c->micro_batch;
  SK_CHECK(sk_layout_grid(&r->cfg, size, n, &e) == SK_OK, "%s: %s", m->name, e.msg);
  sk_grid_create(&r->grid, comm, n);
  int64_t T = r->cfg.data.sequence;
  sk_engine_open(&r->g, &r->cfg, &sk_cpu_ops, &sk_comm_mpi, &r->grid, true, c->micro_batch, T, T,
                 &e);
  SK_CHECK(e.code == SK_OK, "%s: %s", m->name, e.msg);
  r->local = r->cfg.train.global_batch / n[SK_DP];
  r->ids = sk_calloc((size_t)(r->local * T), sizeof *r->ids);
  r->label = sk_calloc((size_t)(r->local * T), sizeof *r->label);
  r->start = sk_calloc((size_t)(r->local * T), sizeof *r->start);
  sk_engine_init(&r->g);
  stir_weights(&r->g);
}

static void close_trial(trial *r) {
  sk_engine_close(&r->g);
  sk_grid_destroy(&r->grid);
  sk_free(r->ids);
  sk_free(r->label);
  sk_free(r->start);
}

static void describe(const sk_registry *all, parity_result *out) {
  SK_CHECK(all->n <= PARITY_PARAMS, "%d parameters", all->n);
  *out = (parity_result){.n_params = all->n};
  for (int i = 0; i < all->n; i++) {
    memcpy(out->name[i], all->p[i].name, sizeof out->name[i]);
    out->offset[i] = all->p[i].offset;
    out->count[i] = all->p[i].count;
  }
  out->offset[all->n] = all->total;
}

void parity_run(MPI_Comm comm, const parity_model *m, const parity_case *c, parity_result *out) {
  trial r;
  open_trial(&r, comm, m, c);
  describe(&r.g.model.all, out);
  sk_config still = r.cfg;
  still.optimizer.betas[0] = still.optimizer.betas[1] = 0;
  still.optimizer.clip = still.optimizer.lr = 0;
  train_step(&r, &still, 0, &out->loss[0], &out->norm[0]);
  out->grad = collect_moment(&r);
  sk_optim_reset(&r.g.opt, &r.g.ctx);
  for (int k = 1; k <= PARITY_STEPS; k++) train_step(&r, &r.cfg, k, &out->loss[k], &out->norm[k]);
  out->eval = evaluate(&r);
  out->weight = collect_weights(&r);
  out->moment = collect_moment(&r);
  out->replica = find_unequal(&r, out->weight);
  close_trial(&r);
}

void parity_result_free(parity_result *r) {
  sk_free(r->grad);
  sk_free(r->weight);
  sk_free(r->moment);
  r->grad = r->weight = r->moment = NULL;
}
