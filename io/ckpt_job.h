/* ckpt_job.h: what the files of io/ckpt*.c share. */
#ifndef SK_CKPT_JOB_H
#define SK_CKPT_JOB_H
#include "io/ckpt.h"
#include "io/fsutil.h"
#include <pthread.h>
#include <stdatomic.h>

/* One rank's part of one file that is being written. Nothing here is collective or calls MPI or HDF5. */
typedef struct sk_ckpt_part {
  char *path;
  const sk_ckpt_file *file; /* borrowed, as the form */
  const sk_h5_form *form;
  uint64_t *slab_sum; /* [file->n_slab] of the slabs as they are in memory, each by itself; 0 for empty ones */
  int fd;             /* -1: closed */
  int direct;         /* the same file past the page cache; -1: closed, or the file system refuses */
  atomic_uint_fast64_t sum; /* sk_ckpt_sum of what has been added to it so far */
} sk_ckpt_part;

/* Opens the file, which is created where it is missing. structure: writes all but the slabs, the file's size first, and
 * adds it to the sum. */
int sk_ckpt_part_open(sk_ckpt_part *w, bool structure, sk_err *e);
/* Writes the elements `data` of a slab to their place in two parts: `pages`, whole pages that lie in memory as in the file,
 * which go past the page cache where the file system can, so that their bytes cost no time of a core; then the rest, which
 * excludes other writers of the file as long as it takes. Different slabs may be written by several threads at a time. */
int sk_ckpt_part_write(const sk_ckpt_part *w, int slab, const float *data, bool pages, sk_err *e);
/* Waits for the disk if `sync`, and closes. Nothing to do for a file that is not open. */
int sk_ckpt_part_close(sk_ckpt_part *w, bool sync, sk_err *e);
/* The same of n bytes that lie together in the file, from byte `at` on. */
int sk_ckpt_part_write_run(const sk_ckpt_part *w, const void *data, int64_t n, int64_t at, bool pages, sk_err *e);
/* Byte of the file at which a slab begins. together (may be NULL): its bytes if they lie together there, else 0. */
int64_t sk_ckpt_place(const sk_ckpt_file *f, const sk_h5_form *form, int slab, int64_t *together);

/* Sets a slab's sum and adds to its file's; reads the data only where the file does not come with what they sum up to. */
void sk_ckpt_part_sum(sk_ckpt_part *w, int slab, const float *data);

/* What n bytes at byte `at` of a file add to its sum: sk_sum_weighted of all its 32-bit words. Bytes that nobody writes
 * are 0 and add nothing, so the sums of all writers together are that of the file. */
uint64_t sk_ckpt_sum(const char *data, size_t n, int64_t at);

/* A file does not hold what a write said it took. */
int sk_ckpt_lied(const char *path, sk_err *e);

/* Reads a regular file for its sum, past the page cache where that can be and `direct`; its reader works for no more than
 * a share of the time while `behind` (NULL: all of it). */
uint64_t sk_ckpt_read_sum(const char *path, bool direct, double share, const atomic_bool *behind, sk_err *e);

/* ---- threads (ckpt_work.c) ---- */

enum { SK_CKPT_WORKERS = 4 };

/* What each rank's threads may take of the node while a checkpoint is written. */
typedef struct sk_ckpt_threads {
  int workers;   /* of each rank: they write and check; 2 to SK_CKPT_WORKERS (tests: 1) */
  bool give_way; /* they are nicer than threads that compute */
  bool crowded;  /* those that compute leave less than an eighth of the cores, or none */
  double share;  /* of a core, for each that writes past the page cache; 1: all that it wants */
} sk_ckpt_threads;

/* For a node's ranks, of which `busy` threads compute meanwhile (0: all wait). Together they work by a quarter of its
 * cores, but by no more than are left; two of each rank at least, one of which waits for the disk. They give way where the ranks leave two cores. */
sk_ckpt_threads sk_ckpt_threads_of(int cores, int ranks, int busy);
/* Collective. The same for this node, where this rank computes with `own` threads (0: waits), which may differ from rank
 * to rank. */
sk_ckpt_threads sk_ckpt_threads_beside(MPI_Comm comm, int own);

/* Not collective. Seconds of a core that this thread has used. */
double sk_ckpt_cpu_time(void);
/* Not collective. Sleeps, if for long enough to be worth it, until a thread that has worked for cpu of the wall seconds
 * since it began has done so for no more than its share of the time; not once `behind` is false. */
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

/* ---- what all saves have in common (ckpt_form.c) ---- */

struct sk_ckpt_form {
  char who[300]; /* HOST-PID of rank 0: ends the name of a tmp folder */
  int n_file;
  sk_ckpt_threads waiting, behind; /* while the ranks wait, while they compute */
  sk_h5_form *file;
};

/* Collective. As sk_ckpt_form_make, for checkpoints in `dir` whose names begin with `prefix`. */
int sk_ckpt_form_at(MPI_Comm comm, const char *dir, const char *prefix, const char *run_id, int n_file,
                    const sk_ckpt_file *file, sk_ckpt_form **out, sk_err *e);
#endif
