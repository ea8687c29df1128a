/* train_watch.c: what the ranks' figures say about each other: weights that should be the same on all data
 * parallel ranks, and ranks that compute for longer than their peers. The figures ride on the step's exchange. */
#include "src/progress.h"
#include "src/train.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

enum { WINDOW = 50, CHUNK = 1 << 20 };

/* ---- replicas ---- */

/* 52 bits of the hash of elements first .. first+n-1 of this rank's weights: a whole number that a double holds. */
static double hash_weights(sk_train *t, int64_t first, int64_t n) {
  sk_ctx *c = &t->engine.ctx;
  size_t left = (size_t)n * sk_dtype_size(c->act), at = (size_t)first * sk_dtype_size(c->act);
  char *buf = sk_malloc(CHUNK);
  XXH3_state_t *state = XXH3_createState();
  SK_CHECK(state && XXH3_64bits_reset(state) == XXH_OK, "no memory for a hash");
  while (left > 0) {
    size_t part = left < CHUNK ? left : CHUNK;
    c->op->to_host(c->st, buf, c->weights + at, part);
    XXH3_64bits_update(state, buf, part);
    at += part;
    left -= part;
  }
  double hash = (double)(XXH3_64bits_digest(state) >> 12);
  XXH3_freeState(state);
  sk_free(buf);
  return hash;
}

double sk_train_weights_hash(sk_train *t) {
  int64_t step = t->meta.step + 1, every = t->cfg.watch.replicas;
  if (every == 0 || step % every != 0 || t->engine.opt.parts == 1) return 0;
  return hash_weights(t, 0, t->engine.ctx.reg->total);
}

static double hash_of(const sk_train *t, int rank) { return t->per_rank[SK_TRAIN_EXCHANGED * rank + SK_SAYS_HASH]; }

/* World ranks that hold the same weights as `rank`: in ranks[], their number is returned. */
static int replicas(const sk_grid *g, int rank, int *ranks) {
  int n = 0, stage = g->size / g->n[SK_PP];
  for (int r = rank / stage * stage; r < (rank / stage + 1) * stage; r++)
    if (r % g->n[SK_TP] == rank % g->n[SK_TP]) ranks[n++] = r;
  return n;
}

/* The first parameter of which the ranks of my group hold different values. Collective over zero. */
static const char *first_different(sk_train *t) {
  const sk_registry *r = t->engine.ctx.reg;
  double *mine = sk_calloc((size_t)r->n, sizeof *mine), *low = sk_calloc((size_t)r->n, sizeof *low);
  const char *name = NULL;
  for (int i = 0; i < r->n; i++) mine[i] = hash_weights(t, r->p[i].offset, r->p[i].count);
  SK_MPI(MPI_Allreduce(mine, low, r->n, MPI_DOUBLE, MPI_MIN, t->grid.zero));
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, mine, r->n, MPI_DOUBLE, MPI_MAX, t->grid.zero));
  for (int i = 0; i < r->n && !name; i++)
    if (low[i] != mine[i]) name = r->p[i].name;
  sk_free(mine);
  sk_free(low);
  return name ? name : "padding";
}

/* "rank 3 on host n2 differs from ranks 0, 1": who is not in the majority, or all where there is none. */
static void describe(const sk_train *t, const int *ranks, int n, char *text, size_t cap) {
  int most = 0, at = 0;
  double common = 0;
  for (int i = 0; i < n; i++) {
    int same = 0;
    for (int k = 0; k < n; k++) same += hash_of(t, ranks[k]) == hash_of(t, ranks[i]);
    if (same > most) most = same, common = hash_of(t, ranks[i]);
  }
  for (int i = 0; i < n && at < (int)cap; i++) {
    if (2 * most > n && hash_of(t, ranks[i]) == common) continue;
    at += snprintf(text + at, cap - (size_t)at, "%srank %d on host %s", at ? ", " : "", ranks[i],
                   sk_watch_host(t->watch, ranks[i]));
  }
}

int sk_train_check_replicas(sk_train *t, sk_err *e) {
  const int64_t step = t->meta.step + 1;
  const sk_grid *g = &t->grid;
  int *ranks = sk_calloc((size_t)g->size, sizeof *ranks), odd = -1;
  for (int r = 0; r < g->size && odd < 0; r++) {
    int n = replicas(g, r, ranks);
    for (int i = 0; i < n; i++)
      if (hash_of(t, ranks[i]) != hash_of(t, ranks[0])) odd = ranks[0];
  }
  if (odd >= 0) {
    sk_train_save_end(t);
    int n = replicas(g, odd, ranks);
    bool here = false;
    for (int i = 0; i < n; i++) here |= ranks[i] == g->rank;
    const char *name = here ? first_different(t) : NULL;
    char who[1024];
    describe(t, ranks, n, who, sizeof who);
    if (g->rank == odd)
      sk_fail(e, SK_FAILED, "step %lld: the weights of data parallel ranks differ (first in %s): %s. A memory, device or "
              "network fault is likely. Nothing of this step was updated or saved.\nThe last comparison that "
              "agreed was at step %lld (0: none in this job); the latest checkpoint is %s.", (long long)step, name, who,
              (long long)t->replicas_good, t->saved_path[0] ? t->saved_path : "none");
    sk_agree(g->world, e);
  } else if (hash_of(t, g->rank) != 0) {
    t->replicas_good = step;
  }
  sk_free(ranks);
  return e->code;
}

/* ---- stragglers ---- */

/* The median of the ranks that have the same work: of one stage where it has three or more, else of all. */
static double median_of_peers(const sk_train *t, int rank, double *scratch) {
  int stage = t->grid.size / t->grid.n[SK_PP], first = rank / stage * stage;
  if (stage < 3) first = 0, stage = t->grid.size;
  memcpy(scratch, t->busy + first, (size_t)stage * sizeof *scratch);
  sk_sort(scratch, stage);
  return scratch[(stage - 1) / 2];
}

static void report_straggler(sk_train *t, int64_t step, int rank, double ratio, double median) {
  sk_metric_begin(t->run);
  sk_metric_str(t->run, "event", "straggler");
  sk_metric_int(t->run, "step", step);
  sk_metric_int(t->run, "rank", rank);
  sk_metric_str(t->run, "host", sk_watch_host(t->watch, rank));
  sk_metric_num(t->run, "ratio", ratio);
  sk_metric_end(t->run);
  if (rank == t->straggler) return; /* said before */
  t->straggler = rank;
  sk_progress_clear();
  sk_warn("step %lld: rank %d on host %s is slow: %.1f ms of work in a step, %.1f times the median of its peers (last "
          "%d steps)", (long long)step, rank, sk_watch_host(t->watch, rank), 1e3 * ratio * median / WINDOW, ratio, WINDOW);
}

void sk_train_count_busy(sk_train *t) {
  const sk_grid *g = &t->grid;
  double limit = t->cfg.watch.straggler;
  if (limit == 0 || g->size == 1 || t->step_seconds == 0) return; /* a job's first step is unlike the others */
  for (int r = 0; r < g->size; r++) t->busy[r] += t->per_rank[SK_TRAIN_EXCHANGED * r + SK_SAYS_BUSY];
  if (++t->busy_steps < WINDOW) return;
  double *scratch = sk_calloc((size_t)g->size, sizeof *scratch), worst = 0, median_worst = 0;
  int slow = 0;
  for (int r = 0; r < g->size; r++) {
    double median = median_of_peers(t, r, scratch);
    if (t->busy[r] <= worst * median) continue;
    worst = t->busy[r] / fmax(median, 1e-9);
    median_worst = median;
    slow = r;
  }
  bool matters = t->busy[slow] - median_worst > 0.05 * WINDOW * t->step_seconds;
  if (worst > limit && matters) report_straggler(t, t->meta.step + 1, slow, worst, median_worst);
  t->busy_steps = 0;
  memset(t->busy, 0, (size_t)g->size * sizeof *t->busy);
  sk_free(scratch);
}
