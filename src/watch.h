/* watch.h: the watchdog. A thread in every process sees what the main threads of its node do and ends the job when
 * a rank no longer gets on, with the rank's name, host and phase.
 *
 * While all goes well it costs no message: main threads leave a beat at every switch of the timer's sections, and
 * the threads a tick, in memory that the node's processes share. The threads call no MPI, save MPI_Abort at the
 * end. Only when a whole node waits for others do the nodes write to files in RUN/stall, to find who is missing.
 *
 * A rank is named
 *   - that does not run (stopped, frozen) or stands in a computing section for max(3 steps, watch.step);
 *   - that stands in a section that reads or writes files, in the first step or outside of the steps, for
 *     watch.other;
 *   - on a node that says nothing while all others wait.
 * Who waits for another rank is not to blame; when all wait for each other, the one furthest behind is named. The
 * thread acts after 3/4 of the limit, so that the launcher has ended the job within it. */
#ifndef SK_WATCH_H
#define SK_WATCH_H
#include "src/grid.h"
#include "src/timer.h"

typedef struct sk_watch sk_watch;

/* Collective over the grid's world. Seconds; step = 0: no watchdog, *out is NULL. From now on t's sections are
 * watched; t and run_dir must outlive it. */
void sk_watch_start(const sk_grid *grid, const char *run_dir, double step, double other, sk_timer *t, sk_watch **out);
/* Collective. NULL is fine. */
void sk_watch_stop(sk_watch *w);
/* Step `step` begins; steps take about `seconds` (0: not known yet). Step 0: outside of the steps. NULL is fine. */
void sk_watch_step(sk_watch *w, int64_t step, double seconds);
/* A rank's host, "?" without a watchdog. */
const char *sk_watch_host(const sk_watch *w, int rank);
#endif
