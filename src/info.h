/* info.h: `saker info`: what a checkpoint, a data set, a deck or a config.json holds, with parameter and FLOP
 * tables by layer (spec section 8). */
#ifndef SK_INFO_H
#define SK_INFO_H
#include "src/config.h"

/* Collective. The whole verb; argv[0] is its name. What the path is is seen by its contents: a folder is a
 * checkpoint, an HDF5 file a data set, *.json a Hugging Face configuration, anything else a deck. */
int sk_info_run(MPI_Comm comm, int argc, char **argv, sk_err *e);

/* Not collective; prints on rank 0: parameters and forward FLOPs per token of every layer at sequence length T. */
int sk_info_tables(const sk_config *c, int64_t T, sk_err *e);
#endif
