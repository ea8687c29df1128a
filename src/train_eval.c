#include "src/eval.h"
#include "src/progress.h"
#include "src/train.h"
#include <math.h>

int sk_train_eval(sk_train *t, sk_err *e) {
  sk_timer_begin(&t->timer, SK_T_EVAL);
  t->engine.ctx.timer = NULL; /* all of it counts as evaluation */
  double loss = 0, begin = sk_now();
  int64_t tokens = 0;
  int code = sk_eval_loss(&t->engine, t->valid, &loss, &tokens, e);
  t->engine.ctx.timer = &t->timer;
  if (code == SK_OK) {
    sk_progress_clear();
    sk_say("eval at step %lld: valid loss %.5f, perplexity %.3f over %s tokens, %.1f s",
           (long long)t->meta.step, loss, exp(loss), sk_si((double)tokens), sk_now() - begin);
    sk_metric_begin(t->run);
    sk_metric_str(t->run, "event", "eval");
    sk_metric_int(t->run, "step", t->meta.step);
    sk_metric_num(t->run, "valid_loss", loss);
    sk_metric_int(t->run, "tokens", tokens);
    sk_metric_end(t->run);
    sk_events_scalars(t->run->events, t->meta.step, 1, &(const char *){"valid/loss"}, &loss);
  }
  t->eval_seconds = sk_now() - begin;
  sk_timer_end(&t->timer);
  return e->code;
}
