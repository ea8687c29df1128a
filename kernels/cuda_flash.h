/* cuda_flash.h: what the attention kernels share; private to kernels/cuda_attention*.cu. The warp
 * instructions they are made of, tiles in shared memory, the two tile products, and which rows meet
 * which keys.
 *
 * Rows: the query heads that share a key/value head are handled together, as on the CPU: row r of a
 * (sequence, kv head) is query r / group of head kv * group + r % group. A row's last key (`hi`) is
 * its own position, its first key (`lo`) that of its document.
 *
 * Tiles hold HD elements a row: the head width, zero-padded to 64, 128 or 256 (flash_columns). In
 * bf16 a row's 16-byte chunk c lies at chunk c ^ (row & 7), so that the eight rows of an ldmatrix
 * never share a bank. Up to 128 the products are those of warpgroups (cuda_wgmma.h) and tiles lie in
 * their panels of 64 columns; with 256, whose sums fill the registers of a warp, they are those of
 * warps. Where the GPU has no products of warpgroups, all heads are padded to 256. */
#ifndef SK_CUDA_FLASH_H
#define SK_CUDA_FLASH_H
#include <cuda_bf16.h>
#include <limits.h>
#include <math.h>
#include "kernels/cuda.h"
#include "kernels/cuda_wgmma.h"

typedef __nv_bfloat16 bf16;

// ---- instructions ----
// mma.m16n8k16 with lane = 4 g + t; a register holds elements k and k + 1.
// A: a0 (row g, k = 2t), a1 (g + 8, 2t), a2 (g, 2t + 8), a3 (g + 8, 2t + 8).
// B: b0 (k = 2t, column g), b1 (2t + 8, g).
// C: c0, c1 (row g, columns 2t and 2t + 1), c2, c3 (row g + 8).

static __device__ inline uint32_t shared_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p);
}

// 16 bytes from global to shared memory, or 16 zero bytes; `from` must be a valid address anyway.
static __device__ inline void copy16(uint32_t to, const void *from, bool here) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(here ? 16 : 0));
}

static __device__ inline void cp_async16(void *to, const void *from, bool here) {
  copy16(shared_address(to), from, here);
}

static __device__ inline void cp_async_commit(void) {
  asm volatile("cp.async.commit_group;");
}

// The thread waits for its own copies; a barrier makes them everybody's.
static __device__ inline void cp_async_wait(void) {
  asm volatile("cp.async.wait_group 0;");
}

static __device__ inline void ldmatrix(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}

static __device__ inline void ldmatrix_trans(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}

static __device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats as bf16, `lo` in the low half.
static __device__ inline uint32_t pack2(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}

static __device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- calls: dimensions, pointers, rows and keys ----

struct flash_call {
  int b, Tq, Tk, q0, KV, H, hd;
  int group, rows; // query heads per kv head; Tq * group, the rows of a (sequence, kv head)
  uint32_t magic;  // division of a row by group: see token_of
  int shift;
  int64_t ldq, ldk, ldv, ldo;
  float scale, scale2; // scale2 = scale * log2(e): exponents are taken in base 2
  const void *q, *k, *v, *o, *dout;
  void *dq, *dk, *dv, *out;
  float *lse;
  const int32_t *start;
  bool wide;     // rows are aligned to 16 bytes and so are heads in them
  short columns; // of a tile: flash_columns
  // For the backward, prepared in ws; rows are padded to padded = tiles * (rows of a tile).
  int padded, tiles;
  float2 *stat; // [b, KV, padded]: lse in base 2, rowsum(do * o)
  int2 *seen;   // [b, padded]: first and last key of a row
  int2 *range;  // [b, tiles]: the smallest and the largest first key of a tile's rows
};

// Whether the rows of x and the heads in them are aligned to 16 bytes.
static inline bool flash_wide(const sk_attn_dims *d, size_t size, const void *x, int64_t ld) {
  return (uintptr_t)x % 16 == 0 && (size_t)ld * size % 16 == 0 && (size_t)d->hd * size % 16 == 0;
}

// Columns of a tile for heads of hd. 256 serve narrower ones, too, where the GPU cannot multiply by
// warpgroups, or lacks the shared memory that the backward of 128 columns takes in fp32.
enum { FLASH_SHARED = 168 << 10 };
static inline short flash_columns(const sk_device *dev, sk_dtype act, int64_t hd) {
  if (act == SK_BF16 && !sk_cuda_groups(dev)) return 256;
  if (hd <= 64) return 64;
  return hd <= 128 && (act == SK_BF16 || sk_cuda_shared(dev) >= FLASH_SHARED) ? 128 : 256;
}

static inline flash_call flash_describe(const sk_device *dev, sk_dtype act, const sk_attn_dims *d) {
  flash_call c = {};
  int64_t rows = d->Tq * (d->H / d->KV);
  SK_CHECK(d->hd > 0 && d->hd <= 256 && d->hd % 2 == 0,
           "attention: head width %d; even and up to 256", (int)d->hd);
  SK_CHECK(d->H % d->KV == 0, "attention: %d query heads, %d kv heads", (int)d->H, (int)d->KV);
  SK_CHECK(rows < (1 << 30) && d->Tk < (1 << 30) && d->q0 < (1 << 30),
           "attention: sequence too long");
  SK_CHECK(d->ldq < (1 << 24) && d->ldk < (1 << 24) && d->ldv < (1 << 24) && d->ldo < (1 << 24),
           "attention: rows too long"); // a tile's offsets have 32 bits
  c.b = (int)d->b, c.Tq = (int)d->Tq, c.Tk = (int)d->Tk, c.q0 = (int)d->q0;
  c.KV = (int)d->KV, c.H = (int)d->H, c.hd = (int)d->hd;
  c.group = c.H / c.KV, c.rows = (int)rows;
  c.columns = flash_columns(dev, act, d->hd);
  int bits = 0;
  while (1 << bits < c.group) bits++;
  c.shift = 31 + bits;
  c.magic = (uint32_t)((UINT64_C(1) << c.shift) / (uint64_t)c.group + 1);
  c.ldq = d->ldq, c.ldk = d->ldk, c.ldv = d->ldv, c.ldo = d->ldo;
  c.scale = (float)d->scale;
  c.scale2 = (float)(d->scale * 1.4426950408889634);
  return c;
}

// Rows of a tile of the backward: the unit in which dk and dv walk over the rows, and of `range`.
static inline int flash_row_tile(const flash_call &c) {
  return c.columns <= 128 ? 64 : 32;
}

// Lays the backward's scratch out from ws and returns its size in bytes.
static inline size_t flash_scratch(flash_call *c, void *ws) {
  int rows = flash_row_tile(*c);
  c->tiles = (c->rows + rows - 1) / rows;
  c->padded = c->tiles * rows;
  size_t stat = (size_t)c->b * (size_t)c->KV * (size_t)c->padded * sizeof(float2);
  size_t seen = (size_t)c->b * (size_t)c->padded * sizeof(int2);
  size_t range = (size_t)c->b * (size_t)c->tiles * sizeof(int2);
  c->stat = (float2 *)ws;
  c->seen = (int2 *)((uintptr_t)ws + stat);
  c->range = (int2 *)((uintptr_t)ws + stat + seen);
  return stat + seen + range;
}

// row / group, by multiplication (Granlund and Montgomery 1994): exact for rows below 2^31.
static __device__ inline int token_of(const flash_call &c, int row) {
  return (int)((uint64_t)(uint32_t)row * c.magic >> c.shift);
}

static __device__ inline int64_t query_at(const flash_call &c, int bi, int kv, int row,
                                          int64_t ld) {
  int t = token_of(c, row);
  return ((int64_t)bi * c.Tq + t) * ld + (int64_t)(kv * c.group + row - t * c.group) * c.hd;
}

static __device__ inline int64_t key_at(const flash_call &c, int bi, int kv, int key, int64_t ld) {
  return ((int64_t)bi * c.Tk + key) * ld + (int64_t)kv * c.hd;
}

static __device__ inline int64_t lse_at(const flash_call &c, int bi, int kv, int row) {
  int t = token_of(c, row);
  return ((int64_t)bi * c.H + kv * c.group + row - t * c.group) * c.Tq + t;
}

// The keys that a row sees; rows past the end repeat the last one.
static __device__ inline int2 seen_by(const flash_call &c, int bi, int row) {
  int t = token_of(c, min(row, c.rows - 1));
  return make_int2(max(c.start[(int64_t)bi * c.Tq + t], 0), min(c.q0 + t, c.Tk - 1));
}

// A block's tile of rows; the longest tiles, which see the most keys, come first.
struct flash_task {
  int bi, kv, r0;
};

static __device__ inline flash_task rows_of_block(const flash_call &c, int rows) {
  int heads = c.b * c.KV, head = (int)blockIdx.x % heads, at = (int)blockIdx.x / heads;
  int tiles = (c.rows + rows - 1) / rows;
  flash_task t = {head / c.KV, head % c.KV, (tiles - 1 - at) * rows};
  return t;
}

// A tile of rows: [first, end) holds every key that some row sees; all rows see [lo, hi].
struct flash_span {
  int first, end, lo, hi;
};

// Fills seen[ROWS] for the rows from r0. All threads of the block call it; it has a barrier.
template <int ROWS, int THREADS>
static __device__ flash_span place_rows(const flash_call &c, int2 *seen, int bi, int r0) {
  for (int r = (int)threadIdx.x; r < ROWS; r += THREADS) seen[r] = seen_by(c, bi, r0 + r);
  __syncthreads();
  int low = INT_MAX, high = 0;
  for (int r = (int)threadIdx.x % 32; r < ROWS; r += 32) {
    low = min(low, seen[r].x);
    high = max(high, seen[r].x);
  }
  low = __reduce_min_sync(0xffffffffu, low);
  high = __reduce_max_sync(0xffffffffu, high);
  flash_span s = {low, seen[ROWS - 1].y + 1, high, seen[0].y};
  return s;
}

// ---- bf16 tiles ----

// Whether warpgroups multiply.
template <int HD>
constexpr bool BY_GROUPS = HD <= 128;

// Place of a chunk in a tile of ROWS rows.
template <int HD, int ROWS>
static __device__ inline int tile_at(int row, int chunk) {
  if (BY_GROUPS<HD>) return (chunk / 8 * ROWS + row) * 64 + ((chunk % 8 ^ (row & 7)) << 3);
  return row * HD + ((chunk ^ (row & 7)) << 3);
}

// Starts to load n rows of x, at(r) elements from it, to COUNT rows of a tile of ROWS rows; those past
// n become zero. THREADS neighbouring threads, a power of two or the whole block, call it. Without
// WIDE, for rows that are not aligned to 16 bytes, the elements are there on return.
template <int HD, int ROWS, int THREADS, bool WIDE, int COUNT = ROWS, class At>
static __device__ inline void load_tile(bf16 *tile, const void *x, int n, int hd, At at) {
  const int PER = HD / 8, STEP = THREADS / PER;
  int thread = (int)(threadIdx.x % THREADS), chunk = thread % PER, width = min(8, hd - chunk * 8);
  if (width <= 0) n = 0;
  const bf16 *from = (const bf16 *)x + (width > 0 ? chunk * 8 : 0);
#pragma unroll
  for (int i = 0; i < (COUNT + STEP - 1) / STEP; i++) {
    int r = thread / PER + i * STEP;
    if (COUNT % STEP && r >= COUNT) break;
    bf16 *to = tile + tile_at<HD, ROWS>(r, chunk);
    const bf16 *row = from + (r < n ? at(r) : 0);
    if (WIDE) {
      cp_async16(to, row, r < n);
    } else {
#pragma unroll 1
      for (int e = 0; e < 8; e++) to[e] = r < n && e < width ? row[e] : __float2bfloat16_rn(0.0f);
    }
  }
}

// The address that a lane gives to ldmatrix for 16 x 16 elements at (row0, chunk 0); row0 is a
// multiple of 8 and tiles are aligned to 128 bytes. `rows`: A of [row][k] and, transposed, B of
// [k][column]. `columns`: B of [column][k].
template <int HD>
static __device__ inline uint32_t rows_address(const bf16 *tile, int row0) {
  int lane = (int)threadIdx.x % 32;
  return shared_address(tile) +
         (uint32_t)((row0 + lane % 16) * HD * 2 + ((lane / 16) ^ (lane % 8)) * 16);
}

template <int HD>
static __device__ inline uint32_t columns_address(const bf16 *tile, int row0) {
  int lane = (int)threadIdx.x % 32, row = row0 + lane % 8 + lane / 16 * 8;
  return shared_address(tile) + (uint32_t)(row * HD * 2 + ((lane / 8 % 2) ^ (lane % 8)) * 16);
}

// The same `row` rows and `chunk` chunks further on; row is a multiple of 8, chunk of 2.
template <int HD>
static __device__ inline uint32_t further(uint32_t address, int row, int chunk) {
  return (address ^ (uint32_t)(chunk % 8 * 16)) + (uint32_t)(row * HD * 2 + chunk / 8 * 128);
}

template <int M, int N>
static __device__ inline void clear(float (&c)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) c[m][n][e] = 0;
}

template <int M, int N>
static __device__ inline void multiply(float (&c)[M][N][4], float f) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) c[m][n][e] *= f;
}

// c = x y^T: 16 M rows of tile x from m0, 8 N rows of tile y from n0, summed over the HD columns.
template <int HD, int M, int N>
static __device__ inline void product_xyt(float (&c)[M][N][4], const bf16 *x, int m0, const bf16 *y,
                                          int n0) {
  uint32_t xs = rows_address<HD>(x, m0), ys = columns_address<HD>(y, n0);
  clear(c);
#pragma unroll
  for (int k = 0; k < HD / 16; k++) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) ldmatrix(a[m], further<HD>(xs, 16 * m, 2 * k));
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      ldmatrix(b, further<HD>(ys, 8 * n, 2 * k));
#pragma unroll
      for (int m = 0; m < M; m++) {
        mma(c[m][n], a[m], b[0], b[1]);
        mma(c[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// c += p y: p from registers, 16 K columns; y: 16 K rows of a tile from k0, 8 N columns from
// chunk0.
template <int HD, int M, int K, int N>
static __device__ inline void product_py(float (&c)[M][N][4], const uint32_t (&p)[M][K][4],
                                         const bf16 *y, int k0, int chunk0) {
  uint32_t ys = further<HD>(rows_address<HD>(y, k0), 0, chunk0);
#pragma unroll
  for (int k = 0; k < K; k++) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      ldmatrix_trans(b, further<HD>(ys, 16 * k, n));
#pragma unroll
      for (int m = 0; m < M; m++) {
        mma(c[m][n], p[m][k], b[0], b[1]);
        mma(c[m][n + 1], p[m][k], b[2], b[3]);
      }
    }
  }
}

// ---- products of warpgroups, which lie behind those begun before ----

// The warpgroup's tile in x, of ROWS rows, whose 64 rows include this warp's.
template <int HD, int ROWS>
static __device__ inline uint64_t group_rows(const bf16 *x) {
  return wg_tile(shared_address(x) + (threadIdx.x / 128) * 64 * 128, 0);
}

// c = x y^T: the warpgroup's 64 rows of tile x, all 8 N rows of tile y. RX, N * 8: rows of the tiles.
template <int HD, int RX, int N>
static __device__ inline void begin_xyt(float (&c)[1][N][4], const bf16 *x, const bf16 *y) {
  uint64_t a = group_rows<HD, RX>(x), b = wg_tile(shared_address(y), 0);
  wg_begin();
#pragma unroll
  for (int k = 0; k < HD / 16; k++)
    wg_mma(c[0], a + (k / 4 * RX * 128 + k % 4 * 32) / 16, b + (k / 4 * N * 8 * 128 + k % 4 * 32) / 16,
           k > 0);
  wg_commit();
}

// c += p y: 16 K columns of p, as many rows of tile y.
template <int HD, int K>
static __device__ inline void begin_py(float (&c)[1][HD / 8][4], const uint32_t (&p)[1][K][4],
                                       const bf16 *y) {
  uint64_t b = wg_tile(shared_address(y), K * 16 * 128);
  wg_begin();
#pragma unroll
  for (int k = 0; k < K; k++) wg_mma_rows(c[0], p[0][k], b + k * 16 * 128 / 16);
  wg_commit();
}

// A product's result as the left operand of the next: the layouts of C and A agree (section 3.1 of
// FlashAttention-2, Dao 2023, needs no shuffles for that reason).
template <int M, int N>
static __device__ inline void as_operand(uint32_t (&p)[M][N / 2][4], const float (&c)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int k = 0; k < N / 2; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float(&from)[4] = c[m][2 * k + i / 2];
        p[m][k][i] = pack2(from[i % 2 * 2], from[i % 2 * 2 + 1]);
      }
}

// The scores of keys that a row does not see become -inf. Rows are the warp's 16 M from m0.
template <int M, int N>
static __device__ inline void mask_keys(float (&s)[M][N][4], const int2 *seen, int m0, int key0) {
  int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int2 keys = seen[m0 + 16 * m + 8 * half + g];
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          int key = key0 + 8 * n + 2 * t + e;
          if (key < keys.x || key > keys.y) s[m][n][2 * half + e] = -INFINITY;
        }
    }
}

// Writes a warp's rows m0 .. m0 + 16 M - 1 of the n that exist, 8 N columns from chunk0. They pass
// through the same rows of a tile in shared memory that no other warp reads any more.
template <int HD, int ROWS, bool WIDE, int M, int N, class At>
static __device__ inline void store_rows(void *x, bf16 *tile, const float (&c)[M][N][4], int m0,
                                         int chunk0, int n, int hd, At at) {
  int lane = (int)threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int at_tile = tile_at<HD, ROWS>(m0 + 16 * m + 8 * half + lane / 4, chunk0 + i) + lane % 4 * 2;
        *(uint32_t *)(tile + at_tile) = pack2(c[m][i][2 * half], c[m][i][2 * half + 1]);
      }
  __syncwarp();
  for (int i = lane; i < 16 * M * N; i += 32) {
    int row = m0 + i / N, chunk = chunk0 + i % N;
    if (row >= n || chunk * 8 >= hd) continue;
    const bf16 *from = tile + tile_at<HD, ROWS>(row, chunk);
    bf16 *to = (bf16 *)x + at(row) + chunk * 8;
    if (WIDE) {
      *(uint4 *)to = *(const uint4 *)from;
    } else {
      for (int e = 0; e < min(8, hd - chunk * 8); e++) to[e] = from[e];
    }
  }
}

// ---- fp32 tiles: 256 threads, thread (y, x) of 16 x 16 ----

template <int HD>
struct plain {
  enum {
    THREADS = 256,
    TILE = HD <= 128 ? 64 : 32, // rows and keys of a tile
    I = TILE / 16,              // a thread's part of TILE x TILE: rows y + 16 i, columns x + 16 j
    C = HD / 64,                // its part of TILE x HD: rows y + 16 i, columns 4 x + 64 c .. + 3
    LD = HD + 4,                // row strides; the 4 keep 16-byte accesses apart in the banks
    LP = TILE + 4
  };
};

// Loads n rows of x to [TILE][LD]; the rest becomes zero.
template <int HD, class At>
static __device__ void plain_load(float *tile, const void *x, int n, int hd, At at) {
  typedef plain<HD> P;
  for (int i = (int)threadIdx.x; i < P::TILE * HD; i += P::THREADS) {
    int r = i / HD, col = i % HD;
    tile[r * P::LD + col] = r < n && col < hd ? ((const float *)x)[at(r) + col] : 0;
  }
}

// s = x y^T
template <int HD>
static __device__ void plain_xyt(float (&s)[plain<HD>::I][plain<HD>::I], const float *x,
                                 const float *y, int hd) {
  typedef plain<HD> P;
  const float *xs = x + threadIdx.x / 16 * P::LD, *ys = y + threadIdx.x % 16 * P::LD;
#pragma unroll
  for (int i = 0; i < P::I; i++)
#pragma unroll
    for (int j = 0; j < P::I; j++) s[i][j] = 0;
  for (int k = 0; k < hd; k += 4) {
    float4 a[P::I], b[P::I];
#pragma unroll
    for (int i = 0; i < P::I; i++) {
      a[i] = *(const float4 *)(xs + 16 * i * P::LD + k);
      b[i] = *(const float4 *)(ys + 16 * i * P::LD + k);
    }
#pragma unroll
    for (int i = 0; i < P::I; i++)
#pragma unroll
      for (int j = 0; j < P::I; j++) {
        s[i][j] += a[i].x * b[j].x;
        s[i][j] += a[i].y * b[j].y;
        s[i][j] += a[i].z * b[j].z;
        s[i][j] += a[i].w * b[j].w;
      }
  }
}

// A thread's part of [TILE][TILE] goes to shared memory.
template <int HD>
static __device__ void plain_put(float *p, const float (&s)[plain<HD>::I][plain<HD>::I]) {
  typedef plain<HD> P;
#pragma unroll
  for (int i = 0; i < P::I; i++)
#pragma unroll
    for (int j = 0; j < P::I; j++)
      p[(threadIdx.x / 16 + 16 * i) * P::LP + threadIdx.x % 16 + 16 * j] = s[i][j];
}

// c += p y: p [TILE][LP], y [TILE][LD].
template <int HD>
static __device__ void plain_py(float4 (&c)[plain<HD>::I][plain<HD>::C], const float *p,
                                const float *y) {
  typedef plain<HD> P;
  const float *ps = p + threadIdx.x / 16 * P::LP, *ys = y + threadIdx.x % 16 * 4;
  for (int k = 0; k < P::TILE; k++) {
    float4 b[P::C];
#pragma unroll
    for (int n = 0; n < P::C; n++) b[n] = *(const float4 *)(ys + k * P::LD + 64 * n);
#pragma unroll
    for (int i = 0; i < P::I; i++) {
      float a = ps[16 * i * P::LP + k];
#pragma unroll
      for (int n = 0; n < P::C; n++) {
        c[i][n].x += a * b[n].x;
        c[i][n].y += a * b[n].y;
        c[i][n].z += a * b[n].z;
        c[i][n].w += a * b[n].w;
      }
    }
  }
}

// Writes row i of a thread's part, times f.
template <int HD>
static __device__ void plain_store(float *to, const float4 (&c)[plain<HD>::C], float f, int hd) {
#pragma unroll
  for (int n = 0; n < plain<HD>::C; n++) {
    int col = (int)threadIdx.x % 16 * 4 + 64 * n;
    const float v[4] = {c[n].x, c[n].y, c[n].z, c[n].w};
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (col + e < hd) to[col + e] = f * v[e];
  }
}

// ---- launches ----

template <class Kernel>
static inline void flash_launch(sk_stream *s, Kernel kernel, const flash_call &c, int64_t blocks,
                                int threads, size_t bytes) {
  SK_CHECK(blocks < INT_MAX, "attention: %lld blocks", (long long)blocks);
  SK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  kernel<<<(unsigned)blocks, threads, bytes, sk_cuda_stream(s)>>>(c);
  SK_CUDA(cudaGetLastError());
}

// Blocks for tiles of `size` rows (or keys) of every (sequence, kv head).
static inline int64_t flash_blocks(const flash_call &c, int rows, int size) {
  return (int64_t)c.b * c.KV * ((rows + size - 1) / size);
}

// cuda_attention_groups*.cu: bf16, tiles of up to 128 columns. backward: after the statistics of the
// rows.
void sk_flash_forward(sk_stream *s, const flash_call &c);
void sk_flash_backward(sk_stream *s, const flash_call &c);

#endif
