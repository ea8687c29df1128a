/* mamba.h: the Mamba-2 (SSM) mixer (spec sections 2.4, 2.5, 3). */
#ifndef SK_MAMBA_H
#define SK_MAMBA_H
#include "src/linear.h"

typedef struct sk_mamba {
  int64_t ds, nh, P, G, N, K, Q; /* symbols of the spec; Q = mamba_chunk_size */
  int64_t cd, dip;               /* conv channels ds + 2*G*N; in_proj rows ds + cd + nh */
  bool norm, before;             /* mamba_rms_norm, mamba_norm_before_gate */
  double eps, dt_lo, dt_hi, mult[5];
  sk_linear in, out;
  int conv_w, conv_b, dt_bias, A_log, D, norm_w;
} sk_mamba;

/* What the backward pass needs; in the saved arena. */
typedef struct sk_mamba_saved {
  void *proj;  /* [n, dip]: z | x | B | C | dt before their multipliers */
  void *xBC;   /* [n, cd] after conv and SiLU */
  float *dt;   /* [n, nh] */
  void *y;     /* [n, ds] */
  void *gated; /* [n, ds] */
  float *rstd; /* [n, G] */
} sk_mamba_saved;

/* Generation: the last K-1 raw rows of x|B|C, and the state (two copies that take turns). */
typedef struct sk_mamba_cache {
  void *halo;      /* [K-1, cd] act */
  float *state[2]; /* [nh, P, N] */
} sk_mamba_cache;

void sk_mamba_add(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_mamba *s);
/* out[n,d] = beta * out + mixer(u[n,d]). cache: NULL in training. */
void sk_mamba_forward(sk_ctx *c, const sk_mamba *m, const sk_piece *p, sk_mamba_saved *s, void *out,
                      double beta, const void *u, sk_mamba_cache *cache);
/* du[n,d] = beta * du + gradient; parameters' gradients +=. */
void sk_mamba_backward(sk_ctx *c, const sk_mamba *m, const sk_piece *p, const sk_mamba_saved *s, void *du,
                       double beta, const void *dout, const void *u);
#endif
