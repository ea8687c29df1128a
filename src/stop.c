#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/stop.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t caught;

static void handler(int sig) {
  if (sig == SIGINT && caught == SIGINT) {
    signal(sig, SIG_DFL);
    raise(sig);
  }
  caught = sig;
}

void sk_stop_install(void) {
  const int sigs[] = {SIGINT, SIGTERM, SIGUSR1};
  struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigemptyset(&a.sa_mask);
  for (int i = 0; i < 3; i++) sigaction(sigs[i], &a, NULL);
}

const char *sk_stop_signal(void) {
  switch (caught) {
    case 0: return NULL;
    case SIGINT: return "SIGINT";
    case SIGTERM: return "SIGTERM";
    default: return "SIGUSR1";
  }
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
