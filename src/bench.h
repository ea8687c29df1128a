/* bench.h: `saker bench`: measurements with one table for people and, with --json, a list of objects for
 * machines (design section 9). Times are wall-clock times on the host around work that was waited for, medians
 * of several repetitions after a warm-up; all inputs are random (constant data would flatter a GPU). */
#ifndef SK_BENCH_H
#define SK_BENCH_H
#include "src/engine.h"
#include <jansson.h>

struct sk_cudnn_args; /* kernels/cudnn.h */

typedef struct sk_bench {
  MPI_Comm comm;
  int rank, ranks;
  const sk_config *cfg;     /* NULL for comm */
  const char *model;        /* name of the model, from the deck */
  const char *command;      /* how to run this again */
  int64_t repeat, warmup;
  double sample;            /* seconds that the calls of one repetition fill, about */
  bool no_overlap;          /* step: every exchange is waited for at once */
  bool brief;               /* step: its time alone, not what it is made of */
  char **names;             /* ops: those asked for */
  int n_names;
  const sk_ops *op;
  const sk_comm_ops *comms;
  json_t *results;          /* array, on rank 0 */
} sk_bench;

/* Collective. The whole verb; what is argv[1]: ops, layer, step, comm or io. */
int sk_bench_run(MPI_Comm comm, int argc, char **argv, sk_err *e);

/* Appends an object with the fields that every result has; more are added by the caller. */
json_t *sk_bench_result(sk_bench *b, const char *what, const char *device);

/* Seconds that one call of run(arg) takes, the median over b->repeat repetitions of as many calls as fill b->sample;
 * st is waited for. Not collective. */
double sk_bench_time(const sk_bench *b, sk_stream *st, void (*run)(void *arg), void *arg);

/* Fills n host floats with N(0, scale^2). */
void sk_bench_random(float *x, int64_t n, uint64_t key, double scale);

/* bench_attention.c: cuDNN's attention of these dims, where it is there; a: as of one's own op, whose forward pass has
 * run. report is called for each pass that could be measured: op and pass name it, s seconds, ws bytes of
 * workspace. Not collective. */
void sk_bench_cudnn(const sk_bench *b, sk_device *dev, sk_stream *st, const sk_attn_dims *d,
                    const struct sk_cudnn_args *a,
                    void (*report)(void *arg, const char *op, const char *pass, double s, size_t ws), void *arg);

/* bench_gemm.c: a matrix product as in sk_ops.gemm. */
typedef struct sk_bench_product {
  bool ta, tb;
  int64_t m, n, k;
  const void *A;
  int64_t lda;
  const void *B;
  int64_t ldb;
  double beta;
  void *C;
  int64_t ldc;
  sk_dtype ct;
} sk_bench_product;

/* Seconds of the product as training computes it; *best: of the fastest of the algorithms that the device's library
 * names for it, in the same run, 0 where there is no choice. Not collective. */
double sk_bench_gemm(const sk_bench *b, sk_device *dev, sk_stream *st, const sk_bench_product *p, double *best);

/* Collective. The benches; ops and layer on one rank. */
int sk_bench_ops(sk_bench *b, sk_err *e);
int sk_bench_layer(sk_bench *b, sk_err *e);
int sk_bench_step(sk_bench *b, sk_err *e);
int sk_bench_comm(sk_bench *b, sk_err *e);
int sk_bench_io(sk_bench *b, const char *folder, sk_err *e); /* in FOLDER/saker-bench, removed at the end */
#endif
