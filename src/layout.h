/* layout.h: which process grid a deck gives on a number of ranks, whether it works, and what it takes:
 * --check and --dry-run. */
#ifndef SK_LAYOUT_H
#define SK_LAYOUT_H
#include "src/engine.h"

/* Not collective. n[SK_NAXES] for the deck on `ranks` ranks; SK_USAGE with the reason, and the grids
 * nearest to it that would work, when it does not. */
int sk_layout_grid(const sk_config *c, int ranks, int n[SK_NAXES], sk_err *e);

/* Not collective; prints on rank 0: layers, parameters, FLOPs, and for every rank (or every kind of rank)
 * its layers, parameters and memory by part. */
int sk_layout_print(const sk_config *c, const sk_ops *op, int ranks, sk_err *e);
#endif
