/* stop.h: reasons to stop early but in good order: a signal, --max-time, the batch system's limit, a file named STOP in
 * the run folder. */
#ifndef SK_STOP_H
#define SK_STOP_H
#include "src/base.h"

/* In the order in which one hides the other when ranks have different ones. */
typedef enum sk_stop_why { SK_STOP_NONE, SK_STOP_FILE, SK_STOP_MAX_TIME, SK_STOP_BATCH, SK_STOP_SIGNAL } sk_stop_why;

typedef struct sk_stop {
  double max_time, batch; /* moments (sk_now) of the limits; infinity: none */
  char *file;             /* RUN/STOP */
  double looked;          /* moment of the last look for it */
  bool seen;
} sk_stop;

/* Installs the handlers of SIGINT, SIGTERM and SIGUSR1; a second SIGINT ends the process at once. began: moment from
 * which max_time (seconds, 0: none) counts. The end of the batch job is taken from SLURM_JOB_END_TIME. */
void sk_stop_open(sk_stop *s, const char *run_dir, double began, double max_time);
void sk_stop_close(sk_stop *s);

/* This rank's view; ranks agree in the step's own exchange. need: seconds for what must still be done after going on
 * for one more step. Rank 0 watches clock and file (once a second), every rank its signals. */
sk_stop_why sk_stop_asked(sk_stop *s, double need);

/* Seconds until the nearest limit; infinity without one. */
double sk_stop_left(const sk_stop *s);

/* "SIGUSR1", "--max-time", "the batch system's time limit", "the file STOP"; for a signal of another rank "a signal". */
const char *sk_stop_text(sk_stop_why why);

/* Rank 0: removes RUN/STOP, which has been heeded. */
void sk_stop_remove_file(const sk_stop *s);

/* "[D-]HH:MM:SS", "MM:SS" or seconds -> seconds; -1 when it is none of these. */
double sk_parse_duration(const char *s);
#endif
