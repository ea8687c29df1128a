/* overlap.h: what exchanges cost, and how much of it compute feels. Tables like comm.h's that stand before an engine's
 * own: they can wait for every exchange at once, note how long streams stood still for one, and repeat a step's
 * exchanges with nothing beside them. For measurements and tests; one engine at a time. */
#ifndef SK_OVERLAP_H
#define SK_OVERLAP_H
#include "src/engine.h"

typedef enum sk_exchange_kind {
  SK_X_TP_GATHER,
  SK_X_TP_SCATTER,
  SK_X_TP_SUM,
  SK_X_CP_GATHER,
  SK_X_CP_SCATTER,
  SK_X_DP_GRADS,
  SK_X_DP_WEIGHTS,
  SK_X_PP,
  SK_X_KINDS
} sk_exchange_kind;
extern const char *const sk_exchange_name[SK_X_KINDS];

/* Of one kind, on this rank. */
typedef struct sk_exchange_cost {
  int64_t calls;
  double waited; /* seconds that streams stood still for it */
} sk_exchange_cost;

/* Not collective, but all ranks must do the same between two steps. From now on the engine's exchanges go through
 * here. now: each is waited for at once, on the stream that asks for it (in a bracket: at its end); receives of the
 * pipeline, posted early, where they are needed. The bits are the same. */
void sk_overlap_open(sk_engine *g, bool now);
/* The engine has its own tables again. */
void sk_overlap_close(void);

/* Between begin and end (one step or a few) waits are timed and calls are noted. end waits for the device. */
void sk_overlap_begin(void);
void sk_overlap_end(sk_exchange_cost cost[SK_X_KINDS]);
/* Collective over the grid's world: seconds that the noted calls of a kind take in their order with nothing beside
 * them, of the slowest rank; 0 where there are none. They move what lies in their buffers now: the next step makes
 * all of it anew, and weights stay what they are. */
double sk_overlap_alone(sk_exchange_kind kind);
#endif
