/* cudnn.c: attention by cuDNN against the CPU's and Saker's own kernels, and what is left to those.
 * Skipped without a GPU, in builds without cuDNN, and where the library is not found. */
#include "kernels/cudnn.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "src/device.h"
#include "tests/device_check.h"
#include "tests/device_tap.h"
#include "tests/small_model.h"
#include "tests/tap.h"

void device_ok(bool ok, const char *fmt, ...) {
  char text[1000];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  tap_ok(ok, "%s", text);
}

static sk_cudnn *library(void) {
  return sk_cudnn_of(g_gpu_stream);
}

// Queries, keys and values side by side, as training has them, with `pad` more columns.
static sk_attn_dims shape(int64_t b, int64_t T, int64_t H, int64_t KV, int64_t hd, int64_t pad) {
  int64_t ld = (H + 2 * KV) * hd + pad;
  return (sk_attn_dims){.b = b,
                        .Tq = T,
                        .Tk = T,
                        .H = H,
                        .KV = KV,
                        .hd = hd,
                        .ldq = ld,
                        .ldk = ld,
                        .ldv = ld,
                        .ldo = H * hd + pad,
                        .scale = 1 / sqrt((double)hd),
                        .whole = true};
}

static const char *name_of(const sk_attn_dims *d) {
  static char text[120];
  snprintf(text, sizeof text, "b %d Tq %d Tk %d q0 %d H %d KV %d hd %d", (int)d->b, (int)d->Tq,
           (int)d->Tk, (int)d->q0, (int)d->H, (int)d->KV, (int)d->hd);
  return text;
}

// ---- forward, against the CPU ----

typedef struct forward_call {
  sk_attn_dims d;
  bool ready;
} forward_call;

static void call_forward(const sk_ops *op, sk_stream *s, void **p, const void *arg) {
  const forward_call *f = arg;
  if (op == g_gpu && f->ready) op->attention_ready(g_gpu_dev, &f->d);
  op->attention(s, &f->d, p[0], p[1], p[2], p[3], p[4], p[5]);
}

// mean: of documents' lengths, 0: none begins inside. by_cudnn: it is to compute both calls of the
// trial.
static void forward(sk_attn_dims d, uint64_t mean, bool ready, int64_t shift, bool by_cudnn) {
  const int64_t nq = d.b * d.Tq, nk = d.b * d.Tk;
  forward_call f = {d, ready};
  trial t = {.shift = shift};
  int64_t before = sk_cudnn_calls(library());
  add_array(&t, "o", OUT, ACT, nq, d.H * d.hd, d.ldo);
  add_array(&t, "lse", OUT, F32, d.b * d.H, d.Tq, d.Tq);
  add_array(&t, "q", IN, ACT, nq, d.H * d.hd, d.ldq);
  add_array(&t, "k", IN, ACT, nk, d.KV * d.hd, d.ldk);
  add_array(&t, "v", IN, ACT, nk, d.KV * d.hd, d.ldv);
  int32_t *start = add_array(&t, "start", IN, I32, 1, nq, nq);
  for (int64_t i = 1; i < nq && mean; i++)
    start[i] = i % d.Tq == 0                         ? 0
               : sk_rand(7, (uint64_t)i) % mean == 0 ? (int32_t)(i % d.Tq)
                                                     : start[i - 1];
  f.d.whole = mean == 0;
  run_trial(&t, call_forward, &f, "%s%s%s", name_of(&d), mean ? ", documents" : "",
            ready ? "" : ", no plan");
  int64_t calls = sk_cudnn_calls(library()) - before;
  tap_ok(calls == (by_cudnn ? 2 : 0), "... computed by %s",
         calls == 2   ? "cuDNN"
         : calls == 0 ? "Saker"
                      : "both");
}

static void test_forward(void) {
  sk_attn_dims d = shape(2, 1024, 8, 2, 64, 0);
  forward(d, 0, false, 0, false);
  forward(d, 0, true, 0, true);
  forward(d, 100, true, 0, false);
  forward(d, 0, true, 1, false); // not aligned
  forward(shape(1, 1000, 12, 2, 128, 8), 0, true, 0, true);
  forward(shape(3, 333, 6, 2, 32, 16), 0, true, 0, true);
  forward(shape(2, 257, 5, 5, 40, 24), 0, true, 0, true);
  forward(shape(1, 300, 4, 1, 256, 0), 0, true, 0, true);
  forward(shape(2, 300, 4, 2, 20, 0), 0, true, 0, false); // no multiple of 8
  forward(shape(2, 300, 4, 2, 64, 4), 0, true, 0, false); // rows not of 16 bytes
  forward(shape(4, 64, 4, 2, 64, 0), 0, true, 0, false);  // short
  // Segments of context parallelism: the first, one inside, the last.
  for (int64_t q0 = 0; q0 <= 1536; q0 += q0 ? 1024 : 512) {
    d = shape(2, 512, 8, 2, 64, 0);
    d.Tk = 2048, d.q0 = q0, d.ldk = d.ldv = 2 * 2 * 64;
    forward(d, 0, true, 0, true);
  }
  d = shape(1, 777, 6, 2, 128, 0);
  d.Tk = 2000, d.q0 = 1223;
  forward(d, 0, true, 0, true);
}

// ---- large shapes, against Saker's own kernels ----

typedef struct problem {
  sk_attn_dims d;
  void *x, *dx[2], *o[2], *dout; // x: q|k|v
  float *lse[2];
  int32_t *start;
} problem;

static void *must_alloc(size_t bytes) {
  void *p = g_gpu->alloc(g_gpu_dev, bytes);
  SK_CHECK(p, "out of GPU memory");
  return p;
}

static void *random_act(int64_t n) {
  float *host = sk_malloc((size_t)n * sizeof *host), *f32 = must_alloc((size_t)n * sizeof *f32);
  void *dev = must_alloc((size_t)n * 2);
  for (int64_t i = 0; i < n; i++) host[i] = (float)draw();
  g_gpu->from_host(g_gpu_stream, f32, host, (size_t)n * sizeof *host);
  g_gpu->cast(g_gpu_stream, dev, SK_BF16, f32, SK_F32, n);
  g_gpu->sync(g_gpu_stream);
  g_gpu->free(g_gpu_dev, f32);
  sk_free(host);
  return dev;
}

// An output, full of NaN.
static void *poison(size_t bytes) {
  char *dev = must_alloc(bytes), *host = sk_malloc(bytes);
  memset(host, 0xff, bytes);
  g_gpu->from_host(g_gpu_stream, dev, host, bytes);
  sk_free(host);
  return dev;
}

static problem make(sk_attn_dims d) {
  const int64_t n = d.b * d.Tq;
  problem p = {.d = d, .x = random_act(n * d.ldq), .dout = random_act(n * d.ldo)};
  p.start = must_alloc((size_t)n * sizeof *p.start);
  g_gpu->zero(g_gpu_stream, p.start, (size_t)n * sizeof *p.start);
  for (int i = 0; i < 2; i++) {
    p.o[i] = poison((size_t)(n * d.ldo) * 2);
    p.dx[i] = poison((size_t)(n * d.ldq) * 2);
    p.lse[i] = poison((size_t)(n * d.H) * sizeof(float));
  }
  return p;
}

static void drop(problem *p) {
  void *all[] = {p->x,     p->dout,  p->start,  p->o[0],  p->o[1],
                 p->dx[0], p->dx[1], p->lse[0], p->lse[1]};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) g_gpu->free(g_gpu_dev, all[i]);
}

static void *at(void *p, int64_t i) {
  return (char *)p + 2 * i;
}

static float *to_floats(const void *dev, int64_t n, bool act) {
  float *host = sk_malloc((size_t)n * sizeof *host), *f32 = NULL;
  if (act) {
    f32 = must_alloc((size_t)n * sizeof *f32);
    g_gpu->cast(g_gpu_stream, f32, SK_F32, dev, SK_BF16, n);
  }
  g_gpu->to_host(g_gpu_stream, host, act ? f32 : dev, (size_t)n * sizeof *host);
  if (act) g_gpu->free(g_gpu_dev, f32);
  return host;
}

// |a - b| / |b| over columns lo .. hi of rows of stride ld; *same: equal bits.
static double distance(const void *a, const void *b, int64_t rows, int64_t ld, int64_t lo,
                       int64_t hi, bool act, bool *same) {
  float *x = to_floats(a, rows * ld, act), *y = to_floats(b, rows * ld, act);
  double diff = 0, norm = 0;
  *same = memcmp(x, y, (size_t)(rows * ld) * sizeof *x) == 0;
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t c = lo; c < hi; c++) {
      double u = (double)x[i * ld + c], v = (double)y[i * ld + c];
      diff += isfinite(u) && isfinite(v) ? (u - v) * (u - v) : INFINITY;
      norm += v * v;
    }
  }
  sk_free(x);
  sk_free(y);
  return sqrt(diff / norm);
}

static void both_forward(problem *p) {
  const sk_attn_dims *d = &p->d;
  const int64_t n = d->b * d->Tq, q = d->H * d->hd, kv = d->KV * d->hd;
  bool same;
  for (int i = 0; i < 2; i++) {
    sk_attn_dims one = *d;
    one.whole = i == 0;
    g_gpu->attention(g_gpu_stream, &one, p->o[i], p->lse[i], p->x, at(p->x, q), at(p->x, q + kv),
                     p->start);
  }
  double o = distance(p->o[0], p->o[1], n, d->ldo, 0, q, true, &same);
  double lse = distance(p->lse[0], p->lse[1], 1, n * d->H, 0, n * d->H, false, &same);
  // Both round the probabilities to bf16 (2^-9 at most), one before and one after they are divided
  // by their sum, and then the output.
  tap_ok(o < 5e-3 && lse < 1e-5, "%s: cuDNN and Saker differ by %.2g in o, %.2g in lse", name_of(d),
         o, lse);
  g_gpu->attention(g_gpu_stream, d, p->o[1], p->lse[1], p->x, at(p->x, q), at(p->x, q + kv),
                   p->start);
  bool same_lse;
  distance(p->o[0], p->o[1], n, d->ldo, 0, q, true, &same);
  distance(p->lse[0], p->lse[1], 1, n * d->H, 0, n * d->H, false, &same_lse);
  tap_ok(same && same_lse, "%s: cuDNN's forward pass gives the same bits again", name_of(d));
}

static void run_backward(problem *p, sk_cudnn_plan *plan, int to, void *ws) {
  const sk_attn_dims *d = &p->d;
  const int64_t q = d->H * d->hd, kv = d->KV * d->hd;
  void *dx = p->dx[to];
  sk_cudnn_args a = {.o = p->o[0],
                     .lse = p->lse[0],
                     .q = p->x,
                     .k = at(p->x, q),
                     .v = at(p->x, q + kv),
                     .dout = p->dout,
                     .dq = dx,
                     .dk = at(dx, q),
                     .dv = at(dx, q + kv)};
  if (plan)
    sk_cudnn_plan_run(plan, g_gpu_stream, &a, ws);
  else
    g_gpu->attention_grad(g_gpu_stream, d, a.dq, a.dk, a.dv, a.dout, a.q, a.k, a.v, a.o, a.lse,
                          p->start, ws);
}

// What `bench ops` compares with computes the same gradients.
static void both_backward(problem *p, sk_cudnn_pass pass) {
  const sk_attn_dims *d = &p->d;
  const int64_t n = d->b * d->Tq, q = d->H * d->hd, kv = d->KV * d->hd;
  const char *what = pass == SK_CUDNN_ORDERED ? "deterministic" : "any-order";
  sk_err e = {0};
  sk_cudnn_plan *plan = sk_cudnn_plan_create(library(), pass, d, &e);
  tap_ok(plan != NULL, "%s: a plan of cuDNN's %s backward pass%s%s", name_of(d), what,
         plan ? "" : ": ", e.msg);
  if (!plan) return;
  void *ws = poison(sk_cudnn_plan_ws(plan)), *own = must_alloc(g_gpu->attention_ws(g_gpu_dev, SK_BF16, d));
  bool same;
  const int64_t edge[] = {0, q, q + kv, q + 2 * kv};
  double err[3];
  run_backward(p, plan, 0, ws);
  run_backward(p, NULL, 1, own);
  for (int i = 0; i < 3; i++)
    err[i] = distance(p->dx[0], p->dx[1], n, d->ldq, edge[i], edge[i + 1], true, &same);
  tap_ok(err[0] < 1e-2 && err[1] < 1e-2 && err[2] < 1e-2,
         "%s: cuDNN's %s gradients and Saker's differ by %.2g, %.2g, %.2g; workspace %s",
         name_of(d), what, err[0], err[1], err[2], sk_bytes((double)sk_cudnn_plan_ws(plan)));
  if (pass == SK_CUDNN_ORDERED) {
    run_backward(p, plan, 1, ws);
    distance(p->dx[0], p->dx[1], n, d->ldq, 0, d->ldq, true, &same);
    tap_ok(same, "%s: ... and the same bits again", name_of(d));
  }
  g_gpu->sync(g_gpu_stream);
  g_gpu->free(g_gpu_dev, ws);
  g_gpu->free(g_gpu_dev, own);
  sk_cudnn_plan_destroy(plan);
}

static void test_large(void) {
  const sk_attn_dims d[] = {shape(4, 4096, 8, 2, 64, 0), shape(2, 4096, 12, 2, 128, 0)};
  for (int i = 0; i < 2; i++) {
    g_gpu->attention_ready(g_gpu_dev, &d[i]);
    problem p = make(d[i]);
    both_forward(&p);
    both_backward(&p, SK_CUDNN_BACKWARD);
    both_backward(&p, SK_CUDNN_ORDERED);
    drop(&p);
  }
}

// ---- in training ----

enum { LAYERS = 2, T = 512, STEPS = 3 };

// Gives the calls of cuDNN; *grown: bytes of the GPU that were taken after the first step.
static int64_t train(sk_config *c, const sk_ops *op, int64_t document, double loss[STEPS],
                     size_t *grown) {
  const int64_t b = 2, n = b * T;
  sk_engine g;
  sk_grid one;
  sk_err e = {0};
  int32_t *ids = sk_calloc((size_t)n, 4), *label = sk_calloc((size_t)n, 4),
          *start = sk_calloc((size_t)n, 4);
  small_ids(ids, n, c->model.vocab_size, 3);
  for (int64_t i = 0; i < n; i++) {
    start[i] = document ? (int32_t)(i % T / document * document) : 0;
    label[i] = i % T + 1 < T ? ids[i + 1] : -1;
  }
  sk_grid_pretend(&one, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  c->parallel.virtual_stages = 1;
  c->train.global_batch = c->train.micro_batch = b;
  c->optimizer.betas[0] = 0.9, c->optimizer.betas[1] = 0.95, c->optimizer.eps = 1e-8;
  SK_CHECK(sk_engine_open(&g, c, op, sk_device_comm(op), &one, true, b, T, T, &e) == SK_OK, "%s",
           e.msg);
  sk_engine_init(&g);
  size_t used = 0;
  for (int i = 0; i < STEPS; i++) {
    if (i == 1) used = op->used(g.ctx.dev);
    sk_engine_step(&g, ids, label, start, 1.0 / (double)(b * (T - 1)));
    loss[i] = sk_engine_take_loss(&g) / (double)(b * (T - 1));
    sk_optim_update(&g.opt, &g.ctx, c, i + 1, 1e-3, 0.9);
  }
  *grown = op->used(g.ctx.dev) - used;
  int64_t calls = op == g_gpu ? sk_cudnn_calls(sk_cudnn_of(g.ctx.st)) : 0;
  sk_engine_close(&g);
  sk_free(ids);
  sk_free(label);
  sk_free(start);
  return calls;
}

static void test_training(void) {
  sk_config c;
  double loss[3][STEPS], worst = 0;
  size_t grown, unused;
  small_config(&c, 0, NULL);
  sk_free(c.layer);
  c.n_layers = c.model.num_hidden_layers = LAYERS;
  c.model.hidden_size = 256, c.model.intermediate_size = 512, c.model.head_dim = 64;
  c.model.num_attention_heads = 4, c.model.num_key_value_heads = 2,
  c.model.initializer_range = 0.05;
  c.layer = sk_calloc(LAYERS, sizeof *c.layer);
  for (int i = 0; i < LAYERS; i++)
    c.layer[i] = (sk_layer_cfg){.mixer = '*', .mlp = true, .m = c.model};
  c.train.dtype = SK_DTYPE_BF16;
  for (int recompute = SK_RECOMPUTE_NONE; recompute <= SK_RECOMPUTE_SELECTIVE; recompute++) {
    c.train.recompute = recompute;
    int64_t calls = train(&c, g_gpu, 0, loss[0], &unused),
            again = train(&c, g_gpu, 0, loss[1], &grown);
    train(&c, &sk_cpu_ops, 0, loss[2], &unused);
    for (int i = 0; i < STEPS; i++) worst = fmax(worst, fabs(loss[0][i] / loss[2][i] - 1));
    tap_ok(calls >= LAYERS * STEPS && calls == again,
           "training%s: %d steps of %d layers: %d calls of cuDNN", recompute ? ", recomputed" : "",
           STEPS, LAYERS, (int)calls);
    tap_ok(worst < 1e-2, "... losses of the CPU, %.5f to %.5f, within %.2g", loss[0][0],
           loss[0][STEPS - 1], worst);
    tap_ok(memcmp(loss[0], loss[1], sizeof loss[0]) == 0, "... and a second run's bits");
    tap_ok(grown == 0, "... after the first step nothing is allocated (%zu bytes)", grown);
  }
  tap_ok(train(&c, g_gpu, 100, loss[0], &unused) == 0,
         "training: none where documents begin inside");
  sk_free(c.layer);
}

int main(int argc, char **argv) {
  sk_err e = {0};
  const char *why = NULL;
  tap_init(&argc, &argv);
  g_gpu = sk_cuda;
  if (!sk_cudnn_built)
    why = "this program was built without cuDNN";
  else if (g_gpu->count(&e) == 0)
    why = e.msg;
  if (!why) device_open(SK_BF16);
  if (!why && !library()) why = g_gpu->describe(g_gpu_dev);
  if (why) {
    printf("1..0 # SKIP %s\n", why);
    device_close();
    MPI_Finalize();
    return 0;
  }
  tap_ok(strstr(g_gpu->describe(g_gpu_dev), "cuDNN 9.") != NULL, "%s", g_gpu->describe(g_gpu_dev));
  test_forward();
  test_large();
  device_close();
  test_training();
  return tap_done();
}
