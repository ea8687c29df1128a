#include "src/linear.h"
#include <stdio.h>

sk_linear sk_linear_add(sk_registry *r, int64_t layer, const sk_linear_part *part, int n, int64_t in,
                        bool bias, double alpha, double bscale) {
  sk_linear l = {.w = r->n, .b = bias ? r->n + n : -1, .in = in, .alpha = alpha, .bscale = bscale};
  char name[96];
  for (int i = 0; i < n; i++) {
    snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)layer, part[i].name);
    sk_param_add(r, name, 2, (int64_t[]){part[i].rows, in}, SK_INIT_NORMAL, true, i > 0);
    l.out += part[i].rows;
  }
  for (int i = 0; bias && i < n; i++) {
    snprintf(name, sizeof name, "model.layers.%lld.%s.bias", (long long)layer, part[i].name);
    sk_param_add(r, name, 1, &part[i].rows, SK_INIT_ZERO, false, i > 0);
  }
  return l;
}

void sk_linear_forward(const sk_ctx *c, const sk_linear *l, void *y, double beta, const void *x,
                       int64_t n) {
  c->op->gemm(c->st, false, true, n, l->out, l->in, l->alpha, x, l->in, sk_weight(c, l->w), l->in, beta,
              y, l->out, c->act);
  if (l->b >= 0) c->op->bias(c->st, y, l->out, sk_weight(c, l->b), l->bscale, n, l->out);
}

void sk_linear_backward(const sk_ctx *c, const sk_linear *l, void *dx, double beta, const void *dy,
                        const void *x, int64_t n) {
  c->op->gemm(c->st, false, false, n, l->in, l->out, l->alpha, dy, l->out, sk_weight(c, l->w), l->in,
              beta, dx, l->in, c->act);
  sk_linear_wgrad(c, sk_grad(c, l->w), dy, x, n, l->out, l->in, l->alpha);
  if (l->b >= 0) c->op->bias_grad(c->st, sk_grad(c, l->b), dy, l->out, l->bscale, n, l->out);
}

void sk_linear_wgrad(const sk_ctx *c, float *dw, const void *dy, const void *x, int64_t n, int64_t out,
                     int64_t in, double alpha) {
  c->op->gemm(c->st, true, false, out, in, n, alpha, dy, out, x, in, 1.0, dw, in, SK_F32);
}
