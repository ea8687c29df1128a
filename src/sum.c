#include "src/sum.h"
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { WORD = 4, ROW = 2 * LANES, AHEAD = 2048 }; /* bytes; 32-bit words of a row, LANES 64-bit ones; bytes */
typedef uint64_t lanes __attribute__((vector_size(LANES * sizeof(uint64_t))));

/* Words first, first + 2, ... of rows of them: their sum, and `sums`, the sum of what that was after each row, which counts
 * the words of row r (rows - r) times: additions alone. */
static void add_lanes(sk_sum *s, const uint64_t *sum, const uint64_t *sums, uint64_t rows, uint64_t first) {
  for (uint64_t l = 0; l < LANES; l++) {
    s->plain += sum[l];
    s->ranked += ROW * (rows * sum[l] - sums[l]) + (2 * l + first) * sum[l];
  }
}

/* Past the caches, as large copies go: else every line would be read before it is overwritten. */
static inline void put(char *to, const lanes *w) {
#if defined(__AVX512F__)
  _mm512_stream_si512((void *)to, (__m512i)*w);
#elif defined(__AVX__)
  _mm256_stream_si256((void *)to, (__m256i)*w);
#else
  memcpy(to, w, sizeof *w);
#endif
}

/* Before anyone is told that they are there. */
static inline void put_all(void) {
#ifdef __AVX__
  _mm_sfence();
#endif
}

/* One by one. to: NULL, or where they are copied to. */
static inline sk_sum add_words(char *to, const char *from, size_t n) {
  sk_sum s = {0, 0};
  for (size_t i = 0; i < n; i++) {
    uint32_t w;
    memcpy(&w, from + i * sizeof w, sizeof w);
    if (to) memcpy(to + i * sizeof w, &w, sizeof w);
    s.plain += w;
    s.ranked += i * w;
  }
  return s;
}

/* In rows, from one on where `to` is aligned. */
static inline sk_sum add(char *to, const char *from, size_t n) {
  size_t head = to ? (size_t)(-(uintptr_t)to / WORD % ROW) : 0;
  if (head > n) head = n;
  const size_t rows = (n - head) / ROW, rest = head + rows * ROW;
  lanes low = {0}, lows = {0}, high = {0}, highs = {0};
  uint64_t sum[2][LANES], sums[2][LANES];
  sk_sum all = add_words(to, from, head), part = {0, 0};
#pragma GCC unroll 4
  for (size_t r = 0; r < rows; r++) {
    lanes w;
    memcpy(&w, from + head * WORD + r * sizeof w, sizeof w);
    if (to) {
      __builtin_prefetch(from + head * WORD + r * sizeof w + AHEAD); // by itself a core stops at the end of a page
      put(to + head * WORD + r * sizeof w, &w);
    }
    low += w & 0xffffffff;
    high += w >> 32;
    lows += low;
    highs += high;
  }
  if (to) put_all();
  memcpy(sum[0], &low, sizeof low);
  memcpy(sum[1], &high, sizeof high);
  memcpy(sums[0], &lows, sizeof lows);
  memcpy(sums[1], &highs, sizeof highs);
  for (uint64_t k = 0; k < 2; k++) add_lanes(&part, sum[k], sums[k], rows, k);
  all = sk_sum_join(all, part, head);
  return sk_sum_join(all, add_words(to ? to + rest * WORD : NULL, from + rest * WORD, n - rest), rest);
}

sk_sum sk_sum_of(const void *words, size_t n) { return add(NULL, words, n); }

sk_sum sk_sum_copy(void *to, const void *from, size_t n) { return add(to, from, n); }

sk_sum sk_sum_join(sk_sum a, sk_sum b, uint64_t at) {
  return (sk_sum){a.plain + b.plain, a.ranked + b.ranked + at * b.plain};
}

uint64_t sk_sum_weighted(sk_sum s) { return 2 * s.ranked + s.plain; }
