/* timeline.h: a time line of chosen steps (log.trace) in RUN/trace.json, for chrome://tracing or ui.perfetto.dev: one
 * row per rank, one bar per section of the timer. */
#ifndef SK_TIMELINE_H
#define SK_TIMELINE_H
#include "src/grid.h"
#include "src/timer.h"

typedef struct sk_timeline {
  int64_t first, last; /* steps; last 0: nothing to record */
  double t0;           /* the moment 0 of the time line, on this rank */
  double began;        /* the present step */
  sk_span *span;       /* being recorded into */
  bool on;
} sk_timeline;

/* "" (nothing), "10" or "10-12"; anything else is SK_USAGE. */
int sk_timeline_parse(const char *steps, sk_timeline *tr, sk_err *e);

/* Collective over world, around every step: records the timer's sections in the chosen ones, and after the last of
 * them (or at `end`) gathers and writes them. A failure to write is a warning. */
void sk_timeline_begin(sk_timeline *tr, const sk_grid *g, sk_timer *t, int64_t step);
void sk_timeline_end(sk_timeline *tr, const sk_grid *g, sk_timer *t, int64_t step, bool end, const char *run_dir);
#endif
