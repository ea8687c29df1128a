#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt.h"
#include "io/fsutil.h"
#include "io/manifest.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PATH_CAP = 4096, LEFT_OVER_SECONDS = 3600 };

static int rank_of(MPI_Comm comm) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  return rank;
}

static int size_of(MPI_Comm comm) {
  int size;
  MPI_Comm_size(comm, &size);
  return size;
}

/* ---- saving ---- */

/* Rank 0: a fresh tmp folder beside `final`; its path goes to every rank. */
static int make_tmp(MPI_Comm comm, const char *final, char tmp[PATH_CAP], sk_err *e) {
  memset(tmp, 0, PATH_CAP);
  if (rank_of(comm) == 0) {
    char *dir = sk_fs_parent(final);
    int n = snprintf(tmp, PATH_CAP, "%s.tmp.%s-%ld", final, sk_host(), (long)getpid());
    if (n >= PATH_CAP - 64)
      sk_fail(e, SK_FAILED, "%s: the path is too long; choose a shorter one", final);
    else if (sk_fs_mkdirs(dir, e) == SK_OK) {
      sk_fs_remove(tmp); // of an earlier attempt that failed
      if (mkdir(tmp, 0777) != 0) sk_fs_fail(e, tmp, "created", errno);
    }
    sk_free(dir);
  }
  if (sk_agree(comm, e) == SK_OK) SK_MPI(MPI_Bcast(tmp, PATH_CAP, MPI_CHAR, 0, comm));
  return e->code;
}

typedef char hash_text[SK_HASH_HEX];

/* A source that hashes what it hands on. */
typedef struct hashing {
  const sk_ckpt_file *file;
  hash_text *hash; /* [n_slab] */
} hashing;

static void hash_slab(const sk_ckpt_file *file, int slab, const float *data, hash_text hash) {
  const sk_slab *s = &file->slab[slab];
  sk_hash_hex(data, (size_t)sk_slab_count(s, file->dset[s->dset].rank) * sizeof(float), hash);
}

static int fill_and_hash(void *arg, int slab, float *out, sk_err *e) {
  hashing *h = arg;
  if (h->file->source->fill(h->file->source->arg, slab, out, e) == SK_OK)
    hash_slab(h->file, slab, out, h->hash[slab]);
  return e->code;
}

/* Every rank hashes what it wrote (or has while it wrote); rank 0 gets the list. */
static void gather_slabs(MPI_Comm comm, int n_file, const sk_ckpt_file *file, hash_text *const *hash,
                         sk_manifest *m) {
  int n = 0, most = 0, size = size_of(comm);
  for (int k = 0; k < n_file; k++) most += file[k].n_slab;
  sk_manifest_slab *mine = sk_calloc((size_t)most, sizeof *mine);
  for (int k = 0; k < n_file; k++)
    for (int i = 0; i < file[k].n_slab; i++) {
      const sk_slab *s = &file[k].slab[i];
      int rank = file[k].dset[s->dset].rank;
      int64_t count = sk_slab_count(s, rank);
      if (count == 0) continue;
      sk_manifest_slab *x = &mine[n++];
      x->file = k;
      x->dset = s->dset;
      memcpy(x->start, s->start, (size_t)rank * sizeof *x->start);
      memcpy(x->count, s->count, (size_t)rank * sizeof *x->count);
      if (s->data) hash_slab(&file[k], i, s->data, x->hash);
      else memcpy(x->hash, hash[k][i], SK_HASH_HEX);
    }
  int *counts = sk_calloc((size_t)size, sizeof *counts), *at = sk_calloc((size_t)size, sizeof *at);
  MPI_Datatype one;
  SK_MPI(MPI_Type_contiguous((int)sizeof *mine, MPI_BYTE, &one));
  SK_MPI(MPI_Type_commit(&one));
  SK_MPI(MPI_Gather(&n, 1, MPI_INT, counts, 1, MPI_INT, 0, comm));
  m->n_slab = counts[0]; // other ranks' stay 0
  for (int r = 1; r < size; r++) {
    at[r] = at[r - 1] + counts[r - 1];
    m->n_slab += counts[r];
  }
  m->slab = sk_calloc((size_t)m->n_slab, sizeof *m->slab);
  SK_MPI(MPI_Gatherv(mine, n, one, m->slab, counts, at, one, 0, comm));
  SK_MPI(MPI_Type_free(&one));
  sk_free(counts);
  sk_free(at);
  sk_free(mine);
}

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

/* Size and hash of the files as they lie on the disk, each taken by one rank. */
static void hash_files(MPI_Comm comm, const char *tmp, sk_manifest *m, sk_err *e) {
  int rank = rank_of(comm), size = size_of(comm);
  for (int k = rank; k < m->n_file && !e->code; k += size) {
    char *path = sk_strf("%s/%s", tmp, m->file[k].name);
    m->file[k].size = sk_fs_size(path);
    sk_fs_hash(path, m->file[k].hash, e);
    sk_free(path);
  }
  if (sk_agree(comm, e) != SK_OK) return;
  for (int k = 0; k < m->n_file; k++) {
    SK_MPI(MPI_Bcast(&m->file[k].size, 1, MPI_INT64_T, k % size, comm));
    SK_MPI(MPI_Bcast(m->file[k].hash, SK_HASH_HEX, MPI_CHAR, k % size, comm));
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

/* Rank 0: manifest, sync, rename. */
static void finish(const char *final, const char *tmp, sk_manifest *m, sk_err *e) {
  char *dir = sk_fs_parent(final), *path = sk_strf("%s/manifest.json", tmp);
  check_cover(m);
  char *text = sk_manifest_print(m, e);
  if (text && sk_fs_write(path, text, strlen(text), true, e) == SK_OK &&
      publish(tmp, final, e) == SK_OK) {
    sk_err late = {0};
    if (sk_fs_sync(dir, &late) != SK_OK) sk_warn("the checkpoint is complete, but: %s", late.msg);
  }
  sk_free(text);
  sk_free(path);
  sk_free(dir);
}

/* Collective, for the names of the sides, which only rank 0 has. */
static void set_files(MPI_Comm comm, sk_manifest *m, int n_file, const sk_ckpt_file *file) {
  int n_side = m->meta.n_side;
  SK_MPI(MPI_Bcast(&n_side, 1, MPI_INT, 0, comm));
  SK_CHECK(n_file > 0 && n_side >= 0 && n_file + n_side <= SK_CKPT_MAX_FILES, "%d files in a checkpoint",
           n_file + n_side);
  m->n_file = n_file + n_side;
  for (int k = 0; k < n_side; k++) {
    char *name = m->file[n_file + k].name;
    if (rank_of(comm) == 0) snprintf(name, sizeof m->file->name, "%s", m->meta.side[k].name);
    SK_MPI(MPI_Bcast(name, (int)sizeof m->file->name, MPI_CHAR, 0, comm));
  }
  for (int k = 0; k < n_file; k++) {
    sk_manifest_file *f = &m->file[k];
    snprintf(f->name, sizeof f->name, "%s", file[k].name);
    f->n_dset = file[k].n_dset;
    f->dset = (sk_dset *)(uintptr_t)file[k].dset; // read only
  }
}

/* Collective. The HDF5 files; hash[k]: where file k has a source, the hashes of its slabs (then owned). */
static int write_files(MPI_Comm comm, const char *tmp, const sk_ckpt_meta *meta, int n_file,
                       const sk_ckpt_file *file, hash_text **hash, sk_err *e) {
  char step[32];
  const char *const attrs[] = {"format", "saker-checkpoint", "run_id", meta->run_id[0] ? meta->run_id : "-",
                               "step", step, NULL};
  snprintf(step, sizeof step, "%lld", (long long)meta->step);
  for (int k = 0; k < n_file && !e->code; k++) {
    char *path = sk_strf("%s/%s", tmp, file[k].name);
    hashing h = {.file = &file[k]};
    sk_source source = {fill_and_hash, &h};
    if (file[k].source) h.hash = hash[k] = sk_calloc((size_t)file[k].n_slab, sizeof *h.hash);
    sk_h5_write(comm, path, file[k].n_dset, file[k].dset, file[k].n_slab, file[k].slab,
                file[k].source ? &source : NULL, attrs, e);
    sk_free(path);
  }
  return e->code;
}

/* Collective: the sides are rank 0's. */
static int write_sides(MPI_Comm comm, const char *tmp, const sk_ckpt_meta *meta, sk_err *e) {
  for (int k = 0; k < meta->n_side && !e->code && rank_of(comm) == 0; k++) {
    char *path = sk_strf("%s/%s", tmp, meta->side[k].name);
    sk_fs_write(path, meta->side[k].data, meta->side[k].size, true, e);
    sk_free(path);
  }
  return sk_agree(comm, e);
}

static int save(MPI_Comm comm, const char *final, const sk_ckpt_meta *meta, int n_file, const sk_ckpt_file *file,
                int64_t *bytes, sk_err *e) {
  char tmp[PATH_CAP];
  int rank = rank_of(comm);
  hash_text *hash[SK_CKPT_MAX_FILES] = {0};
  if (make_tmp(comm, final, tmp, e) != SK_OK) return e->code;
  sk_manifest *m = sk_calloc(1, sizeof *m);
  m->meta = *meta;
  set_files(comm, m, n_file, file);
  if (write_files(comm, tmp, meta, n_file, file, hash, e) == SK_OK && write_sides(comm, tmp, meta, e) == SK_OK)
    hash_files(comm, tmp, m, e);
  if (!e->code) {
    gather_slabs(comm, n_file, file, hash, m);
    if (rank == 0) finish(final, tmp, m, e);
    sk_agree(comm, e);
  }
  if (e->code && rank == 0) sk_fs_remove(tmp);
  for (int k = 0; k < n_file; k++) sk_free(hash[k]);
  if (bytes) *bytes = 0;
  for (int k = 0; bytes && !e->code && k < n_file; k++) *bytes += m->file[k].size;
  sk_free(m->slab);
  sk_free(m);
  return e->code;
}

int sk_ckpt_save_as(MPI_Comm comm, const char *path, const sk_ckpt_meta *meta, int n_file, const sk_ckpt_file *file,
                    int64_t *bytes, sk_err *e) {
  struct stat st;
  if (rank_of(comm) == 0 && lstat(path, &st) == 0) sk_fs_fail(e, path, "created", EEXIST);
  return sk_agree(comm, e) == SK_OK ? save(comm, path, meta, n_file, file, bytes, e) : e->code;
}

int sk_ckpt_save(MPI_Comm comm, const char *run_dir, const sk_ckpt_meta *meta, int n_file,
                 const sk_ckpt_file *file, int64_t *bytes, sk_err *e) {
  char *name = sk_strf("step-%08lld", (long long)meta->step);
  char *final = sk_strf("%s/checkpoints/%s", run_dir, name);
  if (save(comm, final, meta, n_file, file, bytes, e) == SK_OK && rank_of(comm) == 0) {
    sk_err late = {0};
    char *latest = sk_strf("%s/checkpoints/latest", run_dir), *hint = sk_strf("%s\n", name);
    if (sk_fs_write(latest, hint, strlen(hint), true, &late) != SK_OK)
      sk_warn("the checkpoint is complete, but: %s", late.msg);
    sk_free(latest);
    sk_free(hint);
  }
  sk_free(final);
  sk_free(name);
  return e->code;
}

/* ---- opening ---- */

/* What the other ranks must know of a manifest. */
typedef struct summary {
  sk_ckpt_meta meta;
  int64_t deck_len, hf_len; /* hf_len -1: no text */
  int n_file;
  struct {
    char name[64], hash[SK_HASH_HEX];
    int64_t size;
    bool side;
  } file[SK_CKPT_MAX_FILES];
} summary;

static void check_size(const char *path, int64_t size, sk_err *e) {
  int64_t have = sk_fs_size(path);
  if (have < 0)
    sk_fail(e, SK_FAILED, "%s: missing", path);
  else if (have != size)
    sk_fail(e, SK_FAILED, "%s: damaged: it has %lld bytes, the manifest says %lld", path,
            (long long)have, (long long)size);
}

static void check_file(const char *path, int64_t size, const char *hash, sk_err *e) {
  char got[SK_HASH_HEX];
  check_size(path, size, e);
  if (!e->code && sk_fs_hash(path, got, e) == SK_OK && strcmp(got, hash) != 0)
    sk_fail(e, SK_FAILED, "%s: damaged: its contents do not match the checksum in manifest.json", path);
}

/* Rank 0: reads the manifest (texts go to meta) and looks at the sizes. */
static void read_summary(const char *path, summary *s, sk_ckpt_meta *meta, sk_err *e) {
  sk_manifest *m = sk_malloc(sizeof *m);
  bool model = false;
  if (sk_manifest_read(path, m, e) == SK_OK) {
    s->n_file = m->n_file;
    for (int k = 0; k < m->n_file; k++) {
      char *file = sk_strf("%s/%s", path, m->file[k].name);
      check_size(file, m->file[k].size, e);
      sk_free(file);
      memcpy(s->file[k].name, m->file[k].name, sizeof s->file[k].name);
      memcpy(s->file[k].hash, m->file[k].hash, sizeof s->file[k].hash);
      s->file[k].size = m->file[k].size;
      s->file[k].side = m->file[k].n_dset == 0;
      model |= strcmp(m->file[k].name, "model.h5") == 0;
    }
    if (!model) sk_fail(e, SK_FAILED, "%s/manifest.json: names no model.h5", path);
    s->meta = *meta = m->meta;
    s->deck_len = (int64_t)strlen(meta->deck);
    s->hf_len = meta->hf_json ? (int64_t)strlen(meta->hf_json) : -1;
    m->meta.deck = m->meta.hf_json = NULL;
  }
  sk_manifest_free(m);
  sk_free(m);
}

/* Rank 0: the side files, whose hashes are known to be right. */
static void read_sides(const char *path, const summary *s, sk_ckpt_meta *meta, sk_err *e) {
  for (int k = 0; k < s->n_file && !e->code; k++) {
    if (!s->file[k].side) continue;
    char *name = sk_strf("%s/%s", path, s->file[k].name);
    sk_ckpt_side_read(meta, name, s->file[k].name, e);
    sk_free(name);
  }
}

static void bcast_text(MPI_Comm comm, int64_t len, char **text) {
  if (len < 0) return;
  if (rank_of(comm) != 0) *text = sk_calloc((size_t)len + 1, 1);
  SK_MPI(MPI_Bcast(*text, (int)len, MPI_CHAR, 0, comm));
}

int sk_ckpt_open(MPI_Comm comm, const char *path, sk_ckpt_meta *meta, bool *has_optimizer, sk_err *e) {
  int rank = rank_of(comm), size = size_of(comm);
  summary *s = sk_calloc(1, sizeof *s);
  memset(meta, 0, sizeof *meta);
  if (rank == 0) read_summary(path, s, meta, e);
  if (sk_agree(comm, e) == SK_OK) {
    SK_MPI(MPI_Bcast(s, (int)sizeof *s, MPI_BYTE, 0, comm));
    if (rank != 0) {
      *meta = s->meta;
      meta->deck = meta->hf_json = NULL;
      meta->side = NULL;
      meta->n_side = 0;
    }
    bcast_text(comm, s->deck_len, &meta->deck);
    bcast_text(comm, s->hf_len, &meta->hf_json);
    for (int k = rank; k < s->n_file && !e->code; k += size) {
      char *file = sk_strf("%s/%s", path, s->file[k].name);
      check_file(file, s->file[k].size, s->file[k].hash, e);
      sk_free(file);
    }
    if (sk_agree(comm, e) == SK_OK && rank == 0) read_sides(path, s, meta, e);
    sk_agree(comm, e);
  }
  if (has_optimizer) *has_optimizer = false;
  for (int k = 0; k < s->n_file && has_optimizer; k++)
    *has_optimizer |= strcmp(s->file[k].name, "optimizer.h5") == 0;
  if (e->code) sk_ckpt_meta_free(meta);
  sk_free(s);
  return e->code;
}

int sk_ckpt_read(MPI_Comm comm, const char *path, const sk_ckpt_file *file, sk_err *e) {
  char *name = sk_strf("%s/%s", path, file->name);
  sk_h5_read(comm, name, file->n_dset, file->dset, file->n_slab, file->slab, e);
  sk_free(name);
  return e->code;
}

/* ---- choosing and pruning ---- */

typedef enum kind { OTHER, WHOLE, OLD, TMP } kind;

typedef struct entry {
  char *name;
  int64_t step;
  kind kind;
} entry;

/* step-DIGITS, step-DIGITS.old.* or step-DIGITS.tmp.* */
static kind parse_name(const char *name, int64_t *step) {
  if (strncmp(name, "step-", 5) != 0) return OTHER;
  size_t digits = strspn(name + 5, "0123456789");
  const char *rest = name + 5 + digits;
  if (digits < 8 || digits > 18) return OTHER;
  *step = strtoll(name + 5, NULL, 10);
  if (!*rest) return WHOLE;
  if (strncmp(rest, ".old.", 5) == 0) return OLD;
  return strncmp(rest, ".tmp.", 5) == 0 ? TMP : OTHER;
}

static int newest_first(const void *a, const void *b) {
  const entry *x = a, *y = b;
  if (x->step != y->step) return x->step > y->step ? -1 : 1;
  return (int)x->kind - (int)y->kind;
}

/* The checkpoint folders of a run, newest first; an .old one counts as WHOLE where its successor is
 * missing. No folder: none. */
static int list_all(const char *dir, entry **list, int64_t *n, sk_err *e) {
  char **name;
  int64_t n_name;
  struct stat st;
  *list = NULL;
  *n = 0;
  if (stat(dir, &st) != 0 && errno == ENOENT) return SK_OK;
  if (sk_fs_list(dir, &name, &n_name, e) == SK_OK) {
    *list = sk_calloc((size_t)n_name, sizeof **list);
    for (int64_t i = 0; i < n_name; i++) {
      entry x = {.name = name[i]};
      x.kind = parse_name(name[i], &x.step);
      if (x.kind == OTHER) continue;
      x.name = sk_strdup(name[i]);
      (*list)[(*n)++] = x;
    }
    qsort(*list, (size_t)*n, sizeof **list, newest_first);
    for (int64_t i = 0; i < *n; i++)
      if ((*list)[i].kind == OLD && (i == 0 || (*list)[i - 1].step != (*list)[i].step))
        (*list)[i].kind = WHOLE;
  }
  sk_fs_free_names(name, n_name);
  return e->code;
}

static void free_list(entry *list, int64_t n) {
  for (int64_t i = 0; i < n; i++) sk_free(list[i].name);
  sk_free(list);
}

// Adds a line as far as there is room.
static void append(sk_err *all, const char *text) {
  size_t n = strlen(all->msg), len = strlen(text), room = sizeof all->msg - 1 - n;
  if (n > 0 && room > 0) all->msg[n++] = '\n', room--;
  if (len > room) len = room;
  memcpy(all->msg + n, text, len);
  all->msg[n + len] = 0;
}

int sk_ckpt_find(MPI_Comm comm, const char *run_dir, char *path, size_t cap, sk_err *e) {
  char *dir = sk_strf("%s/checkpoints", run_dir), at[PATH_CAP];
  entry *list = NULL;
  int64_t n = 0;
  sk_err damaged = {0};
  path[0] = 0;
  if (rank_of(comm) == 0) list_all(dir, &list, &n, e);
  sk_agree(comm, e);
  SK_MPI(MPI_Bcast(&n, 1, MPI_INT64_T, 0, comm));
  bool found = false;
  for (int64_t i = 0; i < n && !found && !e->code; i++) {
    memset(at, 0, sizeof at);
    if (list && list[i].kind == WHOLE) snprintf(at, sizeof at, "%s/%s", dir, list[i].name);
    SK_MPI(MPI_Bcast(at, PATH_CAP, MPI_CHAR, 0, comm));
    if (!at[0]) continue;
    sk_err why = {0};
    sk_ckpt_meta meta;
    found = sk_ckpt_open(comm, at, &meta, NULL, &why) == SK_OK;
    if (found) sk_ckpt_meta_free(&meta);
    else append(&damaged, why.msg);
  }
  if (found && strlen(at) >= cap) sk_fail(e, SK_FAILED, "%s: the path is too long", at);
  else if (found) memcpy(path, at, strlen(at) + 1);
  if (found && damaged.msg[0])
    sk_warn("damaged checkpoints are passed over and %s is used:\n%s", at, damaged.msg);
  if (!found && damaged.msg[0])
    sk_fail(e, SK_FAILED, "%s: has checkpoints but none that is whole:\n%.7000s\nTo start over, move the "
            "folder away or choose another run.dir.", dir, damaged.msg);
  free_list(list, n * (list != NULL));
  sk_free(dir);
  return e->code;
}

/* May a left-over tmp or old folder go? Its name ends in HOST-PID of its writer. */
static bool abandoned(const char *path) {
  struct stat st;
  const char *name = strrchr(path, '/'), *who = strstr(name, ".tmp."), *host = sk_host();
  if (!who) who = strstr(name, ".old.");
  if (who && strncmp(who + 5, host, strlen(host)) == 0 && who[5 + strlen(host)] == '-') {
    char *end;
    long pid = strtol(who + 6 + strlen(host), &end, 10);
    if (!*end) return pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH; // else another host's name
  }
  return stat(path, &st) == 0 && time(NULL) - st.st_mtime > LEFT_OVER_SECONDS;
}

static bool whole_looking(const char *path) {
  sk_err e = {0};
  summary *s = sk_calloc(1, sizeof *s);
  sk_ckpt_meta meta = {0};
  read_summary(path, s, &meta, &e);
  sk_ckpt_meta_free(&meta);
  sk_free(s);
  return e.code == SK_OK;
}

/* Renamed first, so that a kill in the middle leaves no checkpoint with half its files. */
static void remove_ckpt(const char *path) {
  char *tmp = sk_strf("%s.tmp.%s-%ld", path, sk_host(), (long)getpid());
  if (rename(path, tmp) != 0 || !sk_fs_remove(tmp))
    sk_warn("%s: cannot be removed completely: %s", path, strerror(errno));
  sk_free(tmp);
}

void sk_ckpt_prune(MPI_Comm comm, const char *run_dir, int64_t keep, int64_t keep_every) {
  if (rank_of(comm) != 0) return;
  char *dir = sk_strf("%s/checkpoints", run_dir);
  entry *list;
  int64_t n, kept = 0;
  sk_err e = {0};
  if (list_all(dir, &list, &n, &e) != SK_OK) sk_warn("%s", e.msg);
  if (keep < 2) keep = 2;
  for (int64_t i = 0; i < n; i++) {
    char *path = sk_strf("%s/%s", dir, list[i].name);
    if (list[i].kind != WHOLE) {
      if (abandoned(path)) sk_fs_remove(path);
    } else if (kept < keep)
      kept += whole_looking(path);
    else if (!(keep_every > 0 && list[i].step % keep_every == 0))
      remove_ckpt(path);
    sk_free(path);
  }
  free_list(list, n);
  sk_free(dir);
}

/* ---- verifying ---- */

/* This rank's share of a file's slabs (every size-th), against their hashes. */
static void verify_slabs(MPI_Comm comm, const char *path, const sk_manifest *m, int file, sk_err *e) {
  int64_t f = m->file[file].n_dset ? sk_h5_open(path, e) : -1; // a side file has no slabs
  int64_t rank = rank_of(comm), size = size_of(comm), cap = 0;
  float *buf = NULL;
  for (int64_t i = rank; f >= 0 && i < m->n_slab && !e->code; i += size) {
    const sk_manifest_slab *x = &m->slab[i];
    if (x->file != file) continue;
    const sk_dset *d = &m->file[file].dset[x->dset];
    sk_slab s = {.dset = x->dset};
    memcpy(s.start, x->start, sizeof s.start);
    memcpy(s.count, x->count, sizeof s.count);
    int64_t count = sk_slab_count(&s, d->rank);
    if (count > m->file[file].size / (int64_t)sizeof(float)) {
      sk_fail(e, SK_FAILED, "%s: dataset %s is larger than the file", path, d->name);
      break;
    }
    if (count > cap) buf = sk_realloc(buf, (size_t)(cap = count) * sizeof *buf);
    s.data = buf;
    char hash[SK_HASH_HEX];
    if (sk_h5_read_slab(f, path, d, &s, e) != SK_OK) break;
    sk_hash_hex(buf, (size_t)count * sizeof *buf, hash);
    if (strcmp(hash, x->hash) != 0)
      sk_fail(e, SK_FAILED, "%s: damaged: dataset %s does not hold what its writer hashed", path, d->name);
  }
  if (f >= 0) sk_h5_close(f);
  sk_free(buf);
}

int sk_ckpt_verify(MPI_Comm comm, const char *path, sk_err *e) {
  sk_manifest *m = sk_malloc(sizeof *m);
  sk_err all = {0};
  sk_manifest_read(path, m, e); // every rank needs its slabs
  sk_agree(comm, e);
  for (int k = 0; !e->code && k < m->n_file; k++) {
    sk_err why = {0};
    int64_t slabs = 0;
    char *file = sk_strf("%s/%s", path, m->file[k].name);
    if (k % size_of(comm) == rank_of(comm)) check_file(file, m->file[k].size, m->file[k].hash, &why);
    if (sk_agree(comm, &why) == SK_OK) {
      verify_slabs(comm, file, m, k, &why);
      sk_agree(comm, &why);
    }
    for (int64_t i = 0; i < m->n_slab; i++) slabs += m->slab[i].file == k;
    if (why.code) append(&all, why.msg);
    sk_say("%-14s %10s %6d datasets %8lld slabs  %s", m->file[k].name, sk_bytes((double)m->file[k].size),
           m->file[k].n_dset, (long long)slabs, why.code ? "DAMAGED" : "good");
    sk_free(file);
  }
  if (all.msg[0]) sk_fail(e, SK_FAILED, "%s", all.msg);
  sk_manifest_free(m);
  sk_free(m);
  return e->code;
}
