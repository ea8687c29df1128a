/* engine.h: one rank's model with its device, memory and optimizer. "Plan, allocate once, bind": the
 * same code runs once on the plan device, which only counts, and then on the real one. */
#ifndef SK_ENGINE_H
#define SK_ENGINE_H
#include "src/model.h"
#include "src/optim.h"

enum { SK_PART_WEIGHTS, SK_PART_GRADS, SK_PART_OPTIM, SK_PART_TABLES, SK_PART_EXCHANGE, SK_PART_BATCH,
       SK_PART_SAVED, SK_PART_SCRATCH, SK_PARTS };
extern const char *const sk_part_name[SK_PARTS];

typedef struct sk_engine {
  const sk_config *cfg;
  bool train;   /* gradients and optimizer too */
  int64_t b, T; /* largest micro-batch */
  sk_ctx ctx;
  sk_model model;
  sk_optim opt;
  sk_arena part[SK_PART_SAVED]; /* weights .. batch; saved and scratch are the ctx's */
  int32_t *ids, *label, *start; /* [b*T] on the device */
  double *loss;                 /* one double on the device: the step's sum so far */
} sk_engine;

/* Not collective. bytes[SK_PARTS] that rank `part` of `parts` dp ranks would allocate. */
int sk_engine_plan(const sk_config *cfg, const sk_ops *op, int parts, int part, size_t bytes[SK_PARTS],
                   sk_err *e);

/* Collective over the dp line `dp` (its errors are agreed). Opens the device, allocates and binds
 * everything; weights are undefined until sk_engine_init or a checkpoint. With train = false there are
 * weights and activations for a piece of b x T tokens only. positions: longest sequence (RoPE). cfg
 * must outlive the engine. */
int sk_engine_open(sk_engine *g, const sk_config *cfg, const sk_ops *op, MPI_Comm dp, bool train, int64_t b,
                   int64_t T, int64_t positions, sk_err *e);
void sk_engine_close(sk_engine *g);

/* Not collective: every rank computes all weights (a function of seed and name); m = v = 0. */
void sk_engine_init(sk_engine *g);

/* Weights first .. first+n-1 of the flat index space from host fp32 (and the fp32 master's share of
 * them, when it is apart). */
void sk_engine_set_weights(sk_engine *g, int64_t first, int64_t n, const float *host);

/* One micro-batch of b sequences from host arrays [b*T]; the forward pass adds to g->loss and, with
 * scale != 0, the backward pass to the gradients. */
void sk_engine_micro(sk_engine *g, int64_t b, int64_t T, const int32_t *ids, const int32_t *label,
                     const int32_t *start, double scale);
/* Reads and clears the loss sum. */
double sk_engine_take_loss(sk_engine *g);
#endif
