/* h5.h: HDF5 files made of named float datasets, read together as hyperslabs ("slabs"). Knows nothing of
 * models: the caller turns its parameters into datasets and slabs.
 *
 * Files made here: contiguous layout or blocks (below), early allocation, no fill, no filters,
 * little-endian float32, no time stamps, so that the same contents give the same bytes. In such a file every element
 * has a place that is known beforehand: HDF5 is asked once for the file's form (sk_h5_form), and from then on any
 * thread of any rank may write such files by pwrite alone.
 *
 * Files read here are refused unless every dataset asked for is exactly as above (shape included): no
 * external or virtual storage, no filters, no links out of the file. Their layout may differ. */
#ifndef SK_H5_H
#define SK_H5_H
#include "src/agree.h"

enum { SK_MAX_DIMS = 4 };

/* A dataset of the file; every rank passes the same list. Intermediate groups are created. */
typedef struct sk_dset {
  const char *name; /* e.g. "params/model.embed_tokens.weight"; not owned */
  int rank;         /* 1 .. SK_MAX_DIMS */
  int64_t dim[SK_MAX_DIMS];
  int64_t block[2]; /* of new files: 0, or the shape of the equal parts, of some rows or of some columns, that a matrix is cut
                       into. The file keeps each together (a chunk of HDF5's, below 4 GiB), as whoever has only this part
                       writes it; the first parts of all such matrices lie together, then their second ones, and so on */
} sk_dset;

/* One rank's part of a dataset. Parts of different ranks do not overlap when writing. */
typedef struct sk_slab {
  int dset; /* index into the list of datasets */
  int64_t start[SK_MAX_DIMS], count[SK_MAX_DIMS];
  float *data; /* row-major [count]; read from (write) or filled in (read); not owned. NULL when writing: the
                  values come from an sk_source, for models that do not fit into memory */
} sk_slab;

/* Called for one slab after the other, just before it is written; not collective. slab: index into the list. */
typedef struct sk_source {
  int (*fill)(void *arg, int slab, float *out, sk_err *e);
  void *arg;
} sk_source;

/* Elements of a slab of `rank` dimensions; 0 for an empty one. */
int64_t sk_slab_count(const sk_slab *s, int rank);
/* Parts of a new file's dataset that are kept together: blocks, or 1. */
int sk_dset_parts(const sk_dset *d);

/* The form of a file: everything about it but the elements. */
typedef struct sk_h5_piece {
  int64_t at; /* bytes from the beginning of the file */
  size_t n;
  char *data;
} sk_h5_piece;
typedef struct sk_h5_form {
  int64_t size;    /* bytes of the file */
  int *first;      /* [datasets + 1] places before each dataset's: it has sk_dset_parts */
  int64_t *offset; /* [places] where the elements begin; they follow in row-major order, little-endian float32 */
  int n_piece;
  sk_h5_piece *piece; /* HDF5's own structures; what lies between pieces and elements is zero */
} sk_h5_form;

/* Not collective. Lets HDF5 make a file with these datasets in /dev/shm, TMPDIR or /tmp (only its structures take
 * room) and takes its form. attrs: NULL-terminated list of name, value, name, value ... text attributes of the root, or
 * NULL. `name` is for messages. */
int sk_h5_form_make(const char *name, int n_dset, const sk_dset *dset, const char *const *attrs, sk_h5_form *form,
                    sk_err *e);
/* Not collective. A form whose places are still to be filled in, without pieces. */
void sk_h5_form_empty(int n_dset, const sk_dset *dset, sk_h5_form *form);
void sk_h5_form_free(sk_h5_form *form);

/* Collective over comm. Checks every dataset of the list, then fills in this rank's slabs. */
int sk_h5_read(MPI_Comm comm, const char *path, int n_dset, const sk_dset *dset, int n_slab,
               const sk_slab *slab, sk_err *e);

/* The rest is for the other files of io/ (ids are HDF5's hid_t; < 0 on failure). */

/* "PATH: cannot be WHAT: what HDF5 says about it"; call it right after the HDF5 call that failed. */
int sk_h5_fail(sk_err *e, const char *path, const char *what);

/* Not collective. A new empty file / an existing one read-only, by this process alone. structures, small: so many bytes
 * of HDF5's own structures, and of the datasets smaller than that, are kept together; 0: as HDF5 does it. */
int64_t sk_h5_create(const char *path, int64_t structures, int64_t small, sk_err *e);
int64_t sk_h5_open(const char *path, sk_err *e);
int sk_h5_close(int64_t file);

/* Not collective. A creation property list for datasets (early, no fill, no times). */
int64_t sk_h5_dset_plist(void);

/* Collective over comm, which agrees on errors. An existing file for all ranks together. */
int64_t sk_h5_open_shared(MPI_Comm comm, const char *path, bool write, sk_err *e);

/* Collective over comm. Closes a shared file and syncs it to disk where it was written. */
int sk_h5_close_shared(MPI_Comm comm, int64_t file, const char *path, bool written, sk_err *e);

/* Not collective. Opens a dataset after checking that it lies in this file itself: hard links on the
 * way, no external or virtual storage, no filters, rank given, storage inside the file. */
int64_t sk_h5_open_dset(int64_t file, const char *path, const char *name, int rank, sk_err *e);

/* Not collective. Attributes of the root group: fixed-length text, 64-bit integers. */
int sk_h5_text_attr(int64_t file, const char *path, const char *name, const char *value, sk_err *e);
int sk_h5_int_attr(int64_t file, const char *path, const char *name, int64_t value, sk_err *e);

/* Not collective. Reads one slab of an open file (sk_h5_open) after checking the dataset. */
int sk_h5_read_slab(int64_t file, const char *path, const sk_dset *dset, const sk_slab *slab, sk_err *e);
#endif
