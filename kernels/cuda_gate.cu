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

// Blocks of rows; a row is a token's group: token * G + group.
template <int M, int V, class T>
__global__ void __launch_bounds__(ROW_THREADS, M == 1 ? 6 : M == 2 ? 4 : 2)
    gated_norm(shape k, T *o, float *rstd, const T *y, const T *z, const T *w, const float *whole) {
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, t = row / k.G;
  int64_t c0 = row % k.G * k.cols, at = t * k.ds + c0;
  bool here = row < k.n * k.G;
  reg_row<T, V, M> a, g, b;
  float sum = 0;
  a.get(y + at, k.cols, here);
  g.get(z + t * k.ldz + c0, k.cols, here);
  b.get(w + c0, k.cols, here);
  if (here)
    each_column<V, M>(k.cols, [&](int i, int j) {
      float x = to_float(a.at[i].e[j]);
      if (!k.before) x *= silu(k.m * to_float(g.at[i].e[j]));
      sum += x * x;
    });
  sum = row_sum(sum);
  if (!here) return;
  if (whole) sum = whole[row];
  float r = (float)(1 / sqrt((double)sum / (double)k.width + k.eps));
  a.pack(), g.pack(), b.pack();
  each_column<V, M>(k.cols, [&](int i, int j) {
    float gate = silu(k.m * to_float(g.at[i].e[j]));
    from_float(a.at[i].e[j], to_float(a.at[i].e[j]) * gate * (r * to_float(b.at[i].e[j])));
  });
  a.put(o + at, k.cols);
  if (threadIdx.x == 0) rstd[row] = r;
}

// Blocks (part of the tokens, group); part: see put_sums.
template <int M, int V, class T>
__global__ void __launch_bounds__(ROW_THREADS, M == 1 ? 5 : M == 2 ? 3 : 2)
    gated_norm_grad(shape k, T *dy, T *dz, float *part, const T *dout, const T *y, const T *z,
                    const T *w, const float *rstd, const float *whole, int64_t size) {
  int64_t c0 = blockIdx.y * k.cols, first = blockIdx.x * size, end = least(first + size, k.n);
  reg_row<T, V, M> e, a, g, b;
  float dw[M][V] = {};
  for (int64_t t0 = first; t0 < end; t0 += blockDim.y) {
    int64_t t = t0 + threadIdx.y, at = t * k.ds + c0, zt = t * k.ldz + c0;
    bool here = t < end;
    float dot = 0, r = here ? rstd[t * k.G + blockIdx.y] : 0;
    e.get(dout + at, k.cols, here);
    a.get(y + at, k.cols, here);
    g.get(z + zt, k.cols, here);
    b.get(w + c0, k.cols, here);
    if (here)
      each_column<V, M>(k.cols, [&](int i, int j) {
        float x = to_float(a.at[i].e[j]) * silu(k.m * to_float(g.at[i].e[j]));
        x *= to_float(e.at[i].e[j]);
        dw[i][j] += x * r;
        dot += x * to_float(b.at[i].e[j]);
      });
    dot = row_sum(dot);
    if (!here) continue;
    float back = r * r * ((whole ? whole[t * k.G + blockIdx.y] : dot) / k.width);
    e.pack(), a.pack(), g.pack(), b.pack();
    each_column<V, M>(k.cols, [&](int i, int j) {
      float zc = k.m * to_float(g.at[i].e[j]), sig = sigmoid(zc), gate = zc * sig;
      float dgate = sig * (1 + zc * (1 - sig)), x = to_float(a.at[i].e[j]);
      float f = to_float(b.at[i].e[j]) * to_float(e.at[i].e[j]);
      if (k.before) { // o = w * y * r * silu(z)
        from_float(g.at[i].e[j], k.m * f * (x * r) * dgate);
        from_float(a.at[i].e[j], r * (f * gate - x * back));
      } else { // o = w * a * r with a = y * silu(z)
        float da = r * (f - x * gate * back);
        from_float(g.at[i].e[j], k.m * da * x * dgate);
        from_float(a.at[i].e[j], da * gate);
      }
    });
    a.put(dy + at, k.cols);
    g.put(dz + zt, k.cols);
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
      row_shape r = shape_of_rows<V>(k.cols);
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
      row_shape r = shape_of_rows<V>(k.cols);
      cut c = cut_rows(k.n, k.ds, r);
      float *part = (float *)sk_cuda_scratch(s, (size_t)(c.count * k.ds) * sizeof *part);
      dim3 grid((unsigned)c.count, (unsigned)k.G);
      by_accesses<V>(r, [&](auto m) {
        gated_norm_grad<SK_NUMBER(m), V><<<grid, r.block, 0, sk_cuda_stream(s)>>>(
            k, (T *)dy, (T *)dz, part, (const T *)dout, (const T *)y, (const T *)z, (const T *)w,
            rstd, d->whole, c.size);
      });
      SK_CUDA(cudaGetLastError());
      launch_add_parts(s, dw, part, c.count, k.ds, 1);
    } else {
      rows_shape r = rows(k.n, k.ds / V);
      gate_only_grad<V><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>(
          k, (T *)dy, (T *)dz, (const T *)dout, (const T *)y, (const T *)z);
    }
  });
  SK_CUDA(cudaGetLastError());
}

} // extern "C"
