/* cuda_ssd_write.h: the side of the tokens that write to the state; see cuda_ssd_chunk.cu, which
 * alone includes it. */
#ifndef SK_CUDA_SSD_WRITE_H
#define SK_CUDA_SSD_WRITE_H
#include "kernels/cuda_ssd_side.h"

namespace {

template <int NN>
struct write_memory {
  side_memory<NN> s;
  bf16 v[2][2 * PANEL];
  uint4 R[3][4][128]; // B C^T as operands: [block 00, 11, 10 transposed][16 columns][thread]
};
// M = R L of 16 columns (tokens i, later ones); `diagonal`: where they meet the warp's rows.
__device__ inline void fade_own(uint32_t (&M)[4], const uint4 &R, const float2 *steps, int k) {
  int lane = thread_here() % 32, t = lane % 4, row = row_here();
  const float cs[2] = {steps[row].x, steps[row + 8].x};
  const uint32_t r[4] = {R.x, R.y, R.z, R.w};
#pragma unroll
  for (int e = 0; e < 4; e++) {
    int i = 16 * k + 8 * (e / 2) + 2 * t, j = row + e % 2 * 8;
    float4 two = *(const float4 *)(steps + i);
    M[e] = scaled(r[e], fade(i >= j, two.x, cs[e % 2]), fade(i + 1 >= j, two.z, cs[e % 2]));
  }
}
__device__ inline void fade_late(uint32_t (&M)[4], const uint4 &R, const float2 *steps,
                                 const float (&left)[2], int k) {
  int t = thread_here() % 4;
  const uint32_t r[4] = {R.x, R.y, R.z, R.w};
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float4 two = *(const float4 *)(steps + 16 * k + 8 * half + 2 * t);
    float in0 = fast_exp2(two.x), in1 = fast_exp2(two.z);
#pragma unroll
    for (int row = 0; row < 2; row++)
      M[2 * half + row] = scaled(r[2 * half + row], in0 * left[row], in1 * left[row]);
  }
}

__device__ inline void add_dots(float (&sum)[2], const bf16 *u, const float (&y)[8][4]) {
  uint32_t at = rows_address<64>(u, 16 * warp_here()), two[4];
#pragma unroll
  for (int n = 0; n < 8; n++) {
    if (n % 2 == 0) ldmatrix(two, further<64>(at, 0, n));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += low(two[n % 2 * 2 + half]) * y[n][2 * half];
      sum[half] += high(two[n % 2 * 2 + half]) * y[n][2 * half + 1];
    }
  }
}

// y += M v.
__device__ inline void start_faded(float (&y)[8][4], const uint32_t (&M)[4][4], const bf16 *v) {
  uint64_t b = wg_tile(shared_address(v), 0);
  wg_begin();
#pragma unroll
  for (int k = 0; k < 4; k++) wg_mma_rows(y, M[k], b + k * 16 * 128 / 16);
  wg_commit();
}

// From dXt to dx, and to memory.
__device__ inline void put_inputs(const ssd_call &c, const ssd_grad_call &o, const wide_chunk &a,
                                  const slice_of_head &s, float (&y)[8][4], const float2 *steps,
                                  const bf16 *dy, bf16 *turn) {
  int w = group_here(), row = row_here();
  float D = to_float(((const bf16 *)c.D)[s.h]);
  const float dt[2] = {steps[row].y, steps[row + 8].y};
  uint32_t at = rows_address<64>(dy, 16 * warp_here()), two[4];
#pragma unroll
  for (int n = 0; n < 8; n++) {
    if (n % 2 == 0) ldmatrix(two, further<64>(at, 0, n));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t pair = two[n % 2 * 2 + half];
      y[n][2 * half] = dt[half] * y[n][2 * half] + D * low(pair);
      y[n][2 * half + 1] = dt[half] * y[n][2 * half + 1] + D * high(pair);
    }
  }
  bf16 *to = o.dx + (a.row + 64 * w) * c.ld + (int64_t)s.h * c.P + s.p0;
  store_rows<64>(to, c.ld, turn, y, 16 * warp_here(), 0, a.n - 64 * w, s.p, o.wide_dx);
}

// B C^T, and dB = E^T C to begin with.
template <int NN>
__device__ inline void write_open(const ssd_call &c, const ssd_grad_call &o, const wide_chunk &a,
                                  int task, int group, write_memory<NN> &m, sums_of<NN> &dB) {
  constexpr int TILE = side_memory<NN>::TILE;
  int w = group_here(), thread = thread_here() % 128;
  load_panels<NN, CHUNK_TOKENS, CHUNK_THREADS>(
      m.s.U, (const bf16 *)c.B + a.row * c.ld + (int64_t)group * c.N, c.ld, a.n, c.N, c.wide_B);
  load_inner<NN, true>(c, o, a, task, group, m.s);
  cp_async_commit();
  arrive();
  add_inner<NN, true>(dB, m.s);
#pragma unroll 1
  for (int late = 0; late < (w ? 1 : 2); late++) { // then block 10
    float R[8][4];
    wg_begin();
    start_xyt<NN / 16>(R, m.s.U + w * TILE, m.s.W[w | late]);
    wg_commit();
    wg_wait<0>();
    wg_done(R);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      uint32_t p[4];
      as_operand(p, R[2 * k], R[2 * k + 1]);
      m.R[late ? 2 : w][k][thread] = make_uint4(p[0], p[1], p[2], p[3]);
    }
  }
  __syncthreads();
}

template <int NN>
__device__ inline void write_side(const ssd_call &c, const ssd_grad_call &o, int task, int group) {
  extern __shared__ __align__(1024) unsigned char ssd_shared[];
  write_memory<NN> &m = *(write_memory<NN> *)ssd_shared;
  constexpr int TILE = side_memory<NN>::TILE;
  wide_chunk a = wide_at(c, o, task);
  int w = group_here(), items = c.heads * c.slices, thread = thread_here() % 128;
  sums_of<NN> du = {};
  write_open<NN>(c, o, a, task, group, m, du);
  float state[2] = {}, own[2] = {};
  slice_of_head s = slice_at(c, group, 0);
  load_side<NN, true>(c, o, a, s, m.s, 0);
  load_v<NN, true>(c, a, s, m.v[0]);
  cp_async_commit();
#pragma unroll 1
  for (int i = 0; i < items; i++) {
    int turn = i % 2;
    forget(a);
    s = slice_at(c, group, i);
    arrive();
    const float2 *steps = m.s.steps[turn], *mine = steps + 64 * w;
    bf16 *u = m.s.u[turn] + w * PANEL;
    const bf16 *v = m.v[turn];
    float y[8][4];
    wg_begin();
    start_xyt<NN / 16>(y, m.s.U + w * TILE, m.s.W[turn]);
    wg_commit();
    float end = steps[SSD_TOKENS - 1].x, later = steps[CHUNK_TOKENS - 1].x;
    // What is left at the end of the tile, and of the chunk.
    float left[2], out[2], f[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float2 step = mine[row_here() + 8 * half];
      left[half] = fast_exp2((w ? later : end) - step.x);
      out[half] = w ? left[half] : fast_exp2(end - step.x + later);
      f[half] = step.y * out[half];
    }
    uint32_t fu[4][4], M[4][4];
    if (i + 1 < items) {
      slice_of_head next = slice_at(c, group, i + 1);
      load_side<NN, true>(c, o, a, next, m.s, 1 - turn);
      load_v<NN, true>(c, a, next, m.v[1 - turn]);
    }
    cp_async_commit();
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (k < warp_here())
        M[k][0] = M[k][1] = M[k][2] = M[k][3] = 0;
      else
        fade_own(M[k], m.R[w][k][thread], mine, k);
    }
    wg_wait<0>();
    wg_done(y);
    float dot[2] = {};
    add_dots(dot, u, y);
    state[0] += f[0] * dot[0], state[1] += f[1] * dot[1];
    scale_rows(y, out);
    start_faded(y, M, v + w * PANEL);
    faded_rows(fu, u, f);
    wg_begin();
    start_through_state<NN>(du, fu, m.s.W[turn]);
    wg_commit();
    wg_wait<1>(); // before M changes
    // The second warpgroup adds zeros: products in one branch alone would all be serialized.
    left[0] = w ? 0 : left[0], left[1] = w ? 0 : left[1];
#pragma unroll
    for (int k = 0; k < 4; k++) fade_late(M[k], m.R[2][k][thread], steps + 64, left, k);
    start_faded(y, M, v + PANEL);
    wg_wait<0>();
    wg_done(y);
    done(du);
    add_dots(own, u, y);
    __syncwarp();
    put_inputs(c, o, a, s, y, mine, v + w * PANEL, u);
    if (!s.last) continue;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float p = over_columns(state[half]), q = over_columns(own[half]);
      if (thread_here() % 4 == 0)
        o.w.write[tokens_of(c, a, s.h) + 64 * w + row_here() + 8 * half] = make_float2(p, q);
    }
    state[0] = state[1] = own[0] = own[1] = 0;
  }
  put_side<NN>(c, o, a, o.dB, group, m.s, du);
}

} // namespace
#endif
