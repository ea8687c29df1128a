/* ckpt.c: the files of a checkpoint: slabs in and out, manifest, hashes, publication, choice of the
 * newest whole one, pruning, damaged files, failing disks. Two small files stand for a model; all that is
 * expected is computed here from `bits`. The working directory is a private folder. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/tap.h"
#include "io/ckpt.h"
#include "io/manifest.h"
#include "io/tokens.h"
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

enum { MODEL = 1, OPTIM = 2, BOTH = 3 };      /* which files a save writes */
enum { UNEVEN, LAST, COLUMNS, DEAL, SPLITS }; /* which part of a dataset a rank has */
enum { SETS = 4, MAX_FLOATS = 256 };

static const char *const split_name[] = {"uneven rows", "all on one rank", "columns", "rows dealt out"};
static const char *const file_name[] = {"model.h5", "optimizer.h5", "manifest.json"};
static const sk_dset set[2][SETS] = {{{"params/model.embed_tokens.weight", 2, {13, 5}},
                                      {"params/model.layers.0.mamba.A_log", 1, {1}},
                                      {"params/model.layers.0.mamba.conv1d.weight", 3, {6, 1, 4}},
                                      {"params/four", 4, {2, 3, 4, 2}}},
                                     {{"m/model.embed_tokens.weight", 2, {13, 5}},
                                      {"m/three", 1, {3}},
                                      {"v/model.embed_tokens.weight", 2, {13, 5}},
                                      {"v/three", 1, {3}}}};
static const char deck[] = "run: {dir: \"a\\b\"}\n# \xc3\xbc\t\"manifest_xxh3_128\": \"0\"\n";
static const char hf_json[] = "{\"model_type\": \"falcon_h1\"}", run_id[] = "0123456789abcdef";
static const char whole[] = "m/checkpoints/step-00000003"; /* written by main; most tests take copies */

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

/* Collective. Whether a folder holds exactly these names, in byte order. */
static bool has(const char *folder, const char *want) {
  char **name, got[2000] = "";
  int64_t n;
  sk_err e = {0};
  meet();
  if (tap_rank == 0 && sk_fs_list(folder, &name, &n, &e) == SK_OK) {
    for (int64_t i = 0; i < n; i++) snprintf(got, sizeof got, "%s%s ", str("%s", got), name[i]);
    sk_fs_free_names(name, n);
  }
  bool ok = tap_rank || strcmp(got, want) == 0;
  if (!ok) tap_diag("%s has %s", folder, got);
  return ok;
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

/* Collective. Opening (verifying) it fails on all ranks in one line that has `what`; or also `more`. */
static bool fails(bool verify, const char *path, const char *what, const char *more) {
  sk_ckpt_meta m;
  sk_err e = {0};
  meet();
  if (verify) sk_ckpt_verify(MPI_COMM_WORLD, path, &e);
  else sk_ckpt_open(MPI_COMM_WORLD, path, &m, NULL, &e);
  return told(&e, what) && (more ? strstr(e.msg, more) != NULL : !strchr(e.msg, '\n'));
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
  return (sk_ckpt_file){file_name[file], SETS, part[file].n, set[file], part[file].slab, NULL};
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

static void round_trips(void) {
  for (int split = 0; split < SPLITS; split++) {
    const char *run = str("trip%d", split), *path = str("%s/checkpoints/step-00000004", run);
    must_save(run, 4, split, 1);
    bool all = true;
    for (int back = 0; back < SPLITS; back++) all = holds(path, back, 1) && all;
    tap_ok(all, "bitwise round trip: written as %s, read back in every way", split_name[split]);
    char hash[2][SK_HASH_HEX];
    sk_err e = {0};
    sk_fs_hash("trip0/checkpoints/step-00000004/model.h5", hash[0], &e);
    sk_fs_hash(str("%s/model.h5", path), hash[1], &e);
    if (split > 0) tap_ok(!e.code && !strcmp(hash[0], hash[1]), "and its bytes do not depend on the split");
  }
  tap_ok(!holds("trip0/checkpoints/step-00000004", UNEVEN, 2), "(other values are told apart)");
}

/* A slab of more than 64 MiB travels in pieces. Once is enough: on one rank. */
static void large_slab(void) {
  static float a[17 << 20], b[17 << 20];
  const sk_dset d = {"params/x", 2, {17, 1 << 20}};
  const sk_slab out = {.count = {17, 1 << 20}, .data = a}, back = {.count = {17, 1 << 20}, .data = b};
  sk_err e = {0};
  if (tap_size > 1) return;
  for (int i = 0; i < 17 << 20; i++) a[i] = (float)i;
  const sk_ckpt_file f = {"model.h5", 1, 1, &d, &out, NULL};
  sk_ckpt_save(MPI_COMM_WORLD, "large", &(sk_ckpt_meta){.step = 1}, 1, &f, NULL, &e);
  if (!e.code) sk_h5_read(MPI_COMM_WORLD, "large/checkpoints/step-00000001/model.h5", 1, &d, 1, &back, &e);
  tap_ok(!e.code && !memcmp(a, b, sizeof a), "a slab of 68 MiB %s", e.msg);
}

/* ---- the manifest ---- */

static void hex_of(const void *data, size_t n, char out[33]) {
  XXH128_hash_t h = XXH3_128bits(data, n);
  snprintf(out, 33, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
}

/* The hash of a manifest's text of n bytes; returns the place in it where it says its own. */
static size_t own_hash(const char *text, size_t n, char hash[33]) {
  static const char key[] = "\n \"manifest_xxh3_128\": \"";
  size_t at = (size_t)(strstr(text, key) - text) + strlen(key);
  char *blank = sk_strdup(text);
  memset(blank + at, '0', 32);
  hex_of(blank, n, hash);
  sk_free(blank);
  return at;
}

/* Sizes and hashes of the files, as on the disk, and hashes of all slabs, as they had to be written. */
static void hashes(const sk_manifest *m) {
  char hash[33];
  uint32_t want[MAX_FLOATS];
  bool files = m->n_file == 2, slabs = m->n_slab > 0;
  for (int k = 0; k < m->n_file; k++) {
    size_t n;
    char *data = slurp(str("%s/%s", whole, file_name[k]), &n);
    hex_of(data, n, hash);
    files = files && !strcmp(m->file[k].name, file_name[k]) && m->file[k].size == (int64_t)n &&
            !strcmp(m->file[k].hash, hash);
    sk_free(data);
  }
  for (int64_t i = 0; i < m->n_slab; i++) {
    sk_slab s = {.dset = m->slab[i].dset};
    memcpy(s.start, m->slab[i].start, sizeof s.start);
    memcpy(s.count, m->slab[i].count, sizeof s.count);
    hex_of(want, expect(m->slab[i].file, &s, 2, want), hash);
    slabs = slabs && !strcmp(m->slab[i].hash, hash);
  }
  tap_ok(files, "name, size and XXH3-128 of both files");
  tap_ok(slabs, "XXH3-128 of all slabs");
}

static void manifest(void) {
  char hash[33];
  size_t n;
  sk_manifest m;
  sk_ckpt_meta t;
  sk_err e = {0};
  char *text = slurp(str("%s/manifest.json", whole), &n);
  size_t at = own_hash(text, n, hash);
  tap_ok(!memcmp(text + at, hash, 32), "the manifest has the XXH3-128 of itself");
  SK_CHECK(sk_manifest_read(whole, &m, &e) == SK_OK, "%s", e.msg);
  hashes(&m);
  SK_CHECK(sk_ckpt_open(MPI_COMM_WORLD, whole, &t, NULL, &e) == SK_OK, "%s", e.msg);
  tap_ok(t.step == 3 && t.tokens == 3000 && t.cursor == 21 && t.grid[1] == tap_size && t.grid[3] == 1 &&
             !strcmp(t.run_id, run_id) && !strcmp(t.deck, deck) && !strcmp(t.hf_json, hf_json),
         "run id, step, tokens, cursor, grid, deck and HF config, on every rank");
  sk_ckpt_meta_free(&t);
  sk_manifest_free(&m);
  sk_free(text);
}

/* Collective. A copy with `to` in place of `from` in its manifest, whose own hash is right. */
static void forge(const char *from, const char *to) {
  if (tap_rank == 0) {
    size_t n;
    char hash[33];
    copy(whole, "forged");
    char *text = slurp("forged/manifest.json", &n), *at = strstr(text, from);
    SK_CHECK(at, "the manifest has no %s", from);
    char *other = sk_strf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    size_t own = own_hash(other, strlen(other), hash);
    memcpy(other + own, hash, 32);
    spill("forged/manifest.json", other, strlen(other));
    sk_free(other);
    sk_free(text);
  }
  meet();
}

static void forged_manifests(void) {
  static const char *const c[][3] = {
      {"\"version\": 1", "\"version\": 2", "newer than this program"},
      {"saker-checkpoint", "other-checkpoint", "not a Saker checkpoint"},
      {"\"step\": ", "\"step\": -", "out of range"},
      {"\"cursor\": ", "\"cursor\": 1.", "of the wrong type"},
      {"\"tokens\"", "\"takens\"", "a field is missing"},
      {"\"name\": \"model.h5\"", "\"name\": \"../el.h5\"", "manifest.json: damaged"},
      {"\"name\": \"model.h5\"", "\"name\": \"modem.h5\"", "modem.h5: missing"},
      {"\"shape\": [13, 5]", "\"shape\": [13, 6]", "manifest.json: damaged"},
      {"\"shape\": [13, 5]", "\"shape\": [4611686018427387904, 5]", "manifest.json: damaged"},
      {"\"start\": [0, 0]", "\"start\": [13, 0]", "manifest.json: damaged"},
      {"\"files\": [", "\"files\": [], \"others\": [", "manifest.json: damaged"},
      {"\"files\": [", "\"files\": [{\"name\": \"side.h5\", \"size\": 1, \"datasets\": [], "
       "\"xxh3_128\": \"0123456789abcdef0123456789abcdef\"},", "manifest.json: damaged"},
      {"\"files\": [", "\"files\": [{\"name\": \"side.txt\", \"size\": 1, \"datasets\": [], "
       "\"xxh3_128\": \"0123456789abcdef0123456789abcdef\"},", "side.txt: missing"},
      {"{\n", "{\n \"step\": 1,\n", "not JSON"}};
  for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
    forge(c[i][0], c[i][1]);
    tap_ok(fails(false, "forged", c[i][2], NULL), "forged manifest %zu: %s", i, c[i][2]);
  }
}

enum { FIRST_BIT, MIDDLE_BIT, LATE_BIT, SHORTER, LONGER, EMPTY, MISSING, FOLDER, DAMAGES };
static const char *const damage_name[] = {"first bit flipped", "a middle bit flipped", "a late bit flipped",
                                          "cut short", "one byte longer", "empty", "missing", "a folder"};

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

static void damaged_files(void) {
  for (int k = 0; k < 3; k++)
    for (int how = 0; how < DAMAGES; how++) {
      const char *name = str("hurt/%s: ", file_name[k]);
      if (tap_rank == 0) copy(whole, "hurt"), hurt(str("hurt/%s", file_name[k]), how);
      bool ok = fails(false, "hurt", name, NULL);
      tap_ok(fails(true, "hurt", name, NULL) && ok, "%s: %s: refused", file_name[k], damage_name[how]);
    }
  if (tap_rank == 0)
    copy(whole, "hurt"), rename("trip0/checkpoints/step-00000004/model.h5", "hurt/model.h5");
  tap_ok(fails(false, "hurt", "hurt/model.h5: ", NULL), "model.h5 of another checkpoint, of the same size");
  if (tap_rank == 0) {
    copy(whole, "hurt");
    rename("hurt/model.h5", "hurt/x");
    rename("hurt/optimizer.h5", "hurt/model.h5");
    rename("hurt/x", "hurt/optimizer.h5");
  }
  tap_ok(fails(false, "hurt", "hurt/model.h5: ", NULL), "model.h5 and optimizer.h5 swapped");
  tap_ok(fails(true, "hurt", "hurt/model.h5: ", "\nhurt/optimizer.h5: "), "verify names both");
}

/* What only verify sees: files that are as they were hashed, but not as the writer hashed a slab. */
static void verify_slabs(void) {
  sk_manifest m;
  sk_err e = {0};
  bool ok = sk_ckpt_verify(MPI_COMM_WORLD, whole, &e) == SK_OK;
  tap_ok(ok && sk_manifest_read(whole, &m, &e) == SK_OK, "verify: whole %s", e.msg);
  for (int64_t i = 0; i < m.n_slab; i++) {
    forge(m.slab[i].hash, "0123456789abcdef0123456789abcdef");
    ok = fails(true, "forged", "forged/", ".h5: damaged: dataset ") && ok;
  }
  tap_ok(ok, "and of a wrong hash of any slab verify names file and dataset");
  sk_manifest_free(&m);
}

static void weights_only(void) {
  sk_ckpt_meta m = {0};
  sk_err e = {0};
  bool optimizer = true;
  SK_CHECK(save("one", 5, MODEL, UNEVEN, 1, deck, &e) == SK_OK, "%s", e.msg);
  sk_ckpt_open(MPI_COMM_WORLD, "one/checkpoints/step-00000005", &m, &optimizer, &e);
  tap_ok(!e.code && !optimizer && m.step == 5, "without optimizer.h5: weights only, and every rank knows");
  sk_ckpt_meta_free(&m);
  SK_CHECK(save("one", 6, OPTIM, UNEVEN, 1, deck, &e) == SK_OK, "%s", e.msg);
  tap_ok(fails(false, "one/checkpoints/step-00000006", "names no model.h5", NULL), "no model.h5");
}

/* HDF5 files that do not have what is asked for. */
static void other_hdf5(void) {
  static const sk_dset d[] = {{"params/four", 4, {2, 3, 2, 4}}, {"params/four", 3, {2, 3, 8}},
                              {"five", 1, {1}}, {"params", 1, {1}}, {"data", 1, {5}}, {"params/four", 1, {1}}};
  static const char *const says[] = {"has the shape 2 x 3 x 4 x 2; 2 x 3 x 2 x 4 is needed",
                                     "another number of dimensions", "has no dataset five of its own",
                                     "not a readable dataset", "not little-endian float32", "truncated file"};
  char text[] = "hurt/manifest.json";
  if (tap_rank == 0) copy(whole, "hurt");
  for (int i = 0; i < 6; i++) {
    const char *path = i == 4 ? "uint16.h5" : "hurt/model.h5";
    sk_err e = {0};
    if (tap_rank == 0 && i == 5) hurt(path, SHORTER);
    meet();
    if (i == 4) sk_tokens_build(MPI_COMM_WORLD, "bytes", NULL, path, 1, (char *[]){text}, &e);
    sk_h5_read(MPI_COMM_WORLD, path, 1, &d[i], 0, NULL, &e);
    tap_ok(told(&e, str("%s: ", path)) && strstr(e.msg, says[i]), "HDF5: %s", says[i]);
  }
}

/* ---- choosing, publishing, pruning ---- */

/* Collective. sk_ckpt_find gives RUN/checkpoints/NAME ("": none) on every rank. */
static bool finds(const char *run, const char *name) {
  char path[1200];
  const char *want = name[0] ? str("%s/checkpoints/%s", run, name) : "";
  sk_err e = {0};
  meet();
  bool ok = sk_ckpt_find(MPI_COMM_WORLD, run, path, sizeof path, &e) == SK_OK && !strcmp(path, want);
  if (!ok) tap_diag("found '%s', wanted '%s' %s", path, want, e.msg);
  return ok;
}

static void newest(void) {
  size_t n;
  char path[1200];
  sk_err e = {0};
  tap_ok(finds("r", ""), "no run folder: no checkpoint, no error");
  for (int step = 1; step <= 3; step++) must_save("r", step, UNEVEN, step);
  tap_ok(finds("r", "step-00000003"), "the newest of three");
  char *hint = slurp("r/checkpoints/latest", &n);
  tap_ok(!strcmp(hint, "step-00000003\n"), "`latest` names it");
  sk_free(hint);
  if (tap_rank == 0) spill("r/checkpoints/latest", "step-00000001\n", 14);
  tap_ok(finds("r", "step-00000003"), "a wrong `latest` changes nothing");
  if (tap_rank == 0) {
    unlink("r/checkpoints/latest");
    copy(whole, "r/checkpoints/step-00000009.tmp.elsewhere-1");
    copy(whole, "r/checkpoints/step-9");
  }
  tap_ok(finds("r", "step-00000003"), "without `latest`, beside a tmp folder and a foreign name");
  if (tap_rank == 0) hurt("r/checkpoints/step-00000003/model.h5", MIDDLE_BIT);
  sk_log_file("log");
  tap_ok(finds("r", "step-00000002"), "a damaged newer one is passed over");
  sk_log_file(NULL);
  char *log = slurp("log", &n);
  tap_ok(strstr(log, "warning: ") && strstr(log, "step-00000003/model.h5: damaged"), "a warning names it");
  sk_free(log);
  if (tap_rank == 0) rename("r/checkpoints/step-00000002", "r/checkpoints/step-00000002.old.elsewhere-1");
  tap_ok(finds("r", "step-00000002.old.elsewhere-1"), "one that was being replaced at a kill");
  sk_ckpt_find(MPI_COMM_WORLD, "r", path, 20, &e);
  tap_ok(told(&e, "too long") && !path[0], "a path longer than the buffer is refused");
}

static void none_whole(void) {
  char path[1200];
  sk_err e = {0};
  if (tap_rank == 0) {
    unlink("r/checkpoints/step-00000002.old.elsewhere-1/optimizer.h5");
    hurt("r/checkpoints/step-00000001/manifest.json", SHORTER);
  }
  meet();
  sk_ckpt_find(MPI_COMM_WORLD, "r", path, sizeof path, &e);
  tap_ok(told(&e, "r/checkpoints: ") && !path[0] && strstr(e.msg, "step-00000003/model.h5: ") &&
             strstr(e.msg, "step-00000002.old.elsewhere-1/optimizer.h5: missing") &&
             strstr(e.msg, "step-00000001/manifest.json: "), "none whole: failed, and each is named");
  if (tap_rank == 0) sk_fs_remove("r/checkpoints"), copy(whole, "r/checkpoints/step-00000009.tmp.elsewhere-1");
  tap_ok(finds("r", ""), "nothing but a left-over tmp folder: no checkpoint, no error");
}

static void publication(void) {
  sk_err e = {0};
  if (tap_rank == 0) {
    const char *tmp = str("pub/checkpoints/step-00000001.tmp.%s-%ld", sk_host(), (long)getpid());
    sk_fs_mkdirs(tmp, &e);
    spill(str("%s/junk", tmp), "x", 1);
  }
  must_save("pub", 1, UNEVEN, 1);
  bool ok = has("pub/checkpoints", "latest step-00000001 ");
  tap_ok(has("pub/checkpoints/step-00000001", "manifest.json model.h5 optimizer.h5 ") && ok,
         "a save over its own left-over tmp folder leaves the checkpoint and `latest`, nothing else");
  must_save("pub", 1, UNEVEN, 2);
  ok = has("pub/checkpoints", "latest step-00000001 ");
  tap_ok(holds("pub/checkpoints/step-00000001", COLUMNS, 2) && ok, "the same step again replaces it");
  if (tap_rank == 0) spill("pub/checkpoints/step-00000002", "x", 1);
  meet();
  save("pub", 2, BOTH, UNEVEN, 1, deck, &e);
  ok = told(&e, "pub/checkpoints/step-00000002: ");
  tap_ok(has("pub/checkpoints", "latest step-00000001 step-00000002 ") && ok,
         "a file where the folder should go is not touched");
}

static void prune(const char *run, int64_t keep, int64_t keep_every) {
  meet();
  if (tap_rank == 0) sk_ckpt_prune(run, keep, keep_every);
}

static void pruning(void) {
  prune("p", 2, 0); // no checkpoints: nothing to do
  must_save("p", 8, UNEVEN, 1);
  for (int step = 1; step < 8 && tap_rank == 0; step++) copy(whole, str("p/checkpoints/step-%08d", step));
  prune("p", 3, 3);
  tap_ok(has("p/checkpoints", "latest step-00000003 step-00000006 step-00000007 step-00000008 "),
         "keep 3, keep_every 3: 8, 7, 6 and 3 of 1 .. 8");
  prune("p", 1, 0);
  tap_ok(has("p/checkpoints", "latest step-00000007 step-00000008 "), "keep 1: still two");
  if (tap_rank == 0) {
    copy(whole, "p/checkpoints/step-00000006");
    copy(whole, "p/checkpoints/step-00000009");
    hurt("p/checkpoints/step-00000009/model.h5", SHORTER);
  }
  prune("p", 2, 0);
  tap_ok(has("p/checkpoints", "latest step-00000007 step-00000008 step-00000009 "),
         "a damaged one does not count: two whole ones stay");
}

/* Whose tmp and old folders go: those of processes that are gone. */
static void left_overs(void) {
  const struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
  long me = (long)getpid(), gone = fork();
  if (gone == 0) _exit(0);
  waitpid((pid_t)gone, NULL, 0);
  const char *name[] = {str("step-00000002.tmp.%s-%ld", sk_host(), me), "step-00000004.tmp.elsewhere-1",
                        str("step-00000003.tmp.%s-%ld-1", sk_host(), gone), // of the host HOST-GONE
                        "step-00000005.tmp.elsewhere-1", str("step-00000006.tmp.%s-%ld", sk_host(), gone),
                        str("step-00000001.old.%s-%ld", sk_host(), gone)};
  must_save("l.tmp.x", 1, UNEVEN, 1);
  for (int i = 0; i < 6 && tap_rank == 0; i++) copy(whole, str("l.tmp.x/checkpoints/%s", name[i]));
  SK_CHECK(tap_rank || utimensat(AT_FDCWD, str("l.tmp.x/checkpoints/%s", name[3]), old, 0) == 0, "utimensat");
  prune("l.tmp.x", 2, 0);
  tap_ok(has("l.tmp.x/checkpoints", str("latest step-00000001 %s %s %s ", name[0], name[2], name[1])),
         "tmp and old folders go when their process is gone or, of another host, after an hour");
}

/* On one rank no file may grow beyond `bytes`; RLIM_INFINITY lifts the limit. */
static void limit_files(int rank, rlim_t bytes) {
  struct rlimit r;
  SK_CHECK(getrlimit(RLIMIT_FSIZE, &r) == 0, "no limit on files");
  r.rlim_cur = bytes < r.rlim_max ? bytes : r.rlim_max;
  SK_CHECK(tap_rank != rank || setrlimit(RLIMIT_FSIZE, &r) == 0, "the limit on files cannot be set");
}

static void failing_disks(void) {
  const int rank[] = {0, tap_size - 1, 0};
  const rlim_t bytes[] = {4096, 64, 2 << 20};
  static const char *const name[] = {"model.h5: cannot be laid out", "model.h5: cannot", "manifest.json: cannot"};
  char *text = sk_calloc((3 << 20) + 1, 1);
  sk_err e = {0};
  signal(SIGXFSZ, SIG_IGN);
  save("log", 1, BOTH, UNEVEN, 1, deck, &e);
  tap_ok(told(&e, "log/checkpoints: cannot be created"), "a file where the run folder should be");
  must_save("full", 1, UNEVEN, 1);
  memset(text, 'x', 3 << 20); // a deck of 3 MiB
  for (int i = 0; i < 3; i++) {
    e = (sk_err){0};
    limit_files(rank[i], bytes[i]);
    save("full", 2, BOTH, UNEVEN, 2, text, &e);
    limit_files(rank[i], RLIM_INFINITY);
    tap_ok(told(&e, name[i]), "no space on rank %d: %s", rank[i], name[i]);
    bool ok = has("full/checkpoints", "latest step-00000001 ");
    tap_ok(holds("full/checkpoints/step-00000001", DEAL, 1) && ok, "nothing is left, the older one holds");
  }
  must_save("full", 2, UNEVEN, 2);
  tap_ok(finds("full", "step-00000002"), "with space again the next save succeeds");
  sk_free(text);
}

int main(int argc, char **argv) {
  static void (*const test[])(void) = {round_trips, large_slab, manifest, forged_manifests, damaged_files,
                                       verify_slabs, weights_only, other_hdf5, newest, none_whole,
                                       publication, pruning, left_overs, failing_disks};
  char dir[512];
  tap_init(&argc, &argv);
  const char *tmp = getenv("TMPDIR");
  snprintf(dir, sizeof dir, "%s/saker-ckpt-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
  if (tap_rank == 0) SK_CHECK(mkdtemp(dir), "cannot make a temporary folder");
  SK_MPI(MPI_Bcast(dir, sizeof dir, MPI_CHAR, 0, MPI_COMM_WORLD));
  SK_CHECK(chdir(dir) == 0, "cannot enter %s", dir);
  must_save("m", 3, UNEVEN, 2);
  for (size_t i = 0; i < sizeof test / sizeof *test; i++) test[i]();
  meet();
  if (tap_rank == 0) sk_fs_remove(dir);
  return tap_done();
}
