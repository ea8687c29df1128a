/* cuda_row.h: rows that are read once: a token's row (or its group of columns) lies in the registers
 * of blockDim.x threads, blockDim.y rows in a block. A thread has up to M accesses of V elements,
 * blockDim.x accesses apart. For .cu files of kernels/ only. */
#ifndef SK_CUDA_ROW_H
#define SK_CUDA_ROW_H
#include "kernels/cuda_kernel.h"

namespace {

constexpr int ROW_THREADS = 256; // of a block
constexpr int ROW_PARTS = 1320;  // most blocks whose sums over tokens are added up afterwards

// A thread's part of a row, as it lies in memory.
template <class T, int V, int M>
struct reg_row {
  struct alignas(V * sizeof(T)) piece {
    T e[V];
  } at[M];
  // Access i is of columns column(i) .. + V - 1; there are `cols` columns.
  static __device__ int64_t column(int i) {
    return ((int64_t)i * blockDim.x + threadIdx.x) * V;
  }
  __device__ void get(const T *p, int64_t cols, bool here = true) {
#pragma unroll
    for (int i = 0; i < M; i++)
      if (here && column(i) < cols) at[i] = *(const piece *)(p + column(i));
  }
  // Makes the compiler forget the elements' values as floats, which would take twice the registers.
  __device__ void pack() {
    if constexpr (sizeof(T) == 2 && V % 2 == 0)
#pragma unroll
      for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < V / 2; j++) asm("" : "+r"(reinterpret_cast<unsigned *>(at[i].e)[j]));
  }
  __device__ void put(T *p, int64_t cols) const {
#pragma unroll
    for (int i = 0; i < M; i++)
      if (column(i) < cols) *(piece *)(p + column(i)) = at[i];
  }
};

// f(i, j) for every element that the thread has: at[i].e[j].
template <int V, int M, class F>
__device__ inline void each_column(int64_t cols, F f) {
#pragma unroll
  for (int i = 0; i < M; i++)
    if (((int64_t)i * blockDim.x + threadIdx.x) * V < cols)
#pragma unroll
      for (int j = 0; j < V; j++) f(i, j);
}

// Sum over the blockDim.x threads of each row; all threads of the block call it.
__device__ inline float row_sum(float x) {
  __shared__ float part[ROW_THREADS / 32];
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  int warps = blockDim.x / 32, mine = threadIdx.y * warps;
  if (warps == 1) return x;
  __syncthreads(); // the last use of part is over
  if (threadIdx.x % 32 == 0) part[mine + threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int i = 0; i < warps; i++) x += part[mine + i];
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
// with few registers more threads have loads under way. MANY: for rows of tens of thousands, slow.
template <int V>
constexpr int MANY = V == 1 ? 64 : 16;
struct row_shape {
  dim3 block;
  int m;
};
template <int V>
inline row_shape shape_of_rows(int64_t cols) {
  int64_t accesses = up(cols, V);
  int m = 1;
  while (m < 4 && accesses > m * ROW_THREADS) m *= 2;
  if (accesses > m * ROW_THREADS) m = MANY<V>;
  int64_t x = up(up(accesses, m), 32) * 32;
  SK_CHECK(x <= ROW_THREADS, "rows of %lld elements are too long", (long long)cols);
  return {dim3((unsigned)x, (unsigned)(ROW_THREADS / x)), m};
}

// Blocks for n rows whose sums over tokens, of `cols` columns, are wanted, and the rows of each; from
// sizes alone.
inline cut cut_rows(int64_t n, int64_t cols, const row_shape &r) {
  int64_t most = least(ROW_PARTS, SK_CUDA_SCRATCH / (int64_t)sizeof(float) / cols);
  int64_t size = up(up(n, most), r.block.y) * r.block.y;
  return {size, up(n, size)};
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
