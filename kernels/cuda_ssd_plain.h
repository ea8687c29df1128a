/* cuda_ssd_plain.h: the SSD on CUDA cores (sections 3.3, 3.4), for fp32, and for heads and GPUs that
 * the fast path is not for; private to kernels/cuda_ssd*.cu. Clear before quick.
 *
 * Chunks have SSD_PLAIN tokens. As on the CPU states lie as [N][P], the transpose of the
 * contract's, log decays are sums in double from the chunk's start or the last document start in
 * it, and everything else is fp32. T is the type of act. S: states before the chunks, Z: gradients
 * of those after them. */
#ifndef SK_CUDA_SSD_PLAIN_H
#define SK_CUDA_SSD_PLAIN_H
#include "kernels/cuda_ssd.h"

namespace {

constexpr int Q = SSD_PLAIN;

// Scratch. S and Z have chunks + 1 slots a sequence: slot k is before chunk k.
struct plain_ws {
  float *S, *Z;   // [b][chunks + 1][nh][N][P]
  float *keep;    // [b * chunks][nh]
  float *row;     // [b * T][G][P] what a head needs between two products
  float *dB, *dC; // [b * T][G][N] sums over heads
  double2 *part;  // [b * chunks][nh] sums over a chunk's tokens for A (times dt) and D
};

inline size_t plain_cut(const ssd_call &c, bool grad, void *ws, plain_ws *w) {
  ssd_cutter cut = {(char *)ws, 0};
  int64_t tokens = (int64_t)c.b * c.T, chunks = (int64_t)c.b * c.chunks;
  int64_t slots = (chunks + c.b) * c.nh * c.P * c.N;
  cut.take(&w->S, slots);
  cut.take(&w->keep, chunks * c.nh);
  if (!grad) return cut.used;
  cut.take(&w->Z, slots);
  cut.take(&w->row, tokens * c.G * c.P);
  cut.take(&w->dB, tokens * c.G * c.N);
  cut.take(&w->dC, tokens * c.G * c.N);
  cut.take(&w->part, chunks * c.nh);
  return cut.used;
}

__device__ inline float *plain_slot(const ssd_call &c, float *states, int seq, int k, int h) {
  return states + (((int64_t)seq * (c.chunks + 1) + k) * c.nh + h) * c.P * c.N;
}

// ---- one chunk of one head ----

// How the state fades within a chunk; as sk_ssd_decay on the CPU.
struct plain_decay {
  double cs[Q];
  float in[Q], out[Q], dt[Q];
  int lo[Q]; // the first token of the chunk that token i sees
  float keep, A, D;
};

// The block fills *w; it has barriers at both ends.
template <class T>
__device__ void plain_fade(const ssd_call &c, const ssd_chunk &a, int h, plain_decay &w) {
  int i = (int)threadIdx.x;
  __syncthreads();
  double A = -exp((double)to_float(((const T *)c.A_log)[h]));
  if (i < a.n) {
    int from = c.start[a.row + i] - a.first;
    double sum = 0; // the step into a document's first token has nothing to act on
    for (int j = max(from + 1, 0); j <= i; j++) sum += (double)c.dt[(a.row + j) * c.nh + h] * A;
    w.cs[i] = sum;
    w.lo[i] = max(from, 0);
    w.in[i] = from < 0 ? expf((float)sum) : 0.0f;
    w.dt[i] = c.dt[(a.row + i) * c.nh + h];
  }
  __syncthreads();
  int last = a.n - 1;
  if (i < a.n) w.out[i] = i >= w.lo[last] ? expf((float)(w.cs[last] - w.cs[i])) : 0.0f;
  if (i == 0) {
    w.keep = w.in[last];
    w.A = (float)A;
    w.D = c.D ? to_float(((const T *)c.D)[h]) : 0.0f;
  }
  __syncthreads();
}

__device__ inline float plain_between(const plain_decay &w, int i, int j) {
  return expf((float)(w.cs[i] - w.cs[j]));
}

// put(i, j, sum over l < k of x(i, l) y(l, j)), i < m, j < n. Threads of a warp have neighbouring
// j.
template <class X, class Y, class Put>
__device__ inline void product(int m, int n, int k, X x, Y y, Put put) {
  int groups = (m + 3) / 4;
  for (int at = (int)threadIdx.x; at < groups * n; at += (int)blockDim.x) {
    int i = at / n * 4, j = at % n;
    float sum[4] = {};
    for (int l = 0; l < k; l++) {
      float v = y(l, j);
#pragma unroll
      for (int r = 0; r < 4; r++) sum[r] += x(min(i + r, m - 1), l) * v;
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
      if (i + r < m) put(i + r, j, sum[r]);
  }
}

// The warp's lanes get a . b of length n.
template <class X, class Y>
__device__ inline float warp_dot(const X *a, const Y *b, int n) {
  float sum = 0;
  for (int i = (int)threadIdx.x % 32; i < n; i += 32) sum += to_float(a[i]) * to_float(b[i]);
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  return sum;
}

// For every warp in turn: i < m, j < n. f is called by whole warps.
template <class F>
__device__ inline void warps_share(int m, int n, F f) {
  for (int at = (int)threadIdx.x / 32; at < m * n; at += (int)blockDim.x / 32) f(at / n, at % n);
}

// A token's row of x, dy (head h), B, C (its group).
template <class T>
__device__ inline const T *head_row(const ssd_call &c, const void *x, int64_t row, int h) {
  return (const T *)x + row * c.ld + (int64_t)h * c.P;
}
template <class T>
__device__ inline const T *dy_row(const ssd_call &c, int64_t row, int h) {
  return (const T *)c.dy + row * c.ldy + (int64_t)h * c.P;
}
template <class T>
__device__ inline const T *group_row(const ssd_call &c, const void *x, int64_t row, int h) {
  return (const T *)x + row * c.ld + (int64_t)(h / c.heads) * c.N;
}

// ---- states ----

// What a chunk adds to the state after it, or (BACK) to the gradient of the state before it.
template <class T, bool BACK>
__global__ void plain_own(ssd_call c, plain_ws ws) {
  __shared__ plain_decay w;
  int h = (int)blockIdx.x % c.nh;
  ssd_chunk a = chunk_at(c, (int)blockIdx.x / c.nh, Q);
  plain_fade<T>(c, a, h, w);
  float *own = BACK ? plain_slot(c, ws.Z, a.seq, a.k, h) : plain_slot(c, ws.S, a.seq, a.k + 1, h);
  if (threadIdx.x == 0) ws.keep[blockIdx.x] = w.keep;
  product(
      c.N, c.P, a.n,
      [&](int n, int j) {
        float f = BACK ? w.in[j] : w.out[j] * w.dt[j];
        return f * to_float(group_row<T>(c, BACK ? c.C : c.B, a.row + j, h)[n]);
      },
      [&](int j, int p) {
        return to_float(BACK ? dy_row<T>(c, a.row + j, h)[p]
                             : head_row<T>(c, c.x, a.row + j, h)[p]);
      },
      [&](int n, int p, float sum) { own[n * c.P + p] = sum; });
}

// From what the chunks add to the states themselves. first [b,nh,P,N]: what the walk starts from,
// NULL: zero; last: where it ends, NULL: not wanted.
template <bool BACK>
__global__ void plain_scan(ssd_call c, float *states, const float *keep, const float *first,
                           float *last) {
  int64_t size = (int64_t)c.P * c.N;
  SK_EACH(at, c.b * c.nh * size) {
    int seq = (int)(at / size / c.nh), h = (int)(at / size % c.nh), i = (int)(at % size);
    int64_t outside = at - i + (int64_t)(i % c.P) * c.N + i / c.P;
    float value = first ? first[outside] : 0.0f;
    for (int s = 0; s <= c.chunks; s++) {
      int slot = BACK ? c.chunks - s : s, chunk = BACK ? slot : slot - 1;
      float &here = plain_slot(c, states, seq, slot, h)[i];
      if (s > 0) value = here + keep[((int64_t)seq * c.chunks + chunk) * c.nh + h] * value;
      here = value;
    }
    if (last) last[outside] = value;
  }
}

template <class T, bool BACK>
void plain_walk(sk_stream *s, const ssd_call &c, const plain_ws &w, const float *first,
                float *last) {
  plain_own<T, BACK><<<(unsigned)(c.b * c.chunks * c.nh), THREADS, 0, sk_cuda_stream(s)>>>(c, w);
  SK_CUDA(cudaGetLastError());
  unsigned grid = blocks((int64_t)c.b * c.nh * c.P * c.N);
  plain_scan<BACK>
      <<<grid, THREADS, 0, sk_cuda_stream(s)>>>(c, BACK ? w.Z : w.S, w.keep, first, last);
  SK_CUDA(cudaGetLastError());
}

// ---- forward ----

template <class T>
__global__ void plain_output(ssd_call c, plain_ws ws, T *y) {
  __shared__ plain_decay w;
  __shared__ float M[Q][Q + 1];
  int h = (int)blockIdx.x % c.nh;
  ssd_chunk a = chunk_at(c, (int)blockIdx.x / c.nh, Q);
  plain_fade<T>(c, a, h, w);
  const float *S = plain_slot(c, ws.S, a.seq, a.k, h);
  warps_share(a.n, a.n, [&](int i, int j) {
    float m = 0;
    if (w.lo[i] <= j && j <= i)
      m = warp_dot(group_row<T>(c, c.C, a.row + i, h), group_row<T>(c, c.B, a.row + j, h), c.N) *
          plain_between(w, i, j) * w.dt[j];
    if (threadIdx.x % 32 == 0) M[i][j] = m;
  });
  __syncthreads();
  // One sum over the chunk's tokens and over the columns of the state before it.
  product(
      a.n, c.P, a.n + c.N,
      [&](int i, int l) {
        return l < a.n ? M[i][l] : w.in[i] * to_float(group_row<T>(c, c.C, a.row + i, h)[l - a.n]);
      },
      [&](int l, int p) {
        return l < a.n ? to_float(head_row<T>(c, c.x, a.row + l, h)[p])
                       : S[(int64_t)(l - a.n) * c.P + p];
      },
      [&](int i, int p, float sum) {
        float x = to_float(head_row<T>(c, c.x, a.row + i, h)[p]);
        from_float(y[(a.row + i) * c.ldy + (int64_t)h * c.P + p], sum + w.D * x);
      });
}

inline size_t ssd_plain_ws(const sk_ssd_dims *d) {
  plain_ws w;
  return plain_cut(ssd_describe(d, Q), false, NULL, &w);
}

template <class T>
void plain_states(sk_stream *s, const ssd_call &c, float *Sf, const float *S0, void *ws) {
  plain_ws w = {};
  plain_cut(c, false, ws, &w);
  plain_walk<T, false>(s, c, w, S0, Sf);
}

template <class T>
void plain_forward(sk_stream *s, const ssd_call &c, T *y, float *Sf, const float *S0, void *ws) {
  plain_ws w = {};
  plain_cut(c, false, ws, &w);
  plain_walk<T, false>(s, c, w, S0, Sf);
  plain_output<T><<<(unsigned)(c.b * c.chunks * c.nh), THREADS, 0, sk_cuda_stream(s)>>>(c, w, y);
  SK_CUDA(cudaGetLastError());
}

// ---- backward ----

struct plain_grads {
  void *dx, *dB, *dC;
  float *ddt;
};

// What a block keeps between the steps of a head; [i][j] with j <= i, 0 elsewhere.
struct plain_memory {
  plain_decay w;
  float R[Q][Q + 1], E[Q][Q + 1];  // of the group: C B^T and its gradient
  float M[Q][Q + 1], K[Q][Q + 1];  // of the head: R L, and F R L dt with F = dy x^T
  float q[Q], p[Q], s[Q], diag[Q]; // dots with what goes through the states; x . dXt; dy . x
  float X[THREADS / 32];           // parts of <Z, S>
};

// M and K of a head; its part of E.
template <class T>
__device__ void plain_scores(const ssd_call &c, const ssd_chunk &a, int h, plain_memory &m) {
  warps_share(a.n, a.n, [&](int i, int j) {
    float M = 0, K = 0;
    if (m.w.lo[i] <= j && j <= i) {
      float F = warp_dot(dy_row<T>(c, a.row + i, h), head_row<T>(c, c.x, a.row + j, h), c.P);
      float L = plain_between(m.w, i, j);
      if (threadIdx.x % 32 == 0) {
        m.E[i][j] += F * L * m.w.dt[j];
        if (i == j) m.diag[j] = F;
      }
      M = m.R[i][j] * L;
      K = F * m.w.dt[j] * M;
    }
    if (threadIdx.x % 32 == 0) m.M[i][j] = M, m.K[i][j] = K;
  });
}

// Through a state W [N][P]: row_i = W u_i; dot_i = f_i v_i . row_i; du_i[n] += f_i v_i . W[n].
template <class T, class V>
__device__ void plain_through(const ssd_call &c, const ssd_chunk &a, int h, const float *W,
                              const void *u, V v, const float *fade, const float *dt, float *row,
                              float *dot, float *du) {
  int64_t ldr = (int64_t)c.G * c.P, ldu = (int64_t)c.G * c.N;
  __syncthreads(); // the last use of row is over
  product(
      a.n, c.P, c.N, [&](int i, int n) { return to_float(group_row<T>(c, u, a.row + i, h)[n]); },
      [&](int n, int p) { return W[(int64_t)n * c.P + p]; },
      [&](int i, int p, float sum) { row[i * ldr + p] = sum; });
  __syncthreads();
  warps_share(a.n, 1, [&](int i, int) {
    float sum = fade[i] * (dt ? dt[i] : 1.0f) * warp_dot(v(i), row + i * ldr, c.P);
    if (threadIdx.x % 32 == 0) dot[i] = sum;
  });
  warps_share(a.n, c.N, [&](int i, int n) {
    float sum = fade[i] * (dt ? dt[i] : 1.0f) * warp_dot(v(i), W + (int64_t)n * c.P, c.P);
    if (threadIdx.x % 32 == 0) du[i * ldu + n] += sum;
  });
}

// dx of a head. row holds Z B_j.
template <class T>
__device__ void plain_inputs(const ssd_call &c, const ssd_chunk &a, int h, float *row,
                             plain_memory &m, T *dx) {
  int64_t ldr = (int64_t)c.G * c.P;
  __syncthreads();
  product(
      a.n, c.P, a.n, [&](int j, int i) { return m.M[i][j]; },
      [&](int i, int p) { return to_float(dy_row<T>(c, a.row + i, h)[p]); },
      [&](int j, int p, float sum) {
        float dXt = sum + m.w.out[j] * row[j * ldr + p],
              dy = to_float(dy_row<T>(c, a.row + j, h)[p]);
        row[j * ldr + p] = dXt;
        from_float(dx[(a.row + j) * c.ld + (int64_t)h * c.P + p], m.w.dt[j] * dXt + m.w.D * dy);
      });
  __syncthreads();
  warps_share(a.n, 1, [&](int j, int) {
    float sum = warp_dot(head_row<T>(c, c.x, a.row + j, h), row + j * ldr, c.P);
    if (threadIdx.x % 32 == 0) m.s[j] = sum;
  });
}

// <Z, S>, in parts of a warp each.
__device__ inline void plain_meet(const ssd_call &c, const float *S, const float *Z,
                                  plain_memory &m) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < (int64_t)c.P * c.N; i += blockDim.x) sum += S[i] * Z[i];
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  if (threadIdx.x % 32 == 0) m.X[threadIdx.x / 32] = sum;
}

// ddt, and the sums for A and D. The double sum over a rectangle is taken as it stands: no term
// twice.
__device__ inline void plain_decay_grads(const ssd_call &c, const ssd_chunk &a, int h,
                                         const plain_memory &m, float *ddt, double2 *part) {
  __syncthreads();
  if (threadIdx.x >= 32) return;
  int k = (int)threadIdx.x;
  double da = 0, dA = 0, dD = 0;
  if (k < a.n) {
    for (int i = k; i < a.n; i++) {
      for (int j = 0; j < k; j++) da += (double)m.K[i][j];
      da += (double)m.q[i];
    }
    for (int j = 0; j < k; j++) da += (double)m.p[j];
    for (int i = 0; i < THREADS / 32; i++) da += (double)m.w.keep * (double)m.X[i];
    ddt[(a.row + k) * c.nh + h] = (float)((double)m.s[k] + (double)m.w.A * da);
    dA = (double)m.w.dt[k] * da, dD = m.diag[k];
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    dA += __shfl_xor_sync(~0u, dA, d);
    dD += __shfl_xor_sync(~0u, dD, d);
  }
  if (k == 0) *part = make_double2(dA, dD);
}

// C B^T of a group and zeros for what its heads add to.
template <class T>
__device__ void plain_open(const ssd_call &c, const ssd_chunk &a, int h, float *dB, float *dC,
                           plain_memory &m) {
  int64_t ldu = (int64_t)c.G * c.N;
  warps_share(a.n, a.n, [&](int i, int j) {
    float sum = 0;
    if (j <= i)
      sum = warp_dot(group_row<T>(c, c.C, a.row + i, h), group_row<T>(c, c.B, a.row + j, h), c.N);
    if (threadIdx.x % 32 == 0) m.R[i][j] = sum, m.E[i][j] = 0;
  });
  for (int at = (int)threadIdx.x; at < a.n * c.N; at += (int)blockDim.x)
    dB[at / c.N * ldu + at % c.N] = dC[at / c.N * ldu + at % c.N] = 0;
}

// dC_i += sum_j E_ij B_j; dB_j += sum_i E_ij C_i; both to their places.
template <class T>
__device__ void plain_close(const ssd_call &c, const ssd_chunk &a, int h, const float *dB,
                            const float *dC, const plain_memory &m, T *toB, T *toC) {
  int64_t ldu = (int64_t)c.G * c.N, at = a.row * c.ld + (int64_t)(h / c.heads) * c.N;
  __syncthreads();
  product(
      a.n, c.N, a.n, [&](int i, int j) { return m.E[i][j]; },
      [&](int j, int n) { return to_float(group_row<T>(c, c.B, a.row + j, h)[n]); },
      [&](int i, int n, float sum) { from_float(toC[at + i * c.ld + n], dC[i * ldu + n] + sum); });
  product(
      a.n, c.N, a.n, [&](int j, int i) { return m.E[i][j]; },
      [&](int i, int n) { return to_float(group_row<T>(c, c.C, a.row + i, h)[n]); },
      [&](int j, int n, float sum) { from_float(toB[at + j * c.ld + n], dB[j * ldu + n] + sum); });
}

// A block per chunk and group, head after head.
template <class T>
__global__ void plain_chunk(ssd_call c, plain_ws ws, plain_grads g) {
  __shared__ plain_memory m;
  int group = (int)blockIdx.x % c.G, h0 = group * c.heads;
  ssd_chunk a = chunk_at(c, (int)blockIdx.x / c.G, Q);
  float *row = ws.row + (a.row * c.G + group) * c.P;
  float *dB = ws.dB + (a.row * c.G + group) * c.N, *dC = ws.dC + (a.row * c.G + group) * c.N;
  plain_open<T>(c, a, h0, dB, dC, m);
  for (int h = h0; h < h0 + c.heads; h++) {
    const float *S = plain_slot(c, ws.S, a.seq, a.k, h),
                *Z = plain_slot(c, ws.Z, a.seq, a.k + 1, h);
    auto dy = [&](int i) { return dy_row<T>(c, a.row + i, h); };
    auto x = [&](int j) { return head_row<T>(c, c.x, a.row + j, h); };
    plain_fade<T>(c, a, h, m.w);
    plain_scores<T>(c, a, h, m);
    plain_through<T>(c, a, h, S, c.C, dy, m.w.in, NULL, row, m.q, dC);
    plain_through<T>(c, a, h, Z, c.B, x, m.w.out, m.w.dt, row, m.p, dB);
    plain_inputs<T>(c, a, h, row, m, (T *)g.dx);
    plain_meet(c, S, Z, m);
    plain_decay_grads(c, a, h, m, g.ddt, ws.part + ((int64_t)a.seq * c.chunks + a.k) * c.nh + h);
  }
  plain_close<T>(c, a, h0, dB, dC, m, (T *)g.dB, (T *)g.dC);
}

inline size_t ssd_plain_grad_ws(const sk_ssd_dims *d) {
  plain_ws w;
  return plain_cut(ssd_describe(d, Q), true, NULL, &w);
}

// Returns the sums for A and D, [b * chunks][nh].
template <class T>
const double2 *plain_backward(sk_stream *s, const ssd_call &c, const plain_grads &g, float *dS0,
                              const float *S0, const float *dSf, void *ws) {
  plain_ws w = {};
  plain_cut(c, true, ws, &w);
  plain_walk<T, false>(s, c, w, S0, NULL);
  plain_walk<T, true>(s, c, w, dSf, dS0);
  plain_chunk<T><<<(unsigned)(c.b * c.chunks * c.G), THREADS, 0, sk_cuda_stream(s)>>>(c, w, g);
  SK_CUDA(cudaGetLastError());
  return w.part;
}

template <class T>
void plain_state_grads(sk_stream *s, const ssd_call &c, float *dS0, void *ws) {
  plain_ws w = {};
  plain_cut(c, true, ws, &w);
  plain_walk<T, true>(s, c, w, NULL, dS0);
}

} // namespace
#endif
