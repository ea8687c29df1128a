/* bench_step.c: whole training steps on random tokens: what `saker train` does in a step, without files. */
#include "src/bench.h"
#include "src/layout.h"
#include "src/progress.h"
#include "src/timer.h"
#include <math.h>
#include <stdio.h>

typedef struct state {
  sk_engine engine;
  sk_grid grid;
  sk_timer timer;
  int32_t *ids, *label, *start;
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

/* The CPU's table with a clock around gemm, which returns there when it is done. */
static double gemm_seconds;

static void timed_gemm(sk_stream *st, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *A,
                       int64_t lda, const void *B, int64_t ldb, double beta, void *C, int64_t ldc, sk_dtype ct) {
  double begin = sk_now();
  sk_cpu_ops.gemm(st, ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, ct);
  gemm_seconds += sk_now() - begin;
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
  gemm_seconds = 0;
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
  gemm_seconds /= (double)b->repeat;
  qsort(each, (size_t)b->repeat, sizeof *each, by_value);
  double median = each[b->repeat / 2];
  sk_free(each);
  return median;
}

static void report(sk_bench *b, state *s, double seconds) {
  const sk_config *c = b->cfg;
  const sk_engine *g = &s->engine;
  double tokens = (double)(c->train.global_batch * c->data.sequence), T = (double)c->data.sequence;
  double flops = 3 * sk_model_flops(c, (int64_t)T) * tokens / seconds, gib = sk_peak_gib();
  const char *device = g->ctx.op->describe(g->ctx.dev);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &gib, 1, MPI_DOUBLE, MPI_MAX, s->grid.world));
  sk_say("%s on %d rank%s (tp %d x cp %d x pp %d x dp %d), %s", b->model, b->ranks, b->ranks == 1 ? "" : "s",
         s->grid.n[SK_TP], s->grid.n[SK_CP], s->grid.n[SK_PP], s->grid.n[SK_DP], device);
  sk_say("  %.1f ms per step of %lld x %lld tokens, %.1f tokens/s, %.4f model TFLOP/s, %.2f GiB\n",
         1e3 * seconds, (long long)c->train.global_batch, (long long)c->data.sequence, tokens / seconds, 1e-12 * flops,
         gib);
  double gemm_pct = 100 * gemm_seconds / seconds;
  if (b->op == &sk_cpu_ops) sk_say("  matrix products take %.0f %% of it (rank 0)\n", gemm_pct);
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
  if (b->op == &sk_cpu_ops) json_object_set_new(o, "gemm_pct", json_real(gemm_pct));
  if (!b->results) json_decref(o);
  sk_timer_print(&s->timer, s->grid.world);
}

int sk_bench_step(sk_bench *b, sk_err *e) {
  const sk_config *c = b->cfg;
  state s = {0};
  int n[SK_NAXES];
  sk_ops timed = sk_cpu_ops;
  timed.gemm = timed_gemm;
  if (sk_layout_grid(c, b->ranks, n, e) != SK_OK) return e->code;
  sk_grid_create(&s.grid, b->comm, n);
  if (sk_engine_open(&s.engine, c, b->op == &sk_cpu_ops ? &timed : b->op, b->comms, &s.grid, true, c->train.micro_batch, c->data.sequence,
                     c->data.sequence, e) == SK_OK) {
    random_tokens(&s, c);
    sk_engine_init(&s.engine);
    report(b, &s, measure(b, &s));
    sk_engine_close(&s.engine);
  }
  sk_free(s.ids);
  sk_grid_destroy(&s.grid);
  return e->code;
}
