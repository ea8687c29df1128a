/* bench_attention.c: Saker's attention beside cuDNN's at the same shape, in turns: forward, backward, and of cuDNN backward
 * in any order of its sums and in a fixed order, which is what training asks of ours. */
#include "kernels/cudnn.h"
#include "src/bench.h"

typedef struct run {
  sk_cudnn_plan *plan;
  sk_stream *st;
  const sk_cudnn_args *a;
  void *ws;
} run;

static void run_plan(void *arg) {
  const run *r = arg;
  sk_cudnn_plan_run(r->plan, r->st, r->a, r->ws);
}

/* The workspace is asked for beside the arena: the ordered pass wants gigabytes. */
static bool open_run(run *r, const sk_bench *b, sk_device *dev, sk_cudnn_pass pass, const sk_attn_dims *d, sk_err *e) {
  r->plan = sk_cudnn_plan_create(sk_cudnn_of(r->st), pass, d, e);
  if (!r->plan) return false;
  size_t bytes = sk_cudnn_plan_ws(r->plan);
  r->ws = b->op->alloc(dev, bytes);
  if (r->ws) return true;
  sk_fail(e, SK_FAILED, "no memory for a workspace of %s", sk_bytes((double)bytes));
  sk_cudnn_plan_destroy(r->plan);
  return false;
}

int sk_bench_attention(const sk_bench *b, sk_device *dev, sk_stream *st, const sk_attn_dims *d, const sk_cudnn_args *a,
                       sk_bench_way own[2], sk_bench_rival rival[3]) {
  static const char *const op[] = {"cuDNN attn", "cuDNN attn", "cuDNN attn det"}, *const pass[] = {"fwd", "bwd", "bwd"};
  sk_bench_way way[5] = {own[0], own[1]};
  run r[3];
  int n = 0;
  /* Without cuDNN the device's description says why. */
  bool there = sk_cudnn_built && b->op == sk_cuda && sk_cudnn_of(st);
  for (int i = SK_CUDNN_FORWARD; there && i <= SK_CUDNN_ORDERED; i++) {
    sk_err e = {0};
    r[n] = (run){.st = st, .a = a};
    if (!open_run(&r[n], b, dev, (sk_cudnn_pass)i, d, &e)) {
      sk_say("  %-14s %s not measured: %s", op[i], pass[i], e.msg);
      continue;
    }
    rival[n] = (sk_bench_rival){op[i], pass[i], 0, sk_cudnn_plan_ws(r[n].plan)};
    way[2 + n] = (sk_bench_way){run_plan, &r[n], 0};
    n++;
  }
  if (n > 0) sk_bench_rounds(b, st, 5e-3, way, 2 + n);
  for (int i = 0; i < 2; i++) own[i].s = n > 0 ? way[i].s : sk_bench_time(b, st, own[i].run, own[i].arg);
  for (int i = 0; i < n; i++) {
    rival[i].s = way[2 + i].s;
    b->op->free(dev, r[i].ws);
    sk_cudnn_plan_destroy(r[i].plan);
  }
  return n;
}
