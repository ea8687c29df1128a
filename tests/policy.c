/* policy.c: what train.on_nan does about gradients that are not finite and about spikes, in whole trainings. Two
 * functions of the engine are wrapped by the linker: they spoil what the real ones have computed, for one batch
 * whenever it comes (the data are at fault), or in one call only (the hardware is). */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/folder.h"
#include "io/fsutil.h"
#include "io/tokens.h"
#include "src/train.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 24, EVERY = 5, BATCH = 4, SEQUENCE = 32 };

/* ---- the spoiler ---- */

typedef enum fault { NONE, DATA, HARDWARE, ALWAYS } fault;

static struct {
  fault kind;
  int64_t at;    /* DATA, ALWAYS: step by the first run's data order; HARDWARE: how-manieth call */
  float value;   /* of a gradient; 0: the loss is spoilt instead */
  int64_t calls; /* of the engine in this training */
  bool now;      /* this call is spoilt */
} spoil;

/* What the batches of the first run begin with, by step. */
static int32_t seen[STEPS + 1][8];
static bool recording;

void __real_sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start, double scale);
void __wrap_sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start, double scale);
double __real_sk_engine_take_loss(sk_engine *g);
double __wrap_sk_engine_take_loss(sk_engine *g);

void __wrap_sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start, double scale) {
  int64_t call = ++spoil.calls;
  __real_sk_engine_step(g, ids, label, start, scale);
  if (recording && call <= STEPS) memcpy(seen[call], ids, sizeof seen[call]);
  bool bad_data = spoil.kind == DATA && memcmp(seen[spoil.at], ids, sizeof seen[0]) == 0;
  spoil.now = bad_data || (spoil.kind == HARDWARE && call == spoil.at) || (spoil.kind == ALWAYS && call >= spoil.at);
  int64_t lo, hi;
  sk_optim_slice(&g->opt, 0, &lo, &hi);
  if (spoil.now && spoil.value != 0 && hi > lo) g->ctx.grads[lo] = spoil.value;
}

double __wrap_sk_engine_take_loss(sk_engine *g) {
  double loss = __real_sk_engine_take_loss(g);
  return spoil.now && spoil.value == 0 ? 10 * loss : loss;
}

/* ---- trainings ---- */

static void deck(void) {
  static const char text[] =
      "run: {seed: 7, device: cpu}\n"
      "model: {pattern: P-, vocab_size: 257, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,\n"
      "  num_key_value_heads: 1, head_dim: 8, intermediate_size: 24, mamba_d_ssm: 16, mamba_n_heads: 2,\n"
      "  mamba_d_head: 8, mamba_d_state: 8, mamba_chunk_size: 16, pad_token_id: null}\n"
      "data: {train: [{path: text.h5}], sequence: 32}\n"
      "train: {steps: 24, global_batch: 4, micro_batch: 1, dtype: fp32}\n"
      "optimizer: {lr: 1.0e-3}\n"
      "checkpoint: {every: 5, keep: 10}\n";
  sk_err e = {0};
  char source[64] = "text.txt";
  if (tap_rank == 0) {
    char *words = sk_calloc(20001, 1);
    for (int i = 0; i < 20000; i++) words[i] = "etaoin shrdlu\n"[sk_rand(3, (uint64_t)i) % 14];
    sk_fs_write(source, words, 20000, false, &e);
    sk_fs_write("deck.yaml", text, strlen(text), false, &e);
    sk_free(words);
  }
  sk_agree(MPI_COMM_WORLD, &e);
  if (!e.code) sk_tokens_build(MPI_COMM_WORLD, "bytes", NULL, "text.h5", 1, (char *[]){source}, &e);
  SK_CHECK(e.code == SK_OK, "%s", e.msg);
}

/* Collective. The exit code; *e as main would print it. more: a --set beside on_nan, or NULL. */
static int train(const char *dir, const char *policy, const char *more, fault kind, int64_t at, float value, sk_err *e) {
  char run[64], nan[64];
  snprintf(run, sizeof run, "run.dir=%s", dir);
  snprintf(nan, sizeof nan, "train.on_nan=%s", policy);
  char *set[] = {run, nan, (char *)(uintptr_t)(more ? more : "train.steps=24")};
  const sk_train_opts o = {.deck = "deck.yaml", .restart = "auto", .n_set = 3, .set = set};
  spoil.kind = kind;
  spoil.at = at;
  spoil.value = value;
  spoil.calls = 0;
  *e = (sk_err){0};
  int code = sk_train_run(MPI_COMM_WORLD, &o, e);
  spoil.kind = NONE;
  spoil.now = false;
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  return code;
}

/* The metrics of a run: last loss of each step, how often it appears; the events of one kind. */
typedef struct metrics {
  double loss[STEPS + 1];
  int times[STEPS + 1], steps;
  int64_t skipped, reruns, rollbacks; /* of the last line */
} metrics;

static metrics read_metrics(const char *dir) {
  metrics m = {0};
  char *path = sk_strf("%s/metrics.jsonl", dir), line[4096];
  FILE *f = fopen(path, "r");
  SK_CHECK(f, "%s is missing", path);
  while (fgets(line, sizeof line, f)) {
    json_t *o = json_loads(line, 0, NULL);
    SK_CHECK(o, "%s: %s", path, line);
    int64_t step = json_integer_value(json_object_get(o, "step"));
    if (!json_object_get(o, "event") && step <= STEPS) {
      m.loss[step] = json_number_value(json_object_get(o, "loss"));
      if (m.times[step]++ == 0) m.steps++;
      m.skipped = json_integer_value(json_object_get(o, "skipped"));
      m.reruns = json_integer_value(json_object_get(o, "reruns"));
      m.rollbacks = json_integer_value(json_object_get(o, "rollbacks"));
    }
    json_decref(o);
  }
  fclose(f);
  sk_free(path);
  return m;
}

/* How many events of that name, with that step and (unless NULL) that text anywhere in the line. */
static int events(const char *dir, const char *name, int64_t step, const char *text) {
  char *path = sk_strf("%s/metrics.jsonl", dir), line[4096];
  char *want = sk_strf("{\"event\": \"%s\", \"step\": %lld,", name, (long long)step);
  FILE *f = fopen(path, "r");
  int n = 0;
  while (f && fgets(line, sizeof line, f)) n += !strncmp(line, want, strlen(want)) && (!text || strstr(line, text));
  if (f) fclose(f);
  sk_free(want);
  sk_free(path);
  return n;
}

static bool says(const sk_err *e, const char *what) {
  bool ok = e->code == SK_FAILED && strstr(e->msg, what);
  if (!ok) tap_diag("wanted '%s': %s", what, e->msg);
  return ok;
}

static bool same(const metrics *a, const metrics *b, int from, int to) {
  bool ok = true;
  for (int i = from; i <= to; i++) ok = ok && a->times[i] && memcmp(&a->loss[i], &b->loss[i], sizeof a->loss[i]) == 0;
  return ok;
}

/* ---- tests ---- */

static metrics good;

static void stops(void) {
  sk_err e;
  metrics m;
  train("stop", "stop", NULL, DATA, 7, NAN, &e);
  tap_ok(says(&e, "step 7: loss ") && says(&e, "same: the data or the model") && says(&e, "stop/checkpoints/step-00000005"),
         "stop, data: step, verdict and latest checkpoint are named");
  m = read_metrics("stop");
  tap_ok(m.steps == 6 && same(&m, &good, 1, 6) && events("stop", "rerun", 7, "\"verdict\": \"data\"") == 1,
         "nothing of the step is in the metrics but the second try");
  train("stop2", "stop", NULL, HARDWARE, 7, INFINITY, &e);
  tap_ok(says(&e, "step 7: loss ") && says(&e, "suspect the hardware"), "stop, hardware: the verdict");
  tap_ok(train("stop", "skip", NULL, DATA, 7, NAN, &e) == SK_OK, "train.on_nan may change at the restart: skip");
}

static void skips(void) {
  sk_err e;
  int code = train("skip", "skip", NULL, DATA, 7, NAN, &e);
  metrics m = read_metrics("skip"), n;
  tap_ok(code == SK_OK && m.steps == STEPS - 1 && m.times[7] == 0 && same(&m, &good, 1, 6) && m.skipped == 1,
         "skip: one step is left out and counted");
  tap_ok(events("skip", "skip", 7, "\"parameter\": \"model.") == 1, "its event names the parameter");
  code = train("skip2", "skip", "train.steps=12", DATA, 7, NAN, &e) || train("skip2", "skip", NULL, DATA, 7, NAN, &e);
  n = read_metrics("skip2");
  tap_ok(code == SK_OK && same(&n, &m, 8, STEPS) && n.skipped == 1, "a restart behind it: the same losses and count");
}

static void reruns(void) {
  sk_err e;
  int code = train("rerun", "rerun", NULL, HARDWARE, 7, NAN, &e);
  metrics m = read_metrics("rerun");
  tap_ok(code == SK_OK && same(&m, &good, 1, STEPS) && m.reruns == 1 && m.skipped == 0,
         "rerun, hardware: the second result counts, all losses are those of a run without a fault");
  tap_ok(events("rerun", "rerun", 7, "\"verdict\": \"hardware\"") == 1, "its event has the verdict");
  train("rerun2", "rerun", NULL, DATA, 7, INFINITY, &e);
  tap_ok(says(&e, "step 7: loss ") && says(&e, "the data or the model"), "rerun, data: stops");
}

static void rollbacks(void) {
  sk_err e;
  int code = train("back", "rollback", NULL, DATA, 13, NAN, &e);
  metrics m = read_metrics("back"), n;
  tap_ok(code == SK_OK && m.steps == STEPS && m.times[11] == 2 && m.times[13] == 1 && m.rollbacks == 1 &&
             same(&m, &good, 1, 10) && events("back", "rollback", 13, NULL) == 1,
         "rollback: from step 13 to the checkpoint of step 10 and on to the end");
  tap_ok(memcmp(&m.loss[11], &good.loss[14], sizeof m.loss[11]) != 0 && m.loss[11] != good.loss[11],
         "with other data than before");
  code = train("back2", "rollback", "train.steps=17", DATA, 13, NAN, &e) || train("back2", "rollback", NULL, DATA, 13, NAN, &e);
  n = read_metrics("back2");
  tap_ok(code == SK_OK && same(&n, &m, 1, STEPS) && n.rollbacks == 1, "a restart behind it: the same losses");
  train("back3", "rollback", NULL, DATA, 3, NAN, &e);
  tap_ok(says(&e, "There is no checkpoint to go back to"), "no checkpoint yet: stops");
  train("back4", "rollback", NULL, ALWAYS, 13, NAN, &e);
  tap_ok(says(&e, "Three rollbacks did not get past"), "bad whatever the data: stops after three rollbacks");
}

static void spikes(void) {
  sk_err e;
  int code = train("calm", "stop", "train={steps: 24, global_batch: 4, micro_batch: 1, dtype: fp32, spike: 8, on_nan: stop}", NONE, 0, 0, &e);
  metrics m = read_metrics("calm"), n;
  tap_ok(code == SK_OK && same(&m, &good, 1, STEPS), "no spike: nothing changes %s", e.msg);
  const char skip[] = "train={steps: 24, global_batch: 4, micro_batch: 1, dtype: fp32, spike: 8, on_nan: skip}";
  code = train("spike", "skip", skip, DATA, 21, 0, &e);
  m = read_metrics("spike");
  tap_ok(code == SK_OK && m.steps == STEPS - 1 && m.times[21] == 0 && m.skipped == 1 &&
             events("spike", "skip", 21, "\"parameter\": \"\"") == 1, "a spike at step 21 is skipped");
  const char half[] = "train={steps: 20, global_batch: 4, micro_batch: 1, dtype: fp32, spike: 8, on_nan: skip}";
  code = train("spike2", "skip", half, DATA, 21, 0, &e) || train("spike2", "skip", skip, DATA, 21, 0, &e);
  n = read_metrics("spike2");
  tap_ok(code == SK_OK && n.skipped == 1 && same(&n, &m, 22, STEPS),
         "a restart just before it measures by the losses of the run before");
  const char rerun[] = "train={steps: 24, global_batch: 4, micro_batch: 1, dtype: fp32, spike: 8, on_nan: rerun}";
  code = train("spike3", "rerun", rerun, DATA, 21, 0, &e);
  m = read_metrics("spike3");
  tap_ok(code == SK_OK && m.steps == STEPS && m.loss[21] > 5 * m.loss[20] && m.reruns == 1, "rerun: a real spike counts");
  code = train("spike4", "rerun", rerun, HARDWARE, 21, 0, &e);
  m = read_metrics("spike4");
  tap_ok(code == SK_OK && same(&m, &good, 1, STEPS) && m.reruns == 1, "rerun: one by the hardware does not");
}

int main(int argc, char **argv) {
  sk_err e = {0};
  tap_init(&argc, &argv);
  SK_CHECK(tap_size == 2, "2 ranks are needed");
  folder_enter("policy");
  deck();
  recording = true;
  tap_ok(train("good", "stop", NULL, NONE, 0, 0, &e) == SK_OK, "24 steps without trouble %s", e.msg);
  recording = false;
  good = read_metrics("good");
  stops();
  skips();
  reruns();
  rollbacks();
  spikes();
  folder_remove();
  return tap_done();
}
