/* linear.h: y = alpha * x W^T + bscale * bias, the only place where layers call GEMMs. */
#ifndef SK_LINEAR_H
#define SK_LINEAR_H
#include "src/ctx.h"

/* Several parameters that were registered one after the other with `join` form one W (q|k|v,
 * gate|up): w and b are then the first ones' indices and `out` the sum of their rows. */
typedef struct sk_linear {
  int w, b;             /* registry indices; b = -1: no bias */
  int64_t in, out;
  double alpha, bscale; /* the model's multipliers */
} sk_linear;

/* One part of a fused linear layer. */
typedef struct sk_linear_part {
  const char *name; /* e.g. "self_attn.q_proj" */
  int64_t rows;
} sk_linear_part;

/* Registers model.layers.{layer}.{name}.weight [rows, in] of all parts, then their biases. */
sk_linear sk_linear_add(sk_registry *r, int64_t layer, const sk_linear_part *part, int n, int64_t in,
                        bool bias, double alpha, double bscale);

/* y[n,out] = beta * y + alpha * x[n,in] W^T + bscale * bias; act. */
void sk_linear_forward(const sk_ctx *c, const sk_linear *l, void *y, double beta, const void *x,
                       int64_t n);
/* dx[n,in] = beta * dx + alpha * dy W;  dW += alpha * dy^T x;  dbias += bscale * sum of dy. */
void sk_linear_backward(const sk_ctx *c, const sk_linear *l, void *dx, double beta, const void *dy,
                        const void *x, int64_t n);
/* dW[out,in] += alpha * dy[n,out]^T x[n,in]: every weight gradient that is a GEMM passes here. */
void sk_linear_wgrad(const sk_ctx *c, float *dw, const void *dy, const void *x, int64_t n, int64_t out,
                     int64_t in, double alpha);
#endif
