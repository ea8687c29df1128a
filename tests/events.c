/* events.c: event files for TensorBoard (io/events.h), read back by a small reader that shares no code with the
 * writer: framing, both checksums (by a table), fields in any order. */
#include "tests/tap.h"
#include "io/events.h"
#include "io/fsutil.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint32_t table[256];
static void make_table(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? 0x82f63b78u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
}
static uint32_t crc(const unsigned char *p, size_t n) {
  uint32_t c = 0xffffffffu;
  while (n--) c = table[(c ^ *p++) & 255] ^ (c >> 8);
  return c ^ 0xffffffffu;
}
static uint64_t little(const unsigned char *p, int n) {
  uint64_t x = 0;
  for (int i = 0; i < n; i++) x |= (uint64_t)p[i] << 8 * i;
  return x;
}
static bool crc_good(const unsigned char *p, size_t n) {
  uint32_t rot = (uint32_t)little(p + n, 4) - 0xa282ead8u;
  return ((rot >> 17) | (rot << 15)) == crc(p, n);
}

typedef struct field {
  int number, type;
  uint64_t value;          /* varint, fixed */
  const unsigned char *at; /* type 2: value bytes */
} field;

/* The next field of [p, end); NULL at the end or where it is malformed (then *bad). */
static const unsigned char *next(const unsigned char *p, const unsigned char *end, field *f, bool *bad) {
  uint64_t x[2] = {0};
  if (p == end) return NULL;
  for (int k = 0; k < 2; k++) {
    if (k == 1 && (f->type == 1 || f->type == 5)) break;
    for (int shift = 0;; shift += 7) {
      if (p == end || shift > 63) return *bad = true, NULL;
      x[k] |= (uint64_t)(*p & 127) << shift;
      if (!(*p++ & 128)) break;
    }
    if (k == 0) f->number = (int)(x[0] >> 3), f->type = (int)(x[0] & 7);
  }
  int64_t size = f->type == 1 ? 8 : f->type == 5 ? 4 : f->type == 2 ? (int64_t)x[1] : 0;
  if (size > end - p || f->type == 3 || f->type == 4) return *bad = true, NULL;
  f->value = f->type == 1 || f->type == 5 ? little(p, (int)size) : x[1];
  f->at = p;
  return p + size;
}

typedef struct event {
  double time;
  int64_t step;
  char version[32];
  int n;
  char tag[16][32];
  float value[16];
} event;

static void read_value(const unsigned char *p, const unsigned char *end, event *v, bool *bad) {
  field f;
  while ((p = next(p, end, &f, bad))) {
    uint32_t bits = (uint32_t)f.value;
    if (f.number == 1 && f.value < 32) memcpy(v->tag[v->n], f.at, f.value);
    if (f.number == 2) memcpy(&v->value[v->n], &bits, 4);
  }
  v->n++;
}

static void read_event(const unsigned char *p, const unsigned char *end, event *v, bool *bad) {
  field f, g;
  while ((p = next(p, end, &f, bad))) {
    if (f.number == 1) memcpy(&v->time, &f.value, 8);
    if (f.number == 2) v->step = (int64_t)f.value;
    if (f.number == 3 && f.value < 32) memcpy(v->version, f.at, f.value);
    if (f.number != 5) continue;
    const unsigned char *q = f.at, *stop = f.at + f.value;
    while (v->n < 16 && (q = next(q, stop, &g, bad)))
      if (g.number == 1) read_value(g.at, g.at + g.value, v, bad);
  }
}

/* All events of a file; -1 when a record is damaged. */
static int read_file(const char *path, event *v, int cap) {
  FILE *f = fopen(path, "rb");
  static unsigned char buf[1 << 16];
  size_t size = f ? fread(buf, 1, sizeof buf, f) : 0, at = 0;
  int n = 0;
  bool bad = false;
  if (f) fclose(f);
  while (at < size && n < cap && !bad) {
    if (size - at < 16 || !crc_good(buf + at, 8)) return -1;
    uint64_t len = little(buf + at, 8);
    if (len > size - at - 16 || !crc_good(buf + at + 12, len)) return -1;
    memset(&v[n], 0, sizeof v[n]);
    read_event(buf + at + 12, buf + at + 12 + len, &v[n++], &bad);
    at += 16 + len;
  }
  return bad ? -1 : n;
}

static const char *only_file(char *path, size_t cap) {
  char **name;
  int64_t n;
  sk_err e = {0};
  path[0] = 0;
  if (sk_fs_list("run/tensorboard", &name, &n, &e) == SK_OK && n == 1)
    snprintf(path, cap, "run/tensorboard/%s", name[0]);
  sk_fs_free_names(name, n);
  return path;
}

int main(int argc, char **argv) {
  static event v[200];
  char dir[] = "/tmp/saker-events-XXXXXX", path[512];
  tap_init(&argc, &argv);
  make_table();
  tap_ok(crc((const unsigned char *)"123456789", 9) == 0xe3069283u, "the reader's CRC-32C has the published check value");
  SK_CHECK(mkdtemp(dir) && chdir(dir) == 0, "no temporary folder");
  sk_err e = {0};
  sk_events *w = sk_events_open("run", &e);
  tap_ok(w && e.code == SK_OK, "opened");
  static const char *const tag[] = {"train/loss", "lr"};
  for (int64_t s = 1; s <= 100; s++)
    sk_events_scalars(w, s * s * s * s * 1000, 2, tag, (const double[]){1.0 / (double)s, s == 50 ? NAN : -1e-30});
  sk_events_close(w);
  int n = read_file(only_file(path, sizeof path), v, 200);
  tap_ok(n == 101, "101 records with good checksums: %d", n);
  tap_ok(strstr(path, "events.out.tfevents.") != NULL, "the name that TensorBoard looks for: %s", path);
  tap_ok(!strcmp(v[0].version, "brain.Event:2") && v[0].n == 0, "the first record is the version");
  bool good = n == 101;
  for (int i = 1; good && i <= 100; i++)
    good = v[i].step == (int64_t)i * i * i * i * 1000 && v[i].n == 2 && !strcmp(v[i].tag[0], tag[0]) &&
           !strcmp(v[i].tag[1], tag[1]) && v[i].value[0] == (float)(1.0 / i) && v[i].time > 1e9 &&
           (i == 50 ? isnan(v[i].value[1]) : v[i].value[1] == -1e-30f);
  tap_ok(good, "steps up to 1e11, tags and values as written");
  FILE *f = fopen(path, "r+b"); /* the reader must see damage, else the above says nothing */
  SK_CHECK(f && fseek(f, 300, SEEK_SET) == 0, "cannot damage the file");
  int c = fgetc(f);
  fseek(f, 300, SEEK_SET);
  fputc(c ^ 4, f);
  fclose(f);
  tap_ok(read_file(path, v, 200) == -1, "a flipped bit is seen");
  f = fopen("run/file", "w");
  if (f) fclose(f);
  e = (sk_err){0};
  tap_ok(!sk_events_open("run/file", &e) && strstr(e.msg, "run/file"), "a folder that cannot be had is an error with its name");
  if (chdir("/") == 0) sk_fs_remove(dir);
  return tap_done();
}
