/* cuda_norm.cu: RMSNorm (2.2, 3.5) and SwiGLU (2.6). Rows are read once. */
#include "kernels/cuda_row.h"

namespace {

// sum = x + res where res is given; what is normalised is sum as it is stored.
template <int M, int V, class T>
__global__ void __launch_bounds__(ROW_THREADS, look_blocks(M))
    norm(T *y, float *rstd, T *sum, const T *x, const T *res, const T *w, int64_t n, int64_t d,
         double eps) {
  int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  bool here = t < n;
  reg_row<T, V, M> a, b, weight;
  float squares = 0;
  a.get(x + t * d, d, here);
  if (res) b.get(res + t * d, d, here);
  weight.get(w, d);
  if (here)
    each_access<V, M>(d, [&](int i) {
      float v[V], r[V];
      a.at[i].unpack(v);
      if (res) {
        b.at[i].unpack(r);
#pragma unroll
        for (int j = 0; j < V; j++) v[j] += r[j];
        a.at[i].pack(v);
        a.at[i].unpack(v);
      }
#pragma unroll
      for (int j = 0; j < V; j++) squares += v[j] * v[j];
    });
  squares = row_sum(squares);
  if (!here) return;
  if (res) a.put(sum + t * d, d);
  float r = (float)(1 / sqrt((double)squares / (double)d + eps));
  each_access<V, M>(d, [&](int i) {
    float v[V], w[V];
    a.at[i].unpack(v), weight.at[i].unpack(w);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] *= r * w[j];
    a.at[i].pack(v);
  });
  a.put(y + t * d, d);
  if (threadIdx.x == 0) rstd[t] = r;
}

// A token's rows of the backward pass.
template <int M, int V, class T>
struct norm_rows {
  reg_row<T, V, M> e, a, g;
  float r;
  __device__ void get(const T *dy, const T *x, const T *dx, const float *rstd, int64_t t, int64_t d,
                      bool here) {
    r = here ? rstd[t] : 0;
    e.get(dy + t * d, d, here);
    a.get(x + t * d, d, here);
    g.get(dx + t * d, d, here);
  }
};

// Blocks take turns with the rows, so that what they touch at a time lies together; part: see
// put_sums. The next token's rows are under way while one is worked on.
template <int M, int V, class T>
__global__ void __launch_bounds__(ROW_THREADS, sum_blocks(M))
    norm_grad(T *dx, float *part, const T *dy, const T *x, const float *rstd, const T *w, int64_t n,
              int64_t d) {
  reg_row<T, V, M> weight;
  norm_rows<M, V, T> row, next;
  float dw[M][V] = {};
  int64_t t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  const int64_t step = (int64_t)gridDim.x * blockDim.y;
  weight.get(w, d);
  next.get(dy, x, dx, rstd, t, d, t < n);
  for (int turn = 0; t - threadIdx.y < n; t += step, turn ^= 1) {
    bool here = t < n;
    float mean = 0;
    row = next;
    next.get(dy, x, dx, rstd, t + step, d, t + step < n);
    if (here)
      each_access<V, M>(d, [&](int i) {
        float e[V], a[V], w[V];
        row.e.at[i].unpack(e), row.a.at[i].unpack(a), weight.at[i].unpack(w);
#pragma unroll
        for (int j = 0; j < V; j++) {
          e[j] *= a[j];
          dw[i][j] += e[j] * row.r;
          mean += e[j] * w[j];
        }
      });
    float back = row.r * row.r * (row_sum(mean, turn) / (float)d);
    if (!here) continue;
    row.e.forget(), row.a.forget(), weight.forget();
    each_access<V, M>(d, [&](int i) {
      float e[V], a[V], w[V], g[V];
      row.e.at[i].unpack(e), row.a.at[i].unpack(a), weight.at[i].unpack(w);
      row.g.at[i].unpack(g);
#pragma unroll
      for (int j = 0; j < V; j++) g[j] += row.r * (w[j] * e[j] - a[j] * back);
      row.g.at[i].pack(g);
    });
    row.g.put(dx + t * d, d);
  }
  put_sums(part, dw, 0, d, d);
}

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
        row_shape r = shape_of_rows<V>(d, LOOK_THREADS);
        by_accesses<V>(r, [&](auto m) {
          norm<SK_NUMBER(m), V><<<(unsigned)up(n, r.block.y), r.block, 0, sk_cuda_stream(s)>>>(
              (T *)y, rstd, (T *)sum, (const T *)x, (const T *)res, (const T *)w, n, d, eps);
        });
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
        row_shape r = shape_of_rows<V>(d, SUM_THREADS);
        int64_t parts = row_parts(n, 1, d, r);
        float *part = (float *)sk_cuda_scratch(s, (size_t)(parts * d) * sizeof *part);
        by_accesses<V>(r, [&](auto m) {
          norm_grad<SK_NUMBER(m), V><<<(unsigned)parts, r.block, 0, sk_cuda_stream(s)>>>(
              (T *)dx, part, (const T *)dy, (const T *)x, rstd, (const T *)w, n, d);
        });
        SK_CUDA(cudaGetLastError());
        launch_add_parts(s, dw, part, parts, d, 1);
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
