#include "src/trace.h"
#include <stdlib.h>
#include <string.h>

typedef struct mark {
  const char *op;
  int section;
  double flops;
  sk_event *from, *to;
} mark;

/* The table's functions have no argument for it, so the trace lives here. */
static struct {
  const sk_ops *op;
  sk_device *dev;
  const sk_timer *timer;
  mark *at;
  int n, made, cap; /* marks in use; with events; with room */
} g;

static void begin(sk_stream *s, const char *op, double flops) {
  if (g.n == g.cap) g.at = sk_realloc(g.at, (size_t)(g.cap = 2 * g.cap + 1024) * sizeof *g.at);
  mark *m = &g.at[g.n];
  if (g.n == g.made) {
    m->from = g.op->event_create(g.dev);
    m->to = g.op->event_create(g.dev);
    g.made++;
  }
  m->op = op, m->section = g.timer->stack[g.timer->depth], m->flops = flops;
  g.op->record(m->from, s);
}

static void end(sk_stream *s) { g.op->record(g.at[g.n++].to, s); }

/* An op of the table; its first argument is the stream s. */
#define SK_TRACED(name, parameters, arguments) \
  static void t_##name parameters {            \
    begin(s, #name, 0);                        \
    g.op->name arguments;                      \
    end(s);                                    \
  }

SK_TRACED(copy, (sk_stream *s, void *y, const void *x, size_t bytes), (s, y, x, bytes))
SK_TRACED(copy2d, (sk_stream *s, void *y, size_t ldy, const void *x, size_t ldx, size_t width, int64_t rows),
          (s, y, ldy, x, ldx, width, rows))
SK_TRACED(zero, (sk_stream *s, void *p, size_t bytes), (s, p, bytes))
SK_TRACED(cast, (sk_stream *s, void *y, sk_dtype to, const void *x, sk_dtype from, int64_t n), (s, y, to, x, from, n))

static void t_gemm(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *A,
                   int64_t lda, const void *B, int64_t ldb, double beta, void *C, int64_t ldc, sk_dtype ct) {
  begin(s, ta ? "gemm dW" : tb ? "gemm y" : "gemm dx", 2.0 * (double)m * (double)n * (double)k);
  g.op->gemm(s, ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, ct);
  end(s);
}

SK_TRACED(bias, (sk_stream *s, void *y, int64_t ld, const void *b, double scale, int64_t n, int64_t cols),
          (s, y, ld, b, scale, n, cols))
SK_TRACED(bias_grad, (sk_stream *s, float *db, const void *dy, int64_t ld, double scale, int64_t n, int64_t cols),
          (s, db, dy, ld, scale, n, cols))
SK_TRACED(add_f32, (sk_stream *s, float *y, const float *a, const float *b, int64_t n), (s, y, a, b, n))
SK_TRACED(add, (sk_stream *s, void *y, const void *a, const void *b, int64_t n), (s, y, a, b, n))
SK_TRACED(embed,
          (sk_stream *s, void *h, const int32_t *ids, const void *E, double mult, int64_t n, int64_t d, int64_t v0,
           int64_t nv),
          (s, h, ids, E, mult, n, d, v0, nv))
SK_TRACED(embed_grad,
          (sk_stream *s, float *dE, const int32_t *ids, const void *dh, double mult, int64_t n, int64_t d, int64_t v0,
           int64_t nv, int64_t pad),
          (s, dE, ids, dh, mult, n, d, v0, nv, pad))
SK_TRACED(rmsnorm,
          (sk_stream *s, void *y, float *rstd, void *sum, const void *x, const void *res, const void *w, int64_t n,
           int64_t d, double eps),
          (s, y, rstd, sum, x, res, w, n, d, eps))
SK_TRACED(rmsnorm_grad,
          (sk_stream *s, void *dx, float *dw, const void *dy, const void *x, const float *rstd, const void *w,
           int64_t n, int64_t d),
          (s, dx, dw, dy, x, rstd, w, n, d))
SK_TRACED(gate,
          (sk_stream *s, const sk_gate_dims *d, void *o, float *rstd, const void *y, const void *z, const void *w),
          (s, d, o, rstd, y, z, w))
SK_TRACED(gate_stats, (sk_stream *s, const sk_gate_dims *d, float *ss, const void *y, const void *z), (s, d, ss, y, z))
SK_TRACED(gate_grad,
          (sk_stream *s, const sk_gate_dims *d, void *dy, void *dz, float *dw, const void *dout, const void *y,
           const void *z, const void *w, const float *rstd),
          (s, d, dy, dz, dw, dout, y, z, w, rstd))
SK_TRACED(gate_grad_stats,
          (sk_stream *s, const sk_gate_dims *d, float *dots, const void *dout, const void *y, const void *z,
           const void *w),
          (s, d, dots, dout, y, z, w))
SK_TRACED(swiglu, (sk_stream *s, void *a, const void *gu, double m, int64_t n, int64_t F), (s, a, gu, m, n, F))
SK_TRACED(swiglu_grad, (sk_stream *s, void *dgu, const void *da, const void *gu, double m, int64_t n, int64_t F),
          (s, dgu, da, gu, m, n, F))
SK_TRACED(rope,
          (sk_stream *s, void *x, int64_t ld, const float *table, double mult, int sign, int64_t b, int64_t T,
           int64_t heads, int64_t hd),
          (s, x, ld, table, mult, sign, b, T, heads, hd))
SK_TRACED(attention,
          (sk_stream *s, const sk_attn_dims *d, void *o, float *lse, const void *q, const void *k, const void *v,
           const int32_t *start),
          (s, d, o, lse, q, k, v, start))
SK_TRACED(attention_grad,
          (sk_stream *s, const sk_attn_dims *d, void *dq, void *dk, void *dv, const void *dout, const void *q,
           const void *k, const void *v, const void *o, const float *lse, const int32_t *start, void *ws),
          (s, d, dq, dk, dv, dout, q, k, v, o, lse, start, ws))
SK_TRACED(conv,
          (sk_stream *s, const sk_conv_dims *d, void *y, const void *x, const void *halo, const void *w,
           const void *bias, const int32_t *start),
          (s, d, y, x, halo, w, bias, start))
SK_TRACED(conv_grad,
          (sk_stream *s, const sk_conv_dims *d, void *dx, void *dhalo, float *dw, float *dbias, const void *dy,
           const void *x, const void *halo, const void *w, const void *bias, const int32_t *start),
          (s, d, dx, dhalo, dw, dbias, dy, x, halo, w, bias, start))
SK_TRACED(dt,
          (sk_stream *s, float *dt, const void *r, int64_t ld, double mult, const void *bias, double lo, double hi,
           int64_t n, int64_t nh),
          (s, dt, r, ld, mult, bias, lo, hi, n, nh))
SK_TRACED(dt_grad,
          (sk_stream *s, void *dr, float *dbias, const float *ddt, const void *r, int64_t ld, double mult,
           const void *bias, double lo, double hi, int64_t n, int64_t nh),
          (s, dr, dbias, ddt, r, ld, mult, bias, lo, hi, n, nh))
SK_TRACED(ssd,
          (sk_stream *s, const sk_ssd_dims *d, void *y, float *Sf, const void *x, const void *B, const void *C,
           const float *dt, const void *A, const void *D, const int32_t *start, const float *S0, void *ws),
          (s, d, y, Sf, x, B, C, dt, A, D, start, S0, ws))
SK_TRACED(ssd_grad,
          (sk_stream *s, const sk_ssd_dims *d, void *dx, void *dB, void *dC, float *ddt, float *dA, float *dD,
           float *dS0, const void *dy, const void *x, const void *B, const void *C, const float *dt, const void *A,
           const void *D, const int32_t *start, const float *S0, const float *dSf, void *ws),
          (s, d, dx, dB, dC, ddt, dA, dD, dS0, dy, x, B, C, dt, A, D, start, S0, dSf, ws))
SK_TRACED(ssd_state,
          (sk_stream *s, const sk_ssd_dims *d, float *Sf, float *keep, const void *x, const void *B, const float *dt,
           const void *A, const int32_t *start, void *ws),
          (s, d, Sf, keep, x, B, dt, A, start, ws))
SK_TRACED(ssd_state_grad,
          (sk_stream *s, const sk_ssd_dims *d, float *dS0, const void *dy, const void *C, const float *dt,
           const void *A, const int32_t *start, void *ws),
          (s, d, dS0, dy, C, dt, A, start, ws))
SK_TRACED(fade_add, (sk_stream *s, float *S, const float *keep, const float *F, int64_t rows, int64_t cols),
          (s, S, keep, F, rows, cols))
SK_TRACED(xent_stats,
          (sk_stream *s, float *stats, const float *logits, int64_t ld, const int32_t *label, int64_t n, int64_t v0,
           int64_t nv),
          (s, stats, logits, ld, label, n, v0, nv))
SK_TRACED(xent_merge, (sk_stream *s, float *stats, const float *part, int64_t parts, int64_t n),
          (s, stats, part, parts, n))
SK_TRACED(xent_grad,
          (sk_stream *s, float *loss, void *dlogits, const float *logits, int64_t ld, const float *stats,
           const int32_t *label, double scale, int64_t n, int64_t v0, int64_t nv),
          (s, loss, dlogits, logits, ld, stats, label, scale, n, v0, nv))
SK_TRACED(sum, (sk_stream *s, double *sum, const float *x, int64_t n), (s, sum, x, n))
SK_TRACED(sqnorm, (sk_stream *s, double *out, const float *x, const int64_t *off, int64_t n), (s, out, x, off, n))
SK_TRACED(adamw,
          (sk_stream *s, void *w, float *p, float *m, float *v, const float *grad, int64_t n, const sk_adamw *h),
          (s, w, p, m, v, grad, n, h))

const sk_ops *sk_trace_open(const sk_ops *op, sk_device *dev, const sk_timer *timer) {
  static sk_ops t;
  g.op = op, g.dev = dev, g.timer = timer, g.n = 0;
  t = *op;
#define SK_USE(name) t.name = t_##name
  SK_USE(copy), SK_USE(copy2d), SK_USE(zero), SK_USE(cast), SK_USE(gemm), SK_USE(bias), SK_USE(bias_grad);
  SK_USE(add_f32), SK_USE(add), SK_USE(embed), SK_USE(embed_grad), SK_USE(rmsnorm), SK_USE(rmsnorm_grad);
  SK_USE(gate), SK_USE(gate_stats), SK_USE(gate_grad), SK_USE(gate_grad_stats), SK_USE(swiglu), SK_USE(swiglu_grad);
  SK_USE(rope), SK_USE(attention), SK_USE(attention_grad), SK_USE(conv), SK_USE(conv_grad), SK_USE(dt);
  SK_USE(dt_grad), SK_USE(ssd), SK_USE(ssd_grad), SK_USE(ssd_state), SK_USE(ssd_state_grad), SK_USE(fade_add);
  SK_USE(xent_stats), SK_USE(xent_merge), SK_USE(xent_grad), SK_USE(sum), SK_USE(sqnorm), SK_USE(adamw);
#undef SK_USE
  return &t;
}

/* Stable: lines of a section stay in the order of their first calls. */
static void sort(sk_trace_line *line, int n) {
  for (int i = 1; i < n; i++) {
    sk_trace_line x = line[i];
    int k = i;
    for (; k > 0 && line[k - 1].section > x.section; k--) line[k] = line[k - 1];
    line[k] = x;
  }
}

int sk_trace_read(sk_trace_line *line, int most) {
  int n = 0;
  for (int i = 0; i < g.n; i++) {
    const mark *m = &g.at[i];
    int k = 0;
    while (k < n && (line[k].section != m->section || strcmp(line[k].op, m->op) != 0)) k++;
    if (k == most) continue;
    if (k == n) line[n++] = (sk_trace_line){.op = m->op, .section = m->section};
    line[k].calls++;
    line[k].seconds += g.op->elapsed(m->from, m->to);
    line[k].flops += m->flops;
  }
  g.n = 0;
  sort(line, n);
  return n;
}

void sk_trace_close(void) {
  for (int i = 0; i < g.made; i++) {
    g.op->event_destroy(g.at[i].from);
    g.op->event_destroy(g.at[i].to);
  }
  sk_free(g.at);
  memset(&g, 0, sizeof g);
}
