/* cuda_loss.cu: the loss over a slice of tokens (2.6) and the optimizer (6.2). */
#include "kernels/cuda_kernel.h"

namespace {

// ---- loss: one block of threads for a token ----

// A running maximum and the sum of exponentials below it.
struct softmax_sum {
  float max = -INFINITY, sum = 0;
  template <int V>
  __device__ void add(const float (&x)[V]) {
    float top = max;
#pragma unroll
    for (int j = 0; j < V; j++) top = fmaxf(top, x[j]);
    sum *= expf(max - top);
#pragma unroll
    for (int j = 0; j < V; j++) sum += expf(x[j] - top);
    max = top;
  }
};

template <int V>
__global__ void xent_stats(float *stats, const float *logits, int64_t ld, const int32_t *label,
                           int64_t n, int64_t v0, int64_t nv) {
  int64_t t = blockIdx.x;
  const float *row = logits + t * ld;
  softmax_sum s;
  float x[V], one[1];
#pragma unroll 2
  for (int64_t c = threadIdx.x * V; c + V <= nv; c += blockDim.x * V) {
    load(x, row + c);
    s.add(x);
  }
  for (int64_t c = nv / V * V + threadIdx.x; c < nv; c += blockDim.x) {
    load(one, row + c);
    s.add(one);
  }
  float max = block_all(s.max, -INFINITY, larger());
  float sum = block_sum(s.sum * expf(s.max - max));
  if (threadIdx.x > 0) return;
  int64_t id = label[t] - v0;
  stats[t] = max;
  stats[n + t] = sum;
  stats[2 * n + t] = id >= 0 && id < nv ? row[id] : 0;
}

__global__ void xent_merge(float *stats, const float *part, int64_t parts, int64_t n) {
  SK_EACH(t, n) {
    float max = -INFINITY, label = 0;
    double sum = 0;
    for (int64_t i = 0; i < parts; i++) max = fmaxf(max, part[3 * i * n + t]);
    for (int64_t i = 0; i < parts; i++) {
      const float *p = part + 3 * i * n + t;
      sum += (double)p[n] * exp((double)p[0] - (double)max);
      label += p[2 * n];
    }
    stats[t] = max;
    stats[n + t] = (float)sum;
    stats[2 * n + t] = label;
  }
}

// A token's row of the gradient: scale * (softmax - onehot).
struct xent_row {
  float max, f, scale; // f: scale / sum of the exponentials
  int64_t id;          // the label's column
  bool counted;
  template <int V, class T>
  __device__ void columns(T *out, const float *logits, int64_t c) const {
    float x[V];
    load(x, logits + c);
#pragma unroll
    for (int j = 0; j < V; j++) {
      x[j] = counted ? f * expf(x[j] - max) : 0;
      if (counted && c + j == id) x[j] -= scale;
    }
    store(out + c, x);
  }
};

// out may be logits.
template <int V, class T>
__global__ void xent_grad(float *loss, T *out, const float *logits, int64_t ld, const float *stats,
                          const int32_t *label, double scale, int64_t n, int64_t v0, int64_t nv) {
  int64_t t = blockIdx.x;
  bool counted = label[t] >= 0;
  float f = counted ? (float)(scale / (double)stats[n + t]) : 0;
  const xent_row r = {stats[t], f, (float)scale, label[t] - v0, counted};
  if (threadIdx.x == 0)
    loss[t] =
        counted ? (float)(log((double)stats[n + t]) + ((double)stats[t] - (double)stats[2 * n + t]))
                : 0;
  if (!out) return;
  out += t * ld, logits += t * ld;
#pragma unroll 2
  for (int64_t c = threadIdx.x * V; c + V <= nv; c += blockDim.x * V)
    r.template columns<V>(out, logits, c);
  for (int64_t c = nv / V * V + threadIdx.x; c < nv; c += blockDim.x)
    r.template columns<1>(out, logits, c);
}

// In index order: threads fetch, one adds.
__global__ void sum_in_order(double *sum, const float *x, int64_t n) {
  __shared__ float part[1024];
  double total = *sum;
  for (int64_t i = 0; i < n; i += 1024) {
    int count = (int)(n - i < 1024 ? n - i : 1024);
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += blockDim.x) part[j] = x[i + j];
    __syncthreads();
    if (threadIdx.x == 0)
      for (int j = 0; j < count; j++) total += part[j];
  }
  if (threadIdx.x == 0) *sum = total;
}

// ---- optimizer ----

constexpr int RANGES = 480; // in a launch: they travel as its arguments

struct ranges {
  int64_t off[RANGES + 1];
};

// out[i] = sum of squares of range i, by one block of threads.
__global__ void square_sums(double *out, const float *x, const __grid_constant__ ranges r) {
  int64_t end = r.off[blockIdx.x + 1];
  double sum = 0;
  for (int64_t i = r.off[blockIdx.x] + threadIdx.x; i < end; i += blockDim.x)
    sum += (double)x[i] * x[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

struct adam {
  float b1, c1, b2, c2, scale, eps, unbias1, unbias2, lr, wd;
  __device__ void step(float &p, float &m, float &v, float g) const {
    g *= scale;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * (g * g);
    p -= lr * (m * unbias1 / (sqrtf(v * unbias2) + eps) + wd * p);
  }
};

template <int V, class T>
__global__ void update(T *w, float *p, float *m, float *v, const float *g, int64_t n, adam a) {
  SK_EACH(i, n / V) {
    float P[V], M[V], S[V], G[V];
    load(P, p + i * V);
    load(M, m + i * V);
    load(S, v + i * V);
    load(G, g + i * V);
#pragma unroll
    for (int j = 0; j < V; j++) a.step(P[j], M[j], S[j], G[j]);
    store(p + i * V, P);
    store(m + i * V, M);
    store(v + i * V, S);
    if (w) store(w + i * V, P);
  }
  int64_t j = n / V * V + threadIdx.x;
  if (blockIdx.x > 0 || j >= n) return;
  a.step(p[j], m[j], v[j], g[j]);
  if (w) from_float(w[j], p[j]);
}

} // namespace

extern "C" {

void sk_cuda_xent_stats(sk_stream *s, float *stats, const float *logits, int64_t ld,
                        const int32_t *label, int64_t n, int64_t v0, int64_t nv) {
  if (n == 0) return;
  cudaStream_t st = sk_cuda_stream(s);
  if (fits(4, {ld}, {logits}))
    xent_stats<4>
        <<<(unsigned)n, row_threads(nv / 4, 512), 0, st>>>(stats, logits, ld, label, n, v0, nv);
  else
    xent_stats<1>
        <<<(unsigned)n, row_threads(nv, 512), 0, st>>>(stats, logits, ld, label, n, v0, nv);
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_xent_merge(sk_stream *s, float *stats, const float *part, int64_t parts, int64_t n) {
  if (n == 0) return;
  xent_merge<<<blocks(n), THREADS, 0, sk_cuda_stream(s)>>>(stats, part, parts, n);
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_xent_grad(sk_stream *s, float *loss, void *dlogits, const float *logits, int64_t ld,
                       const float *stats, const int32_t *label, double scale, int64_t n,
                       int64_t v0, int64_t nv) {
  if (n == 0) return;
  by_type(
      s,
      [&](int V) {
        return fits(V, {ld}, {dlogits, logits});
      },
      [&](auto tag, auto v) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(v);
        int threads = dlogits ? row_threads(nv / V, 512) : 32;
        xent_grad<V><<<(unsigned)n, threads, 0, sk_cuda_stream(s)>>>(
            loss, (T *)dlogits, logits, ld, stats, label, scale, n, v0, nv);
      });
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_sum(sk_stream *s, double *sum, const float *x, int64_t n) {
  if (n == 0) return;
  sum_in_order<<<1, THREADS, 0, sk_cuda_stream(s)>>>(sum, x, n);
  SK_CUDA(cudaGetLastError());
}

void sk_cuda_sqnorm(sk_stream *s, double *out, const float *x, const int64_t *off, int64_t nblk) {
  for (int64_t i = 0; i < nblk; i += RANGES) {
    int64_t n = least(RANGES, nblk - i);
    ranges r;
    memcpy(r.off, off + i, (size_t)(n + 1) * sizeof *off);
    square_sums<<<(unsigned)n, THREADS, 0, sk_cuda_stream(s)>>>(out + i, x, r);
    SK_CUDA(cudaGetLastError());
  }
}

void sk_cuda_adamw(sk_stream *s, void *w, float *p, float *m, float *v, const float *g, int64_t n,
                   const sk_adamw *h) {
  if (n == 0) return;
  adam a = {(float)h->beta1,  (float)(1 - h->beta1), (float)h->beta2,       (float)(1 - h->beta2),
            (float)h->gscale, (float)h->eps,         (float)(1 / h->bias1), (float)(1 / h->bias2),
            (float)h->lr,     (float)h->wd};
  by_type(
      s,
      [&](int) {
        return fits(1, {}, {w, p, m, v, g});
      },
      [&](auto tag, auto k) {
        typedef SK_TYPE(tag) T;
        constexpr int V = SK_NUMBER(k);
        update<V><<<blocks(up(n, V)), THREADS, 0, sk_cuda_stream(s)>>>((T *)w, p, m, v, g, n, a);
      });
  SK_CUDA(cudaGetLastError());
}

} // extern "C"
