/* cuda_norm.cu: RMSNorm (2.2, 3.5) and SwiGLU (2.6). One block of threads for a token's norm. */
#include "kernels/cuda_kernel.h"

namespace {

// sum = x + res where res is given; what is normalised is sum as it is stored.
template <int V, class T>
__global__ void norm(T *y, float *rstd, T *sum, const T *x, const T *res, const T *w, int64_t d,
                     double eps) {
  int64_t t = blockIdx.x;
  x += t * d, y += t * d;
  float squares = 0, a[V], b[V];
  if (res) sum += t * d, res += t * d;
  for (int64_t c = threadIdx.x * V; c < d; c += blockDim.x * V) {
    load(a, x + c);
    if (res) {
      load(b, res + c);
#pragma unroll
      for (int j = 0; j < V; j++) a[j] = rounded<T>(a[j] + b[j]);
      store(sum + c, a);
    }
#pragma unroll
    for (int j = 0; j < V; j++) squares += a[j] * a[j];
  }
  squares = block_sum(squares);
  float r = (float)(1 / sqrt((double)squares / (double)d + eps));
  const T *in = res ? sum : x; // a thread reads what it wrote itself
  for (int64_t c = threadIdx.x * V; c < d; c += blockDim.x * V) {
    load(a, in + c);
    load(b, w + c);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] *= r * b[j];
    store(y + c, a);
  }
  if (threadIdx.x == 0) rstd[t] = r;
}

template <int V, class T>
__global__ void norm_grad(T *dx, const T *dy, const T *x, const float *rstd, const T *w,
                          int64_t d) {
  int64_t t = blockIdx.x;
  dx += t * d, dy += t * d, x += t * d;
  float mean = 0, e[V], a[V], b[V], g[V];
  for (int64_t c = threadIdx.x * V; c < d; c += blockDim.x * V) {
    load(e, dy + c);
    load(a, x + c);
    load(b, w + c);
#pragma unroll
    for (int j = 0; j < V; j++) mean += e[j] * b[j] * a[j];
  }
  float r = rstd[t], back = r * r * (block_sum(mean) / (float)d);
  for (int64_t c = threadIdx.x * V; c < d; c += blockDim.x * V) {
    load(e, dy + c);
    load(a, x + c);
    load(b, w + c);
    load(g, dx + c);
#pragma unroll
    for (int j = 0; j < V; j++) g[j] += r * (b[j] * e[j] - a[j] * back);
    store(dx + c, g);
  }
}

// A token's share of dw.
template <int V, class T>
struct norm_weight {
  const T *dy, *x;
  const float *rstd;
  int64_t d;
  __device__ void operator()(int64_t t, int64_t c, float (&v)[V]) const {
    float a[V], r = rstd[t];
    load(v, dy + t * d + c);
    load(a, x + t * d + c);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] *= a[j] * r;
  }
};

template <int V, class T>
__global__ void activate(T *a, const T *gu, float m, int64_t n, int64_t F) {
  SK_ROWS(t, n, c, F / V) {
    float gate[V], up[V];
    const T *in = gu + t * 2 * F + c * V;
    load(gate, in);
    load(up, in + F);
#pragma unroll
    for (int j = 0; j < V; j++) up[j] *= silu(gate[j] * m);
    store(a + t * F + c * V, up);
  }
}

// dgu may be gu: a thread reads its elements before it writes them.
template <int V, class T>
__global__ void activate_grad(T *dgu, const T *da, const T *gu, float m, int64_t n, int64_t F) {
  SK_ROWS(t, n, c, F / V) {
    float gate[V], up[V], e[V];
    int64_t at = t * 2 * F + c * V;
    load(gate, gu + at);
    load(up, gu + at + F);
    load(e, da + t * F + c * V);
#pragma unroll
    for (int j = 0; j < V; j++) {
      float g = gate[j] * m, sig = sigmoid(g);
      gate[j] = e[j] * up[j] * sig * (1 + g * (1 - sig)) * m;
      up[j] = e[j] * g * sig;
    }
    store(dgu + at, gate);
    store(dgu + at + F, up);
  }
}

} // namespace

extern "C" {

void sk_cuda_rmsnorm(sk_stream *s, void *y, float *rstd, void *sum, const void *x, const void *res,
                     const void *w, int64_t n, int64_t d, double eps) {
  if (n == 0) return;
  const void *out = res ? sum : NULL;
  by_type(
      s,
      [&](int V) {
        return fits(V, {d}, {y, out, x, res, w});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        norm<V><<<(unsigned)n, row_threads(d / V), 0, sk_cuda_stream(s)>>>(
            (T *)y, rstd, (T *)sum, (const T *)x, (const T *)res, (const T *)w, d, eps);
      });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_rmsnorm_grad(sk_stream *s, void *dx, float *dw, const void *dy, const void *x,
                          const float *rstd, const void *w, int64_t n, int64_t d) {
  if (n == 0) return;
  by_type(
      s,
      [&](int V) {
        return fits(V, {d}, {dx, dy, x, w});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        norm_grad<V><<<(unsigned)n, row_threads(d / V), 0, sk_cuda_stream(s)>>>(
            (T *)dx, (const T *)dy, (const T *)x, rstd, (const T *)w, d);
        SK_CUDA(cudaGetLastError());
        sum_tokens<V>(s, dw, norm_weight<V, T>{(const T *)dy, (const T *)x, rstd, d}, n, d, 1);
      });
}

void sk_cuda_swiglu(sk_stream *s, void *a, const void *gu, double mgate, int64_t n, int64_t F) {
  if (n == 0 || F == 0) return;
  by_type(
      s,
      [&](int V) {
        return fits(V, {F}, {a, gu});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        rows_shape r = rows(n, F / V);
        activate<V>
            <<<r.grid, r.block, 0, sk_cuda_stream(s)>>>((T *)a, (const T *)gu, (float)mgate, n, F);
      });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_swiglu_grad(sk_stream *s, void *dgu, const void *da, const void *gu, double mgate,
                         int64_t n, int64_t F) {
  if (n == 0 || F == 0) return;
  by_type(
      s,
      [&](int V) {
        return fits(V, {F}, {dgu, da, gu});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        rows_shape r = rows(n, F / V);
        activate_grad<V><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>(
            (T *)dgu, (const T *)da, (const T *)gu, (float)mgate, n, F);
      });
  SK_CUDA(cudaGetLastError());
}

} // extern "C"
