/* mapped.h: memory of another rank of the node, mapped when it is first met. The rank that owns it
 * must not free it before the cache is emptied, or the handle may come to mean something else. */
#ifndef SK_MAPPED_H
#define SK_MAPPED_H
#include "kernels/ops.h"

/* Of one rank. Zero at first. */
typedef struct sk_mapped {
  struct sk_mapping {
    sk_share at;
    char *base;
  } *map;
  int n;
} sk_mapped;

/* What `at` describes, in this process; that it cannot be mapped is fatal. */
void *sk_mapped_at(sk_mapped *m, const sk_ops *op, sk_device *dev, const sk_share *at);
/* Unmaps all. */
void sk_mapped_clear(sk_mapped *m, const sk_ops *op, sk_device *dev);
#endif
