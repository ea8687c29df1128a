/* timer.h: where the time went. Sections nest: time counts for the innermost one only, so that the
 * sections add up to the whole. Host time; a backend that runs asynchronously is measured up to what
 * its calls take. */
#ifndef SK_TIMER_H
#define SK_TIMER_H
#include "src/agree.h"
#include <stdatomic.h>

typedef enum sk_section {
  SK_T_OTHER, /* everything outside the sections below */
  SK_T_DATA,
  SK_T_EMBED,
  SK_T_NORM,
  SK_T_ATTENTION,
  SK_T_MAMBA,
  SK_T_MLP,
  SK_T_HEAD,
  SK_T_BACKWARD, /* added to one of EMBED..HEAD: its backward pass */
  SK_T_TP = SK_T_BACKWARD + SK_T_HEAD + 1, /* exchanges, as far as they are waited for */
  SK_T_CP,
  SK_T_PP,
  SK_T_REDUCE,
  SK_T_OPTIMIZER,
  SK_T_GATHER,
  SK_T_WAIT, /* scalars agreed over ranks: mostly waiting for the slowest */
  SK_T_EVAL,
  SK_T_CHECKPOINT,
  SK_T_METRICS,
  SK_T_COUNT
} sk_section;

/* Where the owner of a timer is, for the threads and processes that watch it (watch.h). */
typedef struct sk_beat {
  _Atomic int section;
  _Atomic uint64_t count; /* grows with every switch of sections */
} sk_beat;

/* A section from its begin to its end, sk_now's seconds. */
typedef struct sk_span {
  double begin, end;
  int section;
} sk_span;

typedef struct sk_timer {
  double total[SK_T_COUNT], since; /* seconds; moment of the last switch */
  int64_t calls[SK_T_COUNT];
  int stack[8], depth;
  double began[8];     /* of the sections on the stack */
  sk_beat *beat;       /* NULL: nobody watches; not owned */
  sk_span *span;       /* [cap] recorded while it is not NULL (trace.h), what does not fit is left out; not owned */
  int64_t n_spans, cap;
  void (*range)(const char *name); /* NULL, or sk_ops.range: sections for profilers */
} sk_timer;

/* From zero; what watches and records it stays. */
void sk_timer_start(sk_timer *t);
/* A section's name, a literal; "" where there is none. */
const char *sk_timer_label(int section);
/* t may be NULL: not measured. */
void sk_timer_begin(sk_timer *t, int section);
void sk_timer_end(sk_timer *t);
/* The section's name in tables; NULL: none. */
const char *sk_timer_name(int section);
/* Seconds spent so far in one section. */
double sk_timer_seconds(const sk_timer *t, int section);
/* Collective over comm: prints the table (section, calls, min/avg/max seconds over ranks, percent). */
void sk_timer_print(sk_timer *t, MPI_Comm comm);
#endif
