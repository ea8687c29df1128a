/* progress.h: what a person sees of a run: one line per step, a bar on a terminal, metrics.jsonl. Rank
 * 0 prints and writes; every function may be called on every rank. */
#ifndef SK_PROGRESS_H
#define SK_PROGRESS_H
#include "io/run.h"

typedef struct sk_step_report {
  int64_t step, steps, tokens; /* tokens: trained on so far */
  double loss, grad_norm, lr;
  double seconds, tokens_per_s, tflops; /* of this step; model TFLOP/s of all ranks */
  double mfu; /* share of the devices' peak (sk_device_peak); NAN: not known */
  double data_pct, comm_pct, eta;
  double mem_gib; /* of rank 0's device; the CPU: the most its process has used */
  int64_t skipped, reruns, rollbacks; /* of the run so far */
} sk_step_report;

/* The line of a step and its metrics object. line = false: metrics only (log.every). */
void sk_progress_step(sk_run_dir *run, const sk_step_report *r, bool line);
/* Removes the bar before other text is printed; the next step draws it again. */
void sk_progress_clear(void);

/* Largest resident set of this process so far, GiB. */
double sk_peak_gib(void);
/* "1:02:03" or "2-01:02:03"; static buffers, two calls deep. */
const char *sk_duration(double seconds);
#endif
