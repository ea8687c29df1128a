/* ckpt_job.h: what the files of io/ckpt*.c share. */
#ifndef SK_CKPT_JOB_H
#define SK_CKPT_JOB_H
#include "io/ckpt.h"
#include "io/fsutil.h"

typedef char sk_hash_text[SK_HASH_HEX];

/* Not collective, and calls neither MPI nor HDF5. Writes this rank's slabs of a file to their places (the file is
 * created where it is missing), syncs it and reads the slabs back. structure: all else of the file too, its size first.
 * hash[n_slab]: XXH3-128 of the slabs as they are in memory; undefined for empty ones. */
int sk_ckpt_write_file(const char *path, const sk_ckpt_file *f, const sk_h5_form *form, bool structure,
                       sk_hash_text *hash, sk_err *e);

/* A file does not hold what a write said it took. */
int sk_ckpt_lied(const char *path, const char *where, sk_err *e);
#endif
