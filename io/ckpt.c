#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt_job.h"
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

/* ---- opening ---- */

/* What the other ranks must know of a manifest. */
typedef struct summary {
  sk_ckpt_meta meta;
  int64_t deck_len, hf_len; /* hf_len -1: no text */
  int n_file;
  struct {
    char name[64], hash[SK_HASH_HEX];
    uint64_t sum;
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

/* hash: "" where there is a sum. */
static void check_file(const char *path, int64_t size, uint64_t sum, const char *hash, sk_err *e) {
  char got[SK_HASH_HEX] = "";
  check_size(path, size, e);
  if (e->code) return;
  if (hash[0]) sk_fs_hash(path, got, e);
  else sum -= sk_ckpt_read_sum(path, false, 1, NULL, e);
  if (!e->code && (hash[0] ? strcmp(got, hash) != 0 : sum != 0))
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
      s->file[k].sum = m->file[k].sum;
      s->file[k].size = m->file[k].size;
      s->file[k].side = m->file[k].n_dset == 0;
      model |= !s->file[k].side && strncmp(m->file[k].name, "model", 5) == 0;
    }
    if (!model) sk_fail(e, SK_FAILED, "%s/manifest.json: names no model.h5 or model-1-of-K.h5", path);
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
      check_file(file, s->file[k].size, s->file[k].sum, s->file[k].hash, e);
      sk_free(file);
    }
    if (sk_agree(comm, e) == SK_OK && rank == 0) read_sides(path, s, meta, e);
    sk_agree(comm, e);
  }
  if (has_optimizer) *has_optimizer = false;
  for (int k = 0; k < s->n_file && has_optimizer; k++)
    *has_optimizer |= strncmp(s->file[k].name, "optimizer", 9) == 0;
  if (e->code) sk_ckpt_meta_free(meta);
  sk_free(s);
  return e->code;
}

typedef struct place {
  const char *name;
  int file;
} place;

static int by_name(const void *a, const void *b) {
  return strcmp(((const place *)a)->name, ((const place *)b)->name);
}

/* Rank 0: the file that holds each dataset; the manifest's own hash is right. */
static void find_dsets(const char *path, int n, const sk_dset *dset, int *where, sk_ckpt_name *names, sk_err *e) {
  sk_manifest *m = sk_malloc(sizeof *m);
  if (sk_manifest_read(path, m, e) == SK_OK) {
    int n_all = 0, at = 0;
    for (int k = 0; k < m->n_file; k++) n_all += m->file[k].n_dset;
    place *all = sk_calloc((size_t)n_all, sizeof *all);
    for (int k = 0; k < m->n_file; k++) {
      memcpy(names[k], m->file[k].name, sizeof names[k]);
      for (int i = 0; i < m->file[k].n_dset; i++) all[at++] = (place){m->file[k].dset[i].name, k};
    }
    qsort(all, (size_t)n_all, sizeof *all, by_name);
    for (int i = 0; i < n && !e->code; i++) {
      const place key = {dset[i].name, 0}, *hit = bsearch(&key, all, (size_t)n_all, sizeof *all, by_name);
      if (hit) where[i] = hit->file;
      else sk_fail(e, SK_FAILED, "%s: has no dataset %s", path, dset[i].name);
    }
    sk_free(all);
  }
  sk_manifest_free(m);
  sk_free(m);
}

/* Collective. The datasets of one file, and this rank's slabs of them. */
static void read_file(MPI_Comm comm, const char *path, const char *name, int k, const int *where, const sk_ckpt_file *f,
                      sk_err *e) {
  int *at = sk_calloc((size_t)f->n_dset, sizeof *at), n_dset = 0, n_slab = 0;
  sk_dset *dset = sk_calloc((size_t)f->n_dset, sizeof *dset);
  sk_slab *slab = sk_calloc((size_t)f->n_slab, sizeof *slab);
  for (int i = 0; i < f->n_dset; i++) {
    at[i] = n_dset;
    if (where[i] == k) dset[n_dset++] = f->dset[i];
  }
  for (int i = 0; i < f->n_slab; i++) {
    if (where[f->slab[i].dset] != k) continue;
    slab[n_slab] = f->slab[i];
    slab[n_slab++].dset = at[f->slab[i].dset];
  }
  char *file = sk_strf("%s/%s", path, name);
  if (n_dset) sk_h5_read(comm, file, n_dset, dset, n_slab, slab, e);
  sk_free(file);
  sk_free(slab);
  sk_free(dset);
  sk_free(at);
}

int sk_ckpt_where(MPI_Comm comm, const char *path, int n, const sk_dset *dset, int *where, sk_ckpt_name *name,
                  sk_err *e) {
  memset(name, 0, SK_CKPT_MAX_FILES * sizeof *name);
  if (rank_of(comm) == 0) find_dsets(path, n, dset, where, name, e);
  if (sk_agree(comm, e) == SK_OK) {
    SK_MPI(MPI_Bcast(where, n, MPI_INT, 0, comm));
    SK_MPI(MPI_Bcast(name, SK_CKPT_MAX_FILES * (int)sizeof *name, MPI_CHAR, 0, comm));
  }
  return e->code;
}

int sk_ckpt_read(MPI_Comm comm, const char *path, const sk_ckpt_file *file, sk_err *e) {
  int *where = sk_calloc((size_t)file->n_dset, sizeof *where);
  sk_ckpt_name *names = sk_calloc(SK_CKPT_MAX_FILES, sizeof *names);
  if (sk_ckpt_where(comm, path, file->n_dset, file->dset, where, names, e) == SK_OK)
    for (int k = 0; k < SK_CKPT_MAX_FILES && names[k][0] && !e->code; k++)
      read_file(comm, path, names[k], k, where, file, e);
  sk_free(names);
  sk_free(where);
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
    if (!*end) return sk_fs_process_gone(pid); // else another host's name
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
  sk_fs_remove(tmp); // of a save of this step that failed and could not be removed
  if (rename(path, tmp) != 0 || !sk_fs_remove(tmp))
    sk_warn("%s: cannot be removed completely: %s", path, strerror(errno));
  sk_free(tmp);
}

void sk_ckpt_clean(MPI_Comm comm, const char *run_dir) {
  if (rank_of(comm) != 0) return;
  char *dir = sk_strf("%s/checkpoints", run_dir), **name = NULL;
  int64_t n = 0, step;
  sk_err e = {0};
  struct stat st;
  if (stat(dir, &st) == 0) sk_fs_list(dir, &name, &n, &e);
  for (int64_t i = 0; i < n; i++) {
    char *path = sk_strf("%s/%s", dir, name[i]);
    if ((parse_name(name[i], &step) == TMP && abandoned(path)) || strncmp(name[i], "latest.tmp.", 11) == 0)
      sk_fs_remove(path);
    sk_free(path);
  }
  sk_fs_free_names(name, n);
  sk_free(dir);
}

void sk_ckpt_prune(const char *run_dir, int64_t keep, int64_t keep_every) {
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

static bool fits(const sk_manifest_slab *x, const float *data, size_t n) {
  char hash[SK_HASH_HEX];
  if (!x->hash[0]) return sk_sum_weighted(sk_sum_of(data, n)) == x->sum;
  sk_hash_hex(data, n * sizeof *data, hash);
  return strcmp(hash, x->hash) == 0;
}

/* This rank's share of a file's slabs (every size-th), against their sums. */
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
    if (sk_h5_read_slab(f, path, d, &s, e) != SK_OK) break;
    if (!fits(x, buf, (size_t)count))
      sk_fail(e, SK_FAILED, "%s: damaged: dataset %s does not hold what its writer had", path, d->name);
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
    if (k % size_of(comm) == rank_of(comm)) check_file(file, m->file[k].size, m->file[k].sum, m->file[k].hash, &why);
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
