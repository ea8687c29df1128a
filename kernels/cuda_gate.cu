/* cuda_gate.cu: the gate after the SSM and the grouped gated RMSNorm (2.5, 3.5). One block of
 * threads for a token's group; without the norm, plain rows.
 *
 * a: what is normalised, y * silu(z) (or y, when the norm comes before the gate). */
#include "kernels/cuda_kernel.h"

namespace {

// The sizes of a call.
struct shape {
  int64_t n, ds, G, ldz, cols;
  float m, width;
  double eps;
  bool before;
};

shape shape_of(const sk_gate_dims *d) {
  int64_t cols = d->ds / d->G;
  return {
      d->n,   d->ds,    d->G, d->ldz, cols, (float)d->zmult, (float)(d->width ? d->width : cols),
      d->eps, d->before};
}

template <int V, class T>
__device__ inline void load_a(float (&a)[V], const T *y, const T *z, float m, bool before) {
  load(a, y);
  if (before) return;
  float g[V];
  load(g, z);
#pragma unroll
  for (int j = 0; j < V; j++) a[j] *= silu(m * g[j]);
}

template <int V, class T>
__device__ inline float squares(const shape &k, const T *y, const T *z) {
  float sum = 0, a[V];
  for (int64_t c = threadIdx.x * V; c < k.cols; c += blockDim.x * V) {
    load_a(a, y + c, z + c, k.m, k.before);
#pragma unroll
    for (int j = 0; j < V; j++) sum += a[j] * a[j];
  }
  return block_sum(sum);
}

// sum of e w a: the same product in either order of norm and gate.
template <int V, class T>
__device__ inline float dot(const shape &k, const T *dout, const T *y, const T *z, const T *w) {
  float sum = 0, e[V], a[V], b[V];
  for (int64_t c = threadIdx.x * V; c < k.cols; c += blockDim.x * V) {
    load(e, dout + c);
    load(b, w + c);
    load_a(a, y + c, z + c, k.m, false);
#pragma unroll
    for (int j = 0; j < V; j++) sum += e[j] * b[j] * a[j];
  }
  return block_sum(sum);
}

template <int V, class T>
__global__ void stats(shape k, float *out, const T *y, const T *z) {
  int64_t t = blockIdx.x / k.G, c0 = blockIdx.x % k.G * k.cols;
  float sum = squares<V>(k, y + t * k.ds + c0, z + t * k.ldz + c0);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <int V, class T>
__global__ void grad_stats(shape k, float *out, const T *dout, const T *y, const T *z, const T *w) {
  int64_t t = blockIdx.x / k.G, c0 = blockIdx.x % k.G * k.cols, at = t * k.ds + c0;
  float sum = dot<V>(k, dout + at, y + at, z + t * k.ldz + c0, w + c0);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <int V, class T>
__global__ void gated_norm(shape k, T *o, float *rstd, const T *y, const T *z, const T *w,
                           const float *whole) {
  int64_t t = blockIdx.x / k.G, c0 = blockIdx.x % k.G * k.cols;
  y += t * k.ds + c0, o += t * k.ds + c0, z += t * k.ldz + c0, w += c0;
  float sum = whole ? whole[blockIdx.x] : squares<V>(k, y, z);
  float r = (float)(1 / sqrt((double)sum / (double)k.width + k.eps)), a[V], b[V], g[V];
  for (int64_t c = threadIdx.x * V; c < k.cols; c += blockDim.x * V) {
    load(a, y + c);
    load(b, w + c);
    load(g, z + c);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] *= silu(k.m * g[j]) * (r * b[j]);
    store(o + c, a);
  }
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
}

template <int V, class T>
__global__ void gated_norm_grad(shape k, T *dy, T *dz, const T *dout, const T *y, const T *z,
                                const T *w, const float *rstd, const float *whole) {
  int64_t t = blockIdx.x / k.G, c0 = blockIdx.x % k.G * k.cols, at = t * k.ds + c0;
  dy += at, dout += at, y += at, z += t * k.ldz + c0, dz += t * k.ldz + c0, w += c0;
  float all = whole ? whole[blockIdx.x] : dot<V>(k, dout, y, z, w);
  float r = rstd[blockIdx.x], back = r * r * (all / k.width), e[V], a[V], b[V], g[V], h[V];
  for (int64_t c = threadIdx.x * V; c < k.cols; c += blockDim.x * V) {
    load(e, dout + c);
    load(a, y + c);
    load(g, z + c);
    load(b, w + c);
#pragma unroll
    for (int j = 0; j < V; j++) {
      float zc = k.m * g[j], sig = sigmoid(zc), gate = zc * sig, dgate = sig * (1 + zc * (1 - sig));
      if (k.before) { // o = w * y * r * silu(z)
        h[j] = k.m * e[j] * b[j] * (a[j] * r) * dgate;
        a[j] = r * (b[j] * (e[j] * gate) - a[j] * back);
      } else { // o = w * a * r with a = y * silu(z)
        float da = r * (b[j] * e[j] - a[j] * gate * back);
        h[j] = k.m * da * a[j] * dgate;
        a[j] = da * gate;
      }
    }
    store(dy + c, a);
    store(dz + c, h);
  }
}

// A token's share of dw, the same in either order: e * y * silu(z) * r.
template <int V, class T>
struct gate_weight {
  shape k;
  const T *dout, *y, *z;
  const float *rstd;
  __device__ void operator()(int64_t t, int64_t c, float (&v)[V]) const {
    float a[V], r = rstd[t * k.G + c / k.cols]; // V columns are of one group
    load_a(a, y + t * k.ds + c, z + t * k.ldz + c, k.m, false);
    load(v, dout + t * k.ds + c);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] *= a[j] * r;
  }
};

template <int V, class T>
__global__ void gate_only(shape k, T *o, const T *y, const T *z) {
  SK_ROWS(t, k.n, c, k.ds / V) {
    float a[V];
    load_a(a, y + t * k.ds + c * V, z + t * k.ldz + c * V, k.m, false);
    store(o + t * k.ds + c * V, a);
  }
}

template <int V, class T>
__global__ void gate_only_grad(shape k, T *dy, T *dz, const T *dout, const T *y, const T *z) {
  SK_ROWS(t, k.n, c, k.ds / V) {
    float e[V], a[V], g[V];
    int64_t at = t * k.ds + c * V, zt = t * k.ldz + c * V;
    load(e, dout + at);
    load(a, y + at);
    load(g, z + zt);
#pragma unroll
    for (int j = 0; j < V; j++) {
      float zc = k.m * g[j], sig = sigmoid(zc);
      g[j] = k.m * e[j] * a[j] * sig * (1 + zc * (1 - sig));
      a[j] = e[j] * zc * sig;
    }
    store(dy + at, a);
    store(dz + zt, g);
  }
}

// Widths and pointers allow V elements at once.
auto wide(const sk_gate_dims *d, std::initializer_list<const void *> pointers) {
  return [d, pointers](int V) { return fits(V, {d->ds / d->G, d->ldz}, pointers); };
}

} // namespace

extern "C" {

void sk_cuda_gate(sk_stream *s, const sk_gate_dims *d, void *o, float *rstd, const void *y,
                  const void *z, const void *w) {
  if (d->n == 0) return;
  shape k = shape_of(d);
  by_type(s, wide(d, {o, y, z, d->norm ? w : NULL}), [&](auto tag, auto v) {
    typedef SK_TYPE(tag) T;
    constexpr int V = SK_NUMBER(v);
    if (d->norm) {
      gated_norm<V><<<(unsigned)(k.n * k.G), row_threads(k.cols / V), 0, sk_cuda_stream(s)>>>(
          k, (T *)o, rstd, (const T *)y, (const T *)z, (const T *)w, d->whole);
    } else {
      rows_shape r = rows(k.n, k.ds / V);
      gate_only<V>
          <<<r.grid, r.block, 0, sk_cuda_stream(s)>>>(k, (T *)o, (const T *)y, (const T *)z);
    }
  });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_gate_stats(sk_stream *s, const sk_gate_dims *d, float *ss, const void *y,
                        const void *z) {
  if (d->n == 0) return;
  shape k = shape_of(d);
  by_type(s, wide(d, {y, z}), [&](auto tag, auto v) {
    typedef SK_TYPE(tag) T;
    constexpr int V = SK_NUMBER(v);
    stats<V><<<(unsigned)(k.n * k.G), row_threads(k.cols / V), 0, sk_cuda_stream(s)>>>(
        k, ss, (const T *)y, (const T *)z);
  });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_gate_grad_stats(sk_stream *s, const sk_gate_dims *d, float *dots, const void *dout,
                             const void *y, const void *z, const void *w) {
  if (d->n == 0) return;
  shape k = shape_of(d);
  by_type(s, wide(d, {dout, y, z, w}), [&](auto tag, auto v) {
    typedef SK_TYPE(tag) T;
    constexpr int V = SK_NUMBER(v);
    grad_stats<V><<<(unsigned)(k.n * k.G), row_threads(k.cols / V), 0, sk_cuda_stream(s)>>>(
        k, dots, (const T *)dout, (const T *)y, (const T *)z, (const T *)w);
  });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_gate_grad(sk_stream *s, const sk_gate_dims *d, void *dy, void *dz, float *dw,
                       const void *dout, const void *y, const void *z, const void *w,
                       const float *rstd) {
  if (d->n == 0) return;
  shape k = shape_of(d);
  by_type(s, wide(d, {dy, dz, dout, y, z, d->norm ? w : NULL}), [&](auto tag, auto v) {
    typedef SK_TYPE(tag) T;
    constexpr int V = SK_NUMBER(v);
    if (d->norm) {
      gated_norm_grad<V><<<(unsigned)(k.n * k.G), row_threads(k.cols / V), 0, sk_cuda_stream(s)>>>(
          k, (T *)dy, (T *)dz, (const T *)dout, (const T *)y, (const T *)z, (const T *)w, rstd,
          d->whole);
      SK_CUDA(cudaGetLastError());
      sum_tokens<V>(s, dw, gate_weight<V, T>{k, (const T *)dout, (const T *)y, (const T *)z, rstd},
                    k.n, k.ds, 1);
    } else {
      rows_shape r = rows(k.n, k.ds / V);
      gate_only_grad<V><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>(
          k, (T *)dy, (T *)dz, (const T *)dout, (const T *)y, (const T *)z);
    }
  });
  SK_CUDA(cudaGetLastError());
}

} // extern "C"
