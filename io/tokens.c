#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/tokens.h"
#include "io/fsutil.h"
#include "io/h5.h"
#include "io/tokenizer.h"
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sk_tokens {
  char *path;
  hid_t file, data, space;
  sk_tokens_info info;
  uint64_t *doc; /* [info.documents] start offsets */
};

/* ---- attributes ---- */

/* Opens a scalar attribute of the root; on failure names it. */
static hid_t open_attr(const sk_tokens *t, const char *name, H5T_class_t want, hid_t *type, sk_err *e) {
  hid_t a = H5Aexists(t->file, name) > 0 ? H5Aopen(t->file, name, H5P_DEFAULT) : -1;
  if (a < 0) {
    sk_fail(e, SK_FAILED, "%s: not a token data set: it has no attribute \"%s\"; build one with "
            "`saker data build`", t->path, name);
    return -1;
  }
  hid_t space = H5Aget_space(a);
  *type = H5Aget_type(a);
  if (H5Tget_class(*type) == want && H5Sget_simple_extent_npoints(space) == 1 &&
      H5Tis_variable_str(*type) <= 0 && H5Tget_size(*type) <= 65536) {
    H5Sclose(space);
    return a;
  }
  sk_fail(e, SK_FAILED, "%s: attribute \"%s\" is not a single %s", t->path, name,
          want == H5T_STRING ? "text of fixed length" : "integer");
  H5Sclose(space);
  H5Tclose(*type);
  H5Aclose(a);
  return -1;
}

static int64_t int_attr(const sk_tokens *t, const char *name, int64_t min, int64_t max, sk_err *e) {
  hid_t type, a = open_attr(t, name, H5T_INTEGER, &type, e);
  int64_t x = min;
  if (a < 0) return x;
  if (H5Aread(a, H5T_NATIVE_INT64, &x) < 0) sk_h5_fail(e, t->path, "read");
  H5Tclose(type);
  H5Aclose(a);
  if (x >= min && x <= max) return x;
  sk_fail(e, SK_FAILED, "%s: attribute \"%s\" is %lld; %lld to %lld are possible here", t->path, name,
          (long long)x, (long long)min, (long long)max);
  return min;
}

/* Longer texts are cut. */
static void text_attr(const sk_tokens *t, const char *name, char *out, size_t cap, sk_err *e) {
  hid_t type, a = open_attr(t, name, H5T_STRING, &type, e);
  if (a < 0) return;
  char *s = sk_calloc(H5Tget_size(type) + 1, 1);
  if (H5Aread(a, type, s) < 0) sk_h5_fail(e, t->path, "read");
  size_t n = strnlen(s, cap - 1);
  memcpy(out, s, n);
  out[n] = 0;
  sk_free(s);
  H5Tclose(type);
  H5Aclose(a);
}

/* ---- opening ---- */

static void read_info(sk_tokens *t, sk_err *e) {
  sk_tokens_info *x = &t->info;
  char format[32] = "";
  text_attr(t, "format", format, sizeof format, e);
  if (!e->code && strcmp(format, "saker-tokens") != 0)
    sk_fail(e, SK_FAILED, "%s: not a token data set: its format is \"%s\"", t->path, format);
  if (!e->code) int_attr(t, "version", 1, 1, e);
  if (!e->code) x->vocab_size = int_attr(t, "vocab_size", 1, INT32_MAX, e);
  if (!e->code) x->eos_id = int_attr(t, "eos_id", -1, x->vocab_size - 1, e);
  if (!e->code) x->tokens = int_attr(t, "tokens", 1, INT64_MAX / 8, e);
  if (!e->code) text_attr(t, "tokenizer", x->tokenizer, sizeof x->tokenizer, e);
  if (!e->code) text_attr(t, "tokenizer_xxh3", x->hash, sizeof x->hash, e);
  if (!e->code) text_attr(t, "source", x->source, sizeof x->source, e);
  if (!e->code) text_attr(t, "created_by", x->created_by, sizeof x->created_by, e);
}

static int64_t length_of(hid_t d) {
  hid_t space = H5Dget_space(d);
  int64_t n = (int64_t)H5Sget_simple_extent_npoints(space);
  H5Sclose(space);
  return n;
}

static bool has_type(hid_t d, hid_t want) {
  hid_t type = H5Dget_type(d);
  bool same = H5Tequal(type, want) > 0;
  H5Tclose(type);
  return same;
}

static void open_data(sk_tokens *t, sk_err *e) {
  t->data = sk_h5_open_dset(t->file, t->path, "data", 1, e);
  if (t->data < 0) return;
  t->info.width = has_type(t->data, H5T_STD_U16LE) ? 2 : has_type(t->data, H5T_STD_U32LE) ? 4 : 0;
  if (t->info.width == 0)
    sk_fail(e, SK_FAILED, "%s: /data is neither uint16 nor uint32 (little-endian)", t->path);
  else if (length_of(t->data) != t->info.tokens)
    sk_fail(e, SK_FAILED, "%s: /data has %lld tokens, the attribute \"tokens\" says %lld", t->path,
            (long long)length_of(t->data), (long long)t->info.tokens);
  t->space = H5Dget_space(t->data);
}

static void read_documents(sk_tokens *t, sk_err *e) {
  hid_t d = sk_h5_open_dset(t->file, t->path, "documents", 1, e);
  if (d < 0) return;
  int64_t n = length_of(d);
  if (!has_type(d, H5T_STD_U64LE)) {
    sk_fail(e, SK_FAILED, "%s: /documents is not uint64 (little-endian)", t->path);
  } else if (n < 1) {
    sk_fail(e, SK_FAILED, "%s: /documents is empty", t->path);
  } else {
    t->info.documents = n; // bounded by the file's size
    t->doc = sk_calloc((size_t)n, sizeof *t->doc);
    if (H5Dread(d, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, t->doc) < 0)
      sk_h5_fail(e, t->path, "read at /documents");
    else if (t->doc[0] != 0)
      sk_fail(e, SK_FAILED, "%s: /documents does not begin with 0", t->path);
    for (int64_t i = 1; i < n && !e->code; i++)
      if (t->doc[i] <= t->doc[i - 1])
        sk_fail(e, SK_FAILED, "%s: /documents does not ascend at entry %lld", t->path, (long long)i);
    if (!e->code && t->doc[n - 1] >= (uint64_t)t->info.tokens)
      sk_fail(e, SK_FAILED, "%s: /documents points behind the last token", t->path);
  }
  H5Dclose(d);
}

int sk_tokens_open(MPI_Comm comm, const char *path, sk_tokens **out, sk_err *e) {
  sk_tokens *t = sk_calloc(1, sizeof *t);
  *out = NULL;
  t->path = sk_strdup(path);
  t->data = t->space = -1;
  t->file = sk_h5_open(path, e);
  if (t->file >= 0) {
    read_info(t, e);
    if (!e->code) open_data(t, e);
    if (!e->code) read_documents(t, e);
  }
  if (sk_agree(comm, e) == SK_OK) *out = t;
  else sk_tokens_close(t);
  return e->code;
}

void sk_tokens_close(sk_tokens *t) {
  if (!t) return;
  if (t->space >= 0) H5Sclose(t->space);
  if (t->data >= 0) H5Dclose(t->data);
  if (t->file >= 0) H5Fclose(t->file);
  sk_free(t->doc);
  sk_free(t->path);
  sk_free(t);
}

const sk_tokens_info *sk_tokens_get_info(const sk_tokens *t) { return &t->info; }

/* ---- reading ---- */

int sk_tokens_read_raw(sk_tokens *t, int64_t first, int64_t count, int32_t *ids, sk_err *e) {
  SK_CHECK(first >= 0 && count >= 0 && first <= t->info.tokens - count,
           "%s: %lld tokens from %lld on; there are %lld", t->path, (long long)count, (long long)first,
           (long long)t->info.tokens);
  if (count == 0) return SK_OK;
  hsize_t start = (hsize_t)first, n = (hsize_t)count;
  hid_t mem = H5Screate_simple(1, &n, NULL);
  H5Sselect_hyperslab(t->space, H5S_SELECT_SET, &start, NULL, &n, NULL);
  if (H5Dread(t->data, H5T_NATIVE_UINT32, mem, t->space, H5P_DEFAULT, ids) < 0)
    sk_h5_fail(e, t->path, "read at /data");
  H5Sclose(mem);
  return e->code;
}

int sk_tokens_read(sk_tokens *t, int64_t first, int64_t count, int32_t *ids, sk_err *e) {
  if (sk_tokens_read_raw(t, first, count, ids, e) != SK_OK) return e->code;
  const uint32_t vocab = (uint32_t)t->info.vocab_size;
  for (int64_t i = 0; i < count; i++)
    if ((uint32_t)ids[i] >= vocab)
      return sk_fail(e, SK_FAILED, "%s: token %lld is %u; the vocabulary has only %u ids (damaged, or "
                     "built with another tokenizer)", t->path, (long long)(first + i),
                     (unsigned)ids[i], (unsigned)vocab);
  return SK_OK;
}

/* The document that token i belongs to: the last start that is not behind it. */
static int64_t document_of(const sk_tokens *t, int64_t i) {
  int64_t lo = 0, hi = t->info.documents;
  while (hi - lo > 1) {
    int64_t mid = lo + (hi - lo) / 2;
    if (t->doc[mid] <= (uint64_t)i) lo = mid;
    else hi = mid;
  }
  return lo;
}

void sk_tokens_doc_start(const sk_tokens *t, int64_t first, int64_t count, int64_t *start) {
  int64_t d = document_of(t, first);
  for (int64_t i = 0; i < count; i++) {
    while (d + 1 < t->info.documents && t->doc[d + 1] <= (uint64_t)(first + i)) d++;
    start[i] = (int64_t)t->doc[d];
  }
}

int64_t sk_tokens_doc_first(const sk_tokens *t, int64_t d) { return (int64_t)t->doc[d]; }

int64_t sk_tokens_doc_length(const sk_tokens *t, int64_t d) {
  uint64_t end = d + 1 < t->info.documents ? t->doc[d + 1] : (uint64_t)t->info.tokens;
  return (int64_t)(end - t->doc[d]);
}

char *sk_tokens_tokenizer(sk_tokens *t, size_t *n, sk_err *e) {
  char hash[SK_HASH_HEX], *json = NULL;
  if (H5Lexists(t->file, "tokenizer.json", H5P_DEFAULT) <= 0) return NULL;
  hid_t d = sk_h5_open_dset(t->file, t->path, "tokenizer.json", 1, e);
  if (d < 0) return NULL;
  *n = (size_t)length_of(d);
  if (!has_type(d, H5T_STD_U8LE) || *n > SK_TOKENIZER_MAX_FILE) {
    sk_fail(e, SK_FAILED, "%s: /tokenizer.json is not uint8 of at most %s", t->path, sk_bytes(SK_TOKENIZER_MAX_FILE));
  } else {
    json = sk_malloc(*n + 1);
    json[*n] = 0;
    if (H5Dread(d, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, json) < 0) sk_h5_fail(e, t->path, "read");
    else if (sk_hash_hex(json, *n, hash), strcmp(hash, t->info.hash) != 0)
      sk_fail(e, SK_FAILED, "%s: /tokenizer.json is damaged: its hash is not tokenizer_xxh3", t->path);
  }
  H5Dclose(d);
  if (!e->code) return json;
  sk_free(json);
  return NULL;
}
