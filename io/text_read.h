/* text_read.h: the bytes of a text file in order, plain, .gz (zlib) or .zst (libzstd). Not collective. */
#ifndef SK_TEXT_READ_H
#define SK_TEXT_READ_H
#include "src/base.h"

typedef struct sk_text sk_text;

/* begin: the byte to start at; 0 for packed files. NULL on failure. */
sk_text *sk_text_open(const char *path, int64_t begin, sk_err *e);
void sk_text_close(sk_text *t);
/* Up to n bytes; fewer only at the end. A packed file that is damaged or cut off is an error. */
size_t sk_text_read(sk_text *t, char *buf, size_t n, sk_err *e);
/* Bytes of the file on the disk that were used up to now. */
int64_t sk_text_used(const sk_text *t);
#endif
