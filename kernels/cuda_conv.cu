/* cuda_conv.cu: the causal depthwise convolution with SiLU (sections 2.4 item 4, 3.5).
 *
 * A thread has V neighbouring channels and walks over RUN consecutive tokens of a sequence with the last K raw
 * rows in registers, so that a row is read once (and the K - 1 before a run once more). Up to TAPS taps, the
 * released models' 4 or 16 at most; V elements are 16 bytes where pointers and rows allow it and K <= 4.
 *
 * Backward in one pass: a run computes the gradient before SiLU of its own tokens and of the K - 1 after them,
 * which its rows' gradients need too. Sums for dw and dbias are over the tokens of a thread's runs, then over the
 * threads of a block, then over the blocks in order, in double. */
#include "kernels/cuda_kernel.h"

namespace {

enum {
  MOST_TAPS = 16,
  RUN = 32, // tokens
  RUNS = 8  // that a block has at a time, each with its own threads
};

struct conv_call {
  int T, K, parts; // groups of RUNS runs of a sequence
  int64_t groups;  // of all sequences
  int64_t cd, ldx, ldy;
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

// Rows and weights are indexed by distance: 0 is the current token, d the one d before it.
template <class T, int TAPS, int V> struct conv_thread {
  const conv_call &c;
  int64_t channel;
  int64_t seq;
  int first, end; // the run's tokens
  float w[TAPS][V], bias[V];

  __device__ conv_thread(const conv_call &call) : c(call) {
    channel = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (channel >= c.cd) return;
    // Weights include the multiplier; taps that the conv does not have are 0.
#pragma unroll
    for (int v = 0; v < V; v++) {
      bias[v] = c.bias ? to_float(((const T *)c.bias)[channel + v]) : 0.0f;
#pragma unroll
      for (int d = 0; d < TAPS; d++)
        w[d][v] = d < c.K ? mult_of(c, channel + v) * to_float(((const T *)c.w)[(channel + v) * c.K + c.K - 1 - d])
                          : 0.0f;
    }
  }

  // f() for each of the thread's runs.
  template <class F> __device__ void each_run(F f) {
    if (channel >= c.cd) return;
    for (int64_t i = blockIdx.y; i < c.groups; i += gridDim.y) {
      seq = i / c.parts;
      first = ((int)(i % c.parts) * RUNS + (int)threadIdx.y) * RUN;
      end = min(first + RUN, c.T);
      if (first < end) f();
    }
  }

  __device__ int64_t token(int t) const { return seq * c.T + t; }
  __device__ int64_t halo_at(int t) const { return (seq * (c.K - 1) + c.K - 1 + t) * c.cd + channel; }

  // The raw row of token t, t > -K: from the piece, its halo, or 0.
  __device__ void raw(float (&row)[V], int t) const {
    if (t >= 0 && t < c.T) {
      load(row, (const T *)c.x + token(t) * c.ldx + channel);
    } else if (t < 0 && c.halo) {
      load(row, (const T *)c.halo + halo_at(t));
    } else {
#pragma unroll
      for (int v = 0; v < V; v++) row[v] = 0;
    }
  }

  // How many tokens back token t sees.
  __device__ int reach(int t) const { return min(t - c.start[token(t)], c.K - 1); }

  // Fills the rows before token t, except the oldest, which is the first to leave.
  __device__ void rows_before(float (&x)[TAPS][V], int t) const {
#pragma unroll
    for (int d = 0; d < TAPS - 1; d++) {
      if (d < c.K - 1) {
        raw(x[d], t - 1 - d);
      } else {
#pragma unroll
        for (int v = 0; v < V; v++) x[d][v] = 0;
      }
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

// Every row becomes the one before it; the newest is left to be filled.
template <int TAPS, int V> __device__ inline void shift(float (&x)[TAPS][V]) {
#pragma unroll
  for (int d = TAPS - 1; d > 0; d--)
#pragma unroll
    for (int v = 0; v < V; v++) x[d][v] = x[d - 1][v];
}

// ---- forward ----

template <class T, int TAPS, int V> __global__ void __launch_bounds__(THREADS) conv(conv_call c) {
  conv_thread<T, TAPS, V> me(c);
  me.each_run([&]() {
    float x[TAPS][V], y[V];
    me.rows_before(x, me.first);
#pragma unroll 4
    for (int t = me.first; t < me.end; t++) {
      shift(x);
      me.raw(x[0], t);
      me.sum(y, x, me.reach(t));
#pragma unroll
      for (int v = 0; v < V; v++) y[v] = silu(y[v]);
      store((T *)c.y + me.token(t) * c.ldy + me.channel, y);
    }
  });
}

// ---- backward ----

// Adds up what the threads of the block have for a channel and writes it as part [blockIdx.y] of tap k.
template <int V> __device__ inline void put_part(const conv_call &c, float (&sum)[V], int64_t channel, int k) {
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

// dv of token t from its rows; its share of the sums for dw and dbias where the token is the run's own.
template <class T, int TAPS, int V>
__device__ inline void before_silu(const conv_thread<T, TAPS, V> &me, float (&dv)[V], const float (&x)[TAPS][V],
                                   int t, int seen, float (&dw)[TAPS][V], float (&dbias)[V]) {
  float pre[V];
  me.sum(pre, x, seen);
  load(dv, (const T *)me.c.dy + me.token(t) * me.c.ldy + me.channel);
#pragma unroll
  for (int v = 0; v < V; v++) {
    float s = sigmoid(pre[v]);
    dv[v] *= s * (1.0f + pre[v] * (1.0f - s));
  }
  if (t >= me.end) return;
#pragma unroll
  for (int v = 0; v < V; v++) dbias[v] += dv[v];
#pragma unroll
  for (int d = 0; d < TAPS; d++)
    if (d <= seen)
#pragma unroll
      for (int v = 0; v < V; v++) dw[d][v] += dv[v] * x[d][v];
}

// The run: dx of its rows, and dhalo of the rows before the first.
template <class T, int TAPS, int V>
__device__ inline void run_back(const conv_thread<T, TAPS, V> &me, float (&dw)[TAPS][V], float (&dbias)[V]) {
  const conv_call &c = me.c;
  float x[TAPS][V], dx[TAPS][V] = {}; // dx[d]: of the row d before the current token, so far
  me.rows_before(x, me.first);
#pragma unroll 1
  for (int t = me.first; t < me.end + c.K - 1; t++) {
    shift(x);
    shift(dx);
#pragma unroll
    for (int v = 0; v < V; v++) dx[0][v] = 0;
    if (t < c.T) {
      float dv[V];
      int seen = me.reach(t);
      me.raw(x[0], t);
      before_silu(me, dv, x, t, seen, dw, dbias);
#pragma unroll
      for (int d = 0; d < TAPS; d++)
        if (d <= seen)
#pragma unroll
          for (int v = 0; v < V; v++) dx[d][v] += me.w[d][v] * dv[v];
    }
    int done = t - (c.K - 1); // the row that no later token sees
#pragma unroll
    for (int d = 0; d < TAPS; d++) {
      if (d != c.K - 1) continue;
      if (done >= me.first)
        store((T *)c.dx + me.token(done) * c.ldx + me.channel, dx[d]);
      else if (done < 0 && c.dhalo)
        store((T *)c.dhalo + me.halo_at(done), dx[d]);
    }
  }
}

template <class T, int TAPS, int V> __global__ void __launch_bounds__(THREADS) conv_back(conv_call c) {
  conv_thread<T, TAPS, V> me(c);
  float dw[TAPS][V] = {}, dbias[V] = {};
  me.each_run([&]() { run_back(me, dw, dbias); });
#pragma unroll
  for (int d = 0; d < TAPS; d++)
    if (d < c.K) put_part(c, dw[d], me.channel, c.K - 1 - d);
  put_part(c, dbias, me.channel, c.K);
}

// dw[cd, K] and dbias[cd] += the sums over the parts.
__global__ void conv_reduce(conv_call c, int parts, float *dw, float *dbias) {
  SK_EACH(i, c.cd * (c.K + 1)) {
    int64_t k = i / c.cd, channel = i % c.cd;
    if (k == c.K && !dbias) continue;
    const float *part = c.part + k * parts * c.cd + channel;
    double sum = 0;
    for (int p = 0; p < parts; p++) sum += part[p * c.cd];
    if (k == c.K)
      dbias[channel] = (float)(dbias[channel] + sum);
    else
      dw[channel * c.K + k] = (float)(dw[channel * c.K + k] + mult_of(c, channel) * sum);
  }
}

// ---- launches ----

struct conv_shape {
  dim3 grid, block;
};
conv_shape shape_of(const conv_call &c, int V, int64_t blocks) {
  int x = THREADS / RUNS;
  return {dim3((unsigned)up(c.cd, x * V), (unsigned)least(c.groups, blocks)), dim3(x, RUNS)};
}

conv_call describe(const sk_conv_dims *d) {
  conv_call c = {};
  SK_CHECK(d->K >= 1 && d->K <= MOST_TAPS, "conv: %d taps, at most %d", (int)d->K, (int)MOST_TAPS);
  SK_CHECK(d->T < (1 << 30), "conv: sequence too long");
  c.T = (int)d->T, c.K = (int)d->K, c.ldx = d->ldx, c.ldy = d->ldy;
  c.cd = d->width[0] + d->width[1] + d->width[2];
  c.end[0] = d->width[0], c.end[1] = d->width[0] + d->width[1];
  for (int i = 0; i < 3; i++) c.mult[i] = (float)d->mult[i];
  c.parts = (int)up(d->T, RUN * RUNS);
  c.groups = d->b * c.parts;
  return c;
}

// f(type_tag<T>, number<TAPS>, number<V>)
template <class W, class F> void by_taps(sk_stream *s, const conv_call &c, W wide, F f) {
  auto four = [&](int V) { return c.K <= 4 && wide(V); };
  by_type(s, four, [&](auto type, auto V) {
    if (c.K <= 4)
      f(type, number<4>(), V);
    else
      f(type, number<16>(), number<1>());
  });
}

} // namespace

extern "C" void sk_cuda_conv(sk_stream *s, const sk_conv_dims *d, void *y, const void *x, const void *halo,
                             const void *w, const void *bias, const int32_t *start) {
  conv_call c = describe(d);
  c.x = x, c.halo = halo, c.w = w, c.bias = bias, c.start = start, c.y = y;
  auto wide = [&](int V) { return fits(V, {c.cd, c.ldx, c.ldy}, {x, halo, y}); };
  by_taps(s, c, wide, [&](auto type, auto taps, auto v) {
    constexpr int V = SK_NUMBER(v), TAPS = SK_NUMBER(taps);
    conv_shape at = shape_of(c, V, 65535);
    conv<SK_TYPE(type), TAPS, V><<<at.grid, at.block, 0, sk_cuda_stream(s)>>>(c);
  });
  SK_CUDA(cudaGetLastError());
}

extern "C" void sk_cuda_conv_grad(sk_stream *s, const sk_conv_dims *d, void *dx, void *dhalo, float *dw,
                                  float *dbias, const void *dy, const void *x, const void *halo, const void *w,
                                  const void *bias, const int32_t *start) {
  int64_t cd = d->width[0] + d->width[1] + d->width[2], sums = (d->K + 1) * cd * (int64_t)sizeof(float);
  conv_call c = describe(d);
  int64_t most = least(512, SK_CUDA_SCRATCH / sums), parts = least(c.groups, most);
  SK_CHECK(most > 0, "conv_grad: %lld channels", (long long)cd);
  c.x = x, c.halo = halo, c.w = w, c.bias = bias, c.start = start;
  c.dy = dy, c.dx = dx, c.dhalo = dhalo;
  c.part = (float *)sk_cuda_scratch(s, (size_t)(parts * sums));
  auto wide = [&](int V) { return fits(V, {c.cd, c.ldx, c.ldy}, {x, halo, dy, dx, dhalo}); };
  by_taps(s, c, wide, [&](auto type, auto taps, auto v) {
    constexpr int V = SK_NUMBER(v), TAPS = SK_NUMBER(taps);
    conv_shape at = shape_of(c, V, most);
    size_t bytes = (size_t)(THREADS * V) * sizeof(float);
    conv_back<SK_TYPE(type), TAPS, V><<<at.grid, at.block, bytes, sk_cuda_stream(s)>>>(c);
  });
  SK_CUDA(cudaGetLastError());
  conv_reduce<<<blocks(cd * (d->K + 1)), THREADS, 0, sk_cuda_stream(s)>>>(c, (int)parts, dw, dbias);
  SK_CUDA(cudaGetLastError());
}
