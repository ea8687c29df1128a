/* inject.c: linked into a copy of the program (tests/faults/saker), around sk_engine_step:
 *   SAKER_INJECT=RANK:CALL:KIND[:ARGUMENT]   in the CALL-th step that this process makes, on that rank
 * nan   the first gradient that the rank owns
 * bit   flips bit ARGUMENT of the rank's weights (after the backward pass)
 * hang  the main thread stops for good; stop: the whole process (SIGSTOP); kill, term, usr1, segv: signals; leave: the
 *       process ends with exit code 0
 *       These come after the backward pass, of which a GPU has some left to do; with "early-" before the kind, before
 *       the step: the others are then left alone in its first exchange.
 * slow  ARGUMENT milliseconds in this and every later step
 * Each fault is noted in the file SAKER_SHIM_LOG. */
#include "src/engine.h"
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void __real_sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start, double scale);
void __wrap_sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start, double scale);

static void note(const char *kind) {
  const char *log = getenv("SAKER_SHIM_LOG");
  FILE *f = log ? fopen(log, "a") : NULL;
  if (!f) return;
  fprintf(f, "inject %s\n", kind);
  fclose(f);
}

static void flip(sk_engine *g, int64_t bit) {
  int64_t bits = 8 * g->ctx.reg->total * (int64_t)sk_dtype_size(g->ctx.act);
  char byte, *at = g->ctx.weights + bit % bits / 8;
  g->ctx.op->copy_host(g->ctx.st, &byte, at, 1);
  g->ctx.op->sync(g->ctx.st);
  byte ^= (char)(1 << bit % 8);
  g->ctx.op->from_host(g->ctx.st, at, &byte, 1);
  g->ctx.op->sync(g->ctx.st);
}

static void spoil(sk_engine *g) {
  const float nan = NAN;
  int64_t lo = 0, hi = 0;
  for (int k = 0; lo == hi && k < g->ctx.reg->n_buckets; k++) sk_optim_slice(&g->opt, k, &lo, &hi);
  g->ctx.op->from_host(g->ctx.st, &g->ctx.grads[lo], &nan, sizeof nan);
  g->ctx.op->sync(g->ctx.st);
}

static void strike(sk_engine *g, const char *kind, int64_t argument) {
  static const struct {
    const char *kind;
    int sig;
  } signals[] = {{"stop", SIGSTOP}, {"kill", SIGKILL}, {"term", SIGTERM}, {"usr1", SIGUSR1}, {"segv", SIGSEGV}};
  note(kind);
  if (!strcmp(kind, "nan")) spoil(g);
  if (!strcmp(kind, "bit")) flip(g, argument);
  if (!strcmp(kind, "leave")) _exit(0);
  while (!strcmp(kind, "hang")) pause();
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
    if (!strcmp(kind, signals[i].kind)) raise(signals[i].sig);
}

void __wrap_sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start, double scale) {
  static const char early[] = "early-";
  static int calls;
  int rank, call;
  long long argument = 0;
  char kind[24] = "";
  const char *s = getenv("SAKER_INJECT");
  bool mine = s && sscanf(s, "%d:%d:%23[^:]:%lld", &rank, &call, kind, &argument) >= 3 && rank == g->grid->rank;
  bool first = strncmp(kind, early, sizeof early - 1) == 0;
  calls++;
  if (mine && first && calls == call) strike(g, kind + sizeof early - 1, argument);
  __real_sk_engine_step(g, ids, label, start, scale);
  if (!mine || first) return;
  if (!strcmp(kind, "slow") && calls >= call) usleep((useconds_t)argument * 1000);
  else if (calls == call) strike(g, kind, argument);
}
