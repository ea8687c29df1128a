/* ref_ops.h: the ops of kernels/ops.h as plain loops in double on dense row-major arrays, for
 * tests. They are written from the model specification (docs/model.md; its sections in brackets)
 * and share nothing with the kernels. "+=" and "overwrite" are as in ops.h. */
#ifndef SK_TESTS_REF_OPS_H
#define SK_TESTS_REF_OPS_H
#include "kernels/ops.h"

/* C = alpha op(A) op(B) + beta C */
void ref_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const double *A,
              const double *B, double beta, double *C);

/* Embedding and its gradient (2.1). */
void ref_embed(double *h, const int32_t *ids, const double *E, double mult, int64_t n, int64_t d,
               int64_t v0, int64_t nv);
void ref_embed_grad(double *dE, const int32_t *ids, const double *dh, double mult, int64_t n,
                    int64_t d, int64_t v0, int64_t nv, int64_t pad);

/* RMSNorm (2.2); the gradient finds rstd itself. */
void ref_rmsnorm(double *y, double *rstd, const double *x, const double *w, int64_t n, int64_t d,
                 double eps);
void ref_rmsnorm_grad(double *dx, double *dw, const double *dy, const double *x, const double *w,
                      int64_t n, int64_t d, double eps);

/* a = up * silu(gate * mgate), gu = gate | up (2.6) */
void ref_swiglu(double *a, const double *gu, double mgate, int64_t n, int64_t F);
void ref_swiglu_grad(double *dgu, const double *da, const double *gu, double mgate, int64_t n,
                     int64_t F);

/* Rotary embedding in place (2.3); sign -1 is the gradient. */
void ref_rope(double *x, const double *table, double mult, int sign, int64_t b, int64_t T,
              int64_t heads, int64_t hd);

/* Attention (2.3); the strides in dims are ignored: everything is dense. */
void ref_attention(const sk_attn_dims *dims, double *o, double *lse, const double *q,
                   const double *k, const double *v, const int32_t *start);
void ref_attention_grad(const sk_attn_dims *dims, double *dq, double *dk, double *dv,
                        const double *dout, const double *q, const double *k, const double *v,
                        const int32_t *start);

/* Cross-entropy over a whole vocabulary of V (2.6): loss and scale * its gradient (may be NULL). */
void ref_xent(double *loss, double *dlogits, const double *logits, const int32_t *label,
              double scale, int64_t n, int64_t V);

/* One step of AdamW (6.2). */
void ref_adamw(double *p, double *m, double *v, const double *g, int64_t n, const sk_adamw *h);
#endif
