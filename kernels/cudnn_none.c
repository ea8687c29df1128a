/* cudnn_none.c: what stands for cuDNN in a build without it. */
#include "kernels/cudnn.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" // nothing here looks at its arguments

const char *const sk_cudnn_built = NULL;

sk_cudnn *sk_cudnn_open(char *text, size_t size) {
  if (size) text[0] = 0;
  return NULL;
}

void sk_cudnn_close(sk_cudnn *c) {}

void sk_cudnn_ready(sk_cudnn *c, const sk_attn_dims *d) {}

bool sk_cudnn_attention(sk_cudnn *c, sk_stream *s, const sk_attn_dims *d, void *o, float *lse,
                        const void *q, const void *k, const void *v) {
  return false;
}

sk_cudnn *sk_cudnn_of(sk_stream *s) {
  return NULL;
}

int64_t sk_cudnn_calls(const sk_cudnn *c) {
  return 0;
}

sk_cudnn_plan *sk_cudnn_plan_create(sk_cudnn *c, sk_cudnn_pass pass, const sk_attn_dims *d,
                                    sk_err *e) {
  sk_fail(e, SK_FAILED, "this program was built without cuDNN (configure --with-cudnn)");
  return NULL;
}

void sk_cudnn_plan_destroy(sk_cudnn_plan *p) {}

size_t sk_cudnn_plan_ws(const sk_cudnn_plan *p) {
  return 0;
}

void sk_cudnn_plan_run(sk_cudnn_plan *p, sk_stream *s, const sk_cudnn_args *a, void *ws) {}
