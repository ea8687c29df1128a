/* device.c: every op of the CUDA device against the CPU's, in fp32 and bf16, on odd and on large
 * shapes; what the device itself promises; small models trained on both. Without a GPU all of it is
 * skipped. Arguments name ops to try, and then nothing else runs; before them may stand fp32 or bf16, to try no other
 * type, and a number, the most elements of a trial, for tools that are slow:
 *   compute-sanitizer --tool racecheck tests/device.1 4000000 bf16 attention_grad ssd_grad */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/device_check.h"
#include "tests/device_tap.h"
#include "tests/tap.h"

void device_ok(bool ok, const char *fmt, ...) {
  char text[1000];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  tap_ok(ok, "%s", text);
}

// ---- the device itself ----

static void test_device(void) {
  int missing = -1;
  sk_err e = {0};
  tap_ok(sk_ops_complete(g_gpu, &missing), "the table is complete (%d)", missing);
  int n = g_gpu->count(&e);
  tap_ok(n > 0 && e.code == SK_OK, "%d GPUs", n);
  tap_ok(!g_gpu->open(n, SK_F32, &e) && strstr(e.msg, "CUDA_VISIBLE_DEVICES"), "one too many: %s",
         e.msg);
  tap_ok(strlen(g_gpu->describe(g_gpu_dev)) > 10, "%s", g_gpu->describe(g_gpu_dev));
  tap_ok(!g_gpu->alloc(g_gpu_dev, (size_t)1 << 50), "asking for too much memory gives NULL");
  void *p = g_gpu->alloc(g_gpu_dev, 1), *q = g_gpu->alloc(g_gpu_dev, 0);
  tap_ok(p && q && (uintptr_t)p % 256 == 0, "memory is aligned to 256 bytes");
  g_gpu->free(g_gpu_dev, p);
  g_gpu->free(g_gpu_dev, q);
}

static bool copies(size_t bytes) {
  unsigned char *a = sk_malloc(bytes + 1), *b = sk_malloc(bytes + 1);
  char *x = g_gpu->alloc(g_gpu_dev, bytes + 64), *y = g_gpu->alloc(g_gpu_dev, bytes + 64);
  for (size_t i = 0; i < bytes; i++) a[i] = (unsigned char)sk_rand(3, i);
  memset(b, 0, bytes + 1);
  g_gpu->from_host(g_gpu_stream, x, a, bytes);
  g_gpu->copy(g_gpu_stream, y + 1, x, bytes);
  g_gpu->to_host(g_gpu_stream, b, y + 1, bytes);
  bool same = memcmp(a, b, bytes) == 0 && b[bytes] == 0;
  g_gpu->zero(g_gpu_stream, y + 1, bytes);
  g_gpu->to_host(g_gpu_stream, b, y + 1, bytes);
  for (size_t i = 0; i < bytes; i++) same = same && b[i] == 0;
  g_gpu->free(g_gpu_dev, x);
  g_gpu->free(g_gpu_dev, y);
  sk_free(a);
  sk_free(b);
  return same;
}

// Many pieces at a time, to page-locked memory: after what the stream has to do first, each at its place.
static bool pieces(void) {
  enum { N = 1 << 22, MANY = 700, SUMS = 50 };
  float *x = g_gpu->alloc(g_gpu_dev, N * sizeof *x), *y = g_gpu->alloc(g_gpu_dev, N * sizeof *y);
  float *in = sk_malloc(N * sizeof *in), *got = g_gpu->host_alloc(g_gpu_dev, N * sizeof *got);
  sk_copy list[MANY];
  sk_sum sum[MANY];
  for (int i = 0; i < N; i++) in[i] = (float)(i % 1000);
  memset(got, 0xff, N * sizeof *got);
  g_gpu->zero(g_gpu_stream, y, N * sizeof *y);
  g_gpu->from_host(g_gpu_stream, x, in, N * sizeof *x);
  for (int i = 0; i < SUMS; i++) g_gpu->add_f32(g_gpu_stream, y, y, x, N);
  for (int i = 0; i < MANY; i++) // of 1 to 5000 elements, from the first to the last and to places in another order
    list[i] = (sk_copy){got + 5001 * (i * 3 % MANY), y + 5990 * i, (size_t)(i * 37 % 5000 + 1) * sizeof *y};
  bool same = !g_gpu->copies_host(g_gpu_stream, MANY, list, sum);
  g_gpu->sync(g_gpu_stream);
  for (int i = 0; i < MANY; i++) {
    const float *to = list[i].dst;
    const int n = i * 37 % 5000 + 1;
    for (int k = 0; k < n; k++) same = same && to[k] == SUMS * in[5990 * i + k];
    same = same && isnan(to[n]);
  }
  g_gpu->free(g_gpu_dev, x);
  g_gpu->free(g_gpu_dev, y);
  g_gpu->host_free(g_gpu_dev, got);
  sk_free(in);
  return same;
}

// Work on another stream waits for an event; without it the copy would come too early.
static bool two_streams(void) {
  enum { N = 1 << 26 };
  sk_stream *other = g_gpu->stream_create(g_gpu_dev);
  sk_event *ev = g_gpu->event_create(g_gpu_dev);
  float *x = g_gpu->alloc(g_gpu_dev, N * sizeof *x), *y = g_gpu->alloc(g_gpu_dev, N * sizeof *y),
        got = 0, one = 1;
  g_gpu->zero(g_gpu_stream, x, N * sizeof *x);
  g_gpu->zero(g_gpu_stream, y, N * sizeof *y);
  g_gpu->from_host(g_gpu_stream, x + N - 1, &one, sizeof one);
  for (int i = 0; i < 20; i++) g_gpu->add_f32(g_gpu_stream, y, y, x, N);
  g_gpu->record(ev, g_gpu_stream);
  g_gpu->wait(other, ev);
  g_gpu->to_host(other, &got, y + N - 1, sizeof got);
  g_gpu->event_destroy(ev);
  g_gpu->stream_destroy(other);
  g_gpu->free(g_gpu_dev, x);
  g_gpu->free(g_gpu_dev, y);
  return got == 20;
}

static void test_copies(void) {
  static const size_t size[] = {0, 1, 1000, 4 << 20, (4 << 20) + 1, (8 << 20) - 3, (21 << 20) + 5};
  bool good = true;
  for (int i = 0; i < 7; i++) good = copies(size[i]) && good;
  tap_ok(good, "copies and zero, up to 21 MiB and odd");
  tap_ok(pieces(), "700 pieces to the host at once");
  tap_ok(two_streams(), "a stream waits for an event of another");

  enum { ROWS = 37, WIDTH = 29, LDD = 33, LDS = 50 };
  unsigned char a[ROWS * LDS], b[ROWS * LDD];
  for (int i = 0; i < ROWS * LDS; i++) a[i] = (unsigned char)sk_rand(4, (uint64_t)i);
  memset(b, 0xff, sizeof b);
  char *x = g_gpu->alloc(g_gpu_dev, sizeof a), *y = g_gpu->alloc(g_gpu_dev, sizeof b);
  g_gpu->from_host(g_gpu_stream, x, a, sizeof a);
  g_gpu->from_host(g_gpu_stream, y, b, sizeof b);
  g_gpu->copy2d(g_gpu_stream, y, LDD, x, LDS, WIDTH, ROWS);
  g_gpu->to_host(g_gpu_stream, b, y, sizeof b);
  good = true;
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < LDD; c++)
      good = good && b[r * LDD + c] == (c < WIDTH ? a[r * LDS + c] : 0xff);
  tap_ok(good, "copy2d");
  g_gpu->free(g_gpu_dev, x);
  g_gpu->free(g_gpu_dev, y);
}

static bool cast_case(int64_t n, int64_t shift) {
  float *in = sk_calloc((size_t)n, sizeof *in), *out = sk_calloc((size_t)n, sizeof *out);
  uint16_t *want = sk_calloc((size_t)n, 2), *half = sk_calloc((size_t)n, 2);
  static const float special[] = {1 + 0x1p-8f, 1 + 0x3p-8f, -0x1.fffffep127f, 0x1p-130f, NAN,
                                  0,           -0.0f,       INFINITY};
  for (int64_t i = 0; i < n; i++) in[i] = i % 9 < 8 ? special[i % 9] : (float)draw();
  float *x = g_gpu->alloc(g_gpu_dev, (size_t)(n + 16) * 4);
  uint16_t *y = g_gpu->alloc(g_gpu_dev, (size_t)(n + 16) * 2);
  g_gpu->from_host(g_gpu_stream, x + shift, in, (size_t)n * 4);
  g_gpu->cast(g_gpu_stream, y + shift, SK_BF16, x + shift, SK_F32, n);
  g_gpu->zero(g_gpu_stream, x, (size_t)(n + 16) * 4);
  g_gpu->cast(g_gpu_stream, x + shift, SK_F32, y + shift, SK_BF16, n);
  g_gpu->to_host(g_gpu_stream, half, y + shift, (size_t)n * 2);
  g_gpu->to_host(g_gpu_stream, out, x + shift, (size_t)n * 4);
  sk_cpu_ops.cast(g_cpu_stream, want, SK_BF16, in, SK_F32, n);
  bool good = true;
  for (int64_t i = 0; i < n; i++) {
    float back;
    sk_cpu_ops.cast(g_cpu_stream, &back, SK_F32, &want[i], SK_BF16, 1);
    good = good && (isnan(in[i]) ? isnan(out[i]) : half[i] == want[i] && out[i] == back);
  }
  g_gpu->free(g_gpu_dev, x);
  g_gpu->free(g_gpu_dev, y);
  sk_free(in);
  sk_free(out);
  sk_free(want);
  sk_free(half);
  return good;
}

// ---- linear algebra ----

typedef struct gemm_dims {
  bool ta, tb;
  int64_t m, n, k, lda, ldb, ldc;
  double alpha, beta;
  bool wide; // C is fp32
} gemm_dims;

static void call_gemm(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const gemm_dims *d = dims;
  sk_dtype act = op == g_gpu ? device_act() : SK_F32;
  op->gemm(s, d->ta, d->tb, d->m, d->n, d->k, d->alpha, p[1], d->lda, p[2], d->ldb, d->beta, p[0],
           d->ldc, d->wide ? SK_F32 : act);
}

static void test_gemm(int64_t m, int64_t n, int64_t k, int64_t pad, int64_t shift) {
  for (int i = 0; i < 8; i++) {
    gemm_dims d = {.ta = i & 1,
                   .tb = i & 2,
                   .m = m,
                   .n = n,
                   .k = k,
                   .alpha = i % 3 ? -0.37 : 1,
                   .wide = i & 4};
    d.beta = (i + (i >> 2)) % 2 || m * n == 1 ? 0 : 1.5; // one number may cancel
    d.lda = (d.ta ? m : k) + pad, d.ldb = (d.tb ? k : n) + pad, d.ldc = n + pad;
    trial t = {.shift = shift};
    add_array(&t, "C", d.beta == 0 ? OUT : ADD, d.wide ? F32 : ACT, m, n, d.ldc);
    add_array(&t, "A", IN, ACT, d.ta ? k : m, d.ta ? m : k, d.lda);
    add_array(&t, "B", IN, ACT, d.tb ? n : k, d.tb ? k : n, d.ldb);
    run_trial(&t, call_gemm, &d, "gemm %c%c %d x %d x %d, pad %d, beta %g%s", d.ta ? 'T' : 'N',
              d.tb ? 'T' : 'N', (int)m, (int)n, (int)k, (int)pad, d.beta, d.wide ? ", fp32 C" : "");
  }
}

typedef struct rows_dims {
  int64_t n, cols, ld;
  double scale;
} rows_dims;

static void call_bias(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->bias(s, p[0], d->ld, p[1], d->scale, d->n, d->cols);
}

static void call_bias_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->bias_grad(s, p[0], p[1], d->ld, d->scale, d->n, d->cols);
}

static void call_add(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  int64_t n = ((const rows_dims *)dims)->n;
  op->add(s, p[0], p[1], p[2], n);
  op->add(s, p[1], p[1], p[0], n);
  op->add_f32(s, p[3], p[4], p[5], n);
  op->add_f32(s, p[5], p[4], p[5], n);
}

static void test_rows(int64_t n, int64_t cols, int64_t pad, int64_t shift) {
  rows_dims d = {n, cols, cols + pad, -1.3};
  trial t = {.shift = shift};
  add_array(&t, "y", ADD, ACT, n, cols, d.ld);
  add_array(&t, "bias", IN, ACT, 1, cols, cols);
  run_trial(&t, call_bias, &d, "bias [%d, %d]", (int)n, (int)cols);
  t = (trial){.shift = shift};
  add_array(&t, "dbias", ADD, F32, 1, cols, cols);
  add_array(&t, "dy", IN, ACT, n, cols, d.ld);
  run_trial(&t, call_bias_grad, &d, "bias_grad [%d, %d]", (int)n, (int)cols);
  t = (trial){.shift = shift};
  add_array(&t, "y", OUT, ACT, 1, n, n);
  add_array(&t, "a", ADD, ACT, 1, n, n);
  add_array(&t, "b", IN, ACT, 1, n, n);
  add_array(&t, "y32", OUT, F32, 1, n, n);
  add_array(&t, "a32", IN, F32, 1, n, n);
  add_array(&t, "b32", ADD, F32, 1, n, n);
  run_trial(&t, call_add, &d, "add, add_f32 [%d]", (int)n);
}

// ---- embedding ----

typedef struct embed_dims {
  int64_t n, d, v0, nv, pad;
} embed_dims;

static void call_embed(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const embed_dims *d = dims;
  op->embed(s, p[0], p[1], p[2], 5.65, d->n, d->d, d->v0, d->nv);
}

static void call_embed_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const embed_dims *d = dims;
  op->embed_grad(s, p[0], p[1], p[2], 5.65, d->n, d->d, d->v0, d->nv, d->pad);
}

// One of `often` tokens is the id v0 + 1.
static void fill_ids(int32_t *ids, int64_t n, int64_t vocab, int64_t v0, int often) {
  for (int64_t t = 0; t < n; t++) {
    uint64_t r = sk_rand(7, (uint64_t)t);
    ids[t] =
        r % (uint64_t)often == 0 ? (int32_t)(v0 + 1) : (int32_t)(sk_rand(8, r) % (uint64_t)vocab);
  }
}

static void test_embed(embed_dims d, int64_t vocab, int often) {
  trial t = {0};
  add_array(&t, "h", OUT, ACT, d.n, d.d, d.d);
  fill_ids(add_array(&t, "ids", IN, I32, 1, d.n, d.n), d.n, vocab, d.v0, often);
  add_array(&t, "E", IN, ACT, d.nv, d.d, d.d);
  run_trial(&t, call_embed, &d, "embed [%d, %d], rows %d+%d", (int)d.n, (int)d.d, (int)d.v0,
            (int)d.nv);
  t = (trial){0};
  add_array(&t, "dE", ADD, F32, d.nv, d.d, d.d);
  fill_ids(add_array(&t, "ids", IN, I32, 1, d.n, d.n), d.n, vocab, d.v0, often);
  add_array(&t, "dh", IN, ACT, d.n, d.d, d.d);
  run_trial(&t, call_embed_grad, &d, "embed_grad [%d, %d], rows %d+%d, pad %d, one id 1/%d",
            (int)d.n, (int)d.d, (int)d.v0, (int)d.nv, (int)d.pad, often);
}

// ---- norms and activations ----

static void call_norm(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->rmsnorm(s, p[0], p[1], p[2], p[3], p[4], p[5], d->n, d->cols, 1e-5);
}

// sum is where res is.
static void call_norm_in_place(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->rmsnorm(s, p[0], p[1], p[2], p[3], p[2], p[4], d->n, d->cols, 1e-5);
}

static void call_norm_plain(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->rmsnorm(s, p[0], p[1], NULL, p[2], NULL, p[3], d->n, d->cols, 1e-5);
}

static void call_norm_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->rmsnorm_grad(s, p[0], p[1], p[2], p[3], p[4], p[5], d->n, d->cols);
}

static void test_norm(int64_t n, int64_t cols, int64_t shift) {
  rows_dims d = {n, cols, cols, 0};
  trial t = {.shift = shift};
  add_array(&t, "y", OUT, ACT, n, cols, cols);
  add_array(&t, "rstd", OUT, F32, 1, n, n);
  add_array(&t, "sum", OUT, ACT, n, cols, cols);
  add_array(&t, "x", IN, ACT, n, cols, cols);
  add_array(&t, "res", IN, ACT, n, cols, cols);
  add_array(&t, "w", IN, ACT, 1, cols, cols);
  run_trial(&t, call_norm, &d, "rmsnorm [%d, %d] with residual", (int)n, (int)cols);
  t = (trial){.shift = shift};
  add_array(&t, "y", OUT, ACT, n, cols, cols);
  add_array(&t, "rstd", OUT, F32, 1, n, n);
  add_array(&t, "sum", ADD, ACT, n, cols, cols);
  add_array(&t, "x", IN, ACT, n, cols, cols);
  add_array(&t, "w", IN, ACT, 1, cols, cols);
  run_trial(&t, call_norm_in_place, &d, "rmsnorm [%d, %d] with residual in place", (int)n,
            (int)cols);
  t = (trial){.shift = shift};
  add_array(&t, "y", OUT, ACT, n, cols, cols);
  add_array(&t, "rstd", OUT, F32, 1, n, n);
  add_array(&t, "x", IN, ACT, n, cols, cols);
  add_array(&t, "w", IN, ACT, 1, cols, cols);
  run_trial(&t, call_norm_plain, &d, "rmsnorm [%d, %d]", (int)n, (int)cols);
  t = (trial){.shift = shift};
  add_array(&t, "dx", ADD, ACT, n, cols, cols);
  add_array(&t, "dw", ADD, F32, 1, cols, cols);
  add_array(&t, "dy", IN, ACT, n, cols, cols);
  float *x = add_array(&t, "x", IN, ACT, n, cols, cols),
        *r = add_array(&t, "rstd", IN, F32, 1, n, n);
  add_array(&t, "w", IN, ACT, 1, cols, cols);
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;
    for (int64_t c = 0; c < cols; c++) sum += (double)x[i * cols + c] * (double)x[i * cols + c];
    r[i] = (float)(1 / sqrt(sum / (double)cols + 1e-5));
  }
  run_trial(&t, call_norm_grad, &d, "rmsnorm_grad [%d, %d]", (int)n, (int)cols);
}

static void call_swiglu(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->swiglu(s, p[0], p[1], d->scale, d->n, d->cols);
}

static void call_swiglu_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->swiglu_grad(s, p[0], p[1], p[2], d->scale, d->n, d->cols);
}

static void call_swiglu_in_place(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->swiglu_grad(s, p[0], p[1], p[0], d->scale, d->n, d->cols);
}

static void test_swiglu(int64_t n, int64_t F, int64_t shift) {
  rows_dims d = {n, F, F, 0.83};
  trial t = {.shift = shift};
  add_array(&t, "a", OUT, ACT, n, F, F);
  add_array(&t, "gu", IN, ACT, n, 2 * F, 2 * F);
  run_trial(&t, call_swiglu, &d, "swiglu [%d, %d]", (int)n, (int)F);
  for (int in_place = 0; in_place < 2; in_place++) {
    t = (trial){.shift = shift};
    add_array(&t, "dgu", in_place ? ADD : OUT, ACT, n, 2 * F, 2 * F);
    add_array(&t, "da", IN, ACT, n, F, F);
    if (!in_place) add_array(&t, "gu", IN, ACT, n, 2 * F, 2 * F);
    run_trial(&t, in_place ? call_swiglu_in_place : call_swiglu_grad, &d, "swiglu_grad%s [%d, %d]",
              in_place ? " in place" : "", (int)n, (int)F);
  }
}

// ---- loss and optimizer ----

typedef struct loss_dims {
  int64_t n, v0, nv, ld;
  bool loss_only;
} loss_dims;

static void call_stats(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const loss_dims *d = dims;
  op->xent_stats(s, p[0], p[1], d->ld, p[2], d->n, d->v0, d->nv);
}

static void call_xent(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const loss_dims *d = dims;
  op->xent_grad(s, p[0], d->loss_only ? NULL : p[4], p[1], d->ld, p[2], p[3], 0.3, d->n, d->v0,
                d->nv);
}

static void call_merge(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  op->xent_merge(s, p[0], p[1], 3, ((const loss_dims *)dims)->n);
}

static void call_sum(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  op->sum(s, p[0], p[1], ((const loss_dims *)dims)->n);
}

static void fill_loss(float *logits, int32_t *label, const loss_dims *d) {
  for (int64_t i = 0; i < d->n * d->ld; i++) logits[i] = 4 * logits[i] + 50;
  for (int64_t t = 0; t < d->n; t++)
    label[t] = t % 5 == 3 ? -1 : (int32_t)(sk_rand(3, (uint64_t)t) % (uint64_t)(2 * d->nv));
}

static void test_loss(loss_dims d, int64_t shift) {
  trial t = {.shift = shift};
  add_array(&t, "stats", OUT, F32, 3, d.n, d.n);
  float *logits = add_array(&t, "logits", IN, F32, d.n, d.nv, d.ld);
  fill_loss(logits, add_array(&t, "label", IN, I32, 1, d.n, d.n), &d);
  run_trial(&t, call_stats, &d, "xent_stats [%d, %d+%d]", (int)d.n, (int)d.v0, (int)d.nv);
  for (int only = 0; only < 2; only++) {
    d.loss_only = only;
    t = (trial){.shift = shift};
    add_array(&t, "loss", OUT, F32, 1, d.n, d.n);
    logits = add_array(&t, "logits", IN, F32, d.n, d.nv, d.ld);
    float *stats = add_array(&t, "stats", IN, F32, 3, d.n, d.n);
    int32_t *label = add_array(&t, "label", IN, I32, 1, d.n, d.n);
    if (!only) add_array(&t, "dlogits", OUT, ACT, d.n, d.nv, d.ld);
    fill_loss(logits, label, &d);
    sk_cpu_ops.xent_stats(g_cpu_stream, stats, logits, d.ld, label, d.n, d.v0, d.nv);
    run_trial(&t, call_xent, &d, "xent_grad [%d, %d+%d]%s", (int)d.n, (int)d.v0, (int)d.nv,
              only ? ", loss only" : "");
  }
  t = (trial){.shift = shift};
  add_array(&t, "stats", OUT, F32, 3, d.n, d.n);
  float *part = add_array(&t, "part", IN, F32, 9, d.n, d.n);
  for (int64_t i = 0; i < 9 * d.n; i++) part[i] = fabsf(part[i]) + 1;
  run_trial(&t, call_merge, &d, "xent_merge [3, 3, %d]", (int)d.n);
  t = (trial){.shift = shift};
  add_array(&t, "sum", ADD, F64, 1, 1, 1);
  add_array(&t, "x", IN, F32, 1, d.n, d.n);
  run_trial(&t, call_sum, &d, "sum [%d]", (int)d.n);
}

typedef struct norm_dims {
  int64_t n;
  const int64_t *off;
} norm_dims;

static void call_sqnorm(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const norm_dims *d = dims;
  op->sqnorm(s, p[0], p[1], d->off, d->n);
}

static void call_adamw(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  sk_adamw h = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .wd = 0.1, .gscale = 0.37};
  for (int t = 1; t <= 3; t++) {
    h.bias1 = 1 - pow(h.beta1, t), h.bias2 = 1 - pow(h.beta2, t);
    op->adamw(s, p[0], p[1], p[2], p[3], p[4], ((const norm_dims *)dims)->n, &h);
  }
}

static void call_fade(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rows_dims *d = dims;
  op->fade_add(s, p[0], p[1], p[2], d->n, d->cols);
}

static void test_optimizer(int64_t n, int64_t shift) {
  int64_t blocks = n / 3 + 1, *off = sk_calloc((size_t)blocks + 1, sizeof *off);
  for (int64_t i = 1; i <= blocks; i++) {
    off[i] = off[i - 1] + (int64_t)(sk_rand(5, (uint64_t)i) % 7);
    if (off[i] > n) off[i] = n;
  }
  off[blocks] = n;
  norm_dims d = {blocks, off};
  trial t = {.shift = shift};
  add_array(&t, "out", OUT, F64, 1, blocks, blocks);
  add_array(&t, "x", IN, F32, 1, n, n);
  run_trial(&t, call_sqnorm, &d, "sqnorm [%d] in %d blocks", (int)n, (int)blocks);
  d = (norm_dims){n, NULL};
  t = (trial){.shift = shift};
  add_array(&t, "w", OUT, ACT, 1, n, n);
  add_array(&t, "p", ADD, F32, 1, n, n);
  add_array(&t, "m", ADD, F32, 1, n, n);
  float *v = add_array(&t, "v", ADD, F32, 1, n, n);
  add_array(&t, "g", IN, F32, 1, n, n);
  for (int64_t i = 0; i < n; i++) v[i] = fabsf(v[i]);
  run_trial(&t, call_adamw, &d, "adamw [%d], 3 steps", (int)n);
  rows_dims r = {n / 9 + 1, 12, 12, 0};
  t = (trial){.shift = shift};
  add_array(&t, "S", ADD, F32, r.n, r.cols, r.cols);
  add_array(&t, "keep", IN, F32, 1, r.n, r.n);
  add_array(&t, "F", IN, F32, r.n, r.cols, r.cols);
  run_trial(&t, call_fade, &r, "fade_add [%d, %d]", (int)r.n, (int)r.cols);
  sk_free(off);
}

// ---- all of it ----

static void test_ops(void) {
  const int64_t size[][3] = {{1, 1, 1},     {1, 37, 65},   {33, 1, 20},
                             {67, 45, 129}, {64, 128, 96}, {300, 520, 1000}};
  for (int i = 0; i < 6; i++) test_gemm(size[i][0], size[i][1], size[i][2], i % 2 ? 3 : 0, 0);
  test_gemm(40, 24, 56, 8, 1);
  for (int64_t shift = 0; shift < 2; shift++) {
    test_rows(1, 1, 0, shift);
    test_rows(333, 37, 3, shift);
    test_rows(70001, 24, 8, shift);
    test_rows(129, 4096, 0, shift);
    test_norm(1, 1, shift);
    test_norm(133, 65, shift);
    test_norm(1031, 512, shift);
    test_norm(66000, 16, shift);
    test_norm(9, 9000, shift);
    test_norm(2300, 1024, shift); // more rows than a gradient's blocks take at once
    test_norm(700, 3072, shift);
    test_norm(300, 5120, shift);
    test_swiglu(1, 3, shift);
    test_swiglu(45, 67, shift);
    test_swiglu(300, 2048, shift);
    test_loss((loss_dims){.n = 1, .nv = 1, .ld = 1}, shift);
    test_loss((loss_dims){.n = 37, .v0 = 100, .nv = 300, .ld = 300}, shift);
    test_loss((loss_dims){.n = 60, .nv = 32784, .ld = 32784}, shift);
    test_loss((loss_dims){.n = 3001, .nv = 257, .ld = 257}, shift);
    test_optimizer(1, shift);
    test_optimizer(1003, shift);
    test_optimizer(200000, shift);
  }
  test_embed((embed_dims){50, 33, 0, 40, -1}, 40, 1000);
  test_embed((embed_dims){300, 17, 8, 11, 12}, 40, 3);
  test_embed((embed_dims){4000, 64, 0, 257, 5}, 257, 1);
  test_embed((embed_dims){32768, 256, 0, 32784, 0}, 32784, 7);
  test_embed((embed_dims){9000, 1000, 16392, 16392, -1}, 32784, 100);
}

int main(int argc, char **argv) {
  sk_err e = {0};
  tap_init(&argc, &argv);
  g_gpu = sk_cuda;
  if (!g_gpu || g_gpu->count(&e) == 0) {
    printf("1..0 # SKIP no GPU: %s\n", g_gpu ? e.msg : "this program was built without CUDA");
    MPI_Finalize();
    return 0;
  }
  g_wanted_most = argc > 1 ? atoll(argv[1]) : 0;
  int skip = g_wanted_most ? 2 : 1;
  bool fp32 = argc > skip && strcmp(argv[skip], "fp32") == 0, bf16 = argc > skip && strcmp(argv[skip], "bf16") == 0;
  if (fp32 || bf16) skip++;
  g_wanted = argv + skip;
  g_wanted_count = argc - skip;
  for (int act = SK_F32; act <= SK_BF16; act++) {
    if (act == SK_F32 ? bf16 : fp32) continue;
    device_open((sk_dtype)act);
    if (act == SK_F32 && !g_wanted_count) {
      test_device();
      test_copies();
      bool good = true;
      for (int64_t n = 1; n < 70; n++) good = cast_case(n, n % 3) && good;
      tap_ok(cast_case(10003, 0) && good, "cast to bf16 and back: the CPU's bits");
    }
    test_ops();
    test_mixer();
    test_loss((loss_dims){.n = 50, .nv = 65537, .ld = 65600}, 0);
  }
  device_close();
  if (!g_wanted_count) test_engine();
  return tap_done();
}
