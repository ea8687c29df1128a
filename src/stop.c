#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/stop.h"
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t caught;

static void handler(int sig) {
  if (sig == SIGINT && caught == SIGINT) {
    signal(sig, SIG_DFL);
    raise(sig);
  }
  caught = sig;
}

static void install(void) {
  const int sigs[] = {SIGINT, SIGTERM, SIGUSR1};
  struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigemptyset(&a.sa_mask);
  for (int i = 0; i < 3; i++) sigaction(sigs[i], &a, NULL);
}

/* What it takes from the last checkpoint to the end of the job: launcher, batch system. */
enum { BATCH_MARGIN = 10 };

/* The batch job's end as a moment of sk_now: a clock that is set later on changes nothing. */
static double batch_end(void) {
  const char *text = getenv("SLURM_JOB_END_TIME");
  char *end;
  double at = text ? strtod(text, &end) : 0;
  if (!text || end == text || *end || !(at > 0 && at < 1e12)) return INFINITY;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return sk_now() + (at - ((double)now.tv_sec + 1e-9 * (double)now.tv_nsec));
}

void sk_stop_open(sk_stop *s, const char *run_dir, double began, double max_time) {
  install();
  *s = (sk_stop){.max_time = max_time > 0 ? began + max_time : INFINITY, .batch = batch_end(),
                 .file = sk_strf("%s/STOP", run_dir), .looked = -INFINITY};
}

void sk_stop_close(sk_stop *s) {
  sk_free(s->file);
  s->file = NULL;
}

sk_stop_why sk_stop_asked(sk_stop *s, double need) {
  if (caught) return SK_STOP_SIGNAL;
  if (sk_base_rank() != 0) return SK_STOP_NONE;
  double now = sk_now();
  if (now + need + BATCH_MARGIN > s->batch) return SK_STOP_BATCH;
  if (now + need > s->max_time) return SK_STOP_MAX_TIME;
  if (!s->seen && now - s->looked >= 1) {
    s->looked = now;
    s->seen = access(s->file, F_OK) == 0;
  }
  return s->seen ? SK_STOP_FILE : SK_STOP_NONE;
}

double sk_stop_left(const sk_stop *s) { return fmin(s->max_time, s->batch) - sk_now(); }

const char *sk_stop_text(sk_stop_why why) {
  switch (why) {
    case SK_STOP_FILE: return "the file STOP";
    case SK_STOP_MAX_TIME: return "--max-time";
    case SK_STOP_BATCH: return "the batch system's time limit";
    default: break;
  }
  switch (caught) {
    case SIGINT: return "SIGINT";
    case SIGTERM: return "SIGTERM";
    case SIGUSR1: return "SIGUSR1";
    default: return "a signal to another rank";
  }
}

void sk_stop_remove_file(const sk_stop *s) {
  if (sk_base_rank() == 0 && unlink(s->file) != 0 && errno != ENOENT)
    sk_warn("%s: cannot be removed (%s): the next start will stop at once", s->file, strerror(errno));
}

double sk_parse_duration(const char *s) {
  double part[4] = {0};
  int days = 0, n = 0, used = 0;
  if (sscanf(s, "%d-%n", &days, &used) == 1 && used > 0) s += used;
  else days = 0;
  for (;;) {
    if (n == 3 || *s < '0' || *s > '9' || sscanf(s, "%lf%n", &part[n++], &used) != 1) return -1;
    s += used;
    if (*s == 0) break;
    if (*s++ != ':') return -1;
  }
  double seconds = days * 86400.0;
  for (int i = 0; i < n; i++) {
    double unit = 1;
    for (int k = i + 1; k < n; k++) unit *= 60;
    seconds += part[i] * unit;
  }
  return days < 0 ? -1 : seconds;
}
