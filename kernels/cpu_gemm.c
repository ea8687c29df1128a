#ifdef HAVE_CONFIG_H
#include <config.h>
#endif
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cpu.h"
#ifdef HAVE_BLIS
// BLIS's headers define many inline functions that nobody uses.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wtype-limits"
#include <blis.h>
#include <cblas.h>
#pragma GCC diagnostic pop
#else
#include <cblas.h>
#endif

#ifdef HAVE_BLIS_SKX
// BLIS 0.9 tells by the CPU's name whether its AVX-512 units are worth using. A Sapphire Rapids in a virtual machine
// has none that it knows and is taken for a Haswell, at 0.6 of the speed. Intel's server CPUs with bf16
// instructions all have two units. BLIS looks at the variable once, at its first call.
static void choose_kernels(void) {
  char id[16];
  __builtin_cpu_init();
  if (!__builtin_cpu_is("intel") || !__builtin_cpu_supports("avx512bf16")) return;
  snprintf(id, sizeof id, "%d", (int)BLIS_ARCH_SKX);
  setenv("BLIS_ARCH_TYPE", id, 0); // what a user has set stays
}
#endif

void sk_cpu_blas_open(int threads, char *text, size_t size) {
#if defined(HAVE_BLIS)
#ifdef HAVE_BLIS_SKX
  choose_kernels();
#endif
  bli_init();
  // It stays on one thread unless the environment or the program says otherwise.
  if (!getenv("BLIS_NUM_THREADS")) bli_thread_set_num_threads(threads);
  arch_t arch = bli_arch_query_id();
  snprintf(text, size, "BLIS %s, %s%s", bli_info_get_version_str(), bli_arch_string(arch),
           arch == BLIS_ARCH_GENERIC ? " (generic fallback kernel)" : "");
#elif defined(HAVE_OPENBLAS)
  openblas_set_num_threads(threads);
  const char *core = openblas_get_corename();
  bool generic =
      strcmp(core, "Prescott") == 0 || strcmp(core, "ARMV8") == 0 || strstr(core, "eneric") != NULL;
  snprintf(text, size, "OpenBLAS, %s%s", core, generic ? " (generic fallback kernel)" : "");
#else
  (void)threads;
  snprintf(text, size, "a CBLAS without a name");
#endif
}

static float dot(const float *restrict a, const float *restrict b, int64_t k) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < k; i++) sum += a[i] * b[i];
  return sum;
}

// C[1,n] = alpha * a[k] B[n,k]^T + beta * C: one token through a linear layer. Reading B is all the
// cost, and a BLAS would do it with one thread.
static void one_row(int64_t n, int64_t k, float alpha, const float *a, const float *B, int64_t ldb,
                    float beta, float *C) {
#pragma omp parallel for schedule(static) if (n * k > 1 << 15)
  for (int64_t j = 0; j < n; j++) {
    float x = alpha * dot(a, B + j * ldb, k);
    C[j] = beta == 0 ? x : x + beta * C[j];
  }
}

// C[m,n] = alpha * A[m,k] B[n,k]^T + beta * C with sums in double: a small linear layer going forward. At
// this size time is no matter, while rounding is: a gated norm whose input is near zero enlarges it a
// hundred times, and the references of toy models (tests/golden.c) are to show mistakes, not noise.
enum { SMALL_WORK = 1 << 21 }; // multiplications; below a millisecond

static void small_product(int64_t m, int64_t n, int64_t k, double alpha, const float *A, int64_t lda,
                          const float *B, int64_t ldb, double beta, float *C, int64_t ldc) {
#pragma omp parallel for schedule(static) if (m * n * k > 1 << 15)
  for (int64_t i = 0; i < m; i++) {
    const float *restrict a = A + i * lda;
    for (int64_t j = 0; j < n; j++) {
      const float *restrict b = B + j * ldb;
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t l = 0; l < k; l++) sum += (double)a[l] * (double)b[l];
      C[i * ldc + j] = (float)(alpha * sum + (beta == 0 ? 0 : beta * (double)C[i * ldc + j]));
    }
  }
}

static bool small(int64_t m, int64_t n, int64_t k) {
  return m <= SMALL_WORK && n <= SMALL_WORK / m && k <= SMALL_WORK / (m * n);
}

// Of an odd number of rows or columns BLIS's kernels for small products (Haswell's and Zen's)
// compute the last one as a matrix times a vector, and the order of its sums depends on where a
// thread's part begins. Those for large ones do not, and are no slower here.
static void product(bool ta, bool tb, int m, int n, int k, float alpha, const float *A, int lda,
                    const float *B, int ldb, float beta, float *C, int ldc) {
#ifdef HAVE_BLIS
  if ((m | n) & 1) {
    rntm_t how;
    bli_rntm_init_from_global(&how);
    bli_rntm_disable_l3_sup(&how);
    bli_sgemm_ex(ta ? BLIS_TRANSPOSE : BLIS_NO_TRANSPOSE, tb ? BLIS_TRANSPOSE : BLIS_NO_TRANSPOSE,
                 m, n, k, &alpha, (float *)(uintptr_t)A, lda, 1, (float *)(uintptr_t)B, ldb, 1,
                 &beta, C, ldc, 1, NULL, &how);
    return;
  }
#endif
  cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k,
              alpha, A, lda, B, ldb, beta, C, ldc);
}

void sk_cpu_gemm(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha,
                 const void *A, int64_t lda, const void *B, int64_t ldb, double beta, void *C,
                 int64_t ldc, sk_dtype ct) {
  (void)s;
  SK_CHECK(ct == SK_F32, "gemm on the CPU writes fp32 only");
  if (m == 0 || n == 0) return;
  if (m == 1 && tb && (!ta || lda == 1)) {
    one_row(n, k, (float)alpha, A, B, ldb, (float)beta, C);
    return;
  }
  if (!ta && tb && small(m, n, k)) {
    small_product(m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
    return;
  }
  SK_CHECK(m <= INT_MAX && n <= INT_MAX && k <= INT_MAX && lda <= INT_MAX && ldb <= INT_MAX &&
               ldc <= INT_MAX,
           "gemm: %lld x %lld x %lld does not fit the BLAS's 32-bit sizes", (long long)m,
           (long long)n, (long long)k);
  product(ta, tb, (int)m, (int)n, (int)k, (float)alpha, A, (int)lda, B, (int)ldb, (float)beta, C,
          (int)ldc);
}

void sk_cpu_bias(sk_stream *s, void *y, int64_t ldy, const void *bias, double scale, int64_t n,
                 int64_t cols) {
  (void)s;
  const float *restrict b = bias;
  float f = (float)scale;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    float *restrict row = (float *)y + t * ldy;
#pragma omp simd
    for (int64_t c = 0; c < cols; c++) row[c] += f * b[c];
  }
}

void sk_cpu_bias_grad(sk_stream *s, float *dbias, const void *dy, int64_t ldy, double scale,
                      int64_t n, int64_t cols) {
  sk_cpu_blocks cut = sk_cpu_cut(n);
  double *part = sk_cpu_scratch(s, (size_t)(cut.count * cols) * sizeof *part);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < cut.count; i++) {
    double *restrict sum = part + i * cols;
    memset(sum, 0, (size_t)cols * sizeof *sum);
    for (int64_t t = i * cut.size; t < sk_min64(n, (i + 1) * cut.size); t++) {
      const float *restrict row = (const float *)dy + t * ldy;
#pragma omp simd
      for (int64_t c = 0; c < cols; c++) sum[c] += row[c];
    }
  }
  sk_cpu_reduce(dbias, part, cut.count, cols, scale);
}

void sk_cpu_add_f32(sk_stream *s, float *y, const float *a, const float *b, int64_t n) {
  (void)s;
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

void sk_cpu_add(sk_stream *s, void *y, const void *a, const void *b, int64_t n) {
  sk_cpu_add_f32(s, y, a, b, n);
}
