/* train.c: the training loop. One step, top to bottom: data, micro-batches forward and backward with the
 * gradients' reduction (pipeline.c), norm, update, gather (optim.c), report. */
#include "src/train.h"
#include "src/lr.h"
#include "src/progress.h"
#include "src/stop.h"
#include <math.h>
#include <stdio.h>

typedef struct step_result {
  double loss, norm, lr;
  int bad;       /* parameter with a gradient that is not finite, or -1 */
  bool stop;     /* some rank wants to stop */
} step_result;

/* This rank's samples of the step, contiguous in the global batch. Returns the counted tokens. */
static int64_t load_samples(sk_train *t, sk_err *e) {
  int64_t T = t->cfg.data.sequence, counted = 0;
  int64_t first = t->meta.cursor + t->grid.at[SK_DP] * t->local;
  for (int64_t k = 0; k < t->local && !e->code; k++)
    sk_data_sample(t->data, first + k, t->ids + k * T, t->label + k * T, t->start + k * T, e);
  for (int64_t i = 0; i < t->local * T; i++) counted += t->label[i] >= 0;
  return counted;
}

static double comm_seconds(const sk_timer *t) {
  return sk_timer_seconds(t, SK_T_TP) + sk_timer_seconds(t, SK_T_CP) + sk_timer_seconds(t, SK_T_PP) +
         sk_timer_seconds(t, SK_T_REDUCE) + sk_timer_seconds(t, SK_T_GATHER) + sk_timer_seconds(t, SK_T_WAIT);
}

/* Loss of the last stage and stop wishes of all ranks, summed in rank order. The tp ranks of a stage all have
 * the same loss: one of them counts. */
static void exchange(sk_train *t, step_result *r, int64_t step) {
  double elapsed = sk_now() - t->t0, need = 2 * t->step_seconds + 1.5 * t->save_seconds;
  bool late = t->opts->max_time > 0 && elapsed + need > t->opts->max_time;
  const sk_grid *g = &t->grid;
  bool counts = g->at[SK_PP] == g->n[SK_PP] - 1 && g->at[SK_TP] == 0;
  enum { N = SK_TRAIN_EXCHANGED };
  double mine[N] = {counts ? r->loss : 0, late || sk_stop_signal(), 0, sk_train_weights_hash(t, step)}, stop = 0;
  double busy = sk_now() - comm_seconds(&t->timer);
  mine[2] = busy - t->busy_since;
  sk_timer_begin(&t->timer, SK_T_WAIT);
  SK_MPI(MPI_Allgather(mine, N, MPI_DOUBLE, t->per_rank, N, MPI_DOUBLE, t->grid.world));
  r->loss = 0;
  for (int i = 0; i < t->grid.size; i++) {
    r->loss += t->per_rank[N * i];
    stop += t->per_rank[N * i + 1];
  }
  r->stop = stop > 0;
  sk_timer_end(&t->timer);
}

/* Gradients of the whole global batch, each rank its slice; the loss before the update. */
static int gradients(sk_train *t, step_result *r, int64_t step, sk_err *e) {
  sk_engine *g = &t->engine;
  const sk_grid *grid = &t->grid;
  t->busy_since = sk_now() - comm_seconds(&t->timer);
  sk_timer_begin(&t->timer, SK_T_DATA);
  int64_t counted = load_samples(t, e), all;
  sk_timer_end(&t->timer);
  sk_timer_begin(&t->timer, SK_T_WAIT);
  if (sk_agree(grid->world, e) == SK_OK)
    SK_MPI(MPI_Allreduce(&counted, &all, 1, MPI_INT64_T, MPI_SUM, grid->line[SK_DP]));
  sk_timer_end(&t->timer);
  if (e->code) return e->code;
  if (all == 0) all = 1; /* every document is one token long: nothing to learn, nothing to divide */
  sk_engine_step(g, t->ids, t->label, t->start, 1.0 / (double)all);
  r->loss = sk_engine_take_loss(g);
  r->norm = sk_optim_norm(&g->opt, &g->ctx, grid->zero, grid->model, g->model.all.n, &r->bad);
  exchange(t, r, step);
  r->loss /= (double)all;
  sk_train_count_busy(t, step);
  return sk_train_check_replicas(t, step, e);
}

/* NaN or infinity: stop with its name before anything is updated or saved, or skip the step. */
static int not_finite(sk_train *t, const step_result *r, int64_t step, bool *skip, sk_err *e) {
  const char *name = r->bad >= 0 ? t->engine.model.all.p[r->bad].name : NULL;
  char where[160] = "all gradients are finite";
  if (name) snprintf(where, sizeof where, "the gradient of %s is not finite", name);
  *skip = t->cfg.train.on_nan == SK_NAN_SKIP;
  if (*skip) {
    sk_progress_clear();
    sk_warn("step %lld skipped: loss %g, %s", (long long)step, r->loss, where);
    sk_metric_begin(t->run);
    sk_metric_str(t->run, "event", "skip");
    sk_metric_int(t->run, "step", step);
    sk_metric_num(t->run, "loss", r->loss);
    sk_metric_str(t->run, "parameter", name ? name : "");
    sk_metric_end(t->run);
    return SK_OK;
  }
  return sk_fail(e, SK_FAILED,
                 "step %lld: loss %g, %s. Nothing was updated and nothing of it saved; the latest "
                 "checkpoint is %s.\nTry a smaller optimizer.lr, a longer warmup or a smaller "
                 "optimizer.clip, or train.on_nan: skip.",
                 (long long)step, r->loss, where, t->saved_path[0] ? t->saved_path : "none");
}

static int train_step(sk_train *t, int64_t step, step_result *r, bool *skip, sk_err *e) {
  sk_engine *g = &t->engine;
  if (gradients(t, r, step, e) != SK_OK) return e->code;
  r->lr = sk_lr(&t->cfg, step);
  *skip = false;
  if ((r->bad >= 0 || !isfinite(r->loss)) && not_finite(t, r, step, skip, e) != SK_OK) return e->code;
  if (!*skip) {
    double clip = t->cfg.optimizer.clip, gscale = clip > 0 && r->norm > clip ? clip / r->norm : 1;
    sk_optim_update(&g->opt, &g->ctx, &t->cfg, step, r->lr, gscale);
    sk_optim_gather(&g->opt, &g->ctx);
  }
  g->ctx.op->sync(g->ctx.st);
  t->meta.step = step;
  t->meta.cursor += t->cfg.train.global_batch;
  t->meta.tokens += t->cfg.train.global_batch * t->cfg.data.sequence;
  return SK_OK;
}

static void report(sk_train *t, const step_result *r, double seconds, double data_s, double comm_s) {
  const sk_config *c = &t->cfg;
  double tokens = (double)(c->train.global_batch * c->data.sequence);
  size_t used = t->engine.ctx.op->used(t->engine.ctx.dev);
  t->step_seconds = t->step_seconds > 0 ? 0.9 * t->step_seconds + 0.1 * seconds : seconds;
  sk_step_report p = {.step = t->meta.step, .steps = c->train.steps, .tokens = t->meta.tokens,
                      .loss = r->loss, .grad_norm = r->norm, .lr = r->lr, .seconds = seconds,
                      .tokens_per_s = tokens / seconds,
                      .tflops = 3e-12 * sk_model_flops(c, c->data.sequence) * tokens / seconds,
                      .data_pct = 100 * data_s / seconds, .comm_pct = 100 * comm_s / seconds,
                      .mem_gib = used ? (double)used / (1 << 30) : sk_peak_gib(),
                      .eta = t->step_seconds * (double)(c->train.steps - t->meta.step)};
  sk_timer_begin(&t->timer, SK_T_METRICS);
  bool line = t->meta.step % c->log.every == 0 || t->meta.step == c->train.steps;
  sk_progress_step(t->run, &p, line);
  sk_run_status(t->run, "running", t->meta.step, c->train.steps, t->saved_path, "");
  sk_timer_end(&t->timer);
}

/* Runs until train.steps or until a rank wants to stop; *stopped says which. */
static int loop(sk_train *t, bool *stopped, sk_err *e) {
  const sk_config *c = &t->cfg;
  *stopped = false;
  while (t->meta.step < c->train.steps && !*stopped) {
    step_result r = {0};
    bool skip;
    double begin = sk_now(), data_s = sk_timer_seconds(&t->timer, SK_T_DATA);
    double comm_s = comm_seconds(&t->timer);
    int64_t step = t->meta.step + 1;
    sk_watch_step(t->watch, step, t->step_seconds);
    sk_trace_begin(&t->trace, &t->grid, &t->timer, step);
    if (train_step(t, step, &r, &skip, e) != SK_OK) return e->code;
    data_s = sk_timer_seconds(&t->timer, SK_T_DATA) - data_s;
    if (!skip) report(t, &r, sk_now() - begin, data_s, comm_seconds(&t->timer) - comm_s);
    bool last = t->meta.step == c->train.steps;
    *stopped = r.stop && !last;
    sk_trace_end(&t->trace, &t->grid, &t->timer, step, last || *stopped, sk_run_path(t->run));
    bool eval = c->train.eval_every > 0 && t->meta.step % c->train.eval_every == 0;
    if (t->valid && (eval || last) && sk_train_eval(t, e) != SK_OK) return e->code;
    bool save = c->checkpoint.every > 0 && t->meta.step % c->checkpoint.every == 0;
    if ((save || last || *stopped) && sk_train_save(t, last || *stopped, e) != SK_OK) return e->code;
  }
  return SK_OK;
}

static void farewell(sk_train *t, bool stopped) {
  sk_progress_clear();
  const char *dir = sk_run_path(t->run), *signal = sk_stop_signal();
  if (stopped)
    sk_say("Stopped after step %lld of %lld (%s). The same command continues from %s.",
           (long long)t->meta.step, (long long)t->cfg.train.steps,
           signal ? signal : t->opts->max_time > 0 ? "--max-time" : "asked by another rank",
           t->saved_path);
  sk_timer_print(&t->timer, t->grid.world);
  if (t->engine.ctx.op == sk_cuda) sk_say("  (the host's time: work on the GPU counts where the host waits for it)");
  sk_run_status(t->run, stopped ? "incomplete" : "complete", t->meta.step, t->cfg.train.steps,
                t->saved_path, "");
  if (sk_run_plot(t->run)) sk_say("\nLoss curve: %s/loss.png", dir);
  if (!stopped) sk_say("Done: %lld steps; checkpoint %s", (long long)t->meta.step, t->saved_path);
}

int sk_train_run(MPI_Comm comm, const sk_train_opts *opts, sk_err *e) {
  sk_train *t = sk_calloc(1, sizeof *t);
  bool done = false, stopped = false;
  if (sk_train_open(comm, opts, t, &done, e) == SK_OK && !done) {
    if (t->cfg.train.steps == 0 && t->saved_step < 0) {
      sk_timer_start(&t->timer);
      if (sk_train_save(t, true, e) == SK_OK) {
        sk_run_status(t->run, "complete", 0, 0, t->saved_path, "");
        sk_say("Done: the initial weights; checkpoint %s", t->saved_path);
      }
    } else if (t->meta.step >= t->cfg.train.steps) {
      sk_say("Nothing to do: %s has reached step %lld of train.steps %lld. Raise train.steps to go on.",
             sk_run_path(t->run), (long long)t->meta.step, (long long)t->cfg.train.steps);
    } else {
      sk_stop_install();
      sk_timer_start(&t->timer);
      t->timer.range = t->engine.ctx.op->range;
      t->engine.ctx.timer = &t->timer;
      int rc = loop(t, &stopped, e);
      sk_watch_step(t->watch, 0, 0);
      if (rc == SK_OK) farewell(t, stopped);
    }
  }
  sk_progress_clear();
  if (e->code && t->run)
    sk_run_status(t->run, "failed", t->meta.step, t->cfg.train.steps, t->saved_path, e->msg);
  sk_train_close(t);
  sk_free(t);
  return e->code;
}

double sk_sum_ranks(MPI_Comm comm, double x) {
  int n;
  SK_MPI(MPI_Comm_size(comm, &n));
  double *all = sk_calloc((size_t)n, sizeof *all), sum = 0;
  SK_MPI(MPI_Allgather(&x, 1, MPI_DOUBLE, all, 1, MPI_DOUBLE, comm));
  for (int i = 0; i < n; i++) sum += all[i];
  sk_free(all);
  return sum;
}
