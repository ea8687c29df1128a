/* damage.c: every way to spoil one bit or the length of a small checkpoint is found before anything is used; and
 * HDF5 files made by a stranger, whose manifest fits them, are refused.
 *
 * Flips and truncations run on one rank, in this process: every bit and every length of all three files. The working
 * directory is a private folder. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/folder.h"
#include "io/ckpt.h"
#include "io/fsutil.h"
#include "io/ckpt_job.h"
#include "io/manifest.h"
#include <fcntl.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const file_name[] = {"model.h5", "optimizer.h5", "manifest.json"};
static const sk_dset set[2][2] = {{{"params/a", 2, {3, 5}, {0}}, {"params/b", 1, {7}, {0}}}, {{"m/a", 2, {3, 5}, {0}}, {"v/a", 2, {3, 5}, {0}}}};
static const char folder[] = "run/checkpoints/step-00000003";
static float values[2][2][15];

static void meet(void) { SK_MPI(MPI_Barrier(MPI_COMM_WORLD)); }

/* ---- a small checkpoint ---- */

/* Rank 0 has all of it: the split does not matter here. */
static sk_ckpt_file part(int k, sk_slab slab[2]) {
  for (int i = 0; i < 2; i++) {
    slab[i] = (sk_slab){.dset = i, .data = values[k][i]};
    memcpy(slab[i].count, set[k][i].dim, sizeof slab[i].count);
  }
  return (sk_ckpt_file){file_name[k], 2, tap_rank == 0 ? 2 : 0, set[k], slab, NULL, NULL};
}

static void save(void) {
  sk_slab slab[2][2];
  sk_err e = {0};
  sk_ckpt_meta m = {.step = 3, .tokens = 30, .cursor = 6, .grid = {1, 1, 1, 1}, .run_id = "0123456789abcdef",
                    .deck = (char *)(uintptr_t)"run: {dir: x}\n"};
  for (int i = 0; i < 60; i++) values[i / 30][i / 15 % 2][i % 15] = (float)(i * 0.37 - 5);
  const sk_ckpt_file f[2] = {part(0, slab[0]), part(1, slab[1])};
  SK_CHECK(sk_ckpt_save(MPI_COMM_WORLD, "run", &m, 2, f, NULL, &e) == SK_OK, "%s", e.msg);
}

/* ---- one bit, one length ---- */

typedef struct victim {
  char path[256];
  char *data;
  size_t n;
  int fd;
} victim;

static victim take(int k) {
  victim v = {.fd = -1};
  snprintf(v.path, sizeof v.path, "%s/%s", folder, file_name[k]);
  v.n = (size_t)sk_fs_size(v.path);
  v.data = sk_malloc(v.n);
  v.fd = open(v.path, O_RDWR | O_CLOEXEC);
  SK_CHECK(v.fd >= 0 && pread(v.fd, v.data, v.n, 0) == (ssize_t)v.n, "%s", v.path);
  return v;
}

static void leave(victim *v) {
  SK_CHECK(ftruncate(v->fd, 0) == 0 && pwrite(v->fd, v->data, v->n, 0) == (ssize_t)v->n, "%s", v->path);
  close(v->fd);
  sk_free(v->data);
}

/* Opening fails, and the message begins with the file that is damaged. */
static bool found(const victim *v) {
  sk_ckpt_meta m = {0};
  sk_err e = {0};
  sk_ckpt_open(MPI_COMM_SELF, folder, &m, NULL, &e);
  sk_ckpt_meta_free(&m);
  return e.code == SK_FAILED && strncmp(e.msg, v->path, strlen(v->path)) == 0;
}

static void flip(victim *v, const char *name) {
  size_t missed = 0, first = 0;
  for (size_t bit = 0; bit < 8 * v->n; bit++) {
    char x = (char)(v->data[bit / 8] ^ 1 << bit % 8);
    SK_CHECK(pwrite(v->fd, &x, 1, (off_t)(bit / 8)) == 1, "%s", v->path);
    if (!found(v) && missed++ == 0) first = bit;
    SK_CHECK(pwrite(v->fd, &v->data[bit / 8], 1, (off_t)(bit / 8)) == 1, "%s", v->path);
  }
  if (missed) tap_diag("the first one missed: bit %zu of byte %zu", first % 8, first / 8);
  tap_ok(missed == 0 && v->n > 500, "%s: each of %zu bits flipped, %zu missed", name, 8 * v->n, missed);
}

static void shorten(victim *v, const char *name) {
  size_t missed = 0;
  for (size_t left = v->n; left-- > 0;) {
    SK_CHECK(ftruncate(v->fd, (off_t)left) == 0, "%s", v->path);
    missed += !found(v);
  }
  tap_ok(missed == 0, "%s: cut to each of %zu lengths, %zu missed", name, v->n, missed);
}

static void spoil(void) {
  sk_ckpt_meta m;
  sk_err e = {0};
  for (int k = 0; k < 3; k++) {
    victim v = take(k);
    flip(&v, file_name[k]);
    shorten(&v, file_name[k]);
    leave(&v);
  }
  tap_ok(sk_ckpt_open(MPI_COMM_SELF, folder, &m, NULL, &e) == SK_OK, "afterwards it is whole again %s", e.msg);
  sk_ckpt_meta_free(&m);
}

/* ---- files made by a stranger ---- */

enum { EXTERNAL_LINK, SOFT_LINK, EXTERNAL_STORAGE, VIRTUAL, DEFLATED, CHECKSUMMED, DOUBLES, BIG_ENDIAN_FLOATS, INTEGERS,
       COMPOUND, VARIABLE, TWO_ROWS_LESS, ONE_AXIS_MORE, HUGE_CHUNKED, HUGE_CONTIGUOUS, SCALAR, COMPACT, A_GROUP, A_TYPE,
       UNWRITTEN, KINDS };
static const char *const kind_name[] = {
    "an external link", "a soft link", "external storage", "a virtual dataset", "a deflate filter", "a fletcher32 filter",
    "float64", "big-endian float32", "integers", "a compound type", "a variable-length type", "another shape",
    "another number of axes", "2^50 rows, chunked", "2^50 rows, contiguous", "a scalar", "compact storage", "a group",
    "a named type", "a dataset that was never allocated"};
static const char *const says[] = {
    "no dataset params/a of its own", "no dataset params/a of its own", "keeps its data in another file",
    "keeps its data in another file", "is compressed or filtered", "is compressed or filtered",
    "is not little-endian float32", "is not little-endian float32", "is not little-endian float32",
    "is not little-endian float32", "is not little-endian float32", "has the shape 1 x 5; 3 x 5 is needed",
    "another number of dimensions", "larger than what the file holds", "larger than what the file holds",
    "is not an array", "unsupported layout", "not a readable dataset", "not a readable dataset",
    "larger than what the file holds"};

static hid_t type_of(int kind) {
  if (kind == DOUBLES) return H5Tcopy(H5T_IEEE_F64LE);
  if (kind == BIG_ENDIAN_FLOATS) return H5Tcopy(H5T_IEEE_F32BE);
  if (kind == INTEGERS) return H5Tcopy(H5T_STD_I32LE);
  if (kind == VARIABLE) return H5Tvlen_create(H5T_IEEE_F32LE);
  if (kind != COMPOUND) return H5Tcopy(H5T_IEEE_F32LE);
  hid_t t = H5Tcreate(H5T_COMPOUND, 4);
  H5Tinsert(t, "x", 0, H5T_IEEE_F32LE);
  return t;
}

static hid_t space_of(int kind) {
  const hsize_t dim[3] = {kind == TWO_ROWS_LESS ? 1 : kind == HUGE_CHUNKED || kind == HUGE_CONTIGUOUS ? 1LL << 50 : 3, 5, 1};
  return kind == SCALAR ? H5Screate(H5S_SCALAR) : H5Screate_simple(kind == ONE_AXIS_MORE ? 3 : 2, dim, NULL);
}

static hid_t plist_of(int kind) {
  const hsize_t chunk[2] = {3, 5}, dim[2] = {3, 5};
  hid_t p = H5Pcreate(H5P_DATASET_CREATE);
  if (kind == DEFLATED || kind == CHECKSUMMED || kind == HUGE_CHUNKED) H5Pset_chunk(p, 2, chunk);
  if (kind == DEFLATED) H5Pset_deflate(p, 1);
  if (kind == CHECKSUMMED) H5Pset_fletcher32(p);
  if (kind == COMPACT) H5Pset_layout(p, H5D_COMPACT);
  if (kind == EXTERNAL_STORAGE) H5Pset_external(p, "/etc/passwd", 0, 60);
  if (kind == VIRTUAL) {
    hid_t s = H5Screate_simple(2, dim, NULL);
    H5Pset_virtual(p, s, "other.h5", "params/a", s);
    H5Sclose(s);
  }
  if (kind != UNWRITTEN && kind != HUGE_CHUNKED && kind != HUGE_CONTIGUOUS && kind != VIRTUAL && kind != EXTERNAL_STORAGE)
    H5Pset_alloc_time(p, H5D_ALLOC_TIME_EARLY);
  return p;
}

/* Replaces params/a of model.h5. */
static void replace(const char *path, int kind) {
  hid_t f = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), o = -1;
  SK_CHECK(f >= 0 && H5Ldelete(f, "params/a", H5P_DEFAULT) >= 0, "%s", path);
  hid_t type = type_of(kind), space = space_of(kind), p = plist_of(kind);
  if (kind == EXTERNAL_LINK) H5Lcreate_external("other.h5", "params/a", f, "params/a", H5P_DEFAULT, H5P_DEFAULT);
  else if (kind == SOFT_LINK) H5Lcreate_soft("/params/b", f, "params/a", H5P_DEFAULT, H5P_DEFAULT);
  else if (kind == A_GROUP) H5Gclose(H5Gcreate2(f, "params/a", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  else if (kind == A_TYPE) H5Tcommit2(f, "params/a", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  else o = H5Dcreate2(f, "params/a", type, space, H5P_DEFAULT, p, H5P_DEFAULT);
  SK_CHECK(H5Lexists(f, "params/a", H5P_DEFAULT) > 0, "%s cannot be made", kind_name[kind]);
  if (o >= 0) H5Dclose(o);
  H5Pclose(p);
  H5Sclose(space);
  H5Tclose(type);
  SK_CHECK(H5Fclose(f) >= 0, "%s", path);
}

/* Rewrites the manifest to what model.h5 is now: its size, its hash, the manifest's own hash. */
static void fit_manifest(const char *dir) {
  sk_manifest m;
  sk_err e = {0};
  char *path = sk_strf("%s/model.h5", dir), *json = sk_strf("%s/manifest.json", dir);
  SK_CHECK(sk_manifest_read(dir, &m, &e) == SK_OK && (m.file[0].sum = sk_ckpt_read_sum(path, false, 1, NULL, &e), e.code == SK_OK), "%s", e.msg);
  m.file[0].size = sk_fs_size(path);
  char *text = sk_manifest_print(&m, &e);
  SK_CHECK(text && sk_fs_write(json, text, strlen(text), false, &e) == SK_OK, "%s", e.msg);
  sk_manifest_free(&m);
  free(text);
  sk_free(json);
  sk_free(path);
}

static void copy(const char *to) {
  sk_err e = {0};
  sk_fs_remove(to);
  SK_CHECK(sk_fs_mkdirs(to, &e) == SK_OK, "%s", e.msg);
  for (int k = 0; k < 3; k++) {
    victim v = take(k);
    char *path = sk_strf("%s/%s", to, file_name[k]);
    SK_CHECK(sk_fs_write(path, v.data, v.n, false, &e) == SK_OK, "%s", e.msg);
    sk_free(path);
    leave(&v);
  }
}

/* All ranks have the same error, in one line that names the file. */
static bool told(const sk_err *e, const char *what) {
  static sk_err first;
  first = *e;
  SK_MPI(MPI_Bcast(&first, (int)sizeof first, MPI_BYTE, 0, MPI_COMM_WORLD));
  bool ok = e->code == SK_FAILED && !strcmp(e->msg, first.msg) && strstr(e->msg, what) && !strchr(e->msg, '\n') &&
            strstr(e->msg, "/model.h5: ");
  if (!ok) tap_diag("code %d, '%s' wanted: %s", e->code, what, e->msg);
  return ok;
}

static void strangers(void) {
  for (int kind = 0; kind < KINDS; kind++) {
    sk_slab slab[2];
    sk_ckpt_meta m = {0};
    sk_err e = {0}, v = {0};
    if (tap_rank == 0) {
      copy("forged");
      replace("forged/model.h5", kind);
      fit_manifest("forged");
    }
    meet();
    bool open = sk_ckpt_open(MPI_COMM_WORLD, "forged", &m, NULL, &e) == SK_OK;
    sk_ckpt_meta_free(&m);
    sk_ckpt_file f = part(0, slab);
    sk_ckpt_read(MPI_COMM_WORLD, "forged", &f, &e);
    bool ok = told(&e, says[kind]);
    sk_ckpt_verify(MPI_COMM_WORLD, "forged", &v);
    tap_ok(told(&v, says[kind]) && ok && open, "%s where a weight should be: refused by load and verify", kind_name[kind]);
  }
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  folder_enter("damage");
  save();
  if (tap_size == 1) spoil();
  strangers();
  folder_remove();
  return tap_done();
}
