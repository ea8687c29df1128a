#include "tests/device_check.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "tests/device_tap.h"

enum { GUARD = 1024 }; // bytes on either side of an array on the GPU

const sk_ops *g_gpu;
sk_device *g_cpu_dev, *g_gpu_dev;
sk_stream *g_cpu_stream, *g_gpu_stream;
char **g_wanted;
int g_wanted_count;
int64_t g_wanted_most;
static uint64_t g_count;

double draw(void) {
  return sk_normal(42, g_count++);
}

void device_open(sk_dtype act) {
  sk_err e = {0};
  device_close();
  g_gpu_dev = g_gpu->open(0, act, &e);
  SK_CHECK(g_gpu_dev, "%s", e.msg);
  g_gpu_stream = g_gpu->stream_create(g_gpu_dev);
  if (g_cpu_dev) return;
  g_cpu_dev = sk_cpu_ops.open(0, SK_F32, &e);
  g_cpu_stream = sk_cpu_ops.stream_create(g_cpu_dev);
}

void device_close(void) {
  if (!g_gpu_dev) return;
  g_gpu->stream_destroy(g_gpu_stream);
  g_gpu->close(g_gpu_dev);
  g_gpu_dev = NULL;
}

sk_dtype device_act(void) {
  return g_gpu->act(g_gpu_dev);
}

void round_act(float *x, int64_t n) {
  if (device_act() == SK_F32) return;
  uint16_t *half = sk_malloc((size_t)n * sizeof *half);
  sk_cpu_ops.cast(g_cpu_stream, half, SK_BF16, x, SK_F32, n);
  sk_cpu_ops.cast(g_cpu_stream, x, SK_F32, half, SK_BF16, n);
  sk_free(half);
}

// ---- sizes of an element on the host and on the GPU ----

static size_t host_size(const array *a) {
  return a->kind == F64 ? 8 : 4;
}
static size_t gpu_size(const array *a) {
  return a->kind == ACT ? sk_dtype_size(device_act()) : host_size(a);
}
static int64_t elements(const array *a) {
  return a->rows * a->ld;
}
static size_t gpu_bytes(const array *a) {
  return (size_t)elements(a) * gpu_size(a) + 2 * GUARD;
}

void *add_array(trial *t, const char *name, role r, kind k, int64_t rows, int64_t cols,
                int64_t ld) {
  SK_CHECK(t->n < ARRAYS, "too many arrays");
  array *a = &t->a[t->n++];
  *a = (array){.name = name, .role = r, .kind = k, .rows = rows, .cols = cols, .ld = ld};
  a->host = sk_calloc((size_t)elements(a) + 1, host_size(a));
  if (r == OUT || k == I32) return a->host;
  const uint64_t first = g_count; // many values: drawn in parallel, each by its number
  const int64_t n = elements(a);
  g_count += (uint64_t)n;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++) {
    double x = sk_normal(42, first + (uint64_t)i);
    if (k == F64)
      ((double *)a->host)[i] = x;
    else
      ((float *)a->host)[i] = (float)x;
  }
  return a->host;
}

// ---- to the GPU and back ----

// The array's bytes as the GPU has them, poison where nothing was given.
static char *image(const array *a, int64_t shift) {
  char *bytes = sk_malloc(gpu_bytes(a)), *at = bytes + GUARD + (size_t)shift * gpu_size(a);
  memset(bytes, 0xff, gpu_bytes(a));
  if (a->role == OUT || elements(a) == 0) return bytes;
  bool same = gpu_size(a) == host_size(a);
  char *all = same ? a->host : sk_malloc((size_t)elements(a) * gpu_size(a));
  if (!same) sk_cpu_ops.cast(g_cpu_stream, all, SK_BF16, a->host, SK_F32, elements(a));
  for (int64_t r = 0; r < a->rows; r++) {
    size_t row = (size_t)(r * a->ld) * gpu_size(a);
    memcpy(at + row, all + row, (size_t)a->cols * gpu_size(a));
  }
  if (!same) sk_free(all);
  return bytes;
}

static void run_gpu(trial *t, call_fn call, const void *dims, int turn) {
  void *p[ARRAYS + 1];
  for (int i = 0; i < t->n; i++) {
    array *a = &t->a[i];
    char *bytes = image(a, t->shift);
    a->base = g_gpu->alloc(g_gpu_dev, gpu_bytes(a));
    SK_CHECK(a->base, "out of GPU memory");
    g_gpu->from_host(g_gpu_stream, a->base, bytes, gpu_bytes(a));
    p[i] = (char *)a->base + GUARD + (size_t)t->shift * gpu_size(a);
    sk_free(bytes);
  }
  enum { BLOCK = 1 << 22 };
  size_t ws_bytes = t->ws + 2 * GUARD;
  char *ws = g_gpu->alloc(g_gpu_dev, ws_bytes), *end = sk_malloc(BLOCK);
  SK_CHECK(ws, "out of GPU memory");
  memset(end, 0xff, BLOCK);
  for (size_t at = 0; at < ws_bytes; at += BLOCK)
    g_gpu->from_host(g_gpu_stream, ws + at, end, ws_bytes - at < BLOCK ? ws_bytes - at : BLOCK);
  p[t->n] = ws + GUARD; // aligned to 1024 bytes
  call(g_gpu, g_gpu_stream, p, dims);
  for (int i = 0; i < t->n; i++) {
    array *a = &t->a[i];
    a->got[turn] = sk_malloc(gpu_bytes(a));
    g_gpu->to_host(g_gpu_stream, a->got[turn], a->base, gpu_bytes(a));
    g_gpu->free(g_gpu_dev, a->base);
  }
  bool clean = true;
  for (int side = 0; side < 2; side++) {
    g_gpu->to_host(g_gpu_stream, end, side ? ws + ws_bytes - GUARD : ws, GUARD);
    for (int i = 0; i < GUARD; i++) clean = clean && end[i] == (char)0xff;
  }
  SK_CHECK(clean, "something was written beside the scratch");
  g_gpu->free(g_gpu_dev, ws);
  sk_free(end);
}

static void run_cpu(trial *t, call_fn call, const void *dims) {
  void *p[ARRAYS + 1], *keep[ARRAYS];
  for (int i = 0; i < t->n; i++) {
    array *a = &t->a[i];
    size_t bytes = ((size_t)elements(a) + 1) * host_size(a);
    keep[i] = sk_malloc(bytes); // ops on the CPU get memory of their own: an input stays as it was
    memcpy(keep[i], a->host, bytes);
    p[i] = keep[i];
  }
  p[t->n] = sk_cpu_ops.alloc(g_cpu_dev, t->ws_cpu);
  call(&sk_cpu_ops, g_cpu_stream, p, dims);
  sk_cpu_ops.free(g_cpu_dev, p[t->n]);
  for (int i = 0; i < t->n; i++) {
    array *a = &t->a[i];
    if (a->role == IN) {
      sk_free(keep[i]);
    } else {
      sk_free(a->host);
      a->host = keep[i];
    }
  }
}

// ---- checks ----

static double value(const array *a, const void *bytes, int64_t i, size_t size) {
  if (a->kind == F64) return ((const double *)bytes)[i];
  if (size == 4) return (double)((const float *)bytes)[i];
  uint32_t u = (uint32_t)((const uint16_t *)bytes)[i] << 16;
  float x;
  memcpy(&x, &u, sizeof x);
  return (double)x;
}

// 2-norm of the difference over that of the CPU's; infinity for what is not a number.
static double error(const array *a, int64_t shift) {
  const char *got = (const char *)a->got[0] + GUARD + (size_t)shift * gpu_size(a);
  double diff = 0, norm = 0;
  for (int64_t r = 0; r < a->rows; r++) {
    for (int64_t c = 0; c < a->cols; c++) {
      double x = value(a, got, r * a->ld + c, gpu_size(a)),
             y = value(a, a->host, r * a->ld + c, host_size(a));
      if (!(fabs(x) < INFINITY && fabs(y) < INFINITY)) return INFINITY;
      diff += (x - y) * (x - y);
      norm += y * y;
    }
  }
  return sqrt(norm > 0 ? diff / norm : diff);
}

static bool poisoned(const unsigned char *p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (p[i] != 0xff) return false;
  return true;
}

// What is no element of the array is still poison.
static bool surroundings(const array *a, int64_t shift) {
  const unsigned char *at = a->got[0];
  size_t first = GUARD + (size_t)shift * gpu_size(a), ld = (size_t)a->ld * gpu_size(a);
  size_t width = (size_t)a->cols * gpu_size(a), end = first + (size_t)a->rows * ld;
  bool good = poisoned(at, first) && poisoned(at + end, gpu_bytes(a) - end);
  for (int64_t r = 0; r < a->rows && good; r++)
    good = poisoned(at + first + (size_t)r * ld + width, ld - width);
  return good;
}

/* Whether the op, the first word of the name, is one of those asked for, and the trial small enough. */
static bool wanted(const trial *t, const char *name) {
  size_t n = strcspn(name, " ");
  int64_t elements = 0;
  for (int i = 0; i < t->n; i++) elements += t->a[i].rows * t->a[i].cols;
  if (g_wanted_most && elements > g_wanted_most) return false;
  for (int i = 0; i < g_wanted_count; i++)
    if (strlen(g_wanted[i]) == n && memcmp(g_wanted[i], name, n) == 0) return true;
  return g_wanted_count == 0;
}

void run_trial(trial *t, call_fn call, const void *dims, const char *fmt, ...) {
  char name[200], text[600] = "";
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(name, sizeof name, fmt, ap);
  va_end(ap);
  if (!wanted(t, name)) {
    for (int i = 0; i < t->n; i++) sk_free(t->a[i].host);
    return;
  }
  char *before[ARRAYS];
  for (int i = 0; i < t->n; i++) {
    if (t->a[i].kind == ACT) round_act(t->a[i].host, elements(&t->a[i]));
    before[i] = image(&t->a[i], t->shift);
  }
  for (int turn = 0; turn < 2; turn++) run_gpu(t, call, dims, turn);
  run_cpu(t, call, dims);
  bool good = true;
  size_t at = 0;
  const double limit = device_act() == SK_F32 ? 1e-5 : 1e-2;
  for (int i = 0; i < t->n; i++) {
    array *a = &t->a[i];
    const char *wrong = "";
    double err = a->role == IN ? 0 : error(a, t->shift);
    if (a->role == IN && memcmp(a->got[0], before[i], gpu_bytes(a)) != 0)
      wrong = " (input changed)";
    else if (!surroundings(a, t->shift))
      wrong = " (written beside it)";
    else if (memcmp(a->got[0], a->got[1], gpu_bytes(a)) != 0)
      wrong = " (two calls differ)";
    if ((a->role != IN || wrong[0]) && at < sizeof text)
      at += (size_t)snprintf(text + at, sizeof text - at, " %s %.2g%s", a->name, err, wrong);
    good = good && err <= limit && !wrong[0];
    sk_free(before[i]);
    sk_free(a->host);
    sk_free(a->got[0]);
    sk_free(a->got[1]);
  }
  device_ok(good, "%s %s%s: errors%s, limit %.0e", device_act() == SK_F32 ? "fp32" : "bf16", name,
            t->shift ? ", not aligned" : "", text, limit);
}
