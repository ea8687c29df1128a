/* ssd.c: ssd, ssd_grad and their parts of a device, which work in chunks, against the recurrence
 * token by token of ref_mamba.c, and that against finite differences of itself. Every case goes
 * through g_op. */
#include <omp.h>
#include "tests/ops_check.h"
#include "tests/ref_mamba.h"

// ---- one case: inputs, outputs, the call and its reference ----

enum { S0_GIVEN = 1, SF_WANTED = 2, DSF_GIVEN = 4, DS0_WANTED = 8, ALL = 15, OPTIONS = 16 };

// Where documents begin.
enum { BEFORE, FIRST, BORDERS, INSIDE, SHORT, RANDOM, LAYOUTS };
static const char *const layout_name[LAYOUTS] = {"before the piece", "at its first token",
                                                 "on chunk borders", "inside chunks",
                                                 "every few tokens", "anywhere"};

typedef struct ssd_case {
  sk_ssd_dims d;
  int layout, options;
  int32_t *start, *start_dev; // on the host and on the device
  mat xbc, dt, A_log, D, S0, dy, dSf;
  mat y, Sf, dxbc, ddt, dA_log, dD, dS0;
  bool inside; // nothing was written beyond the scratch
} ssd_case;

// Where none begins at token 0 the first one began before the piece.
static bool begins(int layout, int64_t seq, int64_t t, int64_t Q) {
  const bool at[LAYOUTS] = {[BEFORE] = false,
                            [FIRST] = t == 0,
                            [BORDERS] = t > 0 && t % Q == 0,
                            [INSIDE] = t % Q == Q / 2,
                            [SHORT] = 1 << t % 7 & 0x17, // 1, 1, 2, 3, 1, 1, ... tokens
                            [RANDOM] = sk_rand(17, (uint64_t)(seq * 1000 + t)) % 9 == 0};
  return at[layout];
}

// Sequences differ: each has the next layout.
static void lay_out(ssd_case *c) {
  for (int64_t seq = 0; seq < c->d.b; seq++) {
    int32_t first = -5;
    for (int64_t t = 0; t < c->d.T; t++) {
      if (begins((int)((c->layout + seq) % LAYOUTS), seq, t, c->d.Q)) first = (int32_t)t;
      c->start[seq * c->d.T + t] = first;
    }
  }
}

static void send_start(ssd_case *c) {
  size_t bytes = (size_t)(c->d.b * c->d.T) * sizeof *c->start;
  g_op->from_host(g_stream, c->start_dev, c->start, bytes);
}

// Replaces element i of a matrix without padding.
static void put(mat *m, int64_t i, double value) {
  m->f[i] = (float)value;
  m->d[i] = (double)m->f[i];
}

// dt from 0.01 to 1 and A from 0.02 to 2 or so: some heads forget within a chunk, some do not.
static ssd_case ssd_open(sk_ssd_dims d, int layout, int options) {
  int64_t n = d.b * d.T, ds = d.nh * d.P, row = ds + 2 * d.G * d.N, heads = d.b * d.nh;
  d.ld = row + 3, d.ldy = ds + 2;
  ssd_case c = {.d = d, .layout = layout, .options = options, .inside = true};
  c.start = sk_malloc((size_t)n * sizeof *c.start);
  c.start_dev = g_op->alloc(g_dev, (size_t)n * sizeof *c.start);
  c.xbc = input(n, row, d.ld), c.dxbc = output(n, row, d.ld);
  c.dy = input(n, ds, d.ldy), c.y = output(n, ds, d.ldy);
  c.dt = input(n, d.nh, d.nh), c.ddt = output(n, d.nh, d.nh);
  c.A_log = input(1, d.nh, d.nh), c.D = input(1, d.nh, d.nh);
  c.dA_log = input(1, d.nh, d.nh), c.dD = input(1, d.nh, d.nh); // added to
  c.S0 = input(heads, d.P * d.N, d.P * d.N), c.Sf = output(heads, d.P * d.N, d.P * d.N);
  c.dSf = input(heads, d.P * d.N, d.P * d.N), c.dS0 = output(heads, d.P * d.N, d.P * d.N);
  for (int64_t i = 0; i < n * d.nh; i++) put(&c.dt, i, 0.1 * exp(0.8 * c.dt.d[i]));
  for (int64_t h = 0; h < d.nh; h++) put(&c.A_log, h, 1.2 * c.A_log.d[h] - 1.5);
  lay_out(&c);
  send_start(&c);
  return c;
}

static void ssd_close(ssd_case *c) {
  DROP(&c->xbc, &c->dt, &c->A_log, &c->D, &c->S0, &c->dy, &c->dSf);
  DROP(&c->y, &c->Sf, &c->dxbc, &c->ddt, &c->dA_log, &c->dD, &c->dS0);
  g_op->free(g_dev, c->start_dev);
  sk_free(c->start);
}

// Scratch is poisoned, and so is what follows it.
static mat scratch(size_t bytes) {
  int64_t words = (int64_t)((bytes + 3) / 4);
  return output(1, words, words + 64);
}

static void scratch_done(ssd_case *c, mat *ws) {
  for (int64_t i = ws->cols; i < ws->ld; i++) c->inside = c->inside && is_poison(ws->f[i]);
  drop(ws);
}

static void forward(ssd_case *c) {
  const sk_ssd_dims *d = &c->d;
  mat ws = scratch(g_op->ssd_ws(g_dev, g_op->act(g_dev), d));
  float *x = c->xbc.f, *B = x + d->nh * d->P, *C = B + d->G * d->N;
  g_op->ssd(g_stream, d, c->y.f, c->options & SF_WANTED ? c->Sf.f : NULL, x, B, C, c->dt.f,
            c->A_log.f, c->D.f, c->start_dev, c->options & S0_GIVEN ? c->S0.f : NULL, ws.f);
  g_op->sync(g_stream);
  scratch_done(c, &ws);
}

static void backward(ssd_case *c) {
  const sk_ssd_dims *d = &c->d;
  mat ws = scratch(g_op->ssd_grad_ws(g_dev, g_op->act(g_dev), d));
  int64_t B = d->nh * d->P, C = B + d->G * d->N;
  float *in = c->xbc.f, *out = c->dxbc.f;
  g_op->ssd_grad(g_stream, d, out, out + B, out + C, c->ddt.f, c->dA_log.f, c->dD.f,
                 c->options & DS0_WANTED ? c->dS0.f : NULL, c->dy.f, in, in + B, in + C, c->dt.f,
                 c->A_log.f, c->D.f, c->start_dev, c->options & S0_GIVEN ? c->S0.f : NULL,
                 c->options & DSF_GIVEN ? c->dSf.f : NULL, ws.f);
  g_op->sync(g_stream);
  scratch_done(c, &ws);
}

static void ref_forward(ssd_case *c) {
  ref_ssd(&c->d, c->y.d, c->Sf.d, c->xbc.d, c->dt.d, c->A_log.d, c->D.d, c->start,
          c->options & S0_GIVEN ? c->S0.d : NULL);
}

static void ref_backward(ssd_case *c) {
  ref_ssd_grad(&c->d, c->dxbc.d, c->ddt.d, c->dA_log.d, c->dD.d, c->dS0.d, c->dy.d, c->xbc.d,
               c->dt.d, c->A_log.d, c->D.d, c->start, c->options & S0_GIVEN ? c->S0.d : NULL,
               c->options & DSF_GIVEN ? c->dSf.d : NULL);
}

// ---- the worst figure of many cases ----

enum { Y, SF, DX, DB, DC, DDT, DA_LOG, DD, DS0, SF_PARTS, DS0_PARTS, QUANTITIES };
static const char *const quantity[QUANTITIES] = {
    "y", "Sf", "dx", "dB", "dC", "ddt", "dA_log", "dD", "dS0", "Sf by parts", "dS0 by parts"};

typedef struct worst {
  double err[QUANTITIES];
  int cases[QUANTITIES], unclean; // unclean: inputs changed or scratch overrun
  char where[QUANTITIES][200];
} worst;

// Columns c0 .. c1-1: max|got - want| / max|want|, or / 1 where all are smaller: inputs and the
// terms of sums are of size 1, and a result near 0 keeps the rounding of its terms. Those are some
// hundred roundings of 6e-8 each, which LIMIT leaves room for. Infinity when the padding was
// overwritten or something is not a number.
static double error(const mat *m, int64_t c0, int64_t c1) {
  double err = 0, max = 1;
  for (int64_t i = 0; i < m->rows; i++) {
    for (int64_t j = m->cols; j < m->ld; j++)
      if (!is_poison(m->f[i * m->ld + j])) return INFINITY;
    for (int64_t j = c0; j < c1; j++) {
      double want = m->d[i * m->cols + j], off = fabs((double)m->f[i * m->ld + j] - want);
      if (isnan(off)) return INFINITY;
      err = fmax(err, off);
      max = fmax(max, fabs(want));
    }
  }
  return err / max;
}

static void record(worst *w, int q, double err, const ssd_case *c) {
  const sk_ssd_dims *d = &c->d;
  int o = c->options;
  if (w->cases[q]++ && err <= w->err[q]) return;
  w->err[q] = err;
  snprintf(w->where[q], sizeof w->where[q],
           "Q %d, b %d T %d nh %d P %d G %d N %d, documents begin %s, with%s%s%s%s%s", (int)d->Q,
           (int)d->b, (int)d->T, (int)d->nh, (int)d->P, (int)d->G, (int)d->N,
           layout_name[c->layout], o ? "" : " no states", o & S0_GIVEN ? " S0" : "",
           o & SF_WANTED ? " Sf" : "", o & DSF_GIVEN ? " dSf" : "", o & DS0_WANTED ? " dS0" : "");
}

static void compare(worst *w, const ssd_case *c) {
  int64_t B = c->d.nh * c->d.P, C = B + c->d.G * c->d.N;
  record(w, Y, error(&c->y, 0, B), c);
  record(w, DX, error(&c->dxbc, 0, B), c);
  record(w, DB, error(&c->dxbc, B, C), c);
  record(w, DC, error(&c->dxbc, C, c->dxbc.cols), c);
  record(w, DDT, error(&c->ddt, 0, c->ddt.cols), c);
  record(w, DA_LOG, error(&c->dA_log, 0, c->dA_log.cols), c);
  record(w, DD, error(&c->dD, 0, c->dD.cols), c);
  if (c->options & SF_WANTED) record(w, SF, error(&c->Sf, 0, c->Sf.cols), c);
  if (c->options & DS0_WANTED) record(w, DS0, error(&c->dS0, 0, c->dS0.cols), c);
  const mat *in[] = {&c->xbc, &c->dt, &c->A_log, &c->D, &c->S0, &c->dy, &c->dSf};
  bool clean = c->inside;
  for (size_t i = 0; i < sizeof in / sizeof *in; i++)
    clean = clean && error(in[i], 0, in[i]->cols) == 0;
  if (!clean) w->unclean++;
}

static void report(const worst *w, const char *what) {
  for (int q = 0; q < QUANTITIES; q++) {
    if (q >= SF_PARTS && w->cases[q] == 0) continue; // only where there is a reference
    tap_ok(w->cases[q] > 0 && w->err[q] <= LIMIT,
           "%s: %s, worst of %d: error %.2g, limit %.0e%s (%s)", what, quantity[q], w->cases[q],
           w->err[q], LIMIT, isinf(w->err[q]) ? ", not a number or padding overwritten" : "",
           w->where[q]);
  }
  tap_ok(w->unclean == 0, "%s: inputs and the memory after the scratch are left alone", what);
}

// A state or its gradient as ranks that share a sequence find it (section 4): what comes in (NULL:
// zero) fades and the piece's own part is added. m->f gets it, m->d says what is wanted.
static void join_parts(mat *m, const mat *in, const mat *keep, const mat *own) {
  for (int64_t i = 0; i < m->rows * m->cols; i++) m->f[i] = in ? in->f[i] : 0;
  g_op->fade_add(g_stream, m->f, keep->f, own->f, m->rows, m->cols);
  g_op->sync(g_stream);
}

typedef struct ssd_parts {
  mat F, dF, keep; // ssd_state's Sf and keep, ssd_state_grad's dS0
} ssd_parts;

static ssd_parts parts_open(ssd_case *c) {
  const sk_ssd_dims *d = &c->d;
  int64_t B = d->nh * d->P, C = B + d->G * d->N, heads = c->S0.rows, PN = c->S0.cols;
  mat ws = scratch(g_op->ssd_ws(g_dev, g_op->act(g_dev), d)),
      dws = scratch(g_op->ssd_grad_ws(g_dev, g_op->act(g_dev), d));
  ssd_parts p = {output(heads, PN, PN), output(heads, PN, PN), output(1, heads, heads)};
  g_op->ssd_state(g_stream, d, p.F.f, p.keep.f, c->xbc.f, c->xbc.f + B, c->dt.f, c->A_log.f,
                  c->start_dev, ws.f);
  g_op->ssd_state_grad(g_stream, d, p.dF.f, c->dy.f, c->xbc.f + C, c->dt.f, c->A_log.f,
                       c->start_dev, dws.f);
  g_op->sync(g_stream);
  scratch_done(c, &ws);
  scratch_done(c, &dws);
  return p;
}

static void parts_close(ssd_parts *p) {
  DROP(&p->F, &p->dF, &p->keep);
}

// Needs the references of Sf and dS0 in the case.
static void compare_parts(worst *w, ssd_case *c) {
  ssd_parts p = parts_open(c);
  int64_t heads = c->S0.rows, PN = c->S0.cols;
  mat got = output(heads, PN, PN);
  memcpy(got.d, c->Sf.d, (size_t)(heads * PN) * sizeof *got.d);
  join_parts(&got, c->options & S0_GIVEN ? &c->S0 : NULL, &p.keep, &p.F);
  record(w, SF_PARTS, error(&got, 0, PN), c);
  memcpy(got.d, c->dS0.d, (size_t)(heads * PN) * sizeof *got.d);
  join_parts(&got, c->options & DSF_GIVEN ? &c->dSf : NULL, &p.keep, &p.dF);
  record(w, DS0_PARTS, error(&got, 0, PN), c);
  parts_close(&p);
  drop(&got);
}

static void compare_with_ref(worst *w, ssd_case *c) {
  forward(c);
  backward(c);
  ref_forward(c);
  ref_backward(c);
  compare_parts(w, c);
  compare(w, c);
}

// ---- the reference ----

static double ssd_loss(void *context) {
  ssd_case *c = context;
  ref_forward(c);
  return inner(c->y.d, c->dy.d, c->y.rows * c->y.cols) +
         inner(c->Sf.d, c->dSf.d, c->Sf.rows * c->Sf.cols);
}

static void test_reference(int layout) {
  ssd_case c =
      ssd_open((sk_ssd_dims){.b = 2, .T = 9, .nh = 4, .P = 3, .G = 2, .N = 5, .Q = 4}, layout, ALL);
  memset(c.dA_log.d, 0, (size_t)c.d.nh * sizeof(double));
  memset(c.dD.d, 0, (size_t)c.d.nh * sizeof(double));
  ref_backward(&c);
  mat *const x[] = {&c.xbc, &c.dt, &c.A_log, &c.D, &c.S0};
  const mat *const dx[] = {&c.dxbc, &c.ddt, &c.dA_log, &c.dD, &c.dS0};
  const char *const name[] = {"x, B, C", "dt", "A_log", "D", "S0"};
  for (int i = 0; i < 5; i++) {
    char what[80];
    snprintf(what, sizeof what, "ssd, %s, documents begin %s", name[i], layout_name[layout]);
    check_gradient(ssd_loss, &c, x[i]->d, dx[i]->d, x[i]->rows * x[i]->cols, what);
  }
  ssd_close(&c);
}

// ---- every chunk length ----

// A length that leaves a short last chunk, none, or no whole chunk.
static int64_t length(int64_t i, int64_t Q) {
  const int64_t T[] = {2 * Q + 1, 1, Q, Q > 1 ? Q - 1 : 3, (3 * Q / 2) | 1, 65, 2 * Q, Q + 2};
  return T[i % 8];
}

// Per chunk length: every shape with every layout, with some options and with all others. 7 and 16
// have no common divisor, so 30 times 7 i mod 16 gives every set of options.
static void test_chunk_lengths(void) {
  const sk_ssd_dims shape[] = {{.b = 1, .nh = 1, .P = 1, .G = 1, .N = 1},
                               {.b = 2, .nh = 4, .P = 8, .G = 2, .N = 16},
                               {.b = 1, .nh = 3, .P = 5, .G = 3, .N = 7},
                               {.b = 3, .nh = 6, .P = 3, .G = 2, .N = 5},
                               {.b = 2, .nh = 5, .P = 17, .G = 1, .N = 9}};
  worst w = {0};
  for (int64_t Q = 1; Q <= 64; Q++) {
    for (int i = 0; i < 5 * LAYOUTS * 2; i++) {
      int layout = i / 2 % LAYOUTS, options = (int)(7 * (i / 2) + Q) % OPTIONS;
      sk_ssd_dims d = shape[i / 2 / LAYOUTS];
      d.Q = Q;
      d.T = length(layout + i / 2 / LAYOUTS + Q, Q);
      ssd_case c = ssd_open(d, layout, i % 2 ? ALL - options : options);
      compare_with_ref(&w, &c);
      ssd_close(&c);
    }
  }
  report(&w, "chunks of 1 to 64");
}

// The sizes of released models, and chunks longer than the piece. Several heads, because the sum
// for one head's A_log may be small beside its terms, which are far from 1 here.
static void test_real(sk_ssd_dims d, int layout) {
  ssd_case c = ssd_open(d, layout, ALL);
  worst w = {0};
  compare_with_ref(&w, &c);
  tap_ok(w.unclean == 0,
         "P %d N %d Q %d T %d: inputs and the memory after the scratch are left alone", (int)d.P,
         (int)d.N, (int)d.Q, (int)d.T);
  const mat *const out[] = {&c.y, &c.Sf, &c.dxbc, &c.ddt, &c.dA_log, &c.dD, &c.dS0};
  const char *const name[] = {"y", "Sf", "dx dB dC", "ddt", "dA_log", "dD", "dS0"};
  for (int i = 0; i < 7; i++)
    close_to_ref(out[i], "P %d N %d Q %d T %d, documents begin %s: %s", (int)d.P, (int)d.N,
                 (int)d.Q, (int)d.T, layout_name[layout], name[i]);
  ssd_close(&c);
}

// ---- pieces: calls for parts of the tokens against one call for all ----

// The rows of tokens t0 .. t1-1 of every sequence, of inputs with their values.
static void cut_rows(mat *part, const mat *m, int64_t b, int64_t t0) {
  int64_t T = m->rows / b, len = part->rows / b;
  for (int64_t i = 0; i < part->rows; i++) {
    int64_t from = i / len * T + t0 + i % len;
    memcpy(part->f + i * m->ld, m->f + from * m->ld, (size_t)m->ld * sizeof *m->f);
    memcpy(part->d + i * m->cols, m->d + from * m->cols, (size_t)m->cols * sizeof *m->d);
  }
}

// What a call gave for a part becomes what is wanted of the call for all.
static void want_rows(mat *m, const mat *part, int64_t b, int64_t t0) {
  int64_t T = m->rows / b, len = part->rows / b;
  for (int64_t i = 0; i < part->rows; i++) {
    int64_t to = i / len * T + t0 + i % len;
    for (int64_t j = 0; j < m->cols; j++) m->d[to * m->cols + j] = (double)part->f[i * m->ld + j];
  }
}

static void copy_values(mat *to, const mat *from) {
  memcpy(to->f, from->f, (size_t)(from->rows * from->ld) * sizeof *to->f);
  for (int64_t i = 0; i < from->rows * from->ld; i++) to->d[i] = (double)from->f[i];
}

// Tokens t0 .. t1-1 of a case as a case of its own; sums over tokens start from the whole's.
static ssd_case piece(const ssd_case *whole, int64_t t0, int64_t t1, int options) {
  sk_ssd_dims d = whole->d;
  d.T = t1 - t0;
  ssd_case c = ssd_open(d, whole->layout, options);
  for (int64_t i = 0; i < d.b * d.T; i++)
    c.start[i] = whole->start[i / d.T * whole->d.T + t0 + i % d.T] - (int32_t)t0;
  send_start(&c);
  cut_rows(&c.xbc, &whole->xbc, d.b, t0);
  cut_rows(&c.dt, &whole->dt, d.b, t0);
  cut_rows(&c.dy, &whole->dy, d.b, t0);
  mat *const to[] = {&c.A_log, &c.D, &c.S0, &c.dSf, &c.dA_log, &c.dD};
  const mat *const from[] = {&whole->A_log, &whole->D,      &whole->S0,
                             &whole->dSf,   &whole->dA_log, &whole->dD};
  for (int i = 0; i < 6; i++) copy_values(to[i], from[i]);
  return c;
}

static void want_piece(ssd_case *whole, const ssd_case *c, int64_t t0) {
  want_rows(&whole->y, &c->y, c->d.b, t0);
  want_rows(&whole->dxbc, &c->dxbc, c->d.b, t0);
  want_rows(&whole->ddt, &c->ddt, c->d.b, t0);
}

// The values of `from` are what is wanted of m.
static void want(mat *m, const mat *from) {
  for (int64_t i = 0; i < m->rows * m->cols; i++) m->d[i] = (double)from->f[i];
}

// Cut in two with the state carried over, and its gradient back.
static void cut_in_two(worst *w, int64_t Q, int64_t T, int64_t cut, int layout) {
  sk_ssd_dims d = {.b = 2, .T = T, .nh = 4, .P = 6, .G = 2, .N = 10, .Q = Q};
  ssd_case whole = ssd_open(d, layout, ALL), left = piece(&whole, 0, cut, ALL),
           right = piece(&whole, cut, T, ALL);
  forward(&left);
  copy_values(&right.S0, &left.Sf);
  forward(&right);
  backward(&right);
  copy_values(&left.dSf, &right.dS0);
  copy_values(&left.dA_log, &right.dA_log);
  copy_values(&left.dD, &right.dD);
  backward(&left);
  forward(&whole);
  backward(&whole);
  want_piece(&whole, &left, 0);
  want_piece(&whole, &right, cut);
  want(&whole.Sf, &right.Sf);
  want(&whole.dS0, &left.dS0);
  want(&whole.dA_log, &left.dA_log);
  want(&whole.dD, &left.dD);
  compare(w, &whole);
  ssd_close(&whole);
  ssd_close(&left);
  ssd_close(&right);
}

static void test_cuts(void) {
  enum { T = 67 };
  const int64_t Qs[] = {1, 7, 16, 64}, cuts[] = {1, 16, 35, T - 1};
  worst w = {0};
  for (int i = 0; i < 16; i++)
    for (int layout = 0; layout < LAYOUTS; layout++)
      cut_in_two(&w, Qs[i % 4], T, cuts[i / 4], layout);
  report(&w, "a piece cut in two");
}

// Documents of one call against a call for each. The first one began before the piece.
static void isolated(worst *w, int64_t Q) {
  const int32_t first[] = {0, 8, 9, 29, 30, 31, 44, 67}; // three documents of one token
  sk_ssd_dims d = {.b = 1, .T = 67, .nh = 4, .P = 6, .G = 2, .N = 10, .Q = Q};
  ssd_case whole = ssd_open(d, BEFORE, ALL);
  for (int i = 1; i < 7; i++)
    for (int32_t t = first[i]; t < first[i + 1]; t++) whole.start[t] = first[i];
  send_start(&whole);
  mat dA_log = output(1, d.nh, d.nh), dD = output(1, d.nh, d.nh); // so far
  copy_values(&dA_log, &whole.dA_log);
  copy_values(&dD, &whole.dD);
  for (int i = 0; i < 7; i++) {
    int options = i == 0 ? S0_GIVEN | DS0_WANTED : i == 6 ? SF_WANTED | DSF_GIVEN : 0;
    ssd_case alone = piece(&whole, first[i], first[i + 1], options);
    copy_values(&alone.dA_log, &dA_log);
    copy_values(&alone.dD, &dD);
    forward(&alone);
    backward(&alone);
    copy_values(&dA_log, &alone.dA_log);
    copy_values(&dD, &alone.dD);
    want_piece(&whole, &alone, first[i]);
    if (i == 0) want(&whole.dS0, &alone.dS0);
    if (i == 6) want(&whole.Sf, &alone.Sf);
    ssd_close(&alone);
  }
  forward(&whole);
  backward(&whole);
  want(&whole.dA_log, &dA_log);
  want(&whole.dD, &dD);
  compare(w, &whole);
  DROP(&dA_log, &dD);
  ssd_close(&whole);
}

static void test_isolated(void) {
  worst w = {0};
  for (int64_t Q = 1; Q <= 70; Q += Q < 32 ? 1 : 7) isolated(&w, Q);
  report(&w, "documents of one call alone");
}

// ---- extreme steps ----

// Log decays of every token from about -100 to -1e7; where `mixed`, of every third one, with steps
// of 0 and of about 1e-3 between them, which must not be lost beside the large ones.
static void test_decay(bool mixed) {
  worst w = {0};
  for (int64_t Q = 1; Q <= 64; Q += 9) {
    for (int layout = 0; layout < LAYOUTS; layout++) {
      sk_ssd_dims d = {.b = 2, .T = 65, .nh = 4, .P = 6, .G = 2, .N = 10, .Q = Q};
      ssd_case c = ssd_open(d, layout, ALL);
      for (int64_t i = 0; i < d.b * d.T * d.nh; i++) {
        int64_t t = i / d.nh % d.T;
        bool small = mixed && t % 3 != 1;
        put(&c.dt, i, small ? (t % 3 ? 0 : 0.01 * c.dt.d[i]) : 100 + 1000 * c.dt.d[i]);
      }
      for (int64_t h = 0; h < d.nh; h++) put(&c.A_log, h, 3.0 * (double)h);
      compare_with_ref(&w, &c);
      ssd_close(&c);
    }
  }
  report(&w, mixed ? "large steps among small ones" : "large steps");
}

// ---- threads ----

// One hash of all outputs' bits.
static uint64_t bits_with(int threads, sk_ssd_dims d, uint64_t draw) {
  omp_set_num_threads(threads);
  g_count = draw; // the same inputs every time
  ssd_case c = ssd_open(d, RANDOM, ALL);
  forward(&c);
  backward(&c);
  const mat *const out[] = {&c.y, &c.Sf, &c.dxbc, &c.ddt, &c.dA_log, &c.dD, &c.dS0};
  uint64_t hash = hash_bits(0, out, 7);
  ssd_parts p = parts_open(&c);
  hash = hash_bits(hash, (const mat *const[]){&p.F, &p.dF, &p.keep}, 3);
  parts_close(&p);
  ssd_close(&c);
  return hash;
}

static void test_threads(void) {
  const sk_ssd_dims d[] = {{.b = 1, .T = 201, .nh = 1, .P = 9, .G = 1, .N = 12, .Q = 16},
                           {.b = 1, .T = 150, .nh = 6, .P = 8, .G = 2, .N = 16, .Q = 256},
                           {.b = 3, .T = 133, .nh = 4, .P = 16, .G = 1, .N = 7, .Q = 32}};
  int before = omp_get_max_threads();
  for (int i = 0; i < 3; i++) {
    uint64_t one = bits_with(1, d[i], 1000);
    tap_ok(one == bits_with(2, d[i], 1000) && one == bits_with(3, d[i], 1000) &&
               one == bits_with(7, d[i], 1000),
           "b %d, %d heads, Q %d: the same bits with 1, 2, 3 and 7 threads", (int)d[i].b,
           (int)d[i].nh, (int)d[i].Q);
  }
  tap_ok(bits_with(2, d[0], 1000) != bits_with(2, d[0], 1001), "other inputs give other bits");
  omp_set_num_threads(before);
}

int main(int argc, char **argv) {
  ops_start(&argc, &argv);
  for (int layout = 0; layout < LAYOUTS; layout += 2) test_reference(layout);
  test_chunk_lengths();
  test_real((sk_ssd_dims){.b = 1, .T = 301, .nh = 4, .P = 64, .G = 1, .N = 128, .Q = 128}, BEFORE);
  test_real((sk_ssd_dims){.b = 2, .T = 205, .nh = 4, .P = 32, .G = 2, .N = 64, .Q = 128}, RANDOM);
  test_real((sk_ssd_dims){.b = 1, .T = 131, .nh = 4, .P = 128, .G = 1, .N = 256, .Q = 256}, FIRST);
  test_cuts();
  test_isolated();
  test_decay(false);
  test_decay(true);
  test_threads();
  return ops_stop();
}
