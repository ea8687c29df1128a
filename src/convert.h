/* convert.h: `saker convert`: between a folder as Hugging Face's transformers writes it (config.json, weights
 * as safetensors in one file or several, the tokenizer's files) and a checkpoint without optimizer state.
 *
 * Tensor by tensor, in pieces of about 16 MiB of fp32 that the ranks share out: a rank's memory does not grow
 * with the model, and the files do not depend on the number of ranks. */
#ifndef SK_CONVERT_H
#define SK_CONVERT_H
#include "io/ckpt.h"
#include "src/model.h"

/* Collective. HF_DIR to checkpoint folder `out`, which must not exist. */
int sk_convert_from_hf(MPI_Comm comm, const char *hf_dir, const char *out, sk_err *e);

typedef struct sk_to_hf_opts {
  const char *from, *out;
  int dtype;           /* an sk_st_dtype, -1: the one of config.json, else what came in, else fp32 */
  int64_t shard_bytes; /* a file of weights gets no larger, except by one tensor alone */
} sk_to_hf_opts;

/* Collective. Checkpoint to a folder that must not exist. */
int sk_convert_to_hf(MPI_Comm comm, const sk_to_hf_opts *o, sk_err *e);

/* The rest is shared by the two. */

/* The side file with the dtype of every tensor that came in: {"NAME": "BF16", ...}. It is kept where config.json
 * names no dtype. */
extern const char sk_convert_dtypes[];
/* The files that go along both ways, NULL at the end; a folder may lack any of them. Others of a checkpoint are not
 * exported: whoever made it does not get to choose the names. */
extern const char *const sk_convert_sides[];

/* The whole model's parameters: names and shapes (m->all); freed by sk_model_free. */
int sk_convert_model(const sk_config *cfg, sk_model *m, sk_err *e);

/* Rows of a parameter in one piece, at least 1. */
int64_t sk_convert_rows(const sk_param *p);

/* A line on rank 0 every ten seconds. Start with {.all = elements of the whole model, .begin = sk_now()}. */
typedef struct sk_convert_progress {
  int64_t all, done; /* elements; done: by this rank */
  int ranks;
  double begin, last;
} sk_convert_progress;
void sk_convert_tick(sk_convert_progress *p, int64_t elements);
#endif
