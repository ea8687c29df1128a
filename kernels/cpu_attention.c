/* cpu_attention.c: rotary embedding and causal attention in tiles (sections 2.3 and 3.5).
 *
 * The query heads that share a key/value head are handled together: row r of a (sequence, kv head)
 * is query r / group of head kv * group + r % group. A tile of ROWS rows meets tiles of KEYS keys;
 * scores are kept transposed, [key][row], so that one SIMD lane belongs to one row: the softmax
 * needs no sums across lanes, and keys and values are read where they lie. */
#include <math.h>
#include <omp.h>
#include <string.h>
#include "kernels/cpu.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_product.h"

enum { MR = SK_MR, NR = SK_NR, ROWS = 64, KEYS = 64 };

static const float MASKED = -1e30f; // below every score

typedef struct call {
  const sk_attn_dims *d;
  int64_t group, rows; // query heads per kv head; rows of a (sequence, kv head)
  const float *q, *k, *v, *o, *dout, *lse, *delta;
  float *dq, *dk, *dv;
  const int32_t *start;
} call;

// A tile of rows. `lanes` is nr rounded up to NR; lanes past nr hold finite values nobody uses.
typedef struct tile {
  int64_t bi, kv, r0, nr, lanes;
  int64_t first_key, end_key; // every key that some row sees is in here
  int32_t lo[ROWS], pos[ROWS], lo_max;
  float *qt, *q, *dot, *dout, *dq; // [hd][ROWS] transposed, [ROWS][hd]; q is scaled
  float *s, *ds;                   // [KEYS][ROWS]
  float lse[ROWS], delta[ROWS];
} tile;

// ---- tiles ----

static int64_t token_of(const call *c, const tile *t, int64_t r) {
  return t->bi * c->d->Tq + (t->r0 + r) / c->group;
}

static int64_t head_of(const call *c, const tile *t, int64_t r) {
  return t->kv * c->group + (t->r0 + r) % c->group;
}

static int64_t stat_of(const call *c, const tile *t, int64_t r) {
  return (t->bi * c->d->H + head_of(c, t, r)) * c->d->Tq + (t->r0 + r) / c->group;
}

// Which rows, and which keys they see.
static void place(const call *c, tile *t, int64_t bi, int64_t kv, int64_t r0) {
  const sk_attn_dims *d = c->d;
  t->bi = bi, t->kv = kv, t->r0 = r0;
  t->nr = sk_min64(ROWS, c->rows - r0);
  t->lanes = sk_ceil_div(t->nr, NR) * NR;
  t->lo_max = 0;
  t->first_key = d->Tk;
  for (int64_t r = 0; r < t->lanes; r++) {
    int64_t last = sk_min64(r, t->nr - 1); // idle lanes repeat the last row
    t->pos[r] = (int32_t)(d->q0 + (r0 + last) / c->group);
    t->lo[r] = c->start[token_of(c, t, last)];
    if (t->lo[r] > t->lo_max) t->lo_max = t->lo[r];
    t->first_key = sk_min64(t->first_key, sk_max64(t->lo[r], 0));
  }
  t->first_key = t->first_key / KEYS * KEYS;
  t->end_key = sk_min64(d->Tk, t->pos[t->nr - 1] + 1);
}

// Copies the rows of x (stride ld), times f, to rows [ROWS][hd] (or NULL) and to columns
// [hd][ROWS].
static void gather(const call *c, const tile *t, const float *x, int64_t ld, float f, float *rows,
                   float *cols) {
  int64_t hd = c->d->hd;
  for (int64_t r = 0; r < t->lanes; r++) {
    const float *row = x + token_of(c, t, sk_min64(r, t->nr - 1)) * ld +
                       head_of(c, t, sk_min64(r, t->nr - 1)) * hd;
    for (int64_t i = 0; i < hd; i++) cols[i * ROWS + r] = f * row[i];
    if (!rows) continue;
    for (int64_t i = 0; i < hd; i++) rows[r * hd + i] = f * row[i];
  }
}

// The first row (0 .. nr) that key j may reach.
static int64_t first_row(const call *c, const tile *t, int64_t j) {
  return sk_max64(0, sk_min64(t->nr, (j - c->d->q0) * c->group - t->r0));
}

// The first lane that is worked on for the MR keys from j: a multiple of NR.
static int64_t first_lane(const call *c, const tile *t, int64_t j) {
  return first_row(c, t, j / MR * MR) / NR * NR;
}

// out[j][r] = x[j0 + j] . column r, from first_lane on.
static void dots(const call *c, const tile *t, float *out, const float *x, int64_t ld,
                 const float *cols, int64_t j0, int64_t nk) {
  const float *keys = x + (t->bi * c->d->Tk + j0) * ld + t->kv * c->d->hd;
  for (int64_t j = 0; j < nk; j += MR) {
    int64_t r = first_lane(c, t, j0 + j);
    sk_product(false, out + j * ROWS + r, ROWS, keys + j * ld, ld, 1, cols + r, ROWS,
               sk_min64(MR, nk - j), t->lanes - r, c->d->hd);
  }
}

// t->s = scores, MASKED where the row does not see the key.
static void scores(const call *c, tile *t, int64_t j0, int64_t nk) {
  dots(c, t, t->s, c->k, c->d->ldk, t->qt, j0, nk);
  if (j0 + nk - 1 <= t->pos[0] && j0 >= t->lo_max) return;
  for (int64_t j = 0; j < nk; j++) {
    float *restrict s = t->s + j * ROWS;
    int32_t key = (int32_t)(j0 + j);
#pragma omp simd
    for (int64_t r = first_lane(c, t, j0 + j); r < t->lanes; r++)
      s[r] = key >= t->lo[r] && key <= t->pos[r] ? s[r] : MASKED;
  }
}

// rows[r][:] += sum over keys of s[j][r] * x[j0 + j][:]
static void add_keys(const call *c, const tile *t, float *rows, const float *s, const float *x,
                     int64_t ld, int64_t j0, int64_t nk) {
  int64_t hd = c->d->hd;
  const float *keys = x + (t->bi * c->d->Tk + j0) * ld + t->kv * hd;
  for (int64_t r = 0; r < t->nr; r += MR) {
    int64_t m = sk_min64(MR, t->nr - r), seen = t->pos[r + m - 1] + 1 - j0;
    sk_product(true, rows + r * hd, hd, s + r, 1, ROWS, keys, ld, m, hd, sk_min64(nk, seen));
  }
}

// ---- forward ----

// Softmax so far: t->s becomes probabilities relative to the new maximum; rows of o are rescaled.
static void online_softmax(const call *c, tile *t, float *max, float *sum, float *o, int64_t j0,
                           int64_t nk) {
  float high[ROWS], shrink[ROWS];
  memcpy(high, max, sizeof high);
  for (int64_t j = 0; j < nk; j++) {
    const float *restrict s = t->s + j * ROWS;
#pragma omp simd
    for (int64_t r = first_lane(c, t, j0 + j); r < t->lanes; r++)
      high[r] = s[r] > high[r] ? s[r] : high[r];
  }
#pragma omp simd
  for (int64_t r = 0; r < t->lanes; r++) {
    shrink[r] = sk_expf(max[r] - high[r]);
    sum[r] *= shrink[r];
    max[r] = high[r];
  }
  for (int64_t j = 0; j < nk; j++) {
    float *restrict s = t->s + j * ROWS;
#pragma omp simd
    for (int64_t r = first_lane(c, t, j0 + j); r < t->lanes; r++) {
      float e = sk_expf(s[r] - high[r]);
      s[r] = s[r] == MASKED ? 0 : e;
      sum[r] += s[r];
    }
  }
  int64_t hd = c->d->hd;
  for (int64_t r = 0; r < t->nr; r++) {
#pragma omp simd
    for (int64_t i = 0; i < hd; i++) o[r * hd + i] *= shrink[r]; // cppcheck-suppress uninitvar
  }
}

static void forward_tile(const call *c, tile *t, float *out, float *lse, float *o) {
  int64_t hd = c->d->hd;
  float max[ROWS], sum[ROWS];
  for (int r = 0; r < ROWS; r++) max[r] = MASKED, sum[r] = 0;
  memset(o, 0, (size_t)(ROWS * hd) * sizeof *o);
  gather(c, t, c->q, c->d->ldq, (float)c->d->scale, NULL, t->qt);
  for (int64_t j0 = t->first_key; j0 < t->end_key; j0 += KEYS) {
    int64_t nk = sk_min64(KEYS, t->end_key - j0);
    scores(c, t, j0, nk);
    online_softmax(c, t, max, sum, o, j0, nk);
    add_keys(c, t, o, t->s, c->v, c->d->ldv, j0, nk);
  }
  for (int64_t r = 0; r < t->nr; r++) {
    float *row = out + token_of(c, t, r) * c->d->ldo + head_of(c, t, r) * hd;
    float inv = 1 / sum[r];
    for (int64_t i = 0; i < hd; i++) row[i] = o[r * hd + i] * inv;
    lse[stat_of(c, t, r)] = max[r] + logf(sum[r]);
  }
}

void sk_cpu_attention(sk_stream *s, const sk_attn_dims *d, void *o, float *lse, const void *q,
                      const void *k, const void *v, const int32_t *start) {
  call c = {.d = d, .group = d->H / d->KV, .q = q, .k = k, .v = v, .start = start};
  c.rows = d->Tq * c.group;
  int64_t per_head = sk_ceil_div(c.rows, ROWS), size = 2 * ROWS * d->hd + KEYS * ROWS;
  float *scratch = sk_cpu_scratch(s, (size_t)(omp_get_max_threads() * size) * sizeof *scratch);
#pragma omp parallel
  {
    float *mine = scratch + omp_get_thread_num() * size;
    tile t = {.qt = mine, .s = mine + ROWS * d->hd};
#pragma omp for schedule(dynamic)
    for (int64_t task = d->b * d->KV * per_head - 1; task >= 0; task--) {
      int64_t head = task % (d->b * d->KV), at = task / (d->b * d->KV); // the longest tiles first
      place(&c, &t, head / d->KV, head % d->KV, at * ROWS);
      forward_tile(&c, &t, o, lse, mine + ROWS * d->hd + KEYS * ROWS);
    }
  }
}

// ---- backward ----

size_t sk_cpu_attention_ws(const sk_device *dev, sk_dtype act, const sk_attn_dims *d) {
  (void)dev, (void)act;
  return (size_t)(d->b * d->H * d->Tq) * sizeof(float); // rowsum(do * o)
}

static void row_deltas(const call *c, float *delta) {
  const sk_attn_dims *d = c->d;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < d->b * d->Tq; t++) {
    for (int64_t h = 0; h < d->H; h++) {
      const float *restrict x = c->dout + t * d->ldo + h * d->hd;
      const float *restrict y = c->o + t * d->ldo + h * d->hd;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < d->hd; i++) sum += x[i] * y[i];
      delta[(t / d->Tq * d->H + h) * d->Tq + t % d->Tq] = sum;
    }
  }
}

static void load_backward(const call *c, tile *t) {
  gather(c, t, c->q, c->d->ldq, (float)c->d->scale, t->q, t->qt);
  gather(c, t, c->dout, c->d->ldo, 1, t->dout, t->dot);
  for (int64_t r = 0; r < t->lanes; r++) {
    int64_t i = stat_of(c, t, sk_min64(r, t->nr - 1));
    t->lse[r] = c->lse[i];
    t->delta[r] = c->delta[i];
  }
}

// t->s = probabilities, t->ds = gradient of the scores.
static void score_grads(const call *c, tile *t, int64_t j0, int64_t nk) {
  scores(c, t, j0, nk);
  dots(c, t, t->ds, c->v, c->d->ldv, t->dot, j0, nk);
  for (int64_t j = 0; j < nk; j++) {
    float *restrict s = t->s + j * ROWS, *restrict ds = t->ds + j * ROWS;
#pragma omp simd
    for (int64_t r = first_lane(c, t, j0 + j); r < t->lanes; r++) {
      float e = sk_expf(s[r] - t->lse[r]);
      s[r] = s[r] == MASKED ? 0 : e;
      ds[r] = s[r] * (ds[r] - t->delta[r]);
    }
  }
}

static void add_kv_grads(const call *c, const tile *t, int64_t j0, int64_t nk) {
  int64_t hd = c->d->hd, ldk = c->d->ldk, ldv = c->d->ldv, key0 = t->bi * c->d->Tk + j0;
  float *dk = c->dk + key0 * ldk + t->kv * hd, *dv = c->dv + key0 * ldv + t->kv * hd;
  for (int64_t j = 0; j < nk; j += MR) {
    int64_t m = sk_min64(MR, nk - j), r = first_row(c, t, j0 + j), n = t->nr - r;
    const float *p = t->s + j * ROWS + r, *ds = t->ds + j * ROWS + r;
    sk_product(true, dv + j * ldv, ldv, p, ROWS, 1, t->dout + r * hd, hd, m, hd, n);
    sk_product(true, dk + j * ldk, ldk, ds, ROWS, 1, t->q + r * hd, hd, m, hd, n);
  }
}

static void zero_kv_grads(const call *c, int64_t bi, int64_t kv, int64_t j0, int64_t j1) {
  const sk_attn_dims *d = c->d;
  for (int64_t j = bi * d->Tk + j0; j < bi * d->Tk + j1; j++) {
    memset(c->dk + j * d->ldk + kv * d->hd, 0, (size_t)d->hd * sizeof(float));
    memset(c->dv + j * d->ldv + kv * d->hd, 0, (size_t)d->hd * sizeof(float));
  }
}

// dq of one tile of rows and, when kv is set, its part of dk and dv.
static void backward_rows(const call *c, tile *t, bool kv) {
  int64_t hd = c->d->hd;
  load_backward(c, t);
  memset(t->dq, 0, (size_t)(ROWS * hd) * sizeof(float));
  for (int64_t j0 = t->first_key; j0 < t->end_key; j0 += KEYS) {
    int64_t nk = sk_min64(KEYS, t->end_key - j0);
    score_grads(c, t, j0, nk);
    if (kv) add_kv_grads(c, t, j0, nk);
    add_keys(c, t, t->dq, t->ds, c->k, c->d->ldk, j0, nk);
  }
  for (int64_t r = 0; r < t->nr; r++) {
    float *row = c->dq + token_of(c, t, r) * c->d->ldq + head_of(c, t, r) * hd,
          f = (float)c->d->scale;
    for (int64_t i = 0; i < hd; i++) row[i] = f * t->dq[r * hd + i];
  }
}

// dk and dv of one tile of keys.
static void backward_keys(const call *c, tile *t, int64_t bi, int64_t kv, int64_t j0) {
  zero_kv_grads(c, bi, kv, j0, sk_min64(c->d->Tk, j0 + KEYS));
  for (int64_t r0 = 0; r0 < c->rows; r0 += ROWS) {
    place(c, t, bi, kv, r0);
    if (j0 < t->first_key || j0 >= t->end_key) continue;
    int64_t nk = sk_min64(KEYS, t->end_key - j0);
    load_backward(c, t);
    score_grads(c, t, j0, nk);
    add_kv_grads(c, t, j0, nk);
  }
}

// Everything of one (sequence, kv head).
static void backward_head(const call *c, tile *t, int64_t bi, int64_t kv) {
  zero_kv_grads(c, bi, kv, 0, c->d->Tk);
  for (int64_t r0 = 0; r0 < c->rows; r0 += ROWS) {
    place(c, t, bi, kv, r0);
    backward_rows(c, t, true);
  }
}

// Both ways add the same tiles in the same order. By heads takes five products per pair of tiles,
// but has few tasks; apart takes seven.
static void backward(const call *c, tile *t, bool by_heads) {
  int64_t heads = c->d->b * c->d->KV, KV = c->d->KV;
  if (by_heads) {
#pragma omp for schedule(dynamic)
    for (int64_t h = 0; h < heads; h++) backward_head(c, t, h / KV, h % KV);
    return;
  }
  int64_t row_tiles = sk_ceil_div(c->rows, ROWS), key_tiles = sk_ceil_div(c->d->Tk, KEYS);
#pragma omp for schedule(dynamic) nowait
  for (int64_t i = 0; i < heads * key_tiles; i++)
    backward_keys(c, t, i % heads / KV, i % heads % KV, i / heads * KEYS);
#pragma omp for schedule(dynamic)
  for (int64_t i = heads * row_tiles - 1; i >= 0; i--) {
    place(c, t, i % heads / KV, i % heads % KV, i / heads * ROWS);
    backward_rows(c, t, false);
  }
}

void sk_cpu_attention_grad(sk_stream *s, const sk_attn_dims *d, void *dq, void *dk, void *dv,
                           const void *do_, const void *q, const void *k, const void *v,
                           const void *o, const float *lse, const int32_t *start, void *ws) {
  call c = {.d = d,
            .group = d->H / d->KV,
            .q = q,
            .k = k,
            .v = v,
            .o = o,
            .dout = do_,
            .lse = lse,
            .delta = ws,
            .dq = dq,
            .dk = dk,
            .dv = dv,
            .start = start};
  c.rows = d->Tq * c.group;
  row_deltas(&c, ws);
  int64_t threads = omp_get_max_threads(), heads = d->b * d->KV, rows = ROWS * d->hd;
  bool by_heads = 5 * sk_ceil_div(heads, threads) * threads <= 7 * heads;
  int64_t size = 5 * rows + 2 * KEYS * ROWS;
  float *scratch = sk_cpu_scratch(s, (size_t)(threads * size) * sizeof *scratch);
#pragma omp parallel
  {
    float *mine = scratch + omp_get_thread_num() * size;
    tile t = {.qt = mine,
              .q = mine + rows,
              .dot = mine + 2 * rows,
              .dout = mine + 3 * rows,
              .dq = mine + 4 * rows,
              .s = mine + 5 * rows,
              .ds = mine + 5 * rows + KEYS * ROWS};
    backward(&c, &t, by_heads);
  }
}

// ---- rotary embedding ----

void sk_cpu_rope(sk_stream *s, void *x, int64_t ldx, const float *table, double mult, int sign,
                 int64_t b, int64_t T, int64_t heads, int64_t hd) {
  (void)s;
  float f = (float)mult, turn = (float)(mult * sign);
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < b * T; t++) {
    const float *restrict angle = table + t % T * hd;
    for (int64_t h = 0; h < heads; h++) {
      float *restrict lo = (float *)x + t * ldx + h * hd, *restrict hi = lo + hd / 2;
#pragma omp simd
      for (int64_t i = 0; i < hd / 2; i++) {
        float c = f * angle[2 * i], w = turn * angle[2 * i + 1], u = lo[i], v = hi[i];
        lo[i] = u * c - v * w;
        hi[i] = v * c + u * w;
      }
    }
  }
}
