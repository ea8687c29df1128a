/* cuda_flash_groups.h: what the attention kernels of warpgroups share
 * (kernels/cuda_attention_groups.cu, forward, and cuda_attention_groups_grad.cu): bf16, heads up to
 * 128 wide. FlashAttention-3 (Shah et al. 2024) is where their form comes from: one warpgroup loads
 * (cuda_ring.h), the others multiply, and products are under way on the tensor cores while
 * exponentials and sums are taken. */
#ifndef SK_CUDA_FLASH_GROUPS_H
#define SK_CUDA_FLASH_GROUPS_H
#include "kernels/cuda_flash.h"
#include "kernels/cuda_ring.h"

// A block: G warpgroups with 64 rows (or keys) each walk over tiles of K keys (or rows), of which
// the ring has S. All shapes here were found by trial on an H100.
template <int G, int K, int S>
struct block_shape {
  enum { GROUPS = G, OTHERS = K, STAGES = S, ROWS = 64 * G, THREADS = 128 * (G + 1) };
};

// ---- the loader ----

// What load_tile does with 128 threads, for a loader's few registers: COUNT rows of x, ld apart,
// and the first n of them there.
template <int HD, int COUNT, bool WIDE>
static __device__ inline void load_keys(bf16 *tile, const void *x, int64_t at, int64_t ld, int n,
                                        int hd) {
  if (!WIDE) {
    load_tile<HD, COUNT, 128, false>(tile, x, n, hd, [&](int r) { return at + r * ld; });
    return;
  }
  const int PER = HD / 8, STEP = 128 / PER; // a multiple of 8: the swizzle of a thread stays
  int row = (int)threadIdx.x % 128 / PER, chunk = (int)threadIdx.x % PER;
  uint32_t to = shared_address(tile + tile_at<HD, COUNT>(row, chunk));
  const bf16 *from = (const bf16 *)x + at + row * ld + chunk * 8;
  n = chunk * 8 < hd ? n - row : 0;
#pragma unroll
  for (int i = 0; i < COUNT / STEP; i++) {
    copy16(to + i * STEP * 128, i * STEP < n ? from : (const bf16 *)x, i * STEP < n);
    from += STEP * ld;
  }
}

// The same for rows from r0 of q and dout.
template <int HD, int COUNT, bool WIDE>
static __device__ inline void load_queries(const flash_call &c, bf16 *q, bf16 *dout, int bi, int kv,
                                           int r0) {
  int n = c.rows - r0;
  if (!WIDE) {
    load_tile<HD, COUNT, 128, false>(q, c.q, n, c.hd,
                                     [&](int r) { return query_at(c, bi, kv, r0 + r, c.ldq); });
    load_tile<HD, COUNT, 128, false>(dout, c.dout, n, c.hd,
                                     [&](int r) { return query_at(c, bi, kv, r0 + r, c.ldo); });
    return;
  }
  const int PER = HD / 8, STEP = 128 / PER;
  int row = (int)threadIdx.x % 128 / PER, chunk = (int)threadIdx.x % PER;
  uint32_t to = (uint32_t)tile_at<HD, COUNT>(row, chunk) * 2;
  uint32_t to_q = shared_address(q) + to, to_dout = shared_address(dout) + to;
  // What query_at computes, from the first row of r0's token on, where 32 bits do.
  int t0 = token_of(c, r0), row0 = t0 * c.group, column = chunk * 8 < c.hd ? chunk * 8 : 0;
  const bf16 *from_q = (const bf16 *)c.q + query_at(c, bi, kv, row0, c.ldq) + column;
  const bf16 *from_dout = (const bf16 *)c.dout + query_at(c, bi, kv, row0, c.ldo) + column;
  int skip_q = (int)c.ldq - c.group * c.hd, skip_dout = (int)c.ldo - c.group * c.hd;
  n = chunk * 8 < c.hd ? n - row : 0;
#pragma unroll
  for (int i = 0; i < COUNT / STEP; i++) {
    bool here = i * STEP < n;
    int r = here ? r0 - row0 + row + i * STEP : 0, t = token_of(c, r);
    copy16(to_q + i * STEP * 128, from_q + (t * skip_q + r * c.hd), here);
    copy16(to_dout + i * STEP * 128, from_dout + (t * skip_dout + r * c.hd), here);
  }
}

#endif
