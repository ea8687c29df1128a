/* ops_attention.c: the CPU device's attention against the loops of ref_ops.c, and those against finite
 * differences of themselves; the same bits for every number of threads. */
#include <omp.h>
#include "tests/ops_check.h"
#include "tests/ref_ops.h"

typedef struct attn_case {
  sk_attn_dims d;
  double *q, *k, *v, *dout, *o, *lse;
  int32_t *start;
} attn_case;

static double attn_loss(void *context) {
  attn_case *c = context;
  ref_attention(&c->d, c->o, c->lse, c->q, c->k, c->v, c->start);
  return inner(c->o, c->dout, c->d.b * c->d.Tq * c->d.H * c->d.hd);
}

// Documents of random lengths around `mean` (0: one document from key 0).
static int32_t *documents(const sk_attn_dims *d, int64_t mean) {
  int32_t *start = sk_malloc((size_t)(d->b * d->Tq) * sizeof *start);
  for (int64_t bi = 0; bi < d->b; bi++) {
    int32_t first = 0;
    for (int64_t j = 0; j < d->q0 + d->Tq; j++) {
      if (mean && sk_rand(11, (uint64_t)(bi * 100003 + j)) % (uint64_t)mean == 0)
        first = (int32_t)j;
      if (j >= d->q0) start[bi * d->Tq + j - d->q0] = first;
    }
  }
  return start;
}

static void attn_gradients(attn_case *c, const mat *dq, const mat *dk, const mat *dv) {
  check_gradient(attn_loss, c, c->q, dq->d, dq->rows * dq->cols, "attention, q");
  check_gradient(attn_loss, c, c->k, dk->d, dk->rows * dk->cols, "attention, k");
  check_gradient(attn_loss, c, c->v, dv->d, dv->rows * dv->cols, "attention, v");
}

// Rows of a cache that no query has reached yet may hold anything.
static void forget_future(const sk_attn_dims *d, mat *m) {
  for (int64_t t = 0; t < m->rows; t++) {
    if (t % d->Tk < d->q0 + d->Tq) continue;
    for (int64_t c = 0; c < m->ld; c++) m->f[t * m->ld + c] = poison();
  }
}

static void test_attention(sk_attn_dims d, int64_t mean_document) {
  int64_t nq = d.b * d.Tq, nk = d.b * d.Tk, wq = d.H * d.hd, wk = d.KV * d.hd;
  d.ldq = wq + 3, d.ldk = wk + 1, d.ldv = wk + 6, d.ldo = wq + 2;
  d.scale = 1 / sqrt((double)d.hd);
  mat q = input(nq, wq, d.ldq), k = input(nk, wk, d.ldk), v = input(nk, wk, d.ldv),
      dout = input(nq, wq, d.ldo);
  mat o = output(nq, wq, d.ldo), lse = output(d.b * d.H, d.Tq, d.Tq);
  mat dq = output(nq, wq, d.ldq), dk = output(nk, wk, d.ldk), dv = output(nk, wk, d.ldv);
  forget_future(&d, &k);
  forget_future(&d, &v);
  int32_t *start = documents(&d, mean_document);
  attn_case c = {d, q.d, k.d, v.d, dout.d, o.d, lse.d, start};
  char *name = sk_strf("b %d Tq %d Tk %d q0 %d H %d KV %d hd %d documents %d", (int)d.b, (int)d.Tq,
                       (int)d.Tk, (int)d.q0, (int)d.H, (int)d.KV, (int)d.hd, (int)mean_document);
  ref_attention_grad(&d, dq.d, dk.d, dv.d, dout.d, q.d, k.d, v.d, start);
  if (d.Tk < 40) attn_gradients(&c, &dq, &dk, &dv);
  attn_loss(&c);
  g_op->attention(g_stream, &d, o.f, lse.f, q.f, k.f, v.f, start);
  close_to_ref(&o, "attention %s", name);
  close_to_ref(&lse, "attention %s, lse", name);
  void *ws = g_op->alloc(g_dev, g_op->attention_ws(g_dev, SK_F32, &d));
  g_op->attention_grad(g_stream, &d, dq.f, dk.f, dv.f, dout.f, q.f, k.f, v.f, o.f, lse.f, start,
                       ws);
  close_to_ref(&dq, "attention_grad %s, dq", name);
  close_to_ref(&dk, "attention_grad %s, dk", name);
  close_to_ref(&dv, "attention_grad %s, dv", name);
  g_op->free(g_dev, ws);
  sk_free(name);
  sk_free(start);
  DROP(&q, &k, &v, &dout, &o, &lse, &dq, &dk, &dv);
}

static void test_attentions(void) {
  // b, Tq, Tk, q0, H, KV, hd
  test_attention((sk_attn_dims){.b = 2, .Tq = 9, .Tk = 9, .H = 4, .KV = 2, .hd = 6}, 0);
  test_attention((sk_attn_dims){.b = 2, .Tq = 33, .Tk = 33, .H = 3, .KV = 1, .hd = 16}, 7);
  test_attention((sk_attn_dims){.b = 1, .Tq = 5, .Tk = 20, .q0 = 11, .H = 2, .KV = 2, .hd = 10}, 6);
  test_attention((sk_attn_dims){.b = 3, .Tq = 150, .Tk = 150, .H = 6, .KV = 2, .hd = 32}, 0);
  test_attention((sk_attn_dims){.b = 2, .Tq = 201, .Tk = 201, .H = 4, .KV = 4, .hd = 64}, 60);
  test_attention((sk_attn_dims){.b = 1, .Tq = 131, .Tk = 131, .H = 5, .KV = 1, .hd = 40}, 30);
  test_attention((sk_attn_dims){.b = 1, .Tq = 70, .Tk = 300, .q0 = 130, .H = 2, .KV = 1, .hd = 128},
                 0);
  test_attention((sk_attn_dims){.b = 3, .Tq = 1, .Tk = 91, .q0 = 90, .H = 8, .KV = 2, .hd = 32}, 0);
  test_attention((sk_attn_dims){.b = 2, .Tq = 1, .Tk = 128, .q0 = 77, .H = 3, .KV = 3, .hd = 24},
                 50);
  test_attention((sk_attn_dims){.b = 1, .Tq = 1, .Tk = 1, .H = 1, .KV = 1, .hd = 2}, 0);
}

// A NaN in a query must reach the output of its head and of no other.
static void test_attention_nan(void) {
  sk_attn_dims d = {.b = 1, .Tq = 20, .Tk = 20, .H = 2, .KV = 1, .hd = 16, .scale = 0.25};
  d.ldq = d.ldo = 32, d.ldk = d.ldv = 16;
  mat q = input(20, 32, 32), k = input(20, 16, 16), v = input(20, 16, 16), o = output(20, 32, 32);
  mat lse = output(2, 20, 20);
  int32_t start[20] = {0};
  q.f[7 * 32 + 3] = NAN;
  g_op->attention(g_stream, &d, o.f, lse.f, q.f, k.f, v.f, start);
  bool good = true;
  for (int t = 0; t < 20; t++)
    for (int c = 0; c < 32; c++) good = good && !isnan(o.f[t * 32 + c]) == !(t == 7 && c < 16);
  tap_ok(good, "attention: a NaN in one query stays visible and in its place");
  DROP(&q, &k, &v, &o, &lse);
}

// One hash of all results.
static uint64_t bits_with(int threads, int64_t b, int64_t KV) {
  omp_set_num_threads(threads);
  g_count = 1000; // the same inputs every time
  sk_attn_dims d = {.b = b, .Tq = 140, .Tk = 140, .H = 4, .KV = KV, .hd = 32, .scale = 0.2};
  int64_t n = b * d.Tq, w = d.H * d.hd, wk = KV * d.hd;
  d.ldq = d.ldo = w, d.ldk = d.ldv = wk;
  mat q = input(n, w, w), k = input(n, wk, wk), v = input(n, wk, wk), dout = input(n, w, w);
  mat o = output(n, w, w), lse = output(b * d.H, d.Tq, d.Tq);
  mat dq = output(n, w, w), dk = output(n, wk, wk), dv = output(n, wk, wk);
  int32_t *first = documents(&d, 50);
  void *ws = g_op->alloc(g_dev, g_op->attention_ws(g_dev, SK_F32, &d));
  g_op->attention(g_stream, &d, o.f, lse.f, q.f, k.f, v.f, first);
  g_op->attention_grad(g_stream, &d, dq.f, dk.f, dv.f, dout.f, q.f, k.f, v.f, o.f, lse.f, first, ws);
  uint64_t hash = hash_bits(0, (const mat *const[]){&o, &lse, &dq, &dk, &dv}, 5);
  g_op->free(g_dev, ws);
  sk_free(first);
  DROP(&q, &k, &v, &dout, &o, &lse, &dq, &dk, &dv);
  return hash;
}

static void test_threads(void) {
  int before = omp_get_max_threads();
  for (int64_t KV = 1; KV <= 4; KV *= 2) {
    uint64_t one = bits_with(1, 1, KV);
    tap_ok(one == bits_with(2, 1, KV) && one == bits_with(3, 1, KV) && one == bits_with(7, 1, KV),
           "the same bits with 1, 2, 3 and 7 threads, %d kv heads", (int)KV);
  }
  tap_ok(bits_with(2, 1, 2) != bits_with(2, 2, 2), "other inputs give other bits");
  omp_set_num_threads(before);
}

int main(int argc, char **argv) {
  ops_start(&argc, &argv);
  test_attentions();
  test_attention_nan();
  test_threads();
  return ops_stop();
}
