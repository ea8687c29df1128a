/* device_check.h: one op on the CPU and on the GPU with the same inputs. A trial lists the op's
 * arrays; the op is called once on the CPU (fp32) and twice on the GPU, and then
 * - every output is close to the CPU's: |got - want| / |want| (2-norms of the whole array) within
 * 1e-5 when the GPU computes in fp32, 1e-2 in bf16. Inputs of type act are rounded to it first, so
 * both get the same;
 * - outputs were poisoned and are numbers now; the space between rows and around arrays is
 * untouched, and so are the inputs;
 * - both calls on the GPU gave the same bits. */
#ifndef SK_TESTS_DEVICE_CHECK_H
#define SK_TESTS_DEVICE_CHECK_H
#include "kernels/ops.h"

typedef enum role { IN, OUT, ADD } role;       /* ADD: read and written */
typedef enum kind { ACT, F32, F64, I32 } kind; /* on the CPU act is float */

typedef struct array {
  const char *name;
  role role;
  kind kind;
  int64_t rows, cols, ld;
  void *host; /* [rows * ld] float, double or int32: the start, then the CPU's result */
  void *base, *got[2];
} array;

enum { ARRAYS = 20 };

typedef struct trial {
  int n;
  array a[ARRAYS];
  int64_t shift;     /* elements by which arrays miss their alignment */
  size_t ws_cpu, ws; /* bytes of scratch: one more pointer after the arrays */
} trial;

/* p: the arrays' pointers in the order of the trial, then the scratch. */
typedef void (*call_fn)(const sk_ops *op, sk_stream *s, void **p, const void *dims);

extern const sk_ops *g_gpu;
extern sk_device *g_cpu_dev, *g_gpu_dev;
extern sk_stream *g_cpu_stream, *g_gpu_stream;
/* The ops whose trials run; a count of 0: all. Trials of more elements do not run, unless this is 0. */
extern char **g_wanted;
extern int g_wanted_count;
extern int64_t g_wanted_most;

double draw(void); /* N(0, 1) */
/* Opens the GPU for act elements of this type; closes it when open. Fatal on failure. */
void device_open(sk_dtype act);
void device_close(void);
sk_dtype device_act(void);

/* Adds an array; IN and ADD are filled with N(0, 1), int32 with 0. Returns its values. */
void *add_array(trial *t, const char *name, role r, kind k, int64_t rows, int64_t cols, int64_t ld);
/* Rounds a float array of type act as the GPU will see it. */
void round_act(float *x, int64_t n);
/* Runs and checks; one line of TAP, none where the op (fmt's first word) is not wanted. Frees the arrays. */
void run_trial(trial *t, call_fn call, const void *dims, const char *fmt, ...) SK_PRINTF(4, 5);

/* tests/device_mixer.c, device_engine.c */
void test_mixer(void);
void test_engine(void);
#endif
