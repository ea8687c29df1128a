/* cpu_product.h: small matrix products for kernels that work on tiles in cache, where a BLAS call
 * would cost more than the product. Private to kernels/. The sums run over k in index order. */
#ifndef SK_CPU_PRODUCT_H
#define SK_CPU_PRODUCT_H
#include "kernels/cpu.h"

#ifdef __AVX512F__
enum { SK_NR = 32 };
#else
enum { SK_NR = 16 };
#endif
enum { SK_MR = 4 }; // a block of SK_MR x SK_NR sums stays in registers

// c[m,n] = (add ? c : 0) + a[m,k] b[k,n], element (i, l) of a at a[i * ars + l * acs];
// m <= SK_MR, n <= SK_NR.
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

// The same with m = SK_MR and n = SK_NR: the accumulators stay in registers.
static inline void sk_block_full(bool add, float *restrict c, int64_t ldc, const float *restrict a,
                                 int64_t ars, int64_t acs, const float *restrict b, int64_t ldb,
                                 int64_t k) {
  float acc[SK_MR][SK_NR];
  for (int i = 0; i < SK_MR; i++)
    for (int j = 0; j < SK_NR; j++) acc[i][j] = add ? c[i * ldc + j] : 0;
  for (int64_t l = 0; l < k; l++) {
#pragma GCC unroll 8
    for (int i = 0; i < SK_MR; i++) {
#pragma omp simd
      for (int j = 0; j < SK_NR; j++) acc[i][j] += a[i * ars + l * acs] * b[l * ldb + j];
    }
  }
  for (int i = 0; i < SK_MR; i++)
    for (int j = 0; j < SK_NR; j++) c[i * ldc + j] = acc[i][j];
}

// The same for m <= SK_MR and any n.
static inline void sk_product(bool add, float *c, int64_t ldc, const float *a, int64_t ars,
                              int64_t acs, const float *b, int64_t ldb, int64_t m, int64_t n,
                              int64_t k) {
  for (int64_t j = 0; j < n; j += SK_NR) {
    if (m == SK_MR && n - j >= SK_NR)
      sk_block_full(add, c + j, ldc, a, ars, acs, b + j, ldb, k);
    else
      sk_block_edge(add, c + j, ldc, a, ars, acs, b + j, ldb, m, sk_min64(SK_NR, n - j), k);
  }
}

// The same for any m.
static inline void sk_matmul(bool add, float *c, int64_t ldc, const float *a, int64_t ars,
                             int64_t acs, const float *b, int64_t ldb, int64_t m, int64_t n,
                             int64_t k) {
  for (int64_t i = 0; i < m; i += SK_MR)
    sk_product(add, c + i * ldc, ldc, a + i * ars, ars, acs, b, ldb, sk_min64(SK_MR, m - i), n, k);
}
#endif
