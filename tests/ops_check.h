/* ops_check.h: what a test of the device's ops needs: random inputs and poisoned outputs, the
 * comparison with a reference, finite differences of the reference. Header only; one test program
 * includes it once. Outputs start as NaN, and rows are padded with a pattern that must stay. */
#ifndef SK_TESTS_OPS_CHECK_H
#define SK_TESTS_OPS_CHECK_H
#include <string.h>
#include "kernels/ops.h"
#include "tests/tap.h"

static const sk_ops *g_op = &sk_cpu_ops;
static sk_device *g_dev;
static sk_stream *g_stream;
static uint64_t g_count; // of random numbers drawn

static const double LIMIT = 1e-5; // max|got - want| / max|want|

// Collective. MPI, the device and a stream, in the global variables; and their end, with the exit status.
static void ops_start(int *argc, char ***argv) {
  sk_err e = {0};
  tap_init(argc, argv);
  g_dev = g_op->open(0, SK_F32, &e);
  SK_CHECK(g_dev, "%s", e.msg);
  g_stream = g_op->stream_create(g_dev);
}

static int ops_stop(void) {
  g_op->stream_destroy(g_stream);
  g_op->close(g_dev);
  return tap_done();
}

// ---- matrices: the kernel's rows of stride ld and the reference's dense doubles ----

typedef struct mat {
  int64_t rows, cols, ld;
  float *f;
  double *d;
} mat;

static const uint32_t POISON = 0x7fc0dead; // a NaN

static float poison(void) {
  float x;
  memcpy(&x, &POISON, sizeof x);
  return x;
}

static bool is_poison(float x) {
  return memcmp(&x, &POISON, sizeof x) == 0;
}

static double normal(void) {
  return sk_normal(42, g_count++);
}

// An output: poison everywhere, the reference zero.
static mat output(int64_t rows, int64_t cols, int64_t ld) {
  mat m = {rows, cols, ld, g_op->alloc(g_dev, (size_t)(rows * ld) * sizeof(float)),
           sk_calloc((size_t)(rows * cols), sizeof(double))};
  SK_CHECK(m.f, "out of memory");
  for (int64_t i = 0; i < rows * ld; i++) m.f[i] = poison();
  return m;
}

// An input, or an output that is added to: N(0, 1) in fp32, the same in double.
static mat input(int64_t rows, int64_t cols, int64_t ld) {
  mat m = output(rows, cols, ld);
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) {
      m.f[i * ld + j] = (float)normal();
      m.d[i * cols + j] = (double)m.f[i * ld + j];
    }
  }
  return m;
}

static void drop(mat *m) {
  g_op->free(g_dev, m->f);
  sk_free(m->d);
}

#define DROP(...)                                                              \
  do {                                                                         \
    mat *all_[] = {__VA_ARGS__};                                               \
    for (size_t i_ = 0; i_ < sizeof all_ / sizeof *all_; i_++) drop(all_[i_]); \
  } while (0)

// A hash of all bits of n matrices, padding too, that goes on from `hash`.
static uint64_t hash_bits(uint64_t hash, const mat *const m[], int n) {
  for (int k = 0; k < n; k++) {
    for (int64_t i = 0; i < m[k]->rows * m[k]->ld; i++) {
      uint32_t u;
      memcpy(&u, &m[k]->f[i], sizeof u);
      hash = sk_rand(hash, u);
    }
  }
  return hash;
}

SK_PRINTF(2, 3) static void close_to_ref(const mat *m, const char *fmt, ...) {
  char what[200];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(what, sizeof what, fmt, ap);
  va_end(ap);
  double err = 0, max = 0;
  bool padding = true, number = true;
  for (int64_t i = 0; i < m->rows; i++) {
    for (int64_t j = 0; j < m->ld; j++) {
      float got = m->f[i * m->ld + j];
      if (j >= m->cols) {
        padding = padding && is_poison(got);
        continue;
      }
      double want = m->d[i * m->cols + j];
      number = number && !isnan(got) && !isnan(want);
      err = fmax(err, fabs((double)got - want));
      max = fmax(max, fabs(want));
    }
  }
  double relative = max > 0 ? err / max : err;
  tap_ok(padding && number && relative <= LIMIT, "%s: error %.2g, limit %.0e%s%s", what, relative,
         LIMIT, padding ? "" : ", padding overwritten", number ? "" : ", not all numbers");
}

// ---- finite differences of the references ----

typedef double (*loss_fn)(void *context);

// Checks g, the gradient of f with respect to x[n], along one random direction that leans towards g
// (so that the derivative is not small by chance).
static void check_gradient(loss_fn f, void *context, double *x, const double *g, int64_t n,
                           const char *what) {
  double *keep = sk_malloc((size_t)n * sizeof *keep), *u = sk_malloc((size_t)n * sizeof *u);
  double norm = 0, want = 0, h = 1e-5;
  for (int64_t i = 0; i < n; i++) norm += g[i] * g[i];
  for (int64_t i = 0; i < n; i++) {
    u[i] = normal() + (norm > 0 ? sqrt((double)n / norm) : 0) * g[i];
    want += u[i] * g[i];
    keep[i] = x[i];
  }
  double value[2];
  for (int side = 0; side < 2; side++) {
    for (int64_t i = 0; i < n; i++) x[i] = keep[i] + (side ? h : -h) * u[i];
    value[side] = f(context);
  }
  memcpy(x, keep, (size_t)n * sizeof *x);
  tap_close((value[1] - value[0]) / (2 * h), want, 1e-6, "finite difference: %s", what);
  sk_free(keep);
  sk_free(u);
}

static double inner(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}
#endif
