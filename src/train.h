/* train.h: `saker train`. */
#ifndef SK_TRAIN_H
#define SK_TRAIN_H
#include "io/ckpt.h"
#include "io/run.h"
#include "src/checkpoint.h"
#include "src/data.h"
#include "src/engine.h"
#include "src/stop.h"
#include "src/trace.h"
#include "src/watch.h"

/* What a rank tells all others in every step: loss, wish to stop, whether its part of a save is done, seconds of its
 * own work, hash of its weights. */
enum { SK_SAYS_LOSS, SK_SAYS_STOP, SK_SAYS_IDLE, SK_SAYS_BUSY, SK_SAYS_HASH, SK_TRAIN_EXCHANGED };

typedef struct sk_train_opts {
  const char *deck;
  int n_set;
  char *const *set;
  const char *restart; /* "auto", "none" or a checkpoint folder */
  double max_time;     /* seconds, 0: no limit */
  bool check, dry_run;
  int ranks;           /* for --check and --dry-run; 0: as many as there are */
} sk_train_opts;

typedef struct sk_train {
  const sk_train_opts *opts;
  sk_config cfg;
  sk_grid grid;
  sk_engine engine;
  sk_run_dir *run;
  sk_data *data, *valid;     /* valid: NULL without validation sets */
  sk_timer timer;
  sk_ckpt_meta meta;         /* run id, step, tokens, cursor, recent losses: the state besides the weights */
  int64_t local;             /* sequences of this rank per step */
  int32_t *ids, *label, *start; /* [local * T] of the current step, on the host */
  double *per_rank;          /* [ranks * SK_TRAIN_EXCHANGED] of the latest step */
  sk_watch *watch;           /* NULL: no watchdog */
  sk_trace trace;
  double *busy, busy_since;  /* [ranks] seconds of own work in the present window; own sum at the last exchange */
  int busy_steps, straggler; /* steps of the window; the rank reported last, -1: none */
  int64_t replicas_good;     /* latest step whose weights were compared and agreed */
  sk_stop stop;
  double t0, step_seconds, save_seconds, eval_seconds; /* start; latest durations (before: guesses), for the time limits */
  bool async;                /* saves go on behind training */
  sk_saver *saver;           /* NULL: made for each save */
  sk_ckpt_job *job;          /* the save in progress, or NULL */
  int64_t job_step;          /* of it */
  double stall, waited;      /* seconds that training stood still for it: copying; for the save before */
  int64_t saved_step;        /* step of the latest checkpoint */
  char saved_path[1024];
  int failed_saves;          /* in a row */
  int64_t bad_step;          /* furthest step that was rolled back */
  int rollbacks;             /* since training got past it */
} sk_train;

/* A step before its update, the same on every rank. */
typedef struct sk_step_result {
  double loss, norm, lr;
  int bad;          /* parameter with a gradient that is not finite, or -1 */
  sk_stop_why stop; /* some rank wants to stop */
  bool idle;        /* no rank's thread is busy with a save */
} sk_step_result;

/* Collective (train.c). Gradients of the next step's batch, each rank its slice. Changes nothing but them. */
int sk_train_gradients(sk_train *t, sk_step_result *r, sk_err *e);

/* train_trouble.c. Loss or gradient are not finite, or the loss is a spike (train.spike). */
bool sk_train_trouble(const sk_train *t, const sk_step_result *r);
/* Collective. What train.on_nan asks for: SK_STEP_GO: update with *r, which may be another one now; SK_STEP_SKIP: the step is
 * left out; SK_STEP_BACK: the state is that of a checkpoint. */
typedef enum sk_step_fate { SK_STEP_GO, SK_STEP_SKIP, SK_STEP_BACK } sk_step_fate;
int sk_train_handle(sk_train *t, int64_t step, sk_step_result *r, sk_step_fate *fate, sk_err *e);
/* The loss of an update, for those to come. */
void sk_train_remember(sk_train *t, double loss);

/* Collective over comm. The whole verb; returns the exit code with e filled in on failure. */
int sk_train_run(MPI_Comm comm, const sk_train_opts *opts, sk_err *e);

/* Collective (train_setup.c). Reads the deck, finds the grid, opens the run folder, data and engine,
 * initialises or restarts. With --check or --dry-run it only reports, and *done is set. */
int sk_train_open(MPI_Comm comm, const sk_train_opts *opts, sk_train *t, bool *done, sk_err *e);
void sk_train_close(sk_train *t);

/* train_save.c. Saves of the current state. A failure is reported and counted, and becomes an error the third time in
 * a row or when `last` says that there is no next time. All collective.
 * sk_train_saver: host memory and files' form for saving behind training. sk_train_save: begins a save, after waiting
 * for the one before; waits for it with `last` or checkpoint.async: false. sk_train_save_on: moves a save along when
 * no rank is busy with it. sk_train_save_end: waits for a save in progress; its failure is a warning. */
int sk_train_saver(sk_train *t, sk_err *e);
int sk_train_save(sk_train *t, bool last, sk_err *e);
int sk_train_save_on(sk_train *t, bool idle, sk_err *e);
void sk_train_save_end(sk_train *t);

/* Collective (train_eval.c). Mean loss over the validation windows; reported and written to the metrics. */
int sk_train_eval(sk_train *t, sk_err *e);

/* train_watch.c. The hash of this rank's weights, 0 in steps without a comparison (watch.replicas); before the update. */
double sk_train_weights_hash(sk_train *t);
/* Collective. Compares the hashes in per_rank: weights that should be the same and are not are an error that names
 * the ranks. */
int sk_train_check_replicas(sk_train *t, sk_err *e);
/* Counts the ranks' work in per_rank; warns of a slow rank now and then. */
void sk_train_count_busy(sk_train *t);

/* Sums x over the ranks of comm in rank order: the same bits on every rank. Collective. */
double sk_sum_ranks(MPI_Comm comm, double x);
#endif
