/* mapped.c: see mapped.h. */
#include "src/mapped.h"
#include <string.h>

void *sk_mapped_at(sk_mapped *m, const sk_ops *op, sk_device *dev, const sk_share *at) {
  sk_err e = {0};
  for (int i = 0; i < m->n; i++)
    if (memcmp(m->map[i].at.handle, at->handle, sizeof at->handle) == 0)
      return m->map[i].base + at->offset;
  m->map = sk_realloc(m->map, (size_t)(m->n + 1) * sizeof *m->map);
  char *base = op->map(dev, at, &e);
  SK_CHECK(base, "%s", e.msg);
  m->map[m->n++] = (struct sk_mapping){*at, base};
  return base + at->offset;
}

void sk_mapped_clear(sk_mapped *m, const sk_ops *op, sk_device *dev) {
  for (int i = 0; i < m->n; i++) op->unmap(dev, m->map[i].base);
  sk_free(m->map);
  *m = (sk_mapped){0};
}
