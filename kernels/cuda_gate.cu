/* cuda_gate.cu: the gate after the SSM and the grouped gated RMSNorm (2.5, 3.5). Rows are
 * read once; without the norm they need not be whole.
 *
 * a: what is normalised, y * silu(z) (or y, when the norm comes before the gate). */
#include "kernels/cuda_row.h"

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

template <class T>
__device__ inline float swish(float x) {
  return x * logistic<T>(x);
}

template <int V, class T>
__device__ inline void load_a(float (&a)[V], const T *y, const T *z, float m, bool before) {
  load(a, y);
  if (before) return;
  float g[V];
  load(g, z);
#pragma unroll
  for (int j = 0; j < V; j++) a[j] *= swish<T>(m * g[j]);
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

// Blocks of rows; a row is a token's group: token * G + group.
template <int M, int V, class T>
__global__ void __launch_bounds__(ROW_THREADS, look_blocks(M))
    gated_norm(shape k, T *o, float *rstd, const T *y, const T *z, const T *w, const float *whole) {
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, t = row / k.G;
  int64_t c0 = row % k.G * k.cols, at = t * k.ds + c0;
  bool here = row < k.n * k.G;
  reg_row<T, V, M> a, g, b;
  float sum = 0, gated[M][V];
  a.get(y + at, k.cols, here);
  g.get(z + t * k.ldz + c0, k.cols, here);
  b.get(w + c0, k.cols, here);
  if (here)
    each_access<V, M>(k.cols, [&](int i) {
      float x[V], z[V];
      a.at[i].unpack(x), g.at[i].unpack(z);
#pragma unroll
      for (int j = 0; j < V; j++) {
        gated[i][j] = x[j] * swish<T>(k.m * z[j]);
        if (!k.before) x[j] = gated[i][j];
        sum += x[j] * x[j];
      }
    });
  sum = row_sum(sum);
  if (!here) return;
  if (whole) sum = whole[row];
  float r = (float)(1 / sqrt((double)sum / (double)k.width + k.eps));
  each_access<V, M>(k.cols, [&](int i) {
    float w[V];
    b.at[i].unpack(w);
#pragma unroll
    for (int j = 0; j < V; j++) gated[i][j] *= r * w[j];
    a.at[i].pack(gated[i]);
  });
  a.put(o + at, k.cols);
  if (threadIdx.x == 0) rstd[row] = r;
}

// A token's rows of the backward pass, of one group.
template <int M, int V, class T>
struct gated_rows {
  reg_row<T, V, M> e, a, g;
  float r;
  __device__ void get(const shape &k, const T *dout, const T *y, const T *z, const float *rstd,
                      int64_t t, int64_t c0, bool here) {
    r = here ? rstd[t * k.G + blockIdx.y] : 0;
    e.get(dout + t * k.ds + c0, k.cols, here);
    a.get(y + t * k.ds + c0, k.cols, here);
    g.get(z + t * k.ldz + c0, k.cols, here);
  }
};

// y becomes dy and z becomes dz; back: how much of a row goes back through its own norm.
template <int M, int V, class T>
__device__ inline void gated_back(const shape &k, gated_rows<M, V, T> &row,
                                  const reg_row<T, V, M> &w, float back) {
  float r = row.r;
  each_access<V, M>(k.cols, [&](int i) {
    float f[V], x[V], z[V], ww[V];
    row.e.at[i].unpack(f), row.a.at[i].unpack(x), row.g.at[i].unpack(z), w.at[i].unpack(ww);
#pragma unroll
    for (int j = 0; j < V; j++) {
      float zc = k.m * z[j], sig = logistic<T>(zc), gate = zc * sig;
      float dgate = sig * (1 + zc * (1 - sig));
      f[j] *= ww[j];
      if (k.before) { // o = w * y * r * silu(z)
        z[j] = k.m * f[j] * (x[j] * r) * dgate;
        x[j] = r * (f[j] * gate - x[j] * back);
      } else { // o = w * a * r with a = y * silu(z)
        float da = r * (f[j] - x[j] * gate * back);
        z[j] = k.m * da * x[j] * dgate;
        x[j] = da * gate;
      }
    }
    row.a.at[i].pack(x), row.g.at[i].pack(z);
  });
}

// Blocks (turn with the tokens, group); part: see put_sums. The next token's rows are under way while
// one is worked on.
template <int M, int V, class T>
__global__ void __launch_bounds__(ROW_THREADS, sum_blocks(M))
    gated_norm_grad(shape k, T *dy, T *dz, float *part, const T *dout, const T *y, const T *z,
                    const T *w, const float *rstd, const float *whole) {
  int64_t c0 = blockIdx.y * k.cols, t = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  const int64_t step = (int64_t)gridDim.x * blockDim.y;
  reg_row<T, V, M> b;
  gated_rows<M, V, T> row, next;
  float dw[M][V] = {};
  b.get(w + c0, k.cols);
  next.get(k, dout, y, z, rstd, t, c0, t < k.n);
  for (int turn = 0; t - threadIdx.y < k.n; t += step, turn ^= 1) {
    bool here = t < k.n;
    float dot = 0;
    row = next;
    next.get(k, dout, y, z, rstd, t + step, c0, t + step < k.n);
    if (here)
      each_access<V, M>(k.cols, [&](int i) {
        float e[V], x[V], z[V], ww[V];
        row.e.at[i].unpack(e), row.a.at[i].unpack(x), row.g.at[i].unpack(z), b.at[i].unpack(ww);
#pragma unroll
        for (int j = 0; j < V; j++) {
          x[j] *= e[j] * swish<T>(k.m * z[j]);
          dw[i][j] += x[j] * row.r;
          dot += x[j] * ww[j];
        }
      });
    dot = row_sum(dot, turn);
    if (!here) continue;
    float back = row.r * row.r * ((whole ? whole[t * k.G + blockIdx.y] : dot) / k.width);
    row.e.forget(), row.a.forget(), row.g.forget(), b.forget();
    gated_back(k, row, b, back);
    row.a.put(dy + t * k.ds + c0, k.cols);
    row.g.put(dz + t * k.ldz + c0, k.cols);
  }
  put_sums(part, dw, c0, k.cols, k.ds);
}

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
      row_shape r = shape_of_rows<V>(k.cols, LOOK_THREADS);
      unsigned blocks = (unsigned)up(k.n * k.G, r.block.y);
      by_accesses<V>(r, [&](auto m) {
        gated_norm<SK_NUMBER(m), V><<<blocks, r.block, 0, sk_cuda_stream(s)>>>(
            k, (T *)o, rstd, (const T *)y, (const T *)z, (const T *)w, d->whole);
      });
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
      row_shape r = shape_of_rows<V>(k.cols, SUM_THREADS);
      int64_t parts = row_parts(k.n, k.G, k.ds, r);
      float *part = (float *)sk_cuda_scratch(s, (size_t)(parts * k.ds) * sizeof *part);
      dim3 grid((unsigned)parts, (unsigned)k.G);
      by_accesses<V>(r, [&](auto m) {
        gated_norm_grad<SK_NUMBER(m), V><<<grid, r.block, 0, sk_cuda_stream(s)>>>(
            k, (T *)dy, (T *)dz, part, (const T *)dout, (const T *)y, (const T *)z, (const T *)w,
            rstd, d->whole);
      });
      SK_CUDA(cudaGetLastError());
      launch_add_parts(s, dw, part, parts, k.ds, 1);
    } else {
      rows_shape r = rows(k.n, k.ds / V);
      gate_only_grad<V><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>(
          k, (T *)dy, (T *)dz, (const T *)dout, (const T *)y, (const T *)z);
    }
  });
  SK_CUDA(cudaGetLastError());
}

} // extern "C"
