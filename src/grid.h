/* grid.h: the process grid world = pp x dp x cp x tp (tp fastest) and the only block-partition
 * arithmetic. Owns its communicators. */
#ifndef SK_GRID_H
#define SK_GRID_H
#include "src/agree.h"

typedef enum sk_axis { SK_PP, SK_DP, SK_CP, SK_TP, SK_NAXES } sk_axis;

/* In every communicator the ranks have the order they have in world. */
typedef struct sk_grid {
  MPI_Comm world;          /* duplicate of the caller's, owned */
  MPI_Comm line[SK_NAXES]; /* ranks that differ from me along one axis only, owned */
  MPI_Comm zero;  /* ranks that differ along dp and cp: one set of shards, owned; dp slower */
  MPI_Comm model; /* ranks that differ along pp and tp: one copy of the model, owned; pp slower */
  int rank, size; /* in world */
  int node_rank, node_size; /* among the ranks of this node */
  int n[SK_NAXES], at[SK_NAXES];
} sk_grid;

/* Collective over comm. n: sizes along SK_PP .. SK_TP; their product must be comm's size. */
void sk_grid_create(sk_grid *g, MPI_Comm comm, const int n[SK_NAXES]);
/* Collective, save for a pretended grid. A grid of zeros is fine. */
void sk_grid_destroy(sk_grid *g);

/* The grid of one process alone, without communication and without communicators to free: for
 * planning rank `rank` of a grid of sizes n, and for tools on one rank. Its communicators are
 * MPI_COMM_NULL, its node holds it alone. */
void sk_grid_pretend(sk_grid *g, const int n[SK_NAXES], int rank);

/* The block of part i when total items are cut into parts: the first total % parts blocks have one
 * more. Returns its first item; *count (may be NULL) its length. */
int64_t sk_block(int64_t total, int parts, int i, int64_t *count);
#endif
