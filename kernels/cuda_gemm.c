/* cuda_gemm.c: matrix products by cuBLASLt. It wants column-major matrices: a row-major C is a
 * column-major C^T = op(B)^T op(A)^T, so A and B change places and every matrix keeps its memory.
 *
 * Deterministic: for each shape (with the pointers' alignments) the library's heuristic is asked
 * once and one of its answers taken by rule, never by time; partial sums (split-K) may only be
 * added in a buffer of their own, and every stream has its own workspace. fp32 is computed in fp32
 * (no TF32), bf16 with fp32 accumulation. */
#include <cublasLt.h>
#include <stdio.h>
#include <string.h>
#include "kernels/cuda.h"

enum { LISTS = 256, ANSWERS = 8 };

typedef struct key {
  int64_t m, n, k, lda, ldb, ldc;
  uint8_t ta, tb, act, ct, reads_c; // beta != 0
  uint8_t align[3];                 // of A, B, C: log2, at most 4 (16 bytes)
} key;

typedef struct product {
  struct product *next;
  key key;
  int answers, rule; // none: the library cannot do it
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t A, B, C;
  cublasLtMatmulAlgo_t algo[ANSWERS];
} product;

struct sk_cuda_blas {
  cublasLtHandle_t handle;
  product *list[LISTS];
  int choice; // for measurements; -1: by rule
};

static void check(cublasStatus_t rc, const char *what, int line) {
  if (rc != CUBLAS_STATUS_SUCCESS)
    sk_die(__FILE__, line, "%s: %s", what, cublasLtGetStatusString(rc));
}
#define BLAS(call) check((call), #call, __LINE__)

sk_cuda_blas *sk_cuda_blas_open(char *text, size_t size) {
  sk_cuda_blas *b = sk_calloc(1, sizeof *b);
  BLAS(cublasLtCreate(&b->handle));
  b->choice = -1;
  size_t v = cublasLtGetVersion();
  snprintf(text, size, "cuBLASLt %zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
  return b;
}

void sk_cuda_blas_close(sk_cuda_blas *b) {
  if (!b) return;
  for (int i = 0; i < LISTS; i++) {
    for (product *p = b->list[i], *next; p; p = next) {
      next = p->next;
      BLAS(cublasLtMatmulDescDestroy(p->desc));
      BLAS(cublasLtMatrixLayoutDestroy(p->A));
      BLAS(cublasLtMatrixLayoutDestroy(p->B));
      BLAS(cublasLtMatrixLayoutDestroy(p->C));
      sk_free(p);
    }
  }
  BLAS(cublasLtDestroy(b->handle));
  sk_free(b);
}

int sk_cuda_blas_choose(sk_cuda_blas *b, int choice) {
  b->choice = choice;
  return ANSWERS;
}

// ---- the choice of an algorithm ----

static uint8_t alignment(const void *p) {
  int bits = 0;
  while (bits < 4 && (uintptr_t)p % (2u << bits) == 0) bits++;
  return (uint8_t)bits;
}

static cudaDataType_t type(int t) {
  return t == SK_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static cublasLtMatrixLayout_t layout(int t, bool transposed, int64_t rows, int64_t cols,
                                     int64_t ld) {
  cublasLtMatrixLayout_t l;
  if (transposed)
    BLAS(cublasLtMatrixLayoutCreate(&l, type(t), (uint64_t)cols, (uint64_t)rows, ld));
  else
    BLAS(cublasLtMatrixLayoutCreate(&l, type(t), (uint64_t)rows, (uint64_t)cols, ld));
  return l;
}

static void set(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t what,
                uint64_t value, size_t size) {
  uint32_t narrow = (uint32_t)value;
  BLAS(cublasLtMatmulPreferenceSetAttribute(p, what, size == 4 ? (void *)&narrow : (void *)&value,
                                            size));
}

// A kernel's tile and the shape of its clusters. Measured over the products of layers of the
// 0.5B, 1.5B and 7B models on an H100 (docs/kernels.md), the first of these among the first `among`
// answers is faster than the first answer, which is the one for lists without it.
typedef struct liking {
  int tile, cluster, among;
} liking;
enum { ALL = ANSWERS };
static const liking for_y[] = {{20, 3, ALL}, {29, 3, ALL}, {29, 5, ALL}, {201, 5, ALL}, {197, 5, ALL}, {0}},
                    for_scores[] = {{197, 3, ALL}, {201, 5, ALL}, {0}},
                    for_dx[] = {{20, 3, ALL}, {29, 3, ALL}, {29, 5, ALL}, {0}}, for_long_dx[] = {{24, 5, ALL}, {0}},
                    for_dw[] = {{495, 5, ALL}, {23, 3, ALL}, {0}},
                    for_small_dw[] = {{116, 3, 5},  {495, 5, ALL}, {208, 5, ALL}, {20, 3, 1},
                                      {21, 5, ALL}, {20, 3, 5},    {23, 3, ALL},  {0}},
                    for_tall_dw[] = {{29, 3, ALL}, {24, 5, ALL}, {0}}, for_large_dw[] = {{24, 5, ALL}, {0}},
                    for_none[] = {{0}};

static const liking *likings(const key *k) {
  if (k->act != SK_BF16) return for_none;
  if (k->ta && k->m >= 1 << 14) return k->n <= 2048 ? for_tall_dw : for_large_dw;
  if (k->ta) return k->m * k->n <= 1 << 22 ? for_small_dw : for_dw;
  if (k->tb) return k->ct == SK_BF16 ? for_y : for_scores;
  return k->k < 4096 ? for_dx : for_long_dx;
}

static bool is(const cublasLtMatmulAlgo_t *algo, liking want) {
  int tile = 0;
  uint16_t cluster = 0;
  size_t n;
  BLAS(cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile,
                                            &n));
  BLAS(cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster,
                                            sizeof cluster, &n));
  return tile == want.tile && cluster == want.cluster;
}

static int best(const key *k, const cublasLtMatmulHeuristicResult_t *found, int n) {
  for (const liking *l = likings(k); l->tile; l++)
    for (int i = 0; i < n && i < l->among; i++)
      if (is(&found[i].algo, *l)) return i;
  return 0;
}

static void choose(sk_cuda_blas *b, product *p) {
  const key *k = &p->key;
  const cublasOperation_t T = CUBLAS_OP_T;
  cublasLtMatmulPreference_t want;
  cublasLtMatmulHeuristicResult_t found[ANSWERS];
  int n = 0;
  BLAS(cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  // In the library's terms: first factor op(B)^T [n,k], second op(A)^T [k,m], result [n,m].
  if (k->tb)
    BLAS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &T, sizeof T));
  if (k->ta)
    BLAS(cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &T, sizeof T));
  p->B = layout(k->act, k->tb, k->n, k->k, k->ldb);
  p->A = layout(k->act, k->ta, k->k, k->m, k->lda);
  p->C = layout(k->ct, false, k->n, k->m, k->ldc);
  BLAS(cublasLtMatmulPreferenceCreate(&want));
  set(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, SK_CUDA_WORKSPACE, 8);
  set(want, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      (uint64_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 4);
  set(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint64_t)1 << k->align[1], 4);
  set(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint64_t)1 << k->align[0], 4);
  set(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint64_t)1 << k->align[2], 4);
  set(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint64_t)1 << k->align[2], 4);
  cublasStatus_t rc = cublasLtMatmulAlgoGetHeuristic(b->handle, p->desc, p->B, p->A, p->C, p->C,
                                                     want, ANSWERS, found, &n);
  for (int i = 0; rc == CUBLAS_STATUS_SUCCESS && i < n; i++) {
    if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
    found[p->answers] = found[i];
    p->algo[p->answers++] = found[i].algo;
  }
  p->rule = best(k, found, p->answers);
  BLAS(cublasLtMatmulPreferenceDestroy(want));
}

static product *look_up(sk_cuda_blas *b, const key *k) {
  uint64_t h = 0;
  const unsigned char *byte = (const unsigned char *)k;
  for (size_t i = 0; i < sizeof *k; i++) h = (h ^ byte[i]) * UINT64_C(0x100000001b3);
  product **list = &b->list[(h >> 24) % LISTS];
  for (product *p = *list; p; p = p->next)
    if (memcmp(&p->key, k, sizeof *k) == 0) return p;
  product *p = sk_calloc(1, sizeof *p);
  p->key = *k;
  choose(b, p);
  p->next = *list;
  return *list = p;
}

static void one_product(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k,
                        double alpha, const void *A, int64_t lda, const void *B, int64_t ldb,
                        double beta, void *C, int64_t ldc, sk_dtype ct) {
  const key want = {.m = m,
                    .n = n,
                    .k = k,
                    .lda = lda,
                    .ldb = ldb,
                    .ldc = ldc,
                    .ta = ta,
                    .tb = tb,
                    .act = (uint8_t)sk_cuda_act(s),
                    .ct = (uint8_t)ct,
                    .reads_c = beta != 0,
                    .align = {alignment(A), alignment(B), alignment(C)}};
  sk_cuda_blas *b = sk_cuda_blas_of(s);
  const product *p = k > 0 ? look_up(b, &want) : NULL;
  if (!p || p->answers == 0) {
    sk_cuda_gemm_plain(s, ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, ct);
    return;
  }
  const float al = (float)alpha, be = (float)beta;
  const int i = b->choice >= 0 && b->choice < p->answers ? b->choice : p->rule;
  BLAS(cublasLtMatmul(b->handle, p->desc, &al, B, p->B, A, p->A, &be, C, p->C, C, p->C,
                      &p->algo[i], sk_cuda_workspace(s), SK_CUDA_WORKSPACE, sk_cuda_stream(s)));
}

// The library's fast kernels want sizes that are multiples of 8 (a vocabulary may be odd): what is
// over is a product of its own. Returns how much of `size` is done first.
static int64_t first_part(sk_stream *s, int64_t size) {
  return sk_cuda_act(s) == SK_BF16 && size > 256 ? size / 8 * 8 : size;
}

static const void *from(const void *x, int64_t elements, sk_dtype type) {
  return (const char *)x + (size_t)elements * sk_dtype_size(type);
}

void sk_cuda_gemm(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha,
                  const void *A, int64_t lda, const void *B, int64_t ldb, double beta, void *C,
                  int64_t ldc, sk_dtype ct) {
  if (m == 0 || n == 0) return;
  sk_dtype act = sk_cuda_act(s);
  int64_t m0 = first_part(s, m), n0 = first_part(s, n), k0 = first_part(s, k);
  if (m0 < m) {
    sk_cuda_gemm(s, ta, tb, m0, n, k, alpha, A, lda, B, ldb, beta, C, ldc, ct);
    sk_cuda_gemm(s, ta, tb, m - m0, n, k, alpha, from(A, ta ? m0 : m0 * lda, act), lda, B, ldb,
                 beta, (void *)(uintptr_t)from(C, m0 * ldc, ct), ldc, ct);
  } else if (n0 < n) {
    sk_cuda_gemm(s, ta, tb, m, n0, k, alpha, A, lda, B, ldb, beta, C, ldc, ct);
    sk_cuda_gemm(s, ta, tb, m, n - n0, k, alpha, A, lda, from(B, tb ? n0 * ldb : n0, act), ldb,
                 beta, (void *)(uintptr_t)from(C, n0, ct), ldc, ct);
  } else if (k0 < k) {
    sk_cuda_gemm(s, ta, tb, m, n, k - k0, alpha, from(A, ta ? k0 * lda : k0, act), lda,
                 from(B, tb ? k0 : k0 * ldb, act), ldb, beta, C, ldc, ct);
    sk_cuda_gemm(s, ta, tb, m, n, k0, alpha, A, lda, B, ldb, 1, C, ldc, ct);
  } else {
    one_product(s, ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, ct);
  }
}
