/* ckpt_save.c: writing a checkpoint: four pieces of work behind the program's back, and what the ranks agree on in
 * between. The workers know neither MPI nor HDF5. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt_job.h"
#include "io/manifest.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- a save ---- */

typedef enum phase { WRITE, PUBLISH, CHECK, PRUNE, OVER } phase;

/* Of a core, for who checks a checkpoint that is published where the ranks leave none: it has time. */
static const double check_share = 0.05;

/* What has become of a folder that had the checkpoint's name before. */
typedef enum replaced { NOTHING, EXCHANGED, ASIDE } replaced; /* none was there; it is `tmp` now; it is `old` */

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
  double began, published; /* moment; seconds from then on */
  double busy, checked; /* seconds of work until it is published, and after */
  const sk_ckpt_form *form;
  const sk_ckpt_file *file; /* [form->n_file], borrowed */
  sk_ckpt_part *part;       /* [form->n_file] */
  sk_manifest *m;           /* size and sum of every HDF5 file; rank 0: all */
  char *dir, *name, *tmp, *final, *old; /* the folder, the checkpoint's name in it; paths */
  replaced replaced;
  char *run_dir;            /* NULL: no hint and no pruning */
  int64_t keep, keep_every;
};

static void *run(void *arg) {
  sk_ckpt_job *j = arg;
  double begin = sk_now();
  if (j->threaded) sk_ckpt_widen();
  if (j->threaded && j->threads.give_way) sk_ckpt_give_way();
  j->work(j);
  *(j->phase <= PUBLISH ? &j->busy : &j->checked) += sk_now() - begin;
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
    f->size = (int64_t)t->side[i].size;
    f->sum = sk_ckpt_sum(t->side[i].data, t->side[i].size, 0);
    sk_fs_write(path, t->side[i].data, t->side[i].size, true, &j->err);
    sk_free(path);
  }
}

enum {
  MOST_OPEN = 64,     /* files at a time; more than these are synced before the next ones */
  TOGETHER = 8 << 20, /* bytes up to which slabs are written as one */
};

/* A slab with data. */
typedef struct place {
  sk_ckpt_part *part;
  int slab;
  int64_t at, bytes; /* where it begins in the file; all of it if it lies together there, else 0 */
} place;

/* Slabs that lie together both in the file and in memory, or a single one. */
typedef struct unit {
  const place *first;
  int n, turn, of; /* how many; of so many units of its file */
  int64_t bytes;
} unit;

typedef struct batch {
  int n, first;
  unit *unit; /* [n], to be written from `first` on */
  bool pages; /* these first */
  double began, share; /* moment; of a core for each thread that writes them, */
  const atomic_bool *behind; /* while the program computes */
} batch;

static const char *data_of(const place *p) { return (const char *)p->part->file->slab[p->slab].data; }

static int by_place(const void *a, const void *b) {
  const place *x = a, *y = b;
  return (x->at > y->at) - (x->at < y->at);
}

/* The slabs of a file, in its order, in units. Returns how many slabs there are. */
static int add_units(batch *b, sk_ckpt_part *w, place *list) {
  const sk_ckpt_file *f = w->file;
  const int before = b->n;
  int n = 0;
  for (int i = 0; i < f->n_slab; i++) {
    if (!f->slab[i].data || sk_slab_count(&f->slab[i], f->dset[f->slab[i].dset].rank) == 0) continue;
    list[n] = (place){.part = w, .slab = i};
    list[n].at = sk_ckpt_place(f, w->form, i, &list[n].bytes);
    n++;
  }
  qsort(list, (size_t)n, sizeof *list, by_place);
  for (int i = 0; i < n; i++) {
    const place *p = &list[i];
    unit *u = b->n > before ? &b->unit[b->n - 1] : NULL;
    if (u && u->bytes && p->bytes && p->at == u->first->at + u->bytes && data_of(p) == data_of(u->first) + u->bytes &&
        u->bytes + p->bytes <= TOGETHER) {
      u->n++;
      u->bytes += p->bytes;
    } else {
      b->unit[b->n] = (unit){.first = p, .n = 1, .turn = b->n - before, .bytes = p->bytes};
      b->n++;
    }
  }
  for (int i = before; i < b->n; i++) b->unit[i].of = b->n - before;
  return n;
}

/* A file system may let only one thread at a time write to a file: each goes through all of them side by side, and every
 * rank begins at another place. */
static int by_turn(const void *a, const void *b) {
  const unit *x = a, *y = b;
  int64_t u = (int64_t)x->turn * y->of, v = (int64_t)y->turn * x->of;
  return u != v ? (u > v) - (u < v) : (x->first > y->first) - (x->first < y->first);
}

static void write_unit(void *arg, int worker, int i, sk_err *e) {
  batch *b = arg;
  const unit *u = &b->unit[(b->first + i) % b->n];
  const place *p = u->first;
  (void)worker;
  for (int k = 0; k < u->n && b->pages; k++) sk_ckpt_part_sum(p->part, p[k].slab, p->part->file->slab[p[k].slab].data);
  if (u->bytes) sk_ckpt_part_write_run(p->part, data_of(p), u->bytes, p->at, b->pages, e);
  else sk_ckpt_part_write(p->part, p->slab, p->part->file->slab[p->slab].data, b->pages, e);
  if (b->pages && b->share < 1 && p->part->direct >= 0 && p->part->file->sum)
    sk_ckpt_rest(b->share, sk_ckpt_cpu_time(), sk_now() - b->began, b->behind);
}

static void write_units(const sk_ckpt_job *j, batch *b, sk_err *e) {
  if (j->threads.workers * j->size > 1) {
    qsort(b->unit, (size_t)b->n, sizeof *b->unit, by_turn);
    b->first = (int)((int64_t)b->n * j->rank / j->size);
  }
  b->pages = true;
  sk_ckpt_each(b->n, j->threads.workers, write_unit, b, e);
  b->pages = false;
  if (!e->code) sk_ckpt_each(b->n, j->threads.workers, write_unit, b, e);
}

/* Elements of the largest slab without data; 0: there is none. */
static int64_t sourced(const sk_ckpt_file *f) {
  int64_t most = 0;
  for (int i = 0; i < f->n_slab; i++) {
    const int64_t count = sk_slab_count(&f->slab[i], f->dset[f->slab[i].dset].rank);
    if (!f->slab[i].data && count > most) most = count;
  }
  return most;
}

/* Slabs without data, one by one in the order of their reader, which lets each have the memory of the largest. */
static void write_sourced(sk_ckpt_part *w, sk_err *e) {
  const sk_ckpt_file *f = w->file;
  const int64_t most = sourced(f);
  if (most == 0) return;
  SK_CHECK(f->source, "%s: slabs without data and without a source", f->name);
  float *values = sk_malloc((size_t)most * sizeof *values);
  for (int i = 0; i < f->n_slab && !e->code; i++) {
    if (f->slab[i].data || sk_slab_count(&f->slab[i], f->dset[f->slab[i].dset].rank) == 0) continue;
    if (f->source->fill(f->source->arg, i, values, e) != SK_OK) break;
    sk_ckpt_part_sum(w, i, values);
    if (sk_ckpt_part_write(w, i, values, true, e) == SK_OK) sk_ckpt_part_write(w, i, values, false, e);
  }
  sk_free(values);
}

static void write_batch(const sk_ckpt_job *j, sk_ckpt_part *part, int n_part, sk_err *e) {
  batch b = {.began = j->began, .share = j->threaded ? j->threads.share : 1, .behind = &j->behind};
  int most = 0, used = 0;
  for (int k = 0; k < n_part; k++) most += part[k].file->n_slab;
  b.unit = sk_calloc((size_t)most, sizeof *b.unit);
  place *list = sk_calloc((size_t)most, sizeof *list);
  for (int k = 0; k < n_part && !e->code; k++) {
    const int n = add_units(&b, &part[k], list + used);
    used += n;
    if (j->rank == 0 || n > 0 || sourced(part[k].file)) sk_ckpt_part_open(&part[k], j->rank == 0, e);
  }
  if (!e->code) write_units(j, &b, e);
  for (int k = 0; k < n_part && !e->code; k++) write_sourced(&part[k], e);
  // A close is also what makes NFS show a file to the other nodes.
  for (int k = 0; k < n_part; k++) sk_ckpt_part_close(&part[k], !e->code, e);
  sk_free(list);
  sk_free(b.unit);
}

static void write_work(sk_ckpt_job *j) {
  const int n = j->form->n_file;
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
      x->sum = j->part[k].slab_sum[i];
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

/* Every rank gets the files' sums. */
static void add_sums(sk_ckpt_job *j) {
  const int n = j->form->n_file;
  uint64_t *sum = sk_calloc((size_t)n, sizeof *sum);
  for (int k = 0; k < n; k++) sum[k] = atomic_load(&j->part[k].sum);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, sum, n, MPI_UINT64_T, MPI_SUM, j->comm));
  for (int k = 0; k < n; k++) j->m->file[k].size = j->form->file[k].size, j->m->file[k].sum = sum[k];
  sk_free(sum);
}

/* ---- then: rank 0 publishes ---- */

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

/* tmp takes the place of `final`; an existing folder of that name stays until the new one has been checked. */
static int publish(sk_ckpt_job *j, sk_err *e) {
  struct stat st;
  if (lstat(j->final, &st) != 0) {
    if (rename(j->tmp, j->final) != 0) sk_fs_fail(e, j->final, "created", errno);
  } else if (!S_ISDIR(st.st_mode)) {
    sk_fs_fail(e, j->final, "replaced", ENOTDIR);
  } else if (renameat2(AT_FDCWD, j->tmp, AT_FDCWD, j->final, RENAME_EXCHANGE) == 0) {
    j->replaced = EXCHANGED;
  } else {
    sk_fs_remove(j->old);
    if (rename(j->final, j->old) != 0) sk_fs_fail(e, j->final, "replaced", errno);
    else if (rename(j->tmp, j->final) != 0) {
      sk_fs_fail(e, j->final, "replaced", errno);
      rename(j->old, j->final);
    } else
      j->replaced = ASIDE;
  }
  return e->code;
}

/* What was published turned out to be damaged, and is to be in `tmp` again; the folder that it has replaced takes its place.
 * false: it stays, for a load to pass over, and in `tmp` may be the one that it has replaced. */
static bool withdraw(const sk_ckpt_job *j) {
  if (j->replaced == EXCHANGED) return renameat2(AT_FDCWD, j->tmp, AT_FDCWD, j->final, RENAME_EXCHANGE) == 0;
  if (rename(j->final, j->tmp) != 0) return false;
  if (j->replaced == ASIDE) rename(j->old, j->final); // where that fails it counts under its name, too
  return true;
}

/* The manifest is on the disk as it should be. */
static int check_manifest(const char *path, const char *text, sk_err *e) {
  char want[SK_HASH_HEX], have[SK_HASH_HEX];
  sk_hash_hex(text, strlen(text), want);
  if (sk_fs_hash(path, have, e) == SK_OK && strcmp(want, have) != 0) sk_ckpt_lied(path, e);
  return e->code;
}

/* Manifest, sync, rename, hint. */
static void publish_work(sk_ckpt_job *j) {
  if (j->rank != 0) return;
  char *path = sk_strf("%s/manifest.json", j->tmp);
  check_cover(j->m);
  char *text = sk_manifest_print(j->m, &j->err);
  if (text && sk_fs_write(path, text, strlen(text), true, &j->err) == SK_OK &&
      check_manifest(path, text, &j->err) == SK_OK && publish(j, &j->err) == SK_OK) {
    sk_fs_sync(j->dir, &j->late);
    char *latest = sk_strf("%s/latest", j->dir), *hint = sk_strf("%s\n", j->name);
    if (j->run_dir) sk_fs_write(latest, hint, strlen(hint), true, &j->late);
    sk_free(latest);
    sk_free(hint);
  }
  sk_free(text);
  sk_free(path);
}

/* ---- then: each file is read back by one rank; last, older ones may go ---- */

/* HDF5 files that this rank checks; rank 0 checks the sides too. */
static int files_of(const sk_ckpt_job *j) { return (j->form->n_file - j->rank + j->size - 1) / j->size; }

/* What is read here is what a load will read: its sum tells whether it is what was written. */
static void check_one(void *arg, int worker, int i, sk_err *e) {
  sk_ckpt_job *j = arg;
  const int n = j->form->n_file, k = i < files_of(j) ? j->rank + i * j->size : n + i - files_of(j);
  const sk_manifest_file *f = &j->m->file[k];
  char *path = sk_strf("%s/%s", j->final, f->name);
  (void)worker;
  if (sk_fs_size(path) != f->size)
    sk_fail(e, SK_FAILED, "%s: has %lld bytes where %lld were written", path, (long long)sk_fs_size(path),
            (long long)f->size);
  else if (sk_ckpt_read_sum(path, true, j->threads.crowded && j->threaded ? check_share : 1, &j->behind, e) != f->sum && !e->code)
    sk_ckpt_lied(path, e);
  sk_free(path);
}

static void check_work(sk_ckpt_job *j) {
  const int files = files_of(j) + (j->rank == 0 ? j->m->n_file - j->form->n_file : 0);
  if (files > 0) sk_ckpt_each(files, j->threads.workers, check_one, j, &j->err);
}

static void prune_work(sk_ckpt_job *j) {
  if (j->rank != 0) return;
  if (j->replaced == EXCHANGED) sk_fs_remove(j->tmp);
  if (j->replaced == ASIDE) sk_fs_remove(j->old);
  if (j->run_dir && j->keep > 0) sk_ckpt_prune(j->run_dir, j->keep, j->keep_every);
}

/* ---- all of it ---- */

static void name_files(sk_ckpt_job *j) {
  const sk_ckpt_meta *t = &j->m->meta;
  int n = j->form->n_file, n_side = j->rank == 0 ? t->n_side : 0;
  SK_CHECK(n + n_side <= SK_CKPT_MAX_FILES, "%d files in a checkpoint", n + n_side);
  j->m->n_file = n + n_side;
  j->part = sk_calloc((size_t)n, sizeof *j->part);
  for (int i = 0; i < n_side; i++) memcpy(j->m->file[n + i].name, t->side[i].name, sizeof j->m->file->name);
  for (int k = 0; k < n; k++) {
    sk_manifest_file *f = &j->m->file[k];
    snprintf(f->name, sizeof f->name, "%s", j->file[k].name);
    f->n_dset = j->file[k].n_dset;
    f->dset = (sk_dset *)(uintptr_t)j->file[k].dset; // read only
    j->part[k] = (sk_ckpt_part){.path = sk_strf("%s/%s", j->tmp, f->name), .file = &j->file[k],
                                .form = &j->form->file[k], .fd = -1, .direct = -1};
    j->part[k].slab_sum = sk_calloc((size_t)j->file[k].n_slab, sizeof *j->part[k].slab_sum);
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
  j->final = sk_strf("%s/%s", dir, name);
  j->old = sk_strf("%s.old.%s-%ld", j->final, sk_host(), (long)getpid());
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

bool sk_ckpt_published(const sk_ckpt_job *j) { return j->phase > PUBLISH; }

bool sk_ckpt_go_on(sk_ckpt_job *j) {
  if (j->phase == OVER) return true;
  if (j->threaded) pthread_join(j->thread, NULL);
  j->threaded = false;
  if (sk_agree(j->comm, &j->err) != SK_OK) {
    if (j->rank == 0 && (j->phase != CHECK || withdraw(j))) sk_fs_remove(j->tmp);
    j->phase = OVER;
  } else if (j->phase == WRITE) {
    gather_slabs(j);
    add_sums(j);
    start(j, PUBLISH, publish_work);
  } else if (j->phase == PUBLISH) {
    j->published = sk_now() - j->began;
    start(j, CHECK, check_work);
  } else if (j->phase == CHECK) {
    start(j, PRUNE, prune_work);
  } else {
    j->phase = OVER;
  }
  return j->phase == OVER;
}

int sk_ckpt_end(sk_ckpt_job *j, sk_ckpt_result *r, sk_err *e) {
  atomic_store(&j->behind, false); // nobody rests any more; from the next phase on at full speed
  while (!sk_ckpt_go_on(j)) continue;
  *r = (sk_ckpt_result){.step = j->m->meta.step, .seconds = j->published, .busy = j->busy, .checked = j->checked};
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &r->busy, 1, MPI_DOUBLE, MPI_MAX, j->comm));
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &r->checked, 1, MPI_DOUBLE, MPI_MAX, j->comm));
  for (int k = 0; k < j->form->n_file; k++) r->bytes += j->form->file[k].size;
  if (j->err.code) sk_fail(e, j->err.code, "%s", j->err.msg);
  else if (j->late.code) sk_warn("the checkpoint is complete, but: %s", j->late.msg);
  for (int k = 0; k < j->form->n_file; k++) {
    sk_free(j->part[k].slab_sum);
    sk_free(j->part[k].path);
  }
  sk_free(j->part);
  sk_free(j->m->slab);
  sk_free(j->m);
  sk_free(j->run_dir);
  sk_free(j->dir);
  sk_free(j->name);
  sk_free(j->tmp);
  sk_free(j->final);
  sk_free(j->old);
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
  if (sk_agree(comm, e) == SK_OK && sk_ckpt_form_at(comm, dir, name, meta->run_id, n_file, file, &form, e) == SK_OK) {
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
