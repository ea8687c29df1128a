/* engine.h: one rank's part of the model with its device, memory, optimizer and the pipeline's schedule. "Plan,
 * allocate once, bind": the same code runs once on the plan device, which only counts, and then on the real
 * one. */
#ifndef SK_ENGINE_H
#define SK_ENGINE_H
#include "src/model.h"
#include "src/optim.h"
#include "src/schedule.h"

enum { SK_PART_WEIGHTS, SK_PART_GRADS, SK_PART_OPTIM, SK_PART_TABLES, SK_PART_EXCHANGE, SK_PART_PIPE,
       SK_PART_BATCH, SK_PART_SAVED, SK_PART_REDO, SK_PART_SCRATCH, SK_PARTS };
extern const char *const sk_part_name[SK_PARTS];

/* The buffers of one kind of message: two receive and two send buffers take turns. */
typedef struct sk_ring {
  int n_recv, n_send; /* 0: this stage has no such message */
  void *recv[2], *send[2];
  sk_ticket *receiving[2], *sending[2];
  int64_t received, posted, sent; /* counters: waited for, posted; sent */
} sk_ring;

typedef struct sk_engine {
  const sk_config *cfg;
  const sk_grid *grid; /* not owned */
  bool train;          /* gradients and optimizer too */
  int64_t b, T;        /* largest micro-batch, sequence length */
  sk_ctx ctx;
  sk_model model;
  sk_optim opt;
  sk_group *pp, *zero; /* not NULL when the line has more than one rank */
  const sk_comm_ops *pipe; /* pp's table: ctx.comm on the CPU, one of transport.h's on GPUs */
  sk_schedule plan;    /* of one step */
  int n_slots, *slot0; /* slot0[chunk]: its first slot */
  sk_slot *slot;
  sk_ring ring[SK_NMSGS];
  sk_arena part[SK_PART_SAVED]; /* weights .. batch; the slots, redo and scratch are apart */
  sk_arena redo;
  sk_branch branch;             /* c->branch points here where it is used */
  int32_t *host;                /* [4][b*T] a micro-batch on its way to the device */
  double *loss;                 /* one double on the device: the step's sum so far */
} sk_engine;

/* Not collective. bytes[SK_PARTS] that rank `rank` of a grid of sizes n would allocate for training, and the
 * engine's view of it in *params (may be NULL): its parameters. first, layers (may be NULL): of its chunks. */
int sk_engine_plan(const sk_config *cfg, const sk_ops *op, const int n[SK_NAXES], int rank,
                   size_t bytes[SK_PARTS], int64_t *params, char *layers, size_t cap, sk_err *e);

/* Collective over the grid's world (its errors are agreed). Opens the device, allocates and binds everything;
 * weights are undefined until sk_engine_init or a checkpoint. With train = false (a grid of one rank only) there
 * are weights and activations for a piece of b x T tokens. positions: longest sequence (RoPE). cfg and grid must
 * outlive the engine. */
int sk_engine_open(sk_engine *g, const sk_config *cfg, const sk_ops *op, const sk_comm_ops *comm,
                   const sk_grid *grid, bool train, int64_t b, int64_t T, int64_t positions, sk_err *e);
void sk_engine_close(sk_engine *g);

/* Not collective: every rank computes its weights (a function of seed and name); m = v = 0. */
void sk_engine_init(sk_engine *g);

/* Weights first .. first+n-1 of the flat index space from host fp32: the act weights and, where the fp32 master is
 * apart, my slices of it. */
void sk_engine_set_weights(sk_engine *g, int64_t first, int64_t n, const float *host);

/* pipeline.c. Collective over pp, tp, cp; with reductions over dp. One step's gradients: `micro` micro-batches of b
 * sequences, host arrays [micro * b * T] of whole sequences (ids, label, start as sk_data_sample gives them). The
 * loss is scale * its sum over the counted tokens; g->loss grows on the last stage. Afterwards my slices of the
 * gradients are complete. */
void sk_engine_step(sk_engine *g, const int32_t *ids, const int32_t *label, const int32_t *start,
                    double scale);
/* Collective likewise, without gradients: `n` sequences in micro-batches of at most g->b. */
void sk_engine_eval(sk_engine *g, int64_t n, const int32_t *ids, const int32_t *label, const int32_t *start);

/* Reads and clears the loss sum (0 on other stages than the last). */
double sk_engine_take_loss(sk_engine *g);

/* The tokens of b sequences on this rank (without the pieces' arrays). */
sk_tokens_here sk_engine_tokens(const sk_engine *g, int64_t b);
/* This rank's pieces of b sequences from the host into the slot. */
void sk_engine_load(sk_engine *g, sk_slot *s, int64_t b, const int32_t *ids, const int32_t *label,
                    const int32_t *start);
#endif
