/* direct.c: exchanges by the copy engines of GPUs, on several ranks that may share GPUs: gathers and
 * sums against plain computations on the host, to the bit. Without a GPU all is skipped. */
#include "src/direct.h"
#include <math.h>
#include <string.h>
#include "tests/tap.h"

enum { COUNT = 70001, TURNS = 50 };

static const sk_ops *op;
static sk_device *dev;
static sk_stream *st;
static sk_dtype act;
static void *kept[16]; // memory that others may have mapped lives until the end
static int n_kept;

static void *keep(int64_t n) {
  SK_CHECK(n_kept < 16, "%d blocks of memory", n_kept);
  void *p = op->alloc(dev, (size_t)n * sk_dtype_size(act) + 256);
  SK_CHECK(p, "out of memory");
  return kept[n_kept++] = p;
}

// To the nearest bf16, ties to even, where act is that: sums are rounded, and another order gives others.
static float rounded(float x) {
  uint32_t u;
  if (act == SK_F32) return x;
  memcpy(&u, &x, sizeof u);
  u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000;
  memcpy(&x, &u, sizeof u);
  return x;
}

static float value(int rank, int64_t i, int key) {
  uint64_t k = sk_rand((uint64_t)key, (uint64_t)rank);
  return rounded((float)((sk_uniform(k, (uint64_t)i) - 0.5) * exp2((double)(sk_rand(k, (uint64_t)i) % 12))));
}

static float gathered(int64_t i, int key) { return value((int)(i / COUNT), i % COUNT, key); }

static float sum(int64_t i, int key) {
  float s = value(0, tap_rank * (int64_t)COUNT + i, key);
  for (int r = 1; r < tap_size; r++) s = rounded(s + value(r, tap_rank * (int64_t)COUNT + i, key));
  return s;
}

static void *mine(int64_t n, int key) {
  float *x = sk_malloc((size_t)n * sizeof *x);
  void *raw = sk_malloc((size_t)n * sizeof *x), *at = keep(n);
  for (int64_t i = 0; i < n; i++) x[i] = value(tap_rank, i, key);
  sk_cpu_ops.cast(NULL, raw, act, x, SK_F32, n);
  op->from_host(st, at, raw, (size_t)n * sk_dtype_size(act));
  sk_free(raw);
  sk_free(x);
  return at;
}

static bool holds(const void *at, int64_t n, float (*want)(int64_t i, int key), int key) {
  float *x = sk_malloc((size_t)n * sizeof *x);
  void *raw = sk_malloc((size_t)n * sizeof *x);
  bool good = true;
  op->to_host(st, raw, at, (size_t)n * sk_dtype_size(act));
  sk_cpu_ops.cast(NULL, x, SK_F32, raw, act, n);
  for (int64_t i = 0; i < n; i++) good = good && x[i] == want(i, key);
  sk_free(raw);
  sk_free(x);
  return good;
}

// Exchanges in turn, none of which is waited for on the host: each overwrites what came before.
static void test_exchanges(sk_direct *d) {
  const int64_t all = (int64_t)COUNT * tap_size;
  const size_t bytes = COUNT * sk_dtype_size(act);
  const char *name = act == SK_F32 ? "fp32" : "bf16";
  void *src = mine(COUNT, 1), *part = mine(all, 2), *to = keep(all), *out = keep(COUNT), *ws = keep(all - COUNT);
  char *own = (char *)part + (size_t)tap_rank * bytes, *place = (char *)to + (size_t)tap_rank * bytes;
  for (int i = 0; i < TURNS; i++) {
    op->zero(st, to, (size_t)tap_size * bytes);
    sk_direct_gather(d, st, to, src, bytes);
    sk_direct_scatter(d, st, out, part, COUNT, act, ws);
  }
  tap_ok(holds(to, all, gathered, 1), "%s: gathers", name);
  tap_ok(holds(out, COUNT, sum, 2), "%s: sums in the order of ranks", name);
  op->zero(st, to, (size_t)tap_size * bytes);
  op->copy(st, place, src, bytes);
  sk_direct_gather(d, st, to, tap_rank % 2 ? place : src, bytes);
  tap_ok(holds(to, all, gathered, 1), "%s: a gather that is in place on some ranks", name);
  sk_direct_scatter(d, st, own, part, COUNT, act, ws);
  tap_ok(holds(own, COUNT, sum, 2), "%s: a sum in place", name);
}

static void test_type(int number, sk_dtype type) {
  sk_err e = {0};
  act = type;
  dev = op->open(number, act, &e);
  SK_CHECK(dev, "%s", e.msg);
  st = op->stream_create(dev);
  sk_direct *d = sk_direct_open(MPI_COMM_WORLD, op, dev);
  if (d) test_exchanges(d);
  else tap_skip("the GPUs' memory cannot be mapped");
  sk_direct_close(d);
  while (n_kept) op->free(dev, kept[--n_kept]);
  op->stream_destroy(st);
  op->close(dev);
}

int main(int argc, char **argv) {
  sk_err e = {0};
  tap_init(&argc, &argv);
  op = sk_cuda;
  int gpus = op ? op->count(&e) : 0;
  if (gpus == 0) {
    if (tap_rank == 0) printf("1..0 # SKIP no GPU: %s\n", op ? e.msg : "this program was built without CUDA");
    MPI_Finalize();
    return 0;
  }
  test_type(tap_rank % gpus, SK_F32);
  test_type(tap_rank % gpus, SK_BF16);
  return tap_done();
}
