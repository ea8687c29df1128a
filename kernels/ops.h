/* ops.h: the device table. Layers are written once against it; each backend has one const instance
 * (cpu.c here). Nothing in kernels/ knows MPI, HDF5 or decks.
 *
 * Conventions
 * - Every op is asynchronous on its stream (on the CPU it returns when done) and knows its device
 *   from the stream. Outputs come first. Nothing allocates on the device during a training step.
 * - "act" elements have the device's compute dtype (float on the CPU); `void *` pointers are act
 *   unless said otherwise; `float *` and `double *` are what they say on every device.
 * - All matrices are row-major. n = number of tokens = b * T: b sequences of T consecutive tokens.
 *   ld* is the distance in elements between the rows of consecutive tokens.
 * - "+=" in a description means the op adds to its output; otherwise the output is overwritten
 *   completely. Gradients of parameters are fp32 and always +=; gradients of activations overwrite.
 * - start[n]: for every token the index of the first token of its document. Index 0 is the first
 *   token of this piece of the sequence; negative: the document began before the piece. Token i sees
 *   token j iff start[i] <= j <= i. Never NULL.
 * - *_ws: bytes of device scratch that the op needs; a pure function of its arguments.
 * - Deterministic: the same call gives the same bits; no atomics on floats. Token sums for weight
 *   gradients of norms, conv, A_log, D, dt_bias and biases are accumulated in double on the CPU.
 * - Section numbers are those of the model specification (docs/model.md).
 * This header is in the common subset of C and C++. */
#ifndef SK_OPS_H
#define SK_OPS_H
#include "src/base.h"
#include "src/sum.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sk_dtype { SK_F32, SK_BF16 } sk_dtype;
static inline size_t sk_dtype_size(sk_dtype t) { return t == SK_F32 ? 4 : 2; }

typedef struct sk_device sk_device; /* backend-private; one per process */
typedef struct sk_stream sk_stream; /* an ordered queue of work on one device */
typedef struct sk_event sk_event;   /* a mark in a stream that another stream can wait for */

/* Device memory or an event of another process on the same node, as that process describes it. Plain
 * data: sent by the caller, in any way. */
typedef struct sk_share {
  unsigned char handle[64];
  uint64_t offset; /* of memory: from the start of its allocation */
} sk_share;

/* One piece of memory to be copied. */
typedef struct sk_copy {
  void *dst;
  const void *src;
  size_t bytes;
} sk_copy;

/* Attention: queries are tokens q0 .. q0+Tq-1 of a sequence whose keys 0 .. Tk-1 are given. */
typedef struct sk_attn_dims {
  int64_t b, Tq, Tk, q0;      /* sequences, queries and keys per sequence, first query's position */
  int64_t H, KV, hd;          /* query heads, key/value heads (H % KV == 0), head width */
  int64_t ldq, ldk, ldv, ldo; /* row strides; head j is columns j*hd .. (j+1)*hd-1 */
  double scale;               /* hd^-0.5 */
  bool whole; /* start is known to be 0 throughout, for kernels that know no documents; false is always right */
} sk_attn_dims;

/* SSD (section 3). x | B | C of a token lie in one row of stride ld (the conv's output). */
typedef struct sk_ssd_dims {
  int64_t b, T;           /* sequences, tokens per sequence (any T >= 1) */
  int64_t nh, P, G, N, Q; /* heads, head width, groups (nh % G == 0), state width, chunk length */
  int64_t ld, ldy;        /* row strides of x, B, C (and dx, dB, dC) and of y (and dy) */
} sk_ssd_dims;

/* The three column segments that share the conv: x [ds], B [G*N], C [G*N], each with the multiplier
 * that in_proj's output gets before the conv (ssm_multipliers 1..3). */
typedef struct sk_conv_dims {
  int64_t b, T, K;  /* sequences, tokens, taps */
  int64_t width[3]; /* ds, G*N, G*N; their sum is cd */
  double mult[3];
  int64_t ldx, ldy; /* row strides of x (inside in_proj's output) and of y [n, cd] */
} sk_conv_dims;

typedef struct sk_gate_dims {
  int64_t n, ds, G; /* tokens, channels, groups (contiguous blocks of ds/G channels) */
  int64_t ldz;      /* row stride of z (inside in_proj's output); y and o have stride ds */
  double zmult;     /* ssm_multipliers[0] */
  double eps;
  bool norm, before; /* norm = false: o = y * silu(z), w unused. before: norm_before_gate */
  /* Where a group's channels are shared out over ranks: the channels of a whole group (0: ds/G), and
   * what gate_stats or gate_grad_stats gave, summed over those ranks, [n, G] (NULL: nothing shared). */
  int64_t width;
  const float *whole;
} sk_gate_dims;

typedef struct sk_adamw {
  double lr, beta1, beta2, eps, wd;
  double bias1, bias2; /* 1 - beta1^t, 1 - beta2^t */
  double gscale;       /* the gradient is multiplied by this first (clipping) */
} sk_adamw;

typedef struct sk_ops {
  const char *name; /* "cpu", "cuda" */

  /* ---- device, memory, streams ---- */
  /* How many devices this process can open, each for one rank of the node; INT_MAX where ranks share
   * one (the CPU). 0: none, and *e says why and names the cure. */
  int (*count)(sk_err *e);
  /* Opens device number `index` for act elements of type `act`; NULL and *e on failure. */
  sk_device *(*open)(int index, sk_dtype act, sk_err *e);
  void (*close)(sk_device *);
  const char *(*describe)(sk_device *); /* one line for the header: model, threads or SMs, BLAS */
  sk_dtype (*act)(const sk_device *);
  /* Device memory, 256-byte aligned, contents undefined; NULL when there is not enough. */
  void *(*alloc)(sk_device *, size_t bytes);
  void (*free)(sk_device *, void *);
  /* Bytes of the device's memory that are taken, by all that run on it; 0 on the CPU, whose memory is
   * the process's. */
  size_t (*used)(sk_device *);
  sk_stream *(*stream_create)(sk_device *);
  /* A stream for copies and events alone: it has no scratch for other ops. */
  sk_stream *(*copy_stream_create)(sk_device *);
  void (*stream_destroy)(sk_stream *);
  /* A named range of the host's time line for profilers, nested; NULL ends the innermost one. */
  void (*range)(const char *name);
  void (*sync)(sk_stream *); /* the host waits until the stream is empty */
  sk_event *(*event_create)(sk_device *);
  void (*event_destroy)(sk_event *);
  void (*record)(sk_event *, sk_stream *);
  void (*wait)(sk_stream *, sk_event *); /* later work in the stream waits for the event */
  /* Seconds between two marks that were made; waits for the second. */
  double (*elapsed)(sk_event *from, sk_event *to);
  /* Host memory is plain. to_host returns when the data is there. from_host returns when the host's
   * memory may be used again; work enqueued later finds the data. */
  void (*copy)(sk_stream *, void *dst, const void *src, size_t bytes); /* device to device */
  /* Device to device: `rows` rows of `width` bytes; ldd, lds bytes from one row to the next. */
  void (*copy2d)(sk_stream *, void *dst, size_t ldd, const void *src, size_t lds, size_t width,
                 int64_t rows);
  void (*to_host)(sk_stream *, void *host, const void *dev, size_t bytes);
  void (*from_host)(sk_stream *, void *dev, const void *host, size_t bytes);
  void (*zero)(sk_stream *, void *p, size_t bytes);

  /* ---- for what passes between ranks ---- */
  /* Whether what the event marks is over; does not wait. An event that was never recorded is. */
  bool (*event_done)(sk_event *);
  /* Host memory that the device itself copies from and to; NULL when there is not enough. */
  void *(*host_alloc)(sk_device *, size_t bytes);
  void (*host_free)(sk_device *, void *);
  /* Like copy, with one side in memory of host_alloc: asynchronous for the host as well. */
  void (*copy_host)(sk_stream *, void *dst, const void *src, size_t bytes);
  /* The same from the device for n pieces of 32-bit words, at the speed of one. true: sum[i] is that of piece i, which the CPU has
   * as it copies; false: the caller takes it where it needs it. */
  bool (*copies_host)(sk_stream *, int64_t n, const sk_copy *list, sk_sum *sum);
  /* Describes the memory that p lies in to another process of this node, which maps it: map gives
   * the start of the allocation. Both give an error where the devices or the system cannot. Who owns
   * the memory frees it after the other has unmapped it. */
  int (*share)(sk_device *, const void *p, sk_share *, sk_err *e);
  void *(*map)(sk_device *, const sk_share *, sk_err *e);
  void (*unmap)(sk_device *, void *base);
  /* An event that another process can map: this one records it, that one's streams wait for it.
   * event_destroy ends either; NULL and *e where it cannot be. */
  sk_event *(*event_share)(sk_device *, sk_share *, sk_err *e);
  sk_event *(*event_map)(sk_device *, const sk_share *, sk_err *e);
  /* Bytes of the device's memory in all; 0 where there is no limit of its own (the CPU). */
  size_t (*total)(sk_device *);

  /* ---- arithmetic ---- */
  void (*cast)(sk_stream *, void *dst, sk_dtype to, const void *src, sk_dtype from, int64_t n);

  /* ---- linear algebra ---- */
  /* C[m,n] = alpha * op(A)[m,k] op(B)[k,n] + beta * C. A, B act; C has type ct. ta: A is stored [k,m];
   * tb: B is stored [n,k]. beta = 0 never reads C. */
  void (*gemm)(sk_stream *, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha,
               const void *A, int64_t lda, const void *B, int64_t ldb, double beta, void *C,
               int64_t ldc, sk_dtype ct);
  /* For measurements alone: from now on gemm uses algorithm number `choice` of those that the device's
   * library names for a product, where it names so many; -1, as at first: the device's own rule. Returns
   * how many it names at most; 0: there is no choice. */
  int (*gemm_choose)(sk_device *, int choice);
  /* y[n, cols] += scale * bias[cols];  dbias[cols] += scale * column sums of dy. */
  void (*bias)(sk_stream *, void *y, int64_t ldy, const void *bias, double scale, int64_t n,
               int64_t cols);
  void (*bias_grad)(sk_stream *, float *dbias, const void *dy, int64_t ldy, double scale, int64_t n,
                    int64_t cols);
  /* y[i] = a[i] + b[i], fp32 (rank-ordered reductions) and act; y may be a or b. */
  void (*add_f32)(sk_stream *, float *y, const float *a, const float *b, int64_t n);
  void (*add)(sk_stream *, void *y, const void *a, const void *b, int64_t n);

  /* ---- embedding (2.1): the rows v0 .. v0+nv-1 of the table are here ---- */
  /* h[n,d] = mult * E[ids - v0], 0 for ids that are not here. ids int32, on the device. */
  void (*embed)(sk_stream *, void *h, const int32_t *ids, const void *E, double mult, int64_t n,
                int64_t d, int64_t v0, int64_t nv);
  /* dE[ids - v0] += mult * dh; ids equal to pad (or not here) give nothing. pad = -1: none. */
  void (*embed_grad)(sk_stream *, float *dE, const int32_t *ids, const void *dh, double mult,
                     int64_t n, int64_t d, int64_t v0, int64_t nv, int64_t pad);

  /* ---- norms, gates, activations ---- */
  /* With res: sum = x + res (both [n,d]), else sum is not touched and x is normalised.
   * rstd[n] = rsqrt(mean(sum^2) + eps); y = (sum * rstd) * w. (2.2) */
  void (*rmsnorm)(sk_stream *, void *y, float *rstd, void *sum, const void *x, const void *res,
                  const void *w, int64_t n, int64_t d, double eps);
  /* dx[n,d] += gradient through the norm; dw[d] += . x is what was normalised. (3.5) */
  void (*rmsnorm_grad)(sk_stream *, void *dx, float *dw, const void *dy, const void *x,
                       const float *rstd, const void *w, int64_t n, int64_t d);
  /* o [n,ds] from y [n,ds] and z (2.5). w act [ds]. rstd [n,G] is written when norm. */
  void (*gate)(sk_stream *, const sk_gate_dims *, void *o, float *rstd, const void *y, const void *z,
               const void *w);
  /* ss[n,G] = this rank's sums of a^2 (a: what is normalised), for a group shared out over ranks. */
  void (*gate_stats)(sk_stream *, const sk_gate_dims *, float *ss, const void *y, const void *z);
  /* dy [n,ds], dz (stride ldz, gradient of in_proj's output: times zmult), dw[ds] +=. (3.5) */
  void (*gate_grad)(sk_stream *, const sk_gate_dims *, void *dy, void *dz, float *dw, const void *do_,
                    const void *y, const void *z, const void *w, const float *rstd);
  /* dots[n,G] = this rank's sums of e w a (section 3.5), likewise. */
  void (*gate_grad_stats)(sk_stream *, const sk_gate_dims *, float *dots, const void *do_,
                          const void *y, const void *z, const void *w);
  /* a[n,F] = up * silu(gate * mgate), gu[n,2F] = gate | up. (2.6)  The gradient may be in place:
   * dgu == gu. */
  void (*swiglu)(sk_stream *, void *a, const void *gu, double mgate, int64_t n, int64_t F);
  void (*swiglu_grad)(sk_stream *, void *dgu, const void *da, const void *gu, double mgate, int64_t n,
                      int64_t F);

  /* ---- attention (2.3) ---- */
  /* In place on x [n, heads*hd]: multiply by mult and rotate by the angle of the token's row in the
   * table [T, hd/2, 2] = cos, sin; token t of a sequence uses row t. sign = -1: backward. */
  void (*rope)(sk_stream *, void *x, int64_t ldx, const float *table, double mult, int sign, int64_t b,
               int64_t T, int64_t heads, int64_t hd);
  /* o [b*Tq, H*hd], lse[b, H, Tq] (log of the sum of exponentials of the scaled scores). Query i
   * (position q0+i) sees keys start[i] <= j <= q0+i; here start counts from key 0, so it is >= 0. */
  void (*attention)(sk_stream *, const sk_attn_dims *, void *o, float *lse, const void *q, const void *k,
                    const void *v, const int32_t *start);
  /* What a device makes once for a shape; may be called before the first step with the dims it will have, whole or
   * not. attention works without it, perhaps slower. */
  void (*attention_ready)(sk_device *, const sk_attn_dims *);
  /* dq, dk, dv have the strides of q, k, v. ws: attention_ws bytes. dk, dv are sums over the given
   * queries only.
   *
   * What scratch an op needs, here and below, depends on the kernels that the device has. NULL stands
   * for the best device that the program was compiled for, where memory is planned and none is open. */
  size_t (*attention_ws)(const sk_device *dev, sk_dtype act, const sk_attn_dims *);
  void (*attention_grad)(sk_stream *, const sk_attn_dims *, void *dq, void *dk, void *dv, const void *do_,
                         const void *q, const void *k, const void *v, const void *o, const float *lse,
                         const int32_t *start, void *ws);

  /* ---- SSM mixer (2.4, 3) ---- */
  /* y[n,cd] = silu(conv(mult * x)). w act [cd,K], tap K-1 is the current token; bias act [cd] or NULL.
   * halo: act [b, K-1, cd], the raw rows before the piece (NULL: zeros). Taps that reach before
   * start[t] count as 0. */
  void (*conv)(sk_stream *, const sk_conv_dims *, void *y, const void *x, const void *halo, const void *w,
               const void *bias, const int32_t *start);
  /* dx: stride ldx, gradient of the raw x (times mult). dhalo like halo, NULL when halo is.
   * dw[cd,K] +=, dbias[cd] += (NULL when bias is). */
  void (*conv_grad)(sk_stream *, const sk_conv_dims *, void *dx, void *dhalo, float *dw, float *dbias,
                    const void *dy, const void *x, const void *halo, const void *w, const void *bias,
                    const int32_t *start);
  /* dt[n,nh] = clamp(softplus(mult * r + dt_bias), lo, hi). r has row stride ldr. (2.4 item 6) */
  void (*dt)(sk_stream *, float *dt, const void *r, int64_t ldr, double mult, const void *dt_bias,
             double lo, double hi, int64_t n, int64_t nh);
  /* dr: stride ldr, times mult; ddt_bias[nh] +=. */
  void (*dt_grad)(sk_stream *, void *dr, float *ddt_bias, const float *ddt, const void *r, int64_t ldr,
                  double mult, const void *dt_bias, double lo, double hi, int64_t n, int64_t nh);
  /* y[n, nh*P] including D * x. S0: state before the piece [b,nh,P,N] fp32 or NULL (zero); Sf: state
   * after it, or NULL. dt fp32 [n,nh]; A_log, D act [nh]. (3.1, 3.3) */
  size_t (*ssd_ws)(const sk_device *dev, sk_dtype act, const sk_ssd_dims *);
  void (*ssd)(sk_stream *, const sk_ssd_dims *, void *y, float *Sf, const void *x, const void *B,
              const void *C, const float *dt, const void *A_log, const void *D, const int32_t *start,
              const float *S0, void *ws);
  /* dx, dB, dC (stride ld), ddt fp32 [n,nh], dA_log[nh] +=, dD[nh] +=, dS0 (NULL when not wanted).
   * dSf: gradient of Sf or NULL (zero). (3.2, 3.4) */
  size_t (*ssd_grad_ws)(const sk_device *dev, sk_dtype act, const sk_ssd_dims *);
  void (*ssd_grad)(sk_stream *, const sk_ssd_dims *, void *dx, void *dB, void *dC, float *ddt,
                   float *dA_log, float *dD, float *dS0, const void *dy, const void *x, const void *B,
                   const void *C, const float *dt, const void *A_log, const void *D,
                   const int32_t *start, const float *S0, const float *dSf, void *ws);

  /* A sequence in pieces on several ranks (section 4). What the piece adds to the state, Sf[b,nh,P,N] from
   * a zero state before it, and keep[b,nh] = exp of its total log decay (0 when a document begins in
   * it): the state after it is keep * S0 + Sf. ws: ssd_ws bytes. */
  void (*ssd_state)(sk_stream *, const sk_ssd_dims *, float *Sf, float *keep, const void *x,
                    const void *B, const float *dt, const void *A_log, const int32_t *start, void *ws);
  /* dS0[b,nh,P,N]: gradient of the state before the piece through the piece's own outputs; the whole
   * gradient is dS0 + keep * (gradient of the state after it). ws: ssd_grad_ws bytes. */
  void (*ssd_state_grad)(sk_stream *, const sk_ssd_dims *, float *dS0, const void *dy, const void *C,
                         const float *dt, const void *A_log, const int32_t *start, void *ws);
  /* S[i,:] = keep[i] * S[i,:] + F[i,:], i < rows. fp32. */
  void (*fade_add)(sk_stream *, float *S, const float *keep, const float *F, int64_t rows, int64_t cols);

  /* ---- loss over one slice of n tokens (2.6); logits fp32 [n, nv] for vocabulary v0 .. v0+nv-1, in rows
   * of stride ld ---- */
  /* stats[3][n]: max, sum of exp(logit - max), the label's logit (0 when it is not here). label < 0:
   * token not counted. */
  void (*xent_stats)(sk_stream *, float *stats, const float *logits, int64_t ld, const int32_t *label,
                     int64_t n, int64_t v0, int64_t nv);
  /* Statistics over the whole vocabulary from those of its `parts` parts, part[parts][3][n]. */
  void (*xent_merge)(sk_stream *, float *stats, const float *part, int64_t parts, int64_t n);
  /* From statistics over the whole vocabulary: loss[n] = log(sum) + max - label's logit (0 when not
   * counted) and dlogits = scale * (softmax - onehot), act, rows of stride ld (may be the same
   * memory as logits when act is fp32; NULL: loss only). */
  void (*xent_grad)(sk_stream *, float *loss, void *dlogits, const float *logits, int64_t ld,
                    const float *stats, const int32_t *label, double scale, int64_t n, int64_t v0,
                    int64_t nv);
  /* *sum += x[0] + ... + x[n-1] in index order (double, on the device). */
  void (*sum)(sk_stream *, double *sum, const float *x, int64_t n);

  /* ---- optimizer, fp32 ---- */
  /* out[i] = sum of squares of x[off[i] .. off[i+1]-1] in double; off: host array of nblk+1. Zeros at
   * the end of a block change no bit: how much padding follows a parameter depends on pp. */
  void (*sqnorm)(sk_stream *, double *out, const float *x, const int64_t *off, int64_t nblk);
  /* AdamW with decoupled weight decay (6.2) on n elements; w: act copy of p, or NULL when act is fp32
   * and p is the weight itself. */
  void (*adamw)(sk_stream *, void *w, float *p, float *m, float *v, const float *g, int64_t n,
                const sk_adamw *);
} sk_ops;

extern const sk_ops sk_cpu_ops;     /* cpu.c */
extern const sk_ops *const sk_cuda; /* cuda.c; NULL in a build without CUDA */
extern const char *const sk_cuda_built; /* "CUDA 13.0 for 90a"; NULL likewise */

/* plan.c: a device on which every op does nothing, so that running a training step only measures
 * memory. Scratch sizes are those of `target` and its device, borrowed, or NULL where none is open. One
 * at a time. */
extern const sk_ops sk_plan_ops;
sk_device *sk_plan_open(const sk_ops *target, const sk_device *dev, sk_dtype act);

/* false, with the entry's number, when a table has a NULL entry (C does not warn of those). */
bool sk_ops_complete(const sk_ops *, int *missing);

#ifdef __cplusplus
}
#endif
#endif
