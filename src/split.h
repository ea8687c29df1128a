/* split.h: which layers a pipeline stage has. Pure functions. */
#ifndef SK_SPLIT_H
#define SK_SPLIT_H
#include "src/config.h"

/* Cuts the layers into `parts` consecutive parts, none empty (parts <= layers), so that the most costly part is
 * as cheap as possible; cost is forward FLOPs per token, the first part has the embedding as well (its lookup
 * and gradient are counted as reading and writing d values), the last the head. Among the best cuts the later
 * parts get the fewer layers. first[parts + 1]: the parts' first layers; first[parts] = layers. */
void sk_split_layers(const sk_config *cfg, int parts, int64_t *first);

/* The cost of part i of such a cut. */
double sk_split_cost(const sk_config *cfg, int parts, const int64_t *first, int i);
#endif
