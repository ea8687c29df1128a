/* bench_io.c: what a checkpoint costs, beside what it could cost at best: plain copies and plain writes of the same
 * bytes, in turn with the real thing. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/bench.h"
#include "io/ckpt_job.h"
#include "src/checkpoint.h"
#include "src/layout.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
  COPY, STALL, PLAIN, PLAIN_BEHIND, WAITING, BEHIND, CHECK, REMOVE, LOAD, STEP, STEP_BUSY, STEP_CHECK, STEP_PLAIN, STEP_SAVED, KINDS
};
enum { NONE = LOAD }; /* compared with nothing */

typedef struct bench_io {
  sk_bench *b;
  sk_engine engine;
  sk_grid grid;
  int32_t *ids, *label, *start;
  int64_t steps; /* done so far */
  sk_saver *saver;
  int n_file, writers; /* of a checkpoint; threads of each rank that write */
  const sk_ckpt_form *form;
  const char *data; /* what plain writes write */
  int *fd; /* [n_file] of theirs */
  void *copy_from, *copy_to; /* [bytes] on the device and on the host */
  char *run; /* folder of the checkpoints and the plain writes */
  size_t bytes;  /* of this rank */
  double total;  /* of all ranks: 12 bytes per parameter */
  double *each[KINDS]; /* seconds, of the slowest rank */
  int n[KINDS];
  int within; /* steps within the last save */
} bench_io;

static void note(bench_io *s, int kind, double seconds) {
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, s->b->comm));
  s->each[kind] = sk_realloc(s->each[kind], (size_t)(s->n[kind] + 1) * sizeof *s->each[kind]);
  s->each[kind][s->n[kind]++] = seconds;
}

/* Part 0.5 is the median, 0.25 and 0.75 are the quartiles. */
static double quantile(bench_io *s, int kind, double part) {
  if (!s->n[kind]) return 0;
  sk_sort(s->each[kind], s->n[kind]);
  return s->each[kind][(int)(part * s->n[kind])];
}

static double median(bench_io *s, int kind) { return quantile(s, kind, 0.5); }

/* ---- training, as in bench_step.c ---- */

static void random_tokens(bench_io *s, const sk_config *c) {
  int64_t T = c->data.sequence, n = c->train.global_batch / s->grid.n[SK_DP] * T;
  s->ids = sk_calloc((size_t)n * 3, sizeof *s->ids);
  s->label = s->ids + n;
  s->start = s->label + n;
  uint64_t key = sk_rand((uint64_t)c->run.seed, (uint64_t)s->grid.at[SK_DP]);
  for (int64_t i = 0; i < n; i++) s->ids[i] = (int32_t)(sk_rand(key, (uint64_t)i) % (uint64_t)c->model.vocab_size);
  for (int64_t i = 0; i < n; i++) s->label[i] = (i + 1) % T ? s->ids[i + 1] : -1;
}

/* Seconds of one step. */
static double step(bench_io *s) {
  const sk_config *c = s->b->cfg;
  sk_engine *g = &s->engine;
  int bad;
  double begin = sk_now();
  sk_engine_step(g, s->ids, s->label, s->start, 1.0 / (double)(c->train.global_batch * (c->data.sequence - 1)));
  sk_engine_take_loss(g);
  double norm = sk_optim_norm(&g->opt, &g->ctx, s->grid.zero, s->grid.model, g->model.all.n, &bad);
  sk_optim_update(&g->opt, &g->ctx, c, ++s->steps, c->optimizer.lr, norm > 1 ? 1 / norm : 1);
  sk_optim_gather(&g->opt, &g->ctx);
  g->ctx.op->sync(g->ctx.st);
  return sk_now() - begin;
}

/* ---- what could be had at best ---- */

/* The state's bytes from the device to the host in one piece. */
static void plain_copy(bench_io *s, bool count) {
  const sk_ops *op = s->engine.ctx.op;
  MPI_Barrier(s->b->comm);
  double begin = sk_now();
  op->copy_host(s->engine.ctx.st, s->copy_to, s->copy_from, s->bytes);
  op->sync(s->engine.ctx.st);
  if (count) note(s, COPY, sk_now() - begin);
}

static void write_block(bench_io *s, int fd, const char *p, size_t n, off_t at, sk_err *e) {
  for (size_t done = 0; done < n && !e->code;) {
    ssize_t k = pwrite(fd, p + done, n - done, at + (off_t)done);
    if (k > 0) done += (size_t)k;
    else if (errno != EINTR) sk_fs_fail(e, s->run, "written", errno);
  }
}

/* This thread's share of all files, of the same size each, in blocks: some threads begin with one, some with another. */
static void write_blocks(bench_io *s, int thread, int threads, sk_err *e) {
  const int64_t most = 16 << 20, block = (int64_t)s->bytes < most ? (int64_t)s->bytes : most;
  int64_t all = (int64_t)s->b->ranks * threads, me = (int64_t)s->b->rank * threads + thread, used = 0;
  for (int i = 0; i < s->n_file; i++) {
    int k = (int)((me + i) % s->n_file);
    int64_t size = sk_ckpt_form_bytes(s->form, k), at = size / all * me, end = me == all - 1 ? size : size / all * (me + 1);
    for (; at < end && !e->code; at += block, used += block) {
      size_t part = (size_t)(end - at < block ? end - at : block);
      size_t room = s->bytes - (size_t)block; /* another place in memory for each block */
      size_t from = room ? (size_t)(thread * (int64_t)room / threads + used) % room / 64 * 64 : 0;
      write_block(s, s->fd[k], s->data + from, part, at, e);
    }
  }
}

/* A thread that has others write, and how it went. */
typedef struct in_thread {
  bench_io *s;
  int threads;
  bool gives_way; /* to training */
  atomic_bool over;
  double seconds;
  sk_err e;
} in_thread;

static void share(void *arg, int worker, int i, sk_err *e) {
  in_thread *t = arg;
  (void)worker;
  write_blocks(t->s, i, t->threads, e);
}

static void *run_writers(void *arg) {
  in_thread *t = arg;
  double begin = sk_now();
  sk_ckpt_widen();
  if (t->gives_way) sk_ckpt_give_way();
  sk_ckpt_each(t->threads, t->threads, share, t, &t->e);
  for (int k = 0; k < t->s->n_file; k++)
    if (fsync(t->s->fd[k]) != 0) sk_fs_fail(&t->e, t->s->run, "written", errno);
  t->seconds = sk_now() - begin;
  atomic_store(&t->over, true);
  return NULL;
}

static void open_plain(bench_io *s, sk_err *e) {
  for (int k = 0; k < s->n_file; k++) {
    char *path = sk_strf("%s/plain-%d", s->run, k);
    if (s->b->rank == 0 && !e->code) sk_fs_reserve(path, sk_ckpt_form_bytes(s->form, k), e);
    s->fd[k] = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (s->fd[k] < 0) sk_fs_fail(e, path, "created", errno);
    sk_free(path);
  }
}

static void close_plain(bench_io *s, sk_err *e) {
  for (int k = 0; k < s->n_file; k++) {
    char *path = sk_strf("%s/plain-%d", s->run, k);
    if (s->fd[k] >= 0 && close(s->fd[k]) != 0) sk_fs_fail(e, path, "written", errno);
    s->fd[k] = -1;
    sk_agree(s->b->comm, e);
    if (s->b->rank == 0) unlink(path);
    sk_free(path);
  }
}

/* As many bytes by pwrite into as many preallocated files by as many threads, synced by every rank. */
static void plain_write(bench_io *s, sk_err *e) {
  pthread_t thread;
  in_thread t = {.s = s, .threads = s->writers};
  MPI_Barrier(s->b->comm);
  double begin = sk_now();
  open_plain(s, e);
  if (!e->code && sk_ckpt_thread(&thread, run_writers, &t)) pthread_join(thread, NULL);
  else if (!e->code) run_writers(&t);
  if (t.e.code) sk_fail(e, t.e.code, "%s", t.e.msg);
  note(s, PLAIN, sk_now() - begin);
  close_plain(s, e);
}

/* ---- the real thing ---- */

static sk_ckpt_job *begin_save(bench_io *s, int64_t at, bool behind) {
  const sk_ckpt_meta meta = {.step = at, .grid = {s->grid.n[0], s->grid.n[1], s->grid.n[2], s->grid.n[3]},
                             .deck = s->b->cfg->resolved};
  return sk_saver_begin(s->saver, s->run, &meta, behind, 0, 0);
}

/* By rank 0, as it happens to the oldest one when there are enough of them; not counted as writing. */
static void remove_saved(bench_io *s, int64_t at) {
  char *path = sk_strf("%s/checkpoints/step-%08lld", s->run, (long long)at);
  MPI_Barrier(s->b->comm);
  double begin = sk_now();
  if (s->b->rank == 0) sk_fs_remove(path);
  note(s, REMOVE, sk_now() - begin);
  sk_free(path);
}

static void save_waiting(bench_io *s, int64_t at, sk_err *e) {
  sk_ckpt_result r;
  MPI_Barrier(s->b->comm);
  double begin = sk_now();
  sk_ckpt_job *job = begin_save(s, at, false);
  while (!sk_ckpt_published(job)) sk_ckpt_go_on(job);
  note(s, WAITING, sk_now() - begin);
  sk_ckpt_end(job, &r, e);
}

/* As many as lay within the last save, before and after each: what both are compared in changes with time. */
static void quiet_steps(bench_io *s) {
  int n = s->within < 3 ? 3 : s->within < 12 ? s->within : 12;
  for (int i = 0; i < n; i++) {
    MPI_Barrier(s->b->comm);
    note(s, STEP, step(s));
  }
}

/* A step while others work; it counts if they did from its begin to its end: on a save, reading it back, plain writes. */
static double step_beside(bench_io *s, const atomic_bool *over, const sk_ckpt_job *job) {
  const int kind = !job ? STEP_PLAIN : sk_ckpt_published(job) ? STEP_CHECK : STEP_BUSY;
  int busy = job ? !sk_ckpt_idle(job) : !atomic_load(over);
  double seconds = step(s);
  busy = busy && (job ? !sk_ckpt_idle(job) : !atomic_load(over));
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &busy, 1, MPI_INT, MPI_MAX, s->b->comm));
  if (busy) note(s, kind, seconds), s->within++;
  return seconds;
}

static bool all_say(bench_io *s, bool mine) {
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &mine, 1, MPI_C_BOOL, MPI_LAND, s->b->comm));
  return mine;
}

/* Plain writes behind training, by as many threads as a checkpoint has there: what any writer takes from it. */
static void plain_behind(bench_io *s, sk_err *e) {
  pthread_t thread;
  in_thread t = {.s = s, .threads = sk_ckpt_form_workers(s->form, true),
                 .gives_way = sk_ckpt_form_gives_way(s->form)};
  open_plain(s, e);
  MPI_Barrier(s->b->comm);
  bool threaded = !e->code && sk_ckpt_thread(&thread, run_writers, &t);
  if (!threaded) atomic_store(&t.over, true);
  while (!all_say(s, atomic_load(&t.over))) step_beside(s, &t.over, NULL);
  if (threaded) pthread_join(thread, NULL);
  if (all_say(s, threaded)) note(s, PLAIN_BEHIND, t.seconds);
  if (t.e.code) sk_fail(e, t.e.code, "%s", t.e.msg);
  close_plain(s, e);
}

/* Training goes on as src/train.c does it. */
static void save_behind(bench_io *s, int64_t at, sk_err *e) {
  sk_ckpt_result r;
  quiet_steps(s);
  plain_copy(s, true);
  MPI_Barrier(s->b->comm);
  double begin = sk_now(), all = 0;
  sk_ckpt_job *job = begin_save(s, at, true);
  note(s, STALL, sk_now() - begin);
  s->within = 0;
  int n = 0;
  for (bool over = false; !over; n++) {
    all += step_beside(s, NULL, job);
    if (all_say(s, sk_ckpt_idle(job))) over = sk_ckpt_go_on(job);
  }
  note(s, STEP_SAVED, all / n);
  sk_ckpt_end(job, &r, e);
  note(s, BEHIND, r.busy);
  note(s, CHECK, r.checked);
  quiet_steps(s);
}

static void load(bench_io *s, int64_t at, sk_err *e) {
  char *path = sk_strf("%s/checkpoints/step-%08lld", s->run, (long long)at);
  sk_ckpt_meta meta;
  MPI_Barrier(s->b->comm);
  double begin = sk_now();
  if (sk_ckpt_open(s->b->comm, path, &meta, NULL, e) == SK_OK) {
    sk_checkpoint_load(s->b->comm, &s->engine, path, false, e);
    sk_ckpt_meta_free(&meta);
  }
  note(s, LOAD, sk_now() - begin);
  sk_free(path);
}

/* ---- results ---- */

/* The median of a kind and the quartiles around it; `faster`: the ratio is of speeds, not of times. */
static void line(bench_io *s, const char *name, double bytes, int kind, int against, bool faster) {
  static const char *const than[KINDS] = {[COPY] = "a plain copy", [PLAIN] = "plain writes", [STEP] = "a quiet step"};
  double seconds = median(s, kind), low = quantile(s, kind, 0.25), high = quantile(s, kind, 0.75);
  double other = median(s, against), ratio = faster ? other / seconds : seconds / other;
  char rate[32] = "", range[64] = "", factor[64] = "";
  snprintf(range, sizeof range, "(%.1f to %.1f)", 1e3 * low, 1e3 * high);
  if (bytes > 0) snprintf(rate, sizeof rate, "%.3f GB/s", 1e-9 * bytes / seconds);
  if (than[against]) snprintf(factor, sizeof factor, "%.2f x %s", ratio, than[against]);
  sk_say("  %-28s %9.1f ms %-22s x %-3d %12s  %s", name, 1e3 * seconds, range, s->n[kind], rate, factor);
  json_t *o = sk_bench_result(s->b, "io", s->engine.ctx.op->describe(s->engine.ctx.dev));
  json_object_set_new(o, "kind", json_string(name));
  json_object_set_new(o, "files", json_integer(s->n_file));
  json_object_set_new(o, "writers", json_integer(s->writers));
  json_object_set_new(o, "writers_behind", json_integer(sk_ckpt_form_workers(s->form, true)));
  json_object_set_new(o, "bytes", json_real(bytes));
  json_object_set_new(o, "count", json_integer(s->n[kind]));
  json_object_set_new(o, "ms", json_real(1e3 * seconds));
  json_object_set_new(o, "quartiles_ms", json_pack("[f, f]", 1e3 * low, 1e3 * high));
  json_object_set_new(o, "gbps", json_real(1e-9 * bytes / seconds));
  if (than[against]) json_object_set_new(o, "ratio", json_real(ratio));
  if (!s->b->results) json_decref(o);
}

static void report(bench_io *s) {
  sk_say("Checkpoints of %s on %d rank%s, %s (%s in %d files by %d writers in each rank, %d behind training), in %s; "
         "medians, quartiles and how many", s->b->model, s->b->ranks, s->b->ranks == 1 ? "" : "s",
         s->engine.ctx.op->describe(s->engine.ctx.dev), sk_bytes(s->total), s->n_file, s->writers,
         sk_ckpt_form_workers(s->form, true), s->run);
  line(s, "plain copy to the host", s->total, COPY, NONE, false);
  line(s, "stall", s->total, STALL, COPY, false);
  line(s, "step", 0, STEP, NONE, false);
  if (s->n[STEP_BUSY]) line(s, "step while writing", 0, STEP_BUSY, STEP, false);
  else sk_say("  no step lay within a save: a larger model or less of it in the batch tells more");
  if (s->n[STEP_CHECK]) line(s, "step while it is read back", 0, STEP_CHECK, STEP, false);
  line(s, "steps of a save, mean", 0, STEP_SAVED, STEP, false);
  if (s->n[STEP_PLAIN]) line(s, "step beside plain writes", 0, STEP_PLAIN, STEP, false);
  line(s, "plain writes, synced", s->total, PLAIN, NONE, false);
  if (s->n[PLAIN_BEHIND]) line(s, "plain writes behind training", s->total, PLAIN_BEHIND, PLAIN, true);
  line(s, "checkpoint, training waits", s->total, WAITING, PLAIN, true);
  line(s, "checkpoint, behind training", s->total, BEHIND, PLAIN, true);
  line(s, "reading it back", s->total, CHECK, NONE, false);
  line(s, "removal of a checkpoint", s->total, REMOVE, NONE, false);
  line(s, "load", s->total, LOAD, NONE, false);
}

static int open_copies(bench_io *s, sk_err *e) {
  const sk_ops *op = s->engine.ctx.op;
  char *data = sk_malloc(s->bytes);
  sk_bench_random((float *)(void *)data, (int64_t)(s->bytes / sizeof(float)), (uint64_t)s->b->rank, 1);
  s->data = data;
  s->fd = sk_calloc((size_t)s->n_file, sizeof *s->fd);
  s->copy_from = op->alloc(s->engine.ctx.dev, s->bytes);
  s->copy_to = op->host_alloc(s->engine.ctx.dev, s->bytes);
  if (!s->copy_from || !s->copy_to)
    sk_fail(e, SK_FAILED, "out of memory: 2 x %s for plain copies", sk_bytes((double)s->bytes));
  if (sk_agree(s->b->comm, e) != SK_OK) return e->code;
  op->zero(s->engine.ctx.st, s->copy_from, s->bytes);
  memset(s->copy_to, 0, s->bytes);
  return SK_OK;
}

static void close_copies(bench_io *s) {
  const sk_ops *op = s->engine.ctx.op;
  op->free(s->engine.ctx.dev, s->copy_from);
  op->host_free(s->engine.ctx.dev, s->copy_to);
  sk_free(s->fd);
  sk_free((char *)(uintptr_t)s->data);
}

static int measure(bench_io *s, sk_err *e) {
  int64_t repeat = open_copies(s, e) == SK_OK ? s->b->repeat : 0;
  for (int64_t i = 0; i < s->b->warmup && repeat; i++) step(s), plain_copy(s, false);
  for (int64_t i = 0; i < repeat && !e->code; i++) { // in turn: disks and neighbours change with time
    plain_write(s, e);
    if (!e->code) plain_behind(s, e);
    if (!e->code) save_waiting(s, 2 * i + 1, e);
    remove_saved(s, 2 * i + 1);
    if (!e->code) save_behind(s, 2 * i + 2, e);
    if (!e->code) load(s, 2 * i + 2, e);
    remove_saved(s, 2 * i + 2);
  }
  close_copies(s);
  return e->code;
}

int sk_bench_io(sk_bench *b, const char *folder, sk_err *e) {
  const sk_config *c = b->cfg;
  bench_io s = {.b = b};
  int n[SK_NAXES];
  if (sk_layout_grid(c, b->ranks, n, e) != SK_OK) return e->code;
  sk_grid_create(&s.grid, b->comm, n);
  s.run = sk_strf("%s/saker-bench", folder);
  if (sk_engine_open(&s.engine, c, b->op, b->comms, &s.grid, true, c->train.micro_batch, c->data.sequence,
                     c->data.sequence, e) == SK_OK) {
    random_tokens(&s, c);
    sk_engine_init(&s.engine);
    if (sk_saver_open(b->comm, &s.engine, s.run, "bench", c->checkpoint.files, &s.saver, e) == SK_OK) {
      s.bytes = sk_saver_bytes(s.saver);
      s.n_file = sk_saver_files(s.saver, &s.form);
      s.writers = sk_ckpt_form_workers(s.form, false);
      s.total = (double)s.bytes;
      SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &s.total, 1, MPI_DOUBLE, MPI_SUM, b->comm));
      if (measure(&s, e) == SK_OK) report(&s);
    }
    sk_saver_close(s.saver);
    sk_engine_close(&s.engine);
    MPI_Barrier(b->comm);
    if (b->rank == 0) sk_fs_remove(s.run);
  }
  for (int k = 0; k < KINDS; k++) sk_free(s.each[k]);
  sk_free(s.ids);
  sk_free(s.run);
  sk_grid_destroy(&s.grid);
  return e->code;
}
