#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/manifest.h"
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char own_key[] = "\"manifest_xxh3_128\": \"";
static const char zeros[] = "00000000000000000000000000000000";
enum { DIGITS = SK_HASH_HEX - 1 };

static const size_t max_text = (size_t)1 << 30;

/* ---- printing ---- */

static int slab_order(const void *a, const void *b) {
  const sk_manifest_slab *x = a, *y = b;
  if (x->file != y->file) return x->file < y->file ? -1 : 1;
  if (x->dset != y->dset) return x->dset < y->dset ? -1 : 1;
  for (int i = 0; i < SK_MAX_DIMS; i++)
    if (x->start[i] != y->start[i]) return x->start[i] < y->start[i] ? -1 : 1;
  return 0;
}

/* `"key": "text",` with JSON's escapes; null for a text that is not there. */
static void put_text(FILE *f, const char *key, const char *text, sk_err *e) {
  json_t *s = text ? json_string(text) : json_null();
  if (!s) {
    sk_fail(e, SK_FAILED, "manifest.json: the text of \"%s\" is not UTF-8; re-encode it", key);
    return;
  }
  fprintf(f, "\"%s\": ", key);
  json_dumpf(s, f, JSON_ENCODE_ANY);
  fputs(",", f);
  json_decref(s);
}

static void put_ints(FILE *f, const char *key, int n, const int64_t *x) {
  fprintf(f, "\"%s\": [", key);
  for (int i = 0; i < n; i++) fprintf(f, "%s%lld", i ? ", " : "", (long long)x[i]);
  fputs("], ", f);
}

static void put_file(FILE *f, const sk_manifest *m, int k, int64_t *at, sk_err *e) {
  const sk_manifest_file *x = &m->file[k];
  fprintf(f, "%s\n  {\"name\": \"%s\", \"size\": %lld, \"sum64\": \"%016llx\", \"datasets\": [",
          k ? "," : "", x->name, (long long)x->size, (unsigned long long)x->sum);
  for (int d = 0; d < x->n_dset; d++) {
    fprintf(f, "%s\n    {", d ? "," : "");
    put_text(f, "name", x->dset[d].name, e);
    fputs(" ", f);
    put_ints(f, "shape", x->dset[d].rank, x->dset[d].dim);
    fputs("\"slabs\": [", f);
    for (bool first = true; *at < m->n_slab; ++*at, first = false) {
      const sk_manifest_slab *s = &m->slab[*at];
      if (s->file != k || s->dset != d) break;
      fprintf(f, "%s\n      {", first ? "" : ",");
      put_ints(f, "start", x->dset[d].rank, s->start);
      put_ints(f, "count", x->dset[d].rank, s->count);
      fprintf(f, "\"sum64\": \"%016llx\"}", (unsigned long long)s->sum);
    }
    fputs("]}", f);
  }
  fputs("]}", f);
}

char *sk_manifest_print(sk_manifest *m, sk_err *e) {
  const sk_ckpt_meta *t = &m->meta;
  char *text = NULL, hash[SK_HASH_HEX];
  size_t n = 0;
  FILE *f = open_memstream(&text, &n);
  SK_CHECK(f, "out of memory for a manifest");
  if (m->n_slab) qsort(m->slab, (size_t)m->n_slab, sizeof *m->slab, slab_order);
  fprintf(f, "{\n \"format\": \"saker-checkpoint\",\n \"version\": %d,\n ", SK_MANIFEST_VERSION);
  put_text(f, "run_id", t->run_id, e);
  fprintf(f, "\n \"step\": %lld,\n \"tokens\": %lld,\n \"cursor\": %lld,\n", (long long)t->step,
          (long long)t->tokens, (long long)t->cursor);
  fprintf(f, " \"grid\": {\"pp\": %lld, \"dp\": %lld, \"cp\": %lld, \"tp\": %lld},\n ",
          (long long)t->grid[0], (long long)t->grid[1], (long long)t->grid[2], (long long)t->grid[3]);
  fprintf(f, "\"skipped\": %lld,\n \"reruns\": %lld,\n \"rollbacks\": %lld,\n \"recent_losses\": [", (long long)t->skipped,
          (long long)t->reruns, (long long)t->rollbacks);
  for (int i = 0; i < t->n_recent; i++) fprintf(f, "%s%.17g", i ? ", " : "", t->recent[i]);
  fputs("],\n ", f);
  put_text(f, "deck", t->deck ? t->deck : "", e);
  fputs("\n ", f);
  put_text(f, "hf_config", t->hf_json, e);
  fputs("\n \"files\": [", f);
  int64_t at = 0;
  for (int k = 0; k < m->n_file; k++) put_file(f, m, k, &at, e);
  fprintf(f, "],\n %s%s\"\n}\n", own_key, zeros);
  SK_CHECK(fclose(f) == 0 && at == m->n_slab, "a manifest of %lld slabs", (long long)m->n_slab);
  sk_hash_hex(text, n, hash);
  memcpy(strstr(text, own_key) + sizeof own_key - 1, hash, DIGITS);
  if (!e->code) return text;
  free(text);
  return NULL;
}

/* ---- reading ---- */

/* Loads the text and checks it against the hash inside. */
static char *load_text(const char *path, size_t *size, sk_err *e) {
  int64_t n = sk_fs_size(path);
  if (n < 0) return sk_fs_fail(e, path, "read", ENOENT), NULL;
  if ((uint64_t)n > max_text) return sk_fail(e, SK_FAILED, "%s: too large", path), NULL;
  FILE *f = fopen(path, "rb");
  if (!f) return sk_fs_fail(e, path, "read", errno), NULL;
  char *text = sk_malloc((size_t)n + 1), said[DIGITS], hash[SK_HASH_HEX];
  *size = fread(text, 1, (size_t)n, f);
  fclose(f);
  text[*size] = 0;
  char *own = memmem(text, *size, own_key, sizeof own_key - 1);
  if (own && (own += sizeof own_key - 1) + DIGITS <= text + *size) {
    memcpy(said, own, DIGITS);
    memcpy(own, zeros, DIGITS);
    sk_hash_hex(text, *size, hash);
    if (memcmp(said, hash, DIGITS) == 0) return text;
  }
  sk_fail(e, SK_FAILED, "%s: damaged: it does not match its own checksum", path);
  sk_free(text);
  return NULL;
}

static bool get_int(const json_t *o, const char *key, int64_t min, int64_t *x) {
  const json_t *v = json_object_get(o, key);
  *x = json_integer_value(v);
  return json_is_integer(v) && *x >= min;
}

static bool get_hash(const json_t *o, char hash[SK_HASH_HEX]) {
  const char *s = json_string_value(json_object_get(o, "xxh3_128"));
  if (!s || strlen(s) != DIGITS) return false;
  memcpy(hash, s, SK_HASH_HEX);
  return true;
}

/* Of a file or a slab; version 1 has a hash, which alone tells. */
static bool get_sum(const json_t *o, uint64_t *sum, char hash[SK_HASH_HEX]) {
  const char *s = json_string_value(json_object_get(o, "sum64"));
  if (!s) return get_hash(o, hash);
  if (strlen(s) != 16 || strspn(s, "0123456789abcdef") != 16) return false;
  *sum = strtoull(s, NULL, 16);
  return true;
}

static bool get_ints(const json_t *o, const char *key, int n, int64_t *x) {
  const json_t *a = json_object_get(o, key);
  if (!json_is_array(a) || json_array_size(a) != (size_t)n) return false;
  for (int i = 0; i < n; i++) {
    const json_t *v = json_array_get(a, (size_t)i);
    x[i] = json_integer_value(v);
    if (!json_is_integer(v) || x[i] < 0) return false;
  }
  return true;
}

/* Letters, digits, '.', '_' and '-', not hidden: never a path out of the folder. */
static bool plain_name(const char *s) {
  static const char ok[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return s && s[0] && s[0] != '.' && strlen(s) < 64 && strspn(s, ok) == strlen(s);
}

/* A file without datasets is none of the checkpoint's own: it goes along into later checkpoints. */
static bool side_name(const char *s) {
  const char *dot = strrchr(s, '.');
  return strcmp(s, "manifest.json") != 0 && !(dot && strcmp(dot, ".h5") == 0);
}

static bool get_slabs(const json_t *a, sk_manifest *m, int file, int dset) {
  const sk_dset *d = &m->file[file].dset[dset];
  size_t n = json_array_size(a);
  int64_t covered = 0, total = 1;
  if (!json_is_array(a)) return false;
  for (int i = 0; i < d->rank; i++)
    if (!sk_mul(total, d->dim[i], &total)) return false;
  m->slab = sk_realloc(m->slab, ((size_t)m->n_slab + n) * sizeof *m->slab);
  for (size_t k = 0; k < n; k++) {
    const json_t *o = json_array_get(a, k);
    sk_manifest_slab *s = &m->slab[m->n_slab++];
    int64_t size = 1;
    *s = (sk_manifest_slab){.file = file, .dset = dset};
    if (!get_ints(o, "start", d->rank, s->start) || !get_ints(o, "count", d->rank, s->count) ||
        !get_sum(o, &s->sum, s->hash))
      return false;
    for (int i = 0; i < d->rank; i++)
      if (s->count[i] > d->dim[i] - s->start[i] || !sk_mul(size, s->count[i], &size)) return false;
    if (size > total - covered) return false;
    covered += size;
  }
  return covered == total;
}

static bool get_file(const json_t *o, sk_manifest *m) {
  int k = m->n_file++;
  sk_manifest_file *f = &m->file[k];
  const char *name = json_string_value(json_object_get(o, "name"));
  const json_t *list = json_object_get(o, "datasets");
  if (!plain_name(name) || !get_int(o, "size", 0, &f->size) || !get_sum(o, &f->sum, f->hash) ||
      !json_is_array(list) || json_array_size(list) > 10000000 ||
      (json_array_size(list) == 0 && !side_name(name)))
    return false;
  memcpy(f->name, name, strlen(name) + 1);
  f->dset = sk_calloc(json_array_size(list), sizeof *f->dset);
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *d = json_array_get(list, i), *shape = json_object_get(d, "shape");
    sk_dset *x = &f->dset[i];
    name = json_string_value(json_object_get(d, "name"));
    x->rank = (int)json_array_size(shape);
    if (!name || !json_is_array(shape) || x->rank < 1 || json_array_size(shape) > SK_MAX_DIMS ||
        !get_ints(d, "shape", x->rank, x->dim))
      return false;
    x->name = sk_strdup(name);
    f->n_dset = (int)i + 1;
    if (!get_slabs(json_object_get(d, "slabs"), m, k, (int)i)) return false;
  }
  return true;
}

/* What older checkpoints do not have. */
static bool get_history(const json_t *o, sk_ckpt_meta *t) {
  const json_t *a = json_object_get(o, "recent_losses");
  size_t n = json_array_size(a);
  if (!json_object_get(o, "skipped") && !a) return true;
  if (!get_int(o, "skipped", 0, &t->skipped) || !get_int(o, "reruns", 0, &t->reruns) ||
      !get_int(o, "rollbacks", 0, &t->rollbacks) || !json_is_array(a) || n > SK_CKPT_RECENT)
    return false;
  for (size_t i = 0; i < n; i++) {
    const json_t *v = json_array_get(a, i);
    if (!json_is_number(v)) return false;
    t->recent[i] = json_number_value(v);
  }
  t->n_recent = (int)n;
  return true;
}

static bool get_meta(const json_t *o, sk_ckpt_meta *t) {
  static const char *const axis[4] = {"pp", "dp", "cp", "tp"};
  const char *id = json_string_value(json_object_get(o, "run_id"));
  const char *deck = json_string_value(json_object_get(o, "deck"));
  const json_t *hf = json_object_get(o, "hf_config");
  if (!id || strlen(id) >= sizeof t->run_id || !deck || !(json_is_string(hf) || json_is_null(hf)) ||
      !get_int(o, "step", 0, &t->step) || !get_int(o, "tokens", 0, &t->tokens) ||
      !get_int(o, "cursor", 0, &t->cursor) || !get_history(o, t))
    return false;
  for (int i = 0; i < 4; i++)
    if (!get_int(json_object_get(o, "grid"), axis[i], 1, &t->grid[i])) return false;
  memcpy(t->run_id, id, strlen(id) + 1);
  t->deck = sk_strdup(deck);
  t->hf_json = json_is_string(hf) ? sk_strdup(json_string_value(hf)) : NULL;
  return true;
}

static bool get_all(const json_t *o, sk_manifest *m) {
  const json_t *files = json_object_get(o, "files");
  if (!get_meta(o, &m->meta) || !json_is_array(files) || json_array_size(files) > SK_CKPT_MAX_FILES)
    return false;
  for (size_t i = 0; i < json_array_size(files); i++)
    if (!get_file(json_array_get(files, i), m)) return false;
  return m->n_file > 0;
}

/* Fails when dir cannot be a checkpoint, and says what it is. */
static int is_checkpoint(const char *dir, const char *manifest, sk_err *e) {
  char *steps = sk_strf("%s/checkpoints", dir);
  if (access(dir, F_OK) != 0)
    sk_fs_fail(e, dir, "opened", errno);
  else if (access(manifest, F_OK) != 0 && access(steps, F_OK) == 0)
    sk_fail(e, SK_FAILED, "%s: a run folder; give one of its checkpoints, %s/step-N", dir, steps);
  else if (access(manifest, F_OK) != 0)
    sk_fail(e, SK_FAILED, "%s: missing, so this is no whole checkpoint", manifest);
  sk_free(steps);
  return e->code;
}

int sk_manifest_read(const char *dir, sk_manifest *m, sk_err *e) {
  char *path = sk_strf("%s/manifest.json", dir);
  size_t n;
  json_error_t why;
  memset(m, 0, sizeof *m);
  char *text = is_checkpoint(dir, path, e) == SK_OK ? load_text(path, &n, e) : NULL;
  if (text) {
    json_t *o = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    const char *format = json_string_value(json_object_get(o, "format"));
    int64_t version = 0;
    if (!o)
      sk_fail(e, SK_FAILED, "%s: not JSON: line %d: %s", path, why.line, why.text);
    else if (!format || strcmp(format, "saker-checkpoint") != 0 || !get_int(o, "version", 1, &version))
      sk_fail(e, SK_FAILED, "%s: not a Saker checkpoint's manifest", path);
    else if (version > SK_MANIFEST_VERSION)
      sk_fail(e, SK_FAILED, "%s: format version %lld is newer than this program's %d; use a newer Saker",
              path, (long long)version, SK_MANIFEST_VERSION);
    else if (version == 2)
      sk_fail(e, SK_FAILED, "%s: format version 2, of development versions in November 2026, is not read; load it with "
              "the Saker that wrote it, and export it", path);
    else if (!get_all(o, m))
      sk_fail(e, SK_FAILED, "%s: damaged: a field is missing, of the wrong type or out of range", path);
    json_decref(o);
    sk_free(text);
  }
  sk_free(path);
  if (e->code) sk_manifest_free(m);
  return e->code;
}

void sk_manifest_free(sk_manifest *m) {
  for (int k = 0; k < m->n_file; k++) {
    for (int d = 0; d < m->file[k].n_dset; d++) sk_free((char *)(uintptr_t)m->file[k].dset[d].name);
    sk_free(m->file[k].dset);
  }
  sk_ckpt_meta_free(&m->meta);
  sk_free(m->slab);
  memset(m, 0, sizeof *m);
}
