#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/watch.h"
#include "io/fsutil.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { POLL_MS = 250, HOST_CAP = 64, REPORT_CAP = 1 << 16, LISTED = 16 };
static const double GRACE = 20, OWN_PAUSE = 2, ACT = 0.75; /* s, s, share of a limit */
static const double MOMENT = 0.6; /* s: two polls and a bit */

/* One rank's, in the memory that its node shares. Written by its own process only. */
typedef struct slot {
  sk_beat beat;           /* main thread */
  _Atomic int64_t step;   /* main thread; 0: outside of the steps */
  _Atomic double seconds; /* main thread: of a step, 0: not known yet */
  _Atomic uint64_t first, beats; /* main thread: beats when this step began, and of the step before */
  _Atomic uint64_t tick;  /* watching thread */
  int rank;
} slot;

/* What this process has seen of a rank, by its own clock. */
typedef struct seen {
  uint64_t beats, ticks;
  double beat_at, tick_at;
} seen;

struct sk_watch {
  MPI_Comm world; /* not owned */
  MPI_Win win;
  slot **at; /* [n] the node's, in rank order */
  seen *seen;
  int n, me, size, rank;
  int *node;               /* [size] the lowest rank on each rank's node: the node's name */
  char (*host)[HOST_CAP];  /* [size] */
  char *dir, *log;         /* RUN/stall, RUN/run.log */
  double step, other;      /* limits, seconds */
  double stalled_at;       /* since when the whole node waits; 0: it does not */
  bool may_abort;          /* MPI lets a second thread call MPI_Abort */
  sk_timer *timer;
  pthread_t thread;
  _Atomic bool over;
};

/* ---- what a rank may do for how long ---- */

static bool waits(int section) {
  switch (section) {
  case SK_T_TP:
  case SK_T_CP:
  case SK_T_PP:
  case SK_T_REDUCE:
  case SK_T_GATHER:
  case SK_T_WAIT: return true;
  default: return false;
  }
}

static bool on_files(int section) {
  return section == SK_T_DATA || section == SK_T_METRICS || section == SK_T_EVAL || section == SK_T_CHECKPOINT;
}

/* Of a process that no longer runs, wherever it is. */
static double limit_frozen(const sk_watch *w, const slot *s) {
  double three = 3 * atomic_load(&s->seconds);
  return three > w->step ? three : w->step;
}

static double limit(const sk_watch *w, const slot *s) {
  bool known = atomic_load(&s->step) > 0 && atomic_load(&s->seconds) > 0;
  return known && !on_files(atomic_load(&s->beat.section)) ? limit_frozen(w, s) : w->other;
}

static const char *phase(const slot *s) {
  int section = atomic_load(&s->beat.section);
  return section == SK_T_OTHER && atomic_load(&s->step) == 0 ? "start or end" : sk_timer_label(section);
}

/* ---- ending the job ---- */

/* One line to stderr and to RUN/run.log; then the job is over. */
static void end_job(sk_watch *w, const char *text) SK_NORETURN;
static void end_job(sk_watch *w, const char *text) {
  char *line = sk_strf("saker: watchdog on rank %d: %s\n", w->rank, text);
  signal(SIGALRM, SIG_DFL); /* should anything below hang, the process ends all the same, and with it the job */
  alarm(2);
  size_t n = strlen(line);
  if (write(STDERR_FILENO, line, n) < 0) n = strlen(line); // nowhere to complain
  int log = open(w->log, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (log >= 0 && write(log, line, n) >= 0) close(log);
  if (w->may_abort) MPI_Abort(MPI_COMM_WORLD, SK_FAILED);
  _exit(SK_FAILED);
}

/* "rank 3 on host n2: ..."; the rest of the node's ranks as context. */
static void blame(sk_watch *w, int i, const char *what, double since) {
  char text[2048];
  const slot *s = w->at[i];
  int at = snprintf(text, sizeof text, "rank %d on host %s %s for %.1f s: phase \"%s\", step %lld. The job is ended.",
                    s->rank, w->host[s->rank], what, since, phase(s), (long long)atomic_load(&s->step));
  for (int k = 0; k < w->n && k < LISTED && at < (int)sizeof text; k++)
    if (k != i)
      at += snprintf(text + at, sizeof text - (size_t)at, "\n  rank %d: \"%s\", step %lld, for %.1f s", w->at[k]->rank,
                     phase(w->at[k]), (long long)atomic_load(&w->at[k]->step), sk_now() - w->seen[k].beat_at);
  end_job(w, text);
}

/* ---- a node that waits for others: files in RUN/stall ---- */

static char *report_path(const sk_watch *w, int node) { return sk_strf("%s/node-%d", w->dir, node); }

/* One line per rank: rank, step, beats, whether it waits, phase. */
static void write_report(const sk_watch *w) {
  char *text = sk_malloc(REPORT_CAP), *path = report_path(w, w->node[w->rank]);
  int at = 0;
  for (int i = 0; i < w->n && at < REPORT_CAP - 256; i++)
    at += snprintf(text + at, REPORT_CAP - (size_t)at, "%d %lld %llu %d %s\n", w->at[i]->rank,
                   (long long)atomic_load(&w->at[i]->step), (unsigned long long)atomic_load(&w->at[i]->beat.count),
                   waits(atomic_load(&w->at[i]->beat.section)), phase(w->at[i]));
  sk_err e = {0};
  if (mkdir(w->dir, 0777) == 0 || errno == EEXIST) sk_fs_write(path, text, (size_t)at, false, &e);
  sk_free(text);
  sk_free(path);
}

/* What the reports of all nodes say. */
typedef struct verdict {
  int silent;        /* a node without a report, -1: none */
  int worker;        /* a rank that does not wait, -1: all do */
  int behind;        /* the rank furthest behind */
  long long step;    /* its step */
  char phase[64];    /* its phase */
} verdict;

static void read_report(const char *path, verdict *v) {
  FILE *f = fopen(path, "r");
  char line[256], where[64];
  while (f && fgets(line, sizeof line, f)) {
    int rank, waiting;
    long long step;
    unsigned long long beats;
    if (sscanf(line, "%d %lld %llu %d %63[^\n]", &rank, &step, &beats, &waiting, where) != 5) continue;
    if (!waiting) v->worker = rank;
    if (v->behind >= 0 && step >= v->step) continue;
    v->behind = rank;
    v->step = step;
    memcpy(v->phase, where, sizeof where);
  }
  if (f) fclose(f);
}

static verdict read_reports(const sk_watch *w) {
  verdict v = {.silent = -1, .worker = -1, .behind = -1};
  for (int r = 0; r < w->size; r++) {
    if (w->node[r] != r) continue;
    char *path = report_path(w, r);
    if (access(path, R_OK) != 0) v.silent = r;
    else read_report(path, &v);
    sk_free(path);
  }
  return v;
}

/* All of this node has waited for longer than its limit. Other nodes may know who does not. */
static void consult(sk_watch *w, double now) {
  bool first = w->stalled_at == 0;
  if (first) w->stalled_at = now;
  alarm((unsigned)(2 * GRACE)); /* the run folder's disk may hang as well: then the process ends by SIGALRM */
  if (first) write_report(w);
  verdict v = read_reports(w);
  alarm(0);
  char text[512];
  if (v.silent >= 0 && now - w->stalled_at > GRACE) {
    snprintf(text, sizeof text, "host %s (from rank %d on) says nothing, and all ranks of this host wait for others. "
             "The job is ended.", w->host[v.silent], v.silent);
    end_job(w, text);
  }
  if (v.silent >= 0 || v.worker >= 0) return;
  snprintf(text, sizeof text, "all ranks wait for each other; rank %d on host %s is furthest behind: phase \"%s\", "
           "step %lld. The job is ended.", v.behind, w->host[v.behind], v.phase, v.step);
  end_job(w, text);
}

/* ---- the thread ---- */

static void look(sk_watch *w, double now, bool forgive) {
  for (int i = 0; i < w->n; i++) {
    uint64_t beats = atomic_load(&w->at[i]->beat.count), ticks = atomic_load(&w->at[i]->tick);
    if (beats != w->seen[i].beats || forgive) w->seen[i].beat_at = now;
    if (ticks != w->seen[i].ticks || forgive) w->seen[i].tick_at = now;
    w->seen[i].beats = beats;
    w->seen[i].ticks = ticks;
  }
}

/* How far a rank has come: step and part of it. Ranks of different stages have different beats in a step. */
static double progress(const slot *s) {
  double all = (double)atomic_load(&s->beats), now = (double)(atomic_load(&s->beat.count) - atomic_load(&s->first));
  return (double)atomic_load(&s->step) + (all > 0 ? now / (all + now) : 0);
}

/* Where a GPU's exchange hangs, all hosts soon stand in computing sections, within the same moment: among those the one
 * that has come least far is to blame, else the one that has stood still the longest. */
static int whom_to_blame(const sk_watch *w, double now) {
  int stuck = -1;
  for (int i = 0; i < w->n; i++) {
    const slot *s = w->at[i];
    double quiet = now - w->seen[i].beat_at, most = ACT * limit(w, s);
    if (waits(atomic_load(&s->beat.section)) || quiet <= most - MOMENT) continue;
    double apart = stuck < 0 ? -2 * MOMENT : w->seen[i].beat_at - w->seen[stuck].beat_at;
    if (fabs(apart) > MOMENT ? apart < 0 : progress(s) < progress(w->at[stuck])) stuck = i;
  }
  return stuck;
}

static void judge(sk_watch *w, double now) {
  int frozen = -1, first = -1;
  bool stuck = false;
  bool all_wait = true;
  for (int i = 0; i < w->n; i++) {
    const slot *s = w->at[i];
    bool asleep = now - w->seen[i].tick_at > ACT * limit_frozen(w, s);
    if (asleep) frozen = i;
    else if (first < 0) first = i;
    double quiet = now - w->seen[i].beat_at;
    bool waiting = waits(atomic_load(&s->beat.section));
    stuck |= !waiting && quiet > ACT * limit(w, s);
    all_wait &= waiting && quiet > ACT * limit(w, s);
  }
  if (first != w->me) return; /* the node's first living rank speaks */
  if (frozen >= 0) blame(w, frozen, "does not run", now - w->seen[frozen].tick_at);
  if (stuck) {
    int i = whom_to_blame(w, now);
    blame(w, i, "makes no progress", now - w->seen[i].beat_at);
  }
  if (all_wait) consult(w, now);
  else if (w->stalled_at > 0) {
    char *path = report_path(w, w->node[w->rank]);
    w->stalled_at = 0;
    unlink(path);
    sk_free(path);
  }
}

static void *watch(void *arg) {
  sk_watch *w = arg;
  double last = sk_now();
  look(w, last, true);
  while (!atomic_load(&w->over)) {
    usleep(POLL_MS * 1000);
    atomic_fetch_add(&w->at[w->me]->tick, 1);
    double now = sk_now();
    look(w, now, now - last > OWN_PAUSE); /* I was stopped myself, perhaps with all others: count anew */
    last = now;
    judge(w, now);
  }
  return NULL;
}

/* ---- starting and stopping ---- */

static void share_memory(sk_watch *w, MPI_Comm node) {
  slot *mine;
  SK_MPI(MPI_Win_allocate_shared((MPI_Aint)sizeof *mine, 1, MPI_INFO_NULL, node, &mine, &w->win));
  *mine = (slot){.rank = w->rank};
  SK_MPI(MPI_Barrier(node)); /* all slots are initialised */
  w->at = sk_calloc((size_t)w->n, sizeof *w->at);
  for (int i = 0; i < w->n; i++) {
    MPI_Aint bytes;
    int unit;
    SK_MPI(MPI_Win_shared_query(w->win, i, &bytes, &unit, &w->at[i]));
  }
}

void sk_watch_start(const sk_grid *grid, const char *run_dir, double step, double other, sk_timer *t,
                    sk_watch **out) {
  int level, first = grid->rank;
  MPI_Comm node;
  *out = NULL;
  if (!(step > 0)) return;
  sk_watch *w = sk_calloc(1, sizeof *w);
  *w = (sk_watch){.world = grid->world, .size = grid->size, .rank = grid->rank, .step = step, .other = other > 0 ? other : 1e300, .timer = t};
  SK_MPI(MPI_Query_thread(&level));
  w->may_abort = level == MPI_THREAD_MULTIPLE;
  w->dir = sk_strf("%s/stall", run_dir);
  w->log = sk_strf("%s/run.log", run_dir);
  if (w->rank == 0) sk_fs_remove(w->dir); /* of an earlier job */
  SK_MPI(MPI_Comm_split_type(grid->world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
  SK_MPI(MPI_Comm_rank(node, &w->me));
  SK_MPI(MPI_Comm_size(node, &w->n));
  share_memory(w, node);
  SK_MPI(MPI_Bcast(&first, 1, MPI_INT, 0, node));
  SK_MPI(MPI_Comm_free(&node));
  w->node = sk_calloc((size_t)w->size, sizeof *w->node);
  w->host = sk_calloc((size_t)w->size, sizeof *w->host);
  w->seen = sk_calloc((size_t)w->n, sizeof *w->seen);
  char host[HOST_CAP] = "";
  snprintf(host, sizeof host, "%s", sk_host());
  SK_MPI(MPI_Allgather(&first, 1, MPI_INT, w->node, 1, MPI_INT, grid->world));
  SK_MPI(MPI_Allgather(host, HOST_CAP, MPI_CHAR, w->host, HOST_CAP, MPI_CHAR, grid->world));
  t->beat = &w->at[w->me]->beat;
  sigset_t all, old; /* signals are the main thread's */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  int rc = pthread_create(&w->thread, NULL, watch, w);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  SK_CHECK(rc == 0, "the watchdog's thread cannot be started: %s", strerror(rc));
  *out = w;
}

void sk_watch_step(sk_watch *w, int64_t step, double seconds) {
  if (!w) return;
  slot *s = w->at[w->me];
  uint64_t count = atomic_load(&s->beat.count);
  if (atomic_load(&s->step) > 0) atomic_store(&s->beats, count - atomic_load(&s->first));
  atomic_store(&s->first, count);
  atomic_store(&s->step, step);
  atomic_store(&s->seconds, seconds);
  atomic_fetch_add(&s->beat.count, 1);
}

void sk_watch_stop(sk_watch *w) {
  if (!w) return;
  /* No thread ends while another still expects its tick, and the memory goes last. */
  sk_watch_step(w, 0, 0);
  SK_MPI(MPI_Barrier(w->world));
  atomic_store(&w->over, true);
  pthread_join(w->thread, NULL);
  w->timer->beat = NULL;
  SK_MPI(MPI_Win_free(&w->win)); /* collective over the node: nobody is past this while another still looks */
  sk_free(w->at);
  sk_free(w->seen);
  sk_free(w->node);
  sk_free(w->host);
  sk_free(w->dir);
  sk_free(w->log);
  sk_free(w);
}

const char *sk_watch_host(const sk_watch *w, int rank) { return w ? w->host[rank] : "?"; }
