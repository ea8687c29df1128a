#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/placement.h"
#include "io/ckpt.h"
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORDS = SK_MAX_CORES / 64, SMT = 8 }; // SMT: most hardware threads of one core

// ---- this rank ----

// -1 where the kernel does not say.
static int topology(int core, const char *what) {
  char path[128];
  int id = -1;
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", core, what);
  FILE *f = fopen(path, "r");
  if (!f) return -1;
  if (fscanf(f, "%d", &id) != 1) id = -1;
  fclose(f);
  return id;
}

static int members(const uint64_t *set, int *core) {
  int n = 0;
  for (int c = 0; c < SK_MAX_CORES; c++)
    if (set[c / 64] >> c % 64 & 1) core[n++] = c;
  return n;
}

static int count(const uint64_t *set) {
  int n = 0;
  for (int i = 0; i < WORDS; i++) n += __builtin_popcountll(set[i]);
  return n;
}

// One core, or hardware threads of one: their package and core numbers are the same.
static bool single_core(const uint64_t *set) {
  int n = count(set), core[SMT];
  if (n <= 1 || n > SMT) return n == 1;
  members(set, core);
  const int id = topology(core[0], "core_id");
  const int package = topology(core[0], "physical_package_id");
  for (int i = 1; i < n; i++)
    if (topology(core[i], "core_id") != id || topology(core[i], "physical_package_id") != package)
      return false;
  return id >= 0 && package >= 0;
}

static void add_cores(uint64_t *set) {
  static cpu_set_t now[SK_MAX_CORES / CPU_SETSIZE];
  memset(now, 0, sizeof now);
  if (sched_getaffinity(0, sizeof now, now) != 0) return;
  for (int c = 0; c < SK_MAX_CORES; c++)
    if (CPU_ISSET_S((size_t)c, sizeof now, now)) set[c / 64] |= (uint64_t)1 << c % 64;
}

// All threads are asked: OMP_PROC_BIND ties each, the first one too, to its own cores.
void sk_placement_here(sk_place *p, int gpu) {
  *p = (sk_place){.gpu = gpu};
  snprintf(p->host, sizeof p->host, "%s", sk_host());
#pragma omp parallel
#pragma omp critical
  {
    add_cores(p->cores);
    p->threads++;
  }
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  p->online = online > 0 ? (int)online : 0;
  p->saving = sk_ckpt_cores();
  p->single = single_core(p->cores);
}

// ---- threads ----

int sk_placement_share(int cores, int ranks, int own) {
  int share = cores / ranks < own ? cores / ranks : own;
  return share < 1 ? 1 : share - share / 8;
}

void sk_placement_threads(MPI_Comm comm) {
  static const char *const said[] = {"OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY"};
  MPI_Comm node;
  uint64_t cores[WORDS] = {0};
  int ranks, own;
  bool chosen = false;
  add_cores(cores);
  own = count(cores);
  SK_MPI(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
  SK_MPI(MPI_Comm_size(node, &ranks));
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, cores, WORDS, MPI_UINT64_T, MPI_BOR, node));
  SK_MPI(MPI_Comm_free(&node));
  for (size_t i = 0; i < sizeof said / sizeof *said; i++) chosen = chosen || getenv(said[i]);
  if (!chosen) omp_set_num_threads(sk_placement_share(count(cores), ranks, own));
}

// ---- text ----

char *sk_placement_list(const int *number, int n) {
  char *text = sk_malloc((size_t)n * 12 + 2), *end = text; // an int and its separator: 12 at most
  for (int i = 0; i < n;) {
    const int step = i + 1 < n ? number[i + 1] - number[i] : 1;
    int j = i;
    while (j + 1 < n && number[j + 1] - number[j] == step) j++;
    if (step > 1 && j < i + 2) j = i; // two apart are no run
    if (i > 0) *end++ = ',';
    end += sprintf(end, "%d", number[i]);
    if (j > i) end += sprintf(end, "-%d", number[j]);
    if (j > i && step > 1) end += sprintf(end, ":%d", step);
    i = j + 1;
  }
  strcpy(end, n > 0 ? "" : "-");
  return text;
}

static char *core_list(const uint64_t *set) {
  int n = count(set), *core = sk_malloc((size_t)n * sizeof *core);
  members(set, core);
  char *text = sk_placement_list(core, n);
  sk_free(core);
  return text;
}

// The first rank of every rank's host.
static int *host_firsts(const sk_place *p, int n) {
  int *first = sk_malloc((size_t)n * sizeof *first);
  for (int i = 0; i < n; i++) {
    first[i] = i;
    if (i > 0 && strcmp(p[i].host, p[i - 1].host) == 0) {
      first[i] = first[i - 1];
      continue;
    }
    for (int j = 0; j < i; j++)
      if (first[j] == j && strcmp(p[i].host, p[j].host) == 0) {
        first[i] = j;
        break;
      }
  }
  return first;
}

// All ranks of one host together.
typedef struct host {
  int *rank, ranks; // [ranks]
  int *gpu, gpus;   // different ones, ascending
  int threads, fewest, most;
  uint64_t cores[WORDS];
} host;

static void host_add_gpu(host *h, int gpu) {
  int at = 0;
  while (at < h->gpus && h->gpu[at] < gpu) at++;
  if (gpu < 0 || (at < h->gpus && h->gpu[at] == gpu)) return;
  memmove(h->gpu + at + 1, h->gpu + at, (size_t)(h->gpus - at) * sizeof *h->gpu);
  h->gpu[at] = gpu;
  h->gpus++;
}

static void host_create(host *h, const sk_place *p, int n, const int *first, int at) {
  *h = (host){.fewest = p[at].threads};
  h->rank = sk_malloc((size_t)(n - at) * sizeof *h->rank);
  h->gpu = sk_malloc((size_t)(n - at) * sizeof *h->gpu);
  for (int i = at; i < n; i++) {
    if (first[i] != at) continue;
    h->rank[h->ranks++] = i;
    host_add_gpu(h, p[i].gpu);
    h->threads += p[i].threads;
    if (p[i].threads < h->fewest) h->fewest = p[i].threads;
    if (p[i].threads > h->most) h->most = p[i].threads;
    for (int w = 0; w < WORDS; w++) h->cores[w] |= p[i].cores[w];
  }
}

static void host_free(host *h) {
  sk_free(h->rank);
  sk_free(h->gpu);
}

static void print_ranks(FILE *f, const sk_place *p, int n) {
  int width = 4;
  for (int i = 0; i < n; i++)
    if ((int)strlen(p[i].host) > width) width = (int)strlen(p[i].host);
  fprintf(f, "Rank   pp  dp  cp  tp  threads  GPU  %-*s  cores\n", width, "host");
  for (int i = 0; i < n; i++) {
    const int *at = p[i].at;
    char gpu[16] = "-", *cores = core_list(p[i].cores);
    if (p[i].gpu >= 0) snprintf(gpu, sizeof gpu, "%d", p[i].gpu);
    fprintf(f, "%4d  %3d %3d %3d %3d  %7d  %3s  %-*s  %s\n", i, at[SK_PP], at[SK_DP], at[SK_CP],
            at[SK_TP], p[i].threads, gpu, width, p[i].host, cores);
    sk_free(cores);
  }
}

static void print_host(FILE *f, const sk_place *p, const host *h) {
  char *ranks = sk_placement_list(h->rank, h->ranks), *cores = core_list(h->cores);
  char *gpus = sk_placement_list(h->gpu, h->gpus);
  fprintf(f, "%s: ranks %s, %d", p[h->rank[0]].host, ranks, h->fewest);
  if (h->most > h->fewest) fprintf(f, "-%d", h->most);
  fprintf(f, " thread%s each, cores %s", h->most == 1 ? "" : "s", cores);
  if (h->gpus > 0) fprintf(f, ", GPUs %s", gpus);
  fputc('\n', f);
  sk_free(ranks);
  sk_free(cores);
  sk_free(gpus);
}

static void print_hosts(FILE *f, const sk_place *p, int n) {
  int *first = host_firsts(p, n);
  for (int i = 0; i < n; i++) {
    if (first[i] != i) continue;
    host h;
    host_create(&h, p, n, first, i);
    print_host(f, p, &h);
    host_free(&h);
  }
  sk_free(first);
}

char *sk_placement_table(const sk_place *p, int n) {
  char *text = NULL;
  size_t size = 0;
  FILE *f = open_memstream(&text, &size);
  SK_CHECK(f, "out of memory for a table of %d ranks", n);
  if (n <= SK_TABLE_RANKS) {
    print_ranks(f, p, n);
  } else {
    print_hosts(f, p, n);
  }
  SK_CHECK(fclose(f) == 0 && size > 0, "out of memory for a table of %d ranks", n);
  text[size - 1] = 0;
  return text;
}

// ---- advice ----

/* Ranks of one host that are all bound to the same core: the first such group, or NULL. */
static char *on_one_core(const sk_place *p, const host *h) {
  int *same = sk_malloc((size_t)h->ranks * sizeof *same), n = 0;
  for (int i = 0; i < h->ranks && n < 2; i++) {
    const sk_place *a = &p[h->rank[i]];
    if (!a->single || count(a->cores) >= a->online) continue; // not bound: the host has no other
    n = 0;
    for (int j = i; j < h->ranks; j++)
      if (memcmp(a->cores, p[h->rank[j]].cores, sizeof a->cores) == 0) same[n++] = h->rank[j];
  }
  char *text = NULL;
  if (n >= 2) {
    const int each = p[same[0]].online / h->ranks;
    char *ranks = sk_placement_list(same, n), *core = core_list(p[same[0]].cores);
    text = sk_strf(
        "ranks %s on %s all share core %s; try mpirun --bind-to core --map-by slot:PE=%d "
        "and OMP_NUM_THREADS=%d",
        ranks, p[same[0]].host, core, each > 1 ? each : 1, each > 1 ? each : 1);
    sk_free(ranks);
    sk_free(core);
  }
  sk_free(same);
  return text;
}

/* More threads than cores. Where the host has more cores than it gives, that is worth a warning. */
static char *too_many_threads(const sk_place *p, const host *h, bool *warn) {
  const int cores = count(h->cores), online = p[h->rank[0]].online;
  const int each = cores / h->ranks > 1 ? cores / h->ranks : 1;
  if (cores == 0 || h->threads <= cores) return NULL;
  *warn = cores < online;
  char *who = sk_strf("%d thread%s of %d rank%s on %s", h->threads, h->threads == 1 ? "" : "s",
                      h->ranks, h->ranks == 1 ? "" : "s", p[h->rank[0]].host);
  static const char *const cure =
      "%s share %d of its %d cores; set OMP_NUM_THREADS=%d or give the ranks more cores (mpirun "
      "--bind-to none, or --map-by slot:PE=N)";
  char *text = *warn ? sk_strf(cure, who, cores, online, each)
                     : sk_strf("%s take turns on its %d core%s", who, cores, cores == 1 ? "" : "s");
  sk_free(who);
  return text;
}

/* Ranks with GPUs, bound to a core each: the threads that save checkpoints share it with the one that starts kernels,
 * unless they may go elsewhere. */
static char *one_core_each(const sk_place *p, const host *h) {
  const sk_place *a = &p[h->rank[0]];
  if (a->gpu < 0 || count(h->cores) == 0 || count(h->cores) > h->ranks || a->online < 2 * h->ranks) return NULL;
  if (a->saving >= 2 * h->ranks) return NULL;
  return sk_strf("%d rank%s with GPUs on %s ha%s a core each of %d, which threads that save checkpoints want too; try "
                 "mpirun --bind-to none",
                 h->ranks, h->ranks == 1 ? "" : "s", a->host, h->ranks == 1 ? "s" : "ve", a->online);
}

// A warning comes before a note, and one core shared before too few of them.
char *sk_placement_advice(const sk_place *p, int n, bool *warn) {
  int *first = host_firsts(p, n);
  char *best = NULL;
  int weight = 0; // of best: 0 none, 1 note, 2 too many threads, 3 one core
  for (int i = 0; i < n && weight < 3; i++) {
    if (first[i] != i) continue;
    host h;
    bool curable = true;
    host_create(&h, p, n, first, i);
    char *text = on_one_core(p, &h);
    int now = text ? 3 : 0;
    if (!text && (text = too_many_threads(p, &h, &curable))) now = curable ? 2 : 1;
    if (!text && (text = one_core_each(p, &h))) now = 2;
    host_free(&h);
    if (now > weight) {
      sk_free(best);
      best = text;
      weight = now;
    } else {
      sk_free(text);
    }
  }
  sk_free(first);
  *warn = weight >= 2;
  return best;
}

void sk_placement_report(const sk_grid *g, int gpu) {
  sk_place *here = sk_malloc(sizeof *here), *all = NULL;
  sk_placement_here(here, gpu);
  memcpy(here->at, g->at, sizeof here->at);
  if (g->rank == 0) all = sk_calloc((size_t)g->size, sizeof *all);
  SK_MPI(MPI_Gather(here, sizeof *here, MPI_BYTE, all, sizeof *here, MPI_BYTE, 0, g->world));
  if (g->rank == 0) {
    bool warn;
    char *table = sk_placement_table(all, g->size);
    char *advice = sk_placement_advice(all, g->size, &warn);
    sk_say("%s", table);
    if (advice && warn) sk_warn("%s", advice);
    if (advice && !warn) sk_say("Note    %s", advice);
    sk_free(table);
    sk_free(advice);
  }
  sk_free(all);
  sk_free(here);
}
