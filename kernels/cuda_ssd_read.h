/* cuda_ssd_read.h: the side of the tokens that read the state; see cuda_ssd_chunk.cu, which alone
 * includes it. */
#ifndef SK_CUDA_SSD_READ_H
#define SK_CUDA_SSD_READ_H
#include "kernels/cuda_ssd_side.h"

namespace {

template <int NN>
struct read_memory {
  side_memory<NN> s;
  bf16 v[2 * PANEL];
  // As the lanes of a warp have them: [warpgroup][10 blocks of 16 x 16 of the tile's own block,
  // then 8 of the warps' 16 x 32 of block 10][half of its columns][lane].
  float4 E[2][18][2][32];
  uint4 R[2][10][32];     // C B^T of the tiles' own blocks, likewise, as operands
  float column[2][4][96]; // [warpgroup][warp] sums over rows: 64 of the own block, 32 of block 10
};
// A thread's sums over columns of its rows, for one head.
struct read_sums {
  float K[2], early[2], own[2];
};

// From the own block's F: E, the sums of K, dy . x.
__device__ inline void own_block(const float (&F)[8][4], const uint4 (*Rs)[32], float4 (*Es)[2][32],
                                 const float2 *steps, read_sums &sum, float (&col)[16]) {
  int warp = warp_here(), lane = thread_here() % 32, g = lane / 4, t = lane % 4;
  const float cs[2] = {steps[row_here()].x, steps[row_here() + 8].x};
  float4(*E)[2][32] = Es + warp * (warp + 1) / 2;
  uint4 Ro;
#pragma unroll
  for (int n = 0; n < 8; n++) {
    col[2 * n] = col[2 * n + 1] = 0;
    if (n / 2 > warp) continue;
    if (n % 2 == 0) Ro = Rs[warp * (warp + 1) / 2 + n / 2][lane];
    const uint32_t R[2] = {n % 2 ? Ro.z : Ro.x, n % 2 ? Ro.w : Ro.y};
    float4 two = *(const float4 *)(steps + 8 * n + 2 * t), Eo = E[n / 2][n % 2][lane];
    const float csj[2] = {two.x, two.z}, dt[2] = {two.y, two.w};
    float *Ev = (float *)&Eo;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int i = 16 * warp + g + e / 2 * 8, j = 8 * n + 2 * t + e % 2;
      float x = F[n][e] * (fade(j <= i, cs[e / 2], csj[e % 2]) * dt[e % 2]);
      Ev[e] += x;
      float K = x * (e % 2 ? high(R[e / 2]) : low(R[e / 2]));
      if (i == j) {
        sum.own[e / 2] += F[n][e];
        K = 0;
      }
      sum.K[e / 2] += K;
      col[2 * n + e % 2] += K;
    }
    E[n / 2][n % 2][lane] = Eo;
  }
}

// The same for 32 columns of block 10; steps: of the columns' tile, whose last `end` is.
__device__ inline void early_block(const float (&F)[4][4], const uint32_t (&R)[4][2],
                                   float4 (*Es)[2][32], const float2 *row_steps,
                                   const float2 *col_steps, float end, read_sums &sum,
                                   float (&col)[8]) {
  int warp = warp_here(), lane = thread_here() % 32, t = lane % 4;
  const float in[2] = {fast_exp2(row_steps[row_here()].x), fast_exp2(row_steps[row_here() + 8].x)};
  float4(*E)[2][32] = Es + 10 + 2 * warp;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    float4 two = *(const float4 *)(col_steps + 8 * n + 2 * t), Eo = E[n / 2][n % 2][lane];
    const float out[2] = {two.y * fast_exp2(end - two.x), two.w * fast_exp2(end - two.z)};
    float *Ev = (float *)&Eo;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float x = F[n][e] * (in[e / 2] * out[e % 2]);
      Ev[e] += x;
      float K = x * (e % 2 ? high(R[n][e / 2]) : low(R[n][e / 2]));
      sum.early[e / 2] += K;
      col[2 * n + e % 2] = e < 2 ? K : col[2 * n + e % 2] + K;
    }
    E[n / 2][n % 2][lane] = Eo;
  }
}

// Half of x is passed to the lane that differs in `bit`, and its half added to what stays.
template <int N>
__device__ inline void fold(float *x, int bit) {
  bool up = thread_here() & bit;
#pragma unroll
  for (int i = 0; i < N / 2; i++) {
    float pass = up ? x[i] : x[i + N / 2];
    x[i] = (up ? x[i + N / 2] : x[i]) + __shfl_xor_sync(~0u, pass, bit);
  }
}

// The warp's sums over rows go to its place, or on top of what is there.
__device__ inline void put_columns(float (&own)[16], float (&early)[8], float *to, bool first) {
  int lane = thread_here() % 32, g = lane / 4, t = lane % 4;
  fold<16>(own, 16), fold<8>(own, 8), fold<4>(own, 4);
  fold<8>(early, 16), fold<4>(early, 8), fold<2>(early, 4);
  float2 *two = (float2 *)to + lane;
  float *one = to + 64 + g / 2 * 8 + 2 * t + g % 2;
  *two = first ? make_float2(own[0], own[1]) : make_float2(two->x + own[0], two->y + own[1]);
  *one = first ? early[0] : *one + early[0];
}

// The head's K, summed over the rows of a column.
__device__ inline void flush_columns(const ssd_call &c, const ssd_grad_call &o, const wide_chunk &a,
                                     int h, const float (*column)[4][96]) {
  int j = thread_here(), tile = j / 64;
  if (j >= CHUNK_TOKENS) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < 4; w++) sum += column[tile][w][j % 64];
#pragma unroll
  for (int w = 0; w < 4; w++) sum += tile == 0 ? column[j / 32][w][64 + j % 32] : 0.0f;
  o.w.column[tokens_of(c, a, h) + j] = sum;
}

// C_i . dC_i for the thread's rows and columns.
template <int NN>
__device__ inline void dots_with(float (&dot)[2], const bf16 *U, const sums_of<NN> &du) {
  uint32_t at = rows_address<64>(U, 16 * warp_here()), two[4];
  dot[0] = dot[1] = 0;
#pragma unroll
  for (int n = 0; n < NN / 8; n++) {
    if (n % 2 == 0) ldmatrix(two, further<64>(at, 0, n % 8) + (uint32_t)(n / 8 * PANEL * 2));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float *d = du.c[n / 16][n % 16] + 2 * half;
      dot[half] += low(two[n % 2 * 2 + half]) * d[0];
      dot[half] += high(two[n % 2 * 2 + half]) * d[1];
    }
  }
}

// A head's sums; q: what dC . C grew by.
__device__ inline void put_read(const ssd_call &c, const ssd_grad_call &o, const wide_chunk &a,
                                int h, const read_sums &sum, const float (&q)[2]) {
  int group = group_here(), row = row_here();
  int64_t at = tokens_of(c, a, h);
  float *early = group ? o.w.early[1] : o.w.early[0];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float K = over_columns(sum.K[i] + q[i]), own = over_columns(sum.own[i]);
    float before = over_columns(sum.early[i]);
    if (thread_here() % 4 != 0) continue;
    o.w.read[at + 64 * group + row + 8 * i] = make_float2(K, own);
    early[at + 64 + row + 8 * i] = before;
  }
}

__device__ inline void pack_rows(uint32_t (&p)[2], const float (&c)[4]) {
  p[0] = pack2(c[0], c[1]), p[1] = pack2(c[2], c[3]);
}

// E to memory as it will be multiplied, in bf16.
__device__ inline void put_E(bf16 *to, float4 (*Es)[2][32]) {
  int group = group_here(), warp = warp_here(), lane = thread_here() % 32, t = lane % 4;
  bf16 *own = to + (group ? 2 : 0) * PANEL, *early = to + PANEL + 32 * group;
#pragma unroll
  for (int n = 0; n < 12; n++) {
    bool second = n >= 8, there = second || n / 2 <= warp;
    int block = second ? 10 + 2 * warp + (n - 8) / 2 : warp * (warp + 1) / 2 + n / 2;
    float4 E = there ? Es[block][n % 2][lane] : make_float4(0, 0, 0, 0);
    bf16 *at = (second ? early + 8 * (n - 8) : own + 8 * n) + row_here() * 64 + 2 * t;
    *(uint32_t *)at = pack2(E.x, E.y);
    *(uint32_t *)(at + 8 * 64) = pack2(E.z, E.w);
  }
}

template <int NN>
__device__ inline void read_side(const ssd_call &c, const ssd_grad_call &o, int task, int group) {
  extern __shared__ __align__(1024) unsigned char ssd_shared[];
  read_memory<NN> &m = *(read_memory<NN> *)ssd_shared;
  constexpr int TILE = side_memory<NN>::TILE;
  wide_chunk a = wide_at(c, o, task);
  int w = group_here(), items = c.heads * c.slices;
  int64_t at = a.row * c.ld + (int64_t)group * c.N;
  load_panels<NN, CHUNK_TOKENS, CHUNK_THREADS>(m.s.U, (const bf16 *)c.C + at, c.ld, a.n, c.N,
                                               c.wide_B);
  load_panels<NN, CHUNK_TOKENS, CHUNK_THREADS>(m.s.W[0], (const bf16 *)c.B + at, c.ld, a.n, c.N,
                                               c.wide_B);
  for (int i = thread_here(); i < (int)(sizeof m.E / sizeof(float4)); i += CHUNK_THREADS)
    (&m.E[0][0][0][0])[i] = make_float4(0, 0, 0, 0);
  cp_async_commit();
  arrive();
  uint32_t Re[4][2];
  {
    float own[8][4], early[4][4];
    wg_begin();
    start_xyt<NN / 16>(own, m.s.U + w * TILE, m.s.W[w]);
    start_xyt<NN / 16>(early, m.s.U + TILE, m.s.W[0] + w * 32 * 64);
    wg_commit();
    wg_wait<0>();
    wg_done(own);
    wg_done(early);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (k > warp_here()) continue;
      uint32_t p[4];
      as_operand(p, own[2 * k], own[2 * k + 1]);
      m.R[w][warp_here() * (warp_here() + 1) / 2 + k][thread_here() % 32] =
          make_uint4(p[0], p[1], p[2], p[3]);
    }
#pragma unroll
    for (int n = 0; n < 4; n++) pack_rows(Re[n], early[n]);
  }
  __syncthreads();
  sums_of<NN> du = {};
  read_sums sum = {};
  float before[2] = {};
  slice_of_head s = slice_at(c, group, 0);
  load_side<NN, false>(c, o, a, s, m.s, 0);
  load_v<NN, false>(c, a, s, m.v);
  cp_async_commit();
#pragma unroll 1
  for (int i = 0; i < items; i++) {
    int turn = i % 2;
    forget(a);
    s = slice_at(c, group, i);
    arrive();
    if (i > 0 && s.first) flush_columns(c, o, a, s.h - 1, m.column);
    const float2 *steps = m.s.steps[turn];
    float F[8][4], G[4][4];
    wg_begin();
    start_xyt<4>(F, m.s.u[turn] + w * PANEL, m.v + w * PANEL);
    start_xyt<4>(G, m.s.u[turn] + PANEL, m.v + w * 32 * 64);
    wg_commit();
    if (i + 1 < items) load_side<NN, false>(c, o, a, slice_at(c, group, i + 1), m.s, 1 - turn);
    wg_wait<0>();
    wg_done(F);
    wg_done(G);
    __syncthreads(); // nobody needs v and the sums over columns any more
    if (i + 1 < items) load_v<NN, false>(c, a, slice_at(c, group, i + 1), m.v);
    cp_async_commit();
    float own[16], early[8];
    own_block(F, m.R[w], m.E[w], steps + 64 * w, sum, own);
    uint32_t fu[4][4];
    {
      float end = w ? steps[SSD_TOKENS - 1].x : 0.0f;
      const float2 *row = steps + 64 * w + row_here();
      const float f[2] = {fast_exp2(row[0].x + end), fast_exp2(row[8].x + end)};
      faded_rows(fu, m.s.u[turn] + w * PANEL, f);
    }
    wg_begin();
    start_through_state<NN>(du, fu, m.s.W[turn]);
    wg_commit();
    early_block(G, Re, m.E[w], steps + 64, steps + 32 * w, steps[SSD_TOKENS - 1].x, sum, early);
    put_columns(own, early, m.column[w][warp_here()], s.first);
    wg_wait<0>();
    done(du);
    if (!s.last) continue;
    float dot[2];
    dots_with<NN>(dot, m.s.U + w * TILE, du);
    const float q[2] = {dot[0] - before[0], dot[1] - before[1]};
    before[0] = dot[0], before[1] = dot[1];
    put_read(c, o, a, s.h, sum, q);
    sum = {};
  }
  __syncthreads();
  flush_columns(c, o, a, s.h, m.column);
  int64_t place = (int64_t)task * c.G + group;
  put_E(o.w.E + place * 3 * PANEL, m.E[w]);
  __syncthreads();
  load_inner<NN, false>(c, o, a, task, group, m.s);
  cp_async_commit();
  arrive();
  add_inner<NN, false>(du, m.s);
  put_side<NN>(c, o, a, o.dC, group, m.s, du);
}

} // namespace
#endif
