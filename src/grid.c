#include "src/grid.h"
#include <limits.h>

/* Sizes and coordinates; no communicators yet. */
static void place(sk_grid *g, const int n[SK_NAXES], int rank) {
  int64_t size = 1;
  *g = (sk_grid){.rank = rank, .node_size = 1};
  g->world = g->zero = g->model = MPI_COMM_NULL;
  for (int a = SK_NAXES - 1; a >= 0; a--) {
    SK_CHECK(n[a] >= 1, "grid pp %d x dp %d x cp %d x tp %d", n[SK_PP], n[SK_DP], n[SK_CP],
             n[SK_TP]);
    g->line[a] = MPI_COMM_NULL;
    g->n[a] = n[a];
    g->at[a] = (int)(rank / size % n[a]);
    size *= n[a];
    SK_CHECK(size <= INT_MAX, "a grid of more than %d ranks", INT_MAX);
  }
  g->size = (int)size;
}

/* Ranks whose coordinates are mine, save along axes a and b. The order is world's, in which pp is
 * the slowest axis. */
static void split(sk_grid *g, int a, int b, MPI_Comm *comm) {
  int color = 0;
  for (int i = 0; i < SK_NAXES; i++) color = color * g->n[i] + (i == a || i == b ? 0 : g->at[i]);
  SK_MPI(MPI_Comm_split(g->world, color, g->rank, comm));
}

void sk_grid_create(sk_grid *g, MPI_Comm comm, const int n[SK_NAXES]) {
  int rank, size;
  SK_MPI(MPI_Comm_rank(comm, &rank));
  SK_MPI(MPI_Comm_size(comm, &size));
  place(g, n, rank);
  SK_CHECK(g->size == size, "grid pp %d x dp %d x cp %d x tp %d on %d ranks", n[SK_PP], n[SK_DP],
           n[SK_CP], n[SK_TP], size);
  SK_MPI(MPI_Comm_dup(comm, &g->world));
  for (int a = 0; a < SK_NAXES; a++) split(g, a, a, &g->line[a]);
  split(g, SK_DP, SK_CP, &g->zero);
  split(g, SK_PP, SK_TP, &g->model);
  MPI_Comm node;
  SK_MPI(MPI_Comm_split_type(g->world, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node));
  SK_MPI(MPI_Comm_rank(node, &g->node_rank));
  SK_MPI(MPI_Comm_size(node, &g->node_size));
  SK_MPI(MPI_Comm_free(&node));
}

void sk_grid_pretend(sk_grid *g, const int n[SK_NAXES], int rank) {
  place(g, n, rank);
  SK_CHECK(rank >= 0 && rank < g->size, "rank %d of a grid of %d", rank, g->size);
}

static void release(MPI_Comm *comm) {
  if (*comm != MPI_COMM_NULL) SK_MPI(MPI_Comm_free(comm));
}

void sk_grid_destroy(sk_grid *g) {
  if (g->size == 0) return;
  for (int a = 0; a < SK_NAXES; a++) release(&g->line[a]);
  release(&g->zero);
  release(&g->model);
  release(&g->world);
  *g = (sk_grid){0};
}

int64_t sk_block(int64_t total, int parts, int i, int64_t *count) {
  int64_t base = total / parts, extra = total % parts;
  if (count) *count = base + (i < extra);
  return i * base + (i < extra ? i : extra);
}
