/* cuda_ssd.h: what the SSD kernels share (section 3); private to kernels/cuda_ssd*. Two paths
 * compute the same:
 *
 * fast   bf16 with P <= 128 and N <= 256, on tensor cores. Chunks of 64 tokens whatever dims->Q
 *        says; states between them are bf16 in memory and fp32 where they are carried on.
 * plain  fp32, and bf16 of larger heads, on CUDA cores (cuda_ssd_plain.h). Chunks of 32 tokens
 *        whatever dims->Q says, fp32 states.
 *
 * The fast path takes log decays in base 2 and sums them from the chunk's first token (`cs`), so
 * that |cs| stays small and differences are exact enough in fp32. A token that begins a document
 * gets -256 instead: 2^x of any sum that contains it is exactly 0, and with it all that would pass
 * from one document to the next.
 *
 * Tiles in shared memory have 64 rows of W bf16 (64, 128 or 256, the rest is zero) and are aligned
 * to 128 bytes. A row's 16-byte chunk c lies at chunk c ^ (row & 7), so that the eight rows of an
 * ldmatrix never share a bank. Results in registers belong to warps by 16 rows. */
#ifndef SK_CUDA_SSD_H
#define SK_CUDA_SSD_H
#include <limits.h>
#include <math.h>
#include "kernels/cuda_kernel.h"
#include "kernels/cuda_mma.h"

enum {
  SSD_TOKENS = 64, // of a chunk
  SSD_ROWS = 64,   // of a head's P that a block handles at once: a slice
  SSD_THREADS = 128,
  SSD_P = 128, // what the fast path takes
  SSD_N = 256,
  SSD_PLAIN = 32 // tokens of a chunk of the plain path
};

// ---- calls ----

struct ssd_call {
  int b, T, chunks, nh, G, heads, P, N; // heads of a group
  int slices, stateN;          // slices of a head; N rounded up to 8, a state's row in memory
  int ld, ldy;                 // below 2^24: offsets within a tile fit in int
  int64_t state;               // elements of a state in memory
  bool wide_x, wide_B, wide_y; // 16-byte accesses are aligned; x and dx, B C dB dC, y or dy
  const void *x, *B, *C, *dy, *A_log, *D;
  const float *dt;
  const int32_t *start;
  float2 *steps; // fast: [b][nh][chunks * 64] cs and dt; 0 steps where there are no more tokens
};

static inline bool ssd_fast(sk_dtype act, const sk_ssd_dims *d) {
  return act == SK_BF16 && d->P <= SSD_P && d->N <= SSD_N;
}

static inline ssd_call ssd_describe(const sk_ssd_dims *d, int tokens) {
  ssd_call c = {};
  SK_CHECK(d->ld < (1 << 24) && d->ldy < (1 << 24), "ssd: rows of %lld elements", (long long)d->ld);
  SK_CHECK(d->nh % d->G == 0, "ssd: %d heads in %d groups", (int)d->nh, (int)d->G);
  SK_CHECK(d->b * up(d->T, tokens) * d->nh < INT_MAX && d->b * d->T < INT_MAX,
           "ssd: too many tokens");
  c.b = (int)d->b, c.T = (int)d->T, c.nh = (int)d->nh, c.G = (int)d->G, c.P = (int)d->P,
  c.N = (int)d->N;
  c.chunks = (int)up(d->T, tokens), c.heads = c.nh / c.G;
  c.slices = (int)up(c.P, SSD_ROWS), c.stateN = (int)up(c.N, 8) * 8;
  c.ld = (int)d->ld, c.ldy = (int)d->ldy;
  return c;
}

static inline bool ssd_wide(std::initializer_list<const void *> pointers, int64_t ld, int width) {
  return fits(8, {ld, width}, pointers);
}

// Cuts a ws into parts, each aligned to 256 bytes. With at = NULL it only counts.
struct ssd_cutter {
  char *at;
  size_t used;
  template <class X>
  void take(X **part, int64_t count) {
    *part = at ? (X *)(at + used) : NULL;
    used += (size_t)up(count * (int64_t)sizeof(X), 256) * 256;
  }
};

template <class Kernel>
static inline void ssd_memory(Kernel kernel, size_t bytes) {
  SK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
}

// Chunk k of sequence seq: its first token's row in [b * T], and how many tokens it has.
struct ssd_chunk {
  int seq, k, first, n;
  int64_t row;
};

static __device__ inline ssd_chunk chunk_at(const ssd_call &c, int task, int tokens) {
  ssd_chunk a;
  a.seq = task / c.chunks, a.k = task % c.chunks;
  a.first = a.k * tokens;
  a.n = min(tokens, c.T - a.first);
  a.row = (int64_t)a.seq * c.T + a.first;
  return a;
}

// Fast path: the steps of a chunk, and a state between chunks.
static __device__ inline int64_t steps_at(const ssd_call &c, const ssd_chunk &a, int h) {
  return (((int64_t)a.seq * c.nh + h) * c.chunks + a.k) * SSD_TOKENS;
}
static __device__ inline int64_t state_at(const ssd_call &c, int seq, int k, int h) {
  return (((int64_t)seq * c.chunks + k) * c.nh + h) * c.state;
}

// ---- steps that cuda_ssd.cu shares with the backward ----

// A walk over the chunks of a sequence that carries a state along: S from the first to the last, or
// its gradient Z from the last to the first (3.3, 3.4). states[k]: S before chunk k, Z after it.
struct ssd_walk {
  const bf16 *u, *v; // x and B; dy and C
  int ldu;
  bool wide_u, back;
  const float *in; // state at its begin [b,nh,P,N]; NULL: zero
  bf16 *states;    // NULL: not wanted
  float *out;      // state at its end; NULL: not wanted
};

// Fills c->steps; walks one or two ways at once (`second` may be NULL).
void sk_cuda_ssd_steps(sk_stream *s, const ssd_call *c);
void sk_cuda_ssd_walk(sk_stream *s, const ssd_call *c, const ssd_walk *first,
                      const ssd_walk *second);

// ---- tiles ----

template <int W>
static __device__ inline int tile_at(int row, int chunk) {
  return row * W + ((chunk ^ (row & 7)) << 3);
}

// The block starts to load n rows of `cols` elements, ld apart; the rest of the tile becomes zero.
template <int W, int THREADS = SSD_THREADS>
static __device__ inline void load_tile(bf16 *tile, const bf16 *from, int ld, int n, int cols,
                                        bool wide) {
  if (wide) {
    constexpr int PER = W / 8, STEP = THREADS / PER;
    int row = thread_here() / PER, chunk = thread_here() % PER;
    if (chunk * 8 >= cols) n = 0;
#pragma unroll 2
    for (; row < SSD_ROWS; row += STEP)
      cp_async16(tile + tile_at<W>(row, chunk), from + (row < n ? row * ld + chunk * 8 : 0),
                 row < n);
    return;
  }
#pragma unroll 1
  for (int at = thread_here(); at < SSD_ROWS * W; at += THREADS) {
    int row = at / W, col = at % W;
    tile[tile_at<W>(row, col / 8) + col % 8] =
        row < n && col < cols ? from[row * ld + col] : __float2bfloat16_rn(0.0f);
  }
}

static __device__ inline void load_steps(float2 *to, const float2 *from) {
  if (threadIdx.x < SSD_TOKENS / 2) cp_async16(to + 2 * threadIdx.x, from + 2 * threadIdx.x, true);
}

// The address that a lane gives to ldmatrix for 16 x 16 elements at (row0, chunk 0); row0 is a
// multiple of 8. `rows`: A of [row][k] and, transposed, B of [k][column]. `columns`: B of
// [column][k] and, transposed, A of [k][row].
template <int W>
static __device__ inline uint32_t rows_address(const bf16 *tile, int row0) {
  int lane = thread_here() % 32;
  return shared_address(tile) +
         (uint32_t)((row0 + lane % 16) * W * 2 + ((lane / 16) ^ (lane % 8)) * 16);
}
template <int W>
static __device__ inline uint32_t columns_address(const bf16 *tile, int row0) {
  int lane = thread_here() % 32, row = row0 + lane % 8 + lane / 16 * 8;
  return shared_address(tile) + (uint32_t)(row * W * 2 + ((lane / 8 % 2) ^ (lane % 8)) * 16);
}
// The same `row` rows and `chunk` chunks further on; row is a multiple of 8, chunk of 2.
template <int W>
static __device__ inline uint32_t further(uint32_t address, int row, int chunk) {
  return (address ^ (uint32_t)(chunk % 8 * 16)) + (uint32_t)(row * W * 2 + chunk / 8 * 128);
}

// Two elements as a product's result has them: row, columns 8 n + 2 t, 2 t + 1.
template <int W>
static __device__ inline uint32_t tile_pair(const bf16 *tile, int row, int n) {
  return *(const uint32_t *)(tile + tile_at<W>(row, n) + thread_here() % 4 * 2);
}

// Writes a warp's rows m0 .. m0 + 15 of a result, of which n are there, and those of its columns
// from 8 chunk0 on that are below `cols`. They pass through the same place of a tile whose rows no
// other warp uses.
template <int W, int NB>
static __device__ inline void store_rows(bf16 *to, int ld, bf16 *tile, const float (&c)[NB][4],
                                         int m0, int chunk0, int n, int cols, bool wide) {
  int lane = thread_here() % 32;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < NB; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int at = tile_at<W>(m0 + 8 * half + lane / 4, chunk0 + i) + lane % 4 * 2;
      *(uint32_t *)(tile + at) = pack2(c[i][2 * half], c[i][2 * half + 1]);
    }
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < 16 * NB; i += 32) {
    int row = m0 + i / NB, chunk = chunk0 + i % NB;
    if (row >= n || chunk * 8 >= cols) continue;
    const bf16 *from = tile + tile_at<W>(row, chunk);
    bf16 *there = to + row * ld + chunk * 8;
    if (wide) {
      *(uint4 *)there = *(const uint4 *)from;
    } else {
      for (int e = 0; e < min(8, cols - chunk * 8); e++) there[e] = from[e];
    }
  }
  __syncwarp();
}

// ---- products of a warp ----

template <int NB>
static __device__ inline void clear(float (&c)[NB][4]) {
#pragma unroll
  for (int n = 0; n < NB; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) c[n][e] = 0;
}

// Rows g by f[0], rows g + 8 by f[1].
template <int NB>
static __device__ inline void scale_rows(float (&c)[NB][4], const float (&f)[2]) {
#pragma unroll
  for (int n = 0; n < NB; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) c[n][e] *= f[e / 2];
}

// c += x y^T: the warp's rows of tile x, rows n0 .. n0 + 8 NB - 1 of tile y, summed over their W
// columns.
template <int W, int NB>
static __device__ inline void add_xyt(float (&c)[NB][4], const bf16 *x, int m0, const bf16 *y,
                                      int n0) {
  uint32_t xs = rows_address<W>(x, m0), ys = columns_address<W>(y, n0);
#pragma unroll 4
  for (int k = 0; k < W / 16; k++) {
    uint32_t a[4], b[4];
    ldmatrix(a, further<W>(xs, 0, 2 * k));
#pragma unroll
    for (int n = 0; n < NB; n += 2) {
      ldmatrix(b, further<W>(ys, 8 * n, 2 * k));
      mma(c[n], a, b[0], b[1]);
      mma(c[n + 1], a, b[2], b[3]);
    }
  }
}

// c += p y: p from registers, 16 columns; y: rows k0 .. k0 + 15 of a tile, 8 NB columns from 8
// chunk0 on, where chunk0 is a multiple of NB or of 8.
template <int W, int NB>
static __device__ inline void add_py(float (&c)[NB][4], const uint32_t (&p)[4], const bf16 *y,
                                     int k0, int chunk0) {
  uint32_t ys = further<W>(rows_address<W>(y, k0), 0, chunk0), b[4];
#pragma unroll
  for (int n = 0; n < NB; n += 2) {
    ldmatrix_trans(b, further<W>(ys, 0, n));
    mma(c[n], p, b[0], b[1]);
    mma(c[n + 1], p, b[2], b[3]);
  }
}

// Two neighbours of a result in columns, 8 x 8 each, as the left operand of the next product: the
// layouts agree.
static __device__ inline void as_operand(uint32_t (&p)[4], const float (&c0)[4],
                                         const float (&c1)[4]) {
  p[0] = pack2(c0[0], c0[1]), p[1] = pack2(c0[2], c0[3]);
  p[2] = pack2(c1[0], c1[1]), p[3] = pack2(c1[2], c1[3]);
}

static __device__ inline uint32_t scaled(uint32_t pair, float f0, float f1) {
  return pack2(f0 * low(pair), f1 * high(pair));
}

// What is left at token i of what came in at token j, the difference of their cs; none where j is
// later.
static __device__ inline float fade(bool seen, float cs_i, float cs_j) {
  return fast_exp2(seen ? cs_i - cs_j : -INFINITY);
}
#endif
