/* h5_form.c: the form of a file, from one that HDF5 makes and that has holes in place of elements. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/fsutil.h"
#include "io/h5.h"
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- making the file ---- */

/* Creates the groups on the way to a dataset that are not there yet. */
static void create_groups(hid_t file, const char *name, const char *path, sk_err *e) {
  hid_t gcpl = H5Pcreate(H5P_GROUP_CREATE);
  H5Pset_obj_track_times(gcpl, false);
  for (const char *p = strchr(name, '/'); p && !e->code; p = strchr(p + 1, '/')) {
    char *part = sk_strf("%.*s", (int)(p - name), name);
    if (part[0] && H5Lexists(file, part, H5P_DEFAULT) <= 0) {
      hid_t g = H5Gcreate2(file, part, H5P_DEFAULT, gcpl, H5P_DEFAULT);
      if (g < 0) sk_h5_fail(e, path, "written");
      else H5Gclose(g);
    }
    sk_free(part);
  }
  H5Pclose(gcpl);
}

/* The axis along which a dataset is cut into blocks. */
static int cut_axis(const sk_dset *d) { return d->block[0] < d->dim[0] ? 0 : 1; }

/* A contiguous dataset gets its place now, one of blocks has none yet. */
static hid_t create_dset(hid_t file, const char *path, const sk_dset *dset, int64_t *offset, sk_err *e) {
  hid_t plist = sk_h5_dset_plist();
  hsize_t dim[SK_MAX_DIMS], most[SK_MAX_DIMS];
  int64_t size = sizeof(float);
  for (int k = 0; k < dset->rank; k++) {
    SK_CHECK(sk_mul(size, dset->dim[k], &size), "%s: too large", dset->name);
    dim[k] = most[k] = (hsize_t)dset->dim[k];
  }
  create_groups(file, dset->name, path, e);
  if (dset->block[0]) {
    dim[cut_axis(dset)] = 0;
    H5Pset_chunk(plist, 2, (const hsize_t[]){(hsize_t)dset->block[0], (hsize_t)dset->block[1]});
  }
  hid_t space = H5Screate_simple(dset->rank, dim, most);
  hid_t d = H5Dcreate2(file, dset->name, H5T_IEEE_F32LE, space, H5P_DEFAULT, plist, H5P_DEFAULT);
  haddr_t at = d < 0 || dset->block[0] ? HADDR_UNDEF : H5Dget_offset(d);
  if (d < 0 || (at == HADDR_UNDEF && size > 0 && !dset->block[0])) sk_h5_fail(e, path, "written");
  offset[0] = at == HADDR_UNDEF ? 0 : (int64_t)at;
  H5Sclose(space);
  H5Pclose(plist);
  return d;
}

/* HDF5 lays a block down when the dataset grows by it. */
static void add_block(hid_t d, const char *path, const sk_dset *dset, int k, int64_t *offset, sk_err *e) {
  const int axis = cut_axis(dset);
  hsize_t dim[] = {(hsize_t)dset->dim[0], (hsize_t)dset->dim[1]}, start[] = {0, 0}, bytes;
  haddr_t at = HADDR_UNDEF;
  unsigned filters;
  start[axis] = (hsize_t)(k * dset->block[axis]);
  dim[axis] = start[axis] + (hsize_t)dset->block[axis];
  if (H5Dset_extent(d, dim) < 0 || H5Dget_chunk_info_by_coord(d, start, &filters, &at, &bytes) < 0 || at == HADDR_UNDEF)
    sk_h5_fail(e, path, "written");
  offset[k] = (int64_t)at;
}

/* The first ones of all datasets, then the second ones, and so on. */
static void add_blocks(const hid_t *d, const char *path, int n, const sk_dset *dset, sk_h5_form *form, sk_err *e) {
  bool more = true;
  for (int k = 0; more; k++) {
    more = false;
    for (int i = 0; i < n && !e->code; i++) {
      if (!dset[i].block[0] || k >= sk_dset_parts(&dset[i])) continue;
      add_block(d[i], path, &dset[i], k, form->offset + form->first[i], e);
      more = true;
    }
  }
}

static int64_t bytes_of(const sk_dset *d) {
  sk_slab whole = {0};
  memcpy(whole.count, d->dim, sizeof whole.count);
  return (int64_t)sizeof(float) * sk_slab_count(&whole, d->rank);
}

/* What HDF5 needs besides the elements, about: a header for each dataset, an index for one of blocks. */
static int64_t structures_of(int n, const sk_dset *dset) {
  int64_t bytes = 512 * (int64_t)n;
  for (int i = 0; i < n; i++) bytes += dset[i].block[0] ? 3072 : 0;
  return bytes;
}

/* Structures and small datasets do not lie between the large ones, which are so written in long pieces. */
static int make_file(const char *path, int n, const sk_dset *dset, const char *const *attrs, sk_h5_form *form,
                     sk_err *e) {
  enum { SMALL = 64 << 10 };
  int64_t small = 0;
  for (int i = 0; i < n; i++) small += bytes_of(&dset[i]) < SMALL ? bytes_of(&dset[i]) : 0;
  hid_t f = sk_h5_create(path, structures_of(n, dset), small < SMALL ? small : SMALL, e);
  if (f < 0) return e->code;
  for (; attrs && attrs[0] && !e->code; attrs += 2) sk_h5_text_attr(f, path, attrs[0], attrs[1], e);
  hid_t *d = sk_malloc((size_t)n * sizeof *d);
  for (int i = 0; i < n; i++) d[i] = e->code ? -1 : create_dset(f, path, &dset[i], form->offset + form->first[i], e);
  add_blocks(d, path, n, dset, form, e);
  for (int i = 0; i < n; i++)
    if (d[i] >= 0) H5Dclose(d[i]);
  sk_free(d);
  if (H5Fclose(f) < 0) sk_h5_fail(e, path, "written");
  return e->code;
}

/* ---- what is not elements ---- */

typedef struct extent {
  int64_t at, end;
} extent;

static int by_place(const void *a, const void *b) {
  const extent *x = a, *y = b;
  return (x->at > y->at) - (x->at < y->at);
}

static void add_piece(sk_h5_form *f, int fd, int64_t at, int64_t end, const char *name, sk_err *e) {
  if (at >= end || e->code) return;
  sk_h5_piece p = {.at = at, .n = (size_t)(end - at), .data = sk_malloc((size_t)(end - at))};
  f->piece = sk_realloc(f->piece, (size_t)(f->n_piece + 1) * sizeof *f->piece);
  f->piece[f->n_piece++] = p;
  if (pread(fd, p.data, p.n, at) != (ssize_t)p.n) sk_fs_fail(e, name, "read", errno);
}

/* What the file has between at and end, less the elements' places (in ascending order, from *next). */
static void add_between(sk_h5_form *f, int fd, int64_t at, int64_t end, int n, const extent *place, int *next,
                        const char *name, sk_err *e) {
  while (at < end && !e->code) {
    while (*next < n && place[*next].end <= at) ++*next;
    int64_t to = *next < n && place[*next].at < end ? place[*next].at : end;
    add_piece(f, fd, at, to, name, e);
    at = *next < n && place[*next].at < end ? place[*next].end : end;
  }
}

static void take_form(sk_h5_form *f, int fd, int n, const sk_dset *dset, const char *name, sk_err *e) {
  int next = 0, places = f->first[n];
  extent *at = sk_calloc((size_t)places, sizeof *at);
  for (int i = 0; i < n; i++) {
    const int64_t bytes = bytes_of(&dset[i]) / (f->first[i + 1] - f->first[i]);
    for (int k = f->first[i]; k < f->first[i + 1]; k++) at[k] = (extent){f->offset[k], f->offset[k] + bytes};
  }
  qsort(at, (size_t)places, sizeof *at, by_place);
  f->size = (int64_t)lseek(fd, 0, SEEK_END);
  // Only pages that were written exist.
  for (off_t data = 0, end; !e->code && (data = lseek(fd, data, SEEK_DATA)) >= 0; data = end) {
    end = lseek(fd, data, SEEK_HOLE);
    add_between(f, fd, data, end, places, at, &next, name, e);
  }
  sk_free(at);
}

/* A new file in memory or on a local disk, which know about holes; -1 and errno. path is owned by the caller. */
static int scratch_file(char **path) {
  const char *const dir[] = {"/dev/shm", getenv("TMPDIR"), "/tmp"};
  for (int i = 0; i < 3; i++) {
    if (!dir[i]) continue;
    *path = sk_strf("%s/saker-form-XXXXXX", dir[i]);
    int fd = mkostemp(*path, O_CLOEXEC);
    if (fd >= 0) return fd;
    sk_free(*path);
  }
  *path = NULL;
  return -1;
}

/* A limit on files or a full disk must not show inside of HDF5: it crashes at the end of the program when it could not
 * close a file. */
static int check_room(int fd, int n, const sk_dset *dset, const char *name, sk_err *e) {
  const off_t structure = 65536 + 3 * structures_of(n, dset);
  off_t size = structure;
  for (int i = 0; i < n; i++) size += bytes_of(&dset[i]) + 1024;
  if (ftruncate(fd, size) != 0 || (fallocate(fd, 0, 0, structure) != 0 && errno != EOPNOTSUPP) ||
      ftruncate(fd, 0) != 0)
    return sk_fs_fail(e, name, "laid out", errno);
  return SK_OK;
}

int sk_dset_parts(const sk_dset *d) {
  return d->block[0] ? (int)(d->dim[0] / d->block[0] * (d->dim[1] / d->block[1])) : 1;
}

void sk_h5_form_empty(int n_dset, const sk_dset *dset, sk_h5_form *form) {
  *form = (sk_h5_form){.first = sk_calloc((size_t)n_dset + 1, sizeof *form->first)};
  for (int i = 0; i < n_dset; i++) {
    const sk_dset *d = &dset[i];
    const int64_t *b = d->block;
    SK_CHECK(!b[0] || (d->rank == 2 && b[0] > 0 && b[1] > 0 && d->dim[0] % b[0] == 0 && d->dim[1] % b[1] == 0 &&
                       (b[0] == d->dim[0] || b[1] == d->dim[1])),
             "%s: blocks of %lld rows and %lld columns", d->name, (long long)b[0], (long long)b[1]);
    form->first[i + 1] = form->first[i] + sk_dset_parts(d);
  }
  form->offset = sk_calloc((size_t)form->first[n_dset], sizeof *form->offset);
}

int sk_h5_form_make(const char *name, int n_dset, const sk_dset *dset, const char *const *attrs, sk_h5_form *form,
                    sk_err *e) {
  *form = (sk_h5_form){0};
  sk_err why = {0};
  char *path;
  int fd = scratch_file(&path);
  if (fd < 0) return sk_fs_fail(e, name, "laid out in /dev/shm, TMPDIR or /tmp", errno);
  sk_h5_form_empty(n_dset, dset, form);
  if (check_room(fd, n_dset, dset, path, &why) == SK_OK &&
      make_file(path, n_dset, dset, attrs, form, &why) == SK_OK)
    take_form(form, fd, n_dset, dset, path, &why);
  if (why.code) sk_fail(e, SK_FAILED, "%s: cannot be laid out: %.7000s", name, why.msg);
  unlink(path);
  sk_free(path);
  close(fd);
  if (e->code) sk_h5_form_free(form);
  return e->code;
}

void sk_h5_form_free(sk_h5_form *form) {
  for (int i = 0; i < form->n_piece; i++) sk_free(form->piece[i].data);
  sk_free(form->piece);
  sk_free(form->offset);
  sk_free(form->first);
  *form = (sk_h5_form){0};
}
