/* cuda_misc.cu: casts, sums, biases, rotary embedding, step sizes, and the matrix product for what
 * cuBLASLt refuses. */
#include "kernels/cuda_arch.h"
#include "kernels/cuda_kernel.h"

namespace {

__global__ void probe() {}

__device__ bool has_groups = SK_HOPPER; // in every architecture's code a value of its own

// ---- n elements ----

template <int V, class Y, class X>
__global__ void cast(Y *y, const X *x, int64_t n) {
  SK_EACH(i, n / V) {
    float v[V];
    load(v, x + i * V);
    store(y + i * V, v);
  }
  int64_t rest = n / V * V;
  if (blockIdx.x == 0 && rest + threadIdx.x < n)
    from_float(y[rest + threadIdx.x], to_float(x[rest + threadIdx.x]));
}

// y = a + b; y may be either.
template <int V, class T>
__global__ void add(T *y, const T *a, const T *b, int64_t n) {
  SK_EACH(i, n / V) {
    float v[V], w[V];
    load(v, a + i * V);
    load(w, b + i * V);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] += w[j];
    store(y + i * V, v);
  }
  int64_t j = n / V * V + threadIdx.x;
  if (blockIdx.x == 0 && j < n) from_float(y[j], to_float(a[j]) + to_float(b[j]));
}

// V elements at a time where the pointers allow it; the last n % V apart.
template <class Y, class X>
void launch_cast(sk_stream *s, void *y, const void *x, int64_t n) {
  if (fits(8, {}, {y, x}))
    cast<8><<<blocks(up(n, 8)), THREADS, 0, sk_cuda_stream(s)>>>((Y *)y, (const X *)x, n);
  else
    cast<1><<<blocks(n), THREADS, 0, sk_cuda_stream(s)>>>((Y *)y, (const X *)x, n);
  SK_CUDA(cudaGetLastError());
}

template <class T>
void launch_add(sk_stream *s, void *y, const void *a, const void *b, int64_t n) {
  constexpr int V = 16 / sizeof(T);
  cudaStream_t st = sk_cuda_stream(s);
  if (n == 0) return;
  if (fits(V, {}, {y, a, b}))
    add<V><<<blocks(up(n, V)), THREADS, 0, st>>>((T *)y, (const T *)a, (const T *)b, n);
  else
    add<1><<<blocks(n), THREADS, 0, st>>>((T *)y, (const T *)a, (const T *)b, n);
  SK_CUDA(cudaGetLastError());
}

// ---- biases ----

template <int V, class T>
__global__ void add_bias(T *y, int64_t ldy, const T *bias, float scale, int64_t n, int64_t cols) {
  SK_ROWS(t, n, c, cols / V) {
    float a[V], b[V];
    T *at = y + t * ldy + c * V;
    load(a, at);
    load(b, bias + c * V);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] += scale * b[j];
    store(at, a);
  }
}

template <int V, class T>
struct plain_rows {
  const T *x;
  int64_t ld;
  __device__ void operator()(int64_t t, int64_t c, float (&v)[V]) const { load(v, x + t * ld + c); }
};

// ---- rotary embedding ----

template <int V, class T>
__global__ void rotate(T *x, int64_t ldx, const float *table, float mult, float turn, int64_t n,
                       int64_t T_, int64_t heads, int64_t hd) {
  int64_t half = hd / 2, per = half / V;
  SK_ROWS(t, n, c, heads * per) {
    int64_t i = c % per * V;
    T *lo = x + t * ldx + c / per * hd + i, *hi = lo + half;
    float u[V], v[V], angle[2 * V];
    load(u, lo);
    load(v, hi);
    load(angle, table + t % T_ * hd + 2 * i);
#pragma unroll
    for (int j = 0; j < V; j++) {
      float cosine = mult * angle[2 * j], sine = turn * angle[2 * j + 1], a = u[j], b = v[j];
      u[j] = a * cosine - b * sine;
      v[j] = b * cosine + a * sine;
    }
    store(lo, u);
    store(hi, v);
  }
}

// ---- step sizes (2.4 item 6) ----

template <class T>
__global__ void step_sizes(float *dt, const T *r, int64_t ldr, float mult, const T *bias, float lo,
                           float hi, int64_t n, int64_t nh) {
  SK_ROWS(t, n, h, nh) {
    float v = softplus(mult * to_float(r[t * ldr + h]) + to_float(bias[h]));
    v = v < lo ? lo : v;
    dt[t * nh + h] = v > hi ? hi : v;
  }
}

// Gradient before the softplus.
template <class T>
struct step_grad {
  const float *ddt;
  const T *r, *bias;
  int64_t ldr, nh;
  float mult, lo, hi;
  __device__ float at(int64_t t, int64_t h) const {
    float pre = mult * to_float(r[t * ldr + h]) + to_float(bias[h]), v = softplus(pre);
    return v < lo || v > hi ? 0.0f : ddt[t * nh + h] * sigmoid(pre);
  }
  __device__ void operator()(int64_t t, int64_t c, float (&v)[1]) const { v[0] = at(t, c); }
};

template <class T>
__global__ void step_sizes_grad(T *dr, step_grad<T> g, int64_t n) {
  SK_ROWS(t, n, h, g.nh) from_float(dr[t * g.ldr + h], g.mult * g.at(t, h));
}

// ---- S = keep * S + F ----

template <int V>
__global__ void fade(float *S, const float *keep, const float *F, int64_t n, int64_t cols) {
  SK_ROWS(i, n, c, cols / V) {
    float a[V], b[V], k = keep[i];
    int64_t at = i * cols + c * V;
    load(a, S + at);
    load(b, F + at);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] = k * a[j] + b[j];
    store(S + at, a);
  }
}

// ---- matrix product: tiles of 16 x 16 ----

struct product {
  bool ta, tb;
  int64_t m, n, k, lda, ldb, ldc;
  float alpha, beta;
};

template <class T, class C>
__global__ void multiply(product p, const T *A, const T *B, C *out, int64_t m0) {
  __shared__ float a[16][17], b[16][17];
  int x = threadIdx.x, y = threadIdx.y;
  int64_t row = m0 + (int64_t)blockIdx.y * 16 + y, col = (int64_t)blockIdx.x * 16 + x;
  float sum = 0;
  for (int64_t k0 = 0; k0 < p.k; k0 += 16) {
    int64_t ka = k0 + x, kb = k0 + y;
    a[y][x] =
        row < p.m && ka < p.k ? to_float(p.ta ? A[ka * p.lda + row] : A[row * p.lda + ka]) : 0.0f;
    b[y][x] =
        col < p.n && kb < p.k ? to_float(p.tb ? B[col * p.ldb + kb] : B[kb * p.ldb + col]) : 0.0f;
    __syncthreads();
    for (int i = 0; i < 16; i++) sum += a[y][i] * b[i][x];
    __syncthreads();
  }
  if (row >= p.m || col >= p.n) return;
  C *at = out + row * p.ldc + col;
  sum *= p.alpha;
  from_float(*at, p.beta == 0 ? sum : sum + p.beta * to_float(*at));
}

template <class T, class C>
void launch_multiply(sk_stream *s, const product &p, const void *A, const void *B, void *C_) {
  const int64_t most = 16 * 65535;
  for (int64_t m0 = 0; m0 < p.m; m0 += most) {
    dim3 grid((unsigned)up(p.n, 16), (unsigned)up(least(p.m - m0, most), 16));
    multiply<<<grid, dim3(16, 16), 0, sk_cuda_stream(s)>>>(p, (const T *)A, (const T *)B, (C *)C_,
                                                           m0);
    SK_CUDA(cudaGetLastError());
  }
}

} // namespace

// ---- the table's entries ----

extern "C" {

cudaError_t sk_cuda_probe(sk_cuda_code *code) {
  cudaFuncAttributes a;
  cudaError_t rc = cudaFuncGetAttributes(&a, probe);
  if (rc == cudaSuccess) rc = cudaMemcpyFromSymbol(&code->groups, has_groups, sizeof has_groups);
  if (rc == cudaSuccess) code->arch = a.binaryVersion;
  return rc;
}

void sk_cuda_cast(sk_stream *s, void *dst, sk_dtype to, const void *src, sk_dtype from, int64_t n) {
  if (n == 0) return;
  if (to == from)
    SK_CUDA(cudaMemcpyAsync(dst, src, (size_t)n * sk_dtype_size(to), cudaMemcpyDeviceToDevice,
                            sk_cuda_stream(s)));
  else if (to == SK_BF16)
    launch_cast<bf16, float>(s, dst, src, n);
  else
    launch_cast<float, bf16>(s, dst, src, n);
}

void sk_cuda_add_f32(sk_stream *s, float *y, const float *a, const float *b, int64_t n) {
  launch_add<float>(s, y, a, b, n);
}

void sk_cuda_add(sk_stream *s, void *y, const void *a, const void *b, int64_t n) {
  if (sk_cuda_act(s) == SK_F32)
    launch_add<float>(s, y, a, b, n);
  else
    launch_add<bf16>(s, y, a, b, n);
}

void sk_cuda_bias(sk_stream *s, void *y, int64_t ldy, const void *bias, double scale, int64_t n,
                  int64_t cols) {
  if (n == 0 || cols == 0) return;
  by_type(
      s,
      [&](int V) {
        return fits(V, {cols, ldy}, {y, bias});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        rows_shape r = rows(n, cols / V);
        add_bias<V><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>((T *)y, ldy, (const T *)bias,
                                                               (float)scale, n, cols);
      });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_bias_grad(sk_stream *s, float *dbias, const void *dy, int64_t ldy, double scale,
                       int64_t n, int64_t cols) {
  by_type(
      s,
      [&](int V) {
        return fits(V, {cols, ldy}, {dy});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        sum_tokens<V>(s, dbias, plain_rows<V, T>{(const T *)dy, ldy}, n, cols, scale);
      });
}

void sk_cuda_rope(sk_stream *s, void *x, int64_t ldx, const float *table, double mult, int sign,
                  int64_t b, int64_t T_, int64_t heads, int64_t hd) {
  int64_t n = b * T_;
  if (n == 0 || heads == 0 || hd == 0) return;
  by_type(
      s,
      [&](int V) {
        return fits(V, {hd / 2, ldx}, {x, table});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        rows_shape r = rows(n, heads * (hd / 2 / V));
        rotate<V><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>(
            (T *)x, ldx, table, (float)mult, (float)(mult * sign), n, T_, heads, hd);
      });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_dt(sk_stream *s, float *dt, const void *r, int64_t ldr, double mult,
                const void *dt_bias, double lo, double hi, int64_t n, int64_t nh) {
  if (n == 0 || nh == 0) return;
  by_type(
      s, [](int) { return false; },
      [&](auto tag, auto) {
        typedef SK_TYPE(tag) T;
        rows_shape shape = rows(n, nh);
        step_sizes<<<shape.grid, shape.block, 0, sk_cuda_stream(s)>>>(
            dt, (const T *)r, ldr, (float)mult, (const T *)dt_bias, (float)lo, (float)hi, n, nh);
      });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_dt_grad(sk_stream *s, void *dr, float *ddt_bias, const float *ddt, const void *r,
                     int64_t ldr, double mult, const void *dt_bias, double lo, double hi, int64_t n,
                     int64_t nh) {
  if (n == 0 || nh == 0) return;
  by_type(
      s, [](int) { return false; },
      [&](auto tag, auto) {
        typedef SK_TYPE(tag) T;
        step_grad<T> g = {ddt, (const T *)r, (const T *)dt_bias, ldr,
                          nh,  (float)mult,  (float)lo,          (float)hi};
        // The sums first: dr may be where r is.
        sum_tokens<1>(s, ddt_bias, g, n, nh, 1);
        rows_shape shape = rows(n, nh);
        step_sizes_grad<<<shape.grid, shape.block, 0, sk_cuda_stream(s)>>>((T *)dr, g, n);
      });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_fade_add(sk_stream *s, float *S, const float *keep, const float *F, int64_t n,
                      int64_t cols) {
  if (n == 0 || cols == 0) return;
  if (fits(4, {cols}, {S, F})) {
    rows_shape r = rows(n, cols / 4);
    fade<4><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>(S, keep, F, n, cols);
  } else {
    rows_shape r = rows(n, cols);
    fade<1><<<r.grid, r.block, 0, sk_cuda_stream(s)>>>(S, keep, F, n, cols);
  }
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_gemm_plain(sk_stream *s, bool ta, bool tb, int64_t m, int64_t n, int64_t k,
                        double alpha, const void *A, int64_t lda, const void *B, int64_t ldb,
                        double beta, void *C, int64_t ldc, sk_dtype ct) {
  product p = {ta, tb, m, n, k, lda, ldb, ldc, (float)alpha, (float)beta};
  if (sk_cuda_act(s) == SK_F32)
    launch_multiply<float, float>(s, p, A, B, C);
  else if (ct == SK_F32)
    launch_multiply<bf16, float>(s, p, A, B, C);
  else
    launch_multiply<bf16, bf16>(s, p, A, B, C);
}

} // extern "C"
