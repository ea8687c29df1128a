/* generate.c: the recurrent form gives the training form's logits at every position. */
#include "tests/tap.h"
#include "src/generate.h"
#include "tests/small_model.h"

enum { T = 45 };

/* Logits [T, V] of the training form. */
static float *train_logits(sk_config *c, sk_engine *g, const int32_t *ids) {
  int64_t V = c->model.vocab_size;
  float *logits = sk_malloc((size_t)(T * V) * sizeof *logits);
  int32_t label[T], start[T] = {0};
  for (int t = 0; t < T; t++) label[t] = -1;
  small_engine(g, c, 1, T);
  small_micro(g, 1, T, ids, label, start, 0);
  sk_model_logits(&g->model, &g->ctx, logits, V, g->slot[0].final.u, T);
  return logits;
}

static void compare(const char *name, int layers, const char *const *pattern, int taps) {
  sk_config c;
  sk_engine g;
  sk_decoder d;
  sk_err e = {0};
  int32_t ids[T];
  small_config(&c, layers, pattern);
  for (int i = 0; i < layers; i++) c.layer[i].m.mamba_d_conv = taps;
  small_ids(ids, T, c.model.vocab_size, 3);
  int64_t V = c.model.vocab_size;
  float *want = train_logits(&c, &g, ids), *got = sk_malloc((size_t)V * sizeof *got);
  SK_CHECK(sk_decoder_open(&d, &c, &sk_cpu_ops, T, 16, &e) == SK_OK, "%s", e.msg);
  small_copy_weights(&d.engine, &g);
  double worst = 0;
  for (int t = 0; t < T; t++) {
    sk_decoder_feed(&d, ids + t, 1, got);
    worst = fmax(worst, small_error(got, want + t * V, V));
  }
  tap_ok(worst <= 1e-5, "%s: one token at a time, worst logits error %.3g", name, worst);
  const int cut[] = {1, 2, 19, 3, 20}; /* pieces shorter and longer than the conv window and the buffer */
  sk_decoder_reset(&d);
  worst = 0;
  for (int i = 0, t = 0; i < 5; t += cut[i++]) {
    sk_decoder_feed(&d, ids + t, cut[i], got);
    worst = fmax(worst, small_error(got, want + (t + cut[i] - 1) * V, V));
  }
  tap_ok(worst <= 1e-5, "%s: in uneven pieces, worst logits error %.3g", name, worst);
  sk_decoder_close(&d);
  sk_engine_close(&g);
  sk_free(want);
  sk_free(got);
  sk_free(c.layer);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  compare("P-P-", 2, (const char *const[]){"P-", "P-"}, 4);
  compare("M*-P", 3, (const char *const[]){"M", "*-", "P"}, 2);
  compare("M, one tap", 1, (const char *const[]){"M"}, 1);
  return tap_done();
}
