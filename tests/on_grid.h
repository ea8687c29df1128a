/* on_grid.h: training engines on process grids of the job's first ranks, for tests that go through many
 * grids in one program. Header only. */
#ifndef SK_ON_GRID_H
#define SK_ON_GRID_H
#include "tests/small_model.h"
#include "tests/tap.h"
#include <unistd.h>

typedef struct on_grid {
  MPI_Comm comm; /* the grid's ranks; MPI_COMM_NULL on those that have nothing to do */
  sk_grid grid;
  sk_engine engine;
} on_grid;

static inline int grid_ranks(const int n[SK_NAXES]) { return n[SK_PP] * n[SK_DP] * n[SK_CP] * n[SK_TP]; }

/* "tp 2 x cp 1 x pp 2 x dp 1"; good for the next three calls. */
static inline const char *grid_text(const int n[SK_NAXES]) {
  static char text[4][64];
  static int at;
  at = (at + 1) % 4;
  snprintf(text[at], sizeof text[at], "tp %d x cp %d x pp %d x dp %d", n[SK_TP], n[SK_CP], n[SK_PP], n[SK_DP]);
  return text[at];
}

/* Collective over the job. A barrier that leaves the cores to those who still work. */
static inline void meet_patiently(void) {
  MPI_Request r;
  int done = 0;
  SK_MPI(MPI_Ibarrier(MPI_COMM_WORLD, &r));
  for (SK_MPI(MPI_Test(&r, &done, MPI_STATUS_IGNORE)); !done; SK_MPI(MPI_Test(&r, &done, MPI_STATUS_IGNORE)))
    usleep(2000);
}

/* Collective over the job. The engine has no weights yet. c needs data.sequence and train.*_batch and must stay;
 * false on the ranks that the grid leaves over, which go on to on_grid_close. */
static inline bool on_grid_open(on_grid *o, sk_config *c, const int n[SK_NAXES]) {
  sk_err e = {0};
  *o = (on_grid){.comm = MPI_COMM_NULL};
  c->parallel.tp = n[SK_TP], c->parallel.cp = n[SK_CP], c->parallel.pp = n[SK_PP];
  if (c->parallel.virtual_stages == 0) c->parallel.virtual_stages = 1;
  SK_MPI(MPI_Comm_split(MPI_COMM_WORLD, tap_rank < grid_ranks(n) ? 0 : MPI_UNDEFINED, tap_rank, &o->comm));
  if (o->comm == MPI_COMM_NULL) return false;
  sk_grid_create(&o->grid, o->comm, n);
  SK_CHECK(sk_engine_open(&o->engine, c, &sk_cpu_ops, &sk_comm_mpi, &o->grid, true, c->train.micro_batch,
                          c->data.sequence, c->data.sequence, &e) == SK_OK, "%s: %s", grid_text(n), e.msg);
  return true;
}

static inline void on_grid_close(on_grid *o) {
  if (o->comm != MPI_COMM_NULL) {
    sk_engine_close(&o->engine);
    sk_grid_destroy(&o->grid);
    SK_MPI(MPI_Comm_free(&o->comm));
  }
  meet_patiently();
}

/* The sequences of one global batch: pseudo-random tokens in two documents each, a function of `key`. */
typedef struct batch {
  int32_t *ids, *label, *start; /* [global_batch * T] */
  int64_t counted;
} batch;

static inline void batch_create(batch *k, const sk_config *c, uint64_t key) {
  const int64_t T = c->data.sequence, n = c->train.global_batch * T;
  k->ids = sk_malloc((size_t)n * 3 * sizeof *k->ids);
  k->label = k->ids + n;
  k->start = k->ids + 2 * n;
  k->counted = 0;
  small_ids(k->ids, n, c->model.vocab_size, key);
  for (int64_t i = 0; i < n; i++) {
    int64_t t = i % T, cut = 1 + (i / T * 5 + (int64_t)key) % (T - 1); /* where the second document begins */
    k->start[i] = (int32_t)(t < cut ? 0 : cut);
    k->label[i] = t + 1 == T || t + 1 == cut ? -1 : k->ids[i + 1];
    k->counted += k->label[i] >= 0;
  }
}

static inline void batch_free(batch *k) { sk_free(k->ids); }

/* Collective over the grid. The gradient step on this rank's share of the batch. Returns the mean loss, summed in
 * rank order. */
static inline double on_grid_gradients(on_grid *o, const batch *k) {
  sk_engine *g = &o->engine;
  const sk_grid *grid = &o->grid;
  const int64_t share = g->cfg->train.global_batch / grid->n[SK_DP] * g->T, at = grid->at[SK_DP] * share;
  sk_engine_step(g, k->ids + at, k->label + at, k->start + at, 1.0 / (double)k->counted);
  double mine = sk_engine_take_loss(g), sum = 0, each[64];
  if (grid->at[SK_PP] != grid->n[SK_PP] - 1 || grid->at[SK_TP] != 0) mine = 0;
  SK_CHECK(grid->size <= 64, "%d ranks", grid->size);
  SK_MPI(MPI_Allgather(&mine, 1, MPI_DOUBLE, each, 1, MPI_DOUBLE, grid->world));
  for (int i = 0; i < grid->size; i++) sum += each[i];
  return sum / (double)k->counted;
}

/* Collective over the grid. One step of training as in src/train.c, from step 1; *norm: before clipping. */
static inline double on_grid_step(on_grid *o, int64_t step, const batch *k, double *norm) {
  sk_engine *g = &o->engine;
  int bad;
  double loss = on_grid_gradients(o, k), clip = g->cfg->optimizer.clip;
  *norm = sk_optim_norm(&g->opt, &g->ctx, o->grid.zero, o->grid.model, g->model.all.n, &bad);
  sk_optim_update(&g->opt, &g->ctx, g->cfg, step, g->cfg->optimizer.lr, *norm > clip ? clip / *norm : 1);
  sk_optim_gather(&g->opt, &g->ctx);
  return loss;
}
#endif
