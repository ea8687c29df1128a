/* ckpt.h: the files of a checkpoint: folder, manifest.json, hashes, publication, choice of the newest
 * whole one, pruning (design sections 2 and 8). Knows datasets and slabs, no model.
 *
 *   RUN/checkpoints/step-00001234/{model.h5, optimizer.h5, manifest.json}     whole (or model-I-of-K.h5 ...), and side files
 *   RUN/checkpoints/step-00001234.tmp.HOST-PID/                               being written or left over
 *   RUN/checkpoints/step-00001234.old.HOST-PID/                               replaced a moment ago
 *   RUN/checkpoints/latest                                                    a hint, never trusted
 *
 * A process killed at any moment leaves the old state or a whole new folder: the tmp folder becomes the
 * checkpoint by one rename (an exchange of names where a folder of that step exists already; where the
 * file system cannot exchange, the old one is renamed away first and counts as long as no new one is
 * there). */
#ifndef SK_CKPT_H
#define SK_CKPT_H
#include "io/h5.h"
#include "src/sum.h"

/* A small file of another program that goes along with a model (tokenizer.json, generation_config.json). */
typedef struct sk_ckpt_side {
  char name[64]; /* plain */
  char *data;
  size_t size;
} sk_ckpt_side;

enum { SK_CKPT_RECENT = 64, SK_CKPT_MAX_SIDES = 16, SK_CKPT_MAX_SIDE_BYTES = 256 << 20 };

typedef struct sk_ckpt_meta {
  char run_id[64];
  int64_t step;   /* optimizer steps done */
  int64_t tokens; /* tokens trained on so far */
  int64_t cursor; /* samples consumed: where the data stream continues */
  int64_t grid[4]; /* pp, dp, cp, tp of the writer */
  int64_t skipped, reruns, rollbacks; /* of the run so far: what train.on_nan has done */
  int n_recent;    /* losses of the last updates, the latest last: what a spike is measured by */
  double recent[SK_CKPT_RECENT];
  char *deck;      /* resolved deck; owned by the struct after a read */
  char *hf_json;   /* HF config.json text: the one given, or one made from the deck; owned likewise */
  int n_side;          /* rank 0 only, 0 on the others */
  sk_ckpt_side *side;  /* owned by the struct */
} sk_ckpt_meta;
void sk_ckpt_meta_free(sk_ckpt_meta *m);

/* Not collective. Appends a copy of n bytes as a side file. */
void sk_ckpt_side_add(sk_ckpt_meta *m, const char *name, const void *data, size_t n);
/* Not collective. Reads a file (at most SK_CKPT_MAX_SIDE_BYTES) as the side file `name`. */
int sk_ckpt_side_read(sk_ckpt_meta *m, const char *path, const char *name, sk_err *e);
/* Not collective. The side file of that name, or NULL. */
const sk_ckpt_side *sk_ckpt_side_find(const sk_ckpt_meta *m, const char *name);
/* Moves the side files of one checkpoint to another. */
void sk_ckpt_sides_move(sk_ckpt_meta *to, sk_ckpt_meta *from);

/* One HDF5 file of a checkpoint, by the parts of this rank. */
typedef struct sk_ckpt_file {
  const char *name; /* "model.h5" and "optimizer.h5", or "model-00001-of-00002.h5" and so on */
  int n_dset, n_slab;
  const sk_dset *dset; /* the same on every rank */
  const sk_slab *slab; /* this rank's; together they cover every dataset once */
  const sk_source *source; /* when saving: of slabs without data, else NULL; called by the thread that saves */
  const sk_sum *const *sum; /* when saving: [n_slab] of each slab's data, NULL where nobody has taken it yet; NULL: of none */
} sk_ckpt_file;

/* ---- saving ----
 * A save is begun, goes on by itself in a thread of each rank, and is moved along by the ranks together:
 *
 *   sk_ckpt_form_make      once: the structure of the files
 *   sk_ckpt_begin          threads: add up, write and sync this rank's slabs
 *   sk_ckpt_go_on          all is written: rank 0's thread: manifest.json with all sums, sync, rename to step-N, `latest`
 *   sk_ckpt_go_on          it is published: threads: read the files back, to see that they hold what was written
 *   sk_ckpt_go_on          they do: rank 0's thread: what it replaces may go, and older ones
 *   sk_ckpt_go_on          over: sk_ckpt_end
 *
 * The threads call neither MPI nor HDF5, so nothing is asked of either beyond MPI_THREAD_FUNNELED. A checkpoint that
 * is there already under that name goes only after the new one has been read. On failure of any rank the new folder is
 * removed (as far as possible), the old one is put back, and nothing else has changed. */

typedef struct sk_ckpt_form sk_ckpt_form;
typedef struct sk_ckpt_job sk_ckpt_job;
typedef struct sk_ckpt_result {
  int64_t step, bytes; /* of the HDF5 files */
  double seconds;      /* from its begin until it is published */
  double busy, checked; /* what the threads worked until it was published, and after, of the busiest rank */
} sk_ckpt_result;

/* Collective. Creates RUN/checkpoints and checks that all ranks see it. */
int sk_ckpt_form_make(MPI_Comm comm, const char *run_dir, const char *run_id, int n_file, const sk_ckpt_file *file,
                      sk_ckpt_form **form, sk_err *e);
void sk_ckpt_form_free(sk_ckpt_form *form);
/* Bytes of file k. */
int64_t sk_ckpt_form_bytes(const sk_ckpt_form *form, int k);
/* Byte of file k at which a slab begins: data that lie so in memory too, modulo 4096, go past the page cache. */
int64_t sk_ckpt_form_place(const sk_ckpt_form *form, int k, const sk_ckpt_file *file, int slab);
/* Collective. So many threads of this rank compute behind which others save. */
void sk_ckpt_form_beside(MPI_Comm comm, sk_ckpt_form *form, int threads);
/* How many threads of each rank write, behind computing ones or while all wait: chosen by the node's cores; tests set
 * another number (at most 4) for both, and whether there is no core for them behind computing ones. */
int sk_ckpt_form_workers(const sk_ckpt_form *form, bool behind);
void sk_ckpt_form_set_workers(sk_ckpt_form *form, int n, bool crowded);
/* Not collective. On how many cores this process's threads that save may run: those of all its threads and, where Open
 * MPI has bound it without being asked to, those of mpirun. */
int sk_ckpt_cores(void);
/* Whether those that write behind computing ones are nicer than these: where the ranks leave two cores. */
bool sk_ckpt_form_gives_way(const sk_ckpt_form *form);

/* Every rank calls it; it communicates nothing and waits for nothing. file: as given for the form; they, the slabs'
 * data, the texts and side files in *meta are borrowed until the end. behind: the ranks compute meanwhile, the threads
 * take as much of the cores as the form says of that until sk_ckpt_end. keep > 0: prunes afterwards (sk_ckpt_prune). */
sk_ckpt_job *sk_ckpt_begin(MPI_Comm comm, const char *run_dir, const sk_ckpt_meta *meta, const sk_ckpt_form *form,
                           const sk_ckpt_file *file, bool behind, int64_t keep, int64_t keep_every);

/* Not collective: has this rank's thread done its work? When all have, sk_ckpt_go_on does not wait. */
bool sk_ckpt_idle(const sk_ckpt_job *job);

/* Not collective: is the checkpoint there, and only read back? */
bool sk_ckpt_published(const sk_ckpt_job *job);

/* Collective. Waits for the threads, agrees on errors, begins what comes next; true: it is over. */
bool sk_ckpt_go_on(sk_ckpt_job *job);

/* Collective. Sees it through, frees it, and says how it went: *e names the file that failed. */
int sk_ckpt_end(sk_ckpt_job *job, sk_ckpt_result *r, sk_err *e);

/* Collective. All of the above at once. bytes (may be NULL): total written. */
int sk_ckpt_save(MPI_Comm comm, const char *run_dir, const sk_ckpt_meta *meta, int n_file, const sk_ckpt_file *file,
                 int64_t *bytes, sk_err *e);

/* Collective. The same as a folder `path` anywhere, which must not exist (parents are created); no hint. */
int sk_ckpt_save_as(MPI_Comm comm, const char *path, const sk_ckpt_meta *meta, int n_file, const sk_ckpt_file *file,
                    int64_t *bytes, sk_err *e);

/* ---- reading ---- */

/* Collective. Checks that folder `path` is a whole checkpoint: manifest's own hash, versions, every
 * file's size and checksum (files spread over the ranks), before HDF5 opens anything; then fills in
 * *meta (freed by the caller) and, where not NULL, whether optimizer files are there. Model files must be. */
int sk_ckpt_open(MPI_Comm comm, const char *path, sk_ckpt_meta *meta, bool *has_optimizer, sk_err *e);

enum { SK_CKPT_MAX_FILES = 2048 };
typedef char sk_ckpt_name[64];
/* Collective. In which file of an opened checkpoint each of n datasets lies: name[where[i]]; name has
 * SK_CKPT_MAX_FILES places. */
int sk_ckpt_where(MPI_Comm comm, const char *path, int n, const sk_dset *dset, int *where, sk_ckpt_name *name,
                  sk_err *e);

/* Collective. Reads this rank's slabs of an opened (checked) checkpoint; the datasets may lie in any of its files
 * (file->name does not matter). */
int sk_ckpt_read(MPI_Comm comm, const char *path, const sk_ckpt_file *file, sk_err *e);

/* Collective. The newest whole checkpoint of run_dir: its path in `path` (size cap), "" when the run
 * has no checkpoint folders at all. Damaged ones that are newer are named in a warning and passed
 * over; checkpoints but none whole is SK_FAILED, naming each and what is wrong with it. */
int sk_ckpt_find(MPI_Comm comm, const char *run_dir, char *path, size_t cap, sk_err *e);

/* Not collective: for rank 0. Removes what is older than the newest `keep` (at least 2) whole-looking
 * checkpoints (manifest intact, sizes right) except steps that are multiples of keep_every (0: none), and
 * left-over tmp and old folders that no live process writes: on this host by pid, else after an hour. */
void sk_ckpt_prune(const char *run_dir, int64_t keep, int64_t keep_every);

/* Collective (rank 0 works). Removes what a killed job left half written: tmp folders that no live process writes (as
 * above) and the hint's. For who holds the run's lock. */
void sk_ckpt_clean(MPI_Comm comm, const char *run_dir);

/* Collective. `saker verify`: every file's and every slab's sum; prints a line per file on rank 0;
 * SK_FAILED with the names of all that is damaged. Files whose own sum is wrong are not opened. */
int sk_ckpt_verify(MPI_Comm comm, const char *path, sk_err *e);
#endif
