/* train.h: `saker train`. */
#ifndef SK_TRAIN_H
#define SK_TRAIN_H
#include "io/ckpt.h"
#include "io/run.h"
#include "src/data.h"
#include "src/engine.h"
#include "src/trace.h"
#include "src/watch.h"

/* What a rank tells all others in every step: loss, wish to stop, seconds of its own work, hash of its weights. */
enum { SK_TRAIN_EXCHANGED = 4 };

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
  sk_ckpt_meta meta;         /* run id, step, tokens, cursor: the state besides the weights */
  int64_t local;             /* sequences of this rank per step */
  int32_t *ids, *label, *start; /* [local * T] of the current step, on the host */
  double *per_rank;          /* [ranks * SK_TRAIN_EXCHANGED] of the latest step */
  sk_watch *watch;           /* NULL: no watchdog */
  sk_trace trace;
  double *busy, busy_since;  /* [ranks] seconds of own work in the present window; own sum at the last exchange */
  int busy_steps, straggler; /* steps of the window; the rank reported last, -1: none */
  int64_t replicas_good;     /* latest step whose weights were compared and agreed */
  double t0, step_seconds, save_seconds; /* start; latest durations, for --max-time */
  int64_t saved_step;        /* step of the latest checkpoint */
  char saved_path[1024];
  int failed_saves;          /* in a row */
} sk_train;

/* Collective over comm. The whole verb; returns the exit code with e filled in on failure. */
int sk_train_run(MPI_Comm comm, const sk_train_opts *opts, sk_err *e);

/* Collective (train_setup.c). Reads the deck, finds the grid, opens the run folder, data and engine,
 * initialises or restarts. With --check or --dry-run it only reports, and *done is set. */
int sk_train_open(MPI_Comm comm, const sk_train_opts *opts, sk_train *t, bool *done, sk_err *e);
void sk_train_close(sk_train *t);

/* Collective (train_save.c). Writes a checkpoint of the current state; a failure is reported and counted,
 * and becomes an error the third time in a row or when `last` says that there is no next time. */
int sk_train_save(sk_train *t, bool last, sk_err *e);

/* Collective (train_eval.c). Mean loss over the validation windows; reported and written to the metrics. */
int sk_train_eval(sk_train *t, sk_err *e);

/* train_watch.c. The hash of this rank's weights, 0 in steps without a comparison (watch.replicas); before the update. */
double sk_train_weights_hash(sk_train *t, int64_t step);
/* Collective. Compares the hashes in per_rank: weights that should be the same and are not are an error that names
 * the ranks. */
int sk_train_check_replicas(sk_train *t, int64_t step, sk_err *e);
/* Counts the ranks' work in per_rank; warns of a slow rank now and then. */
void sk_train_count_busy(sk_train *t, int64_t step);

/* Sums x over the ranks of comm in rank order: the same bits on every rank. Collective. */
double sk_sum_ranks(MPI_Comm comm, double x);
#endif
