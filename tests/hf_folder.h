/* hf_folder.h: a folder as transformers writes it, written and read without io/safetensors.c. Everything here is
 * for one rank. */
#ifndef SK_HF_FOLDER_H
#define SK_HF_FOLDER_H
#include "io/fsutil.h"
#include "src/base.h"
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct hf_tensor {
  char name[128], dtype[8];
  int rank;
  int64_t dim[4];
  size_t bytes;
  unsigned char *data;
} hf_tensor;

/* Formatted text, good for the next 31 calls. */
SK_PRINTF(1, 2) static inline const char *str(const char *fmt, ...) {
  static char ring[32][1024];
  static int at;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(ring[at = (at + 1) % 32], sizeof ring[0], fmt, ap);
  va_end(ap);
  return ring[at];
}

static inline void hf_put(const char *path, const void *data, size_t n) {
  FILE *f = fopen(path, "wb");
  SK_CHECK(f && fwrite(data, 1, n, f) == n && fclose(f) == 0, "%s cannot be written", path);
}

static inline char *hf_get(const char *path, size_t *n) {
  int64_t size = sk_fs_size(path);
  FILE *f = fopen(path, "rb");
  SK_CHECK(f && size >= 0, "%s cannot be read", path);
  char *text = sk_calloc((size_t)size + 1, 1);
  SK_CHECK(fread(text, 1, (size_t)size, f) == (size_t)size, "%s cannot be read", path);
  fclose(f);
  *n = (size_t)size;
  return text;
}

static inline bool hf_same_file(const char *a, const char *b) {
  if (sk_fs_size(a) < 0 || sk_fs_size(b) < 0) return false;
  size_t n, m;
  char *x = hf_get(a, &n), *y = hf_get(b, &m);
  bool same = n == m && memcmp(x, y, n) == 0;
  sk_free(x);
  sk_free(y);
  return same;
}

/* The JSON of n tensors in this order, without spaces. */
static inline char *hf_header(int n, const hf_tensor *t) {
  char *text = NULL;
  size_t size = 0, at = 0;
  FILE *f = open_memstream(&text, &size);
  fprintf(f, "{\"__metadata__\":{\"format\":\"pt\"}");
  for (int i = 0; i < n; i++) {
    fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t[i].name, t[i].dtype);
    for (int k = 0; k < t[i].rank; k++) fprintf(f, "%s%lld", k ? "," : "", (long long)t[i].dim[k]);
    fprintf(f, "],\"data_offsets\":[%zu,%zu]}", at, at + t[i].bytes);
    at += t[i].bytes;
  }
  fputs("}", f);
  fclose(f);
  return text;
}

/* length is what the file says of its header. */
static inline void hf_write_raw(const char *path, uint64_t length, const char *header, size_t n_header, int n,
                                const hf_tensor *t) {
  FILE *f = fopen(path, "wb");
  SK_CHECK(f, "%s cannot be written", path);
  for (int i = 0; i < 8; i++) fputc((int)(length >> 8 * i & 0xff), f);
  fwrite(header, 1, n_header, f);
  for (int i = 0; i < n; i++) fwrite(t[i].data, 1, t[i].bytes, f);
  SK_CHECK(fclose(f) == 0, "%s cannot be written", path);
}

static inline void hf_write(const char *path, int n, const hf_tensor *t) {
  char *header = hf_header(n, t);
  hf_write_raw(path, strlen(header), header, strlen(header), n, t);
  free(header);
}

/* Every file of tensors of a folder, by config.json's neighbours; returns how many tensors. */
static inline int hf_read_file(const char *path, hf_tensor **t, int n) {
  size_t size;
  char *file = hf_get(path, &size);
  uint64_t length = 0;
  for (int i = 7; i >= 0; i--) length = length << 8 | (unsigned char)file[i];
  json_t *o = json_loadb(file + 8, length, JSON_REJECT_DUPLICATES, NULL), *v;
  SK_CHECK(o, "%s: no JSON header", path);
  const char *name;
  json_object_foreach(o, name, v) {
    if (strcmp(name, "__metadata__") == 0) continue;
    *t = sk_realloc(*t, (size_t)(n + 1) * sizeof **t);
    hf_tensor *x = &(*t)[n++];
    *x = (hf_tensor){.rank = (int)json_array_size(json_object_get(v, "shape"))};
    snprintf(x->name, sizeof x->name, "%s", name);
    snprintf(x->dtype, sizeof x->dtype, "%s", json_string_value(json_object_get(v, "dtype")));
    for (int k = 0; k < x->rank && k < 4; k++)
      x->dim[k] = json_integer_value(json_array_get(json_object_get(v, "shape"), (size_t)k));
    size_t begin = (size_t)json_integer_value(json_array_get(json_object_get(v, "data_offsets"), 0));
    size_t end = (size_t)json_integer_value(json_array_get(json_object_get(v, "data_offsets"), 1));
    SK_CHECK(begin <= end && 8 + length + end <= size, "%s: %s leaves the file", path, name);
    x->bytes = end - begin;
    x->data = sk_malloc(x->bytes + 1);
    memcpy(x->data, file + 8 + length + begin, x->bytes);
  }
  json_decref(o);
  sk_free(file);
  return n;
}

/* All tensors of a folder, and in *files the number of its files. */
static inline int hf_read(const char *dir, hf_tensor **t, int *files) {
  char **name;
  int64_t n_name;
  int n = 0;
  sk_err e = {0};
  *t = NULL;
  *files = 0;
  SK_CHECK(sk_fs_list(dir, &name, &n_name, &e) == SK_OK, "%s", e.msg);
  for (int64_t i = 0; i < n_name; i++) {
    const char *dot = strrchr(name[i], '.');
    if (!dot || strcmp(dot, ".safetensors") != 0) continue;
    n = hf_read_file(str("%s/%s", dir, name[i]), t, n);
    ++*files;
  }
  sk_fs_free_names(name, n_name);
  return n;
}

static inline void hf_free(hf_tensor *t, int n) {
  for (int i = 0; i < n; i++) sk_free(t[i].data);
  sk_free(t);
}

/* How many of a's tensors b has with the same dtype, shape and bytes. */
static inline int hf_count_same(int n, const hf_tensor *a, int m, const hf_tensor *b) {
  int same = 0;
  for (int i = 0; i < n; i++)
    for (int k = 0; k < m; k++)
      same += strcmp(a[i].name, b[k].name) == 0 && strcmp(a[i].dtype, b[k].dtype) == 0 && a[i].rank == b[k].rank &&
              memcmp(a[i].dim, b[k].dim, sizeof a[i].dim) == 0 && a[i].bytes == b[k].bytes &&
              memcmp(a[i].data, b[k].data, a[i].bytes) == 0;
  return same;
}
#endif
