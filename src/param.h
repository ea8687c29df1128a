/* param.h: the parameter registry of one rank. Everything that loops over parameters (initialisation,
 * optimizer, norms, checkpoints, conversion) loops over it. Names and shapes are Hugging Face's (spec
 * section 7).
 *
 * A parameter is a matrix of rows (the first dimension) of which this rank has a shard: along the rows
 * or the columns it consists of segments, each of which is shared out over the tp ranks in its own way
 * (section 5). The shard of a rank is a list of runs of rows; a run that several tp ranks have alike (a
 * norm's weight, B and C when there are fewer groups than ranks) belongs to the first of them, which
 * counts it in the norm and writes it to checkpoints; the gradients of all of them are added.
 *
 * All shards of a rank lie in one flat index space, in registry order; weights, gradients and optimizer
 * state use the same offsets. Runs are cut into blocks of whole rows (about 16 Ki elements), which never
 * depend on dp, cp and pp: ZeRO-1 slices are made of whole blocks, and the gradient norm adds one double
 * per block in registry order. Buckets are consecutive parameters (a layer) whose gradients are reduced
 * and whose weights are gathered together. */
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

enum { SK_MAX_SEGMENTS = 5 };

/* `units` units of `width` rows (or columns) each. tp ranks share out `users` users in blocks (sk_block);
 * user j needs unit j * units / users. users = 0: every rank has the whole segment. */
typedef struct sk_segment {
  int64_t units, width, users;
} sk_segment;

/* What a parameter looks like; filled in by the layers. */
typedef struct sk_param_spec {
  int rank;
  int64_t dim[3];
  bool columns; /* the segments cut dim[1], not dim[0] */
  int n_seg;    /* 0: every rank has all of it */
  sk_segment seg[SK_MAX_SEGMENTS];
  sk_init init;
  bool decay;   /* weight decay applies (matrices and embeddings) */
  int64_t pad;  /* rows of zeros follow the shard up to a multiple of it, 0: none; nobody updates them */
  bool join;    /* starts right after the previous one, so that the two form one matrix for a GEMM */
} sk_param_spec;

/* Consecutive rows of a shard that the same tp ranks have. */
typedef struct sk_run_of_rows {
  int param;
  int64_t row, rows;        /* within the shard */
  int64_t global_row;       /* within the parameter */
  int first, last;          /* tp ranks that have it; first is its owner */
  int64_t block0, n_blocks;
} sk_run_of_rows;

typedef struct sk_param {
  char name[96];
  int index;             /* among all parameters of the whole model, in its order */
  int rank;
  int64_t dim[3];        /* global shape */
  sk_init init;
  double scale;          /* of the normal and uniform schemes; initializer_range unless set */
  bool decay;
  bool copy;             /* another pipeline stage owns it (tied head) */
  double lr_mult, wd_mult;
  int64_t pad_row;       /* global row that starts at zero (embedding's padding index), -1: none */
  int64_t global_len;    /* elements of a global row */
  int64_t col;           /* first column of the shard */
  int64_t col_units;     /* tp ranks share its columns out by so many equal parts; 0: they share the rows */
  int64_t row_units;     /* the same of its rows, each of which one rank has; 0: of several kinds, or not so */
  int64_t rows, row_len; /* of the shard */
  int64_t offset, count; /* of the shard, elements in the flat index space */
  int64_t block_rows;
  int run0, n_runs;
} sk_param;

/* Rows that several tp ranks have alike: their gradients are added over tp. Every rank lists all of
 * them, in the same order, those of other ranks too. */
typedef struct sk_shared {
  int64_t at;         /* flat offset here, -1: not here */
  int64_t pos, count; /* place in the bucket's exchange buffer; elements */
} sk_shared;

typedef struct sk_bucket {
  int param0, n_params;
  int64_t lo, hi;       /* flat range */
  int64_t block0, n_blocks;
  int shared0, n_shared;
  int64_t shared_count; /* elements of the exchange buffer */
} sk_bucket;

typedef struct sk_registry {
  int tp, tp_rank; /* set before the first parameter is added */
  double init_std; /* initializer_range; likewise */
  int next_index;  /* of the next parameter, see sk_param.index */
  int n, cap;
  sk_param *p;
  int n_runs, cap_runs;
  sk_run_of_rows *run;
  int n_shared, cap_shared;
  sk_shared *shared;
  int n_buckets;
  sk_bucket *bucket;
  int64_t total; /* elements of the flat index space, padding included */
  int64_t count; /* parameters without padding */
  int64_t n_blocks;
} sk_registry;

/* Starts a new bucket; the parameters added from now on belong to it. Returns its index. */
int sk_bucket_begin(sk_registry *r);
/* Appends a parameter to the latest bucket and returns its index. */
int sk_param_add(sk_registry *r, const char *name, const sk_param_spec *spec);
/* Looks a name up; -1 when it is not there. */
int sk_param_find(const sk_registry *r, const char *name);
void sk_registry_free(sk_registry *r);

/* Applies optimizer.groups (fnmatch over names; later groups win). hit[n_groups] (may be NULL) is set
 * where a pattern matches something. */
void sk_registry_groups(sk_registry *r, const sk_config *c, bool *hit);

/* out[count]: global elements first .. first+count-1 of parameter p at initialisation, a pure function of
 * (seed, name, index). Scheme: spec section 6.1 (original Mamba-2 for A_log, dt_bias, D and the conv;
 * normal for the other matrices). */
void sk_param_init(const sk_param *p, uint64_t seed, int64_t first, int64_t count, float *out);

/* The units of a segment that tp rank t of tp needs: first, and how many in *n. */
int64_t sk_segment_units(const sk_segment *s, int tp, int t, int64_t *n);

/* Flat offset at which block i of the whole shard starts (i < n_blocks). */
int64_t sk_block_start(const sk_registry *r, int64_t block);
/* The blocks of ZeRO part `part` of `parts` in a bucket: first block, count in *n; balanced by elements. */
int64_t sk_zero_blocks(const sk_registry *r, const sk_bucket *b, int parts, int part, int64_t *n);
/* Flat offset at which the part's elements start (part = parts: the bucket's end). */
int64_t sk_zero_start(const sk_registry *r, const sk_bucket *b, int parts, int part);

/* The overlap of a run with the flat range [lo, hi) made of whole rows: rows row0 .. row0+rows-1 of the
 * shard; false when there is none. */
bool sk_run_overlap(const sk_registry *r, const sk_run_of_rows *run, int64_t lo, int64_t hi, int64_t *row0,
                    int64_t *rows);
#endif
