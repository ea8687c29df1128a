/* inject.c: linked into a copy of the program (tests/faults/saker), around sk_engine_step:
 *   SAKER_INJECT=RANK:CALL:KIND[:ARGUMENT]   in the CALL-th step that this process makes, on that rank
 * nan   the first gradient that the rank owns
 * bit   flips bit ARGUMENT of the rank's weights (on the CPU, after the backward pass)
 * hang  the main thread stops for good; stop: the whole process (SIGSTOP); kill, term, usr1, segv: signals
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
  g->ctx.weights[bit % bits / 8] ^= (char)(1 << bit % 8);
}

static void strike(sk_engine *g, const char *kind, int64_t argument) {
  static const struct {
    const char *kind;
    int sig;
  } signals[] = {{"stop", SIGSTOP}, {"kill", SIGKILL}, {"term", SIGTERM}, {"usr1", SIGUSR1}, {"segv", SIGSEGV}};
  int64_t lo, hi;
  note(kind);
  sk_optim_slice(&g->opt, 0, &lo, &hi);
  if (!strcmp(kind, "nan")) g->ctx.grads[lo] = NAN;
  if (!strcmp(kind, "bit")) flip(g, argument);
  while (!strcmp(kind, "hang")) pause();
  for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
    if (!strcmp(kind, signals[i].kind)) raise(signals[i].sig);
}

void __wrap_sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start, double scale) {
  static int calls;
  int rank, call;
  long long argument = 0;
  char kind[16] = "";
  const char *s = getenv("SAKER_INJECT");
  __real_sk_engine_step(g, ids, label, start, scale);
  calls++;
  if (!s || sscanf(s, "%d:%d:%15[^:]:%lld", &rank, &call, kind, &argument) < 3 || rank != g->grid->rank) return;
  if (!strcmp(kind, "slow") && calls >= call) usleep((useconds_t)argument * 1000);
  else if (calls == call) strike(g, kind, argument);
}
