/* cuda_attention.cu: attention, forward (model specification, section 2.3), and the scratch size of
 * the backward. FlashAttention-2 (Dao 2023): a block owns a tile of rows and walks over the tiles
 * of keys that some row sees, with the softmax so far. Here: bf16 by warps on the tensor cores, for
 * heads wider than 128, and for all where the GPU has no products of warpgroups (the others:
 * cuda_attention_groups.cu), and fp32 on the CUDA cores. */
#include "kernels/cuda_flash.h"

// The highest score so far before any was seen. Finite, so that no infinities are subtracted.
static const float NOTHING_YET = -1e30f;

// A warp has MT x 16 rows and works on STEP of the KEYS keys that are loaded at a time, twice
// buffered; CTAS blocks share an SM.
template <int HD>
struct forward_shape;
template <>
struct forward_shape<256> {
  enum { WARPS = 4, MT = 1, KEYS = 32, STEP = 32, CTAS = 1 };
};

template <int HD>
struct forward_tiles {
  typedef forward_shape<HD> S;
  enum { THREADS = 32 * S::WARPS, ROWS = 16 * S::MT * S::WARPS, KEYS = S::KEYS };
  bf16 q[ROWS * HD], k[2][KEYS * HD], v[2][KEYS * HD];
  int2 seen[ROWS];
};

// ---- bf16 ----

// Scores s become probabilities relative to the new maxima; o and the sums so far are rescaled.
// A row's columns lie in the four lanes of a quad; its sum stays apart in them until the end.
template <int M, int N, int C>
static __device__ inline void online_softmax(float (&s)[M][N][4], float (&o)[M][C][4],
                                             float (&top)[M][2], float (&sum)[M][2], float scale2) {
  float shrink[M][2];
  bool same = true;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float high = top[m][half];
#pragma unroll
      for (int n = 0; n < N; n++)
        high = fmaxf(high, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
      shrink[m][half] = fast_exp2((top[m][half] - high) * scale2);
      same = same && top[m][half] == high;
      float base = high * scale2, part = 0;
      top[m][half] = high;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++) {
          s[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale2, -base));
          part += s[m][n][e];
        }
      sum[m][half] = sum[m][half] * shrink[m][half] + part;
    }
  if (__all_sync(0xffffffffu, same)) return; // often, once some tiles are behind: all factors are 1
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < C; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) o[m][n][e] *= shrink[m][e / 2];
}

template <int HD, int ROWS, bool WIDE>
static __device__ inline void load_rows(const flash_call &c, const flash_task &t, bf16 *tile) {
  const int THREADS = forward_tiles<HD>::THREADS;
  load_tile<HD, ROWS, THREADS, WIDE>(tile, c.q, c.rows - t.r0, c.hd, [&](int r) {
    return query_at(c, t.bi, t.kv, t.r0 + r, c.ldq);
  });
}

template <int HD, bool WIDE>
static __device__ inline void load_keys(const flash_call &c, const flash_task &t, bf16 *k, bf16 *v,
                                        int j0, int end) {
  const int THREADS = forward_tiles<HD>::THREADS, KEYS = forward_tiles<HD>::KEYS;
  load_tile<HD, KEYS, THREADS, WIDE>(k, c.k, end - j0, c.hd,
                                     [&](int r) { return key_at(c, t.bi, t.kv, j0 + r, c.ldk); });
  load_tile<HD, KEYS, THREADS, WIDE>(v, c.v, end - j0, c.hd,
                                     [&](int r) { return key_at(c, t.bi, t.kv, j0 + r, c.ldv); });
  cp_async_commit();
}

// Divides by the sums and writes lse; the four lanes of a quad hold parts of the sum.
template <int M, int C>
static __device__ inline void finish(const flash_call &c, const flash_task &t, float (&o)[M][C][4],
                                     const float (&top)[M][2], const float (&sum)[M][2], int m0) {
  int lane = (int)threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float all = sum[m][half];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      float inv = 1 / all;
#pragma unroll
      for (int n = 0; n < C; n++) {
        o[m][n][2 * half] *= inv;
        o[m][n][2 * half + 1] *= inv;
      }
      int row = t.r0 + m0 + 16 * m + 8 * half + lane / 4;
      if (lane % 4 == 0 && row < c.rows)
        c.lse[lse_at(c, t.bi, t.kv, row)] = top[m][half] * c.scale + logf(all);
    }
}

template <int HD, bool WIDE>
static __global__ void __launch_bounds__(forward_tiles<HD>::THREADS, forward_shape<HD>::CTAS)
    forward_bf16(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef forward_tiles<HD> T;
  const int M = forward_shape<HD>::MT, KEYS = T::KEYS, N = forward_shape<HD>::STEP / 8;
  T &tiles = *(T *)shared;
  flash_task t = rows_of_block(c, T::ROWS);
  int m0 = (int)threadIdx.x / 32 * 16 * M;
  load_rows<HD, T::ROWS, WIDE>(c, t, tiles.q);
  flash_span span = place_rows<T::ROWS, T::THREADS>(c, tiles.seen, t.bi, t.r0);
  int j0 = span.first / KEYS * KEYS;
  load_keys<HD, WIDE>(c, t, tiles.k[0], tiles.v[0], j0, span.end);

  float o[M][HD / 8][4], top[M][2], sum[M][2];
  clear(o);
  for (int m = 0; m < M; m++)
    for (int half = 0; half < 2; half++) top[m][half] = NOTHING_YET, sum[m][half] = 0;
  for (int now = 0; j0 < span.end; j0 += KEYS, now ^= 1) {
    cp_async_wait();
    __syncthreads(); // the tiles are here, and nobody reads the other ones any more
    if (j0 + KEYS < span.end)
      load_keys<HD, WIDE>(c, t, tiles.k[now ^ 1], tiles.v[now ^ 1], j0 + KEYS, span.end);
    bool some = j0 < span.lo || j0 + KEYS - 1 > span.hi;
    float s[M][N][4];
    uint32_t p[M][N / 2][4];
    product_xyt<HD>(s, tiles.q, m0, tiles.k[now], 0);
    if (some) mask_keys(s, tiles.seen, m0, j0);
    online_softmax(s, o, top, sum, c.scale2);
    as_operand(p, s);
    product_py<HD>(o, p, tiles.v[now], 0, 0);
  }
  finish(c, t, o, top, sum, m0);
  store_rows<HD, T::ROWS, WIDE>(c.out, tiles.q, o, m0, 0, c.rows - t.r0, c.hd,
                       [&](int r) { return query_at(c, t.bi, t.kv, t.r0 + r, c.ldo); });
}

// ---- fp32 ----

template <int HD>
struct plain_forward_tiles {
  typedef plain<HD> P;
  float q[P::TILE * P::LD], k[P::TILE * P::LD], v[P::TILE * P::LD], p[P::TILE * P::LP];
  int2 seen[P::TILE];
};

// Like online_softmax; the 16 threads x of a row are neighbours in a warp.
template <int I, int C>
static __device__ inline void plain_softmax(float (&s)[I][I], float4 (&o)[I][C], float (&top)[I],
                                            float (&sum)[I], const int2 *seen, int j0,
                                            float scale2) {
  int y = (int)threadIdx.x / 16, x = (int)threadIdx.x % 16;
#pragma unroll
  for (int i = 0; i < I; i++) {
    int2 keys = seen[y + 16 * i];
    float high = top[i], part = 0;
#pragma unroll
    for (int j = 0; j < I; j++) {
      int key = j0 + x + 16 * j;
      if (key < keys.x || key > keys.y) s[i][j] = -INFINITY;
      high = fmaxf(high, s[i][j]);
    }
    for (int d = 8; d > 0; d /= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, d));
#pragma unroll
    for (int j = 0; j < I; j++) {
      s[i][j] = exp2f((s[i][j] - high) * scale2);
      part += s[i][j];
    }
    for (int d = 8; d > 0; d /= 2) part += __shfl_xor_sync(0xffffffffu, part, d);
    float shrink = exp2f((top[i] - high) * scale2);
    sum[i] = sum[i] * shrink + part;
    top[i] = high;
#pragma unroll
    for (int n = 0; n < C; n++) {
      o[i][n].x *= shrink, o[i][n].y *= shrink;
      o[i][n].z *= shrink, o[i][n].w *= shrink;
    }
  }
}

template <int HD>
static __global__ void __launch_bounds__(plain<HD>::THREADS)
    forward_f32(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef plain<HD> P;
  plain_forward_tiles<HD> &tiles = *(plain_forward_tiles<HD> *)shared;
  flash_task t = rows_of_block(c, P::TILE);
  plain_load<HD>(tiles.q, c.q, c.rows - t.r0, c.hd,
                 [&](int r) { return query_at(c, t.bi, t.kv, t.r0 + r, c.ldq); });
  flash_span span = place_rows<P::TILE, P::THREADS>(c, tiles.seen, t.bi, t.r0);

  float4 o[P::I][P::C];
  float top[P::I], sum[P::I];
  for (int i = 0; i < P::I; i++) {
    top[i] = NOTHING_YET, sum[i] = 0;
    for (int n = 0; n < P::C; n++) o[i][n] = make_float4(0, 0, 0, 0);
  }
  for (int j0 = span.first / P::TILE * P::TILE; j0 < span.end; j0 += P::TILE) {
    __syncthreads();
    plain_load<HD>(tiles.k, c.k, span.end - j0, c.hd,
                   [&](int r) { return key_at(c, t.bi, t.kv, j0 + r, c.ldk); });
    plain_load<HD>(tiles.v, c.v, span.end - j0, c.hd,
                   [&](int r) { return key_at(c, t.bi, t.kv, j0 + r, c.ldv); });
    __syncthreads();
    float s[P::I][P::I];
    plain_xyt<HD>(s, tiles.q, tiles.k, c.hd);
    plain_softmax(s, o, top, sum, tiles.seen, j0, c.scale2);
    plain_put<HD>(tiles.p, s);
    __syncthreads();
    plain_py<HD>(o, tiles.p, tiles.v);
  }
  for (int i = 0; i < P::I; i++) {
    int row = t.r0 + (int)threadIdx.x / 16 + 16 * i;
    if (row >= c.rows) continue;
    plain_store<HD>((float *)c.out + query_at(c, t.bi, t.kv, row, c.ldo), o[i], 1 / sum[i], c.hd);
    if (threadIdx.x % 16 == 0) c.lse[lse_at(c, t.bi, t.kv, row)] = top[i] * c.scale + logf(sum[i]);
  }
}

// ---- launchers ----

template <int HD>
static void forward_plain(sk_stream *s, const flash_call &c) {
  typedef plain<HD> P;
  flash_launch(s, forward_f32<HD>, c, flash_blocks(c, c.rows, P::TILE), P::THREADS,
               sizeof(plain_forward_tiles<HD>));
}

static void forward_half(sk_stream *s, const flash_call &c) {
  typedef forward_tiles<256> T;
  if (c.columns <= 128)
    sk_flash_forward(s, c);
  else
    flash_launch(s, c.wide ? forward_bf16<256, true> : forward_bf16<256, false>, c,
                 flash_blocks(c, c.rows, T::ROWS), T::THREADS, sizeof(T));
}

extern "C" void sk_cuda_attention(sk_stream *s, const sk_attn_dims *d, void *o, float *lse,
                                  const void *q, const void *k, const void *v,
                                  const int32_t *start) {
  if (!d->b || !d->Tq) return;
  flash_call c = flash_describe(sk_cuda_device(s), sk_cuda_act(s), d);
  size_t size = sk_dtype_size(sk_cuda_act(s));
  c.q = q, c.k = k, c.v = v, c.out = o, c.lse = lse, c.start = start;
  c.wide = flash_wide(d, size, q, d->ldq) && flash_wide(d, size, k, d->ldk) &&
           flash_wide(d, size, v, d->ldv) && flash_wide(d, size, o, d->ldo);
  if (sk_cuda_act(s) == SK_BF16)
    forward_half(s, c);
  else if (c.columns == 64)
    forward_plain<64>(s, c);
  else if (c.columns == 128)
    forward_plain<128>(s, c);
  else
    forward_plain<256>(s, c);
}

extern "C" size_t sk_cuda_attention_ws(const sk_device *dev, sk_dtype act, const sk_attn_dims *d) {
  flash_call c = flash_describe(dev, act, d);
  return flash_scratch(&c, NULL);
}
