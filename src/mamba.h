/* mamba.h: the Mamba-2 (SSM) mixer (spec sections 2.4, 2.5, 3, 4), this rank's heads. In steps, so that the
 * exchanges over cp (the conv's halo, the states between segments) run beside the other branch of the mixer;
 * without cp the steps follow each other. */
#ifndef SK_MAMBA_H
#define SK_MAMBA_H
#include "src/linear.h"

typedef struct sk_mamba {
  int64_t ds, nh, G;    /* of this rank */
  int64_t P, N, K, Q;   /* symbols of the spec; Q = mamba_chunk_size */
  int64_t cd, dip;      /* conv channels ds + 2*G*N; row stride of proj: in_proj's rows ds + cd + nh, and padding */
  int64_t all_G, G0, group_width; /* groups of all ranks, this rank's first one, its channels ds/G */
  bool norm, before;    /* mamba_rms_norm, mamba_norm_before_gate */
  bool shared_norm;     /* a group's channels are shared out over tp ranks */
  double eps, dt_lo, dt_hi, mult[5];
  sk_linear in, out;
  int conv_w, conv_b, dt_bias, A_log, D, norm_w;
} sk_mamba;

/* What the backward pass needs; in the saved arena. xBC and gated are made again under selective
 * recomputation. */
typedef struct sk_mamba_saved {
  void *proj;  /* [n, dip]: z | x | B | C | dt before their multipliers */
  void *xBC;   /* [n, cd] after conv and SiLU */
  float *dt;   /* [n, nh] */
  void *y;     /* [n, ds] */
  void *gated; /* [n, ds] */
  float *rstd; /* [n, G] */
  void *halo;  /* cp: [2][b, K-1, cd] raw rows before each piece */
  float *S0;   /* cp: [2][b, nh, P, N] states before each piece */
  float *keep; /* cp: [2][b, nh] how much of it the piece keeps */
} sk_mamba_saved;

/* Generation: the last K-1 raw rows of x|B|C, and the state (two copies that take turns). */
typedef struct sk_mamba_cache {
  void *halo;      /* [K-1, cd] act */
  float *state[2]; /* [nh, P, N] */
} sk_mamba_cache;

/* Between the steps of one pass; in scratch. */
typedef struct sk_mamba_flight {
  sk_ticket *ticket;
  void *halo;          /* cp: [cp][2][b, K-1, cd] as gathered */
  float *state;        /* cp: [cp][2] states and keeps as gathered */
  void *dproj, *dgated, *dy;
} sk_mamba_flight;

/* Whether every tp rank's SSM heads are spread evenly over the groups they use. */
bool sk_mamba_fits(const sk_model_cfg *m, int tp);

void sk_mamba_add(sk_registry *r, const sk_model_cfg *m, int64_t layer, sk_mamba *s);

/* 1. in_proj of this rank's own rows of u[n,d], beside the gather. */
void sk_mamba_own(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s, const sk_gathering *u);
/* 2. After the gather: in_proj of the other rows; starts the exchange of the halo. */
void sk_mamba_begin(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                    sk_mamba_flight *f, const sk_gathering *u);
/* 3. conv, dt; starts the exchange of states. cache: NULL in training. */
void sk_mamba_middle(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                     sk_mamba_flight *f, sk_mamba_cache *cache);
/* 4. SSD and gate. */
void sk_mamba_end(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                  sk_mamba_flight *f, sk_mamba_cache *cache);
/* 5. out[n,d] = beta * out + out_proj(gated), without out_proj's bias; a partial sum under tp. */
void sk_mamba_out(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s, void *out,
                  double beta);

/* Backward: 1. from dout[n,d] to the SSD's output; starts the exchange of the states' gradients. 2. SSD and
 * conv; starts the exchange of the halo's gradient. 3. du[n,d] = beta * du + gradient. 4. weight gradients of
 * in_proj from u[n,d]. Other parameters' gradients +=. */
void sk_mamba_back_begin(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_saved *s,
                         sk_mamba_flight *f, const void *dout);
void sk_mamba_back_core(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_saved *s,
                        sk_mamba_flight *f);
void sk_mamba_back_end(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f, void *du,
                       double beta);
void sk_mamba_wgrad(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const sk_mamba_flight *f,
                    const void *u);

/* mamba_cp.c: the exchanges over cp, two segments on every rank; sizes do not depend on their length. */
void sk_mamba_halo_send(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f,
                        const void *proj);
/* halo[2][b, K-1, cd] = the rows before each piece (zeros before the sequence). */
void sk_mamba_halo_take(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f,
                        void *halo);
/* Gradients of the rows before each piece go back to who has those rows. */
void sk_mamba_dhalo_send(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f,
                         void *dhalo);
/* Adds them to dproj. */
void sk_mamba_dhalo_take(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f);
/* The place of piece `half`'s own state [b,nh,P,N] and keep [b,nh] in the message, for sk_mamba_state_send. */
float *sk_mamba_state_slot(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f,
                           int half, float **keep);
void sk_mamba_state_send(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f);
/* S[2][b,nh,P,N] = states before each piece: an exclusive scan over the segments. reverse: gradients of the
 * states after each piece, from the last segment to the first. */
void sk_mamba_state_take(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f, float *S,
                         bool reverse);
#endif
