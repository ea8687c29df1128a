/* plan.c: a device that computes nothing and owns no memory; see ops.h. Its pointers are addresses
 * that nobody reads or writes. */
#include "kernels/ops.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" // nothing here looks at its arguments

struct plan {
  const sk_ops *target;
  const sk_device *dev; // of the target; NULL: none is open
  sk_dtype act;
};

static struct plan g_plan;
static char g_token; // what streams and events of this device point at

sk_device *sk_plan_open(const sk_ops *target, const sk_device *dev, sk_dtype act) {
  g_plan = (struct plan){target, dev, act};
  return (sk_device *)&g_plan;
}

static const struct plan *plan_of(const sk_device *d) {
  return (const struct plan *)(const void *)d;
}

static int plan_count(sk_err *e) {
  return 0;
}

static sk_device *plan_open(int index, sk_dtype act, sk_err *e) {
  sk_fail(e, SK_FAILED, "the planning device is opened by sk_plan_open");
  return NULL;
}

static void plan_close(sk_device *d) {}

static const char *plan_describe(sk_device *d) {
  return "plan (computes nothing)";
}

static sk_dtype plan_act(const sk_device *d) {
  return plan_of(d)->act;
}

static void *plan_alloc(sk_device *d, size_t bytes) {
  return NULL;
}

static sk_stream *plan_stream_create(sk_device *d) {
  return (sk_stream *)&g_token;
}

static sk_event *plan_event_create(sk_device *d) {
  return (sk_event *)&g_token;
}

static size_t plan_attention_ws(const sk_device *dev, sk_dtype act, const sk_attn_dims *dims) {
  return plan_of(dev)->target->attention_ws(plan_of(dev)->dev, act, dims);
}

static size_t plan_ssd_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *dims) {
  return plan_of(dev)->target->ssd_ws(plan_of(dev)->dev, act, dims);
}

static size_t plan_ssd_grad_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *dims) {
  return plan_of(dev)->target->ssd_grad_ws(plan_of(dev)->dev, act, dims);
}

static void plan_free(sk_device *d, void *p) {}

static size_t plan_used(sk_device *d) {
  return 0;
}

static double plan_elapsed(sk_event *from, sk_event *to) {
  return 0;
}

static void plan_stream_destroy(sk_stream *s) {}

static void plan_range(const char *name) { (void)name; }

static void plan_sync(sk_stream *s) {}

static void plan_event_destroy(sk_event *ev) {}

static void plan_record(sk_event *ev, sk_stream *s) {}

static void plan_wait(sk_stream *s, sk_event *ev) {}

static void plan_copy(sk_stream *s, void *dst, const void *src, size_t bytes) {}

static bool plan_copies_host(sk_stream *s, int64_t n, const sk_copy *list, sk_sum *sum) { return false; }

static void plan_copy2d(sk_stream *s, void *dst, size_t ldd, const void *src, size_t lds,
                        size_t width, int64_t rows) {}

static void plan_to_host(sk_stream *s, void *host, const void *dev, size_t bytes) {}

static void plan_from_host(sk_stream *s, void *dev, const void *host, size_t bytes) {}

static void plan_zero(sk_stream *s, void *p, size_t bytes) {}

static bool plan_event_done(sk_event *ev) {
  return true;
}

static void plan_host_free(sk_device *d, void *p) {}

static int plan_share(sk_device *d, const void *p, sk_share *out, sk_err *e) {
  return sk_fail(e, SK_FAILED, "the planning device has no memory to share");
}

static void *plan_map(sk_device *d, const sk_share *s, sk_err *e) {
  sk_fail(e, SK_FAILED, "the planning device maps no memory");
  return NULL;
}

static sk_event *plan_event_share(sk_device *d, sk_share *out, sk_err *e) {
  sk_fail(e, SK_FAILED, "the planning device has no events to share");
  return NULL;
}

static sk_event *plan_event_map(sk_device *d, const sk_share *s, sk_err *e) {
  sk_fail(e, SK_FAILED, "the planning device maps no events");
  return NULL;
}

static size_t plan_total(sk_device *d) {
  return 0;
}

static void plan_cast(sk_stream *s, void *dst, sk_dtype to, const void *src, sk_dtype from,
                      int64_t n) {}

static void plan_gemm(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha,
                      const void *A, int64_t lda, const void *B, int64_t ldb, double beta, void *C,
                      int64_t ldc, sk_dtype ct) {}

static int plan_gemm_choose(sk_device *d, int choice) {
  return 0;
}

static void plan_bias(sk_stream *s, void *y, int64_t ldy, const void *bias, double scale, int64_t n,
                      int64_t cols) {}

static void plan_bias_grad(sk_stream *s, float *dbias, const void *dy, int64_t ldy, double scale,
                           int64_t n, int64_t cols) {}

static void plan_add_f32(sk_stream *s, float *y, const float *a, const float *b, int64_t n) {}

static void plan_add(sk_stream *s, void *y, const void *a, const void *b, int64_t n) {}

static void plan_embed(sk_stream *s, void *h, const int32_t *ids, const void *E, double mult,
                       int64_t n, int64_t d, int64_t v0, int64_t nv) {}

static void plan_embed_grad(sk_stream *s, float *dE, const int32_t *ids, const void *dh,
                            double mult, int64_t n, int64_t d, int64_t v0, int64_t nv,
                            int64_t pad) {}

static void plan_rmsnorm(sk_stream *s, void *y, float *rstd, void *sum, const void *x,
                         const void *res, const void *w, int64_t n, int64_t d, double eps) {}

static void plan_rmsnorm_grad(sk_stream *s, void *dx, float *dw, const void *dy, const void *x,
                              const float *rstd, const void *w, int64_t n, int64_t d) {}

static void plan_gate(sk_stream *s, const sk_gate_dims *dims, void *o, float *rstd, const void *y,
                      const void *z, const void *w) {}

static void plan_gate_stats(sk_stream *s, const sk_gate_dims *dims, float *ss, const void *y,
                            const void *z) {}

static void plan_gate_grad_stats(sk_stream *s, const sk_gate_dims *dims, float *dots,
                                 const void *do_, const void *y, const void *z, const void *w) {}

static void plan_gate_grad(sk_stream *s, const sk_gate_dims *dims, void *dy, void *dz, float *dw,
                           const void *do_, const void *y, const void *z, const void *w,
                           const float *rstd) {}

static void plan_swiglu(sk_stream *s, void *a, const void *gu, double mgate, int64_t n, int64_t F) {
}

static void plan_swiglu_grad(sk_stream *s, void *dgu, const void *da, const void *gu, double mgate,
                             int64_t n, int64_t F) {}

static void plan_rope(sk_stream *s, void *x, int64_t ldx, const float *table, double mult, int sign,
                      int64_t b, int64_t T, int64_t heads, int64_t hd) {}

static void plan_attention(sk_stream *s, const sk_attn_dims *dims, void *o, float *lse,
                           const void *q, const void *k, const void *v, const int32_t *start) {}

static void plan_attention_ready(sk_device *d, const sk_attn_dims *dims) {}

static void plan_attention_grad(sk_stream *s, const sk_attn_dims *dims, void *dq, void *dk,
                                void *dv, const void *do_, const void *q, const void *k,
                                const void *v, const void *o, const float *lse,
                                const int32_t *start, void *ws) {}

static void plan_conv(sk_stream *s, const sk_conv_dims *dims, void *y, const void *x,
                      const void *halo, const void *w, const void *bias, const int32_t *start) {}

static void plan_conv_grad(sk_stream *s, const sk_conv_dims *dims, void *dx, void *dhalo, float *dw,
                           float *dbias, const void *dy, const void *x, const void *halo,
                           const void *w, const void *bias, const int32_t *start) {}

static void plan_dt(sk_stream *s, float *dt, const void *r, int64_t ldr, double mult,
                    const void *dt_bias, double lo, double hi, int64_t n, int64_t nh) {}

static void plan_dt_grad(sk_stream *s, void *dr, float *ddt_bias, const float *ddt, const void *r,
                         int64_t ldr, double mult, const void *dt_bias, double lo, double hi,
                         int64_t n, int64_t nh) {}

static void plan_ssd(sk_stream *s, const sk_ssd_dims *dims, void *y, float *Sf, const void *x,
                     const void *B, const void *C, const float *dt, const void *A_log,
                     const void *D, const int32_t *start, const float *S0, void *ws) {}

static void plan_ssd_grad(sk_stream *s, const sk_ssd_dims *dims, void *dx, void *dB, void *dC,
                          float *ddt, float *dA_log, float *dD, float *dS0, const void *dy,
                          const void *x, const void *B, const void *C, const float *dt,
                          const void *A_log, const void *D, const int32_t *start, const float *S0,
                          const float *dSf, void *ws) {}

static void plan_ssd_state(sk_stream *s, const sk_ssd_dims *dims, float *Sf, float *keep,
                           const void *x, const void *B, const float *dt, const void *A_log,
                           const int32_t *start, void *ws) {}

static void plan_ssd_state_grad(sk_stream *s, const sk_ssd_dims *dims, float *dS0, const void *dy,
                                const void *C, const float *dt, const void *A_log,
                                const int32_t *start, void *ws) {}

static void plan_fade_add(sk_stream *s, float *S, const float *keep, const float *F, int64_t rows,
                          int64_t cols) {}

static void plan_xent_merge(sk_stream *s, float *stats, const float *part, int64_t parts,
                            int64_t n) {}

static void plan_xent_stats(sk_stream *s, float *stats, const float *logits, int64_t ld,
                            const int32_t *label, int64_t n, int64_t v0, int64_t nv) {}

static void plan_xent_grad(sk_stream *s, float *loss, void *dlogits, const float *logits,
                           int64_t ld, const float *stats, const int32_t *label, double scale,
                           int64_t n, int64_t v0, int64_t nv) {}

static void plan_sum(sk_stream *s, double *sum, const float *x, int64_t n) {}

static void plan_sqnorm(sk_stream *s, double *out, const float *x, const int64_t *off,
                        int64_t nblk) {}

static void plan_adamw(sk_stream *s, void *w, float *p, float *m, float *v, const float *g,
                       int64_t n, const sk_adamw *h) {}

const sk_ops sk_plan_ops = {
    .name = "plan",
    .count = plan_count,
    .open = plan_open,
    .close = plan_close,
    .describe = plan_describe,
    .act = plan_act,
    .alloc = plan_alloc,
    .free = plan_free,
    .used = plan_used,
    .stream_create = plan_stream_create,
    .copy_stream_create = plan_stream_create,
    .stream_destroy = plan_stream_destroy,
    .sync = plan_sync,
    .range = plan_range,
    .event_create = plan_event_create,
    .event_destroy = plan_event_destroy,
    .record = plan_record,
    .wait = plan_wait,
    .elapsed = plan_elapsed,
    .copy = plan_copy,
    .copy2d = plan_copy2d,
    .to_host = plan_to_host,
    .from_host = plan_from_host,
    .zero = plan_zero,
    .event_done = plan_event_done,
    .host_alloc = plan_alloc,
    .host_free = plan_host_free,
    .copy_host = plan_copy,
    .copies_host = plan_copies_host,
    .share = plan_share,
    .map = plan_map,
    .unmap = plan_free,
    .event_share = plan_event_share,
    .event_map = plan_event_map,
    .total = plan_total,
    .cast = plan_cast,
    .gemm = plan_gemm,
    .gemm_choose = plan_gemm_choose,
    .bias = plan_bias,
    .bias_grad = plan_bias_grad,
    .add_f32 = plan_add_f32,
    .add = plan_add,
    .embed = plan_embed,
    .embed_grad = plan_embed_grad,
    .rmsnorm = plan_rmsnorm,
    .rmsnorm_grad = plan_rmsnorm_grad,
    .gate = plan_gate,
    .gate_stats = plan_gate_stats,
    .gate_grad_stats = plan_gate_grad_stats,
    .gate_grad = plan_gate_grad,
    .swiglu = plan_swiglu,
    .swiglu_grad = plan_swiglu_grad,
    .rope = plan_rope,
    .attention = plan_attention,
    .attention_ready = plan_attention_ready,
    .attention_ws = plan_attention_ws,
    .attention_grad = plan_attention_grad,
    .conv = plan_conv,
    .conv_grad = plan_conv_grad,
    .dt = plan_dt,
    .dt_grad = plan_dt_grad,
    .ssd_ws = plan_ssd_ws,
    .ssd = plan_ssd,
    .ssd_grad_ws = plan_ssd_grad_ws,
    .ssd_grad = plan_ssd_grad,
    .ssd_state = plan_ssd_state,
    .ssd_state_grad = plan_ssd_state_grad,
    .fade_add = plan_fade_add,
    .xent_merge = plan_xent_merge,
    .xent_stats = plan_xent_stats,
    .xent_grad = plan_xent_grad,
    .sum = plan_sum,
    .sqnorm = plan_sqnorm,
    .adamw = plan_adamw,
};
