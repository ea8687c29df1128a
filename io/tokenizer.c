#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/tokenizer.h"
#include "io/fsutil.h"
#include "io/tokenizer_parts.h"
#include "io/utf8.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES_END = 256 };

struct sk_tokenizer {
  char *name, *json;
  size_t json_n;
  char hash[SK_HASH_HEX];
  int64_t vocab, eos;
  char byte[256];
  bool bpe; /* else `bytes`, and nothing below is there */
  sk_bpe model;
  sk_norm *norm;
  sk_added *added;
  sk_pretok *pretok;
  bool cuttable;
  sk_ids *out; /* during an encode */
};

/* ---- encoding: each stage hands pieces to the next ---- */

static void inner_piece(void *to, const char *p, size_t n, sk_err *e) {
  sk_tokenizer *t = to;
  (void)e;
  sk_bpe_encode(&t->model, p, n, t->out);
}

static void outer_piece(void *to, const char *p, size_t n, sk_err *e) {
  sk_tokenizer *t = to;
  uint64_t hash = 0;
  if (sk_bpe_cached(&t->model, p, n, &hash, t->out)) return;
  int64_t from = t->out->n;
  sk_pretok_inner(t->pretok, p, n, inner_piece, t, e);
  if (!e->code) sk_bpe_remember(&t->model, p, n, hash, t->out, from);
}

static void normal_text(void *to, const char *p, size_t n, sk_err *e) {
  sk_tokenizer *t = to;
  sk_pretok_outer(t->pretok, p, n, outer_piece, t, e);
}

static void plain_text(void *to, const char *p, size_t n, sk_err *e) {
  sk_tokenizer *t = to;
  size_t m = n;
  char *normal = sk_norm_apply(t->norm, p, n, &m, e);
  const char *q = normal ? normal : p;
  if (!e->code) {
    if (sk_added_any(t->added, true)) sk_added_split(t->added, true, q, m, normal_text, t, t->out, e);
    else normal_text(t, q, m, e);
  }
  free(normal);
}

int sk_tokenizer_encode(sk_tokenizer *t, const char *text, size_t n, sk_ids *out, sk_err *e) {
  if (!t->bpe) {
    sk_ids_room(out, (int64_t)n);
    for (size_t i = 0; i < n; i++) out->at[out->n++] = (unsigned char)text[i];
    return SK_OK;
  }
  size_t m = n;
  char *clean = sk_utf8_replaced(text, n, &m);
  const char *p = clean ? clean : text;
  t->out = out;
  if (sk_added_any(t->added, false)) sk_added_split(t->added, false, p, m, plain_text, t, out, e);
  else plain_text(t, p, m, e);
  sk_free(clean);
  return e->code;
}

/* ---- where text may be cut ---- */

/* First bytes of characters that are neither space nor mark, whatever follows: most of ASCII, and blocks of letters
 * and emoji that hold no White_Space (which begin with C2, E1, E2 and E3). */
static bool solid(unsigned char b) {
  return (b > 0x20 && b < 0x7f) || (b >= 0xc3 && b <= 0xc9) || (b >= 0xd0 && b <= 0xdf) || (b >= 0xe4 && b <= 0xf4);
}

static bool is_cut(const char *text, size_t p, size_t n) {
  if (p < 2 || p >= n || text[p - 1] != '\n' || !solid((unsigned char)text[p])) return false;
  size_t at = p - 2;
  while (at > 0 && p - at < 5 && (text[at] & 0xc0) == 0x80) at--;
  return solid((unsigned char)text[at]);
}

bool sk_tokenizer_cuttable(const sk_tokenizer *t) { return !t->bpe || t->cuttable; }

size_t sk_tokenizer_cut(const sk_tokenizer *t, const char *text, size_t from, size_t n) {
  if (!t->bpe) return from;
  if (!t->cuttable) return n;
  while (from < n) {
    if (is_cut(text, from, n)) return from;
    const char *line = memchr(text + from, '\n', n - from);
    from = line ? (size_t)(line - text) + 1 : n;
  }
  return n;
}

size_t sk_tokenizer_last_cut(const sk_tokenizer *t, const char *text, size_t n) {
  if (!t->bpe) return n;
  while (t->cuttable && n > 0) {
    const char *line = memrchr(text, '\n', n - 1);
    size_t at = line ? (size_t)(line - text) + 1 : 0;
    if (at > 0 && is_cut(text, at, n)) return at;
    n = at;
  }
  return 0;
}

/* Tries the cut between all kinds of neighbours. The usual pre-tokenizers end a piece at a line's end between solid
 * characters; for one that does not, texts are tokenized whole. */
static bool try_cuts(sk_tokenizer *t) {
  static const char *const side[] = {"a", "Zz", "7", "12", ".", "?!", "'", "\"s", "'s", "ll", "e", "_", "/", "-", "(",
                                     "\xc3\xa9", "\xd8\xb3", "\xe4\xb8\xad", "\xf0\x9f\x98\x80", "\xd0\x96", "<", "|>", "b a",
                                     " x", "0x1f", "\t;"};
  enum { N = sizeof side / sizeof *side };
  sk_ids whole = {0}, parts = {0};
  sk_err e = {0};
  bool same = true;
  for (int i = 0; i < N * N && same; i++) {
    char text[64];
    int cut = snprintf(text, sizeof text, "%s\n", side[i / N]), n = cut;
    n += snprintf(text + cut, sizeof text - (size_t)cut, "%s", side[i % N]);
    if (!is_cut(text, (size_t)cut, (size_t)n)) continue;
    whole.n = parts.n = 0;
    sk_tokenizer_encode(t, text, (size_t)n, &whole, &e);
    sk_tokenizer_encode(t, text, (size_t)cut, &parts, &e);
    sk_tokenizer_encode(t, text + cut, (size_t)(n - cut), &parts, &e);
    same = !e.code && whole.n == parts.n && !memcmp(whole.at, parts.at, (size_t)whole.n * sizeof *whole.at);
  }
  sk_free(whole.at);
  sk_free(parts.at);
  return same;
}

/* ---- reading ---- */

static int64_t find_token(const sk_tokenizer *t, const char *text) {
  size_t n;
  for (int64_t id = 0; id < t->vocab; id++) {
    const char *p = sk_tokenizer_bytes_of(t, id, &n);
    if (n == strlen(text) && memcmp(p, text, n) == 0) return id;
  }
  return -1;
}

static void find_eos(sk_tokenizer *t, const char *eos, sk_err *e) {
  static const char *const usual[] = {"<|end_of_text|>", "<|endoftext|>", "<|end\xe2\x96\x81of\xe2\x96\x81sentence|>",
                                      "<\xef\xbd\x9c" "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>", "</s>", "<eos>",
                                      "<|eos|>"};
  t->eos = eos ? find_token(t, eos) : -1;
  if (eos && t->eos < 0) sk_fail(e, SK_USAGE, "%s: it has no token %.80s to end a document with", t->name, eos);
  for (size_t i = 0; !eos && t->eos < 0 && i < sizeof usual / sizeof *usual; i++) t->eos = find_token(t, usual[i]);
}

static void check_decoder(const json_t *j, const char *where, sk_err *e) {
  const char *type = json_string_value(json_object_get(j, "type"));
  if (!type || strcmp(type, "ByteLevel") != 0)
    sk_fail(e, SK_FAILED, "%s: the decoder %.60s is not supported (only ByteLevel)", where, type ? type : "is missing: this");
}

static void build(sk_tokenizer *t, const json_t *j, sk_err *e) {
  const json_t *model = json_object_get(j, "model");
  t->bpe = true;
  t->pretok = sk_pretok_new(json_object_get(j, "pre_tokenizer"), t->name, e);
  if (!e->code) t->norm = sk_norm_new(json_object_get(j, "normalizer"), t->name, e);
  if (!e->code) check_decoder(json_object_get(j, "decoder"), t->name, e);
  if (!e->code) sk_bpe_read(&t->model, model, t->name, e);
  if (!e->code)
    t->added = sk_added_new(json_object_get(j, "added_tokens"), json_object_get(model, "vocab"), &t->model, t->norm,
                            t->name, e);
  t->vocab = t->model.vocab;
}

int sk_tokenizer_parse(const char *json, size_t n, const char *where, const char *eos, sk_tokenizer **out, sk_err *e) {
  json_error_t why;
  *out = NULL;
  if (n > SK_TOKENIZER_MAX_FILE)
    return sk_fail(e, SK_FAILED, "%s: %zu bytes are too many for a tokenizer.json", where, n);
  json_t *j = json_loadb(json, n, JSON_REJECT_DUPLICATES, &why);
  if (!j) return sk_fail(e, SK_FAILED, "%s:%d:%d: not a tokenizer.json: %s", where, why.line, why.column, why.text);
  sk_tokenizer *t = sk_calloc(1, sizeof *t);
  t->name = sk_strdup(where);
  build(t, j, e);
  json_decref(j);
  if (!e->code) find_eos(t, eos, e);
  if (e->code) {
    sk_tokenizer_close(t);
    return e->code;
  }
  t->json = memcpy(sk_malloc(n), json, n);
  t->json_n = n;
  sk_hash_hex(json, n, t->hash);
  t->cuttable = sk_added_cuttable(t->added) && try_cuts(t);
  *out = t;
  return SK_OK;
}

/* eos_token of a tokenizer_config.json beside the file, owned by the caller; NULL where there is none. */
static char *config_eos(MPI_Comm comm, const char *path) {
  char *dir = sk_fs_parent(path), *file = sk_strf("%s/tokenizer_config.json", dir), *text = NULL, *eos = NULL;
  sk_err e = {0};
  if (sk_bcast_file(comm, file, 16 << 20, &text, &e) == SK_OK) {
    json_t *j = json_loads(text, 0, NULL), *x = json_object_get(j, "eos_token");
    if (json_is_object(x)) x = json_object_get(x, "content");
    if (json_is_string(x)) eos = sk_strdup(json_string_value(x));
    json_decref(j);
  }
  sk_free(text);
  sk_free(file);
  sk_free(dir);
  return eos;
}

int sk_tokenizer_open(MPI_Comm comm, const char *path, const char *eos, sk_tokenizer **t, sk_err *e) {
  *t = NULL;
  if (strcmp(path, "bytes") == 0) {
    if (eos) return sk_fail(e, SK_USAGE, "the tokenizer bytes ends documents with 256, not with %s", eos);
    *t = sk_calloc(1, sizeof **t);
    (*t)->name = sk_strdup(path);
    (*t)->vocab = BYTES_END + 1;
    (*t)->eos = BYTES_END;
    for (int i = 0; i < 256; i++) (*t)->byte[i] = (char)i;
    return SK_OK;
  }
  char *text = NULL, *beside = eos ? NULL : config_eos(comm, path);
  if (sk_bcast_file(comm, path, SK_TOKENIZER_MAX_FILE, &text, e) == SK_OK)
    sk_tokenizer_parse(text, strlen(text), path, eos ? eos : beside, t, e);
  sk_free(text);
  sk_free(beside);
  if (sk_agree(comm, e) == SK_OK) return SK_OK;
  sk_tokenizer_close(*t);
  *t = NULL;
  return e->code;
}

void sk_tokenizer_close(sk_tokenizer *t) {
  if (!t) return;
  sk_bpe_free(&t->model);
  sk_norm_free(t->norm);
  sk_added_free(t->added);
  sk_pretok_free(t->pretok);
  sk_free(t->json);
  sk_free(t->name);
  sk_free(t);
}

int64_t sk_tokenizer_vocab(const sk_tokenizer *t) { return t->vocab; }
int64_t sk_tokenizer_eos(const sk_tokenizer *t) { return t->eos; }
const char *sk_tokenizer_name(const sk_tokenizer *t) { return t->name; }
const char *sk_tokenizer_hash(const sk_tokenizer *t) { return t->hash; }
const char *sk_tokenizer_json(const sk_tokenizer *t, size_t *n) { return *n = t->json_n, t->json; }

/* ---- decoding ---- */

const char *sk_tokenizer_bytes_of(const sk_tokenizer *t, int64_t id, size_t *n) {
  *n = 0;
  if (id < 0 || id >= t->vocab) return "";
  if (!t->bpe) return id < BYTES_END ? (*n = 1, t->byte + id) : "";
  const struct sk_token *k = &t->model.token[id];
  *n = k->used ? k->n : 0;
  return t->model.blob ? t->model.blob + k->at : "";
}

bool sk_tokenizer_special(const sk_tokenizer *t, int64_t id) {
  if (id < 0 || id >= t->vocab) return false;
  return t->bpe ? t->model.token[id].special : id == BYTES_END;
}

/* Whole characters of held + bytes are written, what may become one is kept. */
static void decode(sk_detok *d, const char *bytes, size_t n) {
  char *text = sk_malloc(d->n + n);
  memcpy(text, d->held, d->n);
  memcpy(text + d->n, bytes, n);
  n += d->n;
  d->n = 0;
  size_t at = 0;
  while (at < n) {
    size_t good = sk_utf8_valid(text + at, n - at);
    bool more = false;
    if (good) d->write(d->to, text + at, good);
    at += good;
    if (at == n) break;
    size_t bad = sk_utf8_bad(text + at, n - at, &more);
    if (more) {
      memcpy(d->held, text + at, d->n = n - at);
      break;
    }
    d->write(d->to, "\xef\xbf\xbd", 3);
    at += bad;
  }
  sk_free(text);
}

void sk_detok_push(sk_detok *d, const sk_tokenizer *t, int64_t id) {
  size_t n;
  if (sk_tokenizer_special(t, id)) return;
  const char *p = sk_tokenizer_bytes_of(t, id, &n);
  decode(d, p, n);
}

void sk_detok_finish(sk_detok *d) {
  if (d->n) d->write(d->to, "\xef\xbf\xbd", 3);
  d->n = 0;
}
