/* train.c: the training loop. One step, top to bottom: data, micro-batches forward and backward with the
 * gradients' reduction (pipeline.c), norm, update, gather (optim.c), report. */
#include "src/train.h"
#include "src/device.h"
#include "src/lr.h"
#include "src/progress.h"
#include <math.h>
#include <stdio.h>

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

/* Seconds to keep for what comes after one more step: that step again, the save in progress and the last one. */
static double time_needed(const sk_train *t) {
  int64_t every = t->cfg.train.eval_every, to_eval = every > 0 ? every - t->meta.step % every : INT64_MAX;
  double eval = t->valid && to_eval <= 2 ? t->eval_seconds : 0;
  return 2 * t->step_seconds + 1.5 * t->save_seconds * (t->job ? 2 : 1) + eval;
}

/* Loss of the last stage, stop wishes and the saves' progress of all ranks, in rank order. The tp ranks of a stage all
 * have the same loss: one of them counts. */
static void exchange(sk_train *t, sk_step_result *r) {
  enum { N = SK_TRAIN_EXCHANGED };
  const sk_grid *g = &t->grid;
  bool counts = g->at[SK_PP] == g->n[SK_PP] - 1 && g->at[SK_TP] == 0;
  const double mine[N] = {[SK_SAYS_LOSS] = counts ? r->loss : 0,
                          [SK_SAYS_STOP] = sk_stop_asked(&t->stop, time_needed(t)),
                          [SK_SAYS_IDLE] = !t->job || sk_ckpt_idle(t->job),
                          [SK_SAYS_BUSY] = sk_now() - comm_seconds(&t->timer) - t->busy_since,
                          [SK_SAYS_HASH] = sk_train_weights_hash(t)};
  sk_timer_begin(&t->timer, SK_T_WAIT);
  SK_MPI(MPI_Allgather(mine, N, MPI_DOUBLE, t->per_rank, N, MPI_DOUBLE, t->grid.world));
  r->loss = 0;
  r->stop = SK_STOP_NONE;
  r->idle = true;
  for (int i = 0; i < t->grid.size; i++) {
    const double *of = t->per_rank + N * i;
    r->loss += of[SK_SAYS_LOSS];
    if ((sk_stop_why)of[SK_SAYS_STOP] > r->stop) r->stop = (sk_stop_why)of[SK_SAYS_STOP];
    r->idle &= of[SK_SAYS_IDLE] != 0;
  }
  sk_timer_end(&t->timer);
}

int sk_train_gradients(sk_train *t, sk_step_result *r, sk_err *e) {
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
  exchange(t, r);
  r->loss /= (double)all;
  sk_train_count_busy(t);
  return sk_train_check_replicas(t, e);
}

static int train_step(sk_train *t, int64_t step, sk_step_result *r, sk_step_fate *fate, sk_err *e) {
  sk_engine *g = &t->engine;
  *fate = SK_STEP_GO;
  if (sk_train_gradients(t, r, e) != SK_OK) return e->code;
  r->lr = sk_lr(&t->cfg, step);
  if (sk_train_trouble(t, r) && sk_train_handle(t, step, r, fate, e) != SK_OK) return e->code;
  if (*fate == SK_STEP_GO) {
    double clip = t->cfg.optimizer.clip, gscale = clip > 0 && r->norm > clip ? clip / r->norm : 1;
    sk_optim_update(&g->opt, &g->ctx, &t->cfg, step, r->lr, gscale);
    sk_optim_gather(&g->opt, &g->ctx);
    sk_train_remember(t, r->loss);
  }
  g->ctx.op->sync(g->ctx.st);
  if (*fate == SK_STEP_BACK) return SK_OK;
  t->meta.step = step;
  t->meta.cursor += t->cfg.train.global_batch;
  t->meta.tokens += t->cfg.train.global_batch * t->cfg.data.sequence;
  return SK_OK;
}

static void report(sk_train *t, const sk_step_result *r, double seconds, double data_s, double comm_s) {
  const sk_config *c = &t->cfg;
  double tokens = (double)(c->train.global_batch * c->data.sequence);
  const sk_ctx *ctx = &t->engine.ctx;
  size_t used = ctx->op->used(ctx->dev);
  double peak = sk_device_peak(ctx->op->describe(ctx->dev), ctx->act) * t->grid.size;
  double flops = 3 * sk_model_flops(c, c->data.sequence) * tokens / seconds;
  t->step_seconds = t->step_seconds > 0 ? 0.9 * t->step_seconds + 0.1 * seconds : seconds;
  sk_step_report p = {.step = t->meta.step, .steps = c->train.steps, .tokens = t->meta.tokens,
                      .loss = r->loss, .grad_norm = r->norm, .lr = r->lr, .seconds = seconds,
                      .tokens_per_s = tokens / seconds,
                      .tflops = 1e-12 * flops, .mfu = peak > 0 ? flops / peak : NAN,
                      .data_pct = 100 * data_s / seconds, .comm_pct = 100 * comm_s / seconds,
                      .mem_gib = used ? (double)used / (1 << 30) : sk_peak_gib(),
                      .skipped = t->meta.skipped, .reruns = t->meta.reruns, .rollbacks = t->meta.rollbacks,
                      .eta = t->step_seconds * (double)(c->train.steps - t->meta.step)};
  sk_timer_begin(&t->timer, SK_T_METRICS);
  bool line = t->meta.step % c->log.every == 0 || t->meta.step == c->train.steps;
  sk_progress_step(t->run, &p, line);
  sk_run_status(t->run, "running", t->meta.step, c->train.steps, t->saved_path, "");
  sk_timer_end(&t->timer);
}

/* Runs until train.steps or until a rank wants to stop; *why says which. */
static int loop(sk_train *t, sk_stop_why *why, sk_err *e) {
  const sk_config *c = &t->cfg;
  *why = SK_STOP_NONE;
  while (t->meta.step < c->train.steps && !*why) {
    sk_step_result r = {0};
    sk_step_fate fate;
    double begin = sk_now(), data_s = sk_timer_seconds(&t->timer, SK_T_DATA);
    double comm_s = comm_seconds(&t->timer);
    int64_t step = t->meta.step + 1;
    sk_watch_step(t->watch, step, t->step_seconds);
    sk_timeline_begin(&t->timeline, &t->grid, &t->timer, step);
    if (train_step(t, step, &r, &fate, e) != SK_OK) return e->code;
    data_s = sk_timer_seconds(&t->timer, SK_T_DATA) - data_s;
    if (fate == SK_STEP_GO) report(t, &r, sk_now() - begin, data_s, comm_seconds(&t->timer) - comm_s);
    if (sk_train_save_on(t, r.idle, e) != SK_OK) return e->code;
    bool last = t->meta.step == c->train.steps;
    if (!last) *why = r.stop;
    sk_timeline_end(&t->timeline, &t->grid, &t->timer, step, last || *why, sk_run_path(t->run));
    if (fate != SK_STEP_BACK) {
      bool eval = c->train.eval_every > 0 && t->meta.step % c->train.eval_every == 0;
      if (t->valid && (eval || last) && sk_train_eval(t, e) != SK_OK) return e->code;
    }
    bool save = c->checkpoint.every > 0 && t->meta.step % c->checkpoint.every == 0;
    if ((save || last || *why) && sk_train_save(t, last || *why, e) != SK_OK) return e->code;
  }
  return SK_OK;
}

static void farewell(sk_train *t, sk_stop_why why) {
  sk_progress_clear();
  const char *dir = sk_run_path(t->run);
  double left = sk_stop_left(&t->stop);
  char reason[128] = "";
  if (why) {
    snprintf(reason, sizeof reason, "stopped by %s", sk_stop_text(why));
    sk_say("Stopped after step %lld of %lld (%s%s%s). The same command continues from %s.", (long long)t->meta.step,
           (long long)t->cfg.train.steps, sk_stop_text(why), isfinite(left) ? "; time left " : "",
           isfinite(left) ? sk_duration(left) : "", t->saved_path);
  }
  if (why == SK_STOP_FILE) sk_stop_remove_file(&t->stop);
  sk_timer_print(&t->timer, t->grid.world);
  if (t->engine.ctx.op == sk_cuda) sk_say("  (the host's time: work on the GPU counts where the host waits for it)");
  sk_run_status(t->run, why ? "incomplete" : "complete", t->meta.step, t->cfg.train.steps, t->saved_path, reason);
  if (sk_run_plot(t->run)) sk_say("\nLoss curve: %s/loss.png", dir);
  if (!why) sk_say("Done: %lld steps; checkpoint %s", (long long)t->meta.step, t->saved_path);
}

int sk_train_run(MPI_Comm comm, const sk_train_opts *opts, sk_err *e) {
  sk_train *t = sk_calloc(1, sizeof *t);
  bool done = false;
  sk_stop_why why = SK_STOP_NONE;
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
      sk_run_status(t->run, "complete", t->meta.step, t->cfg.train.steps, t->saved_path, ""); /* perhaps killed at the end */
    } else {
      sk_stop_open(&t->stop, sk_run_path(t->run), t->t0, opts->max_time);
      sk_timer_start(&t->timer);
      t->timer.range = t->engine.ctx.op->range;
      t->engine.ctx.timer = &t->timer;
      int rc = loop(t, &why, e);
      sk_watch_step(t->watch, 0, 0);
      sk_train_save_end(t);
      if (rc == SK_OK) farewell(t, why);
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
