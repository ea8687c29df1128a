#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/progress.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static bool bar_shown;

const char *sk_duration(double seconds) {
  static char buf[2][32];
  static int at;
  char *s = buf[at = !at];
  long long t = isfinite(seconds) && seconds > 0 && seconds < 1e12 ? (long long)(seconds + 0.5) : 0;
  int n = t >= 86400 ? snprintf(s, sizeof buf[0], "%lld-%02lld:", t / 86400, t / 3600 % 24) : 0;
  if (!n) n = snprintf(s, sizeof buf[0], "%lld:", t / 3600);
  snprintf(s + n, sizeof buf[0] - (size_t)n, "%02lld:%02lld", t / 60 % 60, t % 60);
  return s;
}

double sk_peak_gib(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (double)u.ru_maxrss / (1 << 20);
}

/* mpirun gives rank 0 a pseudo-terminal even when its own output goes to a file: what counts is the
 * launcher's output. */
static bool on_terminal(void) {
  static int known = -1;
  if (known >= 0) return known;
  char path[64];
  struct stat s;
  known = isatty(STDOUT_FILENO);
  if (known && getenv("OMPI_COMM_WORLD_RANK")) {
    snprintf(path, sizeof path, "/proc/%d/fd/1", (int)getppid());
    known = stat(path, &s) == 0 && S_ISCHR(s.st_mode) && major(s.st_rdev) != 1;
  }
  return known;
}

void sk_progress_clear(void) {
  if (!bar_shown) return;
  fputs("\r\033[K", stdout);
  fflush(stdout);
  bar_shown = false;
}

static void draw_bar(const sk_step_report *r) {
  enum { WIDTH = 30 };
  char bar[WIDTH + 1];
  int full = r->steps > 0 ? (int)(WIDTH * r->step / r->steps) : 0;
  for (int i = 0; i < WIDTH; i++) bar[i] = i < full ? '#' : '.';
  bar[WIDTH] = 0;
  printf("\r\033[K[%s] %3.0f %%  step %lld of %lld, loss %.4f, %s left", bar,
         100.0 * (double)r->step / (double)(r->steps > 0 ? r->steps : 1), (long long)r->step,
         (long long)r->steps, r->loss, sk_duration(r->eta));
  fflush(stdout);
  bar_shown = true;
}

static void metrics(sk_run_dir *run, const sk_step_report *r) {
  sk_metric_begin(run);
  sk_metric_int(run, "step", r->step);
  sk_metric_num(run, "loss", r->loss);
  sk_metric_num(run, "grad_norm", r->grad_norm);
  sk_metric_num(run, "lr", r->lr);
  sk_metric_int(run, "tokens", r->tokens);
  sk_metric_num(run, "tokens_per_s", r->tokens_per_s);
  sk_metric_num(run, "step_ms", 1e3 * r->seconds);
  sk_metric_num(run, "tflops", r->tflops);
  sk_metric_num(run, "mfu", r->mfu);
  sk_metric_num(run, "mem_gib", r->mem_gib);
  sk_metric_num(run, "data_pct", r->data_pct);
  sk_metric_num(run, "comm_pct", r->comm_pct);
  sk_metric_num(run, "eta_s", r->eta);
  sk_metric_int(run, "skipped", r->skipped);
  sk_metric_int(run, "reruns", r->reruns);
  sk_metric_int(run, "rollbacks", r->rollbacks);
  sk_metric_end(run);
}

static void events(sk_run_dir *run, const sk_step_report *r) {
  static const char *const tag[] = {"train/loss", "train/grad_norm", "train/lr", "speed/tokens_per_s", "speed/step_ms",
                                    "speed/tflops", "speed/data_pct", "speed/comm_pct", "memory/gib"};
  const double value[] = {r->loss, r->grad_norm, r->lr, r->tokens_per_s, 1e3 * r->seconds,
                          r->tflops, r->data_pct, r->comm_pct, sk_peak_gib()};
  sk_events_scalars(run->events, r->step, (int)(sizeof value / sizeof *value), tag, value);
}

void sk_progress_step(sk_run_dir *run, const sk_step_report *r, bool line) {
  metrics(run, r);
  events(run, r);
  if (sk_base_rank() != 0) return;
  sk_progress_clear();
  if (line)
    sk_say("step %6lld/%lld  loss %8.5f  grad %8.4f  lr %.3e  %8.0f tok/s  %7.1f ms  %.4f TFLOP/s  ETA %s",
           (long long)r->step, (long long)r->steps, r->loss, r->grad_norm, r->lr, r->tokens_per_s,
           1e3 * r->seconds, r->tflops, sk_duration(r->eta));
  if (on_terminal()) draw_bar(r);
}
