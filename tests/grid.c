/* grid.c: coordinates and communicators for every factorisation of the number of ranks, blocks, and
 * the report on where the ranks run. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include "src/grid.h"
#include "src/placement.h"
#include "tests/tap.h"

enum { MAX = 64 };

// ---- the grid ----

/* The coordinates of all ranks by counting, tp fastest. */
static void enumerate(const int n[SK_NAXES], int at[MAX][SK_NAXES]) {
  int r = 0;
  for (int pp = 0; pp < n[SK_PP]; pp++)
    for (int dp = 0; dp < n[SK_DP]; dp++)
      for (int cp = 0; cp < n[SK_CP]; cp++)
        for (int tp = 0; tp < n[SK_TP]; tp++, r++) {
          at[r][SK_PP] = pp;
          at[r][SK_DP] = dp;
          at[r][SK_CP] = cp;
          at[r][SK_TP] = tp;
        }
}

/* Collective over comm: its members are the ranks whose coordinates are mine save along the axes
 * with a bit in `along`, in the order of world. */
static bool members(MPI_Comm comm, int along, int me, int size, int at[MAX][SK_NAXES]) {
  int n, all[MAX], want = 0;
  bool ok = true;
  SK_MPI(MPI_Comm_size(comm, &n));
  SK_MPI(MPI_Allgather(&me, 1, MPI_INT, all, 1, MPI_INT, comm));
  for (int r = 0; r < size; r++) {
    bool in = true;
    for (int a = 0; a < SK_NAXES; a++) in = in && (along >> a & 1 || at[r][a] == at[me][a]);
    if (!in) continue;
    ok = ok && want < n && all[want] == r;
    want++;
  }
  return ok && want == n;
}

static bool no_comms(const sk_grid *g) {
  bool none = g->world == MPI_COMM_NULL && g->zero == MPI_COMM_NULL && g->model == MPI_COMM_NULL;
  for (int a = 0; a < SK_NAXES; a++) none = none && g->line[a] == MPI_COMM_NULL;
  return none;
}

static bool same_place(const sk_grid *a, const sk_grid *b) {
  return a->rank == b->rank && a->size == b->size && memcmp(a->n, b->n, sizeof a->n) == 0 &&
         memcmp(a->at, b->at, sizeof a->at) == 0;
}

static void one_grid(const int n[SK_NAXES]) {
  int at[MAX][SK_NAXES], same;
  sk_grid g, alone;
  enumerate(n, at);
  sk_grid_create(&g, MPI_COMM_WORLD, n);
  bool ok = g.rank == tap_rank && g.size == tap_size && memcmp(g.n, n, sizeof g.n) == 0 &&
            memcmp(g.at, at[tap_rank], sizeof g.at) == 0;
  SK_MPI(MPI_Comm_compare(g.world, MPI_COMM_WORLD, &same));
  ok = ok && same == MPI_CONGRUENT; // a duplicate
  ok = members(g.world, 15, tap_rank, tap_size, at) && ok;
  for (int a = 0; a < SK_NAXES; a++) {
    int mine;
    ok = members(g.line[a], 1 << a, tap_rank, tap_size, at) && ok;
    SK_MPI(MPI_Comm_rank(g.line[a], &mine));
    ok = ok && mine == g.at[a];
  }
  ok = members(g.zero, 1 << SK_DP | 1 << SK_CP, tap_rank, tap_size, at) && ok;
  ok = members(g.model, 1 << SK_PP | 1 << SK_TP, tap_rank, tap_size, at) && ok;
  ok = ok && g.node_rank >= 0 && g.node_rank < g.node_size && g.node_size <= g.size;
  sk_grid_pretend(&alone, n, tap_rank);
  ok = ok && same_place(&alone, &g) && no_comms(&alone) && alone.node_rank == 0 &&
       alone.node_size == 1;
  sk_grid_destroy(&alone);
  sk_grid_destroy(&g);
  sk_grid_destroy(&g); // nothing left to do
  tap_ok(ok, "pp %d x dp %d x cp %d x tp %d", n[SK_PP], n[SK_DP], n[SK_CP], n[SK_TP]);
}

static void factorisations(void) {
  for (int pp = 1; pp <= tap_size; pp++)
    for (int dp = 1; dp <= tap_size; dp++)
      for (int cp = 1; cp <= tap_size; cp++)
        for (int tp = 1; tp <= tap_size; tp++)
          if (pp * dp * cp * tp == tap_size) one_grid((const int[SK_NAXES]){pp, dp, cp, tp});
}

// Grids larger than the job, for planning.
static void pretended(void) {
  static const int n[SK_NAXES] = {2, 3, 4, 2}, big[SK_NAXES] = {64, 1024, 16, 8};
  int at[MAX][SK_NAXES];
  bool ok = true;
  sk_grid g;
  enumerate(n, at);
  for (int r = 0; r < 48; r++) {
    sk_grid_pretend(&g, n, r);
    ok = ok && g.rank == r && g.size == 48 && memcmp(g.at, at[r], sizeof g.at) == 0 && no_comms(&g);
    sk_grid_destroy(&g);
  }
  sk_grid_pretend(&g, big, ((5 * 1024 + 1000) * 16 + 3) * 8 + 7);
  ok = ok && g.size == 1 << 23 && g.at[SK_PP] == 5 && g.at[SK_DP] == 1000 && g.at[SK_CP] == 3 &&
       g.at[SK_TP] == 7;
  tap_ok(ok, "pretended grids of 48 and of %d ranks", 1 << 23);
}

static void blocks(void) {
  bool ok = true;
  for (int64_t total = 0; total <= 40; total++)
    for (int parts = 1; parts <= 9; parts++) {
      int64_t next = 0, count, before = INT64_MAX;
      for (int i = 0; i < parts; i++) {
        ok = ok && sk_block(total, parts, i, &count) == next &&
             sk_block(total, parts, i, NULL) == next;
        ok = ok && count >= total / parts && count <= total / parts + 1 && count <= before;
        before = count;
        next += count;
      }
      ok = ok && next == total;
    }
  int64_t count, first = sk_block(INT64_C(1) << 40, 3, 2, &count);
  tap_ok(ok && first + count == INT64_C(1) << 40,
         "sk_block covers everything once, longer blocks first");
}

// ---- placement ----

static bool list_is(int n, const int *x, const char *want) {
  char *got = sk_placement_list(x, n);
  bool ok = strcmp(got, want) == 0;
  if (!ok) tap_diag("got %s, want %s", got, want);
  sk_free(got);
  return ok;
}
#define LIST(want, ...) \
  list_is((int)(sizeof(int[]){__VA_ARGS__} / sizeof(int)), (const int[]){__VA_ARGS__}, want)

static void lists(void) {
  tap_ok(list_is(0, NULL, "-") && LIST("5", 5) && LIST("0-1", 0, 1) &&
             LIST("0-3,8", 0, 1, 2, 3, 8) && LIST("0,2", 0, 2) && LIST("0,64", 0, 64),
         "core lists: runs and single cores");
  tap_ok(LIST("0-6:2", 0, 2, 4, 6) && LIST("0-1,3-7:2", 0, 1, 3, 5, 7) &&
             LIST("0,2-4", 0, 2, 3, 4) && LIST("0-3,64-67", 0, 1, 2, 3, 64, 65, 66, 67) &&
             LIST("1-9:4,11-13", 1, 5, 9, 11, 12, 13) && LIST("8000,8191", 8000, 8191),
         "core lists: strides, as in taskset");
}

static void set_cores(sk_place *p, int first, int last) {
  memset(p->cores, 0, sizeof p->cores);
  for (int c = first; c <= last; c++) p->cores[c / 64] |= (uint64_t)1 << c % 64;
  p->single = first == last;
}

/* n ranks, `per` to a host, which has 8 cores; each rank has two of them, two threads, and one GPU.
 */
static sk_place *job(int n, int per) {
  sk_place *p = sk_calloc((size_t)n, sizeof *p);
  for (int i = 0; i < n; i++) {
    p[i] = (sk_place){.online = 8, .threads = 2, .gpu = i % per, .at = {0, i, 0, 0}};
    snprintf(p[i].host, sizeof p[i].host, "node%d", i / per + 1);
    set_cores(&p[i], 2 * (i % per), 2 * (i % per) + 1);
  }
  return p;
}

static void check_table(const sk_place *p, int n, const char *want, const char *what) {
  char *got = sk_placement_table(p, n);
  bool ok = strcmp(got, want) == 0;
  if (!ok) tap_diag("got\n%s\nwant\n%s", got, want);
  tap_ok(ok, "%s", what);
  sk_free(got);
}

// want: a part of the advice, NULL for none.
static void check_advice(const sk_place *p, int n, const char *want, bool want_warn,
                         const char *what) {
  bool warn = !want_warn;
  char *got = sk_placement_advice(p, n, &warn);
  bool ok =
      want ? got && strstr(got, want) && warn == want_warn && !strchr(got, '\n') : !got && !warn;
  tap_ok(ok, "%s: %s", what, got ? got : "no advice");
  sk_free(got);
}

static void tables(void) {
  sk_place *p = job(3, 2);
  p[2].gpu = -1;
  check_table(p, 3,
              "Rank   pp  dp  cp  tp  threads  GPU  host   cores\n"
              "   0    0   0   0   0        2    0  node1  0-1\n"
              "   1    0   1   0   0        2    1  node1  2-3\n"
              "   2    0   2   0   0        2    -  node2  0-1",
              "a small job's table has a line for each rank");
  sk_free(p);
  p = job(20, 4);
  for (int i = 8; i < 12; i++) p[i].gpu = -1;
  p[8].threads = 1;
  snprintf(p[19].host, sizeof p[19].host, "node1"); // ranks of a host need not follow each other
  check_table(p, 20,
              "node1: ranks 0-3,19, 2 threads each, cores 0-7, GPUs 0-3\n"
              "node2: ranks 4-7, 2 threads each, cores 0-7, GPUs 0-3\n"
              "node3: ranks 8-11, 1-2 threads each, cores 0-7\n"
              "node4: ranks 12-15, 2 threads each, cores 0-7, GPUs 0-3\n"
              "node5: ranks 16-18, 2 threads each, cores 0-5, GPUs 0-2",
              "a large job's has one for each host");
  sk_free(p);
}

static void shares(void) {
  tap_ok(sk_placement_share(16, 1, 16) == 14 && sk_placement_share(16, 2, 16) == 7 && sk_placement_share(8, 1, 8) == 7,
         "a rank leaves an eighth of its cores");
  tap_ok(sk_placement_share(2, 1, 2) == 2 && sk_placement_share(16, 4, 16) == 4 && sk_placement_share(16, 4, 4) == 4,
         "but of seven none");
  tap_ok(sk_placement_share(16, 2, 1) == 1 && sk_placement_share(2, 3, 2) == 1 && sk_placement_share(0, 1, 0) == 1,
         "bound to a core, more ranks than cores, unknown cores: one thread");
}

/* Every rank of a test may use all cores of the node (tests/mpirun.sh). */
static void chosen_threads(void) {
  static const char *const said[] = {"OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY"};
  int before = omp_get_max_threads(), cores = omp_get_num_procs();
  setenv("OMP_PROC_BIND", "false", 1);
  omp_set_num_threads(3);
  sk_placement_threads(MPI_COMM_WORLD);
  tap_ok(omp_get_max_threads() == 3, "the environment's number of threads stays");
  for (size_t i = 0; i < sizeof said / sizeof *said; i++) unsetenv(said[i]);
  sk_placement_threads(MPI_COMM_WORLD);
  tap_ok(omp_get_max_threads() == sk_placement_share(cores, tap_size, cores), "else a rank's share of %d cores: %d", cores,
         omp_get_max_threads());
  omp_set_num_threads(before);
}

static void advice(void) {
  sk_place *p = job(8, 4);
  check_advice(p, 8, NULL, false, "two cores and two threads a rank");
  for (int i = 0; i < 8; i++) p[i].threads = 1, set_cores(&p[i], i % 4, i % 4);
  check_advice(p, 8, "4 ranks with GPUs on node1 have a core each of 8", true, "a core for each GPU");
  for (int i = 0; i < 8; i++) p[i].saving = 8;
  check_advice(p, 8, NULL, false, "which those that save need not share");
  for (int i = 0; i < 8; i++) p[i].gpu = -1;
  check_advice(p, 8, NULL, false, "each rank on its own core");
  set_cores(&p[6], 1, 1);
  check_advice(p, 8,
               "ranks 5-6 on node2 all share core 1; try mpirun --bind-to core --map-by slot:PE=2",
               true, "two ranks bound to one core");
  for (int i = 0; i < 8; i++) p[i].online = 1, set_cores(&p[i], 0, 0);
  check_advice(p, 8, "4 threads of 4 ranks on node1 take turns on its 1 core", false,
               "hosts of a single core");
  for (int i = 0; i < 8; i++) p[i].online = 8, p[i].threads = 2, set_cores(&p[i], 0, 3);
  check_advice(p, 8, "8 threads of 4 ranks on node1 share 4 of its 8 cores; set OMP_NUM_THREADS=1",
               true, "a half of the host's cores");
  for (int i = 0; i < 8; i++) p[i].threads = 3, set_cores(&p[i], 0, 7);
  check_advice(p, 8, "12 threads of 4 ranks on node1 take turns on its 8 cores", false,
               "more threads than the host has cores");
  memset(p[0].cores, 0, sizeof p[0].cores); // unknown: no guess from it
  check_advice(p, 1, NULL, false, "unknown cores");
  sk_free(p);
}

static void here(void) {
  sk_place *p = sk_malloc(sizeof *p);
  int cores = 0;
  sk_placement_here(p, 3);
  for (int c = 0; c < SK_MAX_CORES; c++) cores += p->cores[c / 64] >> c % 64 & 1;
  tap_ok(p->host[0] && cores >= 1 && cores <= p->online && p->saving >= cores && p->threads >= 1 && p->gpu == 3 &&
             (cores > 1 || p->single),
         "this process: %s, %d cores of %d, %d threads", p->host, cores, p->online, p->threads);
  sk_free(p);
  sk_grid g;
  sk_grid_create(&g, MPI_COMM_WORLD, (const int[SK_NAXES]){1, tap_size, 1, 1});
  sk_placement_report(&g, -1);
  sk_grid_destroy(&g);
  tap_ok(true, "the report of the test itself");
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  factorisations();
  pretended();
  blocks();
  lists();
  tables();
  shares();
  chosen_threads();
  advice();
  here();
  return tap_done();
}
