/* convert_to.c: `saker convert to-hf`. All ranks lay the files out alike; rank 0 makes them with their
 * headers, then each rank writes its pieces of the tensors in place. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
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
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_CAP = 4096 };

/* One file of weights: consecutive parameters, in `tensor` sorted for the file. */
typedef struct shard {
  char name[48];
  int first, n;
  int64_t data; /* where the data start */
} shard;

typedef struct to {
  MPI_Comm comm;
  int rank, size;
  const sk_to_hf_opts *o;
  char tmp[PATH_CAP];
  sk_ckpt_meta meta;
  sk_config cfg;
  sk_model model;
  char *json;           /* config.json to be written */
  sk_st_tensor *tensor; /* [parameters]; names borrowed */
  int *param;           /* [parameters]: whose tensor[i] is */
  int n_shard;
  shard *shard;
  float *values;        /* one piece */
  unsigned char *raw;
  sk_convert_progress progress;
} to;

/* ---- can it be said in Hugging Face's terms? ---- */

static int check_model(const to *t, sk_err *e) {
  const sk_config *c = &t->cfg;
  for (int64_t i = 0; i < c->n_layers; i++) {
    const sk_layer_cfg *l = &c->layer[i];
    if (l->mixer != 'P' || !l->mlp)
      return sk_fail(e, SK_FAILED, "%s: model.pattern is %s; Hugging Face's Falcon-H1 knows P- only", t->o->from,
                     c->pattern);
    if (memcmp(&l->m, &c->layer[0].m, sizeof l->m) != 0)
      return sk_fail(e, SK_FAILED, "%s: layer %lld has other sizes than layer 0 (model.overrides); Hugging Face's "
                     "Falcon-H1 has layers of one size only", t->o->from, (long long)i);
  }
  return SK_OK;
}

/* ---- which dtype ---- */

static const char *const torch_names[] = {"float32", "bfloat16", "float16"};

static int dtype_of_config(const char *path, const char *name, sk_err *e) {
  for (int d = 0; d < SK_ST_OTHER; d++)
    if (strcmp(name, torch_names[d]) == 0) return d;
  sk_fail(e, SK_FAILED, "%s: its config.json names the dtype \"%.40s\"; choose one with --dtype bf16|fp16|fp32", path,
          name);
  return -1;
}

/* Rank 0: every parameter's dtype by the side file of from-hf, fp32 where it has none; all -1 without the file. */
static int dtypes_by_tensor(const to *t, int *dtype, sk_err *e) {
  const sk_ckpt_side *side = sk_ckpt_side_find(&t->meta, sk_convert_dtypes);
  for (int i = 0; i < t->model.all.n; i++) dtype[i] = -1;
  if (!side) return SK_OK;
  json_t *o = json_loadb(side->data, side->size, JSON_REJECT_DUPLICATES, NULL);
  if (!json_is_object(o)) sk_fail(e, SK_FAILED, "%s/%s: not a JSON object", t->o->from, sk_convert_dtypes);
  for (int i = 0; i < t->model.all.n && !e->code; i++) {
    const char *name = json_string_value(json_object_get(o, t->model.all.p[i].name));
    dtype[i] = name ? (int)sk_st_dtype_find(name) : SK_ST_F32;
    if (dtype[i] == SK_ST_OTHER)
      sk_fail(e, SK_FAILED, "%s/%s: the dtype \"%.40s\" of %s is not F32, BF16 or F16", t->o->from, sk_convert_dtypes,
              name, t->model.all.p[i].name);
  }
  json_decref(o);
  return e->code;
}

/* Collective. Every parameter's dtype into t->tensor, in the registry's order; config.json into t->json. */
static int choose_dtypes(to *t, sk_err *e) {
  const int n = t->model.all.n;
  int *dtype = sk_calloc((size_t)n, sizeof *dtype), one = t->o->dtype;
  char *json = sk_hf_json(&t->cfg, t->meta.hf_json), *named = sk_hf_json_dtype(json);
  if (one < 0 && named) one = dtype_of_config(t->o->from, named, e);
  if (one < 0 && !e->code && t->rank == 0) dtypes_by_tensor(t, dtype, e);
  if (sk_agree(t->comm, e) == SK_OK) {
    SK_MPI(MPI_Bcast(dtype, n, MPI_INT, 0, t->comm));
    if (one < 0 && dtype[0] < 0) one = SK_ST_F32;
    for (int i = 0; i < n; i++) t->tensor[i].dtype = (sk_st_dtype)(one >= 0 ? one : dtype[i]);
    if (one >= 0 && (!named || strcmp(named, torch_names[one]) != 0)) {
      t->json = sk_hf_json_with_dtype(json, torch_names[one]);
      sk_free(json);
    } else {
      t->json = json;
    }
    json = NULL;
  }
  sk_free(json);
  sk_free(named);
  sk_free(dtype);
  return e->code;
}

/* ---- layout ---- */

static int64_t tensor_bytes(const to *t, int i) {
  return t->model.all.p[i].global_len * t->model.all.p[i].dim[0] * sk_st_size(t->tensor[i].dtype);
}

/* Parameters into files, in order. */
static void cut(to *t) {
  int64_t size = 0;
  t->shard = sk_calloc((size_t)t->model.all.n, sizeof *t->shard);
  for (int i = 0; i < t->model.all.n; i++) {
    int64_t bytes = tensor_bytes(t, i);
    if (t->n_shard == 0 || size + bytes > t->o->shard_bytes) {
      t->shard[t->n_shard++].first = i;
      size = 0;
    }
    size += bytes;
    t->shard[t->n_shard - 1].n++;
  }
  for (int k = 0; k < t->n_shard; k++)
    if (t->n_shard == 1) snprintf(t->shard[k].name, sizeof t->shard[k].name, "model.safetensors");
    else
      snprintf(t->shard[k].name, sizeof t->shard[k].name, "model-%05d-of-%05d.safetensors", k + 1, t->n_shard);
}

/* Within a file: 4-byte elements before 2-byte ones, so that all are aligned; else the model's order. */
static void sort_shard(to *t, const shard *s) {
  int at = 0;
  sk_st_tensor *copy = sk_calloc((size_t)s->n, sizeof *copy);
  memcpy(copy, t->tensor + s->first, (size_t)s->n * sizeof *copy);
  for (int wide = 1; wide >= 0; wide--)
    for (int i = 0; i < s->n; i++) {
      if ((copy[i].dtype == SK_ST_F32) != wide) continue;
      t->tensor[s->first + at] = copy[i];
      t->param[s->first + at++] = s->first + i;
    }
  sk_free(copy);
}

static void set_tensors(to *t) {
  for (int i = 0; i < t->model.all.n; i++) {
    const sk_param *p = &t->model.all.p[i];
    t->tensor[i].name = (char *)(uintptr_t)p->name;
    t->tensor[i].rank = p->rank;
    memcpy(t->tensor[i].dim, p->dim, (size_t)p->rank * sizeof *p->dim);
  }
}

/* ---- files ---- */

static int put_file(const to *t, const char *name, const void *data, size_t n, sk_err *e) {
  char *path = sk_strf("%s/%s", t->tmp, name);
  if (!e->code) sk_fs_write(path, data, n, true, e);
  sk_free(path);
  return e->code;
}

/* Headers are made on every rank: they give the places. Rank 0 writes them and reserves the space. */
static int make_shards(to *t, sk_err *e) {
  for (int k = 0; k < t->n_shard && !e->code; k++) {
    shard *s = &t->shard[k];
    size_t n;
    sort_shard(t, s);
    char *header = sk_st_header(s->n, t->tensor + s->first, &n);
    s->data = (int64_t)n;
    if (t->rank == 0 && put_file(t, s->name, header, n, e) == SK_OK) {
      char *path = sk_strf("%s/%s", t->tmp, s->name);
      sk_fs_reserve(path, s->data + t->tensor[s->first + s->n - 1].end, e);
      sk_free(path);
    }
    sk_free(header);
  }
  return sk_agree(t->comm, e);
}

static int put_index(const to *t, sk_err *e) {
  json_t *map = json_object();
  int64_t total = 0;
  for (int k = 0; k < t->n_shard; k++)
    for (int i = 0; i < t->shard[k].n; i++) {
      const sk_st_tensor *x = &t->tensor[t->shard[k].first + i];
      json_object_set_new(map, x->name, json_string(t->shard[k].name));
      total += x->end - x->begin;
    }
  json_t *o = json_pack("{s:{s:I, s:I}, s:o}", "metadata", "total_parameters", (json_int_t)t->model.all.count,
                        "total_size", (json_int_t)total, "weight_map", map);
  char *text = json_dumps(o, JSON_INDENT(2));
  SK_CHECK(text, "the index of the weights cannot be written as text");
  put_file(t, "model.safetensors.index.json", text, strlen(text), e);
  free(text);
  json_decref(o);
  return e->code;
}

/* Rank 0: everything but the weights. */
static int put_small_files(const to *t, sk_err *e) {
  put_file(t, "config.json", t->json, strlen(t->json), e);
  if (t->n_shard > 1) put_index(t, e);
  for (const char *const *name = sk_convert_sides; *name; name++) {
    const sk_ckpt_side *side = sk_ckpt_side_find(&t->meta, *name);
    if (side) put_file(t, side->name, side->data, side->size, e);
  }
  return e->code;
}

static int write_at(int fd, const unsigned char *p, int64_t n, int64_t at) {
  while (n > 0) {
    ssize_t k = pwrite(fd, p, (size_t)n, at);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) return errno;
    p += k, n -= k, at += k;
  }
  return 0;
}

static int too_large(const to *t, const sk_st_tensor *x, float value, sk_err *e) {
  return sk_fail(e, SK_FAILED, "%s: tensor \"%s\" holds %g, which %s cannot; choose another --dtype", t->o->from, x->name,
                 (double)value, sk_st_dtype_name(x->dtype));
}

/* Rows row .. row+rows-1 of a tensor, from the checkpoint into the file. */
static int move_piece(to *t, int64_t h5, const char *h5_path, int fd, const char *path, const shard *s, int i,
                      int64_t row, int64_t rows, sk_err *e) {
  const sk_st_tensor *x = &t->tensor[i];
  const sk_param *p = &t->model.all.p[t->param[i]];
  int64_t n = rows * p->global_len, width = sk_st_size(x->dtype);
  char *name = sk_strf("params/%s", p->name);
  sk_dset d = {.name = name, .rank = p->rank};
  t->values = sk_realloc(t->values, (size_t)n * sizeof *t->values);
  t->raw = sk_realloc(t->raw, (size_t)(n * width));
  sk_slab slab = {.start = {row}, .data = t->values};
  memcpy(d.dim, p->dim, (size_t)p->rank * sizeof *d.dim);
  memcpy(slab.count, p->dim, (size_t)p->rank * sizeof *slab.count);
  slab.count[0] = rows;
  if (sk_h5_read_slab(h5, h5_path, &d, &slab, e) == SK_OK) {
    int64_t over = sk_st_encode(x->dtype, t->values, n, t->raw);
    int err = over < 0 ? write_at(fd, t->raw, n * width, s->data + x->begin + row * p->global_len * width) : 0;
    if (over >= 0) too_large(t, x, t->values[over], e);
    if (err) sk_fs_fail(e, path, "written", err);
    sk_convert_tick(&t->progress, n);
  }
  sk_free(name);
  return e->code;
}

/* This rank's pieces of one file: every size-th of all. *piece counts through the model. */
static int write_shard(to *t, int64_t h5, const char *h5_path, const shard *s, int64_t *piece, sk_err *e) {
  char *path = sk_strf("%s/%s", t->tmp, s->name);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) sk_fs_fail(e, path, "written", errno);
  for (int i = s->first; i < s->first + s->n && !e->code; i++) {
    const sk_param *p = &t->model.all.p[t->param[i]];
    int64_t step = sk_convert_rows(p);
    for (int64_t row = 0; row < p->dim[0] && !e->code; row += step) {
      int64_t rows = step < p->dim[0] - row ? step : p->dim[0] - row;
      if ((*piece)++ % t->size == t->rank) move_piece(t, h5, h5_path, fd, path, s, i, row, rows, e);
    }
  }
  if (fd >= 0 && fsync(fd) != 0 && !e->code) sk_fs_fail(e, path, "written to disk", errno);
  if (fd >= 0 && close(fd) != 0 && !e->code) sk_fs_fail(e, path, "written to disk", errno);
  sk_free(path);
  return e->code;
}

static int write_weights(to *t, sk_err *e) {
  char *path = sk_strf("%s/model.h5", t->o->from);
  int64_t h5 = sk_h5_open(path, e), piece = 0;
  t->progress = (sk_convert_progress){.all = t->model.all.count, .ranks = t->size, .begin = sk_now()};
  for (int k = 0; k < t->n_shard && !e->code; k++) write_shard(t, h5, path, &t->shard[k], &piece, e);
  if (h5 >= 0) sk_h5_close(h5);
  sk_free(path);
  return sk_agree(t->comm, e);
}

/* ---- the whole ---- */

/* Rank 0: a fresh folder beside the one asked for. */
static int make_tmp(to *t, sk_err *e) {
  struct stat st;
  if (t->rank == 0) {
    char *up = sk_fs_parent(t->o->out);
    int n = snprintf(t->tmp, PATH_CAP, "%s.tmp.%s-%ld", t->o->out, sk_host(), (long)getpid());
    if (lstat(t->o->out, &st) == 0) sk_fs_fail(e, t->o->out, "created", EEXIST);
    else if (n >= PATH_CAP - 64) sk_fail(e, SK_FAILED, "%s: the path is too long", t->o->out);
    else if (sk_fs_mkdirs(up, e) == SK_OK && mkdir(t->tmp, 0777) != 0) sk_fs_fail(e, t->tmp, "created", errno);
    sk_free(up);
  }
  if (sk_agree(t->comm, e) == SK_OK) SK_MPI(MPI_Bcast(t->tmp, PATH_CAP, MPI_CHAR, 0, t->comm));
  return e->code;
}

static int publish(const to *t, sk_err *e) {
  char *up = sk_fs_parent(t->o->out);
  if (put_small_files(t, e) == SK_OK && rename(t->tmp, t->o->out) != 0) sk_fs_fail(e, t->o->out, "created", errno);
  if (!e->code) sk_fs_sync(up, e);
  sk_free(up);
  return e->code;
}

static int write_folder(to *t, sk_err *e) {
  const double begin = sk_now();
  if (make_tmp(t, e) != SK_OK) return e->code;
  if (make_shards(t, e) == SK_OK && write_weights(t, e) == SK_OK && t->rank == 0) publish(t, e);
  if (sk_agree(t->comm, e) != SK_OK) {
    if (t->rank == 0) sk_fs_remove(t->tmp);
    return e->code;
  }
  int64_t bytes = 0, of[SK_ST_OTHER] = {0};
  for (int i = 0; i < t->model.all.n; i++) {
    bytes += t->tensor[i].end - t->tensor[i].begin;
    of[t->tensor[i].dtype]++;
  }
  sk_say("%s: %s parameters in %d tensors (%lld F32, %lld BF16, %lld F16) in %d file%s; %s in %.1f s", t->o->out,
         sk_si((double)t->model.all.count), t->model.all.n, (long long)of[SK_ST_F32], (long long)of[SK_ST_BF16],
         (long long)of[SK_ST_F16], t->n_shard, t->n_shard == 1 ? "" : "s", sk_bytes((double)bytes), sk_now() - begin);
  return SK_OK;
}

int sk_convert_to_hf(MPI_Comm comm, const sk_to_hf_opts *o, sk_err *e) {
  to t = {.comm = comm, .o = o};
  SK_MPI(MPI_Comm_rank(comm, &t.rank));
  SK_MPI(MPI_Comm_size(comm, &t.size));
  if (sk_ckpt_open(comm, o->from, &t.meta, NULL, e) == SK_OK &&
      sk_config_from_resolved(t.meta.deck, o->from, &t.cfg, e) == SK_OK && check_model(&t, e) == SK_OK)
    sk_convert_model(&t.cfg, &t.model, e);
  if (sk_agree(comm, e) == SK_OK) {
    t.tensor = sk_calloc((size_t)t.model.all.n, sizeof *t.tensor);
    t.param = sk_calloc((size_t)t.model.all.n, sizeof *t.param);
    set_tensors(&t);
    if (choose_dtypes(&t, e) == SK_OK) {
      cut(&t);
      write_folder(&t, e);
    }
  }
  sk_free(t.tensor);
  sk_free(t.param);
  sk_free(t.shard);
  sk_free(t.values);
  sk_free(t.raw);
  sk_free(t.json);
  sk_model_free(&t.model);
  sk_config_free(&t.cfg);
  sk_ckpt_meta_free(&t.meta);
  return e->code;
}
