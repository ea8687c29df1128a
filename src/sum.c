#include "src/sum.h"
#include <string.h>

enum { LANES = 8, ROW = 2 * LANES }; /* 64-bit words of a row, 32-bit ones */
typedef uint64_t lanes __attribute__((vector_size(LANES * sizeof(uint64_t))));

/* Of one half of every 64-bit word: its sum, and the sum of what that was after each row, which counts the words of row
 * r of n (n - r) times: additions alone. */
typedef struct half {
  lanes sum, sums;
} half;

static void add_half(sk_sum *s, const half *h, uint64_t rows, uint64_t first) {
  for (uint64_t l = 0; l < LANES; l++) {
    s->plain += h->sum[l];
    s->ranked += ROW * (rows * h->sum[l] - h->sums[l]) + (2 * l + first) * h->sum[l];
  }
}

/* to: NULL, or where they are copied to. */
static inline sk_sum sum(char *to, const char *from, size_t n) {
  const size_t rows = n / ROW;
  half low = {0}, high = {0};
  sk_sum s = {0, 0};
  for (size_t r = 0; r < rows; r++) {
    lanes w;
    memcpy(&w, from + r * sizeof w, sizeof w);
    if (to) memcpy(to + r * sizeof w, &w, sizeof w);
    low.sum += w & 0xffffffff;
    high.sum += w >> 32;
    low.sums += low.sum;
    high.sums += high.sum;
  }
  add_half(&s, &low, rows, 0);
  add_half(&s, &high, rows, 1);
  for (size_t i = rows * ROW; i < n; i++) {
    uint32_t w;
    memcpy(&w, from + i * sizeof w, sizeof w);
    if (to) memcpy(to + i * sizeof w, &w, sizeof w);
    s.plain += w;
    s.ranked += i * w;
  }
  return s;
}

sk_sum sk_sum_of(const void *words, size_t n) { return sum(NULL, words, n); }

sk_sum sk_sum_copy(void *to, const void *from, size_t n) { return sum(to, from, n); }

sk_sum sk_sum_join(sk_sum a, sk_sum b, uint64_t at) {
  return (sk_sum){a.plain + b.plain, a.ranked + b.ranked + at * b.plain};
}

uint64_t sk_sum_weighted(sk_sum s) { return 2 * s.ranked + s.plain; }
