/* cpu.h: what the files of the CPU device share; private to kernels/. The contract of every op is
 * in ops.h. Work is done when an op returns, so streams hold no queue and events a time.
 *
 * Threads: loops are split so that the bits of a result do not depend on the number of threads.
 * Sums over tokens are cut into blocks that depend on the number of tokens alone; the partial sums
 * are double and are added in the order of the blocks. */
#ifndef SK_CPU_H
#define SK_CPU_H
#include "kernels/ops.h"

struct sk_device {
  char text[400]; /* describe() */
};

struct sk_stream {
  sk_device *device;
  void *scratch; /* grown on demand; see sk_cpu_scratch */
  size_t scratch_bytes;
};

struct sk_event {
  double at; /* sk_now() when it was recorded */
};

/* Host scratch of at least `bytes`, 256-byte aligned, contents undefined, valid until the next call
 * on this stream. Call it outside parallel regions. Never NULL. */
void *sk_cpu_scratch(sk_stream *s, size_t bytes);

/* How to cut n tokens for a sum: count blocks of `size` tokens (the last may be shorter). */
typedef struct sk_cpu_blocks {
  int64_t size, count;
} sk_cpu_blocks;
sk_cpu_blocks sk_cpu_cut(int64_t n);

/* out[c] += scale * (part[0][c] + part[1][c] + ...), part double [count, cols]. */
void sk_cpu_reduce(float *out, const double *part, int64_t count, int64_t cols, double scale);

static inline int64_t sk_min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static inline int64_t sk_max64(int64_t a, int64_t b) {
  return a > b ? a : b;
}
static inline int64_t sk_ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/* cpu_gemm.c: gives the BLAS `threads` threads and writes its name, version and kernel to text. */
void sk_cpu_blas_open(int threads, char *text, size_t size);
void sk_cpu_gemm(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha,
                 const void *A, int64_t lda, const void *B, int64_t ldb, double beta, void *C,
                 int64_t ldc, sk_dtype ct);
void sk_cpu_bias(sk_stream *s, void *y, int64_t ldy, const void *bias, double scale, int64_t n,
                 int64_t cols);
void sk_cpu_bias_grad(sk_stream *s, float *dbias, const void *dy, int64_t ldy, double scale,
                      int64_t n, int64_t cols);
void sk_cpu_add_f32(sk_stream *s, float *y, const float *a, const float *b, int64_t n);
void sk_cpu_add(sk_stream *s, void *y, const void *a, const void *b, int64_t n);

/* cpu_embed.c */
void sk_cpu_embed(sk_stream *s, void *h, const int32_t *ids, const void *E, double mult, int64_t n,
                  int64_t d, int64_t v0, int64_t nv);
void sk_cpu_embed_grad(sk_stream *s, float *dE, const int32_t *ids, const void *dh, double mult,
                       int64_t n, int64_t d, int64_t v0, int64_t nv, int64_t pad);

/* cpu_norm.c */
void sk_cpu_rmsnorm(sk_stream *s, void *y, float *rstd, void *sum, const void *x, const void *res,
                    const void *w, int64_t n, int64_t d, double eps);
void sk_cpu_rmsnorm_grad(sk_stream *s, void *dx, float *dw, const void *dy, const void *x,
                         const float *rstd, const void *w, int64_t n, int64_t d);
void sk_cpu_swiglu(sk_stream *s, void *a, const void *gu, double mgate, int64_t n, int64_t F);
void sk_cpu_swiglu_grad(sk_stream *s, void *dgu, const void *da, const void *gu, double mgate,
                        int64_t n, int64_t F);

/* cpu_attention.c */
void sk_cpu_rope(sk_stream *s, void *x, int64_t ldx, const float *table, double mult, int sign,
                 int64_t b, int64_t T, int64_t heads, int64_t hd);
void sk_cpu_attention(sk_stream *s, const sk_attn_dims *dims, void *o, float *lse, const void *q,
                      const void *k, const void *v, const int32_t *start);
size_t sk_cpu_attention_ws(const sk_device *dev, sk_dtype act, const sk_attn_dims *dims);
void sk_cpu_attention_grad(sk_stream *s, const sk_attn_dims *dims, void *dq, void *dk, void *dv,
                           const void *do_, const void *q, const void *k, const void *v,
                           const void *o, const float *lse, const int32_t *start, void *ws);

/* cpu_loss.c */
void sk_cpu_xent_stats(sk_stream *s, float *stats, const float *logits, int64_t ld,
                       const int32_t *label, int64_t n, int64_t v0, int64_t nv);
void sk_cpu_xent_merge(sk_stream *s, float *stats, const float *part, int64_t parts, int64_t n);
void sk_cpu_xent_grad(sk_stream *s, float *loss, void *dlogits, const float *logits, int64_t ld,
                      const float *stats, const int32_t *label, double scale, int64_t n, int64_t v0,
                      int64_t nv);
void sk_cpu_sum(sk_stream *s, double *sum, const float *x, int64_t n);

/* cpu_optim.c */
void sk_cpu_sqnorm(sk_stream *s, double *out, const float *x, const int64_t *off, int64_t nblk);
void sk_cpu_adamw(sk_stream *s, void *w, float *p, float *m, float *v, const float *g, int64_t n,
                  const sk_adamw *h);
#endif
