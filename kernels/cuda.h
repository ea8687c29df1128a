/* cuda.h: what the files of the CUDA device share; private to kernels/cuda*. The contract of every
 * op is in ops.h. cuda.c (C11) has the table, memory, streams, events and cuBLASLt; the kernels and
 * their launchers are in cuda_*.cu, one family of ops each. A launcher has the signature of its
 * table entry, enqueues on the stream and returns; it never waits and never allocates.
 *
 * act is float or bf16 (sk_cuda_act); arithmetic, states, decays, softmax and sums are fp32.
 * Everything is deterministic: no atomics on floats; sums over tokens are cut into blocks that
 * depend on the sizes alone and added in the order of the blocks. Element offsets are int64_t. This
 * header is in the common subset of C and C++. */
#ifndef SK_CUDA_H
#define SK_CUDA_H
#include <cuda_runtime.h>
#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fatal with place and CUDA's message when a runtime call fails. After a launch:
 * SK_CUDA(cudaGetLastError()). */
void sk_cuda_check(cudaError_t rc, const char *what, const char *file, int line);
#define SK_CUDA(call) sk_cuda_check((call), #call, __FILE__, __LINE__)

struct sk_event {
  cudaEvent_t event;
};

cudaStream_t sk_cuda_stream(sk_stream *s);
sk_dtype sk_cuda_act(sk_stream *s);
int sk_cuda_sms(sk_stream *s); /* streaming multiprocessors of the device */
int sk_cuda_arch(sk_stream *s); /* that its code was compiled for: 80, 90, 100 ... */
sk_device *sk_cuda_device(sk_stream *s);

/* What the choice between kernels goes by. d may be NULL, as in ops.h. groups: the code that the GPU
 * runs multiplies by warpgroups (cuda_arch.h). shared: bytes of shared memory that a block may have,
 * at least SK_CUDA_SHARED. */
enum { SK_CUDA_SHARED = 140 << 10 };
bool sk_cuda_groups(const sk_device *d);
size_t sk_cuda_shared(const sk_device *d);

/* Device scratch of the stream, 256-byte aligned, contents undefined, valid until the next call on
 * this stream: SK_CUDA_SCRATCH bytes exist from the start; asking for more is fatal. For partial
 * sums. */
enum { SK_CUDA_SCRATCH = 64 << 20 };
void *sk_cuda_scratch(sk_stream *s, size_t bytes);

/* cuda_gemm.c: the library's handle and the algorithms chosen so far; one per device. text: its
 * name. */
typedef struct sk_cuda_blas sk_cuda_blas;
sk_cuda_blas *sk_cuda_blas_open(char *text, size_t size);
void sk_cuda_blas_close(sk_cuda_blas *b);
sk_cuda_blas *sk_cuda_blas_of(sk_stream *s);
int sk_cuda_blas_choose(sk_cuda_blas *b, int choice); /* sk_ops.gemm_choose */
/* The library's scratch of this stream. */
enum { SK_CUDA_WORKSPACE = 32 << 20 };
void *sk_cuda_workspace(sk_stream *s);

/* cudnn.h: the other library; NULL without. */
struct sk_cudnn *sk_cuda_cudnn_of(sk_stream *s);

/* cuda_share.c: pinned memory, and what other processes of the node may use. */
bool sk_cuda_event_done(sk_event *ev);
void *sk_cuda_host_alloc(sk_device *d, size_t bytes);
void sk_cuda_host_free(sk_device *d, void *p);
void sk_cuda_copy_host(sk_stream *s, void *dst, const void *src, size_t bytes);
bool sk_cuda_copies_host(sk_stream *s, int64_t n, const sk_copy *list, sk_sum *sum);
int sk_cuda_share(sk_device *d, const void *p, sk_share *out, sk_err *e);
void *sk_cuda_map(sk_device *d, const sk_share *s, sk_err *e);
void sk_cuda_unmap(sk_device *d, void *base);
sk_event *sk_cuda_event_share(sk_device *d, sk_share *out, sk_err *e);
sk_event *sk_cuda_event_map(sk_device *d, const sk_share *s, sk_err *e);
size_t sk_cuda_total(sk_device *d);

/* cuda_misc.cu: what the code that this program has for the current GPU was compiled for; an error
 * when it has none. */
typedef struct sk_cuda_code {
  int arch;
  bool groups;
} sk_cuda_code;
cudaError_t sk_cuda_probe(sk_cuda_code *code);

/* cuda_range.c: sk_ops.range, for Nsight. */
void sk_cuda_range(const char *name);

/* ---- launchers; each has the signature and the contract of its table entry ---- */

/* cuda_gemm.c: cuBLASLt; cuda_misc.cu: a plain kernel for what it refuses. */
void sk_cuda_gemm(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha,
                  const void *A, int64_t lda, const void *B, int64_t ldb, double beta, void *C,
                  int64_t ldc, sk_dtype ct);
void sk_cuda_gemm_plain(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k,
                        double alpha, const void *A, int64_t lda, const void *B, int64_t ldb,
                        double beta, void *C, int64_t ldc, sk_dtype ct);

/* cuda_misc.cu */
void sk_cuda_cast(sk_stream *s, void *dst, sk_dtype to, const void *src, sk_dtype from, int64_t n);
void sk_cuda_bias(sk_stream *s, void *y, int64_t ldy, const void *bias, double scale, int64_t n,
                  int64_t cols);
void sk_cuda_bias_grad(sk_stream *s, float *dbias, const void *dy, int64_t ldy, double scale,
                       int64_t n, int64_t cols);
void sk_cuda_add_f32(sk_stream *s, float *y, const float *a, const float *b, int64_t n);
void sk_cuda_add(sk_stream *s, void *y, const void *a, const void *b, int64_t n);
void sk_cuda_rope(sk_stream *s, void *x, int64_t ldx, const float *table, double mult, int sign,
                  int64_t b, int64_t T, int64_t heads, int64_t hd);
void sk_cuda_dt(sk_stream *s, float *dt, const void *r, int64_t ldr, double mult,
                const void *dt_bias, double lo, double hi, int64_t n, int64_t nh);
void sk_cuda_dt_grad(sk_stream *s, void *dr, float *ddt_bias, const float *ddt, const void *r,
                     int64_t ldr, double mult, const void *dt_bias, double lo, double hi, int64_t n,
                     int64_t nh);
void sk_cuda_fade_add(sk_stream *s, float *S, const float *keep, const float *F, int64_t rows,
                      int64_t cols);

/* cuda_embed.cu */
void sk_cuda_embed(sk_stream *s, void *h, const int32_t *ids, const void *E, double mult, int64_t n,
                   int64_t d, int64_t v0, int64_t nv);
void sk_cuda_embed_grad(sk_stream *s, float *dE, const int32_t *ids, const void *dh, double mult,
                        int64_t n, int64_t d, int64_t v0, int64_t nv, int64_t pad);

/* cuda_norm.cu */
void sk_cuda_rmsnorm(sk_stream *s, void *y, float *rstd, void *sum, const void *x, const void *res,
                     const void *w, int64_t n, int64_t d, double eps);
void sk_cuda_rmsnorm_grad(sk_stream *s, void *dx, float *dw, const void *dy, const void *x,
                          const float *rstd, const void *w, int64_t n, int64_t d);
void sk_cuda_swiglu(sk_stream *s, void *a, const void *gu, double mgate, int64_t n, int64_t F);
void sk_cuda_swiglu_grad(sk_stream *s, void *dgu, const void *da, const void *gu, double mgate,
                         int64_t n, int64_t F);

/* cuda_gate.cu */
void sk_cuda_gate(sk_stream *s, const sk_gate_dims *dims, void *o, float *rstd, const void *y,
                  const void *z, const void *w);
void sk_cuda_gate_stats(sk_stream *s, const sk_gate_dims *dims, float *ss, const void *y,
                        const void *z);
void sk_cuda_gate_grad(sk_stream *s, const sk_gate_dims *dims, void *dy, void *dz, float *dw,
                       const void *dout, const void *y, const void *z, const void *w,
                       const float *rstd);
void sk_cuda_gate_grad_stats(sk_stream *s, const sk_gate_dims *dims, float *dots, const void *dout,
                             const void *y, const void *z, const void *w);

/* cuda_loss.cu: loss and optimizer */
void sk_cuda_xent_stats(sk_stream *s, float *stats, const float *logits, int64_t ld,
                        const int32_t *label, int64_t n, int64_t v0, int64_t nv);
void sk_cuda_xent_merge(sk_stream *s, float *stats, const float *part, int64_t parts, int64_t n);
void sk_cuda_xent_grad(sk_stream *s, float *loss, void *dlogits, const float *logits, int64_t ld,
                       const float *stats, const int32_t *label, double scale, int64_t n,
                       int64_t v0, int64_t nv);
void sk_cuda_sum(sk_stream *s, double *sum, const float *x, int64_t n);
void sk_cuda_sqnorm(sk_stream *s, double *out, const float *x, const int64_t *off, int64_t nblk);
void sk_cuda_adamw(sk_stream *s, void *w, float *p, float *m, float *v, const float *g, int64_t n,
                   const sk_adamw *h);

/* cuda_attention.cu, cuda_attention_grad.cu */
void sk_cuda_attention(sk_stream *s, const sk_attn_dims *dims, void *o, float *lse, const void *q,
                       const void *k, const void *v, const int32_t *start);
size_t sk_cuda_attention_ws(const sk_device *dev, sk_dtype act, const sk_attn_dims *dims);
void sk_cuda_attention_grad(sk_stream *s, const sk_attn_dims *dims, void *dq, void *dk, void *dv,
                            const void *dout, const void *q, const void *k, const void *v,
                            const void *o, const float *lse, const int32_t *start, void *ws);

/* cuda_conv.cu */
void sk_cuda_conv(sk_stream *s, const sk_conv_dims *dims, void *y, const void *x, const void *halo,
                  const void *w, const void *bias, const int32_t *start);
void sk_cuda_conv_grad(sk_stream *s, const sk_conv_dims *dims, void *dx, void *dhalo, float *dw,
                       float *dbias, const void *dy, const void *x, const void *halo, const void *w,
                       const void *bias, const int32_t *start);

/* cuda_ssd.cu, cuda_ssd_grad.cu */
size_t sk_cuda_ssd_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *dims);
void sk_cuda_ssd(sk_stream *s, const sk_ssd_dims *dims, void *y, float *Sf, const void *x,
                 const void *B, const void *C, const float *dt, const void *A_log, const void *D,
                 const int32_t *start, const float *S0, void *ws);
size_t sk_cuda_ssd_grad_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *dims);
void sk_cuda_ssd_grad(sk_stream *s, const sk_ssd_dims *dims, void *dx, void *dB, void *dC,
                      float *ddt, float *dA_log, float *dD, float *dS0, const void *dy,
                      const void *x, const void *B, const void *C, const float *dt,
                      const void *A_log, const void *D, const int32_t *start, const float *S0,
                      const float *dSf, void *ws);
void sk_cuda_ssd_state(sk_stream *s, const sk_ssd_dims *dims, float *Sf, float *keep, const void *x,
                       const void *B, const float *dt, const void *A_log, const int32_t *start,
                       void *ws);
void sk_cuda_ssd_state_grad(sk_stream *s, const sk_ssd_dims *dims, float *dS0, const void *dy,
                            const void *C, const float *dt, const void *A_log, const int32_t *start,
                            void *ws);

#ifdef __cplusplus
}
#endif
#endif
