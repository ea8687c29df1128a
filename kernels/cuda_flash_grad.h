/* cuda_flash_grad.h: what the backward kernels of attention share (kernels/cuda_attention_grad.cu
 * and cuda_attention_groups_grad.cu): which rows meet which keys, and the steps between the
 * products. */
#ifndef SK_CUDA_FLASH_GRAD_H
#define SK_CUDA_FLASH_GRAD_H
#include "kernels/cuda_flash.h"

// ---- which tiles of rows a tile of keys meets ----

// All tiles in [first, last] that see some key are those for which `visible` holds.
struct row_walk {
  const int2 *range;
  int first, last, key0, key1; // keys key0 .. key1
};

static __device__ inline bool visible(const row_walk &w, int tile) {
  return w.range[tile].x <= w.key1;
}

static __device__ inline int next_tile(const row_walk &w, int tile) {
  while (tile <= w.last && !visible(w, tile)) tile++;
  return tile;
}

// All threads call it; it has a barrier. Documents usually end soon after the keys, so the last
// tile is looked for by all threads at once. found: one int a warp.
template <int WARPS>
static __device__ inline row_walk walk_of(const flash_call &c, int *found, int bi, int j0,
                                          int keys) {
  row_walk w = {c.range + (int64_t)bi * c.tiles, 0, -1, j0, min(j0 + keys, c.Tk) - 1};
  if (j0 < c.q0 + c.Tq) {
    w.first = (int)((int64_t)max(j0 - c.q0, 0) * c.group / (c.padded / c.tiles));
    for (int t = w.first + (int)threadIdx.x; t < c.tiles; t += 32 * WARPS)
      if (visible(w, t)) w.last = t;
  }
  w.last = __reduce_max_sync(0xffffffffu, w.last);
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = w.last;
  __syncthreads();
  for (int i = 0; i < WARPS; i++) w.last = max(w.last, found[i]);
  w.first = next_tile(w, w.first);
  return w;
}

// Whether every row of the tile sees every key of the walk's tile.
static __device__ inline bool all_seen(const flash_call &c, const row_walk &w, int tile, int keys) {
  int pos = c.q0 + token_of(c, tile * (c.padded / c.tiles));
  return w.range[tile].y <= w.key0 && min(pos, c.Tk - 1) >= w.key0 + keys - 1;
}

// ---- between the products ----

// Scores [key][row] of rows that do not see the key become -inf.
template <int M, int N>
static __device__ inline void mask_rows(float (&s)[M][N][4], const int2 *seen, int key0) {
  int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < N; n++) {
    int4 keys = *(const int4 *)(seen + 8 * n + 2 * t);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int key = key0 + 16 * m + 8 * half + g;
        if (key < keys.x || key > keys.y) s[m][n][2 * half] = -INFINITY;
        if (key < keys.z || key > keys.w) s[m][n][2 * half + 1] = -INFINITY;
      }
  }
}

// Scores [key][row] -> probabilities.
template <int M, int N>
static __device__ inline void probabilities_of_rows(float (&s)[M][N][4], const float2 *stat,
                                                    float scale2) {
  int t = (int)threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < N; n++) {
    float lse[2] = {stat[8 * n + 2 * t].x, stat[8 * n + 2 * t + 1].x};
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale2, -lse[e % 2]));
  }
}

// dp -> ds = p (dp - delta), [key][row].
template <int M, int N>
static __device__ inline void grads_of_rows(const float (&p)[M][N][4], float (&dp)[M][N][4],
                                            const float2 *stat) {
  int t = (int)threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < N; n++) {
    float delta[2] = {stat[8 * n + 2 * t].y, stat[8 * n + 2 * t + 1].y};
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int e = 0; e < 4; e++) dp[m][n][e] = p[m][n][e] * (dp[m][n][e] - delta[e % 2]);
  }
}

// The same for [row][key]; stat is that of the warp's first row.
template <int M, int N>
static __device__ inline void probabilities_of_keys(float (&s)[M][N][4], const float2 *stat,
                                                    float scale2) {
  int g = (int)threadIdx.x % 32 / 4;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float lse = stat[16 * m + 8 * half + g].x;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++)
          s[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale2, -lse));
    }
}

template <int M, int N>
static __device__ inline void grads_of_keys(const float (&p)[M][N][4], float (&dp)[M][N][4],
                                            const float2 *stat) {
  int g = (int)threadIdx.x % 32 / 4;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float delta = stat[16 * m + 8 * half + g].y;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++)
          dp[m][n][e] = p[m][n][e] * (dp[m][n][e] - delta);
    }
}

#endif
