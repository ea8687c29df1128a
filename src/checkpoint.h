/* checkpoint.h: between the registry and the checkpoint files: which rows of which parameter this rank
 * owns. The files (io/ckpt.h) have Hugging Face's names and global shapes and do not depend on the
 * process grid. */
#ifndef SK_CHECKPOINT_H
#define SK_CHECKPOINT_H
#include "io/ckpt.h"
#include "src/engine.h"

/* Collective over comm. Writes RUN/checkpoints/step-N: model.h5 (/params/NAME) and optimizer.h5
 * (/m/NAME, /v/NAME), each rank its ZeRO slice. */
int sk_checkpoint_save(MPI_Comm comm, sk_engine *g, const char *run_dir, const sk_ckpt_meta *meta,
                       int64_t *bytes, sk_err *e);

/* Collective over comm. Loads a checkpoint that sk_ckpt_open has found whole into weights, m and v
 * (weights_only: the weights). Every rank ends with all weights. */
int sk_checkpoint_load(MPI_Comm comm, sk_engine *g, const char *path, bool weights_only, sk_err *e);
#endif
