/* overlap.c: exchanges that are waited for at once give the same bits as those that run beside the computation, on
 * every axis, with every schedule and recomputation; and what overlap.h counts is what was called. */
#include "src/overlap.h"
#include "tests/on_grid.h"
#include "tests/tap.h"

enum { STEPS = 3 };

typedef struct variant {
  int n[SK_NAXES]; /* pp, dp, cp, tp */
  int schedule, virtual_stages, recompute;
  bool tied;
  unsigned kinds; /* of exchanges that must be there */
} variant;

#define KIND(name) (1u << SK_X_##name)
#define TP (KIND(TP_GATHER) | KIND(TP_SCATTER) | KIND(TP_SUM))
#define CP (KIND(CP_GATHER) | KIND(CP_SCATTER))
#define DP (KIND(DP_GRADS) | KIND(DP_WEIGHTS))
static const variant variants[] = {
    {{1, 1, 1, 4}, SK_SCHED_1F1B, 1, SK_RECOMPUTE_NONE, false, TP},
    {{1, 1, 1, 2}, SK_SCHED_1F1B, 1, SK_RECOMPUTE_SELECTIVE, true, TP},
    {{1, 1, 4, 1}, SK_SCHED_1F1B, 1, SK_RECOMPUTE_NONE, false, CP | DP},
    {{1, 1, 2, 1}, SK_SCHED_1F1B, 1, SK_RECOMPUTE_FULL, false, CP | DP},
    {{1, 1, 2, 2}, SK_SCHED_1F1B, 1, SK_RECOMPUTE_NONE, false, TP | CP | DP},
    {{1, 4, 1, 1}, SK_SCHED_1F1B, 1, SK_RECOMPUTE_NONE, false, DP},
    {{4, 1, 1, 1}, SK_SCHED_1F1B, 1, SK_RECOMPUTE_NONE, true, KIND(PP)},
    {{4, 1, 1, 1}, SK_SCHED_ZB_H1, 1, SK_RECOMPUTE_SELECTIVE, false, KIND(PP)},
    {{2, 1, 1, 1}, SK_SCHED_INTERLEAVED, 2, SK_RECOMPUTE_NONE, false, KIND(PP)},
    {{2, 2, 1, 1}, SK_SCHED_INTERLEAVED, 2, SK_RECOMPUTE_NONE, true, KIND(PP) | DP},
    {{2, 1, 1, 2}, SK_SCHED_ZB_H1, 1, SK_RECOMPUTE_NONE, false, KIND(PP) | TP},
};

/* Loss and norm of every step. */
static unsigned train(sk_config *c, const variant *v, bool watch, bool now, double *seen) {
  on_grid o;
  unsigned kinds = 0;
  if (on_grid_open(&o, c, v->n)) {
    batch k;
    batch_create(&k, c, 5);
    sk_engine_init(&o.engine);
    if (watch) sk_overlap_open(&o.engine, now);
    for (int i = 0; i < STEPS; i++) {
      sk_exchange_cost cost[SK_X_KINDS];
      if (watch) sk_overlap_begin();
      seen[2 * i] = on_grid_step(&o, i + 1, &k, &seen[2 * i + 1]);
      if (!watch) continue;
      sk_overlap_end(cost);
      for (int x = 0; x < SK_X_KINDS; x++)
        if (cost[x].calls > 0 && cost[x].waited >= 0) kinds |= 1u << x;
      for (int x = 0; x < SK_X_KINDS; x++) /* the next step's bits do not know of it */
        if ((sk_overlap_alone((sk_exchange_kind)x) > 0) != (cost[x].calls > 0)) kinds = 0;
    }
    if (watch) sk_overlap_close();
    batch_free(&k);
  }
  on_grid_close(&o);
  MPI_Bcast(&kinds, 1, MPI_UNSIGNED, 0, MPI_COMM_WORLD);
  return kinds;
}

static void compare(sk_config *c, const variant *v) {
  double plain[2 * STEPS] = {0}, with[2 * STEPS] = {0}, without[2 * STEPS] = {0};
  c->parallel.schedule = v->schedule;
  c->parallel.virtual_stages = v->virtual_stages;
  c->train.recompute = v->recompute;
  c->model.tie_word_embeddings = v->tied;
  train(c, v, false, false, plain);
  unsigned kinds = train(c, v, true, false, with), kinds_now = train(c, v, true, true, without);
  tap_ok(memcmp(plain, with, sizeof plain) == 0 && memcmp(plain, without, sizeof plain) == 0,
         "%s: the same bits with and without overlap", grid_text(v->n));
  tap_ok(kinds == v->kinds && kinds_now == v->kinds, "and the kinds of exchanges are those of the grid (%x, %x, %x)",
         kinds, kinds_now, v->kinds);
}

int main(int argc, char **argv) {
  static const char *const pattern[] = {"P-", "P-", "M-", "*-"};
  sk_config c;
  tap_init(&argc, &argv);
  SK_CHECK(tap_size == 4, "4 ranks are needed");
  small_config(&c, 4, pattern);
  c.data.sequence = 32;
  c.train.global_batch = 16, c.train.micro_batch = 2;
  c.optimizer.lr = 1e-3, c.optimizer.clip = 1, c.optimizer.eps = 1e-8;
  c.optimizer.betas[0] = 0.9, c.optimizer.betas[1] = 0.95;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) compare(&c, &variants[i]);
  sk_free(c.layer);
  return tap_done();
}
