/* train_trouble.c: steps whose loss or gradient is not finite, and spikes of the loss: what is done about them
 * (train.on_nan). All decisions follow from figures that are the same on every rank. */
#include "src/progress.h"
#include "src/train.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LEAST = 16, TRIES = 3 }; /* losses that make a spike's measure; rollbacks from the same place */

static bool not_finite(const sk_step_result *r) { return r->bad >= 0 || !isfinite(r->loss); }

/* Mean and standard deviation of the recent losses; false when there are too few. */
static bool usual(const sk_train *t, double *mean, double *dev) {
  const sk_ckpt_meta *m = &t->meta;
  double sum = 0, square = 0;
  if (m->n_recent < LEAST) return false;
  for (int i = 0; i < m->n_recent; i++) sum += m->recent[i];
  *mean = sum / m->n_recent;
  for (int i = 0; i < m->n_recent; i++) square += (m->recent[i] - *mean) * (m->recent[i] - *mean);
  *dev = sqrt(square / m->n_recent);
  return true;
}

static bool spike(const sk_train *t, const sk_step_result *r) {
  double mean, dev;
  if (t->cfg.train.spike == 0 || !usual(t, &mean, &dev)) return false;
  return r->loss > mean + t->cfg.train.spike * fmax(dev, 1e-3 * fabs(mean)); /* a flat curve has no deviation */
}

bool sk_train_trouble(const sk_train *t, const sk_step_result *r) { return not_finite(r) || spike(t, r); }

void sk_train_remember(sk_train *t, double loss) {
  sk_ckpt_meta *m = &t->meta;
  if (m->n_recent == SK_CKPT_RECENT)
    memmove(m->recent, m->recent + 1, (size_t)--m->n_recent * sizeof *m->recent);
  m->recent[m->n_recent++] = loss;
}

/* ---- words ---- */

static const char *parameter(const sk_train *t, const sk_step_result *r) {
  return r->bad >= 0 ? t->engine.model.all.p[r->bad].name : "";
}

/* "loss nan, the gradient of X is not finite" */
static void describe(const sk_train *t, const sk_step_result *r, char *text, size_t cap) {
  double mean = 0, dev = 0;
  if (r->bad >= 0)
    snprintf(text, cap, "loss %g, the gradient of %s is not finite", r->loss, parameter(t, r));
  else if (not_finite(r))
    snprintf(text, cap, "loss %g, all gradients are finite", r->loss);
  else if (usual(t, &mean, &dev))
    snprintf(text, cap, "loss %g, where the last %d had %.4f on average with a standard deviation of %.4f", r->loss,
             t->meta.n_recent, mean, dev);
}

static void event(sk_train *t, const char *name, int64_t step, const sk_step_result *r, const char *verdict) {
  sk_progress_clear();
  sk_metric_begin(t->run);
  sk_metric_str(t->run, "event", name);
  sk_metric_int(t->run, "step", step);
  sk_metric_num(t->run, "loss", r->loss);
  sk_metric_str(t->run, "parameter", parameter(t, r));
  if (verdict) sk_metric_str(t->run, "verdict", verdict);
  sk_metric_end(t->run);
}

/* ---- deeds ---- */

static bool same_bits(double a, double b) { return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b)); }

/* The same batch again: the same bits mean data or model, others a fault of the hardware. *r becomes the second
 * result. */
static int again(sk_train *t, int64_t step, sk_step_result *r, bool *hardware, sk_err *e) {
  sk_step_result first = *r;
  char what[256];
  describe(t, &first, what, sizeof what);
  *r = (sk_step_result){.lr = first.lr};
  if (sk_train_gradients(t, r, e) != SK_OK) return e->code;
  if (first.stop > r->stop) r->stop = first.stop;
  *hardware = !same_bits(first.loss, r->loss) || !same_bits(first.norm, r->norm) || first.bad != r->bad;
  t->meta.reruns++;
  event(t, "rerun", step, &first, *hardware ? "hardware" : "data");
  if (*hardware)
    sk_warn("step %lld: %s; computed again: loss %g, gradient norm %g. The same batch gave different results: suspect "
            "the hardware of this job's nodes", (long long)step, what, r->loss, r->norm);
  else
    sk_warn("step %lld: %s; computed again: the same bits. The data or the model are the cause", (long long)step, what);
  return SK_OK;
}

static int stop(sk_train *t, int64_t step, const sk_step_result *r, const char *why, sk_err *e) {
  char what[256];
  describe(t, r, what, sizeof what);
  sk_train_save_end(t);
  return sk_fail(e, SK_FAILED,
                 "step %lld: %s. %s. Nothing was updated and nothing of it saved; the latest "
                 "checkpoint is %s.\nTry a smaller optimizer.lr, a longer warmup or a smaller "
                 "optimizer.clip in a new run, or train.on_nan: skip or rollback.",
                 (long long)step, what, why, t->saved_path[0] ? t->saved_path : "none");
}

static int skip(sk_train *t, int64_t step, const sk_step_result *r) {
  char what[256];
  describe(t, r, what, sizeof what);
  t->meta.skipped++;
  event(t, "skip", step, r, NULL);
  sk_warn("step %lld skipped: %s", (long long)step, what);
  return SK_OK;
}

/* The newest whole checkpoint's weights and history; the data go on behind this step's batch. */
static int back(sk_train *t, int64_t step, const sk_step_result *r, sk_err *e) {
  char path[1024], what[256];
  sk_ckpt_meta old = {0};
  sk_train_save_end(t);
  describe(t, r, what, sizeof what);
  if (step > t->bad_step) t->rollbacks = 0;
  if (t->rollbacks == TRIES)
    return stop(t, step, r, "Three rollbacks did not get past the step where it began", e);
  if (sk_ckpt_find(t->grid.world, sk_run_path(t->run), path, sizeof path, e) != SK_OK) return e->code;
  if (!path[0]) return stop(t, step, r, "There is no checkpoint to go back to", e);
  if (sk_ckpt_open(t->grid.world, path, &old, NULL, e) == SK_OK &&
      sk_checkpoint_load(t->grid.world, &t->engine, path, false, e) == SK_OK) {
    t->rollbacks++;
    if (step > t->bad_step) t->bad_step = step;
    t->meta.rollbacks++;
    t->meta.step = old.step;
    t->meta.tokens = old.tokens;
    t->meta.cursor += t->cfg.train.global_batch;
    t->meta.n_recent = old.n_recent;
    memcpy(t->meta.recent, old.recent, sizeof old.recent);
    t->saved_step = old.step;
    snprintf(t->saved_path, sizeof t->saved_path, "%s", path);
    event(t, "rollback", step, r, NULL);
    sk_warn("step %lld: %s. Back to %s, and on with the data behind this step's", (long long)step, what, path);
  }
  sk_ckpt_meta_free(&old);
  return e->code;
}

int sk_train_handle(sk_train *t, int64_t step, sk_step_result *r, sk_step_fate *fate, sk_err *e) {
  int policy = t->cfg.train.on_nan;
  bool hardware = false, was_spike = !not_finite(r);
  if (policy == SK_NAN_SKIP) {
    *fate = SK_STEP_SKIP;
    return skip(t, step, r);
  }
  if (policy == SK_NAN_ROLLBACK) {
    *fate = SK_STEP_BACK;
    return back(t, step, r, e);
  }
  const sk_step_result first = *r;
  if (again(t, step, r, &hardware, e) != SK_OK) return e->code;
  const char *why = hardware ? "Computed again it was different: suspect the hardware"
                             : "Computed again it was the same: the data or the model are the cause";
  if (policy == SK_NAN_STOP) return stop(t, step, &first, why, e);
  /* rerun: a second result that is finite counts, and so does a spike that is real */
  if (not_finite(r)) return stop(t, step, r, why, e);
  if (was_spike && !hardware) sk_warn("step %lld: the spike is real and the step counts", (long long)step);
  return SK_OK;
}
