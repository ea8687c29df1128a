/* ckpt_save.c: writing a checkpoint: three pieces of work behind the program's back, and what the ranks agree on in
 * between. The workers know neither MPI nor HDF5. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt_job.h"
#include "io/manifest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the form of a run's checkpoints ---- */

struct sk_ckpt_form {
  char who[300]; /* HOST-PID of rank 0: ends the name of a tmp folder */
  int n_file;
  sk_ckpt_threads waiting, behind; /* while the ranks wait, while they compute */
  bool first_of_node;
  sk_h5_form *file;
};

/* What an earlier process of this very host and number has left (in a container numbers come again soon). */
static void remove_left_over(const char *dir, const char *prefix, const char *who) {
  char **name, *end = sk_strf(".tmp.%s", who);
  int64_t n;
  sk_err e = {0};
  sk_fs_list(dir, &name, &n, &e);
  for (int64_t i = 0; i < n; i++) {
    size_t len = strlen(name[i]), tail = strlen(end);
    if (len <= tail || strncmp(name[i], prefix, strlen(prefix)) != 0 || strcmp(name[i] + len - tail, end) != 0) continue;
    char *path = sk_strf("%s/%s", dir, name[i]);
    sk_fs_remove(path);
    sk_free(path);
  }
  sk_fs_free_names(name, n);
  sk_free(end);
}

/* Every rank must find the folder that rank 0 has made. */
static int check_shared(MPI_Comm comm, const char *dir, const char *prefix, const sk_ckpt_form *form, sk_err *e) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  char *probe = sk_strf("%s/probe.%s", dir, form->who);
  if (rank == 0 && sk_fs_mkdirs(dir, e) == SK_OK) {
    remove_left_over(dir, prefix, form->who);
    sk_fs_write(probe, "", 0, false, e);
  }
  sk_agree(comm, e);
  if (!e->code && access(probe, F_OK) != 0)
    sk_fail(e, SK_FAILED, "%s: rank %d on %s does not see what rank 0 writes there; it must be on a file system "
            "that all nodes share", dir, rank, sk_host());
  sk_agree(comm, e);
  if (rank == 0) unlink(probe);
  sk_free(probe);
  return e->code;
}

/* For checkpoints in `dir` whose names begin with `prefix`. */
static int form_make(MPI_Comm comm, const char *dir, const char *prefix, const char *run_id, int n_file,
                     const sk_ckpt_file *file, sk_ckpt_form **out, sk_err *e) {
  const char *const attrs[] = {"format", "saker-checkpoint", "run_id", run_id[0] ? run_id : "-", NULL};
  int rank;
  MPI_Comm_rank(comm, &rank);
  SK_CHECK(n_file > 0 && n_file <= SK_CKPT_MAX_FILES, "%d files in a checkpoint", n_file);
  sk_ckpt_form *form = sk_calloc(1, sizeof *form);
  *out = NULL;
  form->n_file = n_file;
  form->waiting = form->behind = sk_ckpt_threads_beside(comm, 0, false, &form->first_of_node);
  form->file = sk_calloc((size_t)n_file, sizeof *form->file);
  snprintf(form->who, sizeof form->who, "%s-%ld", sk_host(), (long)getpid());
  SK_MPI(MPI_Bcast(form->who, sizeof form->who, MPI_CHAR, 0, comm));
  for (int k = 0; rank == 0 && k < n_file && !e->code; k++)
    sk_h5_form_make(file[k].name, file[k].n_dset, file[k].dset, attrs, &form->file[k], e);
  if (sk_agree(comm, e) == SK_OK && check_shared(comm, dir, prefix, form, e) == SK_OK) {
    for (int k = 0; k < n_file; k++) {
      sk_h5_form *f = &form->file[k];
      if (rank != 0) sk_h5_form_empty(file[k].n_dset, file[k].dset, f);
      SK_MPI(MPI_Bcast(&f->size, 1, MPI_INT64_T, 0, comm));
      SK_MPI(MPI_Bcast(f->offset, f->first[file[k].n_dset], MPI_INT64_T, 0, comm));
    }
    *out = form;
  } else {
    sk_ckpt_form_free(form);
  }
  return e->code;
}

int sk_ckpt_form_make(MPI_Comm comm, const char *run_dir, const char *run_id, int n_file, const sk_ckpt_file *file,
                      sk_ckpt_form **out, sk_err *e) {
  char *dir = sk_strf("%s/checkpoints", run_dir);
  form_make(comm, dir, "step-", run_id, n_file, file, out, e);
  sk_free(dir);
  return e->code;
}

void sk_ckpt_form_free(sk_ckpt_form *form) {
  if (!form) return;
  for (int k = 0; k < form->n_file; k++) sk_h5_form_free(&form->file[k]);
  sk_free(form->file);
  sk_free(form);
}

int64_t sk_ckpt_form_bytes(const sk_ckpt_form *form, int k) { return form->file[k].size; }

int sk_ckpt_form_beside(MPI_Comm comm, sk_ckpt_form *form, int threads, bool aside) {
  form->behind = sk_ckpt_threads_beside(comm, threads, aside, NULL);
  return form->behind.own;
}

bool sk_ckpt_form_gives_way(const sk_ckpt_form *form) { return form->behind.give_way; }

int sk_ckpt_form_writers(const sk_ckpt_form *form, bool behind) {
  return behind ? form->behind.writers : form->waiting.writers;
}

void sk_ckpt_form_set_writers(sk_ckpt_form *form, int n, double share) {
  SK_CHECK(n > 0 && n <= SK_CKPT_WORKERS, "%d threads to write", n);
  form->waiting = form->behind = (sk_ckpt_threads){.writers = n, .hashers = n, .share = share};
}

/* ---- a save ---- */

typedef enum phase { WRITE, HASH, PUBLISH, OVER } phase;

struct sk_ckpt_job {
  MPI_Comm comm;
  int rank, size;
  phase phase;
  void (*work)(struct sk_ckpt_job *); /* of this phase */
  pthread_t thread;
  bool threaded;           /* there is one to be joined */
  atomic_bool behind;      /* the program computes meanwhile */
  sk_ckpt_threads threads; /* of this phase */
  atomic_bool idle;        /* the work is done */
  sk_err err, late; /* of this rank until the ranks have agreed; what only deserves a warning */
  sk_err sync_err;  /* of the thread that syncs */
  double began, busy; /* moment; seconds of work so far */
  const sk_ckpt_form *form;
  const sk_ckpt_file *file; /* [form->n_file], borrowed */
  sk_ckpt_part *part;       /* [form->n_file] */
  uint64_t *sum;            /* [form->n_file] of what all ranks wrote */
  sk_manifest *m;           /* files: size and hash of those that this rank hashes; rank 0: all, and the sides */
  char *dir, *name, *tmp;   /* the folder, the checkpoint's name in it, path of the tmp folder */
  char *run_dir;            /* NULL: no hint and no pruning */
  int64_t keep, keep_every;
};

static void *run(void *arg) {
  sk_ckpt_job *j = arg;
  double begin = sk_now();
  if (j->threaded) sk_ckpt_widen();
  if (j->threaded && j->threads.give_way) sk_ckpt_give_way();
  j->work(j);
  j->busy += sk_now() - begin;
  atomic_store(&j->idle, true);
  return NULL;
}

/* Without a thread the work is done now. */
static void start(sk_ckpt_job *j, phase now, void (*work)(sk_ckpt_job *)) {
  j->phase = now;
  j->work = work;
  j->threads = atomic_load(&j->behind) ? j->form->behind : j->form->waiting;
  atomic_store(&j->idle, false);
  j->threaded = true; // before the thread is there to read it
  if (sk_ckpt_thread(&j->thread, run, j)) return;
  j->threaded = false;
  run(j);
}

/* ---- first: every rank writes what it has ---- */

/* Rank 0: the side files, and what the manifest has to say of them. */
static void write_sides(sk_ckpt_job *j) {
  const sk_ckpt_meta *t = &j->m->meta;
  for (int i = 0; i < t->n_side && !j->err.code; i++) {
    sk_manifest_file *f = &j->m->file[j->form->n_file + i];
    char *path = sk_strf("%s/%s", j->tmp, f->name);
    sk_hash_text have;
    f->size = (int64_t)t->side[i].size;
    sk_hash_hex(t->side[i].data, t->side[i].size, f->hash);
    if (sk_fs_write(path, t->side[i].data, t->side[i].size, true, &j->err) == SK_OK &&
        sk_fs_hash(path, have, &j->err) == SK_OK && strcmp(have, f->hash) != 0)
      sk_ckpt_lied(path, &j->err);
    sk_free(path);
  }
}

enum { MOST_OPEN = 64 }; /* files at a time; more than these are synced before the next ones */

typedef struct unit {
  sk_ckpt_part *part;
  int slab, of; /* of so many of its file */
} unit;

typedef struct batch {
  const sk_ckpt_job *job;
  sk_ckpt_part *part;
  int n_part, n, first;
  unit *unit; /* [n], to be written from `first` on */
  bool sourced;
  sk_ckpt_room room[SK_CKPT_WORKERS];
  atomic_bool written;
} batch;

/* A file system may let only one thread at a time write to a file: each goes through all of them side by side, and every
 * rank begins at another place. */
static int by_turn(const void *a, const void *b) {
  const unit *x = a, *y = b;
  int64_t u = (int64_t)x->slab * y->of, v = (int64_t)y->slab * x->of;
  return u != v ? (u > v) - (u < v) : (x->part > y->part) - (x->part < y->part);
}

static void write_unit(void *arg, int worker, int i, sk_err *e) {
  batch *b = arg;
  const sk_ckpt_job *j = b->job;
  const unit *u = &b->unit[(b->first + i) % b->n];
  double wall = sk_now(), cpu = sk_ckpt_cpu_time();
  sk_ckpt_part_slab(u->part, u->slab, &b->room[worker], e);
  if (j->threads.share < 1 && i + 1 < b->n) // nobody rests from the last
    sk_ckpt_rest(j->threads.share, sk_ckpt_cpu_time() - cpu, sk_now() - wall, &j->behind);
}

/* Hands to the disk what has been written so far, so that it does not begin only at the end. */
static void *flush(void *arg) {
  batch *b = arg;
  while (!atomic_load(&b->written)) {
    for (int k = 0; k < b->n_part; k++) sk_ckpt_part_flush(&b->part[k]);
    usleep(2000);
  }
  return NULL;
}

static void write_units(const sk_ckpt_job *j, batch *b, int workers, sk_err *e) {
  pthread_t flusher;
  if (workers * j->size > 1 && !b->sourced) {
    qsort(b->unit, (size_t)b->n, sizeof *b->unit, by_turn);
    b->first = (int)((int64_t)b->n * j->rank / j->size);
  }
  for (int i = 0; i < workers; i++) sk_ckpt_room_open(&b->room[i]);
  bool flushes = j->form->first_of_node && sk_ckpt_thread(&flusher, flush, b);
  sk_ckpt_each(b->n, workers, write_unit, b, e);
  atomic_store(&b->written, true);
  if (flushes) pthread_join(flusher, NULL);
  for (int i = 0; i < workers; i++) sk_ckpt_room_close(&b->room[i]);
}

static void write_batch(const sk_ckpt_job *j, sk_ckpt_part *part, int n_part, sk_err *e) {
  batch *b = sk_calloc(1, sizeof *b);
  int most = 0, workers = j->threads.writers;
  *b = (batch){.job = j, .part = part, .n_part = n_part};
  for (int k = 0; k < n_part; k++) most += part[k].file->n_slab;
  b->unit = sk_calloc((size_t)most, sizeof *b->unit);
  for (int k = 0; k < n_part && !e->code; k++) {
    const sk_ckpt_file *f = part[k].file;
    int before = b->n;
    if (f->source) workers = 1, b->sourced = true; /* one by one, in the order of its reader */
    for (int i = 0; i < f->n_slab; i++)
      if (sk_slab_count(&f->slab[i], f->dset[f->slab[i].dset].rank) > 0)
        b->unit[b->n++] = (unit){&part[k], i, f->n_slab};
    if (j->rank == 0 || b->n > before) sk_ckpt_part_open(&part[k], j->rank == 0, e);
  }
  if (!e->code) write_units(j, b, workers, e);
  for (int k = 0; k < n_part && !e->code; k++) sk_ckpt_part_show(&part[k], e);
  for (int k = 0; k < n_part && j->form->n_file > MOST_OPEN; k++) sk_ckpt_part_close(&part[k], !e->code, e);
  sk_free(b->unit);
  sk_free(b);
}

static void write_work(sk_ckpt_job *j) {
  int n = j->form->n_file;
  if (j->rank == 0) sk_fs_mkdirs(j->dir, &j->err);
  // The first to come makes it: nobody waits for rank 0.
  if (!j->err.code && mkdir(j->tmp, 0777) != 0 && errno != EEXIST) sk_fs_fail(&j->err, j->tmp, "created", errno);
  for (int k = 0; k < n && !j->err.code; k += MOST_OPEN)
    write_batch(j, j->part + k, n - k < MOST_OPEN ? n - k : MOST_OPEN, &j->err);
  if (j->rank == 0) write_sides(j);
}

/* Rank 0 gets the list of what the ranks wrote. */
static void gather_slabs(sk_ckpt_job *j) {
  sk_manifest *m = j->m;
  int n = 0, most = 0, n_file = j->form->n_file;
  for (int k = 0; k < n_file; k++) most += j->file[k].n_slab;
  sk_manifest_slab *mine = sk_calloc((size_t)most, sizeof *mine);
  for (int k = 0; k < n_file; k++)
    for (int i = 0; i < j->file[k].n_slab; i++) {
      const sk_slab *s = &j->file[k].slab[i];
      int rank = j->file[k].dset[s->dset].rank;
      if (sk_slab_count(s, rank) == 0) continue;
      sk_manifest_slab *x = &mine[n++];
      x->file = k;
      x->dset = s->dset;
      memcpy(x->start, s->start, (size_t)rank * sizeof *x->start);
      memcpy(x->count, s->count, (size_t)rank * sizeof *x->count);
      memcpy(x->hash, j->part[k].hash[i], SK_HASH_HEX);
    }
  int *counts = sk_calloc((size_t)j->size, sizeof *counts), *at = sk_calloc((size_t)j->size, sizeof *at);
  MPI_Datatype one;
  SK_MPI(MPI_Type_contiguous((int)sizeof *mine, MPI_BYTE, &one));
  SK_MPI(MPI_Type_commit(&one));
  SK_MPI(MPI_Gather(&n, 1, MPI_INT, counts, 1, MPI_INT, 0, j->comm));
  m->n_slab = counts[0]; // other ranks' stay 0
  for (int r = 1; r < j->size; r++) {
    at[r] = at[r - 1] + counts[r - 1];
    m->n_slab += counts[r];
  }
  m->slab = sk_calloc((size_t)m->n_slab, sizeof *m->slab);
  SK_MPI(MPI_Gatherv(mine, n, one, m->slab, counts, at, one, 0, j->comm));
  SK_MPI(MPI_Type_free(&one));
  sk_free(counts);
  sk_free(at);
  sk_free(mine);
}

static void add_sums(sk_ckpt_job *j) {
  for (int k = 0; k < j->form->n_file; k++) j->sum[k] = atomic_load(&j->part[k].sum);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, j->sum, j->form->n_file, MPI_UINT64_T, MPI_SUM, j->comm));
}

/* ---- then: size, hash and sum of each file by one rank, while every rank syncs its own ---- */

static void close_files(sk_ckpt_job *j, bool sync, sk_err *e) {
  for (int k = 0; k < j->form->n_file; k++) sk_ckpt_part_close(&j->part[k], sync && !e->code, e);
}

static void *sync_all(void *arg) {
  sk_ckpt_job *j = arg;
  close_files(j, true, &j->sync_err);
  return NULL;
}

static void add_up(void *sum, const char *data, size_t n, int64_t at) { *(uint64_t *)sum += sk_ckpt_sum(data, n, at); }

/* What is read here is what a load will read: its sum tells whether it is what was written. */
static void hash_one(void *arg, int worker, int i, sk_err *e) {
  sk_ckpt_job *j = arg;
  int k = j->rank + i * j->size;
  (void)worker;
  sk_manifest_file *f = &j->m->file[k];
  const char *path = j->part[k].path;
  uint64_t sum = 0;
  f->size = sk_fs_size(path);
  if (f->size != j->form->file[k].size)
    sk_fail(e, SK_FAILED, "%s: has %lld bytes where %lld were written", path, (long long)f->size,
            (long long)j->form->file[k].size);
  else if (sk_fs_hash_and(path, f->hash, add_up, &sum, e) == SK_OK && sum != j->sum[k])
    sk_ckpt_lied(path, e);
}

static void hash_work(sk_ckpt_job *j) {
  pthread_t syncer;
  int files = (j->form->n_file - j->rank + j->size - 1) / j->size;
  bool beside = sk_ckpt_thread(&syncer, sync_all, j);
  if (files > 0) sk_ckpt_each(files, j->threads.hashers, hash_one, j, &j->err);
  if (beside) pthread_join(syncer, NULL);
  else sync_all(j);
  if (j->sync_err.code) sk_fail(&j->err, j->sync_err.code, "%s", j->sync_err.msg);
}

/* Each file is known by one rank, the others have zeros. */
static void gather_hashes(sk_ckpt_job *j) {
  sk_manifest *m = j->m;
  int n = j->form->n_file;
  sk_hash_text *mine = sk_calloc((size_t)n, sizeof *mine), *all = sk_calloc((size_t)n, sizeof *all);
  for (int k = 0; k < n; k++) memcpy(mine[k], m->file[k].hash, SK_HASH_HEX);
  SK_MPI(MPI_Reduce(mine, all, n * SK_HASH_HEX, MPI_BYTE, MPI_BOR, 0, j->comm));
  for (int k = 0; j->rank == 0 && k < n; k++) {
    memcpy(m->file[k].hash, all[k], SK_HASH_HEX);
    m->file[k].size = j->form->file[k].size;
  }
  sk_free(mine);
  sk_free(all);
}

/* ---- last: rank 0 publishes ---- */

/* The slabs cover every dataset: a hole would be noticed only long after. */
static void check_cover(const sk_manifest *m) {
  for (int k = 0; k < m->n_file; k++) {
    const sk_manifest_file *f = &m->file[k];
    int64_t *left = sk_malloc((size_t)f->n_dset * sizeof *left);
    for (int d = 0; d < f->n_dset; d++) {
      sk_slab whole = {0};
      memcpy(whole.count, f->dset[d].dim, sizeof whole.count);
      left[d] = sk_slab_count(&whole, f->dset[d].rank);
    }
    for (int64_t i = 0; i < m->n_slab; i++) {
      if (m->slab[i].file != k) continue;
      sk_slab part = {0};
      memcpy(part.count, m->slab[i].count, sizeof part.count);
      left[m->slab[i].dset] -= sk_slab_count(&part, f->dset[m->slab[i].dset].rank);
    }
    for (int d = 0; d < f->n_dset; d++)
      SK_CHECK(left[d] == 0, "%s: the ranks' parts of %s leave %lld elements", f->name,
               f->dset[d].name, (long long)left[d]);
    sk_free(left);
  }
}

/* tmp takes the place of `final`, an existing folder of that name goes. */
static int publish(const char *tmp, const char *final, sk_err *e) {
  struct stat st;
  if (lstat(final, &st) != 0) {
    if (rename(tmp, final) != 0) sk_fs_fail(e, final, "created", errno);
  } else if (!S_ISDIR(st.st_mode)) {
    sk_fs_fail(e, final, "replaced", ENOTDIR);
  } else if (renameat2(AT_FDCWD, tmp, AT_FDCWD, final, RENAME_EXCHANGE) == 0) {
    sk_fs_remove(tmp);
  } else {
    char *old = sk_strf("%s.old.%s-%ld", final, sk_host(), (long)getpid());
    sk_fs_remove(old);
    if (rename(final, old) != 0) sk_fs_fail(e, final, "replaced", errno);
    else if (rename(tmp, final) != 0) {
      sk_fs_fail(e, final, "replaced", errno);
      rename(old, final);
    } else
      sk_fs_remove(old);
    sk_free(old);
  }
  return e->code;
}

/* The manifest is on the disk as it should be. */
static int check_manifest(const char *path, const char *text, sk_err *e) {
  sk_hash_text want, have;
  sk_hash_hex(text, strlen(text), want);
  if (sk_fs_hash(path, have, e) == SK_OK && strcmp(want, have) != 0) sk_ckpt_lied(path, e);
  return e->code;
}

/* Only a run has a hint and older checkpoints. */
static void after_publishing(sk_ckpt_job *j) {
  char *latest = sk_strf("%s/latest", j->dir), *hint = sk_strf("%s\n", j->name);
  sk_fs_write(latest, hint, strlen(hint), true, &j->late);
  if (j->keep > 0 && !j->late.code) sk_ckpt_prune(j->run_dir, j->keep, j->keep_every);
  sk_free(latest);
  sk_free(hint);
}

/* Manifest, sync, rename, hint; then older ones may go. */
static void publish_work(sk_ckpt_job *j) {
  if (j->rank != 0) return;
  char *path = sk_strf("%s/manifest.json", j->tmp), *final = sk_strf("%s/%s", j->dir, j->name);
  check_cover(j->m);
  char *text = sk_manifest_print(j->m, &j->err);
  if (text && sk_fs_write(path, text, strlen(text), true, &j->err) == SK_OK &&
      check_manifest(path, text, &j->err) == SK_OK && publish(j->tmp, final, &j->err) == SK_OK) {
    sk_fs_sync(j->dir, &j->late);
    if (j->run_dir) after_publishing(j);
  }
  sk_free(text);
  sk_free(final);
  sk_free(path);
}

/* ---- all of it ---- */

static void name_files(sk_ckpt_job *j) {
  const sk_ckpt_meta *t = &j->m->meta;
  int n = j->form->n_file, n_side = j->rank == 0 ? t->n_side : 0;
  SK_CHECK(n + n_side <= SK_CKPT_MAX_FILES, "%d files in a checkpoint", n + n_side);
  j->m->n_file = n + n_side;
  j->part = sk_calloc((size_t)n, sizeof *j->part);
  j->sum = sk_calloc((size_t)n, sizeof *j->sum);
  for (int i = 0; i < n_side; i++) memcpy(j->m->file[n + i].name, t->side[i].name, sizeof j->m->file->name);
  for (int k = 0; k < n; k++) {
    sk_manifest_file *f = &j->m->file[k];
    snprintf(f->name, sizeof f->name, "%s", j->file[k].name);
    f->n_dset = j->file[k].n_dset;
    f->dset = (sk_dset *)(uintptr_t)j->file[k].dset; // read only
    j->part[k] = (sk_ckpt_part){.path = sk_strf("%s/%s", j->tmp, f->name), .file = &j->file[k],
                                .form = &j->form->file[k], .fd = -1};
    j->part[k].hash = sk_calloc((size_t)j->file[k].n_slab, sizeof *j->part[k].hash);
  }
}

/* Takes dir and name over. run_dir: NULL outside of a run. */
static sk_ckpt_job *begin(MPI_Comm comm, char *dir, char *name, const char *run_dir, const sk_ckpt_meta *meta,
                          const sk_ckpt_form *form, const sk_ckpt_file *file, bool behind, int64_t keep,
                          int64_t keep_every) {
  sk_ckpt_job *j = sk_calloc(1, sizeof *j);
  j->comm = comm;
  MPI_Comm_rank(comm, &j->rank);
  MPI_Comm_size(comm, &j->size);
  j->began = sk_now();
  j->form = form;
  j->file = file;
  atomic_init(&j->behind, behind);
  j->keep = keep;
  j->keep_every = keep_every;
  j->run_dir = run_dir ? sk_strdup(run_dir) : NULL;
  j->dir = dir;
  j->name = name;
  j->tmp = sk_strf("%s/%s.tmp.%s", dir, name, form->who);
  j->m = sk_calloc(1, sizeof *j->m);
  j->m->meta = *meta;
  name_files(j);
  start(j, WRITE, write_work);
  return j;
}

sk_ckpt_job *sk_ckpt_begin(MPI_Comm comm, const char *run_dir, const sk_ckpt_meta *meta, const sk_ckpt_form *form,
                           const sk_ckpt_file *file, bool behind, int64_t keep, int64_t keep_every) {
  return begin(comm, sk_strf("%s/checkpoints", run_dir), sk_strf("step-%08lld", (long long)meta->step), run_dir, meta,
               form, file, behind, keep, keep_every);
}

bool sk_ckpt_idle(const sk_ckpt_job *j) { return atomic_load(&j->idle); }

bool sk_ckpt_go_on(sk_ckpt_job *j) {
  if (j->phase == OVER) return true;
  if (j->threaded) pthread_join(j->thread, NULL);
  j->threaded = false;
  if (sk_agree(j->comm, &j->err) != SK_OK) {
    close_files(j, false, &j->late);
    if (j->rank == 0) sk_fs_remove(j->tmp);
    j->phase = OVER;
  } else if (j->phase == WRITE) {
    gather_slabs(j);
    add_sums(j);
    start(j, HASH, hash_work);
  } else if (j->phase == HASH) {
    gather_hashes(j);
    start(j, PUBLISH, publish_work);
  } else {
    j->phase = OVER;
  }
  return j->phase == OVER;
}

int sk_ckpt_end(sk_ckpt_job *j, sk_ckpt_result *r, sk_err *e) {
  atomic_store(&j->behind, false); // nobody rests any more; from the next phase on at full speed
  while (!sk_ckpt_go_on(j)) continue;
  *r = (sk_ckpt_result){.step = j->m->meta.step, .seconds = sk_now() - j->began, .busy = j->busy};
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &r->busy, 1, MPI_DOUBLE, MPI_MAX, j->comm));
  for (int k = 0; k < j->form->n_file; k++) r->bytes += j->form->file[k].size;
  if (j->err.code) sk_fail(e, j->err.code, "%s", j->err.msg);
  else if (j->late.code) sk_warn("the checkpoint is complete, but: %s", j->late.msg);
  for (int k = 0; k < j->form->n_file; k++) {
    sk_free(j->part[k].hash);
    sk_free(j->part[k].path);
  }
  sk_free(j->part);
  sk_free(j->sum);
  sk_free(j->m->slab);
  sk_free(j->m);
  sk_free(j->run_dir);
  sk_free(j->dir);
  sk_free(j->name);
  sk_free(j->tmp);
  sk_free(j);
  return e->code;
}

int sk_ckpt_save(MPI_Comm comm, const char *run_dir, const sk_ckpt_meta *meta, int n_file, const sk_ckpt_file *file,
                 int64_t *bytes, sk_err *e) {
  sk_ckpt_form *form;
  sk_ckpt_result r = {0};
  if (sk_ckpt_form_make(comm, run_dir, meta->run_id, n_file, file, &form, e) == SK_OK)
    sk_ckpt_end(sk_ckpt_begin(comm, run_dir, meta, form, file, false, 0, 0), &r, e);
  sk_ckpt_form_free(form);
  if (bytes) *bytes = e->code ? 0 : r.bytes;
  return e->code;
}

int sk_ckpt_save_as(MPI_Comm comm, const char *path, const sk_ckpt_meta *meta, int n_file, const sk_ckpt_file *file,
                    int64_t *bytes, sk_err *e) {
  sk_ckpt_form *form = NULL;
  sk_ckpt_result r = {0};
  struct stat st;
  int rank;
  MPI_Comm_rank(comm, &rank);
  char *dir = sk_fs_parent(path), *whole = sk_strdup(path);
  for (size_t n = strlen(whole); n > 1 && whole[n - 1] == '/'; n--) whole[n - 1] = 0;
  const char *slash = strrchr(whole, '/');
  char *name = sk_strdup(slash && slash[1] ? slash + 1 : whole);
  if (rank == 0 && lstat(whole, &st) == 0) sk_fs_fail(e, path, "created", EEXIST);
  if (sk_agree(comm, e) == SK_OK && form_make(comm, dir, name, meta->run_id, n_file, file, &form, e) == SK_OK) {
    sk_ckpt_end(begin(comm, dir, name, NULL, meta, form, file, false, 0, 0), &r, e);
  } else {
    sk_free(dir);
    sk_free(name);
  }
  sk_ckpt_form_free(form);
  sk_free(whole);
  if (bytes) *bytes = e->code ? 0 : r.bytes;
  return e->code;
}
