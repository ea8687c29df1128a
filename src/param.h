/* param.h: the parameter registry. Everything that loops over parameters (initialisation, optimizer,
 * norms, checkpoints, conversion) loops over it. Names and shapes are Hugging Face's (spec section 7).
 *
 * All parameters of a rank live in one flat index space, in registry order; weights, gradients and
 * optimizer state use the same offsets. A parameter is cut into blocks of whole rows (about 16 Ki
 * elements). Blocks never depend on the process grid: ZeRO-1 slices are made of whole blocks, and the
 * gradient norm adds one double per block in registry order. */
#ifndef SK_PARAM_H
#define SK_PARAM_H
#include "src/config.h"
#include "src/grid.h"

typedef enum sk_init {
  SK_INIT_ZERO,
  SK_INIT_ONE,
  SK_INIT_NORMAL,  /* N(0, scale^2) */
  SK_INIT_UNIFORM, /* U(-scale, scale) */
  SK_INIT_A_LOG,
  SK_INIT_DT_BIAS
} sk_init;

typedef struct sk_param {
  char name[96];
  int rank;
  int64_t dim[3];        /* global shape */
  sk_init init;
  double scale;          /* of the normal and uniform schemes; initializer_range unless set */
  bool decay;            /* weight decay applies (matrices and embeddings) */
  double lr_mult, wd_mult;
  int64_t pad_row;       /* row that starts at zero (embedding's padding index), -1: none */
  int64_t rows, row_len; /* rows = dim[0], row_len = the other dims' product */
  int64_t offset, count; /* elements in the flat index space */
  int64_t block0, n_blocks, block_rows;
} sk_param;

typedef struct sk_registry {
  int n, cap;
  sk_param *p;
  int64_t total; /* elements of the flat index space, padding included */
  int64_t count; /* parameters without padding */
  int64_t n_blocks;
  double init_std; /* initializer_range; set before the first parameter is added */
} sk_registry;

/* Appends a parameter and returns its index. join: starts right after the previous one, without
 * alignment, so that the two form one matrix for a fused GEMM. */
int sk_param_add(sk_registry *r, const char *name, int rank, const int64_t *dim, sk_init init,
                 bool decay, bool join);
/* Looks a name up; -1 when it is not there. */
int sk_param_find(const sk_registry *r, const char *name);
void sk_registry_free(sk_registry *r);

/* Applies optimizer.groups (fnmatch over names; later groups win). A pattern that matches nothing is
 * SK_USAGE. */
int sk_registry_groups(sk_registry *r, const sk_config *c, sk_err *e);

/* out[count]: elements first .. first+count-1 of parameter p at initialisation, a pure function of
 * (seed, name, index). Scheme: spec section 6.1 (original Mamba-2
 * for A_log, dt_bias, D and the conv; normal for the other matrices). */
void sk_param_init(const sk_param *p, uint64_t seed, int64_t first, int64_t count, float *out);

/* Flat offset at which block i of the whole registry starts; sk_block_start(r, n_blocks) == total. */
int64_t sk_block_start(const sk_registry *r, int64_t block);
/* The blocks of ZeRO part `part` of `parts`: first block, count in *n; balanced by elements. */
int64_t sk_zero_blocks(const sk_registry *r, int parts, int part, int64_t *n);

/* One parameter's overlap with the flat range [lo, hi) made of whole blocks: rows row0 .. row0+rows-1;
 * false when there is none. */
bool sk_param_overlap(const sk_param *p, int64_t lo, int64_t hi, int64_t *row0, int64_t *rows);
#endif
