/* trace.h: a time line of chosen steps (log.trace) in RUN/trace.json, for chrome://tracing or ui.perfetto.dev: one
 * row per rank, one bar per section of the timer. */
#ifndef SK_TRACE_H
#define SK_TRACE_H
#include "src/grid.h"
#include "src/timer.h"

typedef struct sk_trace {
  int64_t first, last; /* steps; last 0: nothing to record */
  double t0;           /* the moment 0 of the time line, on this rank */
  double began;        /* the present step */
  sk_span *span;       /* being recorded into */
  bool on;
} sk_trace;

/* "" (nothing), "10" or "10-12"; anything else is SK_USAGE. */
int sk_trace_parse(const char *steps, sk_trace *tr, sk_err *e);

/* Collective over world, around every step: records the timer's sections in the chosen ones, and after the last of
 * them (or at `end`) gathers and writes them. A failure to write is a warning. */
void sk_trace_begin(sk_trace *tr, const sk_grid *g, sk_timer *t, int64_t step);
void sk_trace_end(sk_trace *tr, const sk_grid *g, sk_timer *t, int64_t step, bool end, const char *run_dir);
#endif
