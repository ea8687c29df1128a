/* cuda_ssd.h: what the SSD kernels share (section 3); private to kernels/cuda_ssd*. Two paths
 * compute the same:
 *
 * fast   bf16 with P <= 128 and N <= 256, on tensor cores, where the GPU has products of warpgroups.
 *        Chunks of 64 tokens whatever dims->Q says; states between them are bf16 in memory and fp32
 *        where they are carried on.
 * plain  fp32, and bf16 of larger heads or on other GPUs, on CUDA cores (cuda_ssd_plain.h). Chunks of
 *        32 tokens whatever dims->Q says, fp32 states.
 *
 * The fast path takes log decays in base 2 and sums them from the chunk's first token (`cs`), so
 * that |cs| stays small and differences are exact enough in fp32. A token that begins a document
 * gets -256 instead: 2^x of any sum that contains it is exactly 0, and with it all that would pass
 * from one document to the next.
 *
 * Products are those of warpgroups (cuda_wgmma.h): tiles in shared memory have 64 rows of 64, 128
 * or 256 bf16 (the rest is zero) in panels of 64 columns, where a row's 16-byte chunk c lies at
 * chunk c ^ (row & 7), so that the eight rows of an ldmatrix never share a bank. Results in
 * registers belong to warps by 16 rows of their warpgroup's 64. */
#ifndef SK_CUDA_SSD_H
#define SK_CUDA_SSD_H
#include <limits.h>
#include <math.h>
#include "kernels/cuda_kernel.h"
#include "kernels/cuda_mma.h"
#include "kernels/cuda_wgmma.h"

enum {
  SSD_TOKENS = 64, // of a chunk
  SSD_ROWS = 64,   // of a head's P that are handled at once: a slice
  PANEL = 64 * 64, // elements
  SSD_THREADS = 128,
  SSD_PER = 2,    // chunks from one state in memory to the next: the backward's are so much longer
  SSD_PARTS = 32, // room for a state's parts in a walk, by warps
  SSD_P = 128,    // what the fast path takes
  SSD_N = 256,
  SSD_PLAIN = 32 // tokens of a chunk of the plain path
};

// ---- calls ----

struct ssd_call {
  int b, T, chunks, nh, G, heads, P, N; // heads of a group
  int tiles;                            // of 64 tokens that `steps` has room for: chunks or more
  int slices, stateN;          // slices of a head; N rounded up to 8, a state's row in memory
  int ld, ldy;                 // below 2^24: offsets within a tile fit in int
  int64_t state;               // elements of a state in memory
  bool wide_x, wide_B, wide_y; // 16-byte accesses are aligned; x and dx, B C dB dC, y or dy
  const void *x, *B, *C, *dy, *A_log, *D;
  const float *dt;
  const int32_t *start;
  float2 *steps; // fast: [b][nh][tiles * 64] cs and dt; 0 steps where there are no more tokens
};

static inline bool ssd_fast(const sk_device *dev, sk_dtype act, const sk_ssd_dims *d) {
  return act == SK_BF16 && d->P <= SSD_P && d->N <= SSD_N && sk_cuda_groups(dev);
}

static inline ssd_call ssd_describe(const sk_ssd_dims *d, int tokens) {
  ssd_call c = {};
  SK_CHECK(d->ld < (1 << 24) && d->ldy < (1 << 24), "ssd: rows of %lld elements", (long long)d->ld);
  SK_CHECK(d->nh % d->G == 0, "ssd: %d heads in %d groups", (int)d->nh, (int)d->G);
  SK_CHECK(d->b * up(d->T, tokens) * d->nh < INT_MAX && d->b * d->T < INT_MAX,
           "ssd: too many tokens");
  c.b = (int)d->b, c.T = (int)d->T, c.nh = (int)d->nh, c.G = (int)d->G, c.P = (int)d->P,
  c.N = (int)d->N;
  c.chunks = c.tiles = (int)up(d->T, tokens), c.heads = c.nh / c.G;
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

static __device__ inline ssd_chunk chunk_of(const ssd_call &c, int seq, int k, int tokens) {
  ssd_chunk a;
  a.seq = seq, a.k = k;
  a.first = a.k * tokens;
  a.n = min(tokens, c.T - a.first);
  a.row = (int64_t)a.seq * c.T + a.first;
  return a;
}

static __device__ inline ssd_chunk chunk_at(const ssd_call &c, int task, int tokens) {
  return chunk_of(c, task / c.chunks, task % c.chunks, tokens);
}

// Fast path: the steps of a chunk.
static __device__ inline int64_t steps_at(const ssd_call &c, const ssd_chunk &a, int h) {
  return (((int64_t)a.seq * c.nh + h) * c.tiles + a.k) * SSD_TOKENS;
}

// ---- steps that cuda_ssd.cu shares with the backward ----

// A walk over the chunks of a sequence that carries a state along: S from the first to the last, or
// its gradient Z from the last to the first (3.3, 3.4). states[k]: S before, or Z after, SSD_PER
// chunks from SSD_PER * k on.
struct ssd_walk {
  const bf16 *u, *v; // x and B; dy and C
  int ldu;
  bool wide_u, back;
  // A sequence in so many parts, of which the first few are walked, each from a zero state but the
  // first; for forward walks without `states`.
  int segments, walked;
  const float *in;      // state at its begin [b,nh,P,N]; NULL: zero
  bf16 *states;         // NULL: not wanted
  float *out;           // state at its end, [walked][b,nh,P,N]; NULL: not wanted
  const bf16 *S = NULL; // with `states` on the way back, those of the way forward,
  float *meet = NULL;   // and where <Z, S> goes, [b][states][nh][SSD_PARTS]; NULL: not wanted
};

// Fills c->steps.
void sk_cuda_ssd_steps(sk_stream *s, const ssd_call *c);
// Returns the parts that <Z, S> has: SSD_PARTS or fewer.
int sk_cuda_ssd_walk(sk_stream *s, const ssd_call *c, const ssd_walk *w);

// The forward (cuda_ssd_fused.cu) after sk_cuda_ssd_steps. ws: sk_cuda_ssd_fused_ws(c) floats.
void sk_cuda_ssd_fused(sk_stream *s, const ssd_call *c, bf16 *y, float *Sf, const float *S0,
                       float *ws);
int64_t sk_cuda_ssd_fused_ws(const ssd_call *c);

// Chunks of each of `segments` parts of a sequence.
static __host__ __device__ inline int ssd_segment(const ssd_call &c, int segments) {
  return (c.chunks + segments - 1) / segments;
}

// ---- tiles ----

template <int W>
static __device__ inline int tile_at(int row, int chunk) {
  return row * W + ((chunk ^ (row & 7)) << 3);
}

// The block starts to load ROWS rows of W columns, ld apart, of which n rows and `cols` columns are
// there; the rest of the tiles becomes zero.
template <int W, int ROWS, int THREADS>
static __device__ inline void load_panels(bf16 *to, const bf16 *from, int ld, int n, int cols,
                                          bool wide) {
  if (wide) {
    // A thread's rows differ by a multiple of 8, so that only constants separate their places.
    constexpr int PER = W / 8, STEP = THREADS / PER;
    static_assert(STEP % 8 == 0 && 64 % STEP == 0, "rows of a thread");
    int row = thread_here() / PER, chunk = thread_here() % PER;
    uint32_t at =
        shared_address(to) + (uint32_t)(chunk / 8 * PANEL + tile_at<64>(row, chunk % 8)) * 2;
    const bf16 *p = from + row * ld + chunk * 8;
    auto place = [&](int i) { return at + (uint32_t)(i / 64 * 64 * W + i % 64 * 64) * 2; };
    bool here = chunk * 8 < cols;
    if (!here) p = from + row * ld;
    if (n >= ROWS) { // two loops, else every load is there twice, under a predicate
#pragma unroll
      for (int i = 0; i < ROWS; i += STEP, p += STEP * ld) cp_async16(place(i), p, here);
      return;
    }
    if (!here) n = 0;
#pragma unroll 1
    for (int i = 0; i < ROWS; i += STEP, p += STEP * ld)
      cp_async16(place(i), row + i < n ? p : from, row + i < n);
    return;
  }
#pragma unroll 1
  for (int at = thread_here(); at < ROWS * W; at += THREADS) {
    int row = at / W, col = at % W;
    to[row / 64 * (64 * W) + col / 64 * PANEL + tile_at<64>(row % 64, col / 8 % 8) + col % 8] =
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

// Two neighbours of a result in columns, 8 x 8 each, as the left operand of the next product: the
// layouts agree.
static __device__ inline void as_operand(uint32_t (&p)[4], const float (&c0)[4],
                                         const float (&c1)[4]) {
  p[0] = pack2(c0[0], c0[1]), p[1] = pack2(c0[2], c0[3]);
  p[2] = pack2(c1[0], c1[1]), p[3] = pack2(c1[2], c1[3]);
}

// Writes a warp's rows m0 .. m0 + 15 of a result, of which n are there, and those of its columns
// from 8 chunk0 on that are below `cols`. They pass through the same place of a tile whose rows no
// other warp uses.
template <int W, int NB>
static __device__ inline void store_rows(bf16 *to, int ld, bf16 *tile, const float (&c)[NB][4],
                                         int m0, int chunk0, int n, int cols, bool wide) {
  int lane = thread_here() % 32;
  __syncwarp();
  uint32_t at = rows_address<W>(tile, m0);
#pragma unroll
  for (int i = 0; i < NB; i += 2) {
    uint32_t p[4];
    as_operand(p, c[i], c[i + 1]);
    stmatrix(further<W>(at, 0, chunk0 + i), p);
  }
  __syncwarp();
  static_assert(NB == 8 || NB == 16, "chunks of a row");
  if (wide) {
    constexpr int ROWS = 32 / NB; // at a time
    int row = m0 + lane / NB, chunk = chunk0 + lane % NB, place = tile_at<W>(row, chunk);
    bf16 *p = to + row * ld + chunk * 8;
    if (chunk * 8 >= cols) n = 0;
#pragma unroll
    for (int i = 0; i < 16; i += ROWS, p += ROWS * ld) {
      uint4 x = *(const uint4 *)(tile + (place ^ i % 8 * 8) + i * W);
      if (row + i < n) *(uint4 *)p = x;
    }
  } else {
#pragma unroll 1
    for (int i = lane; i < 16 * NB * 8; i += 32) {
      int row = m0 + i / (NB * 8), col = 8 * chunk0 + i % (NB * 8);
      if (row < n && col < cols) to[row * ld + col] = tile[tile_at<W>(row, col / 8) + col % 8];
    }
  }
  __syncwarp();
}

// ---- results in registers ----

// Of a warpgroup's products, 64 x NN: 128 columns or fewer each.
template <int NN>
struct sums_of {
  enum { H = NN <= 128 ? 1 : NN / 128, NB = NN <= 128 ? NN / 8 : 16 };
  float c[H][NB][4];
};

static __device__ inline int warp_here() { // of the warpgroup
  return thread_here() / 32 % 4;
}

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

static __device__ inline uint32_t scaled(uint32_t pair, float f0, float f1) {
  return pack2(f0 * low(pair), f1 * high(pair));
}

// What is left at token i of what came in at token j, the difference of their cs; none where j is
// later.
static __device__ inline float fade(bool seen, float cs_i, float cs_j) {
  return fast_exp2(seen ? cs_i - cs_j : -INFINITY);
}
#endif
