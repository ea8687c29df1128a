#include "io/utf8.h"
#include <string.h>

/* The well-formed sequences (Unicode, table 3-7): by first byte the length and the range of the second. */
static int shape(unsigned char b, unsigned char *lo, unsigned char *hi) {
  *lo = 0x80;
  *hi = 0xbf;
  if (b >= 0xc2 && b <= 0xdf) return 2;
  if (b >= 0xe0 && b <= 0xef) {
    if (b == 0xe0) *lo = 0xa0;
    if (b == 0xed) *hi = 0x9f;
    return 3;
  }
  if (b >= 0xf0 && b <= 0xf4) {
    if (b == 0xf0) *lo = 0x90;
    if (b == 0xf4) *hi = 0x8f;
    return 4;
  }
  return b < 0x80 ? 1 : 0;
}

/* Good bytes at the head of one sequence; *want: how many it needs (0: no sequence begins so). */
static size_t sequence(const unsigned char *s, size_t n, size_t *want) {
  unsigned char lo, hi;
  *want = (size_t)shape(s[0], &lo, &hi);
  if (*want <= 1) return *want;
  if (n < 2 || s[1] < lo || s[1] > hi) return 1;
  size_t k = 2;
  while (k < *want && k < n && (s[k] & 0xc0) == 0x80) k++;
  return k;
}

size_t sk_utf8_valid(const char *text, size_t n) {
  const unsigned char *s = (const unsigned char *)text;
  size_t i = 0, want;
  while (i < n) {
    uint64_t eight;
    while (i + 8 <= n && (memcpy(&eight, s + i, 8), !(eight & 0x8080808080808080u))) i += 8;
    if (i == n) break;
    size_t k = sequence(s + i, n - i, &want);
    if (want == 0 || k < want) break;
    i += k;
  }
  return i;
}

size_t sk_utf8_bad(const char *text, size_t n, bool *more) {
  size_t want, k = sequence((const unsigned char *)text, n, &want);
  *more = want > 0 && k < want && k == n;
  return k > 0 ? k : 1;
}

char *sk_utf8_replaced(const char *text, size_t n, size_t *m) {
  size_t good = sk_utf8_valid(text, n), at = 0;
  bool more;
  if (good == n) return NULL;
  char *out = sk_malloc(3 * n);
  *m = 0;
  for (;;) {
    memcpy(out + *m, text + at, good);
    *m += good;
    at += good;
    if (at == n) return out;
    memcpy(out + *m, "\xef\xbf\xbd", 3);
    *m += 3;
    at += sk_utf8_bad(text + at, n - at, &more);
    good = sk_utf8_valid(text + at, n - at);
  }
}

uint32_t sk_utf8_get(const char *text, size_t *len) {
  const unsigned char *s = (const unsigned char *)text;
  if (s[0] < 0x80) return *len = 1, s[0];
  if (s[0] < 0xe0) return *len = 2, (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
  if (s[0] < 0xf0)
    return *len = 3, (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
  return *len = 4, (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 |
                   (uint32_t)(s[2] & 0x3f) << 6 | (s[3] & 0x3f);
}

size_t sk_utf8_put(uint32_t cp, char *out) {
  unsigned char *s = (unsigned char *)out;
  if (cp < 0x80) return s[0] = (unsigned char)cp, 1;
  if (cp < 0x800) {
    s[0] = (unsigned char)(0xc0 | cp >> 6);
    s[1] = (unsigned char)(0x80 | (cp & 0x3f));
    return 2;
  }
  if (cp < 0x10000) {
    s[0] = (unsigned char)(0xe0 | cp >> 12);
    s[1] = (unsigned char)(0x80 | (cp >> 6 & 0x3f));
    s[2] = (unsigned char)(0x80 | (cp & 0x3f));
    return 3;
  }
  s[0] = (unsigned char)(0xf0 | cp >> 18);
  s[1] = (unsigned char)(0x80 | (cp >> 12 & 0x3f));
  s[2] = (unsigned char)(0x80 | (cp >> 6 & 0x3f));
  s[3] = (unsigned char)(0x80 | (cp & 0x3f));
  return 4;
}

bool sk_utf8_space(uint32_t cp) {
  return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
         (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
         cp == 0x3000;
}
