#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/events.h"
#include "io/fsutil.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CAP = 4096 };

struct sk_events {
  int fd;
  char *path;
  bool warned;
};

/* CRC-32C (Castagnoli, reflected), bit by bit: a few hundred bytes per step. */
static uint32_t crc32c(const unsigned char *p, size_t n) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < n; i++) {
    crc ^= p[i];
    for (int b = 0; b < 8; b++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
  }
  return ~crc;
}

/* TFRecord's mask, so that a CRC of data that hold CRCs is not degenerate. */
static uint32_t masked(const unsigned char *p, size_t n) {
  uint32_t crc = crc32c(p, n);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/* ---- protobuf's wire format: fields are (number << 3 | type), then the value ---- */

typedef struct text {
  unsigned char p[CAP];
  size_t n;
} text;

static void put_raw(text *t, const void *p, size_t n) {
  SK_CHECK(t->n + n <= CAP, "an event of more than %d bytes", CAP);
  memcpy(t->p + t->n, p, n);
  t->n += n;
}

static void put_varint(text *t, uint64_t x) {
  unsigned char byte;
  do {
    byte = (unsigned char)((x & 127) | (x > 127 ? 128 : 0));
    put_raw(t, &byte, 1);
  } while (x >>= 7);
}

static void put_little(text *t, uint64_t x, int bytes) {
  for (int i = 0; i < bytes; i++) {
    unsigned char byte = (unsigned char)(x >> 8 * i);
    put_raw(t, &byte, 1);
  }
}

static void put_bytes(text *t, int field, const void *p, size_t n) {
  put_varint(t, (uint64_t)field << 3 | 2);
  put_varint(t, n);
  put_raw(t, p, n);
}

static void put_fixed(text *t, int field, uint64_t bits, int bytes) {
  put_varint(t, (uint64_t)field << 3 | (bytes == 8 ? 1 : 5));
  put_little(t, bits, bytes);
}

static void put_double(text *t, int field, double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  put_fixed(t, field, bits, 8);
}

static void put_float(text *t, int field, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  put_fixed(t, field, bits, 4);
}

/* ---- records ---- */

static void write_record(sk_events *w, const text *event) {
  text record = {.n = 0};
  put_little(&record, event->n, 8);
  put_little(&record, masked(record.p, 8), 4);
  put_raw(&record, event->p, event->n);
  put_little(&record, masked(event->p, event->n), 4);
  ssize_t n = write(w->fd, record.p, record.n);
  if (n == (ssize_t)record.n || w->warned) return;
  sk_warn("%s: cannot be written: %s; TensorBoard will miss steps", w->path, n < 0 ? strerror(errno) : "disk full");
  w->warned = true;
}

static void begin(text *event) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  event->n = 0;
  put_double(event, 1, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
}

sk_events *sk_events_open(const char *run_dir, sk_err *e) {
  char *dir = sk_strf("%s/tensorboard", run_dir);
  sk_events *w = NULL;
  if (sk_fs_mkdirs(dir, e) == SK_OK) {
    w = sk_calloc(1, sizeof *w);
    w->path = sk_strf("%s/events.out.tfevents.%lld.%s.%ld", dir, (long long)time(NULL), sk_host(), (long)getpid());
    w->fd = open(w->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (w->fd < 0) sk_fs_fail(e, w->path, "written", errno);
  }
  sk_free(dir);
  if (e->code) {
    sk_events_close(w);
    return NULL;
  }
  if (w) {
    static const char version[] = "brain.Event:2";
    text event;
    begin(&event);
    put_bytes(&event, 3, version, sizeof version - 1);
    write_record(w, &event);
  }
  return w;
}

void sk_events_close(sk_events *w) {
  if (!w) return;
  if (w->fd >= 0) close(w->fd);
  sk_free(w->path);
  sk_free(w);
}

void sk_events_scalars(sk_events *w, int64_t step, int n, const char *const *tag, const double *value) {
  if (!w) return;
  text event, summary = {.n = 0}, one;
  for (int i = 0; i < n; i++) {
    one.n = 0;
    put_bytes(&one, 1, tag[i], strlen(tag[i]));
    put_float(&one, 2, (float)value[i]);
    put_bytes(&summary, 1, one.p, one.n);
  }
  begin(&event);
  put_varint(&event, 2 << 3);
  put_varint(&event, (uint64_t)step);
  put_bytes(&event, 5, summary.p, summary.n);
  write_record(w, &event);
}
