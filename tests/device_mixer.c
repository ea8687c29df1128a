/* device_mixer.c: the ops of attention and of the SSM mixer on the CPU and on the GPU. */
#include <math.h>
#include <string.h>
#include "tests/device_check.h"

// ---- documents ----

// start[b * T]: the first document of a sequence begins at `first` (which may lie before the
// piece), others follow at random, one in `mean` tokens (0: none).
static void fill_start(int32_t *start, int64_t b, int64_t T, int32_t first, uint64_t mean) {
  for (int64_t i = 0; i < b * T; i++) {
    int64_t t = i % T;
    bool begins = mean && t > 0 && sk_rand(5, (uint64_t)i) % mean == 0;
    start[i] = begins ? (int32_t)t : t > 0 ? start[i - 1] : first;
  }
}

// ---- rotary embedding, step sizes ----

typedef struct rope_dims {
  int64_t b, T, heads, hd, ld;
  int sign;
} rope_dims;

static void call_rope(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const rope_dims *d = dims;
  op->rope(s, p[0], d->ld, p[1], 0.6, d->sign, d->b, d->T, d->heads, d->hd);
}

static void test_rope(rope_dims d, int64_t pad, int64_t shift) {
  d.ld = d.heads * d.hd + pad;
  for (d.sign = -1; d.sign <= 1; d.sign += 2) {
    trial t = {.shift = shift};
    add_array(&t, "x", ADD, ACT, d.b * d.T, d.heads * d.hd, d.ld);
    float *table = add_array(&t, "table", IN, F32, d.T, d.hd, d.hd);
    for (int64_t i = 0; i < d.T * d.hd / 2; i++) {
      float angle = table[2 * i];
      table[2 * i] = cosf(angle), table[2 * i + 1] = sinf(angle);
    }
    run_trial(&t, call_rope, &d, "rope b %d T %d heads %d hd %d sign %+d", (int)d.b, (int)d.T,
              (int)d.heads, (int)d.hd, d.sign);
  }
}

typedef struct dt_dims {
  int64_t n, nh, ld;
  double mult, lo, hi;
} dt_dims;

static void call_dt(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const dt_dims *d = dims;
  op->dt(s, p[0], p[1], d->ld, d->mult, p[2], d->lo, d->hi, d->n, d->nh);
}

static void call_dt_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const dt_dims *d = dims;
  op->dt_grad(s, p[0], p[1], p[2], p[3], d->ld, d->mult, p[4], d->lo, d->hi, d->n, d->nh);
}

static void test_dt(dt_dims d, float centre, int64_t shift) {
  d.ld = d.nh + 5;
  for (int grad = 0; grad < 2; grad++) {
    trial t = {.shift = shift};
    if (grad) {
      add_array(&t, "dr", OUT, ACT, d.n, d.nh, d.ld);
      add_array(&t, "ddt_bias", ADD, F32, 1, d.nh, d.nh);
      add_array(&t, "ddt", IN, F32, d.n, d.nh, d.nh);
    } else {
      add_array(&t, "dt", OUT, F32, d.n, d.nh, d.nh);
    }
    float *r = add_array(&t, "r", IN, ACT, d.n, d.nh, d.ld);
    for (int64_t i = 0; i < d.n * d.ld; i++) r[i] = centre + 4 * r[i];
    add_array(&t, "dt_bias", IN, ACT, 1, d.nh, d.nh);
    run_trial(&t, grad ? call_dt_grad : call_dt, &d, "dt%s [%d, %d] around %g in [%g, %g]",
              grad ? "_grad" : "", (int)d.n, (int)d.nh, (double)centre, d.lo, d.hi);
  }
}

// ---- gate ----

typedef struct gate_call {
  sk_gate_dims d;
  bool shared; // the sums are given from outside
} gate_call;

static sk_gate_dims gate_of(const gate_call *c, const void *whole) {
  sk_gate_dims d = c->d;
  d.whole = c->shared ? whole : NULL;
  return d;
}

static void call_gate(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const gate_call *c = dims;
  sk_gate_dims d = gate_of(c, p[3]);
  op->gate(s, &d, p[0], c->d.norm ? p[4] : NULL, p[1], p[2], c->d.norm ? p[5] : NULL);
}

static void call_gate_stats(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  op->gate_stats(s, &((const gate_call *)dims)->d, p[0], p[1], p[2]);
}

static void call_gate_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const gate_call *c = dims;
  sk_gate_dims d = gate_of(c, p[5]);
  bool norm = c->d.norm;
  op->gate_grad(s, &d, p[0], p[1], norm ? p[6] : NULL, p[2], p[3], p[4], norm ? p[7] : NULL,
                norm ? p[8] : NULL);
}

static void call_gate_grad_stats(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  op->gate_grad_stats(s, &((const gate_call *)dims)->d, p[0], p[1], p[2], p[3], p[4]);
}

static void test_gate(sk_gate_dims d, bool shared, int64_t pad, int64_t shift) {
  const int64_t n = d.n, ds = d.ds, G = d.G;
  d.ldz = ds + pad, d.zmult = 0.6, d.eps = 1e-5, d.width = shared ? 2 * ds / G : 0;
  gate_call c = {d, shared};
  char *name = sk_strf("n %d ds %d G %d%s%s%s", (int)n, (int)ds, (int)G, d.norm ? ", norm" : "",
                       d.before ? " before" : "", shared ? ", shared" : "");
  trial t = {.shift = shift};
  add_array(&t, "o", OUT, ACT, n, ds, ds);
  add_array(&t, "y", IN, ACT, n, ds, ds);
  add_array(&t, "z", IN, ACT, n, ds, d.ldz);
  float *whole = add_array(&t, "whole", IN, F32, n, G, G);
  for (int64_t i = 0; i < n * G; i++) whole[i] = fabsf(whole[i]) * (float)(ds / G) + 1;
  if (d.norm) {
    add_array(&t, "rstd", OUT, F32, n, G, G);
    add_array(&t, "w", IN, ACT, 1, ds, ds);
  }
  run_trial(&t, call_gate, &c, "gate %s", name);
  t = (trial){.shift = shift};
  add_array(&t, "dy", OUT, ACT, n, ds, ds);
  add_array(&t, "dz", OUT, ACT, n, ds, d.ldz);
  add_array(&t, "do", IN, ACT, n, ds, ds);
  add_array(&t, "y", IN, ACT, n, ds, ds);
  add_array(&t, "z", IN, ACT, n, ds, d.ldz);
  add_array(&t, "whole", IN, F32, n, G, G);
  if (d.norm) {
    add_array(&t, "dw", ADD, F32, 1, ds, ds);
    add_array(&t, "w", IN, ACT, 1, ds, ds);
    float *rstd = add_array(&t, "rstd", IN, F32, n, G, G);
    for (int64_t i = 0; i < n * G; i++) rstd[i] = 1 + 0.1f * rstd[i];
  }
  run_trial(&t, call_gate_grad, &c, "gate_grad %s", name);
  if (shared) {
    t = (trial){.shift = shift};
    add_array(&t, "ss", OUT, F32, n, G, G);
    add_array(&t, "y", IN, ACT, n, ds, ds);
    add_array(&t, "z", IN, ACT, n, ds, d.ldz);
    run_trial(&t, call_gate_stats, &c, "gate_stats %s", name);
    t = (trial){.shift = shift};
    add_array(&t, "dots", OUT, F32, n, G, G);
    add_array(&t, "do", IN, ACT, n, ds, ds);
    add_array(&t, "y", IN, ACT, n, ds, ds);
    add_array(&t, "z", IN, ACT, n, ds, d.ldz);
    add_array(&t, "w", IN, ACT, 1, ds, ds);
    run_trial(&t, call_gate_grad_stats, &c, "gate_grad_stats %s", name);
  }
  sk_free(name);
}

// ---- convolution ----

typedef struct conv_call {
  sk_conv_dims d;
  bool halo, bias;
} conv_call;

static void call_conv(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const conv_call *c = dims;
  op->conv(s, &c->d, p[0], p[1], c->halo ? p[3] : NULL, p[2], c->bias ? p[4] : NULL, p[5]);
}

static void call_conv_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const conv_call *c = dims;
  op->conv_grad(s, &c->d, p[0], c->halo ? p[8] : NULL, p[1], c->bias ? p[9] : NULL, p[2], p[3],
                c->halo ? p[5] : NULL, p[4], c->bias ? p[6] : NULL, p[7]);
}

static void test_conv(sk_conv_dims d, bool halo, bool bias, int32_t first, uint64_t mean,
                      int64_t pad, int64_t shift) {
  const int64_t n = d.b * d.T, cd = d.width[0] + d.width[1] + d.width[2], before = d.b * (d.K - 1);
  d.ldx = cd + pad, d.ldy = cd + pad / 2;
  d.mult[0] = 0.75, d.mult[1] = 1.3, d.mult[2] = -0.6;
  conv_call c = {d, halo, bias};
  char *name =
      sk_strf("K %d b %d T %d widths %d %d %d, first document from %d, mean %d%s%s", (int)d.K,
              (int)d.b, (int)d.T, (int)d.width[0], (int)d.width[1], (int)d.width[2], (int)first,
              (int)mean, halo ? ", halo" : "", bias ? ", bias" : "");
  trial t = {.shift = shift};
  add_array(&t, "y", OUT, ACT, n, cd, d.ldy);
  add_array(&t, "x", IN, ACT, n, cd, d.ldx);
  add_array(&t, "w", IN, ACT, cd, d.K, d.K);
  add_array(&t, "halo", IN, ACT, before, cd, cd);
  add_array(&t, "bias", IN, ACT, 1, cd, cd);
  fill_start(add_array(&t, "start", IN, I32, 1, n, n), d.b, d.T, first, mean);
  run_trial(&t, call_conv, &c, "conv %s", name);
  t = (trial){.shift = shift};
  add_array(&t, "dx", OUT, ACT, n, cd, d.ldx);
  add_array(&t, "dw", ADD, F32, cd, d.K, d.K);
  add_array(&t, "dy", IN, ACT, n, cd, d.ldy);
  add_array(&t, "x", IN, ACT, n, cd, d.ldx);
  add_array(&t, "w", IN, ACT, cd, d.K, d.K);
  add_array(&t, "halo", IN, ACT, before, cd, cd);
  add_array(&t, "bias", IN, ACT, 1, cd, cd);
  fill_start(add_array(&t, "start", IN, I32, 1, n, n), d.b, d.T, first, mean);
  add_array(&t, "dhalo", halo ? OUT : IN, ACT, before, cd, cd);
  add_array(&t, "dbias", bias ? ADD : IN, F32, 1, cd, cd);
  run_trial(&t, call_conv_grad, &c, "conv_grad %s", name);
  sk_free(name);
}

// ---- attention ----

static void call_attention(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  op->attention(s, dims, p[0], p[1], p[2], p[3], p[4], p[5]);
}

static void call_attention_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  op->attention_grad(s, dims, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10]);
}

// Documents of queries at q0 .. q0+Tq-1; counted from key 0.
static void fill_attn_start(int32_t *start, const sk_attn_dims *d, uint64_t mean) {
  for (int64_t bi = 0; bi < d->b; bi++) {
    int32_t first = 0;
    for (int64_t j = 0; j < d->q0 + d->Tq; j++) {
      if (mean && sk_rand(11, (uint64_t)(bi * 100003 + j)) % mean == 0) first = (int32_t)j;
      if (j >= d->q0) start[bi * d->Tq + j - d->q0] = first;
    }
  }
}

static void test_attention(sk_attn_dims d, uint64_t mean, int64_t pad, int64_t shift) {
  const int64_t nq = d.b * d.Tq, nk = d.b * d.Tk, wq = d.H * d.hd, wk = d.KV * d.hd;
  d.ldq = wq + pad, d.ldk = wk + pad, d.ldv = wk + 2 * pad, d.ldo = wq + 3 * pad;
  d.scale = 1 / sqrt((double)d.hd);
  char *name = sk_strf("b %d Tq %d Tk %d q0 %d H %d KV %d hd %d, documents %d", (int)d.b, (int)d.Tq,
                       (int)d.Tk, (int)d.q0, (int)d.H, (int)d.KV, (int)d.hd, (int)mean);
  trial t = {.shift = shift};
  add_array(&t, "o", OUT, ACT, nq, wq, d.ldo);
  add_array(&t, "lse", OUT, F32, d.b * d.H, d.Tq, d.Tq);
  add_array(&t, "q", IN, ACT, nq, wq, d.ldq);
  add_array(&t, "k", IN, ACT, nk, wk, d.ldk);
  add_array(&t, "v", IN, ACT, nk, wk, d.ldv);
  fill_attn_start(add_array(&t, "start", IN, I32, 1, nq, nq), &d, mean);
  run_trial(&t, call_attention, &d, "attention %s", name);
  t = (trial){.shift = shift,
              .ws_cpu = sk_cpu_ops.attention_ws(g_cpu_dev, SK_F32, &d),
              .ws = g_gpu->attention_ws(g_gpu_dev, device_act(), &d)};
  add_array(&t, "dq", OUT, ACT, nq, wq, d.ldq);
  add_array(&t, "dk", OUT, ACT, nk, wk, d.ldk);
  add_array(&t, "dv", OUT, ACT, nk, wk, d.ldv);
  add_array(&t, "do", IN, ACT, nq, wq, d.ldo);
  float *q = add_array(&t, "q", IN, ACT, nq, wq, d.ldq),
        *k = add_array(&t, "k", IN, ACT, nk, wk, d.ldk);
  float *v = add_array(&t, "v", IN, ACT, nk, wk, d.ldv),
        *o = add_array(&t, "o", IN, ACT, nq, wq, d.ldo);
  float *lse = add_array(&t, "lse", IN, F32, d.b * d.H, d.Tq, d.Tq);
  int32_t *start = add_array(&t, "start", IN, I32, 1, nq, nq);
  fill_attn_start(start, &d, mean);
  round_act(q, nq * d.ldq), round_act(k, nk * d.ldk), round_act(v, nk * d.ldv);
  sk_cpu_ops.attention(g_cpu_stream, &d, o, lse, q, k, v, start);
  run_trial(&t, call_attention_grad, &d, "attention_grad %s", name);
  sk_free(name);
}

static void test_attentions(void) {
  test_attention((sk_attn_dims){.b = 1, .Tq = 1, .Tk = 1, .H = 1, .KV = 1, .hd = 2}, 0, 0, 0);
  test_attention((sk_attn_dims){.b = 2, .Tq = 9, .Tk = 9, .H = 4, .KV = 2, .hd = 6}, 0, 1, 0);
  test_attention((sk_attn_dims){.b = 2, .Tq = 33, .Tk = 33, .H = 3, .KV = 1, .hd = 16}, 7, 3, 1);
  test_attention((sk_attn_dims){.b = 1, .Tq = 5, .Tk = 20, .q0 = 11, .H = 2, .KV = 2, .hd = 10}, 6,
                 2, 0);
  test_attention((sk_attn_dims){.b = 3, .Tq = 150, .Tk = 150, .H = 6, .KV = 2, .hd = 32}, 0, 8, 0);
  test_attention((sk_attn_dims){.b = 2, .Tq = 201, .Tk = 201, .H = 4, .KV = 4, .hd = 64}, 60, 0, 0);
  test_attention((sk_attn_dims){.b = 1, .Tq = 131, .Tk = 131, .H = 5, .KV = 1, .hd = 40}, 30, 0, 1);
  test_attention((sk_attn_dims){.b = 1, .Tq = 70, .Tk = 300, .q0 = 130, .H = 2, .KV = 1, .hd = 128},
                 0, 0, 0);
  test_attention((sk_attn_dims){.b = 2, .Tq = 1, .Tk = 128, .q0 = 77, .H = 3, .KV = 3, .hd = 24},
                 50, 0, 0);
  test_attention((sk_attn_dims){.b = 1, .Tq = 300, .Tk = 300, .H = 4, .KV = 1, .hd = 256}, 0, 0, 0);
  test_attention((sk_attn_dims){.b = 2, .Tq = 1024, .Tk = 1024, .H = 8, .KV = 2, .hd = 64}, 200, 0,
                 0);
  test_attention(
      (sk_attn_dims){.b = 1, .Tq = 777, .Tk = 2000, .q0 = 1223, .H = 12, .KV = 2, .hd = 128}, 500,
      0, 0);
}

// ---- SSD ----

typedef struct ssd_call {
  sk_ssd_dims d;
  bool S0, Sf, dSf, dS0;
} ssd_call;

// x, B and C of a row lie side by side.
static void *part(const sk_ops *op, void *row, int64_t at) {
  return (char *)row + (size_t)at * (op == g_gpu ? sk_dtype_size(device_act()) : 4);
}

static void call_ssd(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const ssd_call *c = dims;
  int64_t B = c->d.nh * c->d.P, C = B + c->d.G * c->d.N;
  op->ssd(s, &c->d, p[0], c->Sf ? p[7] : NULL, p[1], part(op, p[1], B), part(op, p[1], C), p[2],
          p[3], p[4], p[5], c->S0 ? p[6] : NULL, p[8]);
}

static void call_ssd_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const ssd_call *c = dims;
  int64_t B = c->d.nh * c->d.P, C = B + c->d.G * c->d.N;
  op->ssd_grad(s, &c->d, p[0], part(op, p[0], B), part(op, p[0], C), p[1], p[2], p[3],
               c->dS0 ? p[12] : NULL, p[4], p[5], part(op, p[5], B), part(op, p[5], C), p[6], p[7],
               p[8], p[9], c->S0 ? p[10] : NULL, c->dSf ? p[11] : NULL, p[13]);
}

static void call_ssd_state(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const ssd_call *c = dims;
  op->ssd_state(s, &c->d, p[0], p[1], p[2], part(op, p[2], c->d.nh * c->d.P), p[3], p[4], p[5],
                p[6]);
}

static void call_ssd_state_grad(const sk_ops *op, sk_stream *s, void **p, const void *dims) {
  const ssd_call *c = dims;
  int64_t C = c->d.nh * c->d.P + c->d.G * c->d.N;
  op->ssd_state_grad(s, &c->d, p[0], p[1], part(op, p[2], C), p[3], p[4], p[5], p[6]);
}

// Steps from 0.01 to 1 and decays from 0.02 to 2 or so, as a model has them.
static void add_dt(trial *t, const sk_ssd_dims *d) {
  float *dt = add_array(t, "dt", IN, F32, d->b * d->T, d->nh, d->nh);
  for (int64_t i = 0; i < d->b * d->T * d->nh; i++) dt[i] = 0.1f * expf(0.8f * dt[i]);
}
static void add_A(trial *t, const sk_ssd_dims *d) {
  float *A = add_array(t, "A_log", IN, ACT, 1, d->nh, d->nh);
  for (int64_t h = 0; h < d->nh; h++) A[h] = 1.2f * A[h] - 1.5f;
}

static trial ssd_trial(const sk_ssd_dims *d, bool grad, int64_t shift) {
  trial t = {.shift = shift};
  t.ws_cpu = grad ? sk_cpu_ops.ssd_grad_ws(g_cpu_dev, SK_F32, d) : sk_cpu_ops.ssd_ws(g_cpu_dev, SK_F32, d);
  t.ws = grad ? g_gpu->ssd_grad_ws(g_gpu_dev, device_act(), d) : g_gpu->ssd_ws(g_gpu_dev, device_act(), d);
  return t;
}

// options: bit 0 S0 given, 1 Sf wanted, 2 dSf given, 3 dS0 wanted.
static void test_ssd(sk_ssd_dims d, int options, int32_t first, uint64_t mean, int64_t pad,
                     int64_t shift) {
  const int64_t n = d.b * d.T, ds = d.nh * d.P, row = ds + 2 * d.G * d.N, heads = d.b * d.nh,
                PN = d.P * d.N;
  d.ld = row + pad, d.ldy = ds + pad;
  ssd_call c = {d, options & 1, options & 2, options & 4, options & 8};
  char *name = sk_strf(
      "b %d T %d nh %d P %d G %d N %d Q %d, first document from %d, mean %d%s%s%s%s", (int)d.b,
      (int)d.T, (int)d.nh, (int)d.P, (int)d.G, (int)d.N, (int)d.Q, (int)first, (int)mean,
      c.S0 ? ", S0" : "", c.Sf ? ", Sf" : "", c.dSf ? ", dSf" : "", c.dS0 ? ", dS0" : "");
  trial t = ssd_trial(&d, false, shift);
  add_array(&t, "y", OUT, ACT, n, ds, d.ldy);
  add_array(&t, "xBC", IN, ACT, n, row, d.ld);
  add_dt(&t, &d);
  add_A(&t, &d);
  add_array(&t, "D", IN, ACT, 1, d.nh, d.nh);
  fill_start(add_array(&t, "start", IN, I32, 1, n, n), d.b, d.T, first, mean);
  add_array(&t, "S0", IN, F32, heads, PN, PN);
  add_array(&t, "Sf", c.Sf ? OUT : IN, F32, heads, PN, PN);
  run_trial(&t, call_ssd, &c, "ssd %s", name);
  t = ssd_trial(&d, true, shift);
  add_array(&t, "dxBC", OUT, ACT, n, row, d.ld);
  add_array(&t, "ddt", OUT, F32, n, d.nh, d.nh);
  add_array(&t, "dA_log", ADD, F32, 1, d.nh, d.nh);
  add_array(&t, "dD", ADD, F32, 1, d.nh, d.nh);
  add_array(&t, "dy", IN, ACT, n, ds, d.ldy);
  add_array(&t, "xBC", IN, ACT, n, row, d.ld);
  add_dt(&t, &d);
  add_A(&t, &d);
  add_array(&t, "D", IN, ACT, 1, d.nh, d.nh);
  fill_start(add_array(&t, "start", IN, I32, 1, n, n), d.b, d.T, first, mean);
  add_array(&t, "S0", IN, F32, heads, PN, PN);
  add_array(&t, "dSf", IN, F32, heads, PN, PN);
  add_array(&t, "dS0", c.dS0 ? OUT : IN, F32, heads, PN, PN);
  run_trial(&t, call_ssd_grad, &c, "ssd_grad %s", name);
  t = ssd_trial(&d, false, shift);
  add_array(&t, "Sf", OUT, F32, heads, PN, PN);
  add_array(&t, "keep", OUT, F32, 1, heads, heads);
  add_array(&t, "xBC", IN, ACT, n, row, d.ld);
  add_dt(&t, &d);
  add_A(&t, &d);
  fill_start(add_array(&t, "start", IN, I32, 1, n, n), d.b, d.T, first, mean);
  run_trial(&t, call_ssd_state, &c, "ssd_state %s", name);
  t = ssd_trial(&d, true, shift);
  add_array(&t, "dS0", OUT, F32, heads, PN, PN);
  add_array(&t, "dy", IN, ACT, n, ds, d.ldy);
  add_array(&t, "xBC", IN, ACT, n, row, d.ld);
  add_dt(&t, &d);
  add_A(&t, &d);
  fill_start(add_array(&t, "start", IN, I32, 1, n, n), d.b, d.T, first, mean);
  run_trial(&t, call_ssd_state_grad, &c, "ssd_state_grad %s", name);
  sk_free(name);
}

static void test_ssds(void) {
  const sk_ssd_dims shape[] = {{.b = 1, .T = 1, .nh = 1, .P = 1, .G = 1, .N = 1, .Q = 1},
                               {.b = 2, .T = 41, .nh = 4, .P = 8, .G = 2, .N = 16, .Q = 16},
                               {.b = 1, .T = 33, .nh = 3, .P = 5, .G = 3, .N = 7, .Q = 8},
                               {.b = 3, .T = 70, .nh = 6, .P = 3, .G = 2, .N = 5, .Q = 13},
                               {.b = 2, .T = 100, .nh = 5, .P = 17, .G = 1, .N = 9, .Q = 64},
                               {.b = 2, .T = 65, .nh = 4, .P = 32, .G = 1, .N = 64, .Q = 32}};
  for (int i = 0; i < 24; i++)
    test_ssd(shape[i % 6], (7 * i + i / 6) % 16, i % 3 ? -5 : 0,
             (uint64_t)(i % 4 == 0   ? 0
                        : i % 4 == 1 ? 3
                                     : 20),
             i % 2 ? 3 : 8, i % 5 == 4);
  // Falcon-H1 0.5B, 7B (P 128, N 256) and 34B-like widths.
  test_ssd((sk_ssd_dims){.b = 2, .T = 1000, .nh = 24, .P = 64, .G = 1, .N = 128, .Q = 128}, 15, -3,
           300, 0, 0);
  test_ssd((sk_ssd_dims){.b = 1, .T = 600, .nh = 12, .P = 128, .G = 1, .N = 256, .Q = 256}, 0, 0, 0,
           0, 0);
  test_ssd((sk_ssd_dims){.b = 1, .T = 513, .nh = 8, .P = 128, .G = 2, .N = 256, .Q = 256}, 15, -1,
           90, 0, 0);
  test_ssd((sk_ssd_dims){.b = 1, .T = 4096, .nh = 8, .P = 64, .G = 2, .N = 128, .Q = 256}, 0, 0,
           1000, 0, 0);
}

void test_mixer(void) {
  const double inf = INFINITY;
  for (int64_t shift = 0; shift < 2; shift++) {
    test_rope((rope_dims){.b = 2, .T = 13, .heads = 3, .hd = 10}, 5, shift);
    test_rope((rope_dims){.b = 1, .T = 70, .heads = 2, .hd = 64}, 0, shift);
    test_rope((rope_dims){.b = 2, .T = 999, .heads = 9, .hd = 128}, 16, shift);
    test_dt((dt_dims){.n = 1, .nh = 1, .mult = 1, .hi = inf}, 0, shift);
    test_dt((dt_dims){.n = 777, .nh = 24, .mult = 0.7, .hi = inf}, 0, shift);
    test_dt((dt_dims){.n = 50, .nh = 24, .mult = 1, .hi = inf}, -16, shift);
    test_dt((dt_dims){.n = 5000, .nh = 33, .mult = 1.1, .lo = 0.6, .hi = 4}, 1, shift);
    for (int i = 0; i < 4; i++) {
      sk_gate_dims d = {.norm = i > 0, .before = i == 2};
      bool shared = i == 3;
      d.n = 37, d.ds = 24, d.G = 3, test_gate(d, shared, 7, shift);
      d.n = 1, d.ds = 1, d.G = 1, test_gate(d, shared, 0, shift);
      d.n = 500, d.ds = 1536, d.G = 1, test_gate(d, shared, 16, shift);
      d.n = 3000, d.ds = 96, d.G = 2, test_gate(d, shared, 8, shift);
      d.n = 700, d.ds = 3072, d.G = 1, test_gate(d, shared, 0, shift);
      d.n = 300, d.ds = 8192, d.G = 2, test_gate(d, shared, 8, shift);
    }
    test_gate((sk_gate_dims){.n = 40, .ds = 64, .G = 2, .norm = true, .before = true}, true, 8,
              shift);
  }
  const int32_t first[] = {-9, -2, 0};
  for (int64_t K = 1; K <= 5; K++) {
    for (int i = 0; i < 4; i++) {
      bool halo = i % 2, shorter = i / 2;
      sk_conv_dims d = {.b = 2, .T = shorter ? (K + 1) / 2 : 41, .K = K, .width = {37, 70, 11}};
      test_conv(d, halo, (K + i / 2) % 2, first[(K + i) % 3], shorter ? 3 : 6, 5, i == 3);
    }
  }
  test_conv((sk_conv_dims){.b = 3, .T = 30, .K = 4, .width = {1, 1, 1}}, true, true, -9, 1, 0, 0);
  test_conv((sk_conv_dims){.b = 2, .T = 1500, .K = 4, .width = {1536, 128, 128}}, true, true, -9,
            300, 24, 0);
  test_conv((sk_conv_dims){.b = 2, .T = 700, .K = 4, .width = {256, 64, 64}}, true, true, -9, 9, 8,
            0);
  test_conv((sk_conv_dims){.b = 2500, .T = 3, .K = 4, .width = {1536, 128, 128}}, true, true, -9, 3,
            0, 0); // more sequences than parts of the gradient's sums
  test_conv((sk_conv_dims){.b = 1, .T = 3001, .K = 4, .width = {256, 64, 64}}, false, true, 0, 0, 0,
            0);
  test_attentions();
  test_ssds();
}
