/* bench_attention.c: cuDNN's attention at the shape that Saker's own was measured at, in the same
 * run: forward, backward in any order of its sums, and backward in a fixed order, which is what
 * training asks of ours. */
#include "kernels/cudnn.h"
#include "src/bench.h"

typedef struct run {
  sk_cudnn_plan *plan;
  sk_stream *st;
  sk_cudnn_args a;
  void *ws;
} run;

static void run_plan(void *arg) {
  run *r = arg;
  sk_cudnn_plan_run(r->plan, r->st, &r->a, r->ws);
}

/* The workspace is asked for beside the arena: the ordered pass wants gigabytes. */
static double measure(const sk_bench *b, sk_device *dev, sk_stream *st, sk_cudnn_pass pass,
                      const sk_attn_dims *d, const sk_cudnn_args *a, size_t *ws, sk_err *e) {
  run r = {.plan = sk_cudnn_plan_create(sk_cudnn_of(st), pass, d, e), .st = st, .a = *a};
  double s = 0;
  if (!r.plan) return 0;
  *ws = sk_cudnn_plan_ws(r.plan);
  r.ws = b->op->alloc(dev, *ws);
  if (r.ws)
    s = sk_bench_time(b, st, run_plan, &r);
  else
    sk_fail(e, SK_FAILED, "no memory for a workspace of %s", sk_bytes((double)*ws));
  b->op->free(dev, r.ws);
  sk_cudnn_plan_destroy(r.plan);
  return s;
}

void sk_bench_cudnn(
    const sk_bench *b, sk_device *dev, sk_stream *st, const sk_attn_dims *d, const sk_cudnn_args *a,
    void (*report)(void *arg, const char *op, const char *pass, double s, size_t ws), void *arg) {
  static const char *const op[] = {"cuDNN attn", "cuDNN attn", "cuDNN attn det"}, *const pass[] = {
                                                                                      "fwd", "bwd",
                                                                                      "bwd"};
  if (!sk_cudnn_built || b->op != sk_cuda || !sk_cudnn_of(st))
    return; /* the device's description says why */
  for (int i = SK_CUDNN_FORWARD; i <= SK_CUDNN_ORDERED; i++) {
    sk_err e = {0};
    size_t ws = 0;
    double s = measure(b, dev, st, (sk_cudnn_pass)i, d, a, &ws, &e);
    if (e.code)
      sk_say("  %-14s %s not measured: %s", op[i], pass[i], e.msg);
    else
      report(arg, op[i], pass[i], s, ws);
  }
}
