/* ckpt_job.h: what the files of io/ckpt*.c share. */
#ifndef SK_CKPT_JOB_H
#define SK_CKPT_JOB_H
#include "io/ckpt.h"
#include "io/fsutil.h"
#include <pthread.h>
#include <stdatomic.h>

typedef char sk_hash_text[SK_HASH_HEX];

/* One rank's part of one file that is being written. Nothing here is collective or calls MPI or HDF5. */
typedef struct sk_ckpt_part {
  char *path;
  const sk_ckpt_file *file; /* borrowed, as the form */
  const sk_h5_form *form;
  sk_hash_text *hash; /* [file->n_slab] XXH3-128 of the slabs as they are in memory; undefined for empty ones */
  int fd;             /* -1: closed */
  atomic_uint_fast64_t sum; /* sk_ckpt_sum of what was written so far */
} sk_ckpt_part;

/* What one thread needs to write. */
typedef struct sk_ckpt_room {
  sk_hash *hash;
  float *slab; /* [slab_count] values of a slab without data */
  int64_t slab_count;
} sk_ckpt_room;
void sk_ckpt_room_open(sk_ckpt_room *r);
void sk_ckpt_room_close(sk_ckpt_room *r);

/* Opens the file, which is created where it is missing. structure: writes all but the slabs, the file's size first. */
int sk_ckpt_part_open(sk_ckpt_part *w, bool structure, sk_err *e);
/* Writes a slab to its place and sets hash[slab]. Different slabs may be written by several threads at the same time where
 * the file has no source. */
int sk_ckpt_part_slab(sk_ckpt_part *w, int slab, sk_ckpt_room *r, sk_err *e);
/* The disk begins to write what has come so far; may wait for it, but not for all of it. */
void sk_ckpt_part_flush(const sk_ckpt_part *w);
/* A close is what makes NFS show a file to the other nodes, which are about to read it; this one keeps it open, so that
 * no error of the disk gets lost. */
int sk_ckpt_part_show(const sk_ckpt_part *w, sk_err *e);
/* sync: waits for the disk before. Nothing to do for a file that is not open. */
int sk_ckpt_part_close(sk_ckpt_part *w, bool sync, sk_err *e);

/* What n bytes at byte `at` of a file add to its sum, modulo 2^64: every 64-bit word (little-endian, from the file's
 * beginning) times 1, 3, 5 and so on. Bytes that nobody writes are 0 and add nothing, so the sums of all writers together
 * are that of the file. As the weights are odd a changed bit always shows; a lost write does unless by a chance of 2^-64. */
uint64_t sk_ckpt_sum(const char *data, size_t n, int64_t at);

/* A file does not hold what a write said it took. */
int sk_ckpt_lied(const char *path, sk_err *e);

/* ---- threads (ckpt_work.c) ---- */

enum { SK_CKPT_WORKERS = 4 };

/* What each rank's threads may take of the node while a checkpoint is written. */
typedef struct sk_ckpt_threads {
  int writers, hashers; /* of each rank, 1 to SK_CKPT_WORKERS */
  double share;         /* of a writer's time in which it works; else it rests */
  bool give_way;        /* they are nicer than threads that compute */
  int own;              /* with which this rank computes meanwhile */
} sk_ckpt_threads;

/* With how many of its `own` (> 0) threads a rank computes while a checkpoint is written, where all ranks of the node
 * together have `busy`: with all where these leave an eighth of the cores, one at least; else it steps aside with an
 * eighth of its own, one at least, if it has more than one. */
int sk_ckpt_aside(int cores, int busy, int own);

/* For a node's ranks, of which `busy` threads compute meanwhile (0: all wait). Together they write by a quarter of its
 * cores, but no more than they leave less one, which hands data to the disk (while they hash it has little to do); one
 * of each rank at least. Where the ranks leave cores, but fewer than that, each writes for its share of the time. They
 * give way where the ranks leave two cores, one to write and one for the disk's work. With fewer, what a save takes from
 * those that compute it takes in any case, and is the sooner over without. `own` of the result is 0. */
sk_ckpt_threads sk_ckpt_threads_of(int cores, int ranks, int busy);
/* Collective. The same for this node, where this rank computes with `own` threads (0: waits), or fewer if it can step
 * aside; both may differ from rank to rank. *first (may be NULL): it is the first one of its node. */
sk_ckpt_threads sk_ckpt_threads_beside(MPI_Comm comm, int own, bool aside, bool *first);

/* Not collective. Seconds of a core that this thread has used. */
double sk_ckpt_cpu_time(void);
/* Not collective. Sleeps until a thread that worked for cpu of the last wall seconds has done so for no more than its
 * share of the time; not once `behind` is false. */
void sk_ckpt_rest(double share, double cpu, double wall, const atomic_bool *behind);

/* Not collective. The calling thread may use all of sk_ckpt_cores. */
void sk_ckpt_widen(void);
/* Not collective. The calling thread, and those that it makes, give way to threads that compute. */
void sk_ckpt_give_way(void);

/* Not collective. one(arg, worker, i, ...) for all i below n by so many threads (the caller is worker 0), in ascending
 * order until one fails; of errors, that of the lowest i becomes *e. */
int sk_ckpt_each(int n, int workers, void (*one)(void *arg, int worker, int i, sk_err *e), void *arg, sk_err *e);

/* run(arg) in a thread, without signals; false where none can be had. */
bool sk_ckpt_thread(pthread_t *thread, void *(*run)(void *), void *arg);
#endif
