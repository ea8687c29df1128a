/* bench_step.c: whole training steps on random tokens: what `saker train` does in a step, without files. */
#include "src/bench.h"
#include "src/device.h"
#include "src/layout.h"
#include "src/overlap.h"
#include "src/progress.h"
#include "src/trace.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct state {
  sk_engine engine;
  sk_grid grid;
  sk_timer timer;
  int32_t *ids, *label, *start;
  bool branches; /* they run on two streams */
  int64_t n; /* tokens of this rank's copy of the model per step */
} state;

static void random_tokens(state *s, const sk_config *c) {
  int64_t T = c->data.sequence;
  s->n = c->train.global_batch / s->grid.n[SK_DP] * T;
  s->ids = sk_calloc((size_t)s->n * 3, sizeof *s->ids);
  s->label = s->ids + s->n;
  s->start = s->label + s->n; /* every sequence is one document */
  uint64_t key = sk_rand((uint64_t)c->run.seed, (uint64_t)s->grid.at[SK_DP]);
  for (int64_t i = 0; i < s->n; i++) s->ids[i] = (int32_t)(sk_rand(key, (uint64_t)i) % (uint64_t)c->model.vocab_size);
  for (int64_t i = 0; i < s->n; i++) s->label[i] = (i + 1) % T ? s->ids[i + 1] : -1;
}

/* One step as src/train.c makes it; returns the gradient's norm. */
static double one_step(state *s, const sk_config *c, int64_t t) {
  sk_engine *g = &s->engine;
  int bad;
  sk_engine_step(g, s->ids, s->label, s->start, 1.0 / (double)(c->train.global_batch * (c->data.sequence - 1)));
  sk_engine_take_loss(g);
  double norm = sk_optim_norm(&g->opt, &g->ctx, s->grid.zero, s->grid.model, g->model.all.n, &bad);
  double clip = c->optimizer.clip, gscale = clip > 0 && norm > clip ? clip / norm : 1;
  sk_optim_update(&g->opt, &g->ctx, c, t, c->optimizer.lr, gscale);
  sk_optim_gather(&g->opt, &g->ctx);
  g->ctx.op->sync(g->ctx.st);
  return norm;
}

/* Seconds of a step: the median over b->repeat steps, of the slowest rank. */
static double measure(sk_bench *b, state *s) {
  double *each = sk_calloc((size_t)b->repeat, sizeof *each), norm = 0;
  for (int64_t i = 0; i < b->warmup; i++) norm += one_step(s, b->cfg, i + 1);
  sk_timer_start(&s->timer);
  s->engine.ctx.timer = &s->timer;
  for (int64_t i = 0; i < b->repeat; i++) {
    MPI_Barrier(s->grid.world);
    double begin = sk_now();
    norm += one_step(s, b->cfg, b->warmup + i + 1);
    each[i] = sk_now() - begin;
  }
  s->engine.ctx.timer = NULL;
  SK_CHECK(isfinite(norm), "the gradient is not finite");
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, each, (int)b->repeat, MPI_DOUBLE, MPI_MAX, s->grid.world));
  sk_sort(each, b->repeat);
  double median = each[b->repeat / 2];
  sk_free(each);
  return median;
}

/* ---- where the device's time goes ---- */

enum { LINES = 128 };

/* One more step under the trace, with one stream. branch[2]: seconds of the mixers' attention and Mamba.
 * *gemm_pct: the matrix products' share of the ops' time. */
static json_t *breakdown(sk_bench *b, state *s, double seconds, double branch[2], double *gemm_pct) {
  sk_ctx *c = &s->engine.ctx;
  sk_trace_line line[LINES];
  sk_timer timer;
  const sk_ops *op = c->op;
  json_t *all = json_array();
  double sum = 0, gemm = 0;
  sk_stream *second = c->branch ? c->branch->st : NULL;
  if (second) c->branch->st = c->st;
  sk_timer_start(&timer);
  c->timer = &timer;
  c->op = sk_trace_open(op, c->dev, &timer);
  one_step(s, b->cfg, b->warmup + b->repeat + 1);
  int n = sk_trace_read(line, LINES);
  sk_trace_close();
  if (second) c->branch->st = second;
  c->op = op;
  c->timer = NULL;
  branch[0] = branch[1] = 0;
  for (int i = 0; i < n; i++) {
    int forward = line[i].section % SK_T_BACKWARD; /* the same section's, or that of its forward pass */
    sum += line[i].seconds;
    if (strncmp(line[i].op, "gemm", 4) == 0) gemm += line[i].seconds;
    if (line[i].section < SK_T_TP && forward == SK_T_ATTENTION) branch[0] += line[i].seconds;
    if (line[i].section < SK_T_TP && forward == SK_T_MAMBA) branch[1] += line[i].seconds;
  }
  *gemm_pct = sum > 0 ? 100 * gemm / sum : 0;
  sk_say("\n%-20s %-16s %6s %10s %6s %9s", "section", "op", "calls", "ms", "%", "TFLOP/s");
  for (int i = 0; i < n; i++) {
    const sk_trace_line *l = &line[i];
    double tflops = l->flops > 0 ? 1e-12 * l->flops / l->seconds : 0;
    char rate[16] = "";
    if (tflops > 0) snprintf(rate, sizeof rate, "%.1f", tflops);
    sk_say("%-20s %-16s %6lld %10.3f %6.1f %9s", sk_timer_name(l->section), l->op, (long long)l->calls,
           1e3 * l->seconds, 100 * l->seconds / seconds, rate);
    json_array_append_new(all, json_pack("{s:s, s:s, s:I, s:f, s:f}", "section", sk_timer_name(l->section), "op", l->op,
                                         "calls", (json_int_t)l->calls, "ms", 1e3 * l->seconds, "tflops", tflops));
  }
  sk_say("%-20s %-16s %6s %10.3f %6.1f", "all ops", "", "", 1e3 * sum, 100 * sum / seconds);
  sk_say("%-20s %-16s %6s %10.3f %6.1f", "matrix products", "", "", 1e3 * gemm, 100 * gemm / seconds);
  return all;
}

/* ---- exchanges ---- */

/* The waits of one step, of the rank that waits longest. */
static void watch_step(sk_bench *b, state *s, bool now, sk_exchange_cost cost[SK_X_KINDS]) {
  double waited[SK_X_KINDS];
  sk_overlap_open(&s->engine, now);
  one_step(s, b->cfg, b->warmup + b->repeat + 1);
  sk_overlap_begin();
  one_step(s, b->cfg, b->warmup + b->repeat + 2);
  sk_overlap_end(cost);
  for (int k = 0; k < SK_X_KINDS; k++) waited[k] = cost[k].waited;
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, waited, SK_X_KINDS, MPI_DOUBLE, MPI_MAX, s->grid.world));
  for (int k = 0; k < SK_X_KINDS; k++) cost[k].waited = waited[k];
}

/* Every kind of exchange: alone, and how long compute stood still for it; step_ms[2]: with overlap and without. */
static json_t *exchanges(sk_bench *b, state *s, const double seconds[2]) {
  sk_exchange_cost with[SK_X_KINDS], without[SK_X_KINDS];
  double alone[SK_X_KINDS];
  json_t *all = json_array();
  watch_step(b, s, true, without);
  sk_overlap_close();
  watch_step(b, s, false, with);
  for (int k = 0; k < SK_X_KINDS; k++) alone[k] = sk_overlap_alone((sk_exchange_kind)k);
  sk_overlap_close();
  sk_say("\n%-20s %6s %10s %16s %16s   ms per step", "exchange", "calls", "alone", "waited, overlap", "no overlap");
  for (int k = 0; k < SK_X_KINDS; k++) {
    if (alone[k] == 0) continue;
    sk_say("%-20s %6lld %10.3f %16.3f %16.3f", sk_exchange_name[k], (long long)with[k].calls, 1e3 * alone[k],
           1e3 * with[k].waited, 1e3 * without[k].waited);
    json_array_append_new(all, json_pack("{s:s, s:I, s:f, s:f, s:f}", "kind", sk_exchange_name[k], "calls",
                                         (json_int_t)with[k].calls, "alone_ms", 1e3 * alone[k], "waited_ms",
                                         1e3 * with[k].waited, "waited_no_overlap_ms", 1e3 * without[k].waited));
  }
  if (seconds[1] > 0)
    sk_say("A step takes %.1f ms with overlap and %.1f ms without (the same bits)", 1e3 * seconds[0], 1e3 * seconds[1]);
  return all;
}

/* ---- model FLOP/s of the peak ---- */

typedef struct square {
  const sk_ops *op;
  sk_stream *st;
  sk_dtype act;
  int64_t m;
  void *p[3];
} square;

static void multiply(void *arg) {
  square *q = arg;
  q->op->gemm(q->st, false, true, q->m, q->m, q->m, 1, q->p[0], q->m, q->p[1], q->m, 0, q->p[2], q->m, q->act);
}

/* FLOP/s of a large matrix product; 0 when there is no memory for it. */
static double product_ceiling(sk_bench *b, const sk_ctx *c) {
  bool cpu = strcmp(c->op->name, "cpu") == 0;
  square q = {c->op, c->st, c->act, cpu ? 1024 : 8192, {0}};
  int64_t n = q.m * q.m;
  double rate = 0;
  for (int i = 0; i < 3; i++) q.p[i] = c->op->alloc(c->dev, (size_t)n * sk_dtype_size(c->act));
  if (q.p[0] && q.p[1] && q.p[2]) {
    float *host = sk_malloc((size_t)n * sizeof *host);
    void *act = sk_malloc((size_t)n * sk_dtype_size(c->act));
    for (int i = 0; i < 2; i++) {
      sk_bench_random(host, n, (uint64_t)i + 1, 1);
      sk_cpu_ops.cast(NULL, act, c->act, host, SK_F32, n);
      c->op->from_host(c->st, q.p[i], act, (size_t)n * sk_dtype_size(c->act));
    }
    sk_free(host);
    sk_free(act);
    rate = 2.0 * pow((double)q.m, 3) / sk_bench_time(b, c->st, multiply, &q);
  }
  for (int i = 0; i < 3; i++) c->op->free(c->dev, q.p[i]);
  return rate;
}

/* mfu = 3 x model FLOP of the forward pass x tokens / (seconds x ranks x peak). */
static void utilization(sk_bench *b, const state *s, double flops, json_t *o) {
  const sk_ctx *c = &s->engine.ctx;
  double peak = sk_device_peak(c->op->describe(c->dev), c->act);
  const char *from = peak > 0 ? "the device's data sheet" : "a large matrix product in this run";
  if (peak <= 0) {
    peak = product_ceiling(b, c);
    SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &peak, 1, MPI_DOUBLE, MPI_MIN, s->grid.world));
  }
  if (peak <= 0) return;
  double mfu = flops / (peak * b->ranks);
  sk_say("  MFU %.1f %%: 3 x forward model FLOP x tokens/s / (ranks x %.4g TFLOP/s, from %s)\n", 100 * mfu,
         1e-12 * peak, from);
  json_object_set_new(o, "mfu", json_real(mfu));
  json_object_set_new(o, "mfu_formula", json_string("3 x forward model FLOP x tokens/s / (ranks x peak)"));
  json_object_set_new(o, "peak_tflops", json_real(1e-12 * peak));
  json_object_set_new(o, "peak_from", json_string(from));
}

static double peak_gib(const sk_engine *g) {
  size_t used = g->ctx.op->used(g->ctx.dev);
  return used ? (double)used / (1 << 30) : sk_peak_gib();
}

/* What the step is made of; each: as for report. */
static void details(sk_bench *b, state *s, const double each[3], json_t *o) {
  double branch[2], gemm_pct;
  json_object_set_new(o, "ops", breakdown(b, s, each[1], branch, &gemm_pct));
  json_object_set_new(o, "gemm_pct", json_real(gemm_pct));
  if (s->branches) {
    double hidden = each[0] - each[1];
    sk_say("\nA mixer's branches, ms per step: attention %.1f and Mamba %.1f alone, %.1f together, %.1f hidden",
           1e3 * branch[0], 1e3 * branch[1], 1e3 * (branch[0] + branch[1] - hidden), 1e3 * hidden);
    json_object_set_new(o, "branches", json_pack("{s:f, s:f, s:f, s:f}", "attention_ms", 1e3 * branch[0], "mamba_ms",
                                                 1e3 * branch[1], "together_ms",
                                                 1e3 * (branch[0] + branch[1] - hidden), "hidden_ms", 1e3 * hidden));
  }
  if (b->ranks > 1) json_object_set_new(o, "exchanges", exchanges(b, s, each + 1));
}

/* each[0]: seconds of a step with the branches one after the other, [1]: on two streams, [2]: with every exchange
 * waited for at once, 0 where that was not measured. */
static void report(sk_bench *b, state *s, const double each[3]) {
  const sk_config *c = b->cfg;
  const sk_engine *g = &s->engine;
  double seconds = each[1];
  double tokens = (double)(c->train.global_batch * c->data.sequence), T = (double)c->data.sequence;
  double flops = 3 * sk_model_flops(c, (int64_t)T) * tokens / seconds, gib = peak_gib(g);
  const char *device = g->ctx.op->describe(g->ctx.dev);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &gib, 1, MPI_DOUBLE, MPI_MAX, s->grid.world));
  sk_say("%s on %d rank%s (tp %d x cp %d x pp %d x dp %d), %s", b->model, b->ranks, b->ranks == 1 ? "" : "s",
         s->grid.n[SK_TP], s->grid.n[SK_CP], s->grid.n[SK_PP], s->grid.n[SK_DP], device);
  sk_say("  %.1f ms per step of %lld x %lld tokens, %.1f tokens/s, %.4f model TFLOP/s, %.2f GiB",
         1e3 * seconds, (long long)c->train.global_batch, (long long)c->data.sequence, tokens / seconds, 1e-12 * flops,
         gib);
  json_t *o = sk_bench_result(b, "step", device);
  json_object_set_new(o, "model", json_string(b->model));
  json_object_set_new(o, "batch", json_integer(c->train.global_batch));
  json_object_set_new(o, "micro_batch", json_integer(c->train.micro_batch));
  json_object_set_new(o, "sequence", json_integer(c->data.sequence));
  json_object_set_new(o, "dtype", json_string(g->ctx.act == SK_F32 ? "fp32" : "bf16"));
  json_object_set_new(o, "grid", json_pack("{s:i, s:i, s:i, s:i}", "tp", s->grid.n[SK_TP], "cp", s->grid.n[SK_CP],
                                           "pp", s->grid.n[SK_PP], "dp", s->grid.n[SK_DP]));
  json_object_set_new(o, "tokens_per_s", json_real(tokens / seconds));
  json_object_set_new(o, "step_ms", json_real(1e3 * seconds));
  json_object_set_new(o, "model_tflops", json_real(1e-12 * flops));
  json_object_set_new(o, "peak_gib", json_real(gib));
  json_object_set_new(o, "overlap", json_boolean(!b->no_overlap));
  if (each[2] > 0) json_object_set_new(o, "no_overlap_step_ms", json_real(1e3 * each[2]));
  utilization(b, s, flops, o);
  if (!b->brief) details(b, s, each, o);
  if (!b->results) json_decref(o);
  if (!b->brief) sk_timer_print(&s->timer, s->grid.world);
}

/* Seconds of a step with every exchange waited for at once. */
static double measure_without(sk_bench *b, state *s) {
  sk_overlap_open(&s->engine, true);
  double seconds = measure(b, s);
  sk_overlap_close();
  return seconds;
}

int sk_bench_step(sk_bench *b, sk_err *e) {
  const sk_config *c = b->cfg;
  state s = {0};
  int n[SK_NAXES];
  if (sk_layout_grid(c, b->ranks, n, e) != SK_OK) return e->code;
  sk_grid_create(&s.grid, b->comm, n);
  if (sk_engine_open(&s.engine, c, b->op, b->comms, &s.grid, true, c->train.micro_batch, c->data.sequence,
                     c->data.sequence, e) == SK_OK) {
    random_tokens(&s, c);
    sk_engine_init(&s.engine);
    if (b->no_overlap) sk_overlap_open(&s.engine, true);
    double seconds[3] = {0, measure(b, &s), 0};
    sk_ctx *ctx = &s.engine.ctx;
    sk_stream *second = ctx->branch ? ctx->branch->st : NULL;
    s.branches = second != NULL;
    if (second) ctx->branch->st = ctx->st; /* from here on one after the other */
    seconds[0] = second && !b->brief ? measure(b, &s) : seconds[1];
    if (b->no_overlap) sk_overlap_close();
    if (second) ctx->branch->st = second;
    if (b->ranks > 1 && !b->no_overlap && !b->brief) seconds[2] = measure_without(b, &s);
    report(b, &s, seconds);
    sk_engine_close(&s.engine);
  }
  sk_free(s.ids);
  sk_grid_destroy(&s.grid);
  return e->code;
}
