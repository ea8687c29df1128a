/* ops.c: the ops of the CPU device (attention and those of the SSM mixer apart) against the loops of ref_ops.c,
 * and those against finite differences of themselves. */
#include <omp.h>
#include "tests/ops_check.h"
#include "tests/ref_ops.h"
#include <stdlib.h>
#include <string.h>

// ---- the table and the device ----

static void test_table(void) {
  int missing = -1;
  tap_ok(sk_ops_complete(&sk_cpu_ops, &missing), "the CPU's table is complete (%d)", missing);
  missing = -1;
  tap_ok(sk_ops_complete(&sk_plan_ops, &missing), "the plan's table is complete (%d)", missing);
  sk_ops holed = sk_cpu_ops;
  holed.adamw = NULL;
  tap_ok(!sk_ops_complete(&holed, &missing) && missing == (int)(sizeof holed / sizeof(void *)) - 1,
         "a hole in a table is found (entry %d)", missing);

  sk_err e = {0};
  tap_ok(!g_op->open(0, SK_BF16, &e) && e.code == SK_FAILED && strstr(e.msg, "fp32"),
         "bf16 on the CPU is refused: %s", e.msg);
  tap_ok(!g_op->alloc(g_dev, SIZE_MAX) && !g_op->alloc(g_dev, SIZE_MAX / 2),
         "asking for too much memory gives NULL");
  void *p = g_op->alloc(g_dev, 1);
  tap_ok(p && (uintptr_t)p % 256 == 0, "memory is aligned to 256 bytes");
  g_op->free(g_dev, p);
  tap_ok(g_op->act(g_dev) == SK_F32 && strlen(g_op->describe(g_dev)) > 10, "%s",
         g_op->describe(g_dev));
}

static size_t device_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *d) {
  (void)act, (void)d;
  return dev == g_dev ? 1 : 2;
}

static void test_plan(void) {
  const sk_ops *op = &sk_plan_ops;
  sk_device *dev = sk_plan_open(&sk_cpu_ops, NULL, SK_BF16);
  sk_stream *s = op->stream_create(dev);
  sk_event *ev = op->event_create(dev);
  op->record(ev, s);
  op->wait(s, ev);
  float host[2] = {1, 2}, *nowhere = (float *)(uintptr_t)4096;
  op->zero(s, nowhere, 1 << 20);
  op->from_host(s, nowhere, host, sizeof host);
  op->to_host(s, host, nowhere, sizeof host);
  op->gemm(s, false, true, 64, 64, 64, 1, nowhere, 64, nowhere, 64, 0, nowhere, 64, SK_F32);
  op->add_f32(s, nowhere, nowhere, nowhere, 1000);
  op->sync(s);
  tap_ok(host[0] == 1 && host[1] == 2, "the plan device touches no memory");
  sk_attn_dims a = {.b = 2, .Tq = 10, .Tk = 10, .H = 4, .KV = 2, .hd = 8};
  sk_ssd_dims d = {.b = 2, .T = 10, .nh = 4, .P = 8, .G = 2, .N = 8, .Q = 4, .ld = 64, .ldy = 32};
  tap_ok(op->act(dev) == SK_BF16 &&
             op->attention_ws(dev, SK_F32, &a) == sk_cpu_ops.attention_ws(NULL, SK_F32, &a) &&
             op->ssd_ws(dev, SK_F32, &d) == sk_cpu_ops.ssd_ws(NULL, SK_F32, &d) &&
             op->ssd_grad_ws(dev, SK_F32, &d) == sk_cpu_ops.ssd_grad_ws(NULL, SK_F32, &d),
         "the plan device has its target's scratch sizes");
  sk_ops other = sk_cpu_ops;
  other.ssd_ws = device_ws;
  bool known = op->ssd_ws(sk_plan_open(&other, g_dev, SK_F32), SK_F32, &d) == 1;
  tap_ok(known && op->ssd_ws(sk_plan_open(&other, NULL, SK_F32), SK_F32, &d) == 2,
         "and asks with the target's device");
  sk_err e = {0};
  tap_ok(!op->open(0, SK_F32, &e) && e.code == SK_FAILED, "open on the plan device: %s", e.msg);
  op->event_destroy(ev);
  op->stream_destroy(s);
  op->close(dev);
}

/* Pieces of a, in any order, of any size and alignment of words: b gets them, and each has its own sum. */
static void test_pieces(const float *a, float *b) {
  static const int64_t piece[][3] = {{7, 3, 1}, {100, 5, 0}, {5000, 200, 15}, {6000, 70000, 16}, {80000, 300, 300001}, {900000, 500001, 33}};
  enum { PIECES = sizeof piece / sizeof *piece };
  sk_copy list[PIECES];
  sk_sum sum[PIECES];
  bool copied = true, summed = true;
  memset(b, 0xff, 1000000 * sizeof *b);
  for (int i = 0; i < PIECES; i++)
    list[i] = (sk_copy){b + piece[i][0], a + piece[i][1], (size_t)piece[i][2] * sizeof *a};
  summed = g_op->copies_host(g_stream, PIECES, list, sum);
  g_op->sync(g_stream);
  for (int i = 0; i < PIECES; i++) {
    sk_sum want = {0, 0};
    for (int64_t k = 0; k < piece[i][2]; k++) {
      uint32_t w;
      memcpy(&w, a + piece[i][1] + k, sizeof w);
      want.plain += w;
      want.ranked += (uint64_t)k * w;
    }
    copied = copied && !memcmp(list[i].dst, list[i].src, list[i].bytes);
    summed = summed && sum[i].plain == want.plain && sum[i].ranked == want.ranked;
  }
  copied = copied && isnan(b[8]) && isnan(b[5015]) && isnan(b[380001]);
  tap_ok(copied && summed, "copies_host: every piece at its place, with its sum");
}

static void test_copies(void) {
  enum { N = 1 << 20 };
  float *a = g_op->alloc(g_dev, N * sizeof *a), *b = g_op->alloc(g_dev, N * sizeof *b);
  float *back = sk_malloc(N * sizeof *back);
  for (int i = 0; i < N; i++) a[i] = (float)i;
  int64_t n = N - 3; // odd tail: several chunks and a piece
  memset(b, 0xff, N * sizeof *b);
  g_op->copy(g_stream, b, a, (size_t)n * sizeof *a);
  g_op->to_host(g_stream, back, b, N * sizeof *b);
  tap_ok(!memcmp(a, back, (size_t)n * sizeof *a) && isnan(back[n]), "copy, to_host");
  test_pieces(a, b);
  g_op->zero(g_stream, b, (size_t)n * sizeof *b);
  bool zero = isnan(b[n]);
  for (int64_t i = 0; i < n; i++) zero = zero && b[i] == 0;
  tap_ok(zero, "zero");

  // bf16 has 8 significant bits: ties go to even, overflow to infinity, NaN stays.
  const float in[8] = {
      1, 1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1.01p-8f, -0x1.fffffep127f, 0x1p-130f, NAN, 0};
  const float want[8] = {1, 1, 1 + 0x4p-8f, 1 + 0x2p-8f, -INFINITY, 0x1p-130f, NAN, 0};
  uint16_t half[8];
  float out[8];
  g_op->cast(g_stream, half, SK_BF16, in, SK_F32, 8);
  g_op->cast(g_stream, out, SK_F32, half, SK_BF16, 8);
  bool good = true;
  for (int i = 0; i < 8; i++) good = good && (isnan(want[i]) ? isnan(out[i]) : out[i] == want[i]);
  tap_ok(good, "cast to bf16 and back rounds to nearest even");
  g_op->cast(g_stream, out, SK_F32, in, SK_F32, 6);
  tap_ok(!memcmp(in, out, 6 * sizeof *in), "cast to the same type copies");
  g_op->free(g_dev, a);
  g_op->free(g_dev, b);
  sk_free(back);
}

// ---- linear algebra ----

static void gemm_case(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha,
                      double beta) {
  mat A = ta ? input(k, m, m + 3) : input(m, k, k + 1);
  mat B = tb ? input(n, k, k + 5) : input(k, n, n + 2);
  mat C = beta == 0 ? output(m, n, n + 7) : input(m, n, n + 7);
  ref_gemm(ta, tb, m, n, k, alpha, A.d, B.d, beta, C.d);
  g_op->gemm(g_stream, ta, tb, m, n, k, alpha, A.f, A.ld, B.f, B.ld, beta, C.f, C.ld, SK_F32);
  close_to_ref(&C, "gemm %c%c %d x %d x %d, alpha %g, beta %g", ta ? 'T' : 'N', tb ? 'T' : 'N',
               (int)m, (int)n, (int)k, alpha, beta);
  DROP(&A, &B, &C);
}

static void test_gemm(void) {
  const int64_t sizes[][3] = {{1, 1, 1},   {1, 37, 65},   {2, 300, 17},
                              {33, 1, 20}, {67, 45, 129}, {64, 128, 96}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    for (int t = 0; t < 4; t++) {
      double alpha = t == 1 ? 1 : -0.37, beta = i % 2 == (size_t)t % 2 ? 0 : 1 + 0.5 * t;
      gemm_case(t & 1, t & 2, sizes[i][0], sizes[i][1], sizes[i][2], alpha, beta);
    }
  }
  gemm_case(false, true, 1, 700, 300, 2, 0); // one token, long enough for threads
  gemm_case(false, true, 1, 700, 300, 2, 1);
  gemm_case(false, true, 190, 131, 120, 1, 0); // too large for the sums in double
  gemm_case(false, true, 190, 131, 120, -0.37, 1.5);
}

static void test_bias(int64_t n, int64_t cols) {
  mat y = input(n, cols, cols + 3), bias = input(1, cols, cols), db = input(1, cols, cols);
  for (int64_t c = 0; c < cols; c++) {
    for (int64_t t = 0; t < n; t++) {
      db.d[c] += 0.7 * y.d[t * cols + c];
      y.d[t * cols + c] += -1.3 * bias.d[c];
    }
  }
  g_op->bias_grad(g_stream, db.f, y.f, y.ld, 0.7, n, cols);
  close_to_ref(&db, "bias_grad [%d, %d]", (int)n, (int)cols);
  g_op->bias(g_stream, y.f, y.ld, bias.f, -1.3, n, cols);
  close_to_ref(&y, "bias [%d, %d]", (int)n, (int)cols);
  mat a = input(1, n, n), b = input(1, n, n), sum = output(1, n, n);
  for (int64_t i = 0; i < n; i++) {
    sum.d[i] = a.d[i] + b.d[i];
    a.d[i] += sum.d[i];
    b.d[i] += a.d[i];
  }
  g_op->add(g_stream, sum.f, a.f, b.f, n);
  g_op->add_f32(g_stream, a.f, a.f, sum.f, n);
  g_op->add(g_stream, b.f, a.f, b.f, n);
  close_to_ref(&sum, "add");
  close_to_ref(&a, "add_f32, in place of the first");
  close_to_ref(&b, "add, in place of the second");
  DROP(&y, &bias, &db, &a, &b, &sum);
}

// ---- embedding ----

typedef struct embed_case {
  int64_t n, d, v0, nv;
  int32_t *ids;
  double mult, *E, *dh, *h;
} embed_case;

static double embed_loss(void *context) {
  embed_case *c = context;
  ref_embed(c->h, c->ids, c->E, c->mult, c->n, c->d, c->v0, c->nv);
  return inner(c->h, c->dh, c->n * c->d);
}

// A vocabulary of V of which v0 .. v0+nv-1 are here.
static void test_embed(int64_t n, int64_t d, int64_t V, int64_t v0, int64_t nv, int64_t pad) {
  mat E = input(nv, d, d), h = output(n, d, d), dh = input(n, d, d), dE = input(nv, d, d);
  int32_t *ids = sk_malloc((size_t)n * sizeof *ids);
  for (int64_t t = 0; t < n; t++) ids[t] = (int32_t)(sk_rand(7, (uint64_t)t) % (uint64_t)V);
  embed_case c = {n, d, v0, nv, ids, 5.65, E.d, dh.d, h.d};
  char *name = sk_strf("[%d, %d], rows %d to %d of %d, pad %d", (int)n, (int)d, (int)v0,
                       (int)(v0 + nv - 1), (int)V, (int)pad);
  if (pad < 0) {
    double *g = sk_calloc((size_t)(nv * d), sizeof *g);
    ref_embed_grad(g, ids, dh.d, c.mult, n, d, v0, nv, pad);
    check_gradient(embed_loss, &c, E.d, g, nv * d, "embed");
    sk_free(g);
  }
  embed_loss(&c);
  g_op->embed(g_stream, h.f, ids, E.f, c.mult, n, d, v0, nv);
  close_to_ref(&h, "embed %s", name);
  ref_embed_grad(dE.d, ids, dh.d, c.mult, n, d, v0, nv, pad);
  g_op->embed_grad(g_stream, dE.f, ids, dh.f, c.mult, n, d, v0, nv, pad);
  close_to_ref(&dE, "embed_grad %s", name);
  sk_free(ids);
  sk_free(name);
  DROP(&E, &h, &dh, &dE);
}

// ---- norms and activations ----

typedef struct norm_case {
  int64_t n, d;
  double eps, *x, *w, *dy, *y, *rstd;
} norm_case;

static double norm_loss(void *context) {
  norm_case *c = context;
  ref_rmsnorm(c->y, c->rstd, c->x, c->w, c->n, c->d, c->eps);
  return inner(c->y, c->dy, c->n * c->d);
}

static void norm_gradient(int64_t n, int64_t d, double eps) {
  mat x = input(n, d, d), w = input(1, d, d), dy = input(n, d, d), y = output(n, d, d),
      r = output(1, n, n);
  mat dx = output(n, d, d), dw = output(1, d, d);
  norm_case c = {n, d, eps, x.d, w.d, dy.d, y.d, r.d};
  ref_rmsnorm_grad(dx.d, dw.d, dy.d, x.d, w.d, n, d, eps);
  check_gradient(norm_loss, &c, x.d, dx.d, n * d, "rmsnorm, x");
  check_gradient(norm_loss, &c, w.d, dw.d, d, "rmsnorm, w");
  DROP(&x, &w, &dy, &y, &r, &dx, &dw);
}

static void test_norm(int64_t n, int64_t d, double eps, bool with_res) {
  mat x = input(n, d, d), res = input(n, d, d), w = input(1, d, d), dy = input(n, d, d);
  mat y = output(n, d, d), r = output(1, n, n), sum = output(n, d, d);
  mat dx = input(n, d, d), dw = input(1, d, d);
  char *name = sk_strf("[%d, %d]%s", (int)n, (int)d, with_res ? " with residual" : "");
  for (int64_t i = 0; i < n * d; i++) sum.d[i] = x.d[i] + (with_res ? res.d[i] : 0);
  g_op->rmsnorm(g_stream, y.f, r.f, sum.f, x.f, with_res ? res.f : NULL, w.f, n, d, eps);
  ref_rmsnorm(y.d, r.d, sum.d, w.d, n, d, eps);
  close_to_ref(&y, "rmsnorm %s", name);
  close_to_ref(&r, "rmsnorm %s, rstd", name);
  if (with_res) {
    close_to_ref(&sum, "rmsnorm %s, sum", name);
  } else {
    bool untouched = true;
    for (int64_t i = 0; i < n * d; i++) untouched = untouched && is_poison(sum.f[i]);
    tap_ok(untouched, "rmsnorm %s leaves sum alone", name);
  }
  ref_rmsnorm_grad(dx.d, dw.d, dy.d, sum.d, w.d, n, d, eps);
  g_op->rmsnorm_grad(g_stream, dx.f, dw.f, dy.f, with_res ? sum.f : x.f, r.f, w.f, n, d);
  close_to_ref(&dx, "rmsnorm_grad %s, dx", name);
  close_to_ref(&dw, "rmsnorm_grad %s, dw", name);
  sk_free(name);
  DROP(&x, &res, &w, &dy, &y, &r, &sum, &dx, &dw);
}

typedef struct swiglu_case {
  int64_t n, F;
  double m, *gu, *da, *a;
} swiglu_case;

static double swiglu_loss(void *context) {
  swiglu_case *c = context;
  ref_swiglu(c->a, c->gu, c->m, c->n, c->F);
  return inner(c->a, c->da, c->n * c->F);
}

static void test_swiglu(int64_t n, int64_t F, double m) {
  mat gu = input(n, 2 * F, 2 * F), da = input(n, F, F), a = output(n, F, F),
      dgu = output(n, 2 * F, 2 * F);
  swiglu_case c = {n, F, m, gu.d, da.d, a.d};
  ref_swiglu_grad(dgu.d, da.d, gu.d, m, n, F);
  check_gradient(swiglu_loss, &c, gu.d, dgu.d, 2 * n * F, "swiglu");
  swiglu_loss(&c);
  g_op->swiglu(g_stream, a.f, gu.f, m, n, F);
  close_to_ref(&a, "swiglu [%d, %d]", (int)n, (int)F);
  g_op->swiglu_grad(g_stream, dgu.f, da.f, gu.f, m, n, F);
  close_to_ref(&dgu, "swiglu_grad [%d, %d]", (int)n, (int)F);
  g_op->swiglu_grad(g_stream, gu.f, da.f, gu.f, m, n, F);
  tap_ok(!memcmp(gu.f, dgu.f, (size_t)(2 * n * F) * sizeof(float)),
         "swiglu_grad in place: the same bits");
  DROP(&gu, &da, &a, &dgu);
}

// ---- attention ----

static void test_rope(int64_t b, int64_t T, int64_t heads, int64_t hd) {
  mat x = input(b * T, heads * hd, heads * hd + 5), table = output(T, hd, hd),
      dy = input(b * T, heads * hd, heads * hd);
  for (int64_t t = 0; t < T; t++) {
    for (int64_t i = 0; i < hd / 2; i++) {
      double angle = (double)t * pow(1e4, -2.0 * (double)i / (double)hd);
      for (int side = 0; side < 2; side++) {
        int64_t at = t * hd + 2 * i + side;
        table.f[at] = (float)(side ? sin(angle) : cos(angle));
        table.d[at] = (double)table.f[at];
      }
    }
  }
  // Linear: <rope(x), dy> = <x, rope_back(dy)> says that sign -1 is the gradient.
  int64_t n = b * T * heads * hd;
  double *y = sk_malloc((size_t)n * sizeof *y);
  memcpy(y, x.d, (size_t)n * sizeof *y);
  ref_rope(y, table.d, 0.6, 1, b, T, heads, hd);
  double want = inner(y, dy.d, n);
  ref_rope(dy.d, table.d, 0.6, -1, b, T, heads, hd);
  tap_close(inner(x.d, dy.d, n), want, 1e-6, "rope backward is the transpose");
  sk_free(y);
  for (int sign = 1; sign >= -1; sign -= 2) {
    g_op->rope(g_stream, x.f, x.ld, table.f, 0.6, sign, b, T, heads, hd);
    ref_rope(x.d, table.d, 0.6, sign, b, T, heads, hd);
    close_to_ref(&x, "rope b %d T %d heads %d hd %d sign %+d", (int)b, (int)T, (int)heads, (int)hd,
                 sign);
  }
  DROP(&x, &table, &dy);
}

// ---- loss ----

typedef struct loss_case {
  int64_t n, V;
  int32_t *label;
  double *logits, *loss;
} loss_case;

static double xent_loss(void *context) {
  loss_case *c = context;
  ref_xent(c->loss, NULL, c->logits, c->label, 1, c->n, c->V);
  double sum = 0;
  for (int64_t t = 0; t < c->n; t++) sum += 0.3 * c->loss[t];
  return sum;
}

// The columns v0 .. v0+nv-1 of src as the logits of one rank.
static mat columns(const mat *src, int64_t v0, int64_t nv) {
  mat m = output(src->rows, nv, nv);
  for (int64_t t = 0; t < src->rows; t++)
    for (int64_t j = 0; j < nv; j++) m.f[t * nv + j] = src->f[t * src->ld + v0 + j];
  return m;
}

// As the ranks of a tensor-parallel group do: statistics of two slices of the vocabulary, joined.
static void join_stats(float *all, const float *a, const float *b, int64_t n) {
  for (int64_t t = 0; t < n; t++) {
    float max = fmaxf(a[t], b[t]);
    all[t] = max;
    all[n + t] = a[n + t] * expf(a[t] - max) + b[n + t] * expf(b[t] - max);
    all[2 * n + t] = a[2 * n + t] + b[2 * n + t];
  }
}

static void test_xent_shards(const mat *logits, const int32_t *label, int64_t cut, mat *loss,
                             mat *dlogits) {
  int64_t n = logits->rows, V = logits->cols;
  mat part[2] = {columns(logits, 0, cut), columns(logits, cut, V - cut)};
  mat stats[3] = {output(3, n, n), output(3, n, n), output(3, n, n)};
  for (int i = 0; i < 2; i++)
    g_op->xent_stats(g_stream, stats[i].f, part[i].f, part[i].ld, label, n, i * cut,
                     part[i].cols);
  join_stats(stats[2].f, stats[0].f, stats[1].f, n);
  for (int i = 0; i < 2; i++) {
    g_op->xent_grad(g_stream, loss->f, part[i].f, part[i].f, part[i].ld, stats[2].f, label, 0.3, n,
                    i * cut, part[i].cols);
    close_to_ref(loss, "xent over two slices of the vocabulary, loss");
    for (int64_t t = 0; t < n; t++)
      for (int64_t j = 0; j < part[i].cols; j++)
        dlogits->f[t * dlogits->ld + i * cut + j] = part[i].f[t * part[i].ld + j];
  }
  close_to_ref(dlogits, "xent over two slices of the vocabulary, dlogits in place");
  DROP(&part[0], &part[1], &stats[0], &stats[1], &stats[2]);
}

static void test_xent(int64_t n, int64_t V) {
  mat logits = input(n, V, V + 3), loss = output(1, n, n), dlogits = output(n, V, V + 3),
      stats = output(3, n, n);
  int32_t *label = sk_malloc((size_t)n * sizeof *label);
  for (int64_t t = 0; t < n; t++) {
    label[t] = t % 5 == 3 ? (t % 2 ? -100 : -1) : (int32_t)(sk_rand(3, (uint64_t)t) % (uint64_t)V);
    for (int64_t j = 0; j < V; j++) { // spread, far from 0
      float *x = &logits.f[t * logits.ld + j];
      *x = 4 * *x + 50;
      logits.d[t * V + j] = (double)*x;
    }
  }
  loss_case c = {n, V, label, logits.d, loss.d};
  ref_xent(loss.d, dlogits.d, logits.d, label, 0.3, n, V);
  check_gradient(xent_loss, &c, logits.d, dlogits.d, n * V, "xent");
  ref_xent(loss.d, NULL, logits.d, label, 0.3, n, V);
  g_op->xent_stats(g_stream, stats.f, logits.f, logits.ld, label, n, 0, V);
  g_op->xent_grad(g_stream, loss.f, NULL, logits.f, logits.ld, stats.f, label, 0.3, n, 0, V);
  close_to_ref(&loss, "xent [%d, %d], loss", (int)n, (int)V);
  for (int64_t t = 0; t < n; t++) loss.f[t] = poison();
  g_op->xent_grad(g_stream, loss.f, dlogits.f, logits.f, logits.ld, stats.f, label, 0.3, n, 0,
                  V);
  close_to_ref(&loss, "xent [%d, %d], loss with gradient", (int)n, (int)V);
  close_to_ref(&dlogits, "xent [%d, %d], dlogits", (int)n, (int)V);
  if (V > 1) test_xent_shards(&logits, label, V / 3 + 1 < V ? V / 3 + 1 : 1, &loss, &dlogits);
  sk_free(label);
  DROP(&logits, &loss, &dlogits, &stats);
}

static void test_xent_nan(void) {
  enum { V = 40 };
  mat logits = input(2, V, V), stats = output(3, 2, 2), loss = output(1, 2, 2);
  int32_t label[2] = {1, 2};
  logits.f[V + 30] = NAN;
  g_op->xent_stats(g_stream, stats.f, logits.f, V, label, 2, 0, V);
  g_op->xent_grad(g_stream, loss.f, NULL, logits.f, V, stats.f, label, 1, 2, 0, V);
  tap_ok(!isnan(loss.f[0]) && isnan(loss.f[1]), "xent: a NaN among the logits makes the loss NaN");
  DROP(&logits, &stats, &loss);
}

static void test_sum(void) {
  enum { N = 1000 };
  mat x = input(1, N, N);
  double sum = 2.5, want = 2.5;
  for (int i = 0; i < N; i++) want += (double)x.f[i];
  g_op->sum(g_stream, &sum, x.f, N);
  tap_ok(sum == want, "sum adds in index order in double, bit for bit");
  DROP(&x);
}

// ---- optimizer ----

static void test_sqnorm(void) {
  const int64_t off[] = {0, 0, 1, 100, 5000, 5003};
  mat x = input(1, 5003, 5003);
  double got[5];
  g_op->sqnorm(g_stream, got, x.f, off, 5);
  for (int i = 0; i < 5; i++)
    tap_close(got[i], inner(x.d + off[i], x.d + off[i], off[i + 1] - off[i]), 1e-12,
              "sqnorm, block %d", i);
  for (int i = 4990; i < 5003; i++) x.f[i] = 0;
  bool same = true;
  for (int i = 4990; i <= 5003; i++) {
    g_op->sqnorm(g_stream, got + 1, x.f, (const int64_t[]){0, i}, 1);
    if (i == 4990) got[0] = got[1];
    same = same && got[0] == got[1];
  }
  tap_ok(same, "sqnorm: zeros at the end of a block change no bit");
  DROP(&x);
}

static void test_adamw(int64_t n, bool with_copy) {
  mat p = input(1, n, n), m = output(1, n, n), v = output(1, n, n), g = input(1, n, n),
      w = output(1, n, n);
  memset(m.f, 0, (size_t)n * sizeof(float));
  memset(v.f, 0, (size_t)n * sizeof(float));
  for (int t = 1; t <= 3; t++) {
    sk_adamw h = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .wd = 0.1, .gscale = 0.37};
    h.bias1 = 1 - pow(h.beta1, t), h.bias2 = 1 - pow(h.beta2, t);
    ref_adamw(p.d, m.d, v.d, g.d, n, &h);
    g_op->adamw(g_stream, with_copy ? w.f : NULL, p.f, m.f, v.f, g.f, n, &h);
    for (int64_t i = 0; i < n; i++) g.d[i] = (double)(g.f[i] = (float)normal());
  }
  close_to_ref(&p, "adamw, %d elements, 3 steps: p", (int)n);
  close_to_ref(&m, "adamw: m");
  close_to_ref(&v, "adamw: v");
  if (with_copy)
    tap_ok(!memcmp(w.f, p.f, (size_t)n * sizeof(float)), "adamw: the act copy is the weight");
  DROP(&p, &m, &v, &g, &w);
}

// ---- threads ----

// Runs the ops that sum over tokens; one hash of all their bits.
static uint64_t bits_with(int threads, int64_t n, int64_t w) {
  omp_set_num_threads(threads);
  g_count = 1000; // the same inputs every time
  mat x = input(n, w, w), dy = input(n, w, w), r = output(1, n, n), y = output(n, w, w);
  mat dx = output(n, w, w), dw = input(1, w, w), db = input(1, w, w), dE = input(10, w, w);
  int32_t *ids = sk_malloc((size_t)n * sizeof *ids);
  for (int64_t t = 0; t < n; t++) ids[t] = (int32_t)(sk_rand(9, (uint64_t)t) % 10);
  g_op->rmsnorm(g_stream, y.f, r.f, NULL, x.f, NULL, dy.f, n, w, 1e-5);
  g_op->rmsnorm_grad(g_stream, dx.f, dw.f, dy.f, x.f, r.f, dy.f, n, w);
  g_op->bias_grad(g_stream, db.f, dy.f, w, 1, n, w);
  g_op->embed_grad(g_stream, dE.f, ids, dy.f, 1, n, w, 0, 10, -1);
  uint64_t hash = hash_bits(0, (const mat *const[]){&y, &dx, &dw, &db, &dE}, 5);
  sk_free(ids);
  DROP(&x, &dy, &r, &y, &dx, &dw, &db, &dE);
  return hash;
}

static void test_threads(void) {
  int before = omp_get_max_threads();
  for (int64_t n = 140; n <= 560; n *= 2) {
    uint64_t one = bits_with(1, n, 128);
    tap_ok(one == bits_with(2, n, 128) && one == bits_with(3, n, 128) && one == bits_with(7, n, 128),
           "the same bits with 1, 2, 3 and 7 threads, %d tokens", (int)n);
  }
  tap_ok(bits_with(2, 140, 128) != bits_with(2, 140, 127), "other inputs give other bits");
  omp_set_num_threads(before);
}

// Of products of all transpositions, alone and added to C.
static uint64_t gemm_bits(int threads, const int64_t size[3], int64_t first) {
  int64_t m = size[0], n = size[1], k = size[2];
  uint64_t hash = 0;
  sk_err e = {0};
  omp_set_num_threads(threads);
  sk_device *told = g_op->open(0, SK_F32, &e); // tells the BLAS how many threads there are
  SK_CHECK(told, "%s", e.msg);
  g_op->close(told);
  g_count = first;
  for (int t = 0; t < 8; t++) {
    bool ta = t & 1, tb = t & 2;
    mat A = ta ? input(k, m, m) : input(m, k, k + 3), B = tb ? input(n, k, k) : input(k, n, n + 1), C = input(m, n, n);
    g_op->gemm(g_stream, ta, tb, m, n, k, t & 4 ? 1 : 0.37, A.f, A.ld, B.f, B.ld, t & 4 ? 1 : 0, C.f, C.ld, SK_F32);
    hash = hash_bits(hash, (const mat *const[]){&C}, 1);
    DROP(&A, &B, &C);
  }
  return hash;
}

static void test_gemm_threads(void) {
  static const int64_t size[][3] = {{1, 300, 400},  {400, 1, 300},  {19, 35, 197},   {111, 23, 22},
                                    {269, 19, 661}, {192, 256, 48}, {301, 259, 225}, {260, 320, 230}};
  int before = omp_get_max_threads();
  bool other = true;
  if (!strstr(g_op->describe(g_dev), "BLIS") || getenv("BLIS_NUM_THREADS")) {
    tap_skip("only BLIS promises that, and only if it may be told how many threads it has");
    return;
  }
  for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
    const int64_t *s = size[i];
    uint64_t one = gemm_bits(1, s, 1000);
    bool same = gemm_bits(2, s, 1000) == one && gemm_bits(3, s, 1000) == one; // more of them spin for long on few cores
    tap_ok(same, "gemm %d x %d x %d: the same bits with 1, 2 and 3 threads", (int)s[0], (int)s[1], (int)s[2]);
    other = other && gemm_bits(1, s, 1001) != one;
  }
  tap_ok(other, "other inputs give other bits");
  gemm_bits(before, size[0], 1000); // so many again, for the BLAS as well
}

int main(int argc, char **argv) {
  ops_start(&argc, &argv);
  test_table();
  test_plan();
  test_copies();
  test_gemm();
  test_bias(1, 1);
  test_bias(333, 37);
  test_embed(50, 33, 40, 0, 40, -1);
  test_embed(300, 17, 40, 8, 11, 12);
  test_embed(7, 64, 5, 0, 5, 0);
  norm_gradient(5, 19, 1e-5);
  test_norm(1, 1, 1e-5, false);
  test_norm(133, 65, 1e-5, true);
  test_norm(70, 512, 1e-6, false);
  test_swiglu(1, 3, 1);
  test_swiglu(45, 67, 0.83);
  test_rope(2, 13, 3, 10);
  test_rope(1, 70, 2, 64);
  test_xent(1, 1);
  test_xent(37, 300);
  test_xent(11, 1025);
  test_xent_nan();
  test_sum();
  test_sqnorm();
  test_adamw(1, false);
  test_adamw(1003, true);
  test_threads();
  test_gemm_threads();
  return ops_stop();
}
