/* cuda_row.h: rows that are read once: a token's row (or its group of columns) lies in the registers
 * of blockDim.x threads, blockDim.y rows in a block. A thread has up to M accesses of V elements,
 * blockDim.x accesses apart. For .cu files of kernels/ only. */
#ifndef SK_CUDA_ROW_H
#define SK_CUDA_ROW_H
#include "kernels/cuda_kernel.h"

namespace {

constexpr int ROW_THREADS = 512; // of a block at most

// A thread's part of a row.
template <class T, int V, int M>
struct reg_row {
  packed<T, V> at[M];
  // Access i is of columns column(i) .. + V - 1; there are `cols` columns.
  static __device__ int64_t column(int i) {
    return ((int64_t)i * blockDim.x + threadIdx.x) * V;
  }
  __device__ void get(const T *p, int64_t cols, bool here = true) {
#pragma unroll
    for (int i = 0; i < M; i++)
      if (here && column(i) < cols) at[i].load(p + column(i));
  }
  __device__ void forget() {
#pragma unroll
    for (int i = 0; i < M; i++) at[i].forget();
  }
  __device__ void put(T *p, int64_t cols) const {
#pragma unroll
    for (int i = 0; i < M; i++)
      if (column(i) < cols) at[i].store(p + column(i));
  }
};

// f(i) for every access that the thread has.
template <int V, int M, class F>
__device__ inline void each_access(int64_t cols, F f) {
#pragma unroll
  for (int i = 0; i < M; i++)
    if (((int64_t)i * blockDim.x + threadIdx.x) * V < cols) f(i);
}

// Sum over the blockDim.x threads of each row; all threads of the block call it. turn: 0 and 1 in
// turns, so that one barrier will do.
__device__ inline float row_sum(float x, int turn = 0) {
  __shared__ float part[2][ROW_THREADS / 32];
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  int warps = blockDim.x / 32, mine = threadIdx.y * warps;
  if (warps == 1) return x;
  if (threadIdx.x % 32 == 0) part[turn][mine + threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int i = 0; i < warps; i++) x += part[turn][mine + i];
  return x;
}

// part[blockIdx.x][cols of all]: the sums of all rows of threads, in their order, at column c0.
template <int V, int M>
__device__ inline void put_sums(float *part, float (&sum)[M][V], int64_t c0, int64_t cols,
                                int64_t all) {
  __shared__ float turn[ROW_THREADS][V];
  int me = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
  for (int i = 0; i < M; i++) {
    int64_t c = ((int64_t)i * blockDim.x + threadIdx.x) * V;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < V; j++) turn[me][j] = sum[i][j];
    __syncthreads();
    if (threadIdx.y > 0 || c >= cols) continue;
#pragma unroll
    for (int j = 0; j < V; j++) {
      float x = 0;
      for (int y = 0; y < (int)blockDim.y; y++) x += turn[y * blockDim.x + threadIdx.x][j];
      part[blockIdx.x * all + c0 + c + j] = x;
    }
  }
}

// ---- launches ----

// Threads for rows of `cols` elements in accesses of V; m: accesses of a thread, as few as will do:
// with few registers more threads have loads under way. fill: threads of a block that short rows are to
// fill. MANY: for rows of tens of thousands, slow.
template <int V>
constexpr int MANY = V == 1 ? 64 : 16;
struct row_shape {
  dim3 block;
  int m;
};
template <int V>
inline row_shape shape_of_rows(int64_t cols, int fill) {
  int64_t accesses = up(cols, V);
  int m = 1;
  while (m < 4 && accesses > m * ROW_THREADS) m *= 2;
  if (accesses > m * ROW_THREADS) m = MANY<V>;
  int64_t x = up(up(accesses, m), 32) * 32;
  SK_CHECK(x <= ROW_THREADS, "rows of %lld elements are too long", (long long)cols);
  return {dim3((unsigned)x, (unsigned)(x < fill ? fill / x : 1)), m};
}

// Threads of a block, and blocks on an SM, of kernels that look at a row and are done, and of those that
// sum over tokens and keep the next row's loads under way.
constexpr int LOOK_THREADS = 256, SUM_THREADS = 512;
constexpr int look_blocks(int m) {
  return m == 1 ? 3 : m == 2 ? 2 : 1;
}
constexpr int sum_blocks(int m) {
  return m == 1 ? 2 : 1;
}
// Blocks that take turns with n rows in such a kernel; `groups` of them run side by side, and all
// should be on the SMs (an H100's; the rule knows sizes alone) at the same time. cols: of all groups.
inline int64_t row_parts(int64_t n, int64_t groups, int64_t cols, const row_shape &r) {
  int64_t most = least(132 * sum_blocks(r.m) / groups,
                       SK_CUDA_SCRATCH / (int64_t)sizeof(float) / cols);
  return least(most > 1 ? most : 1, up(n, r.block.y));
}

// f(number<M>) for the shape's accesses.
template <int V, class F>
inline void by_accesses(const row_shape &r, F f) {
  if (r.m == 1)
    f(number<1>());
  else if (r.m == 2)
    f(number<2>());
  else if (r.m == 4)
    f(number<4>());
  else
    f(number<MANY<V>>());
}

} // namespace
#endif
