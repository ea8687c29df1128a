/* bench_ops.c: every op of a layer at the shapes of the deck's first layers, forward and backward, beside two
 * ceilings measured in the same run: a large GEMM and a large copy. Bytes count every tensor read and written
 * once; FLOPs are those of spec section 8 (causal half). */
#include "kernels/cudnn.h"
#include "src/bench.h"
#include "src/device.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct bench {
  sk_bench *b;
  const sk_ops *op;
  sk_device *dev;
  sk_stream *st;
  sk_dtype act;
  size_t e;             /* bytes of an act element */
  double flops, copy;   /* ceilings: FLOP/s, bytes/s */
  sk_arena mem;
  int64_t n, b_seq, T;
  const sk_model_cfg *m;
  uint64_t key;
} bench;

/* ---- inputs ---- */

static float *f32(bench *k, int64_t n) {
  float *dev = sk_take_f32(&k->mem, n), *host = sk_malloc((size_t)n * sizeof *host);
  sk_bench_random(host, n, k->key++, 0.5);
  k->op->from_host(k->st, dev, host, (size_t)n * sizeof *host);
  sk_free(host);
  return dev;
}

static void *act(bench *k, int64_t n) {
  void *dev = sk_arena_take(&k->mem, (size_t)n * k->e);
  size_t mark = sk_arena_mark(&k->mem);
  float *x = f32(k, n);
  k->op->cast(k->st, dev, k->act, x, SK_F32, n);
  k->op->sync(k->st);
  sk_arena_release(&k->mem, mark);
  return dev;
}

/* Small positive numbers: time steps, reciprocal roots. */
static float *positive(bench *k, int64_t n) {
  float *dev = sk_take_f32(&k->mem, n), *host = sk_malloc((size_t)n * sizeof *host);
  for (int64_t i = 0; i < n; i++) host[i] = (float)(0.001 + 0.1 * sk_uniform(k->key, (uint64_t)i));
  k->key++;
  k->op->from_host(k->st, dev, host, (size_t)n * sizeof *host);
  sk_free(host);
  return dev;
}

static int32_t *ints(bench *k, int64_t n, int64_t below) {
  int32_t *dev = sk_arena_take(&k->mem, (size_t)n * sizeof *dev), *host = sk_calloc((size_t)n, sizeof *host);
  for (int64_t i = 0; i < n && below > 0; i++) host[i] = (int32_t)(sk_rand(k->key, (uint64_t)i) % (uint64_t)below);
  k->key++;
  k->op->from_host(k->st, dev, host, (size_t)n * sizeof *host);
  sk_free(host);
  return dev;
}

/* ---- one measurement ---- */

typedef struct call {
  bench *k;
  bool grad;
  int64_t d[4]; /* sizes, by op */
  void *p[24];
  sk_attn_dims at;
  sk_ssd_dims ss;
  sk_conv_dims cv;
  sk_gate_dims gt;
} call;

/* flops > 0: against the GEMM; else bytes against the copy; with both also beside the floor, the larger of the times
 * that the two ceilings allow. best: of the device's algorithms, in seconds, where there was a choice. */
static void report(bench *k, const char *op, const char *shape, const char *pass, double s, double flops,
                   double bytes, double best) {
  double rate = flops > 0 ? flops / s : bytes / s, pct = 100 * rate / (flops > 0 ? k->flops : k->copy);
  double floor = flops > 0 && bytes > 0 ? fmax(flops / k->flops, bytes / k->copy) : 0;
  char *other = best > 0    ? sk_strf(", %.1f %% of the best algorithm", 100 * best / s)
                : floor > 0 ? sk_strf(", floor %.3f ms", 1e3 * floor)
                            : sk_strdup("");
  sk_say("  %-14s %-34s %-4s %10.3f ms %9.3f %s %6.1f %%%s%s", op, shape, pass, 1e3 * s, 1e-12 * rate,
         flops > 0 ? "TFLOP/s" : "TB/s   ", pct, flops > 0 ? "" : " of copy", other);
  sk_free(other);
  json_t *o = sk_bench_result(k->b, "ops", k->op->describe(k->dev));
  json_object_set_new(o, "model", json_string(k->b->model));
  json_object_set_new(o, "op", json_string(op));
  json_object_set_new(o, "shape", json_string(shape));
  json_object_set_new(o, "pass", json_string(pass));
  json_object_set_new(o, "ms", json_real(1e3 * s));
  json_object_set_new(o, flops > 0 ? "tflops" : "tbps", json_real(1e-12 * rate));
  json_object_set_new(o, "pct_ceiling", json_real(pct));
  if (floor > 0) json_object_set_new(o, "floor_ms", json_real(1e3 * floor));
  if (best > 0) json_object_set_new(o, "pct_best_algorithm", json_real(100 * best / s));
  if (!k->b->results) json_decref(o);
}

static void measure(call *c, void (*run)(void *), const char *op, const char *shape, bool grad, double flops,
                    double bytes) {
  c->grad = grad;
  double s = sk_bench_time(c->k->b, c->k->st, run, c);
  report(c->k, op, shape, grad ? "bwd" : "fwd", s, flops, bytes, 0);
}

/* ---- GEMM and ceilings ---- */

static void product(bench *k, const char *name, const char *pass, const sk_bench_product *p) {
  char shape[64];
  snprintf(shape, sizeof shape, "%lld x %lld x %lld", (long long)p->m, (long long)p->n, (long long)p->k);
  double best, s = sk_bench_gemm(k->b, k->dev, k->st, p, &best);
  report(k, name, shape, pass, s, 2.0 * (double)p->m * (double)p->n * (double)p->k, 0, best);
}

/* y[n,out] = x[n,in] W^T of type yt, its rows ld apart; dx; dW in fp32, +=. */
static void gemm(bench *k, const char *name, int64_t n, int64_t out, int64_t ld, int64_t in, sk_dtype yt) {
  size_t mark = sk_arena_mark(&k->mem);
  void *x = act(k, n * in), *w = act(k, out * in), *y = yt == SK_F32 ? f32(k, n * ld) : act(k, n * ld);
  sk_bench_product p = {false, true, n, out, in, x, in, w, in, 0, y, ld, yt};
  product(k, name, "y", &p);
  const void *dy = yt == k->act ? y : act(k, n * ld);
  p = (sk_bench_product){false, false, n, in, out, dy, ld, w, in, 0, act(k, n * in), in, k->act};
  product(k, name, "dx", &p);
  p = (sk_bench_product){true, false, out, in, n, dy, ld, x, in, 1, f32(k, out * in), in, SK_F32};
  product(k, name, "dW", &p);
  sk_arena_release(&k->mem, mark);
}

static void layer_gemm(bench *k, const char *name, int64_t out, int64_t in) {
  gemm(k, name, k->n, out, out, in, k->act);
}

static void run_copy(void *arg) {
  call *c = arg;
  c->k->op->copy(c->k->st, c->p[0], c->p[1], (size_t)c->d[0]);
}

static void ceilings(bench *k) {
  size_t mark = sk_arena_mark(&k->mem);
  int64_t m = strcmp(k->op->name, "cpu") == 0 ? 1024 : 8192;
  int64_t bytes = strcmp(k->op->name, "cpu") == 0 ? 256 << 20 : (int64_t)1 << 30;
  const sk_bench_product g = {false, true, m, m, m, act(k, m * m), m, act(k, m * m), m, 0, act(k, m * m), m, k->act};
  double best, s = sk_bench_gemm(k->b, k->dev, k->st, &g, &best);
  if (best > 0 && best < s) s = best;
  k->flops = 2.0 * (double)m * (double)m * (double)m / s;
  report(k, "gemm ceiling", m == 1024 ? "1024^3" : "8192^3", "y", s, 2.0 * pow((double)m, 3), 0, 0);
  sk_arena_release(&k->mem, mark);
  call c = {.k = k, .d = {bytes}, .p = {sk_arena_take(&k->mem, (size_t)bytes), sk_arena_take(&k->mem, (size_t)bytes)}};
  k->op->zero(k->st, c.p[1], (size_t)bytes);
  s = sk_bench_time(k->b, k->st, run_copy, &c);
  k->copy = 2.0 * (double)bytes / s;
  report(k, "copy ceiling", sk_bytes((double)bytes), "fwd", s, 0, 2.0 * (double)bytes, 0);
  sk_arena_release(&k->mem, mark);
}

/* ---- attention ---- */

static void run_attention(void *arg) { /* p: q|k|v rows, o, lse, start, do, dqkv, ws */
  call *c = arg;
  bench *k = c->k;
  int64_t q = c->at.H * c->at.hd, kv = c->at.KV * c->at.hd;
  char *x = c->p[0], *dx = c->p[5];
  if (!c->grad)
    k->op->attention(k->st, &c->at, c->p[1], c->p[2], x, x + (size_t)q * k->e, x + (size_t)(q + kv) * k->e, c->p[3]);
  else
    k->op->attention_grad(k->st, &c->at, dx, dx + (size_t)q * k->e, dx + (size_t)(q + kv) * k->e, c->p[4], x,
                          x + (size_t)q * k->e, x + (size_t)(q + kv) * k->e, c->p[1], c->p[2], c->p[3], c->p[6]);
}

static void attention(bench *k) {
  const sk_model_cfg *m = k->m;
  int64_t H = m->num_attention_heads, KV = m->num_key_value_heads, hd = m->head_dim, ld = (H + 2 * KV) * hd;
  size_t mark = sk_arena_mark(&k->mem);
  call c = {.k = k, .at = {.b = k->b_seq, .Tq = k->T, .Tk = k->T, .H = H, .KV = KV, .hd = hd, .ldq = ld, .ldk = ld,
                           .ldv = ld, .ldo = H * hd, .scale = 1 / sqrt((double)hd)}};
  void *p[] = {act(k, k->n * ld), act(k, k->n * H * hd), f32(k, k->n * H), ints(k, k->n, 0), act(k, k->n * H * hd),
               act(k, k->n * ld), sk_arena_take(&k->mem, k->op->attention_ws(k->dev, k->act, &c.at))};
  memcpy(c.p, p, sizeof p);
  char shape[64];
  snprintf(shape, sizeof shape, "B%lld L%lld H%lld/%lld x %lld", (long long)k->b_seq, (long long)k->T, (long long)H,
           (long long)KV, (long long)hd);
  double flops = 2.0 * (double)(H * hd) * (double)(k->T + 1) * (double)k->n;
  double in = (double)(k->n * ld) * (double)k->e, out = (double)(k->n * H * hd) * (double)k->e;
  char *x = p[0], *dx = p[5];
  size_t to_k = (size_t)(H * hd) * k->e, to_v = (size_t)((H + KV) * hd) * k->e;
  const sk_cudnn_args a = {.o = p[1], .lse = p[2], .q = x, .k = x + to_k, .v = x + to_v, .dout = p[4], .dq = dx,
                           .dk = dx + to_k, .dv = dx + to_v};
  call back = c;
  back.grad = true;
  sk_bench_way own[2] = {{run_attention, &c, 0}, {run_attention, &back, 0}};
  sk_bench_rival rival[3];
  int n = sk_bench_attention(k->b, k->dev, k->st, &c.at, &a, own, rival);
  report(k, "attention", shape, "fwd", own[0].s, flops, in + out, 0);
  report(k, "attention", shape, "bwd", own[1].s, 2.5 * flops, 2 * in + 2 * out, 0);
  for (int i = 0; i < n; i++) {
    report(k, rival[i].op, shape, rival[i].pass, rival[i].s, strcmp(rival[i].pass, "fwd") == 0 ? flops : 2.5 * flops, 0, 0);
    json_t *all = k->b->results, *o = json_array_get(all, json_array_size(all) - 1);
    if (o) json_object_set_new(o, "workspace_bytes", json_integer((json_int_t)rival[i].ws));
  }
  sk_arena_release(&k->mem, mark);
}

/* ---- the SSM mixer ---- */

static void run_ssd(void *arg) { /* p: xBC, y, dt, A_log, D, start, dy, dxBC, ddt, dA, dD, ws, ws of the gradient */
  call *c = arg;
  bench *k = c->k;
  int64_t ds = c->ss.nh * c->ss.P, gn = c->ss.G * c->ss.N;
  char *x = c->p[0], *B = x + (size_t)ds * k->e, *C = B + (size_t)gn * k->e;
  char *dx = c->p[7], *dB = dx + (size_t)ds * k->e, *dC = dB + (size_t)gn * k->e;
  if (!c->grad)
    k->op->ssd(k->st, &c->ss, c->p[1], NULL, x, B, C, c->p[2], c->p[3], c->p[4], c->p[5], NULL, c->p[11]);
  else
    k->op->ssd_grad(k->st, &c->ss, dx, dB, dC, c->p[8], c->p[9], c->p[10], NULL, c->p[6], x, B, C, c->p[2], c->p[3],
                    c->p[4], c->p[5], NULL, NULL, c->p[12]);
}

static void ssd(bench *k) {
  const sk_model_cfg *m = k->m;
  int64_t nh = m->mamba_n_heads, P = m->mamba_d_head, G = m->mamba_n_groups, N = m->mamba_d_state;
  int64_t ds = nh * P, cd = ds + 2 * G * N;
  size_t mark = sk_arena_mark(&k->mem);
  call c = {.k = k, .ss = {.b = k->b_seq, .T = k->T, .nh = nh, .P = P, .G = G, .N = N, .Q = m->mamba_chunk_size,
                           .ld = cd, .ldy = ds}};
  void *p[] = {act(k, k->n * cd), act(k, k->n * ds), positive(k, k->n * nh), act(k, nh), act(k, nh), ints(k, k->n, 0),
               act(k, k->n * ds), act(k, k->n * cd), f32(k, k->n * nh), f32(k, nh), f32(k, nh),
               sk_arena_take(&k->mem, k->op->ssd_ws(k->dev, k->act, &c.ss)),
               sk_arena_take(&k->mem, k->op->ssd_grad_ws(k->dev, k->act, &c.ss))};
  memcpy(c.p, p, sizeof p);
  char shape[64];
  snprintf(shape, sizeof shape, "B%lld L%lld H%lld P%lld N%lld", (long long)k->b_seq, (long long)k->T, (long long)nh,
           (long long)P, (long long)N);
  double Q = (double)m->mamba_chunk_size;
  double flops = (Q * (double)(N * G) + (double)nh * (Q * (double)P + 4.0 * (double)(P * N))) * (double)k->n;
  double in = (double)(k->n * cd) * (double)k->e, out = (double)(k->n * ds) * (double)k->e, dt = 4.0 * (double)(k->n * nh);
  measure(&c, run_ssd, "ssd", shape, false, flops, in + out + dt);
  measure(&c, run_ssd, "ssd", shape, true, 2 * flops, 2 * in + out + 2 * dt);
  sk_arena_release(&k->mem, mark);
}

static void run_conv(void *arg) { /* p: x, y, w, bias, start, dy, dx, dw, dbias */
  call *c = arg;
  bench *k = c->k;
  if (!c->grad) k->op->conv(k->st, &c->cv, c->p[1], c->p[0], NULL, c->p[2], c->p[3], c->p[4]);
  else
    k->op->conv_grad(k->st, &c->cv, c->p[6], NULL, c->p[7], c->p[8], c->p[5], c->p[0], NULL, c->p[2], c->p[3], c->p[4]);
}

static void conv(bench *k) {
  const sk_model_cfg *m = k->m;
  int64_t ds = m->mamba_d_ssm, gn = m->mamba_n_groups * m->mamba_d_state, cd = ds + 2 * gn, K = m->mamba_d_conv;
  size_t mark = sk_arena_mark(&k->mem);
  call c = {.k = k, .cv = {.b = k->b_seq, .T = k->T, .K = K, .width = {ds, gn, gn}, .mult = {0.25, 0.5, 0.5}, .ldx = cd,
                           .ldy = cd}};
  void *p[] = {act(k, k->n * cd), act(k, k->n * cd), act(k, cd * K), act(k, cd), ints(k, k->n, 0), act(k, k->n * cd),
               act(k, k->n * cd), f32(k, cd * K), f32(k, cd)};
  memcpy(c.p, p, sizeof p);
  char shape[64];
  snprintf(shape, sizeof shape, "%lld x %lld, %lld taps", (long long)k->n, (long long)cd, (long long)K);
  double bytes = (double)(k->n * cd) * (double)k->e;
  measure(&c, run_conv, "conv1d + silu", shape, false, 0, 2 * bytes);
  measure(&c, run_conv, "conv1d + silu", shape, true, 0, 3 * bytes);
  sk_arena_release(&k->mem, mark);
}

static void run_gate(void *arg) { /* p: o, rstd, y, z, w, do, dy, dz, dw */
  call *c = arg;
  bench *k = c->k;
  if (!c->grad) k->op->gate(k->st, &c->gt, c->p[0], c->p[1], c->p[2], c->p[3], c->p[4]);
  else
    k->op->gate_grad(k->st, &c->gt, c->p[6], c->p[7], c->p[8], c->p[5], c->p[2], c->p[3], c->p[4], c->p[1]);
}

static void gate(bench *k) {
  const sk_model_cfg *m = k->m;
  int64_t ds = m->mamba_d_ssm, G = m->mamba_n_groups;
  size_t mark = sk_arena_mark(&k->mem);
  call c = {.k = k, .gt = {.n = k->n, .ds = ds, .G = G, .ldz = ds, .zmult = 0.35, .eps = 1e-5, .norm = m->mamba_rms_norm,
                           .before = m->mamba_norm_before_gate}};
  void *p[] = {act(k, k->n * ds), positive(k, k->n * G), act(k, k->n * ds), act(k, k->n * ds), act(k, ds),
               act(k, k->n * ds), act(k, k->n * ds), act(k, k->n * ds), f32(k, ds)};
  memcpy(c.p, p, sizeof p);
  char shape[64];
  snprintf(shape, sizeof shape, "%lld x %lld%s", (long long)k->n, (long long)ds, m->mamba_rms_norm ? ", norm" : "");
  double bytes = (double)(k->n * ds) * (double)k->e;
  measure(&c, run_gate, "gate", shape, false, 0, 3 * bytes);
  measure(&c, run_gate, "gate", shape, true, 0, 5 * bytes);
  sk_arena_release(&k->mem, mark);
}

/* ---- norms, MLP, loss, optimizer ---- */

static void run_rmsnorm(void *arg) { /* p: y, rstd, sum, x, res, w, dx, dw, dy */
  call *c = arg;
  bench *k = c->k;
  if (!c->grad)
    k->op->rmsnorm(k->st, c->p[0], c->p[1], c->p[2], c->p[3], c->p[4], c->p[5], c->d[0], c->d[1], 1e-5);
  else
    k->op->rmsnorm_grad(k->st, c->p[6], c->p[7], c->p[8], c->p[3], c->p[1], c->p[5], c->d[0], c->d[1]);
}

static void rmsnorm(bench *k) {
  int64_t d = k->m->hidden_size, nd = k->n * d;
  size_t mark = sk_arena_mark(&k->mem);
  call c = {.k = k, .d = {k->n, d}};
  void *p[] = {act(k, nd), f32(k, k->n), act(k, nd), act(k, nd), act(k, nd), act(k, d), act(k, nd), f32(k, d), act(k, nd)};
  memcpy(c.p, p, sizeof p);
  char shape[64];
  snprintf(shape, sizeof shape, "%lld x %lld, with residual", (long long)k->n, (long long)d);
  double bytes = (double)nd * (double)k->e;
  measure(&c, run_rmsnorm, "rmsnorm", shape, false, 0, 4 * bytes);
  measure(&c, run_rmsnorm, "rmsnorm", shape, true, 0, 4 * bytes);
  sk_arena_release(&k->mem, mark);
}

static void run_swiglu(void *arg) {
  call *c = arg;
  if (!c->grad) c->k->op->swiglu(c->k->st, c->p[0], c->p[1], 0.9, c->d[0], c->d[1]);
  else c->k->op->swiglu_grad(c->k->st, c->p[2], c->p[0], c->p[1], 0.9, c->d[0], c->d[1]);
}

static void swiglu(bench *k) {
  int64_t F = k->m->intermediate_size, nF = k->n * F;
  size_t mark = sk_arena_mark(&k->mem);
  call c = {.k = k, .d = {k->n, F}, .p = {act(k, nF), act(k, 2 * nF), act(k, 2 * nF)}};
  char shape[64];
  snprintf(shape, sizeof shape, "%lld x %lld", (long long)k->n, (long long)F);
  double bytes = (double)nF * (double)k->e;
  measure(&c, run_swiglu, "swiglu", shape, false, 0, 3 * bytes);
  measure(&c, run_swiglu, "swiglu", shape, true, 0, 5 * bytes);
  sk_arena_release(&k->mem, mark);
}

static void run_xent(void *arg) { /* p: logits, stats, label, loss, dlogits */
  call *c = arg;
  bench *k = c->k;
  if (!c->grad) k->op->xent_stats(k->st, c->p[1], c->p[0], c->d[2], c->p[2], c->d[0], 0, c->d[1]);
  else k->op->xent_grad(k->st, c->p[3], c->p[4], c->p[0], c->d[2], c->p[1], c->p[2], 1e-3, c->d[0], 0, c->d[1]);
}

/* A slice of the loss as in head.c. */
static int64_t slice_stride(const bench *k) { return (k->m->vocab_size + 63) / 64 * 64; }
static int64_t slice_tokens(const bench *k) {
  int64_t n = ((128 << 20) / k->m->vocab_size + 64) / 128 * 128;
  return n < 1 ? 1 : n < k->n ? n : k->n;
}

static void xent(bench *k) {
  int64_t V = k->m->vocab_size, n = slice_tokens(k), ld = slice_stride(k);
  size_t mark = sk_arena_mark(&k->mem);
  call c = {.k = k, .d = {n, V, ld},
            .p = {f32(k, n * ld), f32(k, 3 * n), ints(k, n, V), f32(k, n), sk_arena_take(&k->mem, (size_t)(n * ld) * k->e)}};
  char shape[64];
  snprintf(shape, sizeof shape, "%lld x %lld", (long long)n, (long long)V);
  double bytes = (double)(n * V);
  measure(&c, run_xent, "loss slice", shape, false, 0, 4 * bytes);
  measure(&c, run_xent, "loss slice", shape, true, 0, (4 + (double)k->e) * bytes);
  sk_arena_release(&k->mem, mark);
}

static void run_adamw(void *arg) {
  call *c = arg;
  const sk_adamw a = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .wd = 0.1, .bias1 = 0.5, .bias2 = 0.5, .gscale = 1};
  c->k->op->adamw(c->k->st, c->p[4], c->p[0], c->p[1], c->p[2], c->p[3], c->d[0], &a);
}

static void adamw(bench *k) {
  int64_t n = 8 << 20;
  size_t mark = sk_arena_mark(&k->mem);
  bool copy = k->act != SK_F32;
  call c = {.k = k, .d = {n}, .p = {f32(k, n), positive(k, n), positive(k, n), f32(k, n), copy ? act(k, n) : NULL}};
  measure(&c, run_adamw, "adamw", "8 Mi elements", false, 0, (28.0 + (copy ? 2 : 0)) * (double)n);
  sk_arena_release(&k->mem, mark);
}

/* ---- all ---- */

static void products(bench *k) {
  const sk_model_cfg *m = k->m;
  int64_t d = m->hidden_size, ds = m->mamba_d_ssm, q = m->num_attention_heads * m->head_dim;
  layer_gemm(k, "in_proj", 2 * ds + 2 * m->mamba_n_groups * m->mamba_d_state + m->mamba_n_heads, d);
  layer_gemm(k, "out_proj", d, ds);
  layer_gemm(k, "qkv_proj", q + 2 * m->num_key_value_heads * m->head_dim, d);
  layer_gemm(k, "o_proj", d, q);
  layer_gemm(k, "gate_up_proj", 2 * m->intermediate_size, d);
  layer_gemm(k, "down_proj", d, m->intermediate_size);
  gemm(k, "lm_head", slice_tokens(k), m->vocab_size, slice_stride(k), d, SK_F32);
}

static const struct {
  const char *name;
  void (*run)(bench *k);
} ops[] = {{"gemm", products}, {"attention", attention}, {"ssd", ssd},   {"conv1d", conv}, {"gate", gate},
           {"rmsnorm", rmsnorm}, {"swiglu", swiglu},     {"loss", xent}, {"adamw", adamw}};
enum { OPS = sizeof ops / sizeof ops[0] };

/* Which ops are asked for, as bits; no names: all. */
static unsigned chosen(const sk_bench *b, sk_err *e) {
  unsigned all = (1u << OPS) - 1, bits = 0;
  for (int i = 0; i < b->n_names && !e->code; i++) {
    int op = 0;
    while (op < OPS && strcmp(ops[op].name, b->names[i]) != 0) op++;
    if (op == OPS)
      sk_fail(e, SK_USAGE, "saker bench ops: no op '%s'; there are gemm, attention, ssd, conv1d, gate, rmsnorm, swiglu, loss, adamw",
              b->names[i]);
    else bits |= 1u << op;
  }
  return b->n_names ? bits : all;
}

/* Enough for the largest single measurement. */
static size_t memory_needed(const bench *k) {
  const sk_model_cfg *m = k->m;
  int64_t widest = 2 * m->mamba_d_ssm + 2 * m->mamba_n_groups * m->mamba_d_state + m->mamba_n_heads;
  if (2 * m->intermediate_size > widest) widest = 2 * m->intermediate_size;
  sk_ssd_dims s = {.b = k->b_seq, .T = k->T, .nh = m->mamba_n_heads, .P = m->mamba_d_head, .G = m->mamba_n_groups,
                   .N = m->mamba_d_state, .Q = m->mamba_chunk_size};
  size_t ssd_bytes = k->op->ssd_ws(k->dev, k->act, &s) + k->op->ssd_grad_ws(k->dev, k->act, &s);
  size_t slice_bytes = (size_t)slice_tokens(k) * (size_t)slice_stride(k) * 3 * sizeof(float) +
                       (size_t)(m->vocab_size * m->hidden_size) * 3 * sizeof(float);
  size_t ceiling = strcmp(k->op->name, "cpu") == 0 ? (size_t)600 << 20 : (size_t)3 << 30;
  size_t need = (size_t)(k->n * widest) * 5 * sizeof(float) + (size_t)(widest * m->hidden_size) * 10 + ssd_bytes;
  if (need < slice_bytes) need = slice_bytes;
  return (need > ceiling ? need : ceiling) + ((size_t)256 << 20);
}

int sk_bench_ops(sk_bench *b, sk_err *e) {
  const sk_config *c = b->cfg;
  bench k = {.b = b, .op = b->op, .m = &c->layer[0].m, .b_seq = c->train.micro_batch, .T = c->data.sequence, .key = 1};
  if (b->ranks != 1) return sk_fail(e, SK_USAGE, "saker bench ops: one rank only");
  unsigned wanted = chosen(b, e);
  if (e->code) return e->code;
  k.n = k.b_seq * k.T;
  k.act = sk_device_act(b->op, c);
  k.e = sk_dtype_size(k.act);
  if (!(k.dev = b->op->open(0, k.act, e))) return e->code;
  k.st = b->op->stream_create(k.dev);
  if (sk_arena_alloc(&k.mem, b->op, k.dev, "the inputs", memory_needed(&k), e) == SK_OK) {
    sk_say("%s, %s, %lld x %lld tokens\n", b->model, b->op->describe(k.dev), (long long)k.b_seq, (long long)k.T);
    ceilings(&k);
    for (int i = 0; i < OPS; i++)
      if (wanted >> i & 1) ops[i].run(&k);
  }
  sk_arena_free(&k.mem, b->op, k.dev);
  b->op->stream_destroy(k.st);
  b->op->close(k.dev);
  return e->code;
}
