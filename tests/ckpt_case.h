/* ckpt_case.h: what the tests of a checkpoint's files share. Two small files stand for a model; all that is
 * expected is computed here from `bits`. Header only; one test program includes it once. */
#ifndef SK_TESTS_CKPT_CASE_H
#define SK_TESTS_CKPT_CASE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/folder.h"
#include "io/ckpt.h"
#include "io/fsutil.h"
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MODEL = 1, OPTIM = 2, BOTH = 3 };      /* which files a save writes */
enum { UNEVEN, LAST, COLUMNS, DEAL, SPLITS }; /* which part of a dataset a rank has */
enum { SETS = 4, MAX_FLOATS = 256 };

static const char *const split_name[] = {"uneven rows", "all on one rank", "columns", "rows dealt out"};
static const char *const file_name[] = {"model.h5", "optimizer.h5", "manifest.json"};
static const sk_dset set[2][SETS] = {{{"params/model.embed_tokens.weight", 2, {13, 5}, {0}},
                                      {"params/model.layers.0.mamba.A_log", 1, {1}, {0}},
                                      {"params/model.layers.0.mamba.conv1d.weight", 3, {6, 1, 4}, {0}},
                                      {"params/four", 4, {2, 3, 4, 2}, {0}}},
                                     {{"m/model.embed_tokens.weight", 2, {13, 5}, {0}},
                                      {"m/three", 1, {3}, {0}},
                                      {"v/model.embed_tokens.weight", 2, {13, 5}, {0}},
                                      {"v/three", 1, {3}, {0}}}};
static const char deck[] = "run: {dir: \"a\\b\"}\n# \xc3\xbc\t\"manifest_xxh3_128\": \"0\"\n";
static const char hf_json[] = "{\"model_type\": \"falcon_h1\"}", run_id[] = "0123456789abcdef";
static const char whole[] = "m/checkpoints/step-00000003"; /* written by run_all; most tests take copies */

/* ---- files, by rank 0 for all ---- */

/* Formatted text, good for the next 63 calls. */
SK_PRINTF(1, 2) static const char *str(const char *fmt, ...) {
  static char ring[64][2048];
  static int at;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(ring[at = (at + 1) % 64], sizeof ring[0], fmt, ap);
  va_end(ap);
  return ring[at];
}

static void meet(void) { SK_MPI(MPI_Barrier(MPI_COMM_WORLD)); }

static char *slurp(const char *path, size_t *n) {
  FILE *f = fopen(path, "rb");
  *n = (size_t)sk_fs_size(path);
  char *text = sk_calloc(*n + 1, 1);
  SK_CHECK(f && fread(text, 1, *n, f) == *n, "%s cannot be read", path);
  fclose(f);
  return text;
}

static void spill(const char *path, const void *data, size_t n) {
  sk_err e = {0};
  SK_CHECK(sk_fs_write(path, data, n, false, &e) == SK_OK, "%s", e.msg);
}

/* Not collective: a fresh copy of a checkpoint's three files. */
static void copy(const char *from, const char *to) {
  sk_err e = {0};
  sk_fs_remove(to);
  SK_CHECK(sk_fs_mkdirs(to, &e) == SK_OK, "%s", e.msg);
  for (int k = 0; k < 3; k++) {
    size_t n;
    char *data = slurp(str("%s/%s", from, file_name[k]), &n);
    spill(str("%s/%s", to, file_name[k]), data, n);
    sk_free(data);
  }
}

/* Collective. The failure is there, the same on every rank, and its message has `what`. */
static bool told(const sk_err *e, const char *what) {
  static sk_err first;
  first = *e;
  SK_MPI(MPI_Bcast(&first, (int)sizeof first, MPI_BYTE, 0, MPI_COMM_WORLD));
  bool ok = e->code == SK_FAILED && !strcmp(e->msg, first.msg) && strstr(e->msg, what);
  if (!ok) tap_diag("code %d, '%s' wanted: %s", e->code, what, e->msg);
  return ok;
}

/* Element i of a dataset as bits: anything, among it a signalling NaN, -0, a denormal, -inf. */
static uint32_t bits(int file, int dset, int64_t i, int version) {
  static const uint32_t odd[] = {0x7fa00001u, 0x80000000u, 1u, 0xff800000u};
  if (i < 4) return odd[(i + version) % 4];
  return (uint32_t)sk_rand((uint64_t)(100 * version + 10 * file + dset), (uint64_t)i);
}

/* The elements of a slab; returns their bytes. */
static size_t expect(int file, const sk_slab *s, int version, void *out) {
  const sk_dset *d = &set[file][s->dset];
  int64_t n = sk_slab_count(s, d->rank);
  for (int64_t k = 0; k < n; k++) {
    int64_t at = 0, rest = k, stride = 1;
    for (int a = d->rank - 1; a >= 0; stride *= d->dim[a--]) {
      at += (s->start[a] + rest % s->count[a]) * stride;
      rest /= s->count[a];
    }
    ((uint32_t *)out)[k] = bits(file, s->dset, at, version);
  }
  return (size_t)n * sizeof(uint32_t);
}

/* What this rank has of each file. */
static struct {
  int n;
  int64_t used;
  sk_slab slab[64];
  float data[MAX_FLOATS];
} part[2];

/* Indices lo .. hi-1 of one axis, all of the others. */
static void add(int file, int dset, int axis, int64_t lo, int64_t hi) {
  sk_slab *s = &part[file].slab[part[file].n++];
  *s = (sk_slab){.dset = dset, .data = part[file].data + part[file].used};
  memcpy(s->count, set[file][dset].dim, sizeof s->count);
  s->start[axis] = lo;
  s->count[axis] = hi - lo;
  part[file].used += sk_slab_count(s, set[file][dset].rank);
  SK_CHECK(part[file].n < 64 && part[file].used <= MAX_FLOATS, "the test's buffers are too small");
}

static sk_ckpt_file cut(int file, int split) {
  int64_t r = tap_rank, size = tap_size, squared = size * size;
  memset(&part[file], 0, sizeof part[file]);
  memset(part[file].data, 0x55, sizeof part[file].data);
  for (int i = 0; i < SETS; i++) {
    const sk_dset *d = &set[file][i];
    int64_t rows = d->dim[0], last = d->dim[d->rank - 1];
    if (split == UNEVEN) add(file, i, 0, rows * r * r / squared, rows * (r + 1) * (r + 1) / squared);
    if (split == COLUMNS) add(file, i, d->rank - 1, last * r / size, last * (r + 1) / size);
    if (split == LAST && r == size - 1) add(file, i, 0, 0, rows);
    for (int64_t k = rows - 1; split == DEAL && k >= 0; k--)
      if (k % size == r) add(file, i, 0, k, k + 1);
  }
  return (sk_ckpt_file){file_name[file], SETS, part[file].n, set[file], part[file].slab, NULL, NULL};
}

static int save(const char *run, int64_t step, int files, int split, int version, const char *text,
                sk_err *e) {
  sk_ckpt_file f[2];
  sk_ckpt_meta m = {.step = step, .tokens = 1000 * step, .cursor = 7 * step, .grid = {1, tap_size, 1, 1},
                    .deck = (char *)(uintptr_t)text, .hf_json = (char *)(uintptr_t)hf_json};
  memcpy(m.run_id, run_id, sizeof run_id);
  int n = 0;
  int64_t bytes = -1;
  for (int k = 0; k < 2; k++) {
    if (!(files & 1 << k)) continue;
    f[n++] = cut(k, split);
    for (int i = 0; i < part[k].n; i++) expect(k, &part[k].slab[i], version, part[k].slab[i].data);
  }
  sk_ckpt_save(MPI_COMM_WORLD, run, &m, n, f, &bytes, e);
  for (int k = 0; k < n && !e->code; k++)
    bytes -= sk_fs_size(str("%s/checkpoints/step-%08lld/%s", run, (long long)step, f[k].name));
  SK_CHECK(e->code || bytes == 0, "sk_ckpt_save counts %lld bytes too many", (long long)bytes);
  return e->code;
}

static void must_save(const char *run, int64_t step, int split, int version) {
  sk_err e = {0};
  SK_CHECK(save(run, step, BOTH, split, version, deck, &e) == SK_OK, "%s", e.msg);
}

/* Collective. Whole, and every element of both files bitwise right, read in the given split. */
static bool holds(const char *path, int split, int version) {
  uint32_t want[MAX_FLOATS];
  sk_ckpt_meta m;
  sk_err e = {0};
  bool ok = false;
  sk_ckpt_open(MPI_COMM_WORLD, path, &m, &ok, &e);
  for (int k = 0; k < 2 && !e.code; k++) {
    sk_ckpt_file f = cut(k, split);
    sk_ckpt_read(MPI_COMM_WORLD, path, &f, &e);
    const sk_slab *s = part[k].slab;
    for (int i = 0; i < part[k].n && ok; i++) ok = !memcmp(want, s[i].data, expect(k, &s[i], version, want));
  }
  if (e.code) tap_diag("%s", e.msg);
  sk_ckpt_meta_free(&m);
  return ok && !e.code;
}

enum { FIRST_BIT, MIDDLE_BIT, LATE_BIT, SHORTER, LONGER, EMPTY, MISSING, FOLDER, DAMAGES };

static void hurt(const char *path, int how) {
  size_t n;
  char *data = slurp(path, &n);
  if (how == FIRST_BIT) data[0] ^= 1;
  if (how == MIDDLE_BIT) data[n / 2] ^= 16;
  if (how == LATE_BIT) data[n - 9] ^= 64;
  if (how == SHORTER) n -= n / 3;
  if (how == LONGER) n++;
  spill(path, data, how == EMPTY ? 0 : n);
  if (how == MISSING || how == FOLDER) unlink(path);
  if (how == FOLDER) mkdir(path, 0777);
  sk_free(data);
}

/* Runs the tests in a private folder that holds one checkpoint, `whole`; returns the program's exit status. */
static int run_all(int argc, char **argv, int n, void (*const test[])(void)) {
  tap_init(&argc, &argv);
  folder_enter("ckpt");
  must_save("m", 3, UNEVEN, 2);
  for (int i = 0; i < n; i++) test[i]();
  folder_remove();
  return tap_done();
}
#endif
