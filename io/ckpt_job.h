/* ckpt_job.h: what the files of io/ckpt*.c share. */
#ifndef SK_CKPT_JOB_H
#define SK_CKPT_JOB_H
#include "io/ckpt.h"
#include "io/fsutil.h"
#include <pthread.h>

typedef char sk_hash_text[SK_HASH_HEX];

/* One rank's part of one file that is being written. Nothing here is collective or calls MPI or HDF5. */
typedef struct sk_ckpt_part {
  char *path;
  const sk_ckpt_file *file; /* borrowed, as the form */
  const sk_h5_form *form;
  sk_hash_text *hash; /* [file->n_slab] XXH3-128 of the slabs as they are in memory; undefined for empty ones */
  int fd;             /* -1: closed */
} sk_ckpt_part;

/* What one thread needs to write. */
typedef struct sk_ckpt_room {
  sk_hash *hash;
  char *buf;
  float *slab; /* [slab_count] values of a slab without data */
  int64_t slab_count;
} sk_ckpt_room;
void sk_ckpt_room_open(sk_ckpt_room *r);
void sk_ckpt_room_close(sk_ckpt_room *r);

/* Opens the file, which is created where it is missing. structure: writes all but the slabs, the file's size first. */
int sk_ckpt_part_open(sk_ckpt_part *w, bool structure, sk_err *e);
/* Writes a slab to its place, compares what the file then holds, and sets hash[slab]. Different slabs may be written by
 * several threads at the same time where the file has no source. */
int sk_ckpt_part_slab(const sk_ckpt_part *w, int slab, sk_ckpt_room *r, sk_err *e);
/* The disk begins to write what has come so far; may wait for it, but not for all of it. */
void sk_ckpt_part_flush(const sk_ckpt_part *w);
/* A close is what makes NFS show a file to the other nodes, which are about to read it; this one keeps it open, so that
 * no error of the disk gets lost. */
int sk_ckpt_part_show(const sk_ckpt_part *w, sk_err *e);
/* sync: waits for the disk before. Nothing to do for a file that is not open. */
int sk_ckpt_part_close(sk_ckpt_part *w, bool sync, sk_err *e);

/* A file does not hold what a write said it took. */
int sk_ckpt_lied(const char *path, const char *where, sk_err *e);

/* ---- threads (ckpt_work.c) ---- */

enum { SK_CKPT_WORKERS = 4 };

/* Collective. How many threads of each rank write: a quarter of the node's cores, but no more than its ranks leave, of
 * which `busy` threads each compute meanwhile (another on each rank), shared among the ranks; 1 to SK_CKPT_WORKERS.
 * *first (may be NULL): this rank is the first one of its node. */
int sk_ckpt_workers(MPI_Comm comm, int busy, bool *first);

/* Not collective. The calling thread may use all cores that any thread of the process may use. */
void sk_ckpt_widen(void);
/* Not collective. The calling thread, and those that it makes, give way to threads that compute. */
void sk_ckpt_give_way(void);

/* Not collective. one(arg, worker, i, ...) for all i below n by so many threads (the caller is worker 0), in ascending
 * order until one fails; of errors, that of the lowest i becomes *e. */
int sk_ckpt_each(int n, int workers, void (*one)(void *arg, int worker, int i, sk_err *e), void *arg, sk_err *e);

/* run(arg) in a thread, without signals; false where none can be had. */
bool sk_ckpt_thread(pthread_t *thread, void *(*run)(void *), void *arg);
#endif
