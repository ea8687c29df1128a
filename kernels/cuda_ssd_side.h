/* cuda_ssd_side.h: what the two sides of the SSD's backward within a chunk share: the block's tiles
 * and products; see cuda_ssd_chunk.cu, which alone includes it. */
#ifndef SK_CUDA_SSD_SIDE_H
#define SK_CUDA_SSD_SIDE_H
#include "kernels/cuda_ssd_chunk.h"

namespace {

// Tiles of 64 rows: panels of 64 columns (cuda_wgmma.h).
template <int NN>
struct side_memory {
  enum { TILE = 64 * NN };
  bf16 U[2 * TILE];
  bf16 W[2][TILE];      // of two slices: the present and the next
  bf16 u[2][2 * PANEL]; // [][tile]
  float2 steps[2][CHUNK_TOKENS];
};

__device__ inline int group_here() {
  return thread_here() / 128;
}
// The first of the thread's two rows of a tile; the other is 8 further.
__device__ inline int row_here() {
  return 16 * warp_here() + thread_here() % 32 / 4;
}

// Slice i of a group's heads; a head has one or two.
struct slice_of_head {
  int h, p0, p; // head, first row of P, rows there are
  bool first, last;
};
__device__ inline slice_of_head slice_at(const ssd_call &c, int group, int i) {
  slice_of_head s;
  int slice = i & (c.slices - 1);
  s.h = group * c.heads + (i >> (c.slices - 1));
  s.p0 = slice * SSD_ROWS, s.p = min(SSD_ROWS, c.P - s.p0);
  s.first = slice == 0, s.last = slice == c.slices - 1;
  return s;
}

struct wide_chunk {
  int seq, k, n; // tokens there are
  int64_t row;   // first token's in [b * T]
};
__device__ inline wide_chunk wide_at(const ssd_call &c, const ssd_grad_call &o, int task) {
  wide_chunk a;
  a.seq = task / o.wides, a.k = task % o.wides;
  int first = a.k * CHUNK_TOKENS;
  a.n = min((int)CHUNK_TOKENS, c.T - first), a.row = (int64_t)a.seq * c.T + first;
  return a;
}
// Makes the compiler compute anew what follows from a: it would keep it in registers, of which none
// are left.
__device__ inline void forget(wide_chunk &a) {
  asm volatile("" : "+r"(a.seq), "+r"(a.k), "+r"(a.n), "+l"(a.row));
}
__device__ inline int64_t tokens_of(const ssd_call &c, const wide_chunk &a, int h) {
  return (((int64_t)a.seq * c.nh + h) * c.tiles + 2 * a.k) * SSD_TOKENS;
}
__device__ inline int64_t wide_state(const ssd_call &c, const ssd_grad_call &o, const wide_chunk &a,
                                     const slice_of_head &s) {
  return (((int64_t)a.seq * o.wides + a.k) * c.nh + s.h) * c.state + (int64_t)s.p0 * c.stateN;
}

// What loads wrote is there for all threads and for products.
__device__ inline void arrive() {
  cp_async_wait();
  wg_publish();
  __syncthreads();
}

// Starts to load the steps, W and u of slice i; and v with `v`, whose loads READ puts off.
template <int NN, bool WRITE>
__device__ inline void load_v(const ssd_call &c, const wide_chunk &a, const slice_of_head &s,
                              bf16 *v) {
  int64_t col = (int64_t)s.h * c.P + s.p0;
  if (WRITE)
    load_panels<64, CHUNK_TOKENS, CHUNK_THREADS>(v, (const bf16 *)c.dy + a.row * c.ldy + col, c.ldy,
                                                 a.n, s.p, c.wide_y);
  else
    load_panels<64, CHUNK_TOKENS, CHUNK_THREADS>(v, (const bf16 *)c.x + a.row * c.ld + col, c.ld,
                                                 a.n, s.p, c.wide_x);
}
template <int NN, bool WRITE>
__device__ inline void load_side(const ssd_call &c, const ssd_grad_call &o, const wide_chunk &a,
                                 const slice_of_head &s, side_memory<NN> &m, int turn) {
  int64_t col = (int64_t)s.h * c.P + s.p0;
  load_panels<NN, 64, CHUNK_THREADS>(m.W[turn], (WRITE ? o.w.Z : o.w.S) + wide_state(c, o, a, s),
                                     c.stateN, s.p, c.stateN, true);
  if (WRITE)
    load_panels<64, CHUNK_TOKENS, CHUNK_THREADS>(m.u[turn], (const bf16 *)c.x + a.row * c.ld + col,
                                                 c.ld, a.n, s.p, c.wide_x);
  else
    load_panels<64, CHUNK_TOKENS, CHUNK_THREADS>(
        m.u[turn], (const bf16 *)c.dy + a.row * c.ldy + col, c.ldy, a.n, s.p, c.wide_y);
  if (threadIdx.x < CHUNK_TOKENS / 2)
    cp_async16(m.steps[turn] + 2 * threadIdx.x, c.steps + tokens_of(c, a, s.h) + 2 * threadIdx.x,
               true);
}

// ---- products ----

// c = x y^T over 16 K columns of panels; y: its rows are c's columns. XS, YS: elements of a panel.
template <int K, int NB>
__device__ inline void start_xyt(float (&c)[NB][4], const bf16 *x, const bf16 *y) {
  uint64_t a = wg_tile(shared_address(x), 0), b = wg_tile(shared_address(y), 0);
#pragma unroll
  for (int k = 0; k < K; k++) {
    int at = (k / 4 * PANEL * 2 + k % 4 * 32) / 16;
    wg_mma(c, a + at, b + at, k > 0);
  }
}

// du += fu W.
template <int NN>
__device__ inline void start_through_state(sums_of<NN> &du, const uint32_t (&fu)[4][4],
                                           const bf16 *W) {
  uint64_t b = wg_tile(shared_address(W), PANEL * 2);
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int h = 0; h < sums_of<NN>::H; h++)
      wg_mma_rows(du.c[h], fu[k], b + (h * 2 * PANEL * 2 + k * 16 * 128) / 16);
}

template <int NN>
__device__ inline void done(sums_of<NN> &du) {
#pragma unroll
  for (int h = 0; h < sums_of<NN>::H; h++) wg_done(du.c[h]);
}

// The warp's rows of u, times f, as operands.
__device__ inline void faded_rows(uint32_t (&fu)[4][4], const bf16 *u, const float (&f)[2]) {
  uint32_t us = rows_address<64>(u, 16 * warp_here());
#pragma unroll
  for (int k = 0; k < 4; k++) {
    ldmatrix(fu[k], further<64>(us, 0, 2 * k));
#pragma unroll
    for (int e = 0; e < 4; e++) fu[k][e] = scaled(fu[k][e], f[e % 2], f[e % 2]);
  }
}

__device__ inline float over_columns(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Starts to load E, and B or C, the other one than U.
template <int NN, bool WRITE>
__device__ inline void load_inner(const ssd_call &c, const ssd_grad_call &o, const wide_chunk &a,
                                  int task, int group, side_memory<NN> &m) {
  const bf16 *E = o.w.E + ((int64_t)task * c.G + group) * 3 * PANEL;
  for (int k = 0; k < 3; k++)
    load_panels<64, 64, CHUNK_THREADS>(m.u[0] + k * PANEL, E + k * PANEL, 64, 64, 64, true);
  load_panels<NN, CHUNK_TOKENS, CHUNK_THREADS>(
      m.W[0], (const bf16 *)(WRITE ? c.C : c.B) + a.row * c.ld + (int64_t)group * c.N, c.ld, a.n,
      c.N, c.wide_B);
}

// du += E B, or E^T C.
template <int NN, bool WRITE>
__device__ inline void add_inner(sums_of<NN> &du, const side_memory<NN> &m) {
  int w = group_here();
#pragma unroll 1
  for (int tile = WRITE ? w : 0; tile <= (WRITE ? 1 : w); tile++) {
    const bf16 *E = m.u[0] + (w + tile) * PANEL;
    uint32_t p[4][4], rows = rows_address<64>(E, 16 * warp_here()),
                      columns = columns_address<64>(E, 0);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (WRITE)
        ldmatrix_trans(p[k], further<64>(columns, 16 * k, 2 * warp_here()));
      else
        ldmatrix(p[k], further<64>(rows, 0, 2 * k));
    }
    wg_begin();
    start_through_state<NN>(du, p, m.W[0] + tile * side_memory<NN>::TILE);
    wg_commit();
    wg_wait<0>();
    done(du);
  }
}

// dB or dC to memory, by way of U.
template <int NN>
__device__ inline void put_side(const ssd_call &c, const ssd_grad_call &o, const wide_chunk &a,
                                bf16 *to, int group, side_memory<NN> &m, const sums_of<NN> &du) {
  constexpr int H = sums_of<NN>::H, W = NN / H;
  int w = group_here();
  to += (a.row + 64 * w) * c.ld + (int64_t)group * c.N;
  __syncthreads();
#pragma unroll
  for (int h = 0; h < H; h++)
    store_rows<W>(to + W * h, c.ld, m.U + w * side_memory<NN>::TILE + 64 * W * h, du.c[h],
                  16 * warp_here(), 0, a.n - 64 * w, c.N - W * h, o.wide_dB);
}

} // namespace
#endif
