/* cpu_mamba.h: the CPU device's entries for the SSM mixer, and what the two SSD files share; private
 * to kernels/. The contract of the entries is in ops.h. */
#ifndef SK_CPU_MAMBA_H
#define SK_CPU_MAMBA_H
#include "kernels/cpu.h"

/* cpu_conv.c */
void sk_cpu_conv(sk_stream *s, const sk_conv_dims *dims, void *y, const void *x, const void *halo,
                 const void *w, const void *bias, const int32_t *start);
void sk_cpu_conv_grad(sk_stream *s, const sk_conv_dims *dims, void *dx, void *dhalo, float *dw,
                      float *dbias, const void *dy, const void *x, const void *halo, const void *w,
                      const void *bias, const int32_t *start);
void sk_cpu_dt(sk_stream *s, float *dt, const void *r, int64_t ldr, double mult,
               const void *dt_bias, double lo, double hi, int64_t n, int64_t nh);
void sk_cpu_dt_grad(sk_stream *s, void *dr, float *ddt_bias, const float *ddt, const void *r,
                    int64_t ldr, double mult, const void *dt_bias, double lo, double hi, int64_t n,
                    int64_t nh);

/* cpu_gate.c */
void sk_cpu_gate(sk_stream *s, const sk_gate_dims *dims, void *o, float *rstd, const void *y,
                 const void *z, const void *w);
void sk_cpu_gate_stats(sk_stream *s, const sk_gate_dims *dims, float *ss, const void *y,
                       const void *z);
void sk_cpu_gate_grad_stats(sk_stream *s, const sk_gate_dims *dims, float *dots, const void *dout,
                            const void *y, const void *z, const void *w);
void sk_cpu_gate_grad(sk_stream *s, const sk_gate_dims *dims, void *dy, void *dz, float *dw,
                      const void *dout, const void *y, const void *z, const void *w,
                      const float *rstd);

/* cpu_ssd.c, cpu_ssd_grad.c */
size_t sk_cpu_ssd_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *dims);
void sk_cpu_ssd(sk_stream *s, const sk_ssd_dims *dims, void *y, float *Sf, const void *x,
                const void *B, const void *C, const float *dt, const void *A_log, const void *D,
                const int32_t *start, const float *S0, void *ws);
size_t sk_cpu_ssd_grad_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *dims);
void sk_cpu_ssd_grad(sk_stream *s, const sk_ssd_dims *dims, void *dx, void *dB, void *dC,
                     float *ddt, float *dA_log, float *dD, float *dS0, const void *dy,
                     const void *x, const void *B, const void *C, const float *dt,
                     const void *A_log, const void *D, const int32_t *start, const float *S0,
                     const float *dSf, void *ws);
void sk_cpu_ssd_state(sk_stream *s, const sk_ssd_dims *dims, float *Sf, float *keep, const void *x,
                      const void *B, const float *dt, const void *A_log, const int32_t *start,
                      void *ws);
void sk_cpu_ssd_state_grad(sk_stream *s, const sk_ssd_dims *dims, float *dS0, const void *dy,
                           const void *C, const float *dt, const void *A_log, const int32_t *start,
                           void *ws);
void sk_cpu_fade_add(sk_stream *s, float *S, const float *keep, const float *F, int64_t rows,
                     int64_t cols);
#endif
