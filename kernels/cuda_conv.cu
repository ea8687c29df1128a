/* cuda_conv.cu: the causal depthwise convolution with SiLU (sections 2.4 item 4, 3.5).
 *
 * A thread has V neighbouring channels and walks over a run of consecutive tokens of a sequence
 * with the last K raw rows in registers, so that a row is read once (and the K - 1 before a run
 * once more). It loads AHEAD rows before it uses the first. With the released models' 4 taps and
 * aligned rows V elements are 16 bytes, in the backward at bf16 8 (registers); else one, for up to
 * 16 taps.
 *
 * Backward in one pass: a run computes the gradient before SiLU of its own tokens and of the K - 1
 * after them, which its rows' gradients need too. Sums for dw and dbias are over the tokens of a
 * thread's runs, then over the threads of a block, then over the blocks in order, in double. */
#include "kernels/cuda_kernel.h"

namespace {

enum {
  MOST_TAPS = 16,
  LANES = 32, // of a block, next to each other in the channels
  RUNS = 4,   // of a block at a time, each with LANES threads
  RUN = 64,   // tokens
  AHEAD = 4,  // as many as the taps of the usual kernel, so that shifting rows costs nothing
  PARTS = 512
};

struct conv_call {
  int T, K, parts; // groups of RUNS runs of a sequence
  int ldx, ldy;
  int64_t groups; // of all sequences
  int64_t cd;
  int64_t end[2]; // where the first two segments end
  float mult[3];
  const void *x, *halo, *w, *bias, *dy;
  void *y, *dx, *dhalo;
  const int32_t *start;
  float *part; // [K + 1][gridDim.y][cd] sums for dw and dbias
};

__device__ inline float mult_of(const conv_call &c, int64_t channel) {
  return c.mult[channel < c.end[0] ? 0 : channel < c.end[1] ? 1 : 2];
}

// ---- a thread's channels and run ----

// V elements as they lie in memory.
template <class T, int V>
struct alignas(V * sizeof(T)) piece {
  T e[V];
};

// Rows and weights are indexed by distance: 0 is the current token, d the one d before it.
template <class T, int TAPS, int V>
struct conv_thread {
  typedef piece<T, V> row;
  const conv_call &c;
  int64_t channel, seq;
  int first, end; // the run's tokens
  int64_t origin; // row of its first token
  float w[TAPS][V], bias[V];

  // Weights include the multiplier; taps that the conv does not have are 0. V > 1 has all its taps.
  __device__ conv_thread(const conv_call &call) : c(call) {
    channel = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (channel >= c.cd) return;
    const T *from = (const T *)c.w + channel * c.K;
    piece<T, V> all[TAPS];
    if constexpr (V > 1) {
#pragma unroll
      for (int i = 0; i < TAPS; i++) all[i] = ((const row *)from)[i];
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
      float mult = mult_of(c, channel + v);
      bias[v] = c.bias ? to_float(((const T *)c.bias)[channel + v]) : 0.0f;
#pragma unroll
      for (int d = 0; d < TAPS; d++) {
        if constexpr (V > 1) {
          constexpr int last = TAPS - 1;
          w[d][v] = mult * to_float(all[(v * TAPS + last - d) / V].e[(v * TAPS + last - d) % V]);
        } else {
          w[d][v] = d < c.K ? mult * to_float(from[c.K - 1 - d]) : 0.0f;
        }
      }
    }
  }

  // f() for each of the thread's runs.
  template <class F>
  __device__ void each_run(F f) {
    if (channel >= c.cd) return;
    for (int64_t i = blockIdx.y; i < c.groups; i += gridDim.y) {
      seq = i / c.parts;
      first = ((int)(i % c.parts) * RUNS + (int)threadIdx.y) * RUN;
      end = min(first + RUN, c.T);
      origin = seq * c.T + first;
      if (first < end) f();
    }
  }

  // Element of token t in rows of stride ld, and in the halo.
  __device__ int64_t at(int t, int ld) const {
    return origin * ld + channel + (int64_t)(t - first) * ld;
  }
  __device__ int64_t halo_at(int t) const {
    return (seq * (c.K - 1) + c.K - 1 + t) * c.cd + channel;
  }
  __device__ row fetch(const void *x, int64_t at) const {
    return *(const row *)((const T *)x + at);
  }
  __device__ static void put(void *to, int64_t at, const float (&x)[V]) {
    row r;
#pragma unroll
    for (int v = 0; v < V; v++) from_float(r.e[v], x[v]);
    *(row *)((T *)to + at) = r;
  }

  // How many tokens back token t sees.
  __device__ int reach(int t) const {
    return min(t - c.start[origin + t - first], c.K - 1);
  }
  // All of t .. t + AHEAD - 1 are the run's own and see TAPS - 1 tokens back (starts do not
  // decrease).
  __device__ bool whole(int t) const {
    return c.K == TAPS && t + AHEAD <= end &&
           c.start[origin + t - first + AHEAD - 1] <= t - (TAPS - 1);
  }

  // Fills the raw rows before token t, except the oldest, which is the first to leave: from the
  // piece, its halo, or 0.
  __device__ void rows_before(float (&x)[TAPS][V], int t) const {
#pragma unroll
    for (int d = 0; d < TAPS - 1; d++) {
      int j = t - 1 - d;
      row r;
      bool here = d < c.K - 1 && (j >= 0 || c.halo);
      if (here) r = j >= 0 ? fetch(c.x, at(j, c.ldx)) : fetch(c.halo, halo_at(j));
#pragma unroll
      for (int v = 0; v < V; v++) x[d][v] = here ? to_float(r.e[v]) : 0.0f;
    }
  }

  // Before SiLU.
  __device__ void sum(float (&y)[V], const float (&x)[TAPS][V], int seen) const {
#pragma unroll
    for (int v = 0; v < V; v++) y[v] = bias[v];
#pragma unroll
    for (int d = TAPS - 1; d >= 0; d--)
      if (d <= seen)
#pragma unroll
        for (int v = 0; v < V; v++) y[v] += w[d][v] * x[d][v];
  }
};

// Every row becomes the one before it; the newest is filled.
template <int TAPS, class T, int V>
__device__ inline void shift(float (&x)[TAPS][V], const piece<T, V> &row) {
#pragma unroll
  for (int d = TAPS - 1; d > 0; d--)
#pragma unroll
    for (int v = 0; v < V; v++) x[d][v] = x[d - 1][v];
#pragma unroll
  for (int v = 0; v < V; v++) x[0][v] = to_float(row.e[v]);
}

// 1 / (1 + e^-x); that of bf16 need not be exact to fp32.
template <class T>
__device__ inline float logistic(float x) {
  if constexpr (sizeof(T) == 2) return __fdividef(1.0f, 1.0f + __expf(-x));
  return sigmoid(x);
}

// ---- forward ----

// Up to AHEAD tokens from t0; x: the rows before.
template <bool WHOLE, class T, int TAPS, int V>
__device__ inline void batch(const conv_thread<T, TAPS, V> &me, float (&x)[TAPS][V], int t0) {
  const conv_call &c = me.c;
  piece<T, V> row[AHEAD];
  float y[V];
  int seen[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++)
    if (WHOLE || t0 + i < me.end) {
      row[i] = me.fetch(c.x, me.at(t0 + i, c.ldx));
      seen[i] = WHOLE ? TAPS - 1 : me.reach(t0 + i);
    }
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    if (!WHOLE && t0 + i >= me.end) break;
    shift(x, row[i]);
    me.sum(y, x, seen[i]);
#pragma unroll
    for (int v = 0; v < V; v++) y[v] *= logistic<T>(y[v]);
    me.put(c.y, me.at(t0 + i, c.ldy), y);
  }
}

template <class T, int TAPS, int V>
__global__ void __launch_bounds__(LANES *RUNS, 3) conv(conv_call c) {
  conv_thread<T, TAPS, V> me(c);
  me.each_run([&]() {
    float x[TAPS][V];
    me.rows_before(x, me.first);
#pragma unroll 1
    for (int t0 = me.first; t0 < me.end; t0 += AHEAD) {
      if (me.whole(t0))
        batch<true>(me, x, t0);
      else
        batch<false>(me, x, t0);
    }
  });
}

// ---- backward ----

// Adds up what the threads of the block have for a channel and writes it as part [blockIdx.y] of
// tap k.
template <int V>
__device__ inline void put_part(const conv_call &c, float (&sum)[V], int64_t channel, int k) {
  extern __shared__ float turn[]; // [RUNS][blockDim.x * V]
  int width = blockDim.x * V, at = (int)threadIdx.x * V;
  __syncthreads();
#pragma unroll
  for (int v = 0; v < V; v++) turn[threadIdx.y * width + at + v] = sum[v];
  __syncthreads();
  if (threadIdx.y > 0 || channel >= c.cd) return;
  float *to = c.part + ((int64_t)k * gridDim.y + blockIdx.y) * c.cd + channel;
#pragma unroll
  for (int v = 0; v < V; v++) {
    float all = 0;
    for (int y = 0; y < RUNS; y++) all += turn[y * width + at + v];
    to[v] = all;
  }
}

// What a thread adds up over its runs.
template <int TAPS, int V>
struct conv_sums {
  float dw[TAPS][V], dbias[V];
};

// Token t, which sees `seen` tokens back to rows x: its gradient before SiLU goes to the gradients
// dx of those rows, and to the sums where the token is the run's own.
template <class T, int TAPS, int V>
__device__ inline void token_back(const conv_thread<T, TAPS, V> &me, float (&dx)[TAPS][V],
                                  const float (&x)[TAPS][V], const piece<T, V> &dy, int seen,
                                  bool own, conv_sums<TAPS, V> &sum) {
  float dv[V];
  me.sum(dv, x, seen);
#pragma unroll
  for (int v = 0; v < V; v++) {
    float s = logistic<T>(dv[v]);
    dv[v] = to_float(dy.e[v]) * s * (1.0f + dv[v] * (1.0f - s));
    if (own) sum.dbias[v] += dv[v];
  }
#pragma unroll
  for (int d = 0; d < TAPS; d++) {
    if (d > seen) break;
#pragma unroll
    for (int v = 0; v < V; v++) {
      dx[d][v] += me.w[d][v] * dv[v];
      if (own) sum.dw[d][v] += dv[v] * x[d][v];
    }
  }
}

// Row t, K - 1 rows back, has met the last token that sees it.
template <class T, int TAPS, int V>
__device__ inline void row_done(const conv_thread<T, TAPS, V> &me, const float (&dx)[TAPS][V],
                                int t, int K) {
  const conv_call &c = me.c;
  bool own = t >= me.first;
  if (!own && (t >= 0 || !c.dhalo)) return;
  int64_t at = own ? me.at(t, c.ldx) : me.halo_at(t);
#pragma unroll
  for (int d = 0; d < TAPS; d++)
    if (d == K - 1) me.put(own ? c.dx : c.dhalo, at, dx[d]);
}

// Up to AHEAD tokens from t0; x: the rows before, dx: their gradients so far.
template <bool WHOLE, class T, int TAPS, int V>
__device__ inline void batch_back(const conv_thread<T, TAPS, V> &me, float (&x)[TAPS][V],
                                  float (&dx)[TAPS][V], int t0, conv_sums<TAPS, V> &sum) {
  const conv_call &c = me.c;
  int K = WHOLE ? TAPS : c.K, last = me.end + K - 1;
  piece<T, V> row[AHEAD] = {}, dy[AHEAD] = {};
  const piece<T, V> zero = {};
  int seen[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    seen[i] = WHOLE ? TAPS - 1 : -1;
    if (!WHOLE && t0 + i >= min(last, c.T)) continue;
    row[i] = me.fetch(c.x, me.at(t0 + i, c.ldx));
    dy[i] = me.fetch(c.dy, me.at(t0 + i, c.ldy));
    if (!WHOLE) seen[i] = me.reach(t0 + i);
  }
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    int t = t0 + i;
    if (!WHOLE && t >= last) break;
    shift(x, row[i]);
    shift(dx, zero);
    token_back(me, dx, x, dy[i], seen[i], WHOLE || t < me.end, sum);
    row_done(me, dx, t - (K - 1), K);
  }
}

// The run: dx of its rows, and dhalo of the rows before the first.
template <class T, int TAPS, int V>
__device__ inline void run_back(const conv_thread<T, TAPS, V> &me, conv_sums<TAPS, V> &sum) {
  int last = me.end + me.c.K - 1;
  float x[TAPS][V], dx[TAPS][V] = {}; // of the row [d] before the current token
  me.rows_before(x, me.first);
#pragma unroll 1
  for (int t0 = me.first; t0 < last; t0 += AHEAD) {
    if (me.whole(t0))
      batch_back<true>(me, x, dx, t0, sum);
    else
      batch_back<false>(me, x, dx, t0, sum);
  }
}

template <class T, int TAPS, int V>
__global__ void __launch_bounds__(LANES *RUNS, 3) conv_back(conv_call c) {
  conv_thread<T, TAPS, V> me(c);
  conv_sums<TAPS, V> sum = {};
  me.each_run([&]() { run_back(me, sum); });
#pragma unroll
  for (int d = 0; d < TAPS; d++)
    if (d < c.K) put_part(c, sum.dw[d], me.channel, c.K - 1 - d);
  put_part(c, sum.dbias, me.channel, c.K);
}

// dw[cd, K] and dbias[cd] += the sums over the parts: tap blockIdx.y of 32 channels. The eight rows
// of threads share out the parts.
__global__ void conv_reduce(conv_call c, int parts, float *dw, float *dbias) {
  __shared__ double turn[8][32];
  int64_t channel = (int64_t)blockIdx.x * 32 + threadIdx.x;
  int k = (int)blockIdx.y, row = (int)threadIdx.y;
  const float *part = c.part + (int64_t)k * parts * c.cd + channel;
  double sum = 0;
  for (int p = row; channel < c.cd && p < parts; p += 8) sum += part[p * c.cd];
  turn[row][threadIdx.x] = sum;
  __syncthreads();
  if (row > 0 || channel >= c.cd) return;
  for (int i = 1; i < 8; i++) sum += turn[i][threadIdx.x];
  if (k < c.K)
    dw[channel * c.K + k] = (float)(dw[channel * c.K + k] + mult_of(c, channel) * sum);
  else if (dbias)
    dbias[channel] = (float)(dbias[channel] + sum);
}

// ---- launches ----

struct conv_shape {
  dim3 grid, block;
};
conv_shape shape_of(const conv_call &c, int V, int64_t blocks) {
  return {dim3((unsigned)up(c.cd, LANES * V), (unsigned)least(c.groups, blocks)),
          dim3(LANES, RUNS)};
}

conv_call describe(const sk_conv_dims *d) {
  conv_call c = {};
  SK_CHECK(d->K >= 1 && d->K <= MOST_TAPS, "conv: %d taps, at most %d", (int)d->K, (int)MOST_TAPS);
  SK_CHECK(d->T < (1 << 30), "conv: sequence too long");
  SK_CHECK(d->ldx < (1 << 30) && d->ldy < (1 << 30), "conv: rows too long");
  c.T = (int)d->T, c.K = (int)d->K, c.ldx = (int)d->ldx, c.ldy = (int)d->ldy;
  c.cd = d->width[0] + d->width[1] + d->width[2];
  c.end[0] = d->width[0], c.end[1] = d->width[0] + d->width[1];
  for (int i = 0; i < 3; i++) c.mult[i] = (float)d->mult[i];
  c.parts = (int)up(d->T, RUN * RUNS);
  c.groups = d->b * c.parts;
  return c;
}

// f(type_tag<T>, number<TAPS>, number<V>)
template <class W, class F>
void by_taps(sk_stream *s, const conv_call &c, W wide, F f) {
  auto four = [&](int V) { return c.K == 4 && wide(V); };
  by_type(s, four, [&](auto type, auto V) {
    if (c.K <= 4)
      f(type, number<4>(), V);
    else
      f(type, number<16>(), number<1>());
  });
}

} // namespace

extern "C" void sk_cuda_conv(sk_stream *s, const sk_conv_dims *d, void *y, const void *x,
                             const void *halo, const void *w, const void *bias,
                             const int32_t *start) {
  conv_call c = describe(d);
  c.x = x, c.halo = halo, c.w = w, c.bias = bias, c.start = start, c.y = y;
  auto wide = [&](int V) { return fits(V, {c.cd, c.ldx, c.ldy}, {x, halo, y, w}); };
  by_taps(s, c, wide, [&](auto type, auto taps, auto v) {
    constexpr int V = SK_NUMBER(v), TAPS = SK_NUMBER(taps);
    conv_shape at = shape_of(c, V, 65535);
    conv<SK_TYPE(type), TAPS, V><<<at.grid, at.block, 0, sk_cuda_stream(s)>>>(c);
  });
  SK_CUDA(cudaGetLastError());
}

extern "C" void sk_cuda_conv_grad(sk_stream *s, const sk_conv_dims *d, void *dx, void *dhalo,
                                  float *dw, float *dbias, const void *dy, const void *x,
                                  const void *halo, const void *w, const void *bias,
                                  const int32_t *start) {
  int64_t cd = d->width[0] + d->width[1] + d->width[2],
          sums = (d->K + 1) * cd * (int64_t)sizeof(float);
  conv_call c = describe(d);
  int64_t most = least(PARTS, SK_CUDA_SCRATCH / sums), parts = least(c.groups, most);
  SK_CHECK(most > 0, "conv_grad: %lld channels", (long long)cd);
  c.x = x, c.halo = halo, c.w = w, c.bias = bias, c.start = start;
  c.dy = dy, c.dx = dx, c.dhalo = dhalo;
  c.part = (float *)sk_cuda_scratch(s, (size_t)(parts * sums));
  auto wide = [&](int V) { return fits(V, {c.cd, c.ldx, c.ldy}, {x, halo, dy, dx, dhalo, w}); };
  by_taps(s, c, wide, [&](auto type, auto taps, auto v) {
    constexpr int V = SK_NUMBER(v) < 4 ? SK_NUMBER(v) : 4, TAPS = SK_NUMBER(taps);
    conv_shape at = shape_of(c, V, most);
    size_t bytes = (size_t)(LANES * RUNS * V) * sizeof(float);
    conv_back<SK_TYPE(type), TAPS, V><<<at.grid, at.block, bytes, sk_cuda_stream(s)>>>(c);
  });
  SK_CUDA(cudaGetLastError());
  dim3 grid((unsigned)up(cd, 32), (unsigned)(d->K + 1)), block(32, 8);
  conv_reduce<<<grid, block, 0, sk_cuda_stream(s)>>>(c, (int)parts, dw, dbias);
  SK_CUDA(cudaGetLastError());
}
