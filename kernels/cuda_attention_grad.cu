/* cuda_attention_grad.cu: attention, backward (model specification, sections 2.3 and 3.5). Three
 * kernels: statistics of the rows; dk and dv by tiles of keys, which walk over the rows that see
 * them; dq by tiles of rows, which walk over their keys. Every output has one owner and every sum
 * one order. The price is that scores and dP are computed twice: seven products instead of five. In
 * bf16 the latter two are here for heads wider than 128, and for all where the GPU has no products
 * of warpgroups; the others in cuda_attention_groups_grad.cu. */
#include "kernels/cuda_flash_grad.h"

// ---- statistics: rowsum(do * o), lse in base 2, keys of every row, ranges of the tiles ----

enum { STAT_THREADS = 256 };

static __device__ inline float to_float(float x) {
  return x;
}
static __device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}

// 8 elements of a row, of which the first `width` exist.
template <class T>
static __device__ inline void load8(float (&x)[8], const T *from, int width, bool wide) {
  __align__(16) T raw[8];
  if (wide && width >= 8) {
    for (int i = 0; i < (int)sizeof raw / 16; i++) ((uint4 *)raw)[i] = ((const uint4 *)from)[i];
  } else {
    for (int i = 0; i < 8; i++) raw[i] = i < width ? from[i] : T(0.0f);
  }
  for (int i = 0; i < 8; i++) x[i] = to_float(raw[i]);
}

static __device__ inline void row_ranges(const flash_call &c, int bi, int tile, int rows) {
  int low = INT_MAX, high = 0;
  for (int r = (int)threadIdx.x; r < rows; r += 32) {
    int2 keys = seen_by(c, bi, tile * rows + r);
    c.seen[(int64_t)bi * c.padded + tile * rows + r] = keys;
    low = min(low, keys.x);
    high = max(high, keys.x);
  }
  low = __reduce_min_sync(0xffffffffu, low);
  high = __reduce_max_sync(0xffffffffu, high);
  if (threadIdx.x == 0) c.range[(int64_t)bi * c.tiles + tile] = make_int2(low, high);
}

// A block has one tile of rows; HD / 8 neighbouring lanes have one row.
template <class T, int HD>
static __global__ void __launch_bounds__(STAT_THREADS)
    row_stats(const __grid_constant__ flash_call c) {
  const int LANES = HD / 8, rows = plain<HD>::TILE;
  int tile = (int)blockIdx.x % c.tiles, head = (int)blockIdx.x / c.tiles, kv = head % c.KV,
      bi = head / c.KV;
  int col = (int)threadIdx.x % LANES * 8;
  for (int i = (int)threadIdx.x / LANES; i < rows; i += STAT_THREADS / LANES) {
    int row = tile * rows + i;
    float sum = 0;
    if (row < c.rows) {
      int64_t at = query_at(c, bi, kv, row, c.ldo) + col;
      float x[8], y[8];
      load8(x, (const T *)c.dout + at, c.hd - col, c.wide);
      load8(y, (const T *)c.o + at, c.hd - col, c.wide);
      for (int e = 0; e < 8; e++) sum += x[e] * y[e];
    }
    for (int d = LANES / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (col) continue;
    // Rows past the end get an infinite lse: their probabilities are 0.
    float lse = row < c.rows ? c.lse[lse_at(c, bi, kv, row)] * 1.44269504f : INFINITY;
    c.stat[((int64_t)bi * c.KV + kv) * c.padded + row] = make_float2(lse, sum);
  }
  if (kv == 0 && threadIdx.x < 32) row_ranges(c, bi, tile, rows);
}

// ---- bf16: dk and dv ----

// A warp has MT x 16 keys and works on STEP of the ROWS rows that are loaded at a time, twice
// buffered. A block computes one of SLICES parts of the columns of dk and dv.
template <int HD>
struct keys_shape;
template <>
struct keys_shape<256> {
  enum { WARPS = 4, MT = 1, ROWS = 32, STEP = 32, SLICES = 2, CTAS = 1 };
};

template <int HD>
struct keys_tiles {
  typedef keys_shape<HD> S;
  enum { THREADS = 32 * S::WARPS, KEYS = 16 * S::MT * S::WARPS, ROWS = S::ROWS };
  bf16 k[KEYS * HD], v[KEYS * HD], q[2][ROWS * HD], dout[2][ROWS * HD];
  float2 stat[2][ROWS];
  int2 seen[2][ROWS];
  int found[S::WARPS];
};

template <bool WIDE, int HD>
static __device__ inline void load_row_tile(const flash_call &c, keys_tiles<HD> &tiles, int to,
                                            int bi, int kv, int tile) {
  typedef keys_tiles<HD> T;
  int r0 = tile * T::ROWS, n = c.rows - r0, i = (int)threadIdx.x;
  load_tile<HD, T::ROWS, T::THREADS, WIDE>(
      tiles.q[to], c.q, n, c.hd, [&](int r) { return query_at(c, bi, kv, r0 + r, c.ldq); });
  load_tile<HD, T::ROWS, T::THREADS, WIDE>(
      tiles.dout[to], c.dout, n, c.hd, [&](int r) { return query_at(c, bi, kv, r0 + r, c.ldo); });
  // 16 bytes hold the statistics of two rows.
  if (i < T::ROWS / 2)
    cp_async16(&tiles.stat[to][2 * i], c.stat + ((int64_t)bi * c.KV + kv) * c.padded + r0 + 2 * i,
               true);
  else if (i < T::ROWS)
    cp_async16(&tiles.seen[to][2 * i - T::ROWS],
               c.seen + (int64_t)bi * c.padded + r0 + 2 * i - T::ROWS, true);
  cp_async_commit();
}

template <int HD, bool WIDE>
static __global__ void __launch_bounds__(keys_tiles<HD>::THREADS, keys_shape<HD>::CTAS)
    grad_keys_bf16(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef keys_tiles<HD> T;
  typedef keys_shape<HD> S;
  const int M = S::MT, N = S::STEP / 8, C = HD / 8 / S::SLICES;
  T &tiles = *(T *)shared;
  int heads = c.b * c.KV * S::SLICES, head = (int)blockIdx.x % heads / S::SLICES;
  int chunk0 = (int)blockIdx.x % S::SLICES * C, bi = head / c.KV, kv = head % c.KV;
  int j0 = (int)blockIdx.x / heads * T::KEYS, m0 = (int)threadIdx.x / 32 * 16 * M;
  int keys = min(c.Tk, c.q0 + c.Tq) - j0; // later keys may hold anything
  load_tile<HD, T::KEYS, T::THREADS, WIDE>(tiles.k, c.k, keys, c.hd,
                                           [&](int r) { return key_at(c, bi, kv, j0 + r, c.ldk); });
  load_tile<HD, T::KEYS, T::THREADS, WIDE>(tiles.v, c.v, keys, c.hd,
                                           [&](int r) { return key_at(c, bi, kv, j0 + r, c.ldv); });
  cp_async_commit(); // a group of its own, for keys that nobody sees
  row_walk w = walk_of<S::WARPS>(c, tiles.found, bi, j0, T::KEYS);
  if (w.first <= w.last) load_row_tile<WIDE>(c, tiles, 0, bi, kv, w.first);

  float dk[M][C][4], dv[M][C][4];
  clear(dk);
  clear(dv);
#pragma unroll 1
  for (int now = 0; w.first <= w.last; now ^= 1) {
    int tile = w.first;
    w.first = next_tile(w, tile + 1);
    cp_async_wait();
    __syncthreads(); // the tiles are here, and nobody reads the other ones any more
    bool some = !all_seen(c, w, tile, T::KEYS);
    if (w.first <= w.last) load_row_tile<WIDE>(c, tiles, now ^ 1, bi, kv, w.first);
    float s[M][N][4], dp[M][N][4];
    uint32_t p[M][N / 2][4], ds[M][N / 2][4];
    product_xyt<HD>(s, tiles.k, m0, tiles.q[now], 0);
    if (some) mask_rows(s, tiles.seen[now], j0 + m0);
    product_xyt<HD>(dp, tiles.v, m0, tiles.dout[now], 0);
    probabilities_of_rows(s, tiles.stat[now], c.scale2);
    as_operand(p, s);
    product_py<HD>(dv, p, tiles.dout[now], 0, chunk0);
    grads_of_rows(s, dp, tiles.stat[now]);
    as_operand(ds, dp);
    product_py<HD>(dk, ds, tiles.q[now], 0, chunk0);
  }
  cp_async_wait();
  __syncthreads(); // k and v may have been loaded for nothing
  multiply(dk, c.scale);
  store_rows<HD, T::KEYS, WIDE>(c.dk, tiles.k, dk, m0, chunk0, c.Tk - j0, c.hd,
                       [&](int r) { return key_at(c, bi, kv, j0 + r, c.ldk); });
  store_rows<HD, T::KEYS, WIDE>(c.dv, tiles.v, dv, m0, chunk0, c.Tk - j0, c.hd,
                       [&](int r) { return key_at(c, bi, kv, j0 + r, c.ldv); });
}

// ---- bf16: dq ----

template <int HD>
struct rows_shape;
template <>
struct rows_shape<256> {
  enum { WARPS = 4, MT = 1, KEYS = 32, STEP = 32, CTAS = 1 };
};

template <int HD>
struct rows_tiles {
  typedef rows_shape<HD> S;
  enum { THREADS = 32 * S::WARPS, ROWS = 16 * S::MT * S::WARPS, KEYS = S::KEYS };
  bf16 q[ROWS * HD], dout[ROWS * HD], k[2][KEYS * HD], v[2][KEYS * HD];
  float2 stat[ROWS];
  int2 seen[ROWS];
};

template <bool WIDE, int HD>
static __device__ inline void load_key_tile(const flash_call &c, rows_tiles<HD> &tiles, int to,
                                            const flash_task &t, int j0, int end) {
  typedef rows_tiles<HD> T;
  load_tile<HD, T::KEYS, T::THREADS, WIDE>(tiles.k[to], c.k, end - j0, c.hd, [&](int r) {
    return key_at(c, t.bi, t.kv, j0 + r, c.ldk);
  });
  load_tile<HD, T::KEYS, T::THREADS, WIDE>(tiles.v[to], c.v, end - j0, c.hd, [&](int r) {
    return key_at(c, t.bi, t.kv, j0 + r, c.ldv);
  });
  cp_async_commit();
}

template <int HD, bool WIDE>
static __global__ void __launch_bounds__(rows_tiles<HD>::THREADS, rows_shape<HD>::CTAS)
    grad_rows_bf16(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef rows_tiles<HD> T;
  typedef rows_shape<HD> S;
  const int M = S::MT, N = S::STEP / 8, KEYS = T::KEYS;
  T &tiles = *(T *)shared;
  flash_task t = rows_of_block(c, T::ROWS);
  int m0 = (int)threadIdx.x / 32 * 16 * M, n = c.rows - t.r0;
  load_tile<HD, T::ROWS, T::THREADS, WIDE>(
      tiles.q, c.q, n, c.hd, [&](int r) { return query_at(c, t.bi, t.kv, t.r0 + r, c.ldq); });
  load_tile<HD, T::ROWS, T::THREADS, WIDE>(
      tiles.dout, c.dout, n, c.hd, [&](int r) { return query_at(c, t.bi, t.kv, t.r0 + r, c.ldo); });
  const float2 *stat = c.stat + ((int64_t)t.bi * c.KV + t.kv) * c.padded;
  for (int r = (int)threadIdx.x; r < T::ROWS; r += T::THREADS)
    tiles.stat[r] = stat[min(t.r0 + r, c.rows - 1)];
  flash_span span = place_rows<T::ROWS, T::THREADS>(c, tiles.seen, t.bi, t.r0);
  int j0 = span.first / KEYS * KEYS;
  load_key_tile<WIDE>(c, tiles, 0, t, j0, span.end);

  float dq[M][HD / 8][4];
  clear(dq);
#pragma unroll 1
  for (int now = 0; j0 < span.end; j0 += KEYS, now ^= 1) {
    cp_async_wait();
    __syncthreads(); // the tiles are here, and nobody reads the other ones any more
    if (j0 + KEYS < span.end) load_key_tile<WIDE>(c, tiles, now ^ 1, t, j0 + KEYS, span.end);
    bool some = j0 < span.lo || j0 + KEYS - 1 > span.hi;
    float s[M][N][4], dp[M][N][4];
    uint32_t ds[M][N / 2][4];
    product_xyt<HD>(s, tiles.q, m0, tiles.k[now], 0);
    if (some) mask_keys(s, tiles.seen, m0, j0);
    product_xyt<HD>(dp, tiles.dout, m0, tiles.v[now], 0);
    probabilities_of_keys(s, tiles.stat + m0, c.scale2);
    grads_of_keys(s, dp, tiles.stat + m0);
    as_operand(ds, dp);
    product_py<HD>(dq, ds, tiles.k[now], 0, 0);
  }
  multiply(dq, c.scale);
  store_rows<HD, T::ROWS, WIDE>(c.dq, tiles.q, dq, m0, 0, n, c.hd,
                       [&](int r) { return query_at(c, t.bi, t.kv, t.r0 + r, c.ldq); });
}

// ---- fp32 ----

template <int HD>
struct plain_grad_tiles {
  typedef plain<HD> P;
  float k[P::TILE * P::LD], v[P::TILE * P::LD], q[P::TILE * P::LD], dout[P::TILE * P::LD];
  float p[P::TILE * P::LP], ds[P::TILE * P::LP];
  float2 stat[P::TILE];
  int2 seen[P::TILE];
  int found[P::THREADS / 32];
};

template <int HD>
static __device__ inline void plain_rows(const flash_call &c, plain_grad_tiles<HD> &tiles, int bi,
                                         int kv, int r0) {
  const int TILE = plain<HD>::TILE;
  plain_load<HD>(tiles.q, c.q, c.rows - r0, c.hd,
                 [&](int r) { return query_at(c, bi, kv, r0 + r, c.ldq); });
  plain_load<HD>(tiles.dout, c.dout, c.rows - r0, c.hd,
                 [&](int r) { return query_at(c, bi, kv, r0 + r, c.ldo); });
  if (threadIdx.x < TILE) {
    int r = r0 + (int)threadIdx.x;
    tiles.stat[threadIdx.x] = c.stat[((int64_t)bi * c.KV + kv) * c.padded + r];
    tiles.seen[threadIdx.x] = c.seen[(int64_t)bi * c.padded + r];
  }
}

template <int HD>
static __device__ inline void plain_keys(const flash_call &c, plain_grad_tiles<HD> &tiles, int bi,
                                         int kv, int j0, int end) {
  plain_load<HD>(tiles.k, c.k, end - j0, c.hd,
                 [&](int r) { return key_at(c, bi, kv, j0 + r, c.ldk); });
  plain_load<HD>(tiles.v, c.v, end - j0, c.hd,
                 [&](int r) { return key_at(c, bi, kv, j0 + r, c.ldv); });
}

// s: scores -> probabilities, dp -> ds, of one row and key.
static __device__ inline void plain_grad(float &s, float &dp, int key, int2 keys, float2 stat,
                                         float scale2) {
  s = key < keys.x || key > keys.y ? 0 : exp2f(fmaf(s, scale2, -stat.x));
  dp = s * (dp - stat.y);
}

template <int I, int C>
static __device__ inline void plain_clear(float4 (&c)[I][C]) {
  for (int i = 0; i < I; i++)
    for (int n = 0; n < C; n++) c[i][n] = make_float4(0, 0, 0, 0);
}

template <int HD>
static __global__ void __launch_bounds__(plain<HD>::THREADS)
    grad_keys_f32(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef plain<HD> P;
  plain_grad_tiles<HD> &tiles = *(plain_grad_tiles<HD> *)shared;
  int heads = c.b * c.KV, head = (int)blockIdx.x % heads, bi = head / c.KV, kv = head % c.KV;
  int j0 = (int)blockIdx.x / heads * P::TILE, y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
  plain_keys(c, tiles, bi, kv, j0, min(c.Tk, c.q0 + c.Tq));
  row_walk w = walk_of<P::THREADS / 32>(c, tiles.found, bi, j0, P::TILE);
  float4 dk[P::I][P::C], dv[P::I][P::C];
  plain_clear(dk);
  plain_clear(dv);
  for (int tile = w.first; tile <= w.last; tile = next_tile(w, tile + 1)) {
    __syncthreads();
    plain_rows(c, tiles, bi, kv, tile * P::TILE);
    __syncthreads();
    float s[P::I][P::I], dp[P::I][P::I];
    plain_xyt<HD>(s, tiles.k, tiles.q, c.hd);
    plain_xyt<HD>(dp, tiles.v, tiles.dout, c.hd);
    for (int j = 0; j < P::I; j++)
      for (int i = 0; i < P::I; i++)
        plain_grad(s[i][j], dp[i][j], j0 + y + 16 * i, tiles.seen[x + 16 * j],
                   tiles.stat[x + 16 * j], c.scale2);
    plain_put<HD>(tiles.p, s);
    plain_put<HD>(tiles.ds, dp);
    __syncthreads();
    plain_py<HD>(dv, tiles.p, tiles.dout);
    plain_py<HD>(dk, tiles.ds, tiles.q);
  }
  for (int i = 0; i < P::I; i++) {
    int key = j0 + y + 16 * i;
    if (key >= c.Tk) continue;
    plain_store<HD>((float *)c.dk + key_at(c, bi, kv, key, c.ldk), dk[i], c.scale, c.hd);
    plain_store<HD>((float *)c.dv + key_at(c, bi, kv, key, c.ldv), dv[i], 1, c.hd);
  }
}

template <int HD>
static __global__ void __launch_bounds__(plain<HD>::THREADS)
    grad_rows_f32(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef plain<HD> P;
  plain_grad_tiles<HD> &tiles = *(plain_grad_tiles<HD> *)shared;
  flash_task t = rows_of_block(c, P::TILE);
  int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
  plain_rows(c, tiles, t.bi, t.kv, t.r0);
  flash_span span = place_rows<P::TILE, P::THREADS>(c, tiles.seen, t.bi, t.r0);
  float4 dq[P::I][P::C];
  plain_clear(dq);
  for (int j0 = span.first / P::TILE * P::TILE; j0 < span.end; j0 += P::TILE) {
    __syncthreads();
    plain_keys(c, tiles, t.bi, t.kv, j0, span.end);
    __syncthreads();
    float s[P::I][P::I], dp[P::I][P::I];
    plain_xyt<HD>(s, tiles.q, tiles.k, c.hd);
    plain_xyt<HD>(dp, tiles.dout, tiles.v, c.hd);
    for (int i = 0; i < P::I; i++)
      for (int j = 0; j < P::I; j++)
        plain_grad(s[i][j], dp[i][j], j0 + x + 16 * j, tiles.seen[y + 16 * i],
                   tiles.stat[y + 16 * i], c.scale2);
    plain_put<HD>(tiles.ds, dp);
    __syncthreads();
    plain_py<HD>(dq, tiles.ds, tiles.k);
  }
  for (int i = 0; i < P::I; i++) {
    int row = t.r0 + y + 16 * i;
    if (row >= c.rows) continue;
    plain_store<HD>((float *)c.dq + query_at(c, t.bi, t.kv, row, c.ldq), dq[i], c.scale, c.hd);
  }
}

// ---- launcher ----

static int64_t flash_stat_blocks(const flash_call &c) {
  return (int64_t)c.b * c.KV * c.tiles;
}

template <int HD>
static void backward_plain(sk_stream *s, const flash_call &c) {
  typedef plain<HD> P;
  SK_CHECK(flash_row_tile(c) == P::TILE, "attention_grad: tiles of %d rows", flash_row_tile(c));
  const size_t bytes = sizeof(plain_grad_tiles<HD>);
  static_assert(HD == 128 ? bytes <= FLASH_SHARED : bytes <= SK_CUDA_SHARED, "flash_columns");
  flash_launch(s, row_stats<float, HD>, c, flash_stat_blocks(c), STAT_THREADS, 0);
  flash_launch(s, grad_keys_f32<HD>, c, flash_blocks(c, c.Tk, P::TILE), P::THREADS, bytes);
  flash_launch(s, grad_rows_f32<HD>, c, flash_blocks(c, c.rows, P::TILE), P::THREADS, bytes);
}

static void backward_half(sk_stream *s, const flash_call &c) {
  typedef keys_tiles<256> K;
  typedef rows_tiles<256> R;
  static_assert((int)K::ROWS == (int)plain<256>::TILE, "both walk over the tiles of row_stats");
  static_assert(sizeof(K) <= SK_CUDA_SHARED && sizeof(R) <= SK_CUDA_SHARED, "on every GPU");
  auto stats = c.columns == 64    ? row_stats<bf16, 64>
               : c.columns == 128 ? row_stats<bf16, 128>
                                  : row_stats<bf16, 256>;
  flash_launch(s, stats, c, flash_stat_blocks(c), STAT_THREADS, 0);
  if (c.columns <= 128) {
    sk_flash_backward(s, c);
    return;
  }
  flash_launch(s, c.wide ? grad_keys_bf16<256, true> : grad_keys_bf16<256, false>, c,
               flash_blocks(c, c.Tk, K::KEYS) * keys_shape<256>::SLICES, K::THREADS, sizeof(K));
  flash_launch(s, c.wide ? grad_rows_bf16<256, true> : grad_rows_bf16<256, false>, c,
               flash_blocks(c, c.rows, R::ROWS), R::THREADS, sizeof(R));
}

extern "C" void sk_cuda_attention_grad(sk_stream *s, const sk_attn_dims *d, void *dq, void *dk,
                                       void *dv, const void *do_, const void *q, const void *k,
                                       const void *v, const void *o, const float *lse,
                                       const int32_t *start, void *ws) {
  if (!d->b || !d->Tk) return;
  flash_call c = flash_describe(sk_cuda_device(s), sk_cuda_act(s), d);
  size_t size = sk_dtype_size(sk_cuda_act(s));
  flash_scratch(&c, ws);
  c.q = q, c.k = k, c.v = v, c.o = o, c.dout = do_, c.lse = (float *)(uintptr_t)lse,
  c.start = start;
  c.dq = dq, c.dk = dk, c.dv = dv;
  const void *same[][2] = {{q, dq}, {k, dk}, {v, dv}, {o, do_}};
  const int64_t ld[] = {d->ldq, d->ldk, d->ldv, d->ldo};
  c.wide = true;
  for (int i = 0; i < 8; i++) c.wide = c.wide && flash_wide(d, size, same[i / 2][i % 2], ld[i / 2]);
  if (sk_cuda_act(s) == SK_BF16)
    backward_half(s, c);
  else if (c.columns == 64)
    backward_plain<64>(s, c);
  else if (c.columns == 128)
    backward_plain<128>(s, c);
  else
    backward_plain<256>(s, c);
}
