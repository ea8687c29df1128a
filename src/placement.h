/* placement.h: which rank runs where. A job whose ranks share one core, or run more threads than
 * there are cores, is slow and says nothing; the table at the start shows it and names the cure. */
#ifndef SK_PLACEMENT_H
#define SK_PLACEMENT_H
#include "src/grid.h"

enum { SK_MAX_CORES = 8192, SK_TABLE_RANKS = 16 }; /* Linux's limit; longer tables go by host */

/* Where one rank runs. "Cores" are the logical CPUs that Linux counts. */
typedef struct sk_place {
  char host[64];
  uint64_t cores[SK_MAX_CORES / 64]; /* bit c % 64 of word c / 64: some thread may run on core c */
  int online;                        /* cores of the whole host */
  int saving;                        /* on how many the threads that save checkpoints may run */
  int threads;                       /* OpenMP threads */
  int gpu;                           /* -1: none */
  int single;                        /* all its cores are hardware threads of one physical core */
  int at[SK_NAXES];
} sk_place;

/* Collective. Unless the environment says how many OpenMP threads there are or where: each rank takes
 * its share of the node's cores, less an eighth (of 8 cores and more), on which the threads that save
 * checkpoints and MPI's and the system's own work find room: with static shares one thread that has to
 * wait for its core makes all others wait (docs/bench/io.md). Where that leaves too few, or the environment does,
 * they hash what is written themselves (sk_saver_begin). Call it before anything computes. */
void sk_placement_threads(MPI_Comm comm);

/* Threads of a rank that may use `own` of the `cores` which the `ranks` of a node may use together. */
int sk_placement_share(int cores, int ranks, int own);

/* Collective over g->world. Rank 0 prints the table (sk_say) and at most one line of warning
 * (sk_warn) or note. gpu: the number of this rank's GPU, -1 for none. */
void sk_placement_report(const sk_grid *g, int gpu);

/* The rest is not collective; it is the report's parts, apart for tests. Strings are the caller's.
 */

/* Where this process runs; at is left 0. */
void sk_placement_here(sk_place *p, int gpu);

/* Ascending numbers as Linux writes them: 0-3,8 and, with a stride, 0-14:2. "-" for none. */
char *sk_placement_list(const int *number, int n);

/* The table of all n ranks: one line for each, or for each host above SK_TABLE_RANKS. No newline at
 * the end. */
char *sk_placement_table(const sk_place *p, int n);

/* One line about ranks on one core, more threads than cores or GPUs with a core each, NULL when there is nothing to say.
 * *warn: it can be cured from outside; otherwise the host simply has no more cores. */
char *sk_placement_advice(const sk_place *p, int n, bool *warn);
#endif
