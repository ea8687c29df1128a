/* cudnn.h: attention by NVIDIA's cuDNN, where it was configured (--with-cudnn) and the library is
 * found when a GPU is opened: libcudnn.so.9 is loaded then, nothing links to it. cudnn_none.c
 * stands for it in other builds.
 *
 * Training takes the forward pass alone from it. Its fast backward pass adds floats in any order,
 * and the one in a fixed order keeps a matrix of scores: b H Tq Tk 2 bytes. Both are here for
 * comparisons.
 *
 * A plan belongs to one shape. Making one compiles a kernel (a second) and takes memory of the
 * library's own, so it is never made in a step: attention_ready makes it before the first one, and
 * shapes that nobody announced are computed by Saker's own kernels. Not for several host threads.
 */
#ifndef SK_CUDNN_H
#define SK_CUDNN_H
#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the headers that the program was built with, "9.19.0"; NULL: without cuDNN. */
extern const char *const sk_cudnn_built;

/* ---- for cuda.c ---- */

/* The library on the current GPU; NULL where it cannot be loaded. text: its name and version, or
 * why not, to be put behind a device's description; empty in builds without it. */
typedef struct sk_cudnn sk_cudnn;
sk_cudnn *sk_cudnn_open(char *text, size_t size);
void sk_cudnn_close(sk_cudnn *c);

/* Makes the plan of a forward pass, where bf16 attention of this shape is for cuDNN; says when it
 * is refused. */
void sk_cudnn_ready(sk_cudnn *c, const sk_attn_dims *d);
/* sk_ops.attention for dims with a plan and no document that begins inside; false, and nothing
 * done, for others and where pointers are not aligned. */
bool sk_cudnn_attention(sk_cudnn *c, sk_stream *s, const sk_attn_dims *d, void *o, float *lse,
                        const void *q, const void *k, const void *v);

/* ---- for measurements and tests ---- */

/* The library of the stream's device, or NULL; how often it has computed sk_ops.attention. */
sk_cudnn *sk_cudnn_of(sk_stream *s);
int64_t sk_cudnn_calls(const sk_cudnn *c);

typedef enum sk_cudnn_pass {
  SK_CUDNN_FORWARD,  /* o, lse */
  SK_CUDNN_BACKWARD, /* dq, dk, dv; not deterministic */
  SK_CUDNN_ORDERED   /* the same, deterministic */
} sk_cudnn_pass;

typedef struct sk_cudnn_args {
  void *o;            /* an input of the backward passes */
  void *dq, *dk, *dv; /* strides of q, k, v */
  float *lse;
  const void *q, *k, *v, *dout; /* dout: strides of o */
} sk_cudnn_args;

/* A plan of one's own, without a limit to its workspace; NULL and *e when the library refuses. No
 * document begins inside; the backward passes want q0 = 0 and Tq = Tk. */
typedef struct sk_cudnn_plan sk_cudnn_plan;
sk_cudnn_plan *sk_cudnn_plan_create(sk_cudnn *c, sk_cudnn_pass pass, const sk_attn_dims *d,
                                    sk_err *e);
void sk_cudnn_plan_destroy(sk_cudnn_plan *p);
size_t sk_cudnn_plan_ws(const sk_cudnn_plan *p);
void sk_cudnn_plan_run(sk_cudnn_plan *p, sk_stream *s, const sk_cudnn_args *a, void *ws);

#ifdef __cplusplus
}
#endif
#endif
