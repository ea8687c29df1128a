/* bench_step.c: whole training steps on random tokens: what `saker train` does in a step, without files. */
#include "src/bench.h"
#include "src/layout.h"
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

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
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
  qsort(each, (size_t)b->repeat, sizeof *each, by_value);
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
  sk_timer_start(&timer);
  c->timer = &timer;
  c->op = sk_trace_open(op, c->dev, &timer);
  one_step(s, b->cfg, b->warmup + b->repeat + 1);
  int n = sk_trace_read(line, LINES);
  sk_trace_close();
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

static double peak_gib(const sk_engine *g) {
  size_t used = g->ctx.op->used(g->ctx.dev);
  return used ? (double)used / (1 << 30) : sk_peak_gib();
}

/* seconds[0]: a step with the branches one after the other, [1]: on two streams. */
static void report(sk_bench *b, state *s, const double each[2]) {
  const sk_config *c = b->cfg;
  const sk_engine *g = &s->engine;
  double seconds = each[1], branch[2];
  double tokens = (double)(c->train.global_batch * c->data.sequence), T = (double)c->data.sequence;
  double flops = 3 * sk_model_flops(c, (int64_t)T) * tokens / seconds, gib = peak_gib(g);
  const char *device = g->ctx.op->describe(g->ctx.dev);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &gib, 1, MPI_DOUBLE, MPI_MAX, s->grid.world));
  sk_say("%s on %d rank%s (tp %d x cp %d x pp %d x dp %d), %s", b->model, b->ranks, b->ranks == 1 ? "" : "s",
         s->grid.n[SK_TP], s->grid.n[SK_CP], s->grid.n[SK_PP], s->grid.n[SK_DP], device);
  sk_say("  %.1f ms per step of %lld x %lld tokens, %.1f tokens/s, %.4f model TFLOP/s, %.2f GiB\n",
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
  double gemm_pct;
  json_object_set_new(o, "ops", breakdown(b, s, seconds, branch, &gemm_pct));
  json_object_set_new(o, "gemm_pct", json_real(gemm_pct));
  if (s->branches) {
    double hidden = each[0] - each[1];
    sk_say("\nA mixer's branches, ms per step: attention %.1f and Mamba %.1f alone, %.1f together, %.1f hidden",
           1e3 * branch[0], 1e3 * branch[1], 1e3 * (branch[0] + branch[1] - hidden), 1e3 * hidden);
    json_object_set_new(o, "branches", json_pack("{s:f, s:f, s:f, s:f}", "attention_ms", 1e3 * branch[0], "mamba_ms",
                                                 1e3 * branch[1], "together_ms",
                                                 1e3 * (branch[0] + branch[1] - hidden), "hidden_ms", 1e3 * hidden));
  }
  if (!b->results) json_decref(o);
  sk_timer_print(&s->timer, s->grid.world);
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
    double seconds[2] = {0, measure(b, &s)};
    sk_ctx *ctx = &s.engine.ctx;
    sk_stream *second = ctx->branch ? ctx->branch->st : NULL;
    s.branches = second != NULL;
    if (second) ctx->branch->st = ctx->st; /* from here on one after the other */
    seconds[0] = second ? measure(b, &s) : seconds[1];
    report(b, &s, seconds);
    if (second) ctx->branch->st = second;
    sk_engine_close(&s.engine);
  }
  sk_free(s.ids);
  sk_grid_destroy(&s.grid);
  return e->code;
}
