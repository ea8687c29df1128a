/* parity.h: one short training run on one process grid, in memory and without files, and what it
 * leaves for comparing with the run of one rank. tests/parity.c says what must agree; parity_run.c
 * trains; parity_cases.c lists the models and the grids. */
#ifndef SK_PARITY_H
#define SK_PARITY_H
#include "src/engine.h"

enum { PARITY_STEPS = 3, PARITY_PARAMS = 192 };

/* The first models are for all kinds of grids, the last two of them (8 layers) for all grids of at
 * most 8 ranks; the other models are each for something of its own. */
enum { PARITY_WIDE = 30, PARITY_ALL_GRIDS = 31 };

/* Where documents begin in the sequences. S: the model's `segment`. */
enum {
  PARITY_WHOLE,    /* nowhere: documents are not isolated */
  PARITY_BORDERS,  /* on multiples of S */
  PARITY_INSIDE,   /* one token after and one before multiples of S */
  PARITY_SPANNING, /* near both ends of the sequence, so that one spans the segments between */
  PARITY_SHORT,    /* at every other token or so: many have one token, which counts nothing */
  PARITY_MIXED     /* by sequence, each of the above */
};

typedef struct parity_model {
  char name[64];
  sk_config cfg; /* without parallel and train.micro_batch; owns cfg.layer */
  int documents;
  int64_t segment;
} parity_model;

typedef struct parity_case {
  int model;
  int n[SK_NAXES];
  int schedule, virtual_stages, recompute;
  int64_t micro_batch;
  const char *why; /* what it is there for, or "" */
} parity_case;

/* full[]: arrays of whole parameters, at the offsets of the engine's registry `all`. */
typedef struct parity_result {
  int n_params;
  char name[PARITY_PARAMS][96];
  int64_t offset[PARITY_PARAMS + 1]; /* of parameter i in full[]; what lies between is zero */
  int64_t count[PARITY_PARAMS];
  double loss[1 + PARITY_STEPS], norm[1 + PARITY_STEPS]; /* the gradient step's come first */
  double eval;
  float *grad;   /* full array of the gradient step, on rank 0; owned */
  float *weight; /* full array at the end, likewise */
  float *moment; /* Adam's first at the end, likewise: bits that the weights round away */
  int replica;   /* first parameter whose copies differ between ranks, or -1 */
} parity_result;

/* Collective over comm, whose size is the grid's. First the gradient step: betas, clip and learning
 * rate are 0, so that Adam's first moment is the gradient and the weights stay. Then the state is
 * cleared and PARITY_STEPS steps of AdamW follow, and an evaluation. Aborts when the grid is
 * refused. */
void parity_run(MPI_Comm comm, const parity_model *m, const parity_case *c, parity_result *r);
void parity_result_free(parity_result *r);

/* Lists that the caller frees; models with parity_models_free. With all, everything; otherwise what
 * fits into a few minutes. */
parity_model *parity_models(int *n);
void parity_models_free(parity_model *m, int n);
parity_case *parity_cases(bool all, const parity_model *model, int n_models, int *n);
#endif
