/* helps.c: ranks that leave no core hash what is written behind them, a little between layers, and all of it is hashed
 * whatever they get to; weights and losses do not show it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/folder.h"
#include "tests/on_grid.h"
#include "io/ckpt_job.h"
#include "io/fsutil.h"
#include "src/checkpoint.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 9, SAVED = 3 };

static int own; /* threads of this rank */

/* What is left of a training: the steps' losses, weights and this rank's optimizer state. */
typedef struct outcome {
  double loss[STEPS + 1];
  float *state;
  size_t n;
  bool helps, began, after[STEPS + 1]; /* whether it is asked to; whether it began to, and still did at the end of a step */
} outcome;

static void keep(outcome *o, on_grid *at) {
  sk_optim *opt = &at->engine.opt;
  sk_ctx *ctx = &at->engine.ctx;
  size_t w = (size_t)ctx->reg->count, s = (size_t)sk_optim_count(opt, ctx->reg);
  o->n = w + 2 * s;
  sk_optim_need(opt, ctx, -1); // the last step's weights may still be on their way
  o->state = sk_malloc(o->n * sizeof *o->state);
  memcpy(o->state, ctx->weights, w * sizeof *o->state);
  memcpy(o->state + w, opt->m, s * sizeof *o->state);
  memcpy(o->state + w + s, opt->v, s * sizeof *o->state);
}

static bool all(bool mine) {
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &mine, 1, MPI_C_BOOL, MPI_LAND, MPI_COMM_WORLD));
  return mine;
}

static bool same(const outcome *a, const outcome *b) {
  return all(memcmp(a->loss, b->loss, sizeof a->loss) == 0 && a->n == b->n &&
             memcmp(a->state, b->state, a->n * sizeof *a->state) == 0);
}

/* Collective. A few steps of data-parallel training in RUN, with a checkpoint of step SAVED that is over before step
 * `end`. */
static outcome train(const char *run, bool behind, int end, sk_err *e) {
  sk_config c;
  on_grid o;
  batch k;
  outcome out = {0};
  sk_saver *s;
  sk_ckpt_job *job = NULL;
  sk_ckpt_result r;
  sk_ckpt_meta meta = {.run_id = "helps", .step = SAVED, .grid = {1, tap_size, 1, 1},
                       .deck = (char *)(uintptr_t)"run: {}"};
  double norm;
  small_config(&c, 2, (const char *const[]){"P-", "P-"});
  c.data.sequence = 37;
  c.train.global_batch = 2 * tap_size;
  c.train.micro_batch = 2;
  c.optimizer.lr = 1e-2, c.optimizer.eps = 1e-8, c.optimizer.clip = 1;
  c.optimizer.betas[0] = 0.9, c.optimizer.betas[1] = 0.95;
  omp_set_num_threads(own);
  const int n[SK_NAXES] = {[SK_TP] = 1, [SK_CP] = 1, [SK_PP] = 1, [SK_DP] = tap_size};
  SK_CHECK(on_grid_open(&o, &c, n), "%s has room for all", grid_text(n));
  sk_engine_init(&o.engine);
  batch_create(&k, &c, 5);
  SK_CHECK(sk_saver_open(MPI_COMM_WORLD, &o.engine, run, "helps", 1, &s, e) == SK_OK, "%s", e->msg);
  out.helps = sk_saver_helps(s);
  for (int step = 1; step <= STEPS; step++) {
    if (step == end) sk_saver_end(s, job, &r, e);
    out.loss[step] = on_grid_step(&o, step, &k, &norm);
    out.after[step] = o.engine.ctx.between != NULL;
    if (step > SAVED && step < end && all(sk_ckpt_idle(job))) sk_saver_go_on(s, job);
    if (step == SAVED) job = sk_saver_begin(s, run, &meta, behind, 0, 0);
    out.began = out.began || o.engine.ctx.between != NULL;
  }
  keep(&out, &o);
  sk_saver_close(s);
  batch_free(&k);
  on_grid_close(&o);
  sk_free(c.layer);
  return out;
}

static bool none_after(const outcome *o, int end) {
  bool ok = !o->after[STEPS];
  for (int step = 1; step <= STEPS; step++) ok = ok && !(o->after[step] && (step <= SAVED || step >= end));
  return all(ok);
}

static void tests(void) {
  sk_err e = {0};
  outcome waiting = train("waiting", false, SAVED + 1, &e);
  tap_ok(!e.code && all(waiting.helps && !waiting.began) && none_after(&waiting, SAVED + 1),
         "%d ranks of %d threads are to help, but not while training waits %s", tap_size, own, e.msg);
  for (int end = SAVED + 1; end <= STEPS; end += 2) {
    char *run = sk_strf("behind-%d", end), *path = sk_strf("%s/checkpoints/step-%08d", run, SAVED);
    outcome behind = train(run, true, end, &e);
    tap_ok(!e.code && all(behind.began) && none_after(&behind, end), "they help, until step %d at most %s", end, e.msg);
    tap_ok(same(&behind, &waiting), "and the same losses, weights and moments, bit for bit");
    tap_ok(sk_ckpt_verify(MPI_COMM_WORLD, path, &e) == SK_OK, "all hashes are right %s", e.msg);
    sk_free(behind.state);
    sk_free(path);
    sk_free(run);
  }
  if (tap_rank == 0) sk_fs_mkdirs("failed/checkpoints", &e);
  if (tap_rank == 0) sk_fs_write("failed/checkpoints/step-00000003", "in the way", 10, false, &e);
  SK_CHECK(e.code == SK_OK, "%s", e.msg);
  outcome failed = train("failed", true, STEPS, &e);
  tap_ok(e.code == SK_FAILED && none_after(&failed, STEPS) && same(&failed, &waiting), "a save that fails: likewise (%s)", e.msg);
  sk_free(waiting.state);
  sk_free(failed.state);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  folder_enter("helps");
  int cores = omp_get_num_procs();
  own = (cores + tap_size - 1) / tap_size > 1 ? (cores + tap_size - 1) / tap_size : 2;
  tests();
  folder_remove();
  return tap_done();
}
