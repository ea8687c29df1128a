/* metrics.jsonl: one JSON object per line, appended by one write. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/run.h"
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void put(sk_run_dir *r, const char *text) {
  size_t n = strlen(text);
  if (r->n + n + 1 > r->cap) r->line = sk_realloc(r->line, r->cap = 2 * (r->n + n) + 256);
  memcpy(r->line + r->n, text, n + 1);
  r->n += n;
}

/* Quoted, with JSON's escapes; bytes that are not UTF-8 become '?'. */
static void put_quoted(sk_run_dir *r, const char *s) {
  json_t *o = json_string(s);
  if (!o) {
    char *copy = sk_strdup(s);
    for (char *p = copy; *p; p++)
      if ((unsigned char)*p >= 128) *p = '?';
    o = json_string(copy);
    sk_free(copy);
  }
  char *text = json_dumps(o, JSON_ENCODE_ANY);
  put(r, text ? text : "null");
  free(text);
  json_decref(o);
}

static void put_key(sk_run_dir *r, const char *key) {
  if (r->n > 1) put(r, ", ");
  put_quoted(r, key);
  put(r, ": ");
}

void sk_metric_begin(sk_run_dir *r) {
  r->n = 0;
  if (r->metrics >= 0) put(r, "{");
}

void sk_metric_str(sk_run_dir *r, const char *key, const char *value) {
  if (r->metrics < 0) return;
  put_key(r, key);
  put_quoted(r, value);
}

void sk_metric_int(sk_run_dir *r, const char *key, int64_t value) {
  char text[32];
  if (r->metrics < 0) return;
  put_key(r, key);
  snprintf(text, sizeof text, "%lld", (long long)value);
  put(r, text);
}

void sk_metric_num(sk_run_dir *r, const char *key, double value) {
  char text[64];
  if (r->metrics < 0) return;
  put_key(r, key);
  snprintf(text, sizeof text, "%.17g", value);
  put(r, isfinite(value) ? text : "null");
}

void sk_metric_ints(sk_run_dir *r, const char *key, const int64_t *value, int n) {
  char text[32];
  if (r->metrics < 0) return;
  put_key(r, key);
  put(r, "[");
  for (int i = 0; i < n; i++) {
    snprintf(text, sizeof text, "%s%lld", i ? ", " : "", (long long)value[i]);
    put(r, text);
  }
  put(r, "]");
}

void sk_metric_end(sk_run_dir *r) {
  if (r->metrics < 0) return;
  put(r, "}\n");
  off_t before = lseek(r->metrics, 0, SEEK_END);
  size_t done = 0;
  int err = 0;
  while (done < r->n && !err) {
    ssize_t k = write(r->metrics, r->line + done, r->n - done);
    if (k >= 0) done += (size_t)k;
    else if (errno != EINTR) err = errno;
  }
  if (!err) {
    r->warned = false;
    return;
  }
  if (ftruncate(r->metrics, before) != 0 || !r->warned)
    sk_warn("%s/metrics.jsonl: cannot be written: %s; lines are missing there", r->path, strerror(err));
  r->warned = true;
}
