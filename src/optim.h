/* optim.h: AdamW with the optimizer's state cut over the dp ranks (ZeRO-1): every rank owns one slice
 * of the flat index space, made of whole blocks. A step: reduce the gradients to their owners (added in
 * rank order), norm, clip, update the slice, gather the weights. */
#ifndef SK_OPTIM_H
#define SK_OPTIM_H
#include "src/ctx.h"

typedef struct sk_optim {
  MPI_Comm comm;      /* dp line; not owned */
  int parts, part;
  int64_t *lo;        /* [parts+1] where the slices start; mine is lo[part] .. lo[part+1]-1 */
  int *block0;        /* [parts+1] their first blocks */
  int64_t *block_off; /* [my blocks + 1] starts of my blocks, relative to my slice */
  int64_t piece;      /* elements per rank and message */
  float *master;      /* [slice] fp32 weights; part of the weights themselves when act is fp32 */
  float *m, *v;       /* [slice] */
  float *buf;         /* [parts * piece] for the exchanges; NULL with one part */
  double *sq;         /* [n_blocks] sums of squares, on the device */
  double *norms;      /* [n_blocks] the same of all ranks, on the host */
} sk_optim;

/* Cuts the registry; needs no memory yet. comm may be MPI_COMM_NULL when only planning. */
void sk_optim_create(sk_optim *o, const sk_registry *r, MPI_Comm comm, int parts, int part);
/* Takes the state from arena a (zeroed by sk_optim_reset) and the exchange buffer from `exchange`. */
void sk_optim_bind(sk_optim *o, sk_ctx *c, sk_arena *a, sk_arena *exchange);
void sk_optim_free(sk_optim *o);

static inline int64_t sk_optim_lo(const sk_optim *o) { return o->lo[o->part]; }
static inline int64_t sk_optim_count(const sk_optim *o) { return o->lo[o->part + 1] - o->lo[o->part]; }

/* m = v = 0. */
void sk_optim_reset(sk_optim *o, sk_ctx *c);

/* Collective over the dp line. Gradients of my slice become the sum over all ranks, in rank order. */
void sk_optim_reduce(sk_optim *o, sk_ctx *c);
/* Collective. The gradient's norm: double sums per block, added by parameter in registry order. *bad:
 * index of the first parameter whose gradient is not finite, or -1. */
double sk_optim_norm(sk_optim *o, sk_ctx *c, int *bad);
/* Not collective. One AdamW step t (from 1) on my slice. gscale: clipping. */
void sk_optim_update(sk_optim *o, sk_ctx *c, const sk_config *cfg, int64_t t, double lr, double gscale);
/* Collective. Every rank gets all slices of the weights. */
void sk_optim_gather(sk_optim *o, sk_ctx *c);
#endif
