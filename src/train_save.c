/* train_save.c: checkpoints of the training run: begun, moved along at the steps' ends, concluded. */
#include "src/checkpoint.h"
#include "src/progress.h"
#include "src/train.h"
#include <math.h>
#include <stdio.h>

static void note(sk_train *t, const sk_ckpt_result *r, const double waits[2]) {
  double gbps = 1e-9 * (double)r->bytes / (r->busy > 0 ? r->busy : 1e-9);
  sk_metric_begin(t->run);
  sk_metric_str(t->run, "event", "checkpoint");
  sk_metric_int(t->run, "step", r->step);
  sk_metric_str(t->run, "path", t->saved_path);
  sk_metric_int(t->run, "bytes", r->bytes);
  sk_metric_num(t->run, "seconds", r->seconds);
  sk_metric_num(t->run, "stall_s", waits[0]);
  sk_metric_num(t->run, "wait_s", waits[1]);
  sk_metric_num(t->run, "write_s", r->busy);
  sk_metric_num(t->run, "gbps", gbps);
  sk_metric_end(t->run);
  sk_progress_clear();
  sk_say("checkpoint %s: %s in %.2f s, %.3f GB/s; training stood still for %.2f s", t->saved_path,
         sk_bytes((double)r->bytes), r->seconds, gbps, waits[0] + waits[1]);
  if (waits[1] > 0.1)
    sk_say("NOTE: %.2f s of these were spent waiting for the checkpoint before; a larger checkpoint.every avoids that",
           waits[1]);
}

/* A failure counts; it is an error the third time in a row, or when there is no next time. */
static void failed(sk_train *t, int64_t step, const char *why, bool last, sk_err *e) {
  t->failed_saves++;
  sk_progress_clear();
  if (last || t->failed_saves == 3)
    sk_fail(e, SK_FAILED, "%s\n%s; the latest whole checkpoint is %s.", why,
            last ? "The run ends here without a checkpoint of this step"
                 : "This was the third failed save in a row, so the run stops",
            t->saved_path[0] ? t->saved_path : "none");
  else
    sk_warn("step %lld: checkpoint not saved (%d in a row): %s", (long long)step, t->failed_saves, why);
}

/* The save in progress, to its end. */
static void conclude(sk_train *t, bool last, sk_err *e) {
  sk_err mine = {0};
  sk_ckpt_result r;
  double begin = sk_now();
  sk_ckpt_end(t->job, &r, &mine);
  t->job = NULL;
  double waits[2] = {t->stall + (t->async && !last ? 0 : sk_now() - begin), t->waited};
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, waits, 2, MPI_DOUBLE, MPI_MAX, t->grid.world));
  if (!t->async) {
    sk_saver_close(t->saver);
    t->saver = NULL;
  }
  if (mine.code) {
    failed(t, r.step, mine.msg, last, e);
    return;
  }
  t->save_seconds = t->stall + r.busy + fmin(r.busy, r.checked); // at its own pace reading back may take longer
  t->failed_saves = 0;
  t->saved_step = r.step;
  snprintf(t->saved_path, sizeof t->saved_path, "%s/checkpoints/step-%08lld", sk_run_path(t->run), (long long)r.step);
  note(t, &r, waits);
  sk_run_status(t->run, "running", t->meta.step, t->cfg.train.steps, t->saved_path, "");
}

int sk_train_saver(sk_train *t, sk_err *e) {
  if (t->saver) return SK_OK;
  return sk_saver_open(t->grid.world, &t->engine, sk_run_path(t->run), t->meta.run_id, t->cfg.checkpoint.files,
                       &t->saver, e);
}

int sk_train_save(sk_train *t, bool last, sk_err *e) {
  sk_err mine = {0};
  bool under_way = t->job && t->job_step == t->meta.step;
  if (!t->job && t->saved_step == t->meta.step) return SK_OK;
  sk_timer_begin(&t->timer, SK_T_CHECKPOINT);
  double begin = sk_now();
  if (t->job && !under_way) conclude(t, false, e);
  t->waited = under_way ? t->waited : sk_now() - begin;
  if (!e->code && !under_way && sk_train_saver(t, &mine) == SK_OK) {
    begin = sk_now();
    t->job = sk_saver_begin(t->saver, sk_run_path(t->run), &t->meta, t->async && !last,
                            t->cfg.checkpoint.keep, t->cfg.checkpoint.keep_every);
    t->stall = sk_now() - begin;
    t->job_step = t->meta.step;
  }
  if (mine.code) failed(t, t->meta.step, mine.msg, last, e);
  if (t->job && (last || !t->async)) conclude(t, last, e);
  sk_timer_end(&t->timer);
  return e->code;
}

int sk_train_save_on(sk_train *t, bool idle, sk_err *e) {
  if (!t->job || !idle) return SK_OK;
  sk_timer_begin(&t->timer, SK_T_CHECKPOINT);
  if (sk_ckpt_go_on(t->job)) conclude(t, false, e);
  sk_timer_end(&t->timer);
  return e->code;
}

void sk_train_save_end(sk_train *t) {
  sk_err e = {0};
  if (!t->job) return;
  sk_timer_begin(&t->timer, SK_T_CHECKPOINT);
  conclude(t, false, &e);
  sk_timer_end(&t->timer);
  if (e.code) sk_warn("%s", e.msg);
}
