/* checkpoint.h: between the registry and the checkpoint files: which rows of which parameter this rank
 * owns. The files (io/ckpt.h) have Hugging Face's names and global shapes; of the process grid only the layout of
 * matrices that tp cuts by columns depends, in blocks of columns. */
#ifndef SK_CHECKPOINT_H
#define SK_CHECKPOINT_H
#include "io/ckpt.h"
#include "src/engine.h"

/* What saves an engine again and again: host memory for a snapshot, and the form of the files. */
typedef struct sk_saver sk_saver;

/* Collective over comm. files: the weights are spread over so many files (at most one per parameter), the optimizer's
 * state over as many: model.h5 and optimizer.h5, or model-00001-of-00002.h5 and so on. Takes sk_saver_bytes of host
 * memory, pinned where the device is a GPU. comm and g must outlive it. */
int sk_saver_open(MPI_Comm comm, sk_engine *g, const char *run_dir, const char *run_id, int64_t files, sk_saver **out,
                  sk_err *e);
void sk_saver_close(sk_saver *s);
size_t sk_saver_bytes(const sk_saver *s);
/* How many files, and what they are made of: for comparisons. */
int sk_saver_files(const sk_saver *s, const sk_ckpt_form **form);

/* Not collective, but for every rank. Copies this rank's ZeRO slices to the host and begins to write them to
 * RUN/checkpoints/step-N: /params/NAME, /m/NAME, /v/NAME. The engine may go on at once, and does if `behind`: then the
 * threads that write give way to it where cores are left. The CPU adds up what it copies for the checksums; for a GPU
 * those threads do. No other save may begin before sk_ckpt_end of this one. */
sk_ckpt_job *sk_saver_begin(sk_saver *s, const char *run_dir, const sk_ckpt_meta *meta, bool behind, int64_t keep,
                            int64_t keep_every);

/* Collective over comm. One save from beginning to end, in one file of each kind. */
int sk_checkpoint_save(MPI_Comm comm, sk_engine *g, const char *run_dir, const sk_ckpt_meta *meta,
                       int64_t *bytes, sk_err *e);

/* Collective over comm. Loads a checkpoint that sk_ckpt_open has found whole into weights, m and v
 * (weights_only: the weights). Every rank ends with all weights. */
int sk_checkpoint_load(MPI_Comm comm, sk_engine *g, const char *path, bool weights_only, sk_err *e);
#endif
