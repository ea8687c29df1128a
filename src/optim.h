/* optim.h: AdamW with the optimizer's state cut over the dp x cp ranks (ZeRO-1). Every bucket of the registry
 * (a layer) is cut into one slice of whole blocks for each of them. A step: gradients to their owners, added
 * in rank order, bucket by bucket while the backward pass goes on; norm, clip, update of the slices; weights to
 * all, bucket by bucket before they are used.
 *
 * Rows that several tp ranks have alike (sk_shared) are first added over tp, in rank order as well. */
#ifndef SK_OPTIM_H
#define SK_OPTIM_H
#include "src/ctx.h"

enum { SK_REDUCES = 2 }; /* buckets whose gradients are under way at a time */

/* The tickets of one bucket's exchange: a send and a receive for every other rank. */
typedef struct sk_exchange {
  int bucket; /* -1: idle */
  int n;
  sk_ticket **ticket;
  float *buf; /* reduction: [parts * longest slice] what the others sent */
} sk_exchange;

typedef struct sk_optim {
  const sk_comm_ops *comm;
  sk_group *zero;       /* dp x cp, NULL with one part; not owned */
  int parts, part;
  int64_t *cut;         /* [buckets][parts + 1] flat offsets of the slices */
  int64_t *block;       /* [buckets][parts + 1] their first blocks */
  int64_t *state0;      /* [buckets + 1] where my slices start in the state arrays */
  int64_t longest;      /* slice */
  int64_t shared;       /* elements of the largest exchange of shared rows */
  float *master;        /* fp32 weights of my slices; NULL when act is fp32: the weights themselves */
  float *m, *v;
  float *shared_buf, *shared_ws;
  double *sq;           /* sums of squares of my blocks, on the device */
  double *norms;        /* [n_blocks] of all parts, on the host */
  double *sums;         /* [parameters of the whole model][tp] */
  int64_t *block_off;   /* host scratch */
  sk_exchange reduce[SK_REDUCES], *gather; /* gather[buckets] */
  int next;             /* of reduce[] */
} sk_optim;

/* Cuts the registry; needs no memory yet. n_all: parameters of the whole model. */
void sk_optim_create(sk_optim *o, const sk_registry *r, int n_all, int parts, int part);
/* Takes the state from arena a (zeroed by sk_optim_reset) and the exchange buffers from `exchange`. */
void sk_optim_bind(sk_optim *o, sk_ctx *c, const sk_comm_ops *comm, sk_group *zero, sk_arena *a,
                   sk_arena *exchange);
void sk_optim_free(sk_optim *o);

/* Elements of my slices, all buckets together. */
int64_t sk_optim_count(const sk_optim *o, const sk_registry *r);
/* My slice of a bucket: flat range [*lo, *hi), and where it starts in the state arrays. */
int64_t sk_optim_slice(const sk_optim *o, int bucket, int64_t *lo, int64_t *hi);
/* The fp32 weights of my slice of a bucket. */
float *sk_optim_master(const sk_optim *o, const sk_ctx *c, int bucket);

/* Sets what my slices of the fp32 master, where it is apart, have of weights first .. first+n-1 (host). */
void sk_optim_set_master(sk_optim *o, sk_ctx *c, int64_t first, int64_t n, const float *host);

/* m = v = 0. */
void sk_optim_reset(sk_optim *o, sk_ctx *c);

/* Collective over tp, and over dp x cp: the bucket's gradients are complete. Adds its shared rows over tp and
 * starts its reduction; at most SK_REDUCES are under way. */
void sk_optim_give(sk_optim *o, sk_ctx *c, int bucket);
/* Collective over dp x cp. Ends all reductions: my slices hold sums over all ranks, in rank order. */
void sk_optim_reduced(sk_optim *o, sk_ctx *c);
/* Collective over dp x cp and over pp x tp (model). The gradient's norm: double sums per block, added by
 * parameter in the model's order; what several ranks have alike counts once. *bad: index (in the whole model) of
 * the first parameter whose gradient is not finite, or -1. */
double sk_optim_norm(sk_optim *o, sk_ctx *c, MPI_Comm zero, MPI_Comm model, int n_all, int *bad);
/* Not collective. One AdamW step t (from 1) on my slices. gscale: clipping. */
void sk_optim_update(sk_optim *o, sk_ctx *c, const sk_config *cfg, int64_t t, double lr, double gscale);
/* Collective over dp x cp. Starts to give every rank all slices of the weights. */
void sk_optim_gather(sk_optim *o, sk_ctx *c);
/* The bucket's weights are whole from here on; bucket -1: all of them. */
void sk_optim_need(sk_optim *o, sk_ctx *c, int bucket);
#endif
