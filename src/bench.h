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

/* One way of doing something, run(arg), and the seconds that it took. */
typedef struct sk_bench_way {
  void (*run)(void *arg);
  void *arg;
  double s;
} sk_bench_way;

/* Fills s of n ways that are to be compared, as sk_bench_time would, in rounds: in each round every way runs for about
 * `sample` seconds, each time another first. A GPU's clock falls while it works, and all must see the same. */
void sk_bench_rounds(const sk_bench *b, sk_stream *st, double sample, sk_bench_way *way, int n);

/* bench_attention.c: cuDNN's passes of these dims, as many as can be made, in the same rounds as one's own two,
 * forward and backward, whose s are filled; a: of one's own op. Returns how many rivals there are; op and pass name
 * them, ws is their workspace in bytes. Not collective. */
typedef struct sk_bench_rival {
  const char *op, *pass;
  double s;
  size_t ws;
} sk_bench_rival;
int sk_bench_attention(const sk_bench *b, sk_device *dev, sk_stream *st, const sk_attn_dims *d,
                       const struct sk_cudnn_args *a, sk_bench_way own[2], sk_bench_rival rival[3]);

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
