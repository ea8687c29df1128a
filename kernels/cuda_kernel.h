/* cuda_kernel.h: what the simple kernels share: wide loads, sums over a block, the shapes of
 * launches and sums over tokens. For .cu files of kernels/ only.
 *
 * A kernel is a template over the element type T (float or bf16) and V, the elements that a thread
 * moves at once: 16 bytes' worth where every pointer and row allows it, else 1. */
#ifndef SK_CUDA_KERNEL_H
#define SK_CUDA_KERNEL_H
#include <cuda_bf16.h>
#include "kernels/cuda.h"

namespace {

using bf16 = __nv_bfloat16;
constexpr int THREADS = 256;

// ---- elements ----

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}
__device__ inline void from_float(float &y, float x) {
  y = x;
}
__device__ inline void from_float(bf16 &y, float x) {
  y = __float2bfloat16_rn(x);
}
// What is left of x in an element of type T.
template <class T>
__device__ inline float rounded(float x) {
  T y;
  from_float(y, x);
  return to_float(y);
}

// V elements, in accesses of 16 bytes (or of all of them, when they are 8).
template <int V, class T>
__device__ inline void load(float (&x)[V], const T *p) {
  constexpr int bytes = V * sizeof(T);
  if constexpr (bytes % 16 == 0) {
    constexpr int E = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < V; i += E) {
      union {
        uint4 all;
        T each[E];
      } u = {*reinterpret_cast<const uint4 *>(p + i)};
#pragma unroll
      for (int j = 0; j < E; j++) x[i + j] = to_float(u.each[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; i++) x[i] = to_float(p[i]);
  }
}

template <int V, class T>
__device__ inline void store(T *p, const float (&x)[V]) {
  constexpr int bytes = V * sizeof(T);
  if constexpr (bytes % 16 == 0) {
    constexpr int E = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < V; i += E) {
      T each[E];
#pragma unroll
      for (int j = 0; j < E; j++) from_float(each[j], x[i + j]);
      uint4 all;
      memcpy(&all, each, 16);
      *reinterpret_cast<uint4 *>(p + i) = all;
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; i++) from_float(p[i], x[i]);
  }
}

// V elements as they lie in memory, in registers of 32 bits and loaded and stored in one access. (The
// compiler keeps a register for each element of an array of bf16, and stores them pair by pair, also
// through a uint4: four times as many requests.)
template <class T, int V>
struct packed {
  static constexpr int bytes = V * sizeof(T), words = bytes < 4 ? 1 : bytes / 4;
  static_assert(bytes == 16 || bytes == 8 || bytes == 4 || bytes == 2, "one access");
  unsigned w[words];

  __device__ void load(const void *p) {
    if constexpr (bytes == 16) {
      uint4 u = *(const uint4 *)p;
      w[0] = u.x, w[1] = u.y, w[2] = u.z, w[3] = u.w;
    } else if constexpr (bytes == 8) {
      uint2 u = *(const uint2 *)p;
      w[0] = u.x, w[1] = u.y;
    } else if constexpr (bytes == 4) {
      w[0] = *(const unsigned *)p;
    } else {
      w[0] = *(const unsigned short *)p;
    }
  }
  __device__ void store(void *p) const {
    if constexpr (bytes == 16)
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
                   "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                   : "memory");
    else if constexpr (bytes == 8)
      asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(w[0]),
                   "r"(w[1])
                   : "memory");
    else if constexpr (bytes == 4)
      *(unsigned *)p = w[0];
    else
      *(unsigned short *)p = (unsigned short)w[0];
  }
  // What is not read soon, in accesses of 8 bytes: other data stay in the caches.
  __device__ void store_once(void *p) const {
    if constexpr (bytes == 8)
      asm volatile("st.global.cs.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(w[0]), "r"(w[1])
                   : "memory");
    else
      store(p);
  }
  __device__ void unpack(float (&x)[V]) const {
#pragma unroll
    for (int j = 0; j < V; j++) {
      if constexpr (sizeof(T) == 4)
        x[j] = __uint_as_float(w[j]);
      else
        x[j] = __uint_as_float(j % 2 ? w[j / 2] & 0xffff0000 : w[j / 2] << 16);
    }
  }
  __device__ void pack(const float (&x)[V]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int j = 0; j < V; j++) w[j] = __float_as_uint(x[j]);
    } else if constexpr (V == 1) {
      w[0] = __bfloat16_as_ushort(__float2bfloat16_rn(x[0]));
    } else {
#pragma unroll
      for (int j = 0; j < V; j += 2) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(x[j], x[j + 1]);
        memcpy(&w[j / 2], &pair, 4);
      }
    }
  }
  // Makes the compiler forget the elements' values as floats, which would take twice the registers.
  __device__ void forget() {
#pragma unroll
    for (int j = 0; j < words; j++) asm("" : "+r"(w[j]));
  }
};

// ---- functions ----

__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}
__device__ inline float silu(float x) {
  return x / (1.0f + expf(-x));
}
// sigmoid for elements of type T: that of bf16 may be wrong in the last bits of fp32, in four
// instructions instead of dozens.
template <class T>
__device__ inline float logistic(float x) {
  if constexpr (sizeof(T) == 4) return sigmoid(x);
  float e, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.44269504f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + e));
  return y;
}
// log(1 + e^x) without overflow.
__device__ inline float softplus(float x) {
  return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}

// ---- sums over a block; all threads get the result, the order is fixed ----

struct plus {
  template <class X>
  __device__ X operator()(X a, X b) const {
    return a + b;
  }
};
struct larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// blockDim.x: a multiple of 32, at most 1024. `zero`: what changes nothing.
template <class X, class F>
__device__ inline X block_all(X x, X zero, F f) {
  __shared__ X part[32];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x = f(x, __shfl_xor_sync(~0u, x, i));
  if (warps == 1) return x;
  __syncthreads(); // the last use of part is over
  if (lane == 0) part[warp] = x;
  __syncthreads();
  x = lane < warps ? part[lane] : zero;
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x = f(x, __shfl_xor_sync(~0u, x, i));
  return x;
}

template <class X>
__device__ inline X block_sum(X x) {
  return block_all(x, X(0), plus());
}

// ---- launches ----

__host__ __device__ inline int64_t up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
__host__ __device__ inline int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Threads for one row of `cols` accesses: a power of two, 32 to `most`.
inline int row_threads(int64_t cols, int most = 1024) {
  int t = 32;
  while (t < most && t < cols) t *= 2;
  return t;
}

// n rows of `cols` accesses each: see SK_ROWS.
struct rows_shape {
  dim3 grid, block;
};
inline rows_shape rows(int64_t n, int64_t cols) {
  int x = 1;
  while (x < THREADS && x < cols) x *= 2;
  int y = THREADS / x;
  return {dim3((unsigned)up(cols, x), (unsigned)least(up(n, y), 65535)), dim3(x, y)};
}
// In a kernel launched like that: for all rows t, with this thread's access c < cols.
#define SK_ROWS(t, n, c, cols)                                                \
  if (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < (cols)) \
    for (int64_t t = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; t < (n); \
         t += (int64_t)gridDim.y * blockDim.y)

// n elements in one row.
inline unsigned blocks(int64_t n) {
  return (unsigned)least(up(n, THREADS), 1 << 16);
}
#define SK_EACH(i, n)                                                       \
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \
       i += (int64_t)gridDim.x * blockDim.x)

// All of these numbers of elements and pointers allow accesses of V elements of `size` bytes.
inline bool fits(int V, std::initializer_list<int64_t> counts,
                 std::initializer_list<const void *> pointers) {
  for (int64_t n : counts)
    if (n % V) return false;
  for (const void *p : pointers)
    if ((uintptr_t)p % 16) return false;
  return true;
}

template <class T>
struct type_tag {
  typedef T type;
};
template <int N>
struct number {
  static constexpr int value = N;
};

// f(type_tag<T>, number<V>) for the stream's act type; wide(V): whether V elements at once fit.
template <class W, class F>
inline void by_type(sk_stream *s, W wide, F f) {
  if (sk_cuda_act(s) == SK_F32) {
    if (wide(4))
      f(type_tag<float>(), number<4>());
    else
      f(type_tag<float>(), number<1>());
  } else {
    if (wide(8))
      f(type_tag<bf16>(), number<8>());
    else
      f(type_tag<bf16>(), number<1>());
  }
}
#define SK_TYPE(tag) typename decltype(tag)::type
#define SK_NUMBER(v) decltype(v)::value

// ---- sums over tokens: out[c] += scale * sum over t of f(t, c) ----

// n tokens in `count` parts of `size`; depends on the sizes alone.
struct cut {
  int64_t size, count;
};
inline cut cut_tokens(int64_t n, int64_t cols) {
  int64_t most = SK_CUDA_SCRATCH / (int64_t)sizeof(float) / (cols > 0 ? cols : 1);
  SK_CHECK(most > 0, "a sum over tokens of %lld columns", (long long)cols);
  most = least(most, 256);
  int64_t size = up(n, most) > 32 ? up(n, most) : 32;
  return {size, up(n, size)};
}

// part[blockIdx.y][cols]. A block has blockDim.x accesses of V columns; its blockDim.y rows of
// threads take turns with the tokens. f(t, c, x): the V values of token t from column c on.
template <int V, class F>
__global__ void token_sums(float *part, F f, int64_t n, int64_t cols, int64_t size) {
  extern __shared__ float turn[]; // [blockDim.y][blockDim.x * V]
  int64_t c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
  int64_t first = blockIdx.y * size, end = first + size < n ? first + size : n;
  float sum[V] = {}, x[V];
  if (c < cols) {
    for (int64_t t = first + threadIdx.y; t < end; t += blockDim.y) {
      f(t, c, x);
#pragma unroll
      for (int i = 0; i < V; i++) sum[i] += x[i];
    }
  }
  int width = blockDim.x * V;
#pragma unroll
  for (int i = 0; i < V; i++) turn[threadIdx.y * width + threadIdx.x * V + i] = sum[i];
  __syncthreads();
  if (threadIdx.y > 0 || c >= cols) return;
  for (int y = 1; y < (int)blockDim.y; y++)
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] += turn[y * width + threadIdx.x * V + i];
#pragma unroll
  for (int i = 0; i < V; i++) part[blockIdx.y * cols + c + i] = sum[i];
}

// The sum of part[0 .. count - 1][c] in double, for blocks of COLS x ROWS threads, all of which call it. The
// rows of threads share out the parts, so that all of them (a few hundred, unless otherwise said) are loaded
// at once, and are then added in pairs. COLS: at least an access of memory.
constexpr int PART_COLS = 8, PART_ROWS = 64;
template <int COLS = PART_COLS, int ROWS = PART_ROWS>
__device__ inline double sum_parts(const float *part, int64_t count, int64_t cols, int64_t c) {
  __shared__ double turn[ROWS][COLS];
  int row = threadIdx.y;
  double sum = 0;
  for (int64_t i = row; c < cols && i < count; i += 8 * ROWS) {
    float some[8]; // all asked for before the first is added
#pragma unroll
    for (int k = 0; k < 8; k++) some[k] = i + k * ROWS < count ? part[(i + k * ROWS) * cols + c] : 0;
#pragma unroll
    for (int k = 0; k < 8; k++) sum += some[k];
  }
  turn[row][threadIdx.x] = sum;
  for (int half = ROWS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) turn[row][threadIdx.x] += turn[row + half][threadIdx.x];
  }
  return turn[0][threadIdx.x]; // right in row 0, which wrote it
}

// out[cols] += scale * the sums over the parts.
static __global__ void add_parts(float *out, const float *part, int64_t count, int64_t cols,
                                 double scale) {
  int64_t c = (int64_t)blockIdx.x * PART_COLS + threadIdx.x;
  double sum = sum_parts(part, count, cols, c);
  if (threadIdx.y == 0 && c < cols) out[c] = (float)(out[c] + scale * sum);
}

inline void launch_add_parts(sk_stream *s, float *out, const float *part, int64_t count,
                             int64_t cols, double scale) {
  add_parts<<<(unsigned)up(cols, PART_COLS), dim3(PART_COLS, PART_ROWS), 0, sk_cuda_stream(s)>>>(
      out, part, count, cols, scale);
  SK_CUDA(cudaGetLastError());
}

template <int V, class F>
inline void sum_tokens(sk_stream *s, float *out, F f, int64_t n, int64_t cols, double scale) {
  if (n == 0 || cols == 0) return;
  cut k = cut_tokens(n, cols);
  float *part = (float *)sk_cuda_scratch(s, (size_t)(k.count * cols) * sizeof *part);
  int x = 1;
  while (x < 64 && x < cols / V) x *= 2;
  dim3 block(x, THREADS / x), grid((unsigned)up(cols / V, x), (unsigned)k.count);
  size_t bytes = (size_t)THREADS * V * sizeof(float);
  token_sums<V><<<grid, block, bytes, sk_cuda_stream(s)>>>(part, f, n, cols, k.size);
  SK_CUDA(cudaGetLastError());
  launch_add_parts(s, out, part, k.count, cols, scale);
}

} // namespace
#endif
