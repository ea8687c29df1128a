#define _GNU_SOURCE
#include "src/base.h"
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int g_rank;
static void (*g_abort)(void) = abort;
static FILE *g_log;

void sk_base_init(int rank, void (*abort_job)(void)) {
  g_rank = rank;
  g_abort = abort_job;
}

int sk_base_rank(void) { return g_rank; }

const char *sk_host(void) {
  static char name[256];
  if (!name[0] && gethostname(name, sizeof name - 1) != 0) strcpy(name, "unknown-host");
  return name;
}

int sk_fail(sk_err *e, int code, const char *fmt, ...) {
  if (e->code) return e->code;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(e->msg, sizeof e->msg, fmt, ap);
  va_end(ap);
  e->code = code;
  return code;
}

void sk_die(const char *file, int line, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  fflush(stdout);
  fprintf(stderr, "saker: rank %d on %s: %s:%d: ", g_rank, sk_host(), file, line);
  vfprintf(stderr, fmt, ap);
  fputc('\n', stderr);
  fflush(stderr);
  va_end(ap);
  g_abort();
  abort();
}

static void say(FILE *out, const char *prefix, const char *fmt, va_list ap) {
  if (g_rank != 0) return;
  va_list again;
  va_copy(again, ap);
  flockfile(out); // lines of other threads stay apart
  fputs(prefix, out);
  vfprintf(out, fmt, ap);
  fputc('\n', out);
  fflush(out);
  funlockfile(out);
  if (g_log) {
    flockfile(g_log);
    fputs(prefix, g_log);
    vfprintf(g_log, fmt, again);
    fputc('\n', g_log);
    fflush(g_log);
    funlockfile(g_log);
  }
  va_end(again);
}

void sk_say(const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  say(stdout, "", fmt, ap);
  va_end(ap);
}

void sk_warn(const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  say(stderr, "warning: ", fmt, ap);
  va_end(ap);
}

int sk_log_file(const char *path) {
  if (g_log) fclose(g_log);
  g_log = path && g_rank == 0 ? fopen(path, "a") : NULL;
  return path && g_rank == 0 && !g_log ? SK_FAILED : SK_OK;
}

void *sk_malloc(size_t bytes) {
  void *p = malloc(bytes ? bytes : 1);
  SK_CHECK(p, "out of memory: %zu bytes asked for", bytes);
  return p;
}

void *sk_calloc(size_t n, size_t size) {
  void *p = calloc(n ? n : 1, size ? size : 1);
  SK_CHECK(p, "out of memory: %zu x %zu bytes asked for", n, size);
  return p;
}

void *sk_realloc(void *p, size_t bytes) {
  void *q = realloc(p, bytes ? bytes : 1);
  SK_CHECK(q, "out of memory: %zu bytes asked for", bytes);
  return q;
}

void sk_free(void *p) { free(p); }

char *sk_strdup(const char *s) {
  size_t n = strlen(s) + 1;
  return memcpy(sk_malloc(n), s, n);
}

char *sk_strf(const char *fmt, ...) {
  va_list ap;
  char *s;
  va_start(ap, fmt);
  int n = vasprintf(&s, fmt, ap);
  va_end(ap);
  SK_CHECK(n >= 0, "out of memory while formatting a message");
  return s;
}

double sk_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

void sk_sort(double *x, int64_t n) { qsort(x, (size_t)n, sizeof *x, by_value); }

bool sk_mul(int64_t a, int64_t b, int64_t *out) {
  if (a < 0 || b < 0 || (b && a > INT64_MAX / b)) return false;
  *out = a * b;
  return true;
}

static const char *scaled(double x, double base, const char *const *unit, int n) {
  static _Thread_local char buf[4][32];
  static _Thread_local int at;
  int u = 0;
  while (fabs(x) >= base && u < n - 1) x /= base, u++;
  char *s = buf[at = (at + 1) % 4];
  snprintf(s, sizeof buf[0], u ? "%.2f %s" : "%.0f %s", x, unit[u]);
  if (!unit[u][0]) s[strlen(s) - 1] = 0;
  return s;
}

const char *sk_si(double x) {
  static const char *const unit[] = {"", "k", "M", "G", "T", "P"};
  return scaled(x, 1000.0, unit, 6);
}

const char *sk_bytes(double x) {
  static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  return scaled(x, 1024.0, unit, 6);
}

static uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t sk_rand(uint64_t key, uint64_t counter) {
  return mix(mix(key + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u);
}

uint64_t sk_hash_str(uint64_t seed, const char *s) {
  uint64_t h = mix(seed + 0x9e3779b97f4a7c15u);
  for (; *s; s++) h = mix(h ^ (unsigned char)*s) + 0x9e3779b97f4a7c15u;
  return mix(h);
}

double sk_uniform(uint64_t key, uint64_t counter) {
  return ((double)(sk_rand(key, counter) >> 11) + 0.5) * 0x1p-53;
}

double sk_normal(uint64_t key, uint64_t i) {
  double r = sqrt(-2.0 * log(sk_uniform(key, 2 * i)));
  return r * cos(6.283185307179586 * sk_uniform(key, 2 * i + 1));
}
