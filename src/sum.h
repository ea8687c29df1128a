/* sum.h: a checksum that can be taken of parts in any order, at the speed of memory. Part of the base; nothing here is
 * collective. */
#ifndef SK_SUM_H
#define SK_SUM_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of 32-bit words w[0], w[1], ... (little-endian): the sums of w[i] and of i w[i], modulo 2^64. */
typedef struct sk_sum {
  uint64_t plain, ranked;
} sk_sum;

/* Of n words. */
sk_sum sk_sum_of(const void *words, size_t n);
/* The same of words that are copied meanwhile (`to` is aligned to words), past the caches: a large copy takes no longer. */
sk_sum sk_sum_copy(void *to, const void *from, size_t n);
/* a, and b as the words from number `at` on of the same. */
sk_sum sk_sum_join(sk_sum a, sk_sum b, uint64_t at);
/* Every word times 1, 3, 5 and so on: as the weights are odd one changed bit always shows, and as a word has only half
 * of the sum's bits, so does the same one of two words (of 8 GiB). Anything else does unless by a chance of 2^-64. */
uint64_t sk_sum_weighted(sk_sum s);

#ifdef __cplusplus
}
#endif
#endif
