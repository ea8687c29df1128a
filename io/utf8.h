/* utf8.h: UTF-8 of unknown origin. Not collective. */
#ifndef SK_UTF8_H
#define SK_UTF8_H
#include "src/base.h"

/* The bytes of text[0 .. n-1] before the first that is not part of a whole, valid character; n when all
 * is valid (no surrogates, no overlong forms, nothing above U+10FFFF). */
size_t sk_utf8_valid(const char *text, size_t n);

/* Length 1 .. 3 of the ill-formed sequence that text begins with (n >= 1): the maximal subpart of Unicode's
 * chapter 3.9, which is replaced by one U+FFFD. *more: it is cut off by the end and could still be completed. */
size_t sk_utf8_bad(const char *text, size_t n, bool *more);

/* A copy with every ill-formed sequence replaced by U+FFFD (owned by the caller), *m its length; NULL where
 * all is valid already. */
char *sk_utf8_replaced(const char *text, size_t n, size_t *m);

/* The character at text (valid, n >= 1); *len its bytes. */
uint32_t sk_utf8_get(const char *text, size_t *len);
/* Writes cp at out (room for 4) and returns the number of bytes. */
size_t sk_utf8_put(uint32_t cp, char *out);

/* White_Space of the Unicode character database. */
bool sk_utf8_space(uint32_t cp);
#endif
