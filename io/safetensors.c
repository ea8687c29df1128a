#include "io/safetensors.h"
#include "io/fsutil.h"
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- dtypes ---- */

static const struct {
  const char *name;
  int bits;
} dtypes[] = {{"F32", 32},     {"BF16", 16},   {"F16", 16},     {"F64", 64},     {"I64", 64},
              {"I32", 32},     {"I16", 16},    {"I8", 8},       {"U64", 64},     {"U32", 32},
              {"U16", 16},     {"U8", 8},      {"BOOL", 8},     {"C64", 64},     {"F8_E4M3", 8},
              {"F8_E5M2", 8},  {"F8_E8M0", 8}, {"F6_E2M3", 6},  {"F6_E3M2", 6},  {"F4", 4}};
enum { N_DTYPES = sizeof dtypes / sizeof dtypes[0] }; // the first three are sk_st_dtype's

static int find_dtype(const char *name) {
  for (int i = 0; name && i < N_DTYPES; i++)
    if (strcmp(dtypes[i].name, name) == 0) return i;
  return -1;
}

const char *sk_st_dtype_name(sk_st_dtype dtype) { return dtypes[dtype].name; }

sk_st_dtype sk_st_dtype_find(const char *name) {
  int i = find_dtype(name);
  return i >= 0 && i < SK_ST_OTHER ? (sk_st_dtype)i : SK_ST_OTHER;
}

int64_t sk_st_size(sk_st_dtype dtype) { return dtypes[dtype].bits / 8; }

/* ---- one tensor of a header ---- */

SK_PRINTF(4, 5)
static int bad_tensor(sk_err *e, const char *path, const char *name, const char *fmt, ...) {
  char msg[400];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(msg, sizeof msg, fmt, ap);
  va_end(ap);
  return sk_fail(e, SK_FAILED, "%s: tensor \"%.200s\" %s", path, name, msg);
}

static bool get_size(const json_t *v, int64_t *x) {
  *x = json_integer_value(v);
  return json_is_integer(v) && *x >= 0;
}

/* The tensor's bytes by its shape and dtype, or -1 after an overflow or a broken last byte. */
static int64_t shape_bytes(const sk_st_tensor *t, int bits) {
  int64_t n = 1, total;
  for (int i = 0; i < t->rank; i++)
    if (t->dim[i] == 0) return 0; // whatever the others are
  for (int i = 0; i < t->rank; i++)
    if (!sk_mul(n, t->dim[i], &n)) return -1;
  return sk_mul(n, bits, &total) && total % 8 == 0 ? total / 8 : -1;
}

static int get_shape(const json_t *o, const char *path, sk_st_tensor *t, sk_err *e) {
  const json_t *shape = json_object_get(o, "shape");
  if (!json_is_array(shape)) return bad_tensor(e, path, t->name, "has no shape (a list of sizes)");
  if (json_array_size(shape) > SK_ST_MAX_DIMS)
    return bad_tensor(e, path, t->name, "has more than %d dimensions", SK_ST_MAX_DIMS);
  t->rank = (int)json_array_size(shape);
  for (int i = 0; i < t->rank; i++)
    if (!get_size(json_array_get(shape, (size_t)i), &t->dim[i]))
      return bad_tensor(e, path, t->name, "has a shape with something else than whole numbers from 0");
  return SK_OK;
}

static int get_tensor(const json_t *o, int64_t bytes, const char *path, sk_st_tensor *t, sk_err *e) {
  const json_t *dtype = json_object_get(o, "dtype"), *at = json_object_get(o, "data_offsets");
  int d = find_dtype(json_string_value(dtype));
  if (!json_is_object(o)) return bad_tensor(e, path, t->name, "is not described by an object");
  if (json_object_size(o) != 3 || !dtype || !at)
    return bad_tensor(e, path, t->name, "must have dtype, shape and data_offsets and nothing else");
  if (d < 0)
    return bad_tensor(e, path, t->name, "has the dtype \"%.40s\", which the format does not know",
                      json_is_string(dtype) ? json_string_value(dtype) : "(not a text)");
  snprintf(t->dtype_name, sizeof t->dtype_name, "%s", dtypes[d].name);
  t->dtype = d < SK_ST_OTHER ? (sk_st_dtype)d : SK_ST_OTHER;
  if (get_shape(o, path, t, e) != SK_OK) return e->code;
  if (!json_is_array(at) || json_array_size(at) != 2 || !get_size(json_array_get(at, 0), &t->begin) ||
      !get_size(json_array_get(at, 1), &t->end))
    return bad_tensor(e, path, t->name, "has data_offsets that are not two whole numbers from 0");
  if (t->begin > t->end)
    return bad_tensor(e, path, t->name, "ends (byte %lld) before it begins (byte %lld)", (long long)t->end,
                      (long long)t->begin);
  if (t->end > bytes)
    return bad_tensor(e, path, t->name, "ends at byte %lld of the data, of which the file has %lld: it is truncated "
                      "or its header is wrong", (long long)t->end, (long long)bytes);
  int64_t need = shape_bytes(t, dtypes[d].bits);
  if (need < 0) return bad_tensor(e, path, t->name, "has a shape that no file can hold");
  if (need != t->end - t->begin)
    return bad_tensor(e, path, t->name, "has %lld bytes, but its shape and dtype %s need %lld",
                      (long long)(t->end - t->begin), t->dtype_name, (long long)need);
  return SK_OK;
}

/* ---- a whole header ---- */

static int by_place(const void *a, const void *b) {
  const sk_st_tensor *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->end < y->end ? -1 : x->end > y->end;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const sk_st_tensor *)a)->name, ((const sk_st_tensor *)b)->name);
}

/* The tensors follow each other from the first to the last byte. */
static int check_cover(const sk_st_file *f, int64_t bytes, const char *path, sk_err *e) {
  int64_t at = 0;
  for (int i = 0; i < f->n; i++) {
    const sk_st_tensor *t = &f->tensor[i];
    if (t->begin < at)
      return bad_tensor(e, path, t->name, "overlaps \"%.200s\" at byte %lld of the data", f->tensor[i - 1].name,
                        (long long)t->begin);
    if (t->begin > at)
      return bad_tensor(e, path, t->name, "begins at byte %lld: bytes %lld to %lld of the data belong to no tensor",
                        (long long)t->begin, (long long)at, (long long)t->begin - 1);
    at = t->end;
  }
  if (at < bytes)
    return sk_fail(e, SK_FAILED, "%s: the last %lld bytes belong to no tensor", path, (long long)(bytes - at));
  return SK_OK;
}

static int check_metadata(const json_t *o, const char *path, sk_err *e) {
  const char *key;
  json_t *v;
  if (!json_is_object(o)) return sk_fail(e, SK_FAILED, "%s: __metadata__ is not an object", path);
  json_object_foreach((json_t *)(uintptr_t)o, key, v)
    if (!json_is_string(v))
      return sk_fail(e, SK_FAILED, "%s: __metadata__ \"%.200s\" is not a text", path, key);
  return SK_OK;
}

/* The JSON text that ends just before byte `end`, as far as it fits: jansson does not always say which. */
static void text_before(const char *text, size_t end, char *out, size_t cap) {
  out[0] = 0;
  if (end < 2 || text[end - 1] != '"') return;
  size_t at = end - 1;
  while (at > 0 && (text[at - 1] != '"' || (at > 1 && text[at - 2] == '\\'))) at--;
  snprintf(out, cap, " \"%.*s\"", (int)(end - 1 - at < 200 ? end - 1 - at : 200), text + at);
}

/* A JSON object from memory. jansson refuses names given twice, invalid UTF-8, NUL in names and nesting
 * deeper than 2048; its message names the line. */
static json_t *load_object(const char *text, size_t n, const char *path, const char *what, sk_err *e) {
  json_error_t why;
  json_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
  if (!o) {
    char key[256] = "";
    if (json_error_code(&why) == json_error_duplicate_key && (size_t)why.position <= n)
      text_before(text, (size_t)why.position, key, sizeof key);
    sk_fail(e, SK_FAILED, "%s: %s is not valid JSON: line %d, column %d: %s%s", path, what, why.line, why.column,
            key[0] ? "given twice:" : why.text, key);
  }
  else if (!json_is_object(o))
    sk_fail(e, SK_FAILED, "%s: %s is not a JSON object", path, what);
  if (!e->code) return o;
  json_decref(o);
  return NULL;
}

int sk_st_parse(const char *header, size_t n, int64_t bytes, const char *path, sk_st_file *f, sk_err *e) {
  const char *name;
  json_t *v;
  *f = (sk_st_file){0};
  if (n == 0 || header[0] != '{')
    return sk_fail(e, SK_FAILED, "%s: not a safetensors file: its header does not begin with '{'", path);
  json_t *o = load_object(header, n, path, "the header", e);
  if (!o) return e->code;
  f->tensor = sk_calloc(json_object_size(o), sizeof *f->tensor);
  json_object_foreach(o, name, v) {
    if (strcmp(name, "__metadata__") == 0) {
      if (check_metadata(v, path, e) != SK_OK) break;
      continue;
    }
    sk_st_tensor *t = &f->tensor[f->n++];
    t->name = sk_strdup(name);
    if (get_tensor(v, bytes, path, t, e) != SK_OK) break;
  }
  json_decref(o);
  if (!e->code && f->n) qsort(f->tensor, (size_t)f->n, sizeof *f->tensor, by_place);
  if (!e->code) check_cover(f, bytes, path, e);
  if (!e->code && f->n) qsort(f->tensor, (size_t)f->n, sizeof *f->tensor, by_name);
  if (e->code) sk_st_free(f);
  return e->code;
}

static int64_t get_u64(const unsigned char *p) {
  uint64_t x = 0;
  for (int i = 7; i >= 0; i--) x = x << 8 | p[i];
  return x > INT64_MAX ? INT64_MAX : (int64_t)x;
}

int sk_st_open(const char *path, sk_st_file *f, sk_err *e) {
  unsigned char length[8];
  *f = (sk_st_file){0};
  int64_t size = sk_fs_size(path);
  if (size < 0 && access(path, F_OK) == 0) return sk_fail(e, SK_FAILED, "%s: not a regular file", path);
  FILE *in = fopen(path, "rb");
  if (!in) return sk_fs_fail(e, path, "opened", errno);
  bool whole = fread(length, 1, sizeof length, in) == sizeof length;
  int64_t n = whole ? get_u64(length) : 0;
  char *header = NULL;
  if (!whole) {
    sk_fail(e, SK_FAILED, "%s: not a safetensors file: it has fewer than 8 bytes", path);
  } else if (n > SK_ST_MAX_HEADER || n > size - 8) {
    sk_fail(e, SK_FAILED, "%s: its header is said to have %lld bytes; the file has %lld and the format allows %d: "
            "it is truncated or no safetensors file", path, (long long)n, (long long)size, SK_ST_MAX_HEADER);
  } else {
    header = sk_malloc((size_t)n + 1);
    if (fread(header, 1, (size_t)n, in) != (size_t)n) sk_fs_fail(e, path, "read", errno ? errno : EIO);
  }
  fclose(in);
  if (!e->code && sk_st_parse(header, (size_t)n, size - 8 - n, path, f, e) == SK_OK) f->data = 8 + n;
  sk_free(header);
  return e->code;
}

void sk_st_free(sk_st_file *f) {
  for (int i = 0; i < f->n; i++) sk_free(f->tensor[i].name);
  sk_free(f->tensor);
  *f = (sk_st_file){0};
}

const sk_st_tensor *sk_st_find(const sk_st_file *f, const char *name) {
  sk_st_tensor key = {.name = (char *)(uintptr_t)name};
  return f->n ? bsearch(&key, f->tensor, (size_t)f->n, sizeof key, by_name) : NULL;
}

/* ---- the index of several files ---- */

/* A name inside the folder, not hidden, of a safetensors file: never a way out of the folder. */
static bool plain_name(const char *s) {
  size_t n = strlen(s);
  return n > 12 && n < 256 && s[0] != '.' && !strpbrk(s, "/\\") && strcmp(s + n - 12, ".safetensors") == 0;
}

static int text_order(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static int add_entries(json_t *map, const char *path, sk_st_index *x, sk_err *e) {
  const char *name;
  json_t *v;
  json_object_foreach(map, name, v) {
    const char *file = json_string_value(v);
    if (!file)
      return sk_fail(e, SK_FAILED, "%s: tensor \"%.200s\": its file is not a text", path, name);
    if (!plain_name(file))
      return sk_fail(e, SK_FAILED, "%s: tensor \"%.200s\": \"%.200s\" is not the plain name of a .safetensors file in "
                     "this folder", path, name, file);
    x->name[x->n] = sk_strdup(name);
    x->file[x->n++] = sk_strdup(file);
  }
  return SK_OK;
}

/* Files once each, in order; file_of for the names in order. */
static void sort_index(json_t *map, sk_st_index *x) {
  qsort(x->name, (size_t)x->n, sizeof *x->name, text_order);
  qsort(x->file, (size_t)x->n, sizeof *x->file, text_order);
  for (int i = 0; i < x->n; i++) {
    if (x->n_file && strcmp(x->file[x->n_file - 1], x->file[i]) == 0) {
      sk_free(x->file[i]);
      continue;
    }
    x->file[x->n_file++] = x->file[i];
  }
  for (int i = 0; i < x->n; i++) {
    const char *file = json_string_value(json_object_get(map, x->name[i]));
    char **at = bsearch(&file, x->file, (size_t)x->n_file, sizeof *x->file, text_order);
    x->file_of[i] = (int)(at - x->file);
  }
}

int sk_st_index_parse(const char *text, size_t n, const char *path, sk_st_index *x, sk_err *e) {
  *x = (sk_st_index){0};
  json_t *o = load_object(text, n, path, "the index", e), *map = json_object_get(o, "weight_map");
  if (o && !json_is_object(map)) sk_fail(e, SK_FAILED, "%s: has no weight_map", path);
  if (!e->code) {
    size_t count = json_object_size(map);
    x->file = sk_calloc(count, sizeof *x->file);
    x->name = sk_calloc(count, sizeof *x->name);
    x->file_of = sk_calloc(count, sizeof *x->file_of);
    if (add_entries(map, path, x, e) == SK_OK && x->n > 0) sort_index(map, x);
    else x->n_file = x->n; // as many texts to free
  }
  json_decref(o);
  if (e->code) sk_st_index_free(x);
  return e->code;
}

void sk_st_index_free(sk_st_index *x) {
  for (int i = 0; i < x->n; i++) sk_free(x->name[i]);
  for (int i = 0; i < x->n_file; i++) sk_free(x->file[i]);
  sk_free(x->name);
  sk_free(x->file);
  sk_free(x->file_of);
  *x = (sk_st_index){0};
}

/* ---- writing ---- */

char *sk_st_header(int n, sk_st_tensor *tensor, size_t *bytes) {
  json_t *o = json_object();
  int64_t at = 0;
  json_object_set_new(o, "__metadata__", json_pack("{s:s}", "format", "pt")); // transformers insists on it
  for (int i = 0; i < n; i++) {
    sk_st_tensor *t = &tensor[i];
    json_t *shape = json_array();
    for (int k = 0; k < t->rank; k++) json_array_append_new(shape, json_integer(t->dim[k]));
    t->begin = at;
    t->end = at += shape_bytes(t, dtypes[t->dtype].bits);
    json_object_set_new(o, t->name, json_pack("{s:s, s:o, s:[I,I]}", "dtype", sk_st_dtype_name(t->dtype), "shape",
                                              shape, "data_offsets", (json_int_t)t->begin, (json_int_t)t->end));
  }
  char *text = json_dumps(o, JSON_COMPACT);
  SK_CHECK(text, "a safetensors header cannot be written as text");
  size_t len = strlen(text), padded = (len + 7) / 8 * 8;
  char *all = sk_malloc(8 + padded);
  for (int i = 0; i < 8; i++) all[i] = (char)(padded >> 8 * i & 0xff);
  memcpy(all + 8, text, len);
  memset(all + 8 + len, ' ', padded - len);
  free(text);
  json_decref(o);
  *bytes = 8 + padded;
  return all;
}
