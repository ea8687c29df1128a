/* cuda_embed.cu: the embedding (2.1). For the gradient the tokens are sorted by their row, in the
 * order of the tokens within a row (a counting sort without atomics on anything that matters); then
 * one block of threads adds a row's tokens in that order. */
#include "kernels/cuda_kernel.h"

namespace {

template <int V, class T>
__global__ void look_up(T *h, const int32_t *ids, const T *E, float mult, int64_t n, int64_t d,
                        int64_t v0, int64_t nv) {
  SK_ROWS(t, n, c, d / V) {
    int64_t row = ids[t] - v0;
    float x[V] = {};
    if (row >= 0 && row < nv) load(x, E + row * d + c * V);
#pragma unroll
    for (int j = 0; j < V; j++) x[j] *= mult;
    store(h + t * d + c * V, x);
  }
}

constexpr int ROWS = 64; // of the table, sorted by one warp

// The row of token t, -1 when it gives nothing.
struct tokens {
  const int32_t *ids;
  int64_t n, v0, nv, pad;
  __device__ int row(int64_t t) const {
    int64_t id = t < n ? ids[t] : -1, r = id - v0;
    return t < n && r >= 0 && r < nv && id != pad ? (int)r : -1;
  }
};

__device__ inline int warp_sum(int x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

// order[first[r]] .. order[first[r + 1] - 1]: the tokens of row r, ascending. One warp for ROWS
// rows from r0 on.
__global__ void sort_tokens(int32_t *order, int32_t *first, tokens k) {
  __shared__ int at[ROWS];
  int lane = threadIdx.x, r0 = blockIdx.x * ROWS, before = 0;
  for (int i = lane; i < ROWS; i += 32) at[i] = 0;
  __syncwarp();
  for (int64_t t = lane; t < k.n; t += 32) {
    int r = k.row(t);
    before += r >= 0 && r < r0;
    if (r >= r0 && r < r0 + ROWS) atomicAdd(&at[r - r0], 1); // a count: the order does not matter
  }
  before = warp_sum(before);
  __syncwarp();
  if (lane == 0) { // counts become places
    for (int i = 0; i < ROWS; i++) {
      int count = at[i];
      at[i] = before;
      if (r0 + i <= k.nv) first[r0 + i] = before;
      before += count;
    }
    if (r0 + ROWS >= k.nv) first[k.nv] = before;
  }
  __syncwarp();
  for (int64_t t0 = 0; t0 < k.n; t0 += 32) {
    int r = k.row(t0 + lane);
    bool mine = r >= r0 && r < r0 + ROWS;
    if (!__any_sync(~0u, mine)) continue;
    unsigned same = __match_any_sync(~0u, mine ? r : -1);
    int rank = __popc(same & ((1u << lane) - 1));
    if (mine) order[at[r - r0] + rank] = (int32_t)(t0 + lane);
    __syncwarp();
    if (mine && rank == 0) at[r - r0] += __popc(same);
    __syncwarp();
  }
}

// dE[row] += mult * sum of dh over the row's tokens.
template <int V, class T>
__global__ void add_tokens(float *dE, const int32_t *order, const int32_t *first, const T *dh,
                           float mult, int64_t d) {
  int64_t row = blockIdx.x, c = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * V;
  int from = first[row], to = first[row + 1];
  if (from == to || c >= d) return;
  float sum[V] = {}, x[4][V];
  int i = from;
  for (; i + 4 <= to; i += 4) {
#pragma unroll
    for (int k = 0; k < 4; k++) load(x[k], dh + order[i + k] * d + c);
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] += x[k][j];
  }
  for (; i < to; i++) {
    load(x[0], dh + order[i] * d + c);
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] += x[0][j];
  }
  float *out = dE + row * d + c;
  load(x[0], out);
#pragma unroll
  for (int j = 0; j < V; j++) x[0][j] += mult * sum[j];
  store(out, x[0]);
}

} // namespace

extern "C" {

void sk_cuda_embed(sk_stream *s, void *h, const int32_t *ids, const void *E, double mult, int64_t n,
                   int64_t d, int64_t v0, int64_t nv) {
  if (n == 0 || d == 0) return;
  by_type(
      s,
      [&](int V) {
        return fits(V, {d}, {h, E});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        rows_shape r = rows(n, d / V);
        look_up<V><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>((T *)h, ids, (const T *)E,
                                                              (float)mult, n, d, v0, nv);
      });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_embed_grad(sk_stream *s, float *dE, const int32_t *ids, const void *dh, double mult,
                        int64_t n, int64_t d, int64_t v0, int64_t nv, int64_t pad) {
  if (n == 0 || d == 0 || nv == 0) return;
  SK_CHECK(n < INT32_MAX && nv < INT32_MAX, "embed_grad: %lld tokens, %lld rows", (long long)n,
           (long long)nv);
  int32_t *order = (int32_t *)sk_cuda_scratch(s, (size_t)(n + nv + 1) * sizeof *order),
          *first = order + n;
  tokens k = {ids, n, v0, nv, pad};
  sort_tokens<<<(unsigned)up(nv, ROWS), 32, 0, sk_cuda_stream(s)>>>(order, first, k);
  SK_CUDA(cudaGetLastError());
  by_type(
      s,
      [&](int V) {
        return fits(V, {d}, {dE, dh});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        int threads = row_threads(d / V, 128);
        dim3 grid((unsigned)nv, (unsigned)up(d / V, threads));
        add_tokens<V><<<grid, threads, 0, sk_cuda_stream(s)>>>(dE, order, first, (const T *)dh,
                                                               (float)mult, d);
      });
  SK_CUDA(cudaGetLastError());
}

} // extern "C"
