/* ckpt.c: the files of a checkpoint: slabs in and out, manifest, hashes, damaged and foreign files. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/ckpt_case.h"
#include "io/ckpt_job.h"
#include "io/manifest.h"
#include "io/tokens.h"
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

/* Collective. Opening (verifying) it fails on all ranks in one line that has `what`; or also `more`. */
static bool fails(bool verify, const char *path, const char *what, const char *more) {
  sk_ckpt_meta m;
  sk_err e = {0};
  meet();
  if (verify) sk_ckpt_verify(MPI_COMM_WORLD, path, &e);
  else sk_ckpt_open(MPI_COMM_WORLD, path, &m, NULL, &e);
  return told(&e, what) && (more ? strstr(e.msg, more) != NULL : !strchr(e.msg, '\n'));
}

static const char *const damage_name[] = {"first bit flipped", "a middle bit flipped", "a late bit flipped",
                                          "cut short", "one byte longer", "empty", "missing", "a folder"};

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
  const sk_dset d = {"params/x", 2, {17, 1 << 20}, {0}};
  const sk_slab out = {.count = {17, 1 << 20}, .data = a}, back = {.count = {17, 1 << 20}, .data = b};
  sk_err e = {0};
  if (tap_size > 1) return;
  for (int i = 0; i < 17 << 20; i++) a[i] = (float)i;
  const sk_ckpt_file f = {"model.h5", 1, 1, &d, &out, NULL, NULL};
  sk_ckpt_save(MPI_COMM_WORLD, "large", &(sk_ckpt_meta){.step = 1}, 1, &f, NULL, &e);
  if (!e.code) sk_h5_read(MPI_COMM_WORLD, "large/checkpoints/step-00000001/model.h5", 1, &d, 1, &back, &e);
  tap_ok(!e.code && !memcmp(a, b, sizeof a), "a slab of 68 MiB %s", e.msg);
}

/* Blocks of columns, written by whoever has the columns, cut by rows as well; read by rows. */
static void column_blocks(void) {
  enum { ROWS = 301, BLOCK = 3500, BLOCKS = 6, COLS = BLOCK * BLOCKS }; // above 4 MiB each, of odd size
  static float out[ROWS * COLS + 5 * 12 + 3], in[ROWS * COLS + 5 * 12 + 3]; // one rank has all of a, b and c
  const sk_dset d[] = {{"params/a", 2, {ROWS, COLS}, .block = {ROWS, BLOCK}}, {"params/b", 2, {5, 12}, .block = {5, 2}},
                       {"params/c", 1, {3}, {0}}};
  const sk_ckpt_meta m = {.run_id = "0123456789abcdef", .step = 1, .grid = {1, 1, 1, tap_size},
                          .deck = (char *)(uintptr_t)deck, .hf_json = (char *)(uintptr_t)hf_json};
  sk_slab w[3 * BLOCKS + 1], *s = w, r[3];
  float *p = out, *q = in;
  sk_err e = {0};
  for (int k = tap_rank; k < BLOCKS; k += tap_size)
    for (int half = 0; half < 2; half++, p += sk_slab_count(s++, 2)) {
      *s = (sk_slab){0, {half * 100, k * BLOCK}, {half ? ROWS - 100 : 100, BLOCK}, p};
      for (int64_t i = 0; i < s->count[0] * BLOCK; i++)
        p[i] = (float)((s->start[0] + i / BLOCK) * COLS + s->start[1] + i % BLOCK);
    }
  for (int k = tap_rank; k < BLOCKS; k += tap_size, p += 10) {
    *s++ = (sk_slab){1, {0, 2 * k}, {5, 2}, p};
    for (int i = 0; i < 10; i++) p[i] = (float)(i / 2 * 12 + 2 * k + i % 2);
  }
  if (tap_rank == 0) *s++ = (sk_slab){2, {0}, {3}, memcpy(p, (float[]){7, 8, 9}, 3 * sizeof *p)};
  const sk_ckpt_file f = {"model.h5", 3, (int)(s - w), d, w, NULL, NULL};
  sk_ckpt_save(MPI_COMM_WORLD, "columns", &m, 1, &f, NULL, &e);
  int64_t lo = (int64_t)ROWS * tap_rank / tap_size, hi = (int64_t)ROWS * (tap_rank + 1) / tap_size;
  r[0] = (sk_slab){0, {lo, 0}, {hi - lo, COLS}, q};
  r[1] = (sk_slab){1, {0, 0}, {5, 12}, q += (hi - lo) * COLS};
  r[2] = (sk_slab){2, {0}, {3}, q += 60};
  const sk_ckpt_file back = {"model.h5", 3, 3, d, r, NULL, NULL};
  if (!e.code && sk_ckpt_read(MPI_COMM_WORLD, "columns/checkpoints/step-00000001", &back, &e) == SK_OK) {
    bool ok = q[0] == 7 && q[1] == 8 && q[2] == 9;
    for (int64_t i = 0; i < (hi - lo) * COLS; i++) ok = ok && in[i] == (float)(lo * COLS + i);
    for (int i = 0; i < 60; i++) ok = ok && r[1].data[i] == (float)i;
    tap_ok(ok, "blocks of columns, read by rows");
  }
  if (!e.code) sk_ckpt_verify(MPI_COMM_WORLD, "columns/checkpoints/step-00000001", &e);
  tap_ok(!e.code, "and verify finds the slabs %s", e.msg);
}

/* Blocks of rows and of columns: the first ones of all matrices lie together, then the second ones, and who has them
 * together in memory as well writes them as one, here into pages. */
static void blocks_together(void) {
  enum { BLOCKS = 6, SIDE = 192, WIDTH = 512, EACH = SIDE * WIDTH, BYTES = 4 * EACH }; // a block: 96 pages
  static float out[2 * BLOCKS * EACH + 1024], in[2 * BLOCKS * EACH];
  const sk_dset d[] = {{"params/a", 2, {BLOCKS * SIDE, WIDTH}, {SIDE, WIDTH}}, {"params/b", 1, {3}, {0}},
                       {"params/c", 2, {SIDE, BLOCKS * WIDTH}, {SIDE, WIDTH}}};
  sk_slab w[2 * BLOCKS + 1], *s = w;
  float *p = out + (-(uintptr_t)out % 4096) / sizeof *out;
  sk_err e = {0};
  for (int k = tap_rank; k < BLOCKS; k += tap_size)
    for (int c = 0; c < 2; c++, p += EACH) {
      *s++ = (sk_slab){2 * c, {c ? 0 : k * SIDE, c ? k * WIDTH : 0}, {SIDE, WIDTH}, p};
      for (int i = 0; i < EACH; i++) p[i] = (float)((c * BLOCKS + k) * EACH + i);
    }
  float few[] = {7, 8, 9};
  if (tap_rank == 0) *s++ = (sk_slab){1, {0}, {3}, few};
  const sk_ckpt_file f = {"model.h5", 3, (int)(s - w), d, w, NULL, NULL};
  const sk_ckpt_meta m = {.run_id = "0123456789abcdef", .step = 1, .grid = {1, 1, 1, tap_size}, .deck = (char *)(uintptr_t)deck};
  sk_ckpt_form *form;
  sk_ckpt_result result;
  SK_CHECK(sk_ckpt_form_make(MPI_COMM_WORLD, "together", run_id, 1, &f, &form, &e) == SK_OK, "%s", e.msg);
  bool ok = true;
  const int64_t first = sk_ckpt_form_place(form, 0, &f, 0) - 2 * tap_rank * (int64_t)BYTES;
  for (int i = 0, k = tap_rank; k < BLOCKS; i += 2, k += tap_size)
    for (int c = 0; c < 2; c++) ok = ok && sk_ckpt_form_place(form, 0, &f, i + c) == first + (2 * k + c) * (int64_t)BYTES;
  tap_ok(ok && first % 4096 == 0, "block k of all matrices together, on whole pages");
  sk_ckpt_end(sk_ckpt_begin(MPI_COMM_WORLD, "together", &m, form, &f, false, 0, 0), &result, &e);
  sk_ckpt_form_free(form);
  few[0] = few[2] = 0;
  sk_slab r[3] = {{0, {0, 0}, {BLOCKS * SIDE, WIDTH}, in}, {1, {0}, {3}, few}, {2, {0, 0}, {SIDE, BLOCKS * WIDTH}, in + BLOCKS * EACH}};
  const sk_ckpt_file back = {"model.h5", 3, 3, d, r, NULL, NULL};
  if (!e.code) sk_ckpt_read(MPI_COMM_WORLD, "together/checkpoints/step-00000001", &back, &e);
  for (int i = 0; i < BLOCKS * EACH; i++) {
    const int row = i / (BLOCKS * WIDTH), col = i % (BLOCKS * WIDTH), k = col / WIDTH;
    ok = ok && in[i] == (float)i && in[BLOCKS * EACH + i] == (float)((BLOCKS + k) * EACH + row * WIDTH + col % WIDTH);
  }
  tap_ok(!e.code && ok && few[0] == 7 && few[2] == 9, "and are read by rows %s", e.msg);
  if (!e.code) sk_ckpt_verify(MPI_COMM_WORLD, "together/checkpoints/step-00000001", &e);
  tap_ok(!e.code, "and verify finds them %s", e.msg);
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

// A file's or a slab's sum by its definition.
static uint64_t plain_sum(const unsigned char *p, size_t n) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) sum += ((uint64_t)p[i] << 8 * (i % 4)) * (2 * (i / 4) + 1);
  return sum;
}

/* Sizes and sums of the files, as on the disk, and sums of all slabs, as they had to be written. */
static void checksums(const sk_manifest *m) {
  uint32_t want[MAX_FLOATS];
  bool files = m->n_file == 2, slabs = m->n_slab > 0;
  for (int k = 0; k < m->n_file; k++) {
    size_t n;
    char *data = slurp(str("%s/%s", whole, file_name[k]), &n);
    files = files && !strcmp(m->file[k].name, file_name[k]) && m->file[k].size == (int64_t)n &&
            m->file[k].sum == plain_sum((unsigned char *)data, n) && !m->file[k].hash[0];
    sk_free(data);
  }
  for (int64_t i = 0; i < m->n_slab; i++) {
    sk_slab s = {.dset = m->slab[i].dset};
    memcpy(s.start, m->slab[i].start, sizeof s.start);
    memcpy(s.count, m->slab[i].count, sizeof s.count);
    const size_t n = expect(m->slab[i].file, &s, 2, want);
    slabs = slabs && m->slab[i].sum == plain_sum((unsigned char *)want, n) && !m->slab[i].hash[0];
  }
  tap_ok(files, "name, size and sum of both files");
  tap_ok(slabs, "sums of all slabs");
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
  checksums(&m);
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
      {"\"version\": 3", "\"version\": 4", "newer than this program"},
      {"\"version\": 3", "\"version\": 2", "format version 2, of development versions"},
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
       "\"sum64\": \"0123456789abcdef\"},", "side.txt: missing"},
      {"\"sum64\": \"", "\"sum64\": \"0", "manifest.json: damaged"},
      {"\"sum64\": \"", "\"sum64\": \"-", "manifest.json: damaged"},
      {"\"sum64\"", "\"sum63\"", "manifest.json: damaged"},
      {"{\n", "{\n \"step\": 1,\n", "not JSON"}};
  for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
    forge(c[i][0], c[i][1]);
    tap_ok(fails(false, "forged", c[i][2], NULL), "forged manifest %zu: %s", i, c[i][2]);
  }
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

/* What only verify sees: files that fit their sums, but not a slab that the writer had. */
static void verify_slabs(void) {
  sk_manifest m;
  sk_err e = {0};
  bool ok = sk_ckpt_verify(MPI_COMM_WORLD, whole, &e) == SK_OK;
  tap_ok(ok && sk_manifest_read(whole, &m, &e) == SK_OK, "verify: whole %s", e.msg);
  for (int64_t i = 0; i < m.n_slab; i++) {
    forge(str("%016llx", (unsigned long long)m.slab[i].sum), "0123456789abcdef");
    ok = fails(true, "forged", "forged/", ".h5: damaged: dataset ") && ok;
  }
  tap_ok(ok, "and of a wrong sum of any slab verify names file and dataset");
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
  static const sk_dset d[] = {{"params/four", 4, {2, 3, 2, 4}, {0}}, {"params/four", 3, {2, 3, 8}, {0}},
                              {"five", 1, {1}, {0}}, {"params", 1, {1}, {0}}, {"data", 1, {5}, {0}}, {"params/four", 1, {1}, {0}}};
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

/* Threads that compute leave cores to those that save, two of each rank at least. */
static void workers(void) {
  static const struct {
    int cores, ranks, busy, workers;
    bool give_way, crowded;
  } of[] = {{16, 1, 0, 4, 0, 0},  {16, 1, 1, 4, 1, 0},  {16, 1, 12, 4, 1, 0}, {16, 1, 14, 2, 1, 0}, {16, 1, 15, 2, 0, 1},
            {16, 1, 16, 2, 0, 1}, {16, 2, 14, 2, 1, 0}, {16, 4, 8, 2, 1, 0},  {16, 4, 16, 2, 0, 1}, {32, 2, 28, 2, 1, 0},
            {16, 8, 0, 2, 0, 0},  {16, 2, 0, 2, 0, 0},  {2, 1, 1, 2, 0, 0},   {2, 2, 1, 2, 0, 0},   {2, 8, 8, 2, 0, 1},
            {1, 1, 1, 2, 0, 1},   {2, 2, 2, 2, 0, 1},   {1, 1, 0, 2, 0, 0},   {16, 1, 100000, 2, 0, 1}};
  for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
    sk_ckpt_threads t = sk_ckpt_threads_of(of[i].cores, of[i].ranks, of[i].busy);
    tap_ok(t.workers == of[i].workers && t.give_way == of[i].give_way && t.crowded == of[i].crowded,
           "%d cores, %d ranks, %d threads compute: %d of each rank save%s%s", of[i].cores, of[i].ranks, of[i].busy,
           t.workers, t.give_way ? "; they give way" : "", t.crowded ? "; no core is left" : "");
  }
  atomic_bool behind = false;
  sk_ckpt_rest(1e-9, 1, 1, &behind); // else for 30 years
  atomic_store(&behind, true);
  double begin = sk_now();
  sk_ckpt_rest(0.25, 0.02, 0.04, &behind);
  double rested = sk_now() - begin;
  tap_ok(rested >= 0.04, "20 ms of work in 40 ms at a quarter: 40 ms of rest; none once training waits");
  begin = sk_now();
  for (int i = 0; i < 100; i++) sk_ckpt_rest(0.25, 0.02, 0.065, &behind);
  tap_ok(sk_now() - begin < 1, "a rest of 15 ms is owed until it is longer");
  const int cores = sk_ckpt_cores();
  const sk_ckpt_threads few = sk_ckpt_threads_beside(MPI_COMM_SELF, 0), all = sk_ckpt_threads_beside(MPI_COMM_SELF, cores);
  tap_ok(few.share == 1 && all.share > 0 && all.share * all.workers < cores / 25.0,
         "beside ranks that wait they write as fast as they can, beside %d threads for %.3f of a core", cores,
         all.share * all.workers);
  sk_ckpt_form *form = NULL;
  sk_err e = {0};
  const sk_ckpt_file f[2] = {cut(0, UNEVEN), cut(1, UNEVEN)};
  SK_CHECK(sk_ckpt_form_make(MPI_COMM_WORLD, "m", run_id, 2, f, &form, &e) == SK_OK, "%s", e.msg);
  int waiting = sk_ckpt_form_workers(form, false);
  tap_ok(waiting >= 1 && sk_ckpt_form_workers(form, true) == waiting, "%d threads save", waiting);
  sk_ckpt_form_beside(MPI_COMM_WORLD, form, 100000);
  tap_ok(sk_ckpt_form_workers(form, true) == 2 && sk_ckpt_form_workers(form, false) == waiting,
         "beside more that compute than there are cores: 2; as many as before while all wait");
  sk_ckpt_form_free(form);
}

/* Open MPI 4 says here that it has bound a rank, and what it was asked for. */
static const char *const bound_by[] = {
  "OMPI_MCA_orte_bound_at_launch",      "OMPI_MCA_hwloc_base_binding_policy",  "OMPI_MCA_hwloc_base_cpu_list", "OMPI_MCA_hwloc_base_cpu_set",
  "OMPI_MCA_rmaps_base_mapping_policy", "OMPI_MCA_rmaps_base_cpus_per_rank", "OMPI_MCA_orte_rankfile"};
enum { BOUND_BY = sizeof bound_by / sizeof *bound_by };

/* On how many cores those that save may run in a process that this one made, bound to one core of its own, and where
 * `bound` and `asked` are set. */
static int cores_bound(const char *bound, const char *asked) {
  int status = 0;
  pid_t child = fork();
  if (child == 0) {
    cpu_set_t mine, one;
    int core = 0;
    sched_getaffinity(0, sizeof mine, &mine);
    while (!CPU_ISSET(core, &mine)) core++;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one);
    for (int i = 0; i < BOUND_BY; i++) unsetenv(bound_by[i]);
    if (bound) setenv(bound_by[0], bound, 1);
    if (asked) setenv(asked, "any", 1);
    _exit(sk_ckpt_cores());
  }
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void launchers_cores(void) {
  cpu_set_t mine;
  sched_getaffinity(0, sizeof mine, &mine);
  int all = CPU_COUNT(&mine), unasked = cores_bound("1", NULL);
  tap_ok(unasked == (all & 0xff), "bound by Open MPI unasked: those that save may run where mpirun may, %d of %d cores", unasked, all);
  tap_ok(cores_bound(NULL, NULL) == 1 && cores_bound("0", NULL) == 1, "bound by something else: on its own");
  for (int i = 1; i < BOUND_BY; i++) tap_ok(cores_bound("1", bound_by[i]) == 1, "as Open MPI was asked to, %s: on its own", bound_by[i]);
}

/* The text with a hash in place of its next sum, from *at on, which moves behind it. */
static char *with_hash(char *text, size_t *at, const char *hash) {
  static const char key[] = "\"sum64\": \"";
  const char *sum = strstr(text + *at, key);
  SK_CHECK(sum, "no more sums");
  char *next = sk_strf("%.*s\"xxh3_128\": \"%s\"%s", (int)(sum - text), text, hash, sum + strlen(key) + 17);
  *at = (size_t)(sum - text) + strlen(key);
  sk_free(text);
  return next;
}

/* What an older Saker has written: hashes of files and slabs in place of their sums. */
static void first_version(void) {
  if (tap_rank == 0) {
    size_t n, at = 0;
    int64_t i = 0;
    char hash[33];
    uint32_t data[MAX_FLOATS];
    sk_manifest m;
    sk_err e = {0};
    copy(whole, "first");
    SK_CHECK(sk_manifest_read("first", &m, &e) == SK_OK, "%s", e.msg);
    char *text = slurp("first/manifest.json", &n);
    memcpy(strstr(text, "\"version\": 3"), "\"version\": 1", 12);
    for (int k = 0; k < m.n_file; k++) {
      SK_CHECK(sk_fs_hash(str("first/%s", m.file[k].name), hash, &e) == SK_OK, "%s", e.msg);
      text = with_hash(text, &at, hash);
      for (; i < m.n_slab && m.slab[i].file == k; i++) {
        sk_slab s = {.dset = m.slab[i].dset};
        memcpy(s.start, m.slab[i].start, sizeof s.start);
        memcpy(s.count, m.slab[i].count, sizeof s.count);
        hex_of(data, expect(k, &s, 2, data), hash);
        text = with_hash(text, &at, hash);
      }
    }
    sk_manifest_free(&m);
    n = strlen(text);
    size_t own = own_hash(text, n, hash);
    memcpy(text + own, hash, 32);
    spill("first/manifest.json", text, n);
    sk_free(text);
  }
  meet();
  sk_ckpt_meta m;
  sk_err e = {0};
  bool ok = sk_ckpt_open(MPI_COMM_WORLD, "first", &m, NULL, &e) == SK_OK && m.step == 3;
  if (ok) sk_ckpt_meta_free(&m);
  tap_ok(ok && sk_ckpt_verify(MPI_COMM_WORLD, "first", &e) == SK_OK, "a manifest of version 1 %s", e.msg);
  if (tap_rank == 0) hurt("first/model.h5", MIDDLE_BIT);
  tap_ok(fails(false, "first", "model.h5: damaged: its contents", NULL), "and a file that does not fit it is damaged");
}

/* ---- past the page cache, and with sums that are known ---- */

enum { ROWS = 700, WIDE = 1000 }; // above 64 KiB on each rank, of an odd number of pages

/* Collective. A file of two datasets, which lie in memory as in it but for `off` bytes; `known` of the three slabs
 * come with what they sum up to, the last of them with one bit too many if `wrong`. */
static void save_pages(const char *run, int off, int known, bool wrong, sk_err *e) {
  static char memory[2 * (ROWS * WIDE * sizeof(float) + 8192)];
  const sk_dset d[2] = {{"params/a", 2, {ROWS, WIDE}, {0}}, {"params/b", 2, {ROWS, WIDE}, .block = {ROWS, WIDE / 2}}};
  const int64_t lo = (int64_t)ROWS * tap_rank / tap_size, n = (int64_t)ROWS * (tap_rank + 1) / tap_size - lo;
  sk_slab w[3] = {{0, {lo, 0}, {n, WIDE}, NULL}, {1, {lo, 0}, {n, WIDE / 2}, NULL}, {1, {lo, WIDE / 2}, {n, WIDE / 2}, NULL}};
  sk_sum sum[3];
  const sk_sum *at[3] = {NULL};
  const sk_ckpt_file f = {"model.h5", 2, 3, d, w, NULL, at};
  sk_ckpt_meta m = {.step = 1, .grid = {1, tap_size, 1, 1}, .deck = (char *)(uintptr_t)deck};
  sk_ckpt_form *form;
  sk_ckpt_result r;
  memcpy(m.run_id, run_id, sizeof run_id);
  SK_CHECK(sk_ckpt_form_make(MPI_COMM_WORLD, run, run_id, 1, &f, &form, e) == SK_OK, "%s", e->msg);
  char *to = memory;
  for (int i = 0; i < 3; i++) {
    to += ((sk_ckpt_form_place(form, 0, &f, i) - (int64_t)(uintptr_t)to) & 4095) + off;
    w[i].data = (float *)(void *)to;
    for (int64_t k = 0; k < n * w[i].count[1]; k++) {
      const int64_t row = lo + k / w[i].count[1], col = w[i].start[1] + k % w[i].count[1];
      w[i].data[k] = (float)(row * WIDE + col + w[i].dset);
    }
    to += n * w[i].count[1] * (int64_t)sizeof(float);
    sum[i] = sk_sum_of(w[i].data, (size_t)(n * w[i].count[1]));
    if (i < known) at[i] = &sum[i];
  }
  if (wrong) sum[known - 1].ranked ^= 1;
  SK_CHECK(to < memory + sizeof memory, "no room");
  sk_ckpt_end(sk_ckpt_begin(MPI_COMM_WORLD, run, &m, form, &f, false, 0, 0), &r, e);
  sk_ckpt_form_free(form);
}

static void pages(void) {
  static const struct {
    const char *name;
    int off, known;
  } how[] = {{"from pages as in the file", 0, 0}, {"from elsewhere", 20, 0}, {"with all sums", 0, 3}, {"with some, from elsewhere", 4, 2}};
  char first[SK_HASH_HEX] = "", hash[SK_HASH_HEX];
  for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
    sk_err e = {0};
    const char *run = str("pages%zu", i), *path = str("%s/checkpoints/step-00000001", run);
    save_pages(run, how[i].off, how[i].known, false, &e);
    if (!e.code) sk_ckpt_verify(MPI_COMM_WORLD, path, &e);
    if (!e.code) sk_fs_hash(str("%s/model.h5", path), hash, &e);
    if (i == 0) memcpy(first, hash, sizeof hash);
    static float in[ROWS * WIDE];
    sk_slab back = {1, {0, 0}, {ROWS, WIDE}, in};
    const sk_dset d[2] = {{"params/a", 2, {ROWS, WIDE}, {0}}, {"params/b", 2, {ROWS, WIDE}, {0}}};
    const sk_ckpt_file f = {"model.h5", 2, 1, d, &back, NULL, NULL};
    bool ok = !e.code && sk_ckpt_read(MPI_COMM_WORLD, path, &f, &e) == SK_OK && !strcmp(first, hash);
    for (int64_t k = 0; k < ROWS * WIDE; k++) ok = ok && in[k] == (float)(k + 1);
    tap_ok(ok, "a save %s: slabs, sums and bytes are right %s", how[i].name, e.msg);
  }
  sk_err e = {0};
  save_pages("pages", 0, 2, true, &e);
  tap_ok(told(&e, "model.h5: does not hold what was written"), "a sum that its slab does not have: %s", e.msg);
}

/* However a file is cut, the parts add up to its sum; one bit more or less, or two words in each other's place, do not. */
static void sums(void) {
  enum { SIZE = 3 * (256 << 10) + 77 };
  unsigned char *x = sk_malloc(SIZE);
  for (size_t i = 0; i < SIZE; i++) x[i] = (unsigned char)sk_rand(5, i);
  const uint64_t want = plain_sum(x, SIZE);
  bool same = true, differs = true;
  for (uint64_t cut = 0; cut < 40; cut++) {
    uint64_t got = 0;
    for (size_t at = 0, n; at < SIZE; at += n) {
      n = 1 + (size_t)(sk_rand(cut, at) % (cut < 20 ? 300000 : 9));
      if (n > SIZE - at) n = SIZE - at;
      got += sk_ckpt_sum((char *)x + at, n, (int64_t)at);
    }
    same = same && got == want;
  }
  for (uint64_t i = 0; i < 1000; i++) {
    size_t at = (size_t)(sk_rand(7, i) % SIZE), word = at / 8 % (SIZE / 8 - 1) * 8, other = (at + 4 + at % 997 * 4) % SIZE;
    x[at] ^= (unsigned char)(1 << i % 8);
    differs = differs && sk_ckpt_sum((char *)x, SIZE, 0) != want;
    x[other] ^= (unsigned char)(1 << i % 8);
    differs = differs && (other % 4 != at % 4 || sk_ckpt_sum((char *)x, SIZE, 0) != want);
    x[other] ^= (unsigned char)(1 << i % 8);
    x[at] ^= (unsigned char)(1 << i % 8);
    if (memcmp(x + word, x + word + 8, 8) == 0) continue;
    uint64_t before = sk_ckpt_sum((char *)x + word, 16, (int64_t)word);
    char two[16];
    memcpy(two, x + word + 8, 8);
    memcpy(two + 8, x + word, 8);
    differs = differs && sk_ckpt_sum(two, 16, (int64_t)word) != before;
  }
  tap_ok(same, "a file's sum does not depend on how it is cut");
  tap_ok(differs, "a changed bit, the same bit of two words, and words that have changed places show in it");
  sk_free(x);
}

int main(int argc, char **argv) {
  static void (*const test[])(void) = {round_trips,   large_slab,   column_blocks, blocks_together, manifest,   forged_manifests,
                                       damaged_files, verify_slabs, weights_only,  other_hdf5, workers,
                                       launchers_cores, pages,      sums,          first_version};
  return run_all(argc, argv, (int)(sizeof test / sizeof *test), test);
}
