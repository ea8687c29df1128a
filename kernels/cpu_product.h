/* cpu_product.h: small matrix products for kernels that work on tiles in cache, where a BLAS call
 * would cost more than the product. Private to kernels/. The sums run over k in index order. */
#ifndef SK_CPU_PRODUCT_H
#define SK_CPU_PRODUCT_H
#include "kernels/cpu.h"

// A block of SK_MR x SK_NR sums stays in registers, as vectors of SK_VL floats.
#if defined(__AVX512F__)
enum { SK_VL = 16, SK_MR = 8 };
#elif defined(__AVX__)
enum { SK_VL = 8, SK_MR = 4 };
#else
enum { SK_VL = 4, SK_MR = 4 };
#endif
enum { SK_NV = 2, SK_NR = SK_NV * SK_VL };
typedef float sk_vec __attribute__((vector_size(4 * SK_VL)));
typedef float sk_vec_at __attribute__((vector_size(4 * SK_VL), aligned(4), may_alias)); // in memory

// c[m,n] = (add ? c : 0) + a[m,k] b[k,n], element (i, l) of a at a[i * ars + l * acs]; n <= SK_NR.
static inline void sk_block_edge(bool add, float *restrict c, int64_t ldc, const float *restrict a,
                                 int64_t ars, int64_t acs, const float *restrict b, int64_t ldb,
                                 int64_t m, int64_t n, int64_t k) {
  for (int64_t i = 0; i < m; i++) {
    float acc[SK_NR];
    for (int64_t j = 0; j < n; j++) acc[j] = add ? c[i * ldc + j] : 0;
    for (int64_t l = 0; l < k; l++) {
      float x = a[i * ars + l * acs];
#pragma omp simd
      for (int64_t j = 0; j < n; j++) acc[j] += x * b[l * ldb + j];
    }
    for (int64_t j = 0; j < n; j++) c[i * ldc + j] = acc[j];
  }
}

// The same with n = SK_NR and m <= SK_MR known when compiled. Written with vector types because a compiler
// left to itself reads b again for every row of a.
__attribute__((always_inline)) static inline void
sk_block(const int m, bool add, float *c, int64_t ldc, const float *a, int64_t ars, int64_t acs,
         const float *b, int64_t ldb, int64_t k) {
  sk_vec acc[SK_MR][SK_NV];
#pragma GCC unroll 8
  for (int i = 0; i < m; i++) {
#pragma GCC unroll 2
    for (int v = 0; v < SK_NV; v++) {
      acc[i][v] = (sk_vec){0};
      if (add) acc[i][v] = *(const sk_vec_at *)(c + i * ldc + v * SK_VL);
    }
  }
  // Every third row of a has a pointer, the two after it lie at once and twice a register's distance.
  enum { BASES = (SK_MR + 2) / 3 };
  const float *base[BASES];
#pragma GCC unroll 3
  for (int i = 0; i < BASES; i++) {
    base[i] = a + 3 * i * ars;
#ifdef __x86_64__
    __asm__("" : "+r"(base[i])); // or the compiler makes a register of each distance, and has too few
#endif
  }
  for (int64_t l = 0; l < k; l++, b += ldb) {
    sk_vec row[SK_NV];
#pragma GCC unroll 2
    for (int v = 0; v < SK_NV; v++) row[v] = *(const sk_vec_at *)(b + v * SK_VL);
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
#pragma GCC unroll 2
      for (int v = 0; v < SK_NV; v++) acc[i][v] += base[i / 3][i % 3 * ars] * row[v];
    }
#pragma GCC unroll 3
    for (int i = 0; i < BASES; i++) base[i] += acs;
  }
#pragma GCC unroll 8
  for (int i = 0; i < m; i++) {
#pragma GCC unroll 2
    for (int v = 0; v < SK_NV; v++) *(sk_vec_at *)(c + i * ldc + v * SK_VL) = acc[i][v];
  }
}

// Any m <= SK_MR. One of the strides is 1 in every call of ours; a stride known when compiled leaves registers
// for the addresses.
__attribute__((always_inline)) static inline void
sk_block_rows(bool add, float *c, int64_t ldc, const float *a, int64_t ars, int64_t acs,
              const float *b, int64_t ldb, int64_t m, int64_t k) {
  enum { HALF = SK_MR / 2 };
  if (m == SK_MR) {
    sk_block(SK_MR, add, c, ldc, a, ars, acs, b, ldb, k);
    return;
  }
  for (; m >= HALF; m -= HALF, a += HALF * ars, c += HALF * ldc)
    sk_block(HALF, add, c, ldc, a, ars, acs, b, ldb, k);
  for (; m > 0; m--, a += ars, c += ldc) sk_block(1, add, c, ldc, a, ars, acs, b, ldb, k);
}

static void sk_block_full(bool add, float *c, int64_t ldc, const float *a, int64_t ars, int64_t acs,
                          const float *b, int64_t ldb, int64_t m, int64_t k) {
  if (acs == 1) sk_block_rows(add, c, ldc, a, ars, 1, b, ldb, m, k);
  else if (ars == 1) sk_block_rows(add, c, ldc, a, 1, acs, b, ldb, m, k);
  else sk_block_rows(add, c, ldc, a, ars, acs, b, ldb, m, k);
}

// n rounded up to whole blocks, if that is within limit: columns that nobody reads cost less than an edge.
static inline int64_t sk_block_up(int64_t n, int64_t limit) {
  int64_t up = sk_ceil_div(n, SK_NR) * SK_NR;
  return up <= limit ? up : n;
}

// The same for m <= SK_MR and any n.
static inline void sk_product(bool add, float *c, int64_t ldc, const float *a, int64_t ars,
                              int64_t acs, const float *b, int64_t ldb, int64_t m, int64_t n,
                              int64_t k) {
  int64_t j = 0;
  for (; n - j >= SK_NR; j += SK_NR) sk_block_full(add, c + j, ldc, a, ars, acs, b + j, ldb, m, k);
  if (j < n) sk_block_edge(add, c + j, ldc, a, ars, acs, b + j, ldb, m, n - j, k);
}

// The same for any m.
static inline void sk_matmul(bool add, float *c, int64_t ldc, const float *a, int64_t ars,
                             int64_t acs, const float *b, int64_t ldb, int64_t m, int64_t n,
                             int64_t k) {
  for (int64_t i = 0; i < m; i += SK_MR)
    sk_product(add, c + i * ldc, ldc, a + i * ars, ars, acs, b, ldb, sk_min64(SK_MR, m - i), n, k);
}
#endif
