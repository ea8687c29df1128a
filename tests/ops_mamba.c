/* ops_mamba.c: the convolution, the step sizes and the gate of the SSM mixer (kernels/ops.h)
 * against the loops of ref_mamba.c, and those against finite differences of themselves. The SSD
 * itself is in ssd.c. Every case goes through g_op. */
#include <float.h>
#include <omp.h>
#include "tests/ops_check.h"
#include "tests/ref_mamba.h"

// Whether an input still holds what it was given, and its padding.
static bool intact(const mat *m) {
  for (int64_t i = 0; i < m->rows; i++) {
    for (int64_t j = 0; j < m->ld; j++) {
      float x = m->f[i * m->ld + j];
      if (j < m->cols ? (double)x != m->d[i * m->cols + j] : !is_poison(x)) return false;
    }
  }
  return true;
}

// Replaces an element.
static void put(mat *m, int64_t row, int64_t col, double value) {
  float *x = &m->f[row * m->ld + col];
  *x = (float)value;
  m->d[row * m->cols + col] = (double)*x;
}

static void zero_ref(mat *m) {
  memset(m->d, 0, (size_t)(m->rows * m->cols) * sizeof *m->d);
}

static void check_all(loss_fn f, void *context, mat *const x[], const mat *const dx[],
                      const char *const name[], int count, const char *op) {
  for (int i = 0; i < count; i++) {
    char what[120];
    snprintf(what, sizeof what, "%s, %s", op, name[i]);
    check_gradient(f, context, x[i]->d, dx[i]->d, x[i]->rows * x[i]->cols, what);
  }
}

// ---- convolution ----

typedef struct conv_case {
  sk_conv_dims d;
  bool halo_given, bias_given;
  int32_t *start, *start_dev; // on the host and on the device
  mat x, halo, w, bias, dy;
  mat y, dx, dhalo, dw, dbias;
} conv_case;

// The first document of a sequence begins at `first`; others follow, of random lengths around
// `mean` (0: none).
static void conv_documents(conv_case *c, int32_t first, uint64_t mean) {
  const sk_conv_dims *d = &c->d;
  for (int64_t i = 0; i < d->b * d->T; i++) {
    int64_t t = i % d->T;
    bool begins = mean && t > 0 && sk_rand(5, (uint64_t)i) % mean == 0;
    c->start[i] = begins ? (int32_t)t : t > 0 ? c->start[i - 1] : first;
  }
  size_t bytes = (size_t)(d->b * d->T) * sizeof *c->start;
  g_op->from_host(g_stream, c->start_dev, c->start, bytes);
}

static conv_case conv_open(sk_conv_dims d, bool halo_given, bool bias_given) {
  int64_t n = d.b * d.T, cd = d.width[0] + d.width[1] + d.width[2], before = d.b * (d.K - 1);
  d.ldx = cd + 5, d.ldy = cd + 3;
  d.mult[0] = 0.75, d.mult[1] = 1.3, d.mult[2] = -0.6;
  conv_case c = {.d = d, .halo_given = halo_given, .bias_given = bias_given};
  c.start = sk_malloc((size_t)n * sizeof *c.start);
  c.start_dev = g_op->alloc(g_dev, (size_t)n * sizeof *c.start);
  c.x = input(n, cd, d.ldx), c.dx = output(n, cd, d.ldx);
  c.dy = input(n, cd, d.ldy), c.y = output(n, cd, d.ldy);
  c.halo = input(before, cd, cd), c.dhalo = output(before, cd, cd);
  c.w = input(cd, d.K, d.K), c.dw = input(cd, d.K, d.K); // dw and dbias: added to
  c.bias = input(1, cd, cd), c.dbias = input(1, cd, cd);
  return c;
}

static void conv_close(conv_case *c) {
  DROP(&c->x, &c->halo, &c->w, &c->bias, &c->dy, &c->y, &c->dx, &c->dhalo, &c->dw, &c->dbias);
  g_op->free(g_dev, c->start_dev);
  sk_free(c->start);
}

static void conv_run(conv_case *c) {
  const float *halo = c->halo_given ? c->halo.f : NULL, *bias = c->bias_given ? c->bias.f : NULL;
  g_op->conv(g_stream, &c->d, c->y.f, c->x.f, halo, c->w.f, bias, c->start_dev);
  g_op->conv_grad(g_stream, &c->d, c->dx.f, halo ? c->dhalo.f : NULL, c->dw.f,
                  bias ? c->dbias.f : NULL, c->dy.f, c->x.f, halo, c->w.f, bias, c->start_dev);
  g_op->sync(g_stream);
}

static void conv_ref(conv_case *c) {
  ref_conv(&c->d, c->y.d, c->x.d, c->halo_given ? c->halo.d : NULL, c->w.d,
           c->bias_given ? c->bias.d : NULL, c->start);
}

static void conv_ref_grad(conv_case *c) {
  const double *halo = c->halo_given ? c->halo.d : NULL, *bias = c->bias_given ? c->bias.d : NULL;
  ref_conv_grad(&c->d, c->dx.d, halo ? c->dhalo.d : NULL, c->dw.d, bias ? c->dbias.d : NULL,
                c->dy.d, c->x.d, halo, c->w.d, bias, c->start);
}

static double conv_loss(void *context) {
  conv_case *c = context;
  conv_ref(c);
  return inner(c->y.d, c->dy.d, c->y.rows * c->y.cols);
}

static void conv_gradient(int64_t K, int64_t T, int32_t first, uint64_t mean) {
  conv_case c = conv_open((sk_conv_dims){.b = 2, .T = T, .K = K, .width = {4, 2, 3}}, true, true);
  conv_documents(&c, first, mean);
  zero_ref(&c.dw);
  zero_ref(&c.dbias);
  conv_ref_grad(&c);
  char *op = sk_strf("conv K %d T %d", (int)K, (int)T);
  check_all(conv_loss, &c, (mat *const[]){&c.x, &c.halo, &c.w, &c.bias},
            (const mat *const[]){&c.dx, &c.dhalo, &c.dw, &c.dbias},
            (const char *const[]){"x", "halo", "w", "bias"}, 4, op);
  sk_free(op);
  conv_close(&c);
}

static void test_conv(sk_conv_dims d, bool halo, bool bias, int32_t first, uint64_t mean) {
  conv_case c = conv_open(d, halo, bias);
  conv_documents(&c, first, mean);
  char *name = sk_strf("conv K %d b %d T %d cd %d, first document from %d, then %d%s%s", (int)d.K,
                       (int)d.b, (int)d.T, (int)c.x.cols, (int)first, (int)mean,
                       halo ? ", halo" : "", bias ? ", bias" : "");
  conv_ref(&c);
  conv_ref_grad(&c);
  conv_run(&c);
  close_to_ref(&c.y, "%s: y", name);
  close_to_ref(&c.dx, "%s: dx", name);
  close_to_ref(&c.dw, "%s: dw", name);
  if (halo && d.K > 1) close_to_ref(&c.dhalo, "%s: dhalo", name);
  if (bias) close_to_ref(&c.dbias, "%s: dbias", name);
  tap_ok(intact(&c.x) && intact(&c.halo) && intact(&c.w) && intact(&c.bias) && intact(&c.dy),
         "%s: inputs are left alone", name);
  sk_free(name);
  conv_close(&c);
}

// Every number of taps with pieces longer and shorter than the taps; documents that begin before
// the halo, inside it and at the piece's first token.
static void test_convs(void) {
  const int32_t first[] = {-9, -2, 0};
  for (int64_t K = 1; K <= 5; K++) {
    for (int i = 0; i < 4; i++) {
      bool halo = i % 2, shorter = i / 2;
      sk_conv_dims d = {.b = 2, .T = shorter ? (K + 1) / 2 : 41, .K = K, .width = {37, 70, 11}};
      test_conv(d, halo, (K + i / 2) % 2, first[(K + i) % 3], shorter ? 3 : 6);
    }
  }
  test_conv((sk_conv_dims){.b = 1, .T = 150, .K = 4, .width = {130, 16, 16}}, false, true, 0, 0);
  test_conv((sk_conv_dims){.b = 3, .T = 30, .K = 4, .width = {1, 1, 1}}, true, true, -9, 1);
}

// One call for all tokens is what `c` wants; two calls give it: the halo of the second is the end
// of the first, and its gradient belongs to the first.
static void conv_in_two(conv_case *c, int64_t cut) {
  int64_t before = c->d.K - 1, cd = c->x.cols, rest = c->d.T - cut;
  conv_case r = conv_open(c->d, true, true); // its start, halo and dhalo serve the second call
  for (int64_t i = 0; i < before * cd; i++)
    put(&r.halo, i / cd, i % cd, (double)c->x.f[(cut - before + i / cd) * c->d.ldx + i % cd]);
  for (int64_t t = 0; t < rest; t++) r.start[t] = c->start[cut + t] - (int32_t)cut;
  g_op->from_host(g_stream, r.start_dev, r.start, (size_t)rest * sizeof *r.start);
  sk_conv_dims left = c->d, right = c->d;
  left.T = cut, right.T = rest;
  float *x = c->x.f + cut * c->d.ldx, *dx = c->dx.f + cut * c->d.ldx, *y = c->y.f + cut * c->d.ldy;
  g_op->conv(g_stream, &left, c->y.f, c->x.f, c->halo.f, c->w.f, c->bias.f, c->start_dev);
  g_op->conv(g_stream, &right, y, x, r.halo.f, c->w.f, c->bias.f, r.start_dev);
  g_op->conv_grad(g_stream, &right, dx, r.dhalo.f, c->dw.f, c->dbias.f, c->dy.f + cut * c->d.ldy, x,
                  r.halo.f, c->w.f, c->bias.f, r.start_dev);
  g_op->conv_grad(g_stream, &left, c->dx.f, c->dhalo.f, c->dw.f, c->dbias.f, c->dy.f, c->x.f,
                  c->halo.f, c->w.f, c->bias.f, c->start_dev);
  g_op->sync(g_stream);
  for (int64_t i = 0; i < before * cd; i++)
    c->dx.f[(cut - before + i / cd) * c->d.ldx + i % cd] += r.dhalo.f[i];
  conv_close(&r);
}

static void test_conv_cut(int64_t cut, uint64_t mean) {
  sk_conv_dims d = {.b = 1, .T = 23, .K = 4, .width = {20, 7, 9}};
  conv_case c = conv_open(d, true, true);
  conv_documents(&c, -2, mean);
  conv_ref(&c);
  conv_ref_grad(&c);
  conv_in_two(&c, cut);
  const mat *const out[] = {&c.y, &c.dx, &c.dhalo, &c.dw, &c.dbias};
  const char *const name[] = {"y", "dx", "dhalo", "dw", "dbias"};
  for (int i = 0; i < 5; i++)
    close_to_ref(out[i], "conv cut at %d of 23, other documents %d: %s", (int)cut, (int)mean,
                 name[i]);
  conv_close(&c);
}

// ---- step sizes ----

typedef struct dt_case {
  int64_t n, nh;
  double mult, lo, hi;
  mat r, bias, ddt, dt, dr, dbias;
} dt_case;

static dt_case dt_open(int64_t n, int64_t nh, double mult, double lo, double hi) {
  dt_case c = {.n = n, .nh = nh, .mult = mult, .lo = lo, .hi = hi};
  c.r = input(n, nh, nh + 6), c.dr = output(n, nh, nh + 6);
  c.bias = input(1, nh, nh), c.dbias = input(1, nh, nh); // dbias: added to
  c.ddt = input(n, nh, nh), c.dt = output(n, nh, nh);
  return c;
}

static void dt_close(dt_case *c) {
  DROP(&c->r, &c->bias, &c->ddt, &c->dt, &c->dr, &c->dbias);
}

static void dt_run(dt_case *c) {
  g_op->dt(g_stream, c->dt.f, c->r.f, c->r.ld, c->mult, c->bias.f, c->lo, c->hi, c->n, c->nh);
  g_op->dt_grad(g_stream, c->dr.f, c->dbias.f, c->ddt.f, c->r.f, c->r.ld, c->mult, c->bias.f, c->lo,
                c->hi, c->n, c->nh);
  g_op->sync(g_stream);
}

static double dt_loss(void *context) {
  dt_case *c = context;
  ref_dt(c->dt.d, c->r.d, c->mult, c->bias.d, c->lo, c->hi, c->n, c->nh);
  return inner(c->dt.d, c->ddt.d, c->n * c->nh);
}

static void dt_ref_grad(dt_case *c) {
  ref_dt_grad(c->dr.d, c->dbias.d, c->ddt.d, c->r.d, c->mult, c->bias.d, c->lo, c->hi, c->n, c->nh);
}

// Few elements lie near the limits, so the difference quotient meets no kink.
static void dt_gradient(dt_case *c, const char *name) {
  mat kept = c->dbias;
  c->dbias = output(1, c->nh, c->nh);
  dt_ref_grad(c);
  check_all(dt_loss, c, (mat *const[]){&c->r, &c->bias}, (const mat *const[]){&c->dr, &c->dbias},
            (const char *const[]){"r", "bias"}, 2, name);
  drop(&c->dbias);
  c->dbias = kept;
}

// r around `centre`.
static void test_dt(int64_t n, int64_t nh, double centre, double lo, double hi) {
  dt_case c = dt_open(n, nh, 0.7, lo, hi);
  for (int64_t i = 0; i < n * nh; i++) put(&c.r, i / nh, i % nh, centre + 2 * c.r.d[i]);
  char *name = sk_strf("dt [%d, %d], r around %g, %g to %g", (int)n, (int)nh, centre, lo, hi);
  dt_gradient(&c, name);
  dt_loss(&c);
  dt_ref_grad(&c);
  dt_run(&c);
  close_to_ref(&c.dt, "%s", name);
  close_to_ref(&c.dr, "%s: dr", name);
  close_to_ref(&c.dbias, "%s: dbias", name);
  tap_ok(intact(&c.r) && intact(&c.bias) && intact(&c.ddt), "%s: inputs are left alone", name);
  sk_free(name);
  dt_close(&c);
}

// Each element by itself to LIMIT, but for what fp32 has no normal numbers for.
static bool each_close(const mat *m) {
  for (int64_t i = 0; i < m->rows; i++) {
    for (int64_t j = 0; j < m->cols; j++) {
      double want = m->d[i * m->cols + j], off = fabs((double)m->f[i * m->ld + j] - want);
      if (!(off <= LIMIT * fabs(want) + (double)FLT_MIN)) {
        tap_diag("element %d: got %.9g, want %.9g", (int)(i * m->cols + j),
                 (double)m->f[i * m->ld + j], want);
        return false;
      }
    }
  }
  return true;
}

static void test_dt_far(double lo, double hi) {
  const double r[] = {-1e30, -1e4, -200, -104, -89, -87, -40, -17, -5, -1,  -1e-6, 0,
                      1e-6,  1,    5,    17,   19,  21,  40,  88,  90, 1e4, 1e30};
  enum { COUNT = sizeof r / sizeof *r };
  dt_case c = dt_open(COUNT, 1, 1, lo, hi);
  put(&c.bias, 0, 0, 0);
  for (int i = 0; i < COUNT; i++) {
    put(&c.r, i, 0, r[i]);
    put(&c.ddt, i, 0, 1);
  }
  dt_loss(&c);
  dt_ref_grad(&c);
  dt_run(&c);
  tap_ok(each_close(&c.dt), "dt from -1e30 to 1e30, %g to %g: every element", lo, hi);
  tap_ok(each_close(&c.dr), "dt_grad from -1e30 to 1e30, %g to %g: every element", lo, hi);
  dt_close(&c);
}

static void test_dts(void) {
  test_dt(1, 1, 0, 0, INFINITY);
  test_dt(77, 13, 0, 0, INFINITY);
  test_dt(50, 24, -16, 0, INFINITY); // e^r is what matters
  test_dt(50, 24, 28, 0, INFINITY);  // on both sides of 20 after the multiplier
  test_dt(60, 9, 0, 0.3, 1.1);
  test_dt(60, 9, 0, 0.6, INFINITY);
  test_dt(60, 9, 0, 0, 0.8);
  test_dt_far(0, INFINITY);
  test_dt_far(1e-3, 30);
}

// ---- gate ----

typedef struct gate_case {
  sk_gate_dims d;
  mat y, z, w, dout, o, rstd, dy, dz, dw;
} gate_case;

static gate_case gate_open(sk_gate_dims d) {
  d.ldz = d.ds + 11;
  gate_case c = {.d = d};
  c.y = input(d.n, d.ds, d.ds), c.dy = output(d.n, d.ds, d.ds);
  c.z = input(d.n, d.ds, d.ldz), c.dz = output(d.n, d.ds, d.ldz);
  c.dout = input(d.n, d.ds, d.ds), c.o = output(d.n, d.ds, d.ds);
  c.w = input(1, d.ds, d.ds), c.dw = input(1, d.ds, d.ds); // dw: added to
  c.rstd = output(d.n, d.G, d.G);
  return c;
}

static void gate_close(gate_case *c) {
  DROP(&c->y, &c->z, &c->w, &c->dout, &c->o, &c->rstd, &c->dy, &c->dz, &c->dw);
}

// Without the norm there are no w and no rstd.
static void gate_run(gate_case *c) {
  bool norm = c->d.norm;
  float *w = norm ? c->w.f : NULL, *dw = norm ? c->dw.f : NULL, *rstd = norm ? c->rstd.f : NULL;
  g_op->gate(g_stream, &c->d, c->o.f, rstd, c->y.f, c->z.f, w);
  g_op->gate_grad(g_stream, &c->d, c->dy.f, c->dz.f, dw, c->dout.f, c->y.f, c->z.f, w, rstd);
  g_op->sync(g_stream);
}

static double gate_loss(void *context) {
  gate_case *c = context;
  ref_gate(&c->d, c->o.d, c->rstd.d, c->y.d, c->z.d, c->w.d);
  return inner(c->o.d, c->dout.d, c->d.n * c->d.ds);
}

static void gate_ref_grad(gate_case *c) {
  ref_gate_grad(&c->d, c->dy.d, c->dz.d, c->dw.d, c->dout.d, c->y.d, c->z.d, c->w.d);
}

static char *gate_name(const sk_gate_dims *d) {
  return sk_strf("gate [%d, %d] %s, G %d, zmult %g, eps %g", (int)d->n, (int)d->ds,
                 !d->norm    ? "without norm"
                 : d->before ? "norm first"
                             : "norm last",
                 (int)d->G, d->zmult, d->eps);
}

static void gate_gradient(sk_gate_dims d) {
  gate_case c = gate_open(d);
  zero_ref(&c.dw);
  gate_ref_grad(&c);
  char *name = gate_name(&d);
  check_all(gate_loss, &c, (mat *const[]){&c.y, &c.z, &c.w},
            (const mat *const[]){&c.dy, &c.dz, &c.dw}, (const char *const[]){"y", "z", "w"},
            d.norm ? 3 : 2, name);
  sk_free(name);
  gate_close(&c);
}

// The first row is 0 (its norm is that of eps alone) where eps is large enough for its gradient not
// to hide the others'. z is `far` times as large as y.
static void test_gate(sk_gate_dims d, double far) {
  gate_case c = gate_open(d);
  for (int64_t j = 0; d.eps > 0.1 && j < d.ds; j++) put(&c.y, 0, j, 0);
  for (int64_t i = 0; i < d.n * d.ds; i++) put(&c.z, i / d.ds, i % d.ds, far * c.z.d[i]);
  char *name = gate_name(&d);
  gate_loss(&c);
  gate_ref_grad(&c);
  gate_run(&c);
  close_to_ref(&c.o, "%s: o", name);
  close_to_ref(&c.dy, "%s: dy", name);
  close_to_ref(&c.dz, "%s: dz", name);
  if (d.norm) {
    close_to_ref(&c.rstd, "%s: rstd", name);
    close_to_ref(&c.dw, "%s: dw", name);
  }
  tap_ok(intact(&c.y) && intact(&c.z) && intact(&c.w) && intact(&c.dout),
         "%s: inputs are left alone", name);
  sk_free(name);
  gate_close(&c);
}

// One of two ranks that share the channels of every group: its columns of m.
static void take_half(mat *half, const mat *m, int64_t G, int rank) {
  int64_t cols = m->cols / G, mine = half->cols / G;
  for (int64_t i = 0; i < half->rows * half->cols; i++) {
    int64_t row = i / half->cols, g = i % half->cols / mine, j = i % mine;
    put(half, row, i % half->cols, (double)m->f[row * m->ld + g * cols + rank * mine + j]);
  }
}

static void give_half(mat *m, const mat *half, int64_t G, int rank) {
  int64_t cols = m->cols / G, mine = half->cols / G;
  for (int64_t i = 0; i < half->rows * half->cols; i++) {
    int64_t row = i / half->cols, g = i % half->cols / mine, j = i % mine;
    m->f[row * m->ld + g * cols + rank * mine + j] = half->f[row * half->ld + i % half->cols];
  }
}

// As two ranks do: statistics of each one's channels, their sum, then the op on each one's
// channels.
static void gate_in_halves(gate_case *c) {
  int64_t G = c->d.G, n = c->d.n;
  sk_gate_dims d = c->d;
  d.ds /= 2, d.width = c->d.ds / G;
  gate_case half[2] = {gate_open(d), gate_open(d)};
  mat ss[2] = {output(n, G, G), output(n, G, G)}, dots[2] = {output(n, G, G), output(n, G, G)};
  for (int r = 0; r < 2; r++) {
    gate_case *h = &half[r];
    mat *const to[] = {&h->y, &h->z, &h->w, &h->dout, &h->dw};
    const mat *const from[] = {&c->y, &c->z, &c->w, &c->dout, &c->dw};
    for (int i = 0; i < 5; i++) take_half(to[i], from[i], G, r);
    g_op->gate_stats(g_stream, &h->d, ss[r].f, h->y.f, h->z.f);
    g_op->gate_grad_stats(g_stream, &h->d, dots[r].f, h->dout.f, h->y.f, h->z.f, h->w.f);
  }
  g_op->add_f32(g_stream, ss[0].f, ss[0].f, ss[1].f, n * G);
  g_op->add_f32(g_stream, dots[0].f, dots[0].f, dots[1].f, n * G);
  for (int r = 0; r < 2; r++) {
    gate_case *h = &half[r];
    h->d.whole = ss[0].f;
    g_op->gate(g_stream, &h->d, h->o.f, h->rstd.f, h->y.f, h->z.f, h->w.f);
    h->d.whole = dots[0].f;
    g_op->gate_grad(g_stream, &h->d, h->dy.f, h->dz.f, h->dw.f, h->dout.f, h->y.f, h->z.f, h->w.f,
                    h->rstd.f);
    g_op->sync(g_stream);
    mat *const to[] = {&c->o, &c->dy, &c->dz, &c->dw};
    const mat *const from[] = {&h->o, &h->dy, &h->dz, &h->dw};
    for (int i = 0; i < 4; i++) give_half(to[i], from[i], G, r);
  }
  for (int r = 0; r < 2; r++) {
    gate_close(&half[r]);
    DROP(&ss[r], &dots[r]);
  }
}

static void test_gate_shared(int64_t G, bool before) {
  gate_case c = gate_open((sk_gate_dims){
      .n = 21, .ds = 12 * G, .G = G, .zmult = 0.7, .eps = 0.1, .norm = true, .before = before});
  gate_loss(&c);
  gate_ref_grad(&c);
  gate_in_halves(&c);
  char *name = gate_name(&c.d);
  close_to_ref(&c.o, "%s, groups shared by two: o", name);
  close_to_ref(&c.dy, "%s, groups shared by two: dy", name);
  close_to_ref(&c.dz, "%s, groups shared by two: dz", name);
  close_to_ref(&c.dw, "%s, groups shared by two: dw", name);
  sk_free(name);
  gate_close(&c);
}

static void test_gates(void) {
  gate_gradient((sk_gate_dims){.n = 4, .ds = 6, .G = 1, .zmult = 0.35});
  for (int before = 0; before < 2; before++) {
    sk_gate_dims d = {.norm = true, .before = before};
    for (d.G = 1; d.G <= 3; d.G++) {
      d.n = 4, d.ds = 12, d.zmult = 0.7, d.eps = 0.1;
      gate_gradient(d);
      d.n = 47, d.ds = 66, d.zmult = before ? 1.2 : 0.35, d.eps = 0.3;
      test_gate(d, 1);
      test_gate_shared(d.G, before);
    }
    d.n = 1, d.ds = 18, d.G = 2, d.eps = 1e-5;
    test_gate(d, 1);
    d.n = 33, d.ds = 40, d.zmult = 1, d.eps = 0.3;
    test_gate(d, 200); // silu's exp overflows
  }
  test_gate((sk_gate_dims){.n = 33, .ds = 40, .G = 1, .zmult = 0.35}, 1);
  test_gate((sk_gate_dims){.n = 33, .ds = 40, .G = 2, .zmult = 1}, 200);
}

// ---- threads ----

// One hash of all outputs' bits of all ops; b sequences of 300 tokens.
static uint64_t bits_with(int threads, int64_t b, uint64_t draw) {
  omp_set_num_threads(threads);
  g_count = draw; // the same inputs every time
  sk_conv_dims d = {.b = b, .T = 300, .K = 4, .width = {100, 20, 20}};
  conv_case c = conv_open(d, true, true);
  conv_documents(&c, -9, 50);
  conv_run(&c);
  uint64_t hash = hash_bits(0, (const mat *const[]){&c.y, &c.dx, &c.dhalo, &c.dw, &c.dbias}, 5);
  conv_close(&c);
  dt_case t = dt_open(b * 300, 7, 0.7, 0.3, 1.1);
  dt_run(&t);
  hash = hash_bits(hash, (const mat *const[]){&t.dt, &t.dr, &t.dbias}, 3);
  dt_close(&t);
  for (int before = 0; before < 2; before++) {
    gate_case g = gate_open((sk_gate_dims){.n = b * 300,
                                           .ds = 60,
                                           .G = 2,
                                           .zmult = 0.35,
                                           .eps = 1e-5,
                                           .norm = true,
                                           .before = before});
    gate_run(&g);
    hash = hash_bits(hash, (const mat *const[]){&g.o, &g.rstd, &g.dy, &g.dz, &g.dw}, 5);
    gate_close(&g);
  }
  return hash;
}

static void test_threads(void) {
  int before = omp_get_max_threads();
  for (int64_t b = 1; b <= 3; b += 2) {
    uint64_t one = bits_with(1, b, 1000);
    tap_ok(one == bits_with(2, b, 1000) && one == bits_with(3, b, 1000) &&
               one == bits_with(7, b, 1000),
           "the same bits with 1, 2, 3 and 7 threads, b %d", (int)b);
  }
  tap_ok(bits_with(2, 1, 1000) != bits_with(2, 1, 1001), "other inputs give other bits");
  omp_set_num_threads(before);
}

int main(int argc, char **argv) {
  ops_start(&argc, &argv);
  conv_gradient(4, 9, -9, 4);
  conv_gradient(5, 3, -2, 0);
  test_convs();
  test_conv_cut(3, 0);
  test_conv_cut(12, 4);
  test_dts();
  test_gates();
  test_threads();
  return ops_stop();
}
