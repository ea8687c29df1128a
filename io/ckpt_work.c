/* ckpt_work.c: the threads that save. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt_job.h"
#include <dirent.h>
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* By Open MPI 4 of its own accord, as it does with one or two ranks of a node, to a core each. */
static bool bound_unasked(void) {
  static const char *const asked[] = {
    "OMPI_MCA_hwloc_base_binding_policy", "OMPI_MCA_hwloc_base_cpu_list",   "OMPI_MCA_hwloc_base_cpu_set",
    "OMPI_MCA_rmaps_base_mapping_policy", "OMPI_MCA_rmaps_base_cpus_per_rank", "OMPI_MCA_orte_rankfile"};
  const char *bound = getenv("OMPI_MCA_orte_bound_at_launch");
  for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
    if (getenv(asked[i])) return false;
  return bound && strcmp(bound, "1") == 0;
}

/* Cores of all threads of the process: a new thread starts on those of the one that made it, which OpenMP may have
 * bound to a single one. Where it binds, its places tell of the cores that it gave to none. What mpirun may use counts
 * too where it bound this rank unasked. */
static void all_cores(cpu_set_t *all) {
  cpu_set_t one;
  DIR *d = opendir("/proc/self/task");
  CPU_ZERO(all);
  if (bound_unasked() && sched_getaffinity(getppid(), sizeof one, &one) == 0) CPU_OR(all, all, &one);
  for (int i = 0, n = omp_get_num_places(); i < n; i++) {
    int count = omp_get_place_num_procs(i), *id = sk_calloc((size_t)count, sizeof *id);
    omp_get_place_proc_ids(i, id);
    for (int k = 0; k < count; k++)
      if (id[k] >= 0 && id[k] < CPU_SETSIZE) CPU_SET(id[k], all);
    sk_free(id);
  }
  for (struct dirent *x; d && (x = readdir(d)) != NULL;) {
    int tid = atoi(x->d_name);
    if (tid > 0 && sched_getaffinity(tid, sizeof one, &one) == 0) CPU_OR(all, all, &one);
  }
  if (d) closedir(d);
}

int sk_ckpt_cores(void) {
  cpu_set_t all;
  all_cores(&all);
  return CPU_COUNT(&all);
}

void sk_ckpt_widen(void) {
  cpu_set_t all;
  all_cores(&all);
  if (CPU_COUNT(&all) > 0) sched_setaffinity(0, sizeof all, &all); // only for speed
}

/* On Linux this is the thread's own niceness, not the process's. At 5 it has a quarter of a core that another thread
 * wants all the time: not to starve, until the scheduler moves it to one of those left. */
void sk_ckpt_give_way(void) { setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + 5); }

/* Of what a rank's threads compute, for those that write beside them where no core is left. */
static const double write_share = 1.0 / 30;

static int between(int low, int n, int high) { return n < low ? low : n < high ? n : high; }

sk_ckpt_threads sk_ckpt_threads_of(int cores, int ranks, int busy) {
  const int left = cores - busy;
  return (sk_ckpt_threads){.workers = between(2, between(1, left, cores / 4) / ranks, SK_CKPT_WORKERS),
                           .give_way = busy && left >= 2, .crowded = busy && left < between(1, cores / 8, cores), .share = 1};
}

sk_ckpt_threads sk_ckpt_threads_beside(MPI_Comm comm, int own) {
  MPI_Comm node;
  cpu_set_t all;
  int ranks, busy = own;
  SK_MPI(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
  SK_MPI(MPI_Comm_size(node, &ranks));
  all_cores(&all);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &all, sizeof all, MPI_BYTE, MPI_BOR, node));
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &busy, 1, MPI_INT, MPI_SUM, node));
  SK_MPI(MPI_Comm_free(&node));
  sk_ckpt_threads t = sk_ckpt_threads_of(CPU_COUNT(&all), ranks, busy);
  if (t.crowded) t.share = fmin(1, write_share * own / t.workers);
  return t;
}

double sk_ckpt_cpu_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seldom and long: every sleep and waking interrupts somebody who computes. */
void sk_ckpt_rest(double share, double cpu, double wall, const atomic_bool *behind) {
  const double least = 0.02, most = 0.05, until = sk_now() + cpu / share - wall;
  if (until - sk_now() < least) return;
  for (double left; atomic_load(behind) && (left = until - sk_now()) > 0;) usleep((useconds_t)(1e6 * fmin(left, most)));
}

bool sk_ckpt_thread(pthread_t *thread, void *(*run)(void *), void *arg) {
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  bool there = pthread_create(thread, NULL, run, arg) == 0;
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return there;
}

typedef struct worker {
  struct work *of;
  pthread_t thread;
  bool threaded;
  int failed; /* i */
  sk_err err;
} worker;

typedef struct work {
  void (*one)(void *, int, int, sk_err *);
  void *arg;
  int n;
  atomic_int next;
  atomic_bool stop;
  worker worker[SK_CKPT_WORKERS];
} work;

static void *work_on(void *arg) {
  worker *w = arg;
  work *s = w->of;
  while (!w->err.code && !atomic_load(&s->stop)) {
    int i = atomic_fetch_add(&s->next, 1);
    if (i >= s->n) break;
    s->one(s->arg, (int)(w - s->worker), i, &w->err);
    w->failed = i;
    if (w->err.code) atomic_store(&s->stop, true);
  }
  return NULL;
}

int sk_ckpt_each(int n, int workers, void (*one)(void *, int, int, sk_err *), void *arg, sk_err *e) {
  int threads = n < workers ? n : workers, worst = -1;
  work *s = sk_calloc(1, sizeof *s);
  *s = (work){.one = one, .arg = arg, .n = n};
  for (int i = 0; i < threads; i++) s->worker[i].of = s;
  for (int i = 1; i < threads; i++) s->worker[i].threaded = sk_ckpt_thread(&s->worker[i].thread, work_on, &s->worker[i]);
  if (threads > 0) work_on(&s->worker[0]);
  for (int i = 0; i < threads; i++) {
    worker *w = &s->worker[i];
    if (w->threaded) pthread_join(w->thread, NULL);
    if (w->err.code && (worst < 0 || w->failed < s->worker[worst].failed)) worst = i;
  }
  if (worst >= 0) sk_fail(e, s->worker[worst].err.code, "%s", s->worker[worst].err.msg);
  sk_free(s);
  return e->code;
}
