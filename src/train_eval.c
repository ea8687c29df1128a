#include "src/progress.h"
#include "src/train.h"
#include <math.h>

/* One rank's error becomes that of all ranks that work on the same sequences (all of the same dp coordinate),
 * before they wait for each other in the layers. */
static int agree_here(const sk_grid *g, sk_err *e) {
  sk_agree(g->model, e);
  return sk_agree(g->line[SK_CP], e);
}

/* Sums the loss over the windows of this rank's copy of the model; returns the counted tokens. Loss and count are
 * of one rank in each copy and cp rank, 0 on the others. */
static int64_t sum_loss(sk_train *t, double *sum, sk_err *e) {
  const int64_t T = t->cfg.data.sequence, b = t->cfg.train.micro_batch;
  const sk_grid *g = &t->grid;
  int64_t n, counted = 0, first = sk_block(sk_data_windows(t->valid), g->n[SK_DP], g->at[SK_DP], &n);
  bool last = g->at[SK_PP] == g->n[SK_PP] - 1 && g->at[SK_TP] == 0;
  int32_t *ids = sk_calloc((size_t)(b * T) * 3, sizeof *ids), *label = ids + b * T, *start = label + b * T;
  for (int64_t k = 0; k < n && !e->code; k += b) {
    int64_t m = n - k < b ? n - k : b;
    for (int64_t i = 0; i < m && !e->code; i++)
      sk_data_sample(t->valid, first + k + i, ids + i * T, label + i * T, start + i * T, e);
    if (agree_here(g, e) != SK_OK) break;
    for (int64_t i = 0; i < m * T; i++) counted += label[i] >= 0;
    sk_engine_eval(&t->engine, m, ids, label, start);
  }
  *sum = sk_engine_take_loss(&t->engine);
  if (!last) *sum = 0;
  sk_free(ids);
  return last && g->at[SK_CP] == 0 ? counted : 0;
}

int sk_train_eval(sk_train *t, sk_err *e) {
  sk_timer_begin(&t->timer, SK_T_EVAL);
  t->engine.ctx.timer = NULL; /* all of it counts as evaluation */
  double sum = 0, begin = sk_now();
  int64_t counted = sum_loss(t, &sum, e);
  t->engine.ctx.timer = &t->timer;
  if (sk_agree(t->grid.world, e) == SK_OK) {
    sum = sk_sum_ranks(t->grid.world, sum);
    double tokens = sk_sum_ranks(t->grid.world, (double)counted), loss = sum / fmax(tokens, 1);
    sk_progress_clear();
    sk_say("eval at step %lld: valid loss %.5f, perplexity %.3f over %s tokens, %.1f s",
           (long long)t->meta.step, loss, exp(loss), sk_si(tokens), sk_now() - begin);
    sk_metric_begin(t->run);
    sk_metric_str(t->run, "event", "eval");
    sk_metric_int(t->run, "step", t->meta.step);
    sk_metric_num(t->run, "valid_loss", loss);
    sk_metric_int(t->run, "tokens", (int64_t)tokens);
    sk_metric_end(t->run);
    sk_events_scalars(t->run->events, t->meta.step, 1, &(const char *){"valid/loss"}, &loss);
  }
  t->eval_seconds = sk_now() - begin;
  sk_timer_end(&t->timer);
  return e->code;
}
