/* plan.c: the memory plan that --dry-run prints is what a rank allocates, and a step of training uses exactly
 * that: on grids along every axis, with every schedule and every kind of recomputation. */
#include "tests/on_grid.h"

enum { LAYERS = 4 };

static void deck(sk_config *c, bool tied) {
  small_config(c, LAYERS, (const char *const[]){"P-", "*-", "M-", "P"});
  c->model.tie_word_embeddings = tied;
  c->data.sequence = 32;
  c->train.global_batch = 16;
  c->train.micro_batch = 2;
  c->optimizer.lr = 1e-3;
  c->optimizer.eps = 1e-8;
  c->optimizer.clip = 1;
}

static bool equal(const char *part, size_t planned, size_t allocated, size_t used) {
  if (planned == allocated && planned == used) return true;
  fprintf(stderr, "# rank %d: %s: %zu bytes planned, %zu allocated, %zu used\n", tap_rank, part, planned, allocated,
          used);
  return false;
}

static bool as_planned(const sk_engine *g, const size_t plan[SK_PARTS]) {
  size_t allocated = 0, used = 0;
  bool ok = true;
  for (int i = 0; i < SK_PART_SAVED; i++)
    ok = equal(sk_part_name[i], plan[i], g->part[i].size, g->part[i].peak) && ok;
  for (int i = 0; i < g->n_slots; i++) allocated += g->slot[i].saved.size, used += g->slot[i].saved.peak;
  ok = equal(sk_part_name[SK_PART_SAVED], plan[SK_PART_SAVED], allocated, used) && ok;
  ok = equal(sk_part_name[SK_PART_REDO], plan[SK_PART_REDO], g->redo.size, g->redo.peak) && ok;
  return equal(sk_part_name[SK_PART_SCRATCH], plan[SK_PART_SCRATCH], g->ctx.scratch.size, g->ctx.scratch.peak) && ok;
}

static void one(sk_config *c, const int n[SK_NAXES]) {
  static const char *const schedule[] = {"1f1b", "interleaved", "zb-h1"}, *const how[] = {"none", "selective", "full"};
  sk_err e = {0};
  size_t plan[SK_PARTS] = {0};
  on_grid o;
  batch k;
  double norm;
  bool ok = true;
  if (on_grid_open(&o, c, n)) {
    ok = sk_engine_plan(c, &sk_cpu_ops, n, tap_rank, plan, NULL, NULL, 0, &e) == SK_OK;
    batch_create(&k, c, 5);
    sk_engine_init(&o.engine);
    on_grid_step(&o, 1, &k, &norm);
    on_grid_step(&o, 2, &k, &norm);
    sk_optim_need(&o.engine.opt, &o.engine.ctx, -1);
    ok = ok && as_planned(&o.engine, plan);
    sk_engine_eval(&o.engine, 3, k.ids, k.label, k.start); /* a short batch at the end; in the same memory */
    ok = ok && as_planned(&o.engine, plan);
    batch_free(&k);
  }
  on_grid_close(&o);
  tap_ok(ok, "%s, %s, recomputation %s%s: planned, allocated and used are the same", grid_text(n),
         schedule[c->parallel.schedule], how[c->train.recompute], c->model.tie_word_embeddings ? ", tied" : "");
}

static void all_kinds(void) {
  static const int grids[][SK_NAXES] = { /* pp, dp, cp, tp */
      {1, 1, 1, 1}, {1, 1, 1, 2}, {1, 1, 1, 4}, {1, 1, 2, 1}, {1, 1, 4, 1}, {1, 4, 1, 1},
      {1, 1, 2, 4}, {1, 2, 2, 1}, {2, 2, 1, 2}, {4, 1, 1, 2}, {4, 2, 1, 1}, {2, 1, 2, 2}};
  sk_config c;
  for (size_t i = 0; i < sizeof grids / sizeof *grids; i++) {
    const int *n = grids[i];
    deck(&c, i % 2);
    for (int k = 0; k < (n[SK_PP] > 1 ? 3 : 2); k++) {
      c.parallel.schedule = k == 2 ? SK_SCHED_ZB_H1 : SK_SCHED_1F1B;
      c.train.recompute = ((int)i + k) % 3;
      one(&c, n);
    }
    c.train.recompute = SK_RECOMPUTE_SELECTIVE;
    if (n[SK_PP] == 2) {
      c.parallel.schedule = SK_SCHED_INTERLEAVED;
      c.parallel.virtual_stages = 2;
      one(&c, n);
    }
    sk_free(c.layer);
  }
}

/* The plan is worth something: tp cuts everything, cp activations, pp weights (activations stay: a stage with half
 * the layers keeps two micro-batches), dp the optimizer's state; recomputation, activations. */
static void savings(void) {
  static const int one_rank[SK_NAXES] = {1, 1, 1, 1};
  static const struct { int n[SK_NAXES], part; } cut[] = {
      {{1, 1, 1, 2}, SK_PART_WEIGHTS}, {{1, 1, 1, 2}, SK_PART_SAVED}, {{1, 1, 2, 1}, SK_PART_SAVED},
      {{1, 1, 2, 1}, SK_PART_OPTIM},   {{2, 1, 1, 1}, SK_PART_WEIGHTS}, {{1, 2, 1, 1}, SK_PART_OPTIM}};
  sk_config c;
  sk_err e = {0};
  size_t all[SK_PARTS], part[SK_PARTS];
  deck(&c, false);
  c.data.sequence = 256; /* activations outweigh the states between segments */
  c.model.vocab_size = 3001; /* and the tables have several blocks: ZeRO-1 deals out whole ones */
  c.parallel.virtual_stages = 1;
  bool ok = sk_engine_plan(&c, &sk_cpu_ops, one_rank, 0, all, NULL, NULL, 0, &e) == SK_OK;
  for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
    ok = sk_engine_plan(&c, &sk_cpu_ops, cut[i].n, 0, part, NULL, NULL, 0, &e) == SK_OK && ok;
    double share = (double)part[cut[i].part] / (double)all[cut[i].part];
    tap_ok(ok && share < 0.75, "%s: %.2f of one rank's %s", grid_text(cut[i].n), share, sk_part_name[cut[i].part]);
  }
  for (int k = SK_RECOMPUTE_SELECTIVE; k <= SK_RECOMPUTE_FULL; k++) {
    c.train.recompute = k;
    ok = sk_engine_plan(&c, &sk_cpu_ops, one_rank, 0, part, NULL, NULL, 0, &e) == SK_OK && ok;
    double share = (double)part[SK_PART_SAVED] / (double)all[SK_PART_SAVED];
    tap_ok(ok && share < (k == SK_RECOMPUTE_FULL ? 0.3 : 0.8), "%s recomputation: %.2f of the activations are kept",
           k == SK_RECOMPUTE_FULL ? "full" : "selective", share);
  }
  sk_free(c.layer);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  SK_CHECK(tap_size == 8, "8 ranks are needed");
  all_kinds();
  savings();
  return tap_done();
}
