/* linear.h: y = alpha * x W^T + bscale * bias, the only place where layers call GEMMs. Sizes are those of
 * this rank's shard. */
#ifndef SK_LINEAR_H
#define SK_LINEAR_H
#include "src/shard.h"

/* Several parameters that were registered one after the other with `join` form one W (q|k|v,
 * gate|up): w and b are then the first ones' indices and `out` the sum of their rows. */
typedef struct sk_linear {
  int w, b;             /* registry indices; b = -1: no bias */
  int64_t in, out;      /* of the shard */
  int64_t ld;           /* elements from one row of y or dy to the next: out, or more where W is padded */
  double alpha, bscale; /* the model's multipliers */
} sk_linear;

/* One part of a fused linear layer: its segments along the rows, or along the columns. */
typedef struct sk_linear_part {
  const char *name; /* e.g. "self_attn.q_proj" */
  int64_t rows;     /* of all ranks */
  int64_t pad;      /* alone in its layer: W, y and dy are padded to a multiple of so many outputs; 0: not */
  int n_seg;
  sk_segment seg[SK_MAX_SEGMENTS];
} sk_linear_part;

/* Registers model.layers.{layer}.{name}.weight [rows, in] of all parts, then their biases. columns: the
 * (one) part is cut along its columns; its output is then a partial sum and its bias belongs to the sum. */
sk_linear sk_linear_add(sk_registry *r, int64_t layer, const sk_linear_part *part, int n, int64_t in,
                        bool columns, bool bias, double alpha, double bscale);

/* y[n,out] = beta * y + alpha * x[n,in] W^T; act. In bf16 the padding of W, y and dy takes part, because the
 * libraries' fast products want sizes that are multiples of 8: W's is zero, so y's becomes zero, and dy's must be. */
void sk_linear_forward(const sk_ctx *c, const sk_linear *l, void *y, double beta, const void *x,
                       int64_t n);
/* dx[n,in] = beta * dx + alpha * dy W;  dW += alpha * dy^T x (or put off). */
void sk_linear_backward(const sk_ctx *c, const sk_linear *l, void *dx, double beta, const void *dy,
                        const void *x, int64_t n);
/* The same in two steps, for an x that arrives late. */
void sk_linear_dgrad(const sk_ctx *c, const sk_linear *l, void *dx, double beta, const void *dy, int64_t n);
void sk_linear_wgrad(const sk_ctx *c, const sk_linear *l, const void *dy, const void *x, int64_t n);

/* y = alpha * x W^T, dx = alpha * dy W while x or dy is being gathered: this rank's rows, which are here, then the end
 * of the gather, then the others. All rows at once when it is over already. */
void sk_linear_forward_gathered(sk_ctx *c, const sk_linear *l, void *y, sk_gathering *x);
void sk_linear_dgrad_gathered(sk_ctx *c, const sk_linear *l, void *dx, sk_gathering *dy);
/* The first in two steps, with the end of the gather between them. */
void sk_linear_forward_own(const sk_ctx *c, const sk_linear *l, void *y, const sk_gathering *x);
void sk_linear_forward_others(const sk_ctx *c, const sk_linear *l, void *y, const sk_gathering *x);

/* y[n,out] += bscale * bias;  dbias += bscale * sum of dy. Nothing without a bias. */
void sk_linear_bias(const sk_ctx *c, const sk_linear *l, void *y, int64_t n);
void sk_linear_bias_grad(const sk_ctx *c, const sk_linear *l, const void *dy, int64_t n);

/* dW[out,in] += alpha * dy[n,out]^T x[n,in], dy in rows of stride ldy: every weight gradient that is a GEMM passes here. It is computed
 * now, or put off when the context has a queue. */
void sk_wgrad_gemm(const sk_ctx *c, float *dw, const void *dy, int64_t ldy, const void *x, int64_t n, int64_t out,
                   int64_t in, double alpha);
/* Computes what was put off, first in, first out, and empties the queue. */
void sk_wgrad_drain(const sk_ctx *c, sk_wgrad_queue *q);
#endif
