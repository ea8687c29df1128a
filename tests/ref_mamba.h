/* ref_mamba.h: the ops of the SSM mixer as plain loops in double on dense row-major arrays, for
 * tests. They are written from the model specification (docs/model.md; its sections in brackets)
 * and share nothing with the kernels. "+=", "overwrite" and which pointers may be NULL are as in
 * kernels/ops.h; the strides and the chunk length in dims are ignored. */
#ifndef SK_TESTS_REF_MAMBA_H
#define SK_TESTS_REF_MAMBA_H
#include "kernels/ops.h"

/* Convolution and SiLU (2.4 item 4, 3.5): x, y [b, T, cd], halo [b, K-1, cd] (raw), w [cd, K]. */
void ref_conv(const sk_conv_dims *dims, double *y, const double *x, const double *halo,
              const double *w, const double *bias, const int32_t *start);
void ref_conv_grad(const sk_conv_dims *dims, double *dx, double *dhalo, double *dw, double *dbias,
                   const double *dy, const double *x, const double *halo, const double *w,
                   const double *bias, const int32_t *start);

/* Step sizes (2.4 item 6, section 0, end of 3.2). */
void ref_dt(double *dt, const double *r, double mult, const double *dt_bias, double lo, double hi,
            int64_t n, int64_t nh);
void ref_dt_grad(double *dr, double *ddt_bias, const double *ddt, const double *r, double mult,
                 const double *dt_bias, double lo, double hi, int64_t n, int64_t nh);

/* Gate and gated norm (2.5, 3.5); the gradient finds rstd itself. */
void ref_gate(const sk_gate_dims *dims, double *o, double *rstd, const double *y, const double *z,
              const double *w);
void ref_gate_grad(const sk_gate_dims *dims, double *dy, double *dz, double *dw, const double *dout,
                   const double *y, const double *z, const double *w);

/* SSD token by token (3.1, 3.2): xbc [b, T, nh*P + 2*G*N] = x | B | C, dxbc alike. */
void ref_ssd(const sk_ssd_dims *dims, double *y, double *Sf, const double *xbc, const double *dt,
             const double *A_log, const double *D, const int32_t *start, const double *S0);
void ref_ssd_grad(const sk_ssd_dims *dims, double *dxbc, double *ddt, double *dA_log, double *dD,
                  double *dS0, const double *dy, const double *xbc, const double *dt,
                  const double *A_log, const double *D, const int32_t *start, const double *S0,
                  const double *dSf);
#endif
