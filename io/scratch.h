/* scratch.h: a file without a name for what does not fit into memory. Not collective. */
#ifndef SK_SCRATCH_H
#define SK_SCRATCH_H
#include "src/base.h"

typedef struct sk_scratch {
  int fd;      /* -1: not open */
  char *path;  /* the name it had, for messages */
} sk_scratch;

#define SK_NO_SCRATCH {.fd = -1}

/* Beside `near`, in a file of this rank that is unlinked at once: nothing is left behind, whatever happens. */
int sk_scratch_open(sk_scratch *s, const char *near, int rank, sk_err *e);
void sk_scratch_close(sk_scratch *s);
/* Appends n bytes; reads n bytes from `at` on. */
void sk_scratch_put(sk_scratch *s, const void *data, size_t n, sk_err *e);
void sk_scratch_get(const sk_scratch *s, size_t at, void *data, size_t n, sk_err *e);
#endif
