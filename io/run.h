/* run.h: a run's folder on rank 0: creation, lock, status.json, metrics.jsonl, deck.yaml, loss.png.
 * Functions marked collective agree on errors; the others are called on every rank and work on rank 0
 * only. */
#ifndef SK_RUN_H
#define SK_RUN_H
#include "io/events.h"
#include "src/agree.h"

/* The fields are for run.c, metrics.c and plot.c; events is for sk_events_scalars. */
typedef struct sk_run_dir {
  char *path;
  int lock;    /* rank 0's descriptor of RUN/lock, else -1 */
  int metrics; /* rank 0's descriptor of metrics.jsonl, else -1 */
  sk_events *events; /* rank 0's event file for TensorBoard, else NULL */
  char *line;  /* the metrics object being made */
  size_t n, cap;
  bool warned; /* a failed metrics line has been reported */
  char *last_status;
  double last_status_at;
} sk_run_dir;

/* Collective. Creates the folder (with parents) if needed, takes the lock (fcntl on RUN/lock holding
 * host, pid, job id and a heartbeat time; a second job on the same folder is refused with the holder's
 * data), opens run.log (sk_log_file) and metrics.jsonl for appending (a torn last line from a killed
 * run is cut off). An unwritable folder is SK_FAILED with its name.
 * The system drops the lock of a process that has died, wherever it ran; what such a process left in the
 * file does not matter. Where the file system has no locks, a heartbeat younger than 10 minutes refuses,
 * unless it comes from this host and its process is gone. */
int sk_run_open(MPI_Comm comm, const char *dir, sk_run_dir **r, sk_err *e);
/* Releases the lock, closes files. NULL is fine. */
void sk_run_close(sk_run_dir *r);
const char *sk_run_path(const sk_run_dir *r);

/* Writes text to RUN/name by a temporary file and rename. The error is rank 0's: agree on it. */
int sk_run_write(sk_run_dir *r, const char *name, const char *text, sk_err *e);

/* status.json: state is "running", "incomplete", "complete" or "failed"; checkpoint and message may be ""
 * or NULL. Also refreshes the lock's heartbeat. A call that changes nothing but the step is passed over
 * when the last write is less than half a second ago. A failure to write is a warning. */
void sk_run_status(sk_run_dir *r, const char *state, int64_t step, int64_t steps, const char *checkpoint,
                   const char *message);

/* Collective. Also writes event files for TensorBoard from now on. */
int sk_run_tensorboard(sk_run_dir *r, MPI_Comm comm, sk_err *e);

/* One metrics object: sk_metric_begin, any number of fields, sk_metric_end (writes the line at once, whole
 * or not at all; a failure is a warning). Doubles as %.17g; NaN and infinities as null. */
void sk_metric_begin(sk_run_dir *r);
void sk_metric_str(sk_run_dir *r, const char *key, const char *value);
void sk_metric_int(sk_run_dir *r, const char *key, int64_t value);
void sk_metric_num(sk_run_dir *r, const char *key, double value);
void sk_metric_ints(sk_run_dir *r, const char *key, const int64_t *value, int n);
void sk_metric_end(sk_run_dir *r);

/* Draws RUN/loss.png (training loss, smoothed, and validation loss against steps, learning rate below;
 * restarts marked) from metrics.jsonl with gnuplot; returns false quietly when gnuplot is absent or there
 * is nothing to draw, and on the ranks other than 0. Of steps that appear again after a restart the last
 * counts. Fields read: step, loss, lr; with "event": "eval": step, valid_loss; "restart": step. */
bool sk_run_plot(sk_run_dir *r);
#endif
