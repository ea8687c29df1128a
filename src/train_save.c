#include "src/checkpoint.h"
#include "src/progress.h"
#include "src/train.h"
#include <stdio.h>

static void note(sk_train *t, int64_t bytes) {
  double seconds = t->save_seconds;
  sk_metric_begin(t->run);
  sk_metric_str(t->run, "event", "checkpoint");
  sk_metric_int(t->run, "step", t->meta.step);
  sk_metric_str(t->run, "path", t->saved_path);
  sk_metric_int(t->run, "bytes", bytes);
  sk_metric_num(t->run, "seconds", seconds);
  sk_metric_end(t->run);
  sk_say("checkpoint %s: %s in %.2f s", t->saved_path, sk_bytes((double)bytes), seconds);
}

int sk_train_save(sk_train *t, bool last, sk_err *e) {
  sk_err mine = {0};
  int64_t bytes = 0;
  if (t->saved_step == t->meta.step) return SK_OK;
  sk_progress_clear();
  sk_timer_begin(&t->timer, SK_T_CHECKPOINT);
  double begin = sk_now();
  sk_checkpoint_save(t->grid.world, &t->engine, sk_run_path(t->run), &t->meta, &bytes, &mine);
  t->save_seconds = sk_now() - begin;
  if (mine.code == SK_OK) {
    t->failed_saves = 0;
    t->saved_step = t->meta.step;
    snprintf(t->saved_path, sizeof t->saved_path, "%s/checkpoints/step-%08lld", sk_run_path(t->run),
             (long long)t->meta.step);
    note(t, bytes);
    sk_run_status(t->run, "running", t->meta.step, t->cfg.train.steps, t->saved_path, "");
  } else if (last || ++t->failed_saves == 3) {
    sk_fail(e, SK_FAILED, "%s\n%s; the latest whole checkpoint is %s.", mine.msg,
            last ? "The run ends here without a checkpoint of this step"
                 : "This was the third failed save in a row, so the run stops",
            t->saved_path[0] ? t->saved_path : "none");
  } else {
    sk_warn("step %lld: checkpoint not saved (%d in a row): %s", (long long)t->meta.step, t->failed_saves,
            mine.msg);
  }
  sk_timer_end(&t->timer);
  return e->code;
}
