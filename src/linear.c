#include "src/linear.h"
#include <stdio.h>
#include <string.h>

static int add(sk_registry *r, int64_t layer, const sk_linear_part *part, const char *what, int64_t in,
               bool columns, bool join) {
  char name[96];
  bool weight = strcmp(what, "weight") == 0;
  sk_param_spec s = {.rank = weight ? 2 : 1, .dim = {part->rows, in}, .columns = columns && weight,
                     .init = weight ? SK_INIT_NORMAL : SK_INIT_ZERO, .decay = weight, .join = join, .pad = weight ? part->pad : 0};
  if (weight || !columns) {
    s.n_seg = part->n_seg;
    memcpy(s.seg, part->seg, sizeof s.seg);
  }
  snprintf(name, sizeof name, "model.layers.%lld.%s.%s", (long long)layer, part->name, what);
  return sk_param_add(r, name, &s);
}

sk_linear sk_linear_add(sk_registry *r, int64_t layer, const sk_linear_part *part, int n, int64_t in,
                        bool columns, bool bias, double alpha, double bscale) {
  sk_linear l = {.b = -1, .in = in, .alpha = alpha, .bscale = bscale};
  for (int i = 0; i < n; i++) {
    int w = add(r, layer, &part[i], "weight", in, columns, i > 0);
    if (i == 0) l.w = w;
    l.in = r->p[w].row_len;
    l.out += r->p[w].rows;
  }
  l.ld = part->pad ? (l.out + part->pad - 1) / part->pad * part->pad : l.out;
  for (int i = 0; bias && i < n; i++) {
    int b = add(r, layer, &part[i], "bias", in, columns, i > 0);
    if (i == 0) l.b = b;
  }
  return l;
}

/* The outputs that products are taken of. */
static int64_t width(const sk_ctx *c, const sk_linear *l) { return c->act == SK_BF16 ? l->ld : l->out; }

void sk_linear_forward(const sk_ctx *c, const sk_linear *l, void *y, double beta, const void *x,
                       int64_t n) {
  c->op->gemm(c->st, false, true, n, width(c, l), l->in, l->alpha, x, l->in, sk_weight(c, l->w), l->in, beta,
              y, l->ld, c->act);
}

void sk_linear_dgrad(const sk_ctx *c, const sk_linear *l, void *dx, double beta, const void *dy, int64_t n) {
  c->op->gemm(c->st, false, false, n, l->in, width(c, l), l->alpha, dy, l->ld, sk_weight(c, l->w), l->in,
              beta, dx, l->in, c->act);
}

void sk_linear_wgrad(const sk_ctx *c, const sk_linear *l, const void *dy, const void *x, int64_t n) {
  sk_wgrad_gemm(c, sk_grad(c, l->w), dy, l->ld, x, n, width(c, l), l->in, l->alpha);
}

void sk_linear_backward(const sk_ctx *c, const sk_linear *l, void *dx, double beta, const void *dy,
                        const void *x, int64_t n) {
  sk_linear_dgrad(c, l, dx, beta, dy, n);
  sk_linear_wgrad(c, l, dy, x, n);
}

/* sk_linear_forward or _dgrad; rows are ldy and ldx elements apart. */
typedef struct product {
  void (*take)(const sk_ctx *c, const sk_linear *l, void *y, double beta, const void *x, int64_t n);
  int64_t ldy, ldx;
} product;

static product forward(const sk_linear *l) { return (product){sk_linear_forward, l->ld, l->in}; }

static void own(const sk_ctx *c, const sk_linear *l, product p, void *y, const sk_gathering *x) {
  if (x->own > 0) p.take(c, l, sk_at(c, y, x->first * p.ldy), 0, x->local, x->own);
}

static void others(const sk_ctx *c, const sk_linear *l, product p, void *y, const sk_gathering *x) {
  int64_t next = x->first + x->own;
  if (x->first > 0) p.take(c, l, y, 0, x->full, x->first);
  if (next < x->n) p.take(c, l, sk_at(c, y, next * p.ldy), 0, sk_at(c, x->full, next * p.ldx), x->n - next);
}

static void gathered(sk_ctx *c, const sk_linear *l, product p, void *y, sk_gathering *x) {
  if (x->over) {
    p.take(c, l, y, 0, x->full, x->n);
    return;
  }
  own(c, l, p, y, x);
  sk_gather_end(c, x);
  others(c, l, p, y, x);
}

void sk_linear_forward_gathered(sk_ctx *c, const sk_linear *l, void *y, sk_gathering *x) {
  gathered(c, l, forward(l), y, x);
}

void sk_linear_dgrad_gathered(sk_ctx *c, const sk_linear *l, void *dx, sk_gathering *dy) {
  gathered(c, l, (product){sk_linear_dgrad, l->in, l->ld}, dx, dy);
}

void sk_linear_forward_own(const sk_ctx *c, const sk_linear *l, void *y, const sk_gathering *x) {
  own(c, l, forward(l), y, x);
}

void sk_linear_forward_others(const sk_ctx *c, const sk_linear *l, void *y, const sk_gathering *x) {
  others(c, l, forward(l), y, x);
}

void sk_linear_bias(const sk_ctx *c, const sk_linear *l, void *y, int64_t n) {
  if (l->b >= 0) c->op->bias(c->st, y, l->ld, sk_weight(c, l->b), l->bscale, n, l->out);
}

void sk_linear_bias_grad(const sk_ctx *c, const sk_linear *l, const void *dy, int64_t n) {
  if (l->b >= 0) c->op->bias_grad(c->st, sk_grad(c, l->b), dy, l->ld, l->bscale, n, l->out);
}

static void compute(const sk_ctx *c, const sk_wgrad *w) {
  c->op->gemm(c->st, true, false, w->out, w->in, w->n, w->alpha, w->dy, w->ldy, w->x, w->in, 1.0, w->dw,
              w->in, SK_F32);
}

void sk_wgrad_gemm(const sk_ctx *c, float *dw, const void *dy, int64_t ldy, const void *x, int64_t n, int64_t out,
                   int64_t in, double alpha) {
  const sk_wgrad w = {dw, dy, x, ldy, n, out, in, alpha};
  sk_wgrad_queue *q = c->queue;
  if (!q) {
    compute(c, &w);
    return;
  }
  if (q->n == q->cap) q->at = sk_realloc(q->at, (size_t)(q->cap = 2 * q->cap + 64) * sizeof *q->at);
  q->at[q->n++] = w;
}

void sk_wgrad_drain(const sk_ctx *c, sk_wgrad_queue *q) {
  for (int i = 0; i < q->n; i++) compute(c, &q->at[i]);
  q->n = 0;
}
