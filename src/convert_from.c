/* convert_from.c: `saker convert from-hf`. Rank 0 reads all headers and finds every parameter's place; then
 * each rank reads its pieces of the files and hands them to the writer of the checkpoint. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/deck.h"
#include "io/fsutil.h"
#include "io/safetensors.h"
#include "src/convert.h"
#include "src/hf_json.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct place {
  int32_t file, dtype;
  int64_t at; /* byte in the file */
} place;

typedef char file_name[256];

typedef struct from {
  MPI_Comm comm;
  int rank, size;
  const char *dir;
  sk_config cfg;
  sk_model model;
  char *json;      /* config.json as it is */
  place *place;    /* [parameters] */
  int n_file;
  file_name *file; /* plain names */
  int fd, fd_file; /* the file that is open */
  int n_slab;
  sk_slab *slab;   /* this rank's pieces */
  sk_dset *dset;
  unsigned char *raw;
  sk_convert_progress progress;
} from;

/* ---- which files there are (rank 0) ---- */

static bool exists(const char *dir, const char *name) {
  char *path = sk_strf("%s/%s", dir, name);
  bool is = access(path, F_OK) == 0;
  sk_free(path);
  return is;
}

static int no_weights(const char *dir, sk_err *e) {
  static const char *const other[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"};
  const char *found = NULL;
  for (int i = 0; i < 3 && !found; i++)
    if (exists(dir, other[i])) found = other[i];
  return sk_fail(e, SK_FAILED, "%s: has neither model.safetensors nor model.safetensors.index.json%s%s%s", dir,
                 found ? "; " : "", found ? found : "",
                 found ? " must be saved anew by transformers (save_pretrained writes safetensors)" : "");
}

/* The names of the files with weights; *index is empty where there is one file without an index. */
static int find_files(from *f, sk_st_index *index, sk_err *e) {
  static const char one[] = "model.safetensors", list[] = "model.safetensors.index.json";
  bool has_one = exists(f->dir, one), has_list = exists(f->dir, list);
  if (has_one && has_list)
    return sk_fail(e, SK_FAILED, "%s: has both %s and %s; remove the one that is left over from another save", f->dir,
                   one, list);
  if (!has_one && !has_list) return no_weights(f->dir, e);
  if (has_one) {
    f->n_file = 1;
    f->file = sk_calloc(1, sizeof *f->file);
    snprintf(f->file[0], sizeof f->file[0], "%s", one);
    return SK_OK;
  }
  char *path = sk_strf("%s/%s", f->dir, list), *text = NULL;
  if (sk_bcast_file(MPI_COMM_SELF, path, SK_ST_MAX_INDEX, &text, e) == SK_OK &&
      sk_st_index_parse(text, strlen(text), path, index, e) == SK_OK) {
    f->n_file = index->n_file;
    f->file = sk_calloc((size_t)f->n_file, sizeof *f->file);
    for (int i = 0; i < f->n_file; i++) snprintf(f->file[i], sizeof f->file[i], "%s", index->file[i]);
  }
  sk_free(text);
  sk_free(path);
  return e->code;
}

/* ---- what is in them (rank 0) ---- */

typedef struct headers {
  sk_st_index index;
  sk_st_file *file; /* [n_file] */
  bool **used;      /* [n_file][tensors] */
} headers;

static int text_order(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The index's file of a tensor; -1 when it does not name it. */
static int file_of(const sk_st_index *x, const char *name) {
  char **at = x->n ? bsearch(&name, x->name, (size_t)x->n, sizeof *x->name, text_order) : NULL;
  return at ? x->file_of[at - x->name] : -1;
}

static int read_headers(from *f, headers *h, sk_err *e) {
  h->file = sk_calloc((size_t)f->n_file, sizeof *h->file);
  h->used = sk_calloc((size_t)f->n_file, sizeof *h->used);
  for (int i = 0; i < f->n_file && !e->code; i++) {
    char *path = sk_strf("%s/%s", f->dir, f->file[i]);
    if (sk_st_open(path, &h->file[i], e) == SK_OK) h->used[i] = sk_calloc((size_t)h->file[i].n, sizeof **h->used);
    sk_free(path);
  }
  return e->code;
}

/* The files hold what the index says and nothing else. */
static int check_index(const from *f, const headers *h, sk_err *e) {
  const sk_st_index *x = &h->index;
  for (int i = 0; i < f->n_file && x->n; i++)
    for (int k = 0; k < h->file[i].n; k++) {
      const char *name = h->file[i].tensor[k].name;
      int at = file_of(x, name);
      if (at != i)
        return sk_fail(e, SK_FAILED, "%s/%s: has the tensor \"%.200s\", which model.safetensors.index.json %s%s", f->dir,
                       f->file[i], name, at < 0 ? "does not name" : "places in ", at < 0 ? "" : f->file[at]);
    }
  for (int k = 0; k < x->n; k++)
    if (!sk_st_find(&h->file[x->file_of[k]], x->name[k]))
      return sk_fail(e, SK_FAILED, "%s/%s: lacks the tensor \"%.200s\", which model.safetensors.index.json places there",
                     f->dir, f->file[x->file_of[k]], x->name[k]);
  return SK_OK;
}

static void shape_text(int rank, const int64_t *dim, char *out, size_t cap) {
  snprintf(out, cap, "[");
  for (int i = 0; i < rank; i++) {
    size_t n = strlen(out);
    snprintf(out + n, cap - n, "%s%lld", i ? ", " : "", (long long)dim[i]);
  }
  size_t n = strlen(out);
  snprintf(out + n, cap - n, "]");
}

static int wrong_shape(const char *path, const sk_param *p, const sk_st_tensor *t, sk_err *e) {
  char have[200], want[100];
  shape_text(t->rank, t->dim, have, sizeof have);
  shape_text(p->rank, p->dim, want, sizeof want);
  return sk_fail(e, SK_FAILED, "%s: tensor \"%s\" has the shape %s; config.json asks for %s", path, p->name, have, want);
}

static int find_param(from *f, headers *h, int i, sk_err *e) {
  const sk_param *p = &f->model.all.p[i];
  int k = h->index.n ? file_of(&h->index, p->name) : 0;
  const sk_st_tensor *t = k < 0 || k >= f->n_file ? NULL : sk_st_find(&h->file[k], p->name);
  if (!t)
    return sk_fail(e, SK_FAILED, "%s: the tensor \"%s\" is missing; config.json asks for it", f->dir, p->name);
  h->used[k][t - h->file[k].tensor] = true;
  char *path = sk_strf("%s/%s", f->dir, f->file[k]);
  bool same = t->rank == p->rank;
  for (int d = 0; d < p->rank && same; d++) same = t->dim[d] == p->dim[d];
  if (!same)
    wrong_shape(path, p, t, e);
  else if (t->dtype == SK_ST_OTHER)
    sk_fail(e, SK_FAILED, "%s: tensor \"%s\" has the dtype %s; weights are read as F32, BF16 or F16", path, p->name,
            t->dtype_name);
  sk_free(path);
  f->place[i] = (place){k, (int32_t)t->dtype, h->file[k].data + t->begin};
  return e->code;
}

/* No tensor is left over. */
static int check_used(const from *f, const headers *h, sk_err *e) {
  for (int k = 0; k < f->n_file; k++)
    for (int i = 0; i < h->file[k].n; i++) {
      const char *name = h->file[k].tensor[i].name;
      if (h->used[k][i]) continue;
      if (f->cfg.model.tie_word_embeddings && strcmp(name, "lm_head.weight") == 0) {
        sk_warn("%s/%s: lm_head.weight is left out, as transformers does: config.json ties it to the embedding", f->dir,
                f->file[k]);
        continue;
      }
      return sk_fail(e, SK_FAILED, "%s/%s: the tensor \"%.200s\" is not part of the model that config.json describes",
                     f->dir, f->file[k], name);
    }
  return SK_OK;
}

static int find_places(from *f, sk_err *e) {
  headers h = {0};
  if (find_files(f, &h.index, e) == SK_OK && read_headers(f, &h, e) == SK_OK && check_index(f, &h, e) == SK_OK) {
    for (int i = 0; i < f->model.all.n && !e->code; i++) find_param(f, &h, i, e);
    if (!e->code) check_used(f, &h, e);
  }
  for (int i = 0; h.file && i < f->n_file; i++) {
    sk_st_free(&h.file[i]);
    sk_free(h.used[i]);
  }
  sk_free(h.file);
  sk_free(h.used);
  sk_st_index_free(&h.index);
  return e->code;
}

/* ---- what to note (rank 0) ---- */

static void note_dtypes(const from *f, sk_ckpt_meta *meta) {
  static const char *const named[] = {"float32", "bfloat16", "float16"};
  char *dtype = sk_hf_json_dtype(f->json);
  int other = 0;
  json_t *o = json_object();
  for (int i = 0; i < f->model.all.n; i++) {
    int d = f->place[i].dtype;
    if (dtype && strcmp(dtype, named[d]) != 0) other++;
    json_object_set_new(o, f->model.all.p[i].name, json_string(sk_st_dtype_name((sk_st_dtype)d)));
  }
  if (other)
    sk_say("Note    config.json names %s, and %d of %d tensors have another dtype: to-hf will write %s unless it is "
           "given --dtype", dtype, other, f->model.all.n, dtype);
  if (!dtype) {
    char *text = json_dumps(o, JSON_INDENT(1));
    sk_ckpt_side_add(meta, sk_convert_dtypes, text, strlen(text));
    free(text);
  }
  json_decref(o);
  sk_free(dtype);
}

static int take_sides(const from *f, sk_ckpt_meta *meta, sk_err *e) {
  note_dtypes(f, meta);
  for (const char *const *side = sk_convert_sides; *side && !e->code; side++) {
    char *path = sk_strf("%s/%s", f->dir, *side);
    if (exists(f->dir, *side)) sk_ckpt_side_read(meta, path, *side, e);
    sk_free(path);
  }
  if (!sk_hf_json_has(f->json, "rope_theta") && !sk_hf_json_has(f->json, "rope_parameters"))
    sk_warn("%s/config.json: names no rope_theta; %g is taken, but versions of transformers differ: add it", f->dir,
            f->cfg.model.rope_theta);
  return e->code;
}

/* ---- all ranks ---- */

static int read_config(from *f, sk_err *e) {
  char *path = sk_strf("%s/config.json", f->dir);
  if (sk_bcast_file(f->comm, path, SK_DECK_MAX_BYTES, &f->json, e) == SK_OK &&
      sk_config_from_hf(f->json, path, &f->cfg, e) == SK_OK)
    sk_convert_model(&f->cfg, &f->model, e);
  sk_free(path);
  return sk_agree(f->comm, e);
}

static int share_places(from *f, sk_err *e) {
  int n = f->model.all.n;
  f->place = sk_calloc((size_t)n, sizeof *f->place);
  if (f->rank == 0) find_places(f, e);
  if (sk_agree(f->comm, e) != SK_OK) return e->code;
  SK_MPI(MPI_Bcast(&f->n_file, 1, MPI_INT, 0, f->comm));
  if (f->rank != 0) f->file = sk_calloc((size_t)f->n_file, sizeof *f->file);
  SK_MPI(MPI_Bcast(f->file, f->n_file * (int)sizeof *f->file, MPI_CHAR, 0, f->comm));
  SK_MPI(MPI_Bcast(f->place, n * (int)sizeof *f->place, MPI_BYTE, 0, f->comm));
  return SK_OK;
}

/* Datasets, and this rank's pieces: every size-th of all. */
static void make_slabs(from *f) {
  const sk_registry *r = &f->model.all;
  int64_t piece = 0, cap = 0;
  f->dset = sk_calloc((size_t)r->n, sizeof *f->dset);
  for (int i = 0; i < r->n; i++) {
    const sk_param *p = &r->p[i];
    int64_t rows = sk_convert_rows(p);
    f->dset[i] = (sk_dset){.name = sk_strf("params/%s", p->name), .rank = p->rank};
    memcpy(f->dset[i].dim, p->dim, (size_t)p->rank * sizeof *p->dim);
    for (int64_t row = 0; row < p->dim[0]; row += rows) {
      if (piece++ % f->size != f->rank) continue;
      if (f->n_slab == cap) f->slab = sk_realloc(f->slab, (size_t)(cap = 2 * cap + 64) * sizeof *f->slab);
      sk_slab *s = &f->slab[f->n_slab++];
      *s = (sk_slab){.dset = i, .start = {row}};
      memcpy(s->count, p->dim, (size_t)p->rank * sizeof *p->dim);
      if (s->count[0] > rows) s->count[0] = rows;
      if (s->count[0] > p->dim[0] - row) s->count[0] = p->dim[0] - row;
    }
  }
}

static int open_file(from *f, int file, sk_err *e) {
  if (f->fd >= 0 && f->fd_file == file) return SK_OK;
  char *path = sk_strf("%s/%s", f->dir, f->file[file]);
  if (f->fd >= 0) close(f->fd);
  f->fd = open(path, O_RDONLY | O_CLOEXEC);
  f->fd_file = file;
  if (f->fd < 0) sk_fs_fail(e, path, "opened", errno);
  sk_free(path);
  return e->code;
}

static int fill(void *arg, int slab, float *out, sk_err *e) {
  from *f = arg;
  const sk_slab *s = &f->slab[slab];
  const sk_param *p = &f->model.all.p[s->dset];
  const place *at = &f->place[s->dset];
  int64_t n = s->count[0] * p->global_len, width = sk_st_size((sk_st_dtype)at->dtype);
  if (open_file(f, at->file, e) != SK_OK) return e->code;
  f->raw = sk_realloc(f->raw, (size_t)(n * width));
  for (int64_t got = 0; got < n * width;) {
    ssize_t k = pread(f->fd, f->raw + got, (size_t)(n * width - got), at->at + s->start[0] * p->global_len * width + got);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0)
      return sk_fail(e, SK_FAILED, "%s/%s: tensor \"%s\" cannot be read: %s", f->dir, f->file[at->file], p->name,
                     k < 0 ? strerror(errno) : "the file has become shorter");
    got += k;
  }
  sk_st_decode((sk_st_dtype)at->dtype, f->raw, n, out);
  sk_convert_tick(&f->progress, n);
  return SK_OK;
}

static int write_checkpoint(from *f, const char *out, sk_err *e) {
  sk_ckpt_meta meta = {.run_id = "from-hf", .grid = {1, 1, 1, 1}, .deck = f->cfg.resolved, .hf_json = f->json};
  const sk_source source = {fill, f};
  const double begin = sk_now();
  int64_t bytes = 0;
  if (f->rank == 0) take_sides(f, &meta, e);
  if (sk_agree(f->comm, e) == SK_OK) {
    make_slabs(f);
    f->progress = (sk_convert_progress){.all = f->model.all.count, .ranks = f->size, .begin = begin};
    const sk_ckpt_file file = {.name = "model.h5", .n_dset = f->model.all.n, .n_slab = f->n_slab, .dset = f->dset,
                               .slab = f->slab, .source = &source};
    sk_ckpt_save_as(f->comm, out, &meta, 1, &file, &bytes, e);
  }
  if (!e->code)
    sk_say("%s: %s parameters in %d tensors from %d file%s of %s; %s in %.1f s", out, sk_si((double)f->model.all.count),
           f->model.all.n, f->n_file, f->n_file == 1 ? "" : "s", f->dir, sk_bytes((double)bytes), sk_now() - begin);
  meta.deck = meta.hf_json = NULL; // borrowed
  sk_ckpt_meta_free(&meta);
  return e->code;
}

int sk_convert_from_hf(MPI_Comm comm, const char *hf_dir, const char *out, sk_err *e) {
  from f = {.comm = comm, .dir = hf_dir, .fd = -1};
  SK_MPI(MPI_Comm_rank(comm, &f.rank));
  SK_MPI(MPI_Comm_size(comm, &f.size));
  if (read_config(&f, e) == SK_OK && share_places(&f, e) == SK_OK) write_checkpoint(&f, out, e);
  if (f.fd >= 0) close(f.fd);
  for (int i = 0; f.dset && i < f.model.all.n; i++) sk_free((char *)(uintptr_t)f.dset[i].name);
  sk_free(f.dset);
  sk_free(f.slab);
  sk_free(f.raw);
  sk_free(f.place);
  sk_free(f.file);
  sk_free(f.json);
  sk_model_free(&f.model);
  sk_config_free(&f.cfg);
  return e->code;
}
