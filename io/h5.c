#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/h5.h"
#include "io/fsutil.h"
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof(hid_t) == sizeof(int64_t), "hid_t has 64 bits since HDF5 1.10");

/* Elements moved by one read: 64 MiB, far below the 2 GiB that MPI counts can express. */
enum { PIECE = 16 << 20 };

/* No messages of HDF5's own, no code loaded from plugin folders on a file's demand. */
static void quiet(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  H5PLset_loading_state(0);
}

/* ---- errors ---- */

typedef struct reason {
  char text[512];
} reason;

static herr_t innermost(unsigned n, const H5E_error2_t *x, void *out) {
  reason *r = out;
  if (n > 1 || !x->desc) return 0;
  const char *sys = strstr(x->desc, "error message = '"); // what the operating system said
  if (sys) {
    sys += strlen("error message = '");
    snprintf(r->text, sizeof r->text, "%.*s", (int)strcspn(sys, "'"), sys);
    return 1;
  }
  size_t at = strlen(r->text);
  if (n == 0 || strncmp(x->desc, "MPI", 3) == 0)
    snprintf(r->text + at, sizeof r->text - at, "%s%s", at ? ": " : "", x->desc);
  return 0;
}

int sk_h5_fail(sk_err *e, const char *path, const char *what) {
  reason r = {""};
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, &r);
  H5Eclear2(H5E_DEFAULT);
  return sk_fail(e, SK_FAILED, "%s: cannot be %s: %s", path, what,
                 r.text[0] ? r.text : "HDF5 gives no reason");
}

/* ---- opening and creating ---- */

/* File access: locks off (they fail on some parallel file systems, and files here are written once under
 * another name), a format with checksummed metadata that every HDF5 since 1.8 reads, and datasets, and
 * blocks of them, of 64 KiB and more at multiples of a page, which is what O_DIRECT asks for. */
static hid_t access_plist(void) {
  hid_t p = H5Pcreate(H5P_FILE_ACCESS);
  SK_CHECK(p >= 0 && H5Pset_file_locking(p, false, true) >= 0 &&
           H5Pset_libver_bounds(p, H5F_LIBVER_V18, H5F_LIBVER_V110) >= 0 &&
           H5Pset_alignment(p, 64 << 10, 4096) >= 0, "HDF5 refuses the file access settings");
  return p;
}

int64_t sk_h5_create(const char *path, int64_t structures, int64_t small, sk_err *e) {
  quiet();
  hid_t access = access_plist(), create = H5Pcreate(H5P_FILE_CREATE);
  if (structures) H5Pset_meta_block_size(access, (hsize_t)structures);
  if (small) H5Pset_small_data_block_size(access, (hsize_t)small);
  H5Pset_obj_track_times(create, false);
  hid_t f = H5Fcreate(path, H5F_ACC_TRUNC, create, access);
  if (f < 0) sk_h5_fail(e, path, "created");
  H5Pclose(create);
  H5Pclose(access);
  return f;
}

int64_t sk_h5_dset_plist(void) {
  hid_t p = H5Pcreate(H5P_DATASET_CREATE);
  SK_CHECK(p >= 0 && H5Pset_obj_track_times(p, false) >= 0 &&
           H5Pset_alloc_time(p, H5D_ALLOC_TIME_EARLY) >= 0 &&
           H5Pset_fill_time(p, H5D_FILL_TIME_NEVER) >= 0, "HDF5 refuses the dataset settings");
  return p;
}

static hid_t open_with(const char *path, hid_t access, bool write, sk_err *e) {
  hid_t f = H5Fopen(path, write ? H5F_ACC_RDWR : H5F_ACC_RDONLY, access);
  if (f < 0) sk_h5_fail(e, path, "read as HDF5 (is it truncated, damaged or another format?)");
  return f;
}

/* What the operating system has to say before HDF5 is asked. */
static int check_access(const char *path, bool write, sk_err *e) {
  int fd = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return sk_fs_fail(e, path, "opened", errno);
  close(fd);
  if (sk_fs_size(path) < 0) return sk_fail(e, SK_FAILED, "%s: not a regular file", path);
  return SK_OK;
}

int64_t sk_h5_open(const char *path, sk_err *e) {
  quiet();
  if (check_access(path, false, e) != SK_OK) return -1;
  hid_t access = access_plist(), f = open_with(path, access, false, e);
  H5Pclose(access);
  return f;
}

int sk_h5_close(int64_t file) { return H5Fclose(file) < 0 ? SK_FAILED : SK_OK; }

int64_t sk_h5_open_shared(MPI_Comm comm, const char *path, bool write, sk_err *e) {
  quiet();
  if (check_access(path, write, e) != SK_OK && sk_base_rank() != 0)
    snprintf(e->msg + strlen(e->msg), sizeof e->msg - strlen(e->msg),
             "\n(rank %d on %s; the file must be on a file system that all nodes share)",
             sk_base_rank(), sk_host());
  if (sk_agree(comm, e) != SK_OK) return -1;
  hid_t access = access_plist();
  H5Pset_fapl_mpio(access, comm, MPI_INFO_NULL);
  H5Pset_all_coll_metadata_ops(access, true); // one rank reads, the others are told
  H5Pset_coll_metadata_write(access, true);
  hid_t f = open_with(path, access, write, e);
  H5Pclose(access);
  if (sk_agree(comm, e) == SK_OK) return f;
  if (f >= 0) H5Fclose(f);
  return -1;
}

int sk_h5_close_shared(MPI_Comm comm, int64_t file, const char *path, bool written, sk_err *e) {
  if (H5Fclose(file) < 0) sk_h5_fail(e, path, written ? "written" : "closed");
  if (sk_agree(comm, e) == SK_OK && written) {
    sk_fs_sync(path, e); // every node its own pages
    sk_agree(comm, e);
  }
  return e->code;
}

int sk_h5_text_attr(int64_t file, const char *path, const char *name, const char *value, sk_err *e) {
  hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
  H5Tset_size(type, strlen(value) + 1);
  H5Tset_cset(type, H5T_CSET_UTF8);
  hid_t a = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  if (a < 0 || H5Awrite(a, type, value) < 0) sk_h5_fail(e, path, "written");
  H5Aclose(a);
  H5Sclose(space);
  H5Tclose(type);
  return e->code;
}

int sk_h5_int_attr(int64_t file, const char *path, const char *name, int64_t value, sk_err *e) {
  hid_t space = H5Screate(H5S_SCALAR);
  hid_t a = H5Acreate2(file, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
  if (a < 0 || H5Awrite(a, H5T_NATIVE_INT64, &value) < 0) sk_h5_fail(e, path, "written");
  H5Aclose(a);
  H5Sclose(space);
  return e->code;
}

/* ---- checking ---- */

/* Every link from the root to `name` is a hard one: the object lies in this file. */
static bool hard_path(hid_t file, const char *name) {
  char part[1024];
  if (strlen(name) >= sizeof part) return false;
  for (const char *p = name; *p; p += *p == '/') {
    p += strcspn(p, "/");
    snprintf(part, sizeof part, "%.*s", (int)(p - name), name);
    H5L_info_t info;
    if (!part[0]) continue;
    if (H5Lget_info(file, part, &info, H5P_DEFAULT) < 0 || info.type != H5L_TYPE_HARD) return false;
  }
  return true;
}

static const char *storage_fault(hid_t d, int rank) {
  hid_t p = H5Dget_create_plist(d), space = H5Dget_space(d);
  const char *fault = NULL;
  H5D_layout_t layout = H5Pget_layout(p);
  if (layout == H5D_CHUNKED || layout == H5D_CONTIGUOUS) {
    if (H5Pget_nfilters(p) != 0) fault = "is compressed or filtered (h5repack -f NONE undoes that)";
    else if (H5Pget_external_count(p) != 0) fault = "keeps its data in another file";
    else if (H5Sget_simple_extent_type(space) != H5S_SIMPLE) fault = "is not an array";
    else if (H5Sget_simple_extent_ndims(space) != rank) fault = "has another number of dimensions";
  } else {
    fault = layout == H5D_VIRTUAL ? "keeps its data in another file" : "has an unsupported layout";
  }
  H5Sclose(space);
  H5Pclose(p);
  return fault;
}

/* All elements are really there: the file holds at least the bytes that the shape asks for. */
static bool stored(hid_t d, int64_t file_size) {
  hsize_t dim[H5S_MAX_RANK];
  hid_t space = H5Dget_space(d), type = H5Dget_type(d);
  int rank = H5Sget_simple_extent_dims(space, dim, NULL);
  int64_t need = (int64_t)H5Tget_size(type);
  bool ok = rank > 0 && need > 0;
  for (int i = 0; i < rank && ok; i++)
    ok = dim[i] <= (hsize_t)file_size && sk_mul(need, (int64_t)dim[i], &need) && need <= file_size;
  if (ok) {
    hsize_t have = H5Dget_storage_size(d);
    haddr_t at = H5Dget_offset(d); // undefined for chunks: there HDF5 checks every address itself
    ok = have >= (hsize_t)need && have <= (hsize_t)file_size &&
         (at == HADDR_UNDEF || at <= (haddr_t)(file_size - need));
  }
  H5Tclose(type);
  H5Sclose(space);
  return ok;
}

int64_t sk_h5_open_dset(int64_t file, const char *path, const char *name, int rank, sk_err *e) {
  if (!hard_path(file, name)) {
    sk_fail(e, SK_FAILED, "%s: has no dataset %s of its own (missing, or a link)", path, name);
    return -1;
  }
  hid_t d = H5Dopen2(file, name, H5P_DEFAULT);
  if (d < 0) {
    sk_fail(e, SK_FAILED, "%s: %s is not a readable dataset", path, name);
    return -1;
  }
  const char *fault = storage_fault(d, rank);
  if (!fault && !stored(d, sk_fs_size(path))) fault = "is larger than what the file holds";
  if (!fault) return d;
  sk_fail(e, SK_FAILED, "%s: dataset %s %s", path, name, fault);
  H5Dclose(d);
  return -1;
}

static void shape_text(int rank, const int64_t *dim, char *out, size_t cap) {
  out[0] = 0;
  for (int i = 0; i < rank; i++) {
    size_t n = strlen(out);
    snprintf(out + n, cap - n, "%s%lld", i ? " x " : "", (long long)dim[i]);
  }
}

/* Opens one float dataset of exactly the shape asked for. */
static hid_t open_float(hid_t file, const char *path, const sk_dset *want, sk_err *e) {
  hid_t d = sk_h5_open_dset(file, path, want->name, want->rank, e);
  if (d < 0) return d;
  hid_t type = H5Dget_type(d), space = H5Dget_space(d);
  hsize_t dim[H5S_MAX_RANK];
  int64_t have[SK_MAX_DIMS] = {0};
  H5Sget_simple_extent_dims(space, dim, NULL);
  bool same = true;
  for (int i = 0; i < want->rank; i++) same &= (have[i] = (int64_t)dim[i]) == want->dim[i];
  if (H5Tequal(type, H5T_IEEE_F32LE) <= 0)
    sk_fail(e, SK_FAILED, "%s: dataset %s is not little-endian float32", path, want->name);
  else if (!same) {
    char a[128], b[128];
    shape_text(want->rank, have, a, sizeof a);
    shape_text(want->rank, want->dim, b, sizeof b);
    sk_fail(e, SK_FAILED, "%s: dataset %s has the shape %s; %s is needed here", path, want->name, a, b);
  }
  H5Sclose(space);
  H5Tclose(type);
  if (!e->code) return d;
  H5Dclose(d);
  return -1;
}

/* ---- reading slabs ---- */

int64_t sk_slab_count(const sk_slab *s, int rank) {
  int64_t n = 1;
  for (int i = 0; i < rank; i++) SK_CHECK(sk_mul(n, s->count[i], &n), "slab sizes overflow");
  return n;
}

typedef struct reader {
  hid_t dset, space;
  const char *path, *name;
} reader;

/* Memory gets the shape that is read: where it differs HDF5 goes through blocks of columns element by element. */
static void read_piece(const reader *m, int rank, const hsize_t *start, const hsize_t *count, float *data, sk_err *e) {
  hid_t mem = H5Screate_simple(rank, count, NULL);
  if (H5Sselect_hyperslab(m->space, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
      H5Dread(m->dset, H5T_NATIVE_FLOAT, mem, m->space, H5P_DEFAULT, data) < 0) {
    char what[1200];
    snprintf(what, sizeof what, "read at dataset %s", m->name);
    sk_h5_fail(e, m->path, what);
  }
  H5Sclose(mem);
}

/* Cuts a slab into pieces that are contiguous in memory: one index of the axes before `axis`, `step`
 * indices of `axis`, all of those after it. */
static void read_slab(const reader *m, const sk_dset *d, const sk_slab *s, sk_err *e) {
  int64_t total = sk_slab_count(s, d->rank), inner = 1, outer = 1;
  if (total == 0) return;
  int axis = d->rank - 1;
  while (axis > 0 && inner * s->count[axis] <= PIECE) inner *= s->count[axis--];
  for (int i = 0; i < axis; i++) outer *= s->count[i];
  int64_t step = PIECE / inner;
  float *data = s->data;
  for (int64_t o = 0; o < outer; o++) {
    hsize_t start[SK_MAX_DIMS], count[SK_MAX_DIMS];
    int64_t rest = o;
    for (int i = d->rank - 1; i >= 0; i--) {
      start[i] = (hsize_t)s->start[i];
      count[i] = (hsize_t)s->count[i];
      if (i >= axis) continue;
      start[i] += (hsize_t)(rest % s->count[i]);
      count[i] = 1;
      rest /= s->count[i];
    }
    for (int64_t k = 0; k < s->count[axis] && !e->code; k += step) {
      int64_t n = s->count[axis] - k < step ? s->count[axis] - k : step;
      start[axis] = (hsize_t)(s->start[axis] + k);
      count[axis] = (hsize_t)n;
      read_piece(m, d->rank, start, count, data, e);
      data += n * inner;
    }
  }
}

/* All of this rank's slabs. Opening a dataset is collective on a shared file, so every rank opens every
 * one, whatever has gone wrong on it before. */
static void read_all(hid_t file, const char *path, int n_dset, const sk_dset *dset, int n_slab,
                     const sk_slab *slab, sk_err *e) {
  int *first = sk_malloc((size_t)n_dset * sizeof *first), *next = sk_malloc((size_t)n_slab * sizeof *next);
  for (int i = 0; i < n_dset; i++) first[i] = -1;
  for (int i = n_slab - 1; i >= 0; i--) {
    const sk_slab *s = &slab[i];
    SK_CHECK(s->dset >= 0 && s->dset < n_dset, "slab %d names dataset %d of %d", i, s->dset, n_dset);
    for (int k = 0; k < dset[s->dset].rank; k++)
      SK_CHECK(s->start[k] >= 0 && s->count[k] >= 0 &&
               s->count[k] <= dset[s->dset].dim[k] - s->start[k],
               "slab %d leaves dataset %s", i, dset[s->dset].name);
    next[i] = first[s->dset];
    first[s->dset] = i;
  }
  for (int i = 0; i < n_dset; i++) {
    hid_t d = H5Dopen2(file, dset[i].name, H5P_DEFAULT);
    if (d < 0) {
      sk_h5_fail(e, path, "opened at one of its datasets");
      continue;
    }
    reader m = {d, H5Dget_space(d), path, dset[i].name};
    for (int k = first[i]; k >= 0 && !e->code; k = next[k]) read_slab(&m, &dset[i], &slab[k], e);
    H5Sclose(m.space);
    H5Dclose(d);
  }
  sk_free(first);
  sk_free(next);
}

/* ---- whole files ---- */

int sk_h5_read(MPI_Comm comm, const char *path, int n_dset, const sk_dset *dset, int n_slab,
               const sk_slab *slab, sk_err *e) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  if (rank == 0) {
    hid_t f = sk_h5_open(path, e);
    for (int i = 0; f >= 0 && i < n_dset && !e->code; i++) {
      hid_t d = open_float(f, path, &dset[i], e);
      if (d >= 0) H5Dclose(d);
    }
    if (f >= 0) H5Fclose(f);
  }
  if (sk_agree(comm, e) != SK_OK) return e->code;
  hid_t f = sk_h5_open_shared(comm, path, false, e);
  if (f < 0) return e->code;
  read_all(f, path, n_dset, dset, n_slab, slab, e);
  return sk_h5_close_shared(comm, f, path, false, e);
}

int sk_h5_read_slab(int64_t file, const char *path, const sk_dset *dset, const sk_slab *slab, sk_err *e) {
  hid_t d = open_float(file, path, dset, e);
  if (d < 0) return e->code;
  reader m = {d, H5Dget_space(d), path, dset->name};
  read_slab(&m, dset, slab, e);
  H5Sclose(m.space);
  H5Dclose(d);
  return e->code;
}
