/* reshard.c: checkpoints go from any process grid to any other. A ring through all grids of 1, 2 and 4 along each
 * axis on at most 8 ranks: each loads what the one before has saved, saves it again (every dataset the same, bit
 * for bit), trains two steps and saves. The losses are those of one rank that never changed its grid. A second
 * model goes through some of the grids. With SAKER_LONG=1 it goes through all, and the first one through rings until
 * every grid has been followed by every other one. */
#include "tests/on_grid.h"
#include "io/manifest.h"
#include "src/checkpoint.h"
#include <stdlib.h>

enum { GRIDS = 31, SOME = 9, RANKS = 8, STEPS = 2 * (GRIDS + 1) };

/* A step's loss may differ by what adding in another order does (design section 9), and so may its norm. */
static const double max_loss = 5e-6, max_norm = 2e-5;

static char dir[256], ring[300], again[300];

typedef int grids[GRIDS][SK_NAXES];

/* ---- models ---- */

static void sizes(sk_config *c) {
  c->data.sequence = 32;
  c->train.global_batch = 8;
  c->train.micro_batch = 1;
  c->optimizer.lr = 2e-3;
  c->optimizer.betas[0] = 0.9, c->optimizer.betas[1] = 0.95;
  c->optimizer.eps = 1e-8;
  c->optimizer.weight_decay = 0.1;
  c->optimizer.clip = 1;
  for (int64_t i = 0; i < c->n_layers; i++) c->layer[i].m = c->model;
}

/* Tied matrices (two copies under pp), groups and kv heads that tp 4 shares. Slices of a shard begin inside a
 * parameter only where it has several blocks of 16 Ki elements: the vocabulary and the MLP are wide enough. */
static void tied_model(sk_config *c) {
  small_config(c, 4, (const char *const[]){"P-", "P-", "P-", "P-"});
  c->model.tie_word_embeddings = true;
  c->model.vocab_size = 3001;
  c->model.intermediate_size = 1600;
  sizes(c);
}

/* Every kind of layer, every bias, one group, one kv head. */
static void mixed_model(sk_config *c) {
  small_config(c, 6, (const char *const[]){"P-", "M-", "*-", "P", "M", "*"});
  sk_model_cfg *m = &c->model;
  m->attention_bias = m->mlp_bias = m->mamba_proj_bias = m->projectors_bias = true;
  m->num_key_value_heads = m->mamba_n_groups = 1;
  sizes(c);
}

/* The schedule is another one on every grid: checkpoints do not know it. */
static void schedule(sk_config *c, const int n[SK_NAXES], int turn) {
  static const int kind[] = {SK_SCHED_1F1B, SK_SCHED_INTERLEAVED, SK_SCHED_ZB_H1};
  sk_err e = {0};
  int64_t micro = c->train.global_batch / n[SK_DP];
  c->parallel.schedule = kind[turn % 3];
  c->parallel.virtual_stages = c->parallel.schedule == SK_SCHED_INTERLEAVED ? 2 : 1;
  if (n[SK_PP] > 1 && n[SK_PP] * c->parallel.virtual_stages <= c->n_layers &&
      sk_schedule_check(c->parallel.schedule, n[SK_PP], micro, (int)c->parallel.virtual_stages, &e) == SK_OK)
    return;
  c->parallel.schedule = SK_SCHED_1F1B;
  c->parallel.virtual_stages = 1;
}

/* ---- grids ---- */

/* In steps of `stride`, so that neighbours differ along several axes: 31 is a prime, so any stride visits all, and
 * all strides together have every pair. */
static void list_grids(grids g, int stride) {
  int n = 0;
  for (int tp = 1; tp <= 4; tp *= 2)
    for (int cp = 1; cp <= 4; cp *= 2)
      for (int pp = 1; pp <= 4; pp *= 2)
        for (int dp = 1; dp <= 4; dp *= 2) {
          if (tp * cp * pp * dp > RANKS) continue;
          SK_CHECK(n < GRIDS, "too many grids");
          int place = 0; /* place * stride = n (mod GRIDS) */
          while (place * stride % GRIDS != n) place++;
          g[place][SK_TP] = tp, g[place][SK_CP] = cp, g[place][SK_PP] = pp, g[place][SK_DP] = dp;
          n++;
        }
  SK_CHECK(n == GRIDS, "%d grids", n);
}

/* ---- checkpoints ---- */

static void save(on_grid *o, const char *where, int64_t step) {
  sk_err e = {0};
  sk_ckpt_meta meta = {.run_id = "reshard", .step = step, .deck = (char *)"none", .hf_json = NULL};
  for (int a = 0; a < SK_NAXES; a++) meta.grid[a] = o->grid.n[a];
  SK_CHECK(sk_checkpoint_save(o->comm, &o->engine, where, &meta, NULL, &e) == SK_OK, "%s", e.msg);
}

static char *path_of(const char *where, int64_t step) {
  return sk_strf("%s/checkpoints/step-%08lld", where, (long long)step);
}

/* Into memory that is full of NaN, so that what is not loaded shows. */
static void load(on_grid *o, int64_t step) {
  sk_engine *g = &o->engine;
  sk_err e = {0};
  sk_ckpt_meta meta = {0};
  bool optimizer = false;
  char *path = path_of(ring, step);
  size_t mine = (size_t)sk_optim_count(&g->opt, g->ctx.reg) * sizeof(float);
  memset(g->ctx.weights, 0xff, (size_t)g->ctx.reg->total * sizeof(float));
  memset(g->opt.m, 0xff, mine);
  memset(g->opt.v, 0xff, mine);
  SK_CHECK(sk_ckpt_open(o->comm, path, &meta, &optimizer, &e) == SK_OK && optimizer, "%s: %s", path, e.msg);
  SK_CHECK(meta.step == step, "%s is of step %lld", path, (long long)meta.step);
  SK_CHECK(sk_checkpoint_load(o->comm, g, path, false, &e) == SK_OK, "%s", e.msg);
  sk_ckpt_meta_free(&meta);
  sk_free(path);
}

/* Rank 0. One dataset of an open file. */
static float *values(int64_t file, const char *path, const char *group, const sk_param *p, int64_t *n) {
  sk_err e = {0};
  sk_dset d = {.name = sk_strf("%s/%s", group, p->name), .rank = p->rank};
  memcpy(d.dim, p->dim, (size_t)p->rank * sizeof *d.dim);
  sk_slab s = {0};
  *n = 1;
  for (int k = 0; k < p->rank; k++) s.count[k] = p->dim[k], *n *= p->dim[k];
  s.data = sk_malloc((size_t)*n * sizeof *s.data);
  SK_CHECK(sk_h5_read_slab(file, path, &d, &s, &e) == SK_OK, "%s", e.msg);
  sk_free((char *)(uintptr_t)d.name);
  return s.data;
}

/* Rank 0. Compares one group of datasets of two files; the name of the first that differs, or NULL. *zero counts the
 * datasets of nothing but zeros. */
static const char *group_differs(const sk_registry *all, const char *a, const char *b, const char *group,
                                 int *zero) {
  sk_err e = {0};
  const char *first = NULL;
  int64_t file[2] = {sk_h5_open(a, &e), sk_h5_open(b, &e)};
  SK_CHECK(!e.code, "%s", e.msg);
  for (int i = 0; i < all->n; i++) {
    int64_t n, same_n, nonzero = 0;
    float *x = values(file[0], a, group, &all->p[i], &n), *y = values(file[1], b, group, &all->p[i], &same_n);
    for (int64_t k = 0; k < n; k++) nonzero += x[k] != 0;
    if (!first && memcmp(x, y, (size_t)n * sizeof *x) != 0) first = all->p[i].name;
    *zero += nonzero == 0;
    sk_free(x);
    sk_free(y);
  }
  sk_h5_close(file[0]);
  sk_h5_close(file[1]);
  return first;
}

/* Collective over the job (rank 0 works). The checkpoints of this step in both folders are the same. */
static void same_datasets(const on_grid *o, int64_t step, const char *title) {
  static const char *const group[] = {"params", "m", "v"};
  const char *differs = NULL;
  int zero = 0;
  char *one = path_of(ring, step), *two = path_of(again, step);
  for (int k = 0; k < 3 && tap_rank == 0; k++) {
    const char *file = k ? "optimizer.h5" : "model.h5";
    char *a = sk_strf("%s/%s", one, file), *b = sk_strf("%s/%s", two, file);
    const char *first = group_differs(&o->engine.model.all, a, b, group[k], &zero);
    if (first) tap_diag("%s/%s differs", group[k], first);
    if (first) differs = first;
    sk_free(a);
    sk_free(b);
  }
  if (tap_rank == 0 && zero) tap_diag("%d datasets hold nothing but zeros", zero);
  tap_ok(!differs && !zero, "%s: %d datasets loaded and saved again, bit for bit", title,
         tap_rank == 0 ? 3 * o->engine.model.all.n : 0);
  sk_free(one);
  sk_free(two);
}

/* Marks a slab of a matrix seen as rows x columns (all further dimensions). */
static bool mark(char *seen, const sk_dset *d, const sk_manifest_slab *s) {
  int64_t width = 1, w0, w;
  bool once = true;
  for (int k = 1; k < d->rank; k++) width *= d->dim[k];
  bool whole = d->rank < 2 || s->count[1] == d->dim[1];
  w0 = whole ? 0 : s->start[1] * (width / d->dim[1]);
  w = whole ? width : s->count[1] * (width / d->dim[1]);
  for (int64_t i = s->start[0]; i < s->start[0] + s->count[0]; i++)
    for (int64_t j = w0; j < w0 + w; j++) once = once && !seen[i * width + j]++;
  return once;
}

/* Rank 0. Every value of the checkpoint has been written by one rank alone. */
static bool written_once(int64_t step) {
  sk_err e = {0};
  sk_manifest m = {0};
  char *path = path_of(ring, step);
  bool ok = sk_manifest_read(path, &m, &e) == SK_OK && m.n_file == 2;
  for (int f = 0; ok && f < m.n_file; f++) {
    for (int i = 0; i < m.file[f].n_dset; i++) {
      const sk_dset *d = &m.file[f].dset[i];
      int64_t n = 1, all = 0;
      for (int k = 0; k < d->rank; k++) n *= d->dim[k];
      char *seen = sk_calloc((size_t)n, 1);
      for (int64_t k = 0; k < m.n_slab; k++)
        if (m.slab[k].file == f && m.slab[k].dset == i) ok = mark(seen, d, &m.slab[k]) && ok;
      for (int64_t k = 0; k < n; k++) all += seen[k];
      ok = ok && all == n;
      sk_free(seen);
    }
  }
  if (e.code) tap_diag("%s", e.msg);
  sk_manifest_free(&m);
  sk_free(path);
  return ok;
}

/* ---- the ring ---- */

typedef struct trace {
  double loss[STEPS + 1], norm[STEPS + 1]; /* by step, from 1; on rank 0 */
} trace;

/* Two steps: the first shows a wrong weight, the second what a wrong state of the optimizer has made of it. */
static void two_steps(on_grid *o, int64_t done, trace *t) {
  for (int64_t s = done + 1; s <= done + 2; s++) {
    batch k;
    batch_create(&k, o->engine.cfg, 1000 + (uint64_t)s);
    t->loss[s] = on_grid_step(o, s, &k, &t->norm[s]);
    batch_free(&k);
  }
  sk_optim_need(&o->engine.opt, &o->engine.ctx, -1);
}

/* One rank that never changes its grid. */
static void straight(sk_config *c, trace *t) {
  static const int one[SK_NAXES] = {1, 1, 1, 1};
  on_grid o;
  schedule(c, one, 0);
  if (on_grid_open(&o, c, one)) {
    sk_engine_init(&o.engine);
    for (int s = 0; s < STEPS; s += 2) two_steps(&o, s, t);
  }
  on_grid_close(&o);
}

/* A ring of the first `len` grids: every one saves once for the next one and loads once; the first one comes again
 * at the end. */
static void walk(sk_config *c, grids g, int len, const char *name, trace *t) {
  for (int k = 0; k <= len; k++) {
    on_grid o;
    const int *n = g[k % len];
    schedule(c, n, k);
    bool mine = on_grid_open(&o, c, n);
    if (mine && k == 0) sk_engine_init(&o.engine);
    if (mine && k > 0) {
      load(&o, 2 * k);
      save(&o, again, 2 * k);
    }
    if (mine) two_steps(&o, 2 * k, t);
    if (mine && k < len) save(&o, ring, 2 * k + 2);
    meet_patiently();
    if (k > 0) {
      char *title = sk_strf("%s: %s -> %s", name, grid_text(g[k - 1]), grid_text(n));
      same_datasets(&o, 2 * k, title);
      sk_free(title);
    }
    if (k < len)
      tap_ok(tap_rank != 0 || written_once(2 * k + 2), "%s: %s writes every value once", name, grid_text(n));
    on_grid_close(&o);
  }
}

/* Rank 0. The largest relative error; infinity where something is not a number. */
static double worst(const double *got, const double *want, int steps) {
  double err = 0;
  for (int s = 1; s <= steps; s++) {
    double d = fabs(got[s] - want[s]) / fabs(want[s]);
    if (!(d <= err)) err = isnan(d) ? INFINITY : d;
  }
  return err;
}

static void go_round(const char *name, sk_config *c, int stride, int len, const trace *want) {
  trace got = {0};
  grids g;
  list_grids(g, stride);
  walk(c, g, len, name, &got);
  const int steps = 2 * (len + 1);
  double loss = worst(got.loss, want->loss, steps), norm = worst(got.norm, want->norm, steps);
  tap_ok(tap_rank != 0 || loss <= max_loss, "%s: %d steps on %d grids: losses of one rank, error %.2g, limit %.2g",
         name, steps, len, loss, max_loss);
  tap_ok(tap_rank != 0 || norm <= max_norm, "%s: norms of one rank, error %.2g, limit %.2g", name, norm, max_norm);
  if (tap_rank == 0) sk_fs_remove(ring), sk_fs_remove(again);
  meet_patiently();
}

static void rings(const char *name, void (*model)(sk_config *), const int *stride, int n, int len) {
  sk_config c;
  trace want = {0};
  model(&c);
  straight(&c, &want);
  tap_ok(tap_rank != 0 || fabs(want.loss[2] - want.loss[1]) > 1e-3 * want.loss[1], "%s: the steps differ", name);
  for (int i = 0; i < n; i++) go_round(name, &c, stride[i], len, &want);
  sk_free(c.layer);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  const char *tmp = getenv("TMPDIR"), *all = getenv("SAKER_LONG");
  int stride[GRIDS - 1];
  SK_CHECK(tap_size == RANKS, "%d ranks are needed", RANKS);
  snprintf(dir, sizeof dir, "%s/saker-reshard-XXXXXX", tmp ? tmp : "/tmp");
  if (tap_rank == 0) SK_CHECK(mkdtemp(dir), "cannot make a temporary folder");
  SK_MPI(MPI_Bcast(dir, sizeof dir, MPI_CHAR, 0, MPI_COMM_WORLD));
  snprintf(ring, sizeof ring, "%s/ring", dir);
  snprintf(again, sizeof again, "%s/again", dir);
  for (int i = 0; i < GRIDS - 1; i++) stride[i] = 1 + (11 + i) % (GRIDS - 1);
  bool every = all && strcmp(all, "1") == 0;
  rings("tied", tied_model, stride, every ? GRIDS - 1 : 1, GRIDS);
  rings("mixed", mixed_model, stride, 1, every ? GRIDS : SOME);
  if (tap_rank == 0) sk_fs_remove(dir);
  return tap_done();
}
