/* cuda_ssd_grad.cu: the SSD recurrence in chunks, backward (section 3.4; cuda_ssd.h has the plan).
 *
 *   walk    S forward and Z backward in one launch: the states before the chunks, the gradients of those after
 *   chunk   one block per chunk, group and side, head after head, so that dB, dC and the gradient E of C B^T are
 *           sums over heads in registers (E: shared memory), in the order of the heads
 *   finish  ddt, and the sums over a chunk's tokens for A_log and D
 *   reduce  those sums over the chunks
 *
 * The two sides mirror each other. Tokens i read the state, tokens j write to it:
 *
 *            rows   U  u   columns  V  v   state   gives
 *   READ     i      C  dy  j <= i   B  x   S       dC_i = sum_j E_ij B_j + in_i S^T dy_i
 *   WRITE    j      B  x   i >= j   C  dy  Z       dB_j = sum_i E_ij C_i + out_j dt_j Z^T x_j, and dx
 *
 * with F_ij = dy_i . x_j, E_ij = F_ij L_ij dt_j and K_ij = E_ij (C_i . B_j). Both compute F and E; each adds up K
 * along its rows, which are K's rows on one side and its columns on the other. */
#include "kernels/cuda_ssd.h"
#include "kernels/cuda_ssd_plain.h"

namespace {

struct grad_ws {
  float2 *steps;
  bf16 *S, *Z;    // states [b][chunks][nh]
  float2 *read;   // like steps: what passes to token i (K's row and the state's part q), dy_i . x_i
  float4 *write;  // like steps: K's column, the part p through the state, x_j . dXt_j
  float4 *meet;   // [b * chunks][nh] parts of <Z, S>, one a warp
  double2 *part;  // [b * chunks][nh] sums over a chunk's tokens for A (times dt) and D
};

struct grad_call {
  grad_ws w;
  bf16 *dx, *dB, *dC;
  bool wide_dx, wide_dB; // beside those of ssd_call, which are for reading
};

size_t cut_grad(ssd_call *c, void *ws, grad_ws *w) {
  ssd_cutter cut = {(char *)ws, 0};
  int64_t chunks = (int64_t)c->b * c->chunks * c->nh, tokens = chunks * SSD_TOKENS;
  c->state = (int64_t)c->P * c->stateN;
  cut.take(&w->steps, tokens);
  cut.take(&w->S, chunks * c->state);
  cut.take(&w->Z, chunks * c->state);
  cut.take(&w->read, tokens);
  cut.take(&w->write, tokens);
  cut.take(&w->meet, chunks);
  cut.take(&w->part, chunks);
  c->steps = w->steps;
  return cut.used;
}

// ---- one side of a chunk ----

template <int NN> struct chunk_memory {
  enum { STAGES = NN <= 128 ? 2 : 1 };
  bf16 U[SSD_TOKENS * NN];
  struct {
    bf16 W[SSD_ROWS * NN], u[SSD_TOKENS * SSD_ROWS], v[SSD_TOKENS * SSD_ROWS];
    float2 steps[SSD_TOKENS];
  } in[STAGES];
  // [8 columns of the result][thread]: each thread keeps its own elements here.
  float4 R[SSD_TOKENS / 8][SSD_THREADS], E[SSD_TOKENS / 8][SSD_THREADS];
};

// A thread's sums over the columns of its rows g and g + 8, for one head.
struct row_sums {
  float K[2];    // K along the row
  float state[2]; // u . (W U), faded
  float own[2];  // READ: dy . x of the token; WRITE: x . dXt
  float meet;    // READ: <Z, S>
};

// A head's fades for the thread's rows.
struct row_fades {
  float cs[2], dt[2];
  float left[2]; // WRITE: what is left at the chunk's end
  float f[2];    // in_i, or out_j dt_j
};

template <bool WRITE> __device__ inline row_fades fades(const float2 *steps) {
  int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4;
  row_fades r;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float2 step = steps[row + 8 * i];
    r.cs[i] = step.x, r.dt[i] = step.y;
    r.left[i] = WRITE ? fast_exp2(steps[SSD_TOKENS - 1].x - step.x) : 0.0f;
    r.f[i] = WRITE ? step.y * r.left[i] : fast_exp2(step.x);
  }
  return r;
}

// Starts to load what one slice of a head needs.
template <int NN, bool WRITE>
__device__ inline void chunk_load(const ssd_call &c, const grad_ws &w, const ssd_chunk &a, int h, int slice,
                                  chunk_memory<NN> &m, int turn) {
  auto &in = m.in[turn];
  int p0 = slice * SSD_ROWS, p = min(SSD_ROWS, c.P - p0);
  const bf16 *W = (WRITE ? w.Z : w.S) + state_at(c, a.seq, a.k, h) + (int64_t)p0 * c.stateN;
  const bf16 *x = (const bf16 *)c.x + a.row * c.ld + (int64_t)h * c.P + p0;
  const bf16 *dy = (const bf16 *)c.dy + a.row * c.ldy + (int64_t)h * c.P + p0;
  load_tile<NN>(in.W, W, c.stateN, p, c.stateN, true);
  load_tile<SSD_ROWS>(WRITE ? in.u : in.v, x, c.ld, a.n, p, c.wide_x);
  load_tile<SSD_ROWS>(WRITE ? in.v : in.u, dy, c.ldy, a.n, p, c.wide_y);
  load_steps(in.steps, c.steps + steps_at(c, a, h));
  cp_async_commit();
}

// Whether a warp's rows meet columns 16 k .. 16 k + 15.
template <bool WRITE> __device__ inline bool meets(int k) {
  int warp = (int)threadIdx.x / 32;
  return WRITE ? k >= warp : k <= warp;
}

__device__ inline void take(float (&x)[4], const float4 &y) {
  x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
}

// U and V of the group: U stays, R = U V^T goes to the threads' places, E starts from 0.
template <int NN, bool WRITE>
__device__ inline void chunk_open(const ssd_call &c, const bf16 *U, const bf16 *V, int n, chunk_memory<NN> &m) {
  load_tile<NN>(m.U, U, c.ld, n, c.N, c.wide_B);
  load_tile<NN>(m.in[0].W, V, c.ld, n, c.N, c.wide_B);
  cp_async_commit();
  cp_async_wait();
  __syncthreads();
#pragma unroll 1
  for (int k = 0; k < 4; k++) {
    float R[2][4];
    clear(R);
    if (meets<WRITE>(k)) add_xyt<NN>(R, m.U, (int)threadIdx.x / 32 * 16, m.in[0].W, 16 * k);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      m.R[2 * k + i][threadIdx.x] = make_float4(R[i][0], R[i][1], R[i][2], R[i][3]);
      m.E[2 * k + i][threadIdx.x] = make_float4(0, 0, 0, 0);
    }
  }
  __syncthreads();
}

// From F of 8 columns: E, the sums of K, and M = R L (instead of F).
template <int NN, bool WRITE>
__device__ inline void score_grads(float (&F)[4], chunk_memory<NN> &m, const float2 *steps, const row_fades &r,
                                   int block, row_sums &sum) {
  int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4, col = 8 * block + (int)threadIdx.x % 4 * 2;
  float4 two = *(const float4 *)(steps + col);
  const float cs[2] = {two.x, two.z}, dt[2] = {two.y, two.w};
  float R[4], E[4];
  take(R, m.R[block][threadIdx.x]);
  take(E, m.E[block][threadIdx.x]);
#pragma unroll
  for (int e = 0; e < 4; e++) {
    int late = row + e / 2 * 8, early = col + e % 2; // READ
    float L = WRITE ? fade(early >= late, cs[e % 2], r.cs[e / 2]) : fade(late >= early, r.cs[e / 2], cs[e % 2]);
    float Ldt = L * (WRITE ? r.dt[e / 2] : dt[e % 2]);
    E[e] += F[e] * Ldt;
    if (late != early)
      sum.K[e / 2] += F[e] * (R[e] * Ldt);
    else if (!WRITE)
      sum.own[e / 2] += F[e];
    F[e] = R[e] * L;
  }
  m.E[block][threadIdx.x] = make_float4(E[0], E[1], E[2], E[3]);
}

// F of the warp's rows and what follows from it; M: WRITE alone.
template <int NN, bool WRITE>
__device__ inline void chunk_scores(chunk_memory<NN> &m, int turn, const row_fades &r, uint32_t (&M)[4][4],
                                    row_sums &sum) {
  auto &in = m.in[turn];
  uint32_t us = rows_address<SSD_ROWS>(in.u, (int)threadIdx.x / 32 * 16), u[4][4];
  uint32_t vs = columns_address<SSD_ROWS>(in.v, 0);
#pragma unroll
  for (int p = 0; p < 4; p++) ldmatrix(u[p], further<SSD_ROWS>(us, 0, 2 * p));
#pragma unroll
  for (int k = 0; k < 4; k++) {
    if (!meets<WRITE>(k)) continue;
    float F[2][4];
    clear(F);
#pragma unroll
    for (int p = 0; p < 4; p++) {
      uint32_t b[4];
      ldmatrix(b, further<SSD_ROWS>(vs, 16 * k, 2 * p));
      mma(F[0], u[p], b[0], b[1]);
      mma(F[1], u[p], b[2], b[3]);
    }
    score_grads<NN, WRITE>(F[0], m, in.steps, r, 2 * k, sum);
    score_grads<NN, WRITE>(F[1], m, in.steps, r, 2 * k + 1, sum);
    if (WRITE) as_operand(M[k], F[0], F[1]);
  }
}

// du += (f u) W for the warp's rows.
template <int NN>
__device__ inline void add_through_state(float (&du)[NN / 8][4], const chunk_memory<NN> &m, int turn,
                                         const row_fades &r) {
  const auto &in = m.in[turn];
  uint32_t us = rows_address<SSD_ROWS>(in.u, (int)threadIdx.x / 32 * 16);
#pragma unroll 1
  for (int p = 0; p < 4; p++) {
    uint32_t u[4];
    ldmatrix(u, further<SSD_ROWS>(us, 0, 2 * p));
#pragma unroll
    for (int i = 0; i < 4; i++) u[i] = scaled(u[i], r.f[i % 2], r.f[i % 2]);
    add_py<NN>(du, u, in.W, 16 * p, 0);
  }
}

// u . y for the warp's rows; y: 8 NB columns from 8 n0 on.
template <int NB>
__device__ inline void add_dots(float (&sum)[2], const bf16 *u, const float (&y)[NB][4], int n0) {
  int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < NB; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t two = tile_pair<SSD_ROWS>(u, row + 8 * half, n0 + i);
      sum[half] += low(two) * y[i][2 * half];
      sum[half] += high(two) * y[i][2 * half + 1];
    }
}

// WRITE: from y = Z B_j to dXt, dx and x . dXt, columns of the slice from 8 n0 on.
template <int NN, int NB>
__device__ inline void chunk_inputs(const ssd_call &c, const grad_call &o, const ssd_chunk &a, int h, int slice,
                                    chunk_memory<NN> &m, int turn, const uint32_t (&M)[4][4],
                                    const row_fades &r, float (&y)[NB][4], int n0, row_sums &sum) {
  auto &in = m.in[turn];
  int warp = (int)threadIdx.x / 32, row = 16 * warp + (int)threadIdx.x % 32 / 4, p0 = slice * SSD_ROWS;
  float D = to_float(((const bf16 *)c.D)[h]);
  scale_rows(y, r.left);
#pragma unroll
  for (int k = 0; k < 4; k++)
    if (meets<true>(k)) add_py<SSD_ROWS>(y, M[k], in.v, 16 * k, n0);
  add_dots(sum.own, in.u, y, n0);
#pragma unroll
  for (int i = 0; i < NB; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t dy = tile_pair<SSD_ROWS>(in.v, row + 8 * half, n0 + i);
      y[i][2 * half] = r.dt[half] * y[i][2 * half] + D * low(dy);
      y[i][2 * half + 1] = r.dt[half] * y[i][2 * half + 1] + D * high(dy);
    }
  store_rows<SSD_ROWS>(o.dx + a.row * c.ld + (int64_t)h * c.P + p0, c.ld, in.u, y, 16 * warp, n0, a.n,
                       min(SSD_ROWS, c.P - p0), o.wide_dx);
}

// READ: <Z, S> of the slice; S is in shared memory, the other side's Z comes from memory.
template <int NN>
__device__ inline void chunk_meet(const ssd_call &c, const grad_ws &w, const ssd_chunk &a, int h, int slice,
                                  const chunk_memory<NN> &m, int turn, row_sums &sum) {
  int p0 = slice * SSD_ROWS, p = min(SSD_ROWS, c.P - p0);
  const bf16 *Z = w.Z + state_at(c, a.seq, a.k, h) + (int64_t)p0 * c.stateN;
#pragma unroll 4
  for (int i = 0; i < SSD_ROWS * NN / 8 / SSD_THREADS; i++) {
    int at = i * SSD_THREADS + (int)threadIdx.x, row = at / (NN / 8), chunk = at % (NN / 8);
    if (row >= p || chunk * 8 >= c.stateN) continue;
    uint4 z = *(const uint4 *)(Z + (int64_t)row * c.stateN + chunk * 8);
    uint4 s = *(const uint4 *)(m.in[turn].W + tile_at<NN>(row, chunk));
    const uint32_t zs[4] = {z.x, z.y, z.z, z.w}, ss[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
      sum.meet += low(zs[e]) * low(ss[e]);
      sum.meet += high(zs[e]) * high(ss[e]);
    }
  }
}

// The sums of a head to memory, for `finish`.
template <bool WRITE>
__device__ inline void put_sums(const ssd_call &c, const grad_ws &w, const ssd_chunk &a, int h, row_sums &sum) {
  int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
      sum.K[i] += __shfl_xor_sync(~0u, sum.K[i], d);
      sum.state[i] += __shfl_xor_sync(~0u, sum.state[i], d);
      sum.own[i] += __shfl_xor_sync(~0u, sum.own[i], d);
    }
  int64_t at = steps_at(c, a, h) + 16 * warp + lane / 4;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (lane % 4 != 0) break;
    if (WRITE)
      w.write[at + 8 * i] = make_float4(sum.K[i], sum.state[i], sum.own[i], 0);
    else
      w.read[at + 8 * i] = make_float2(sum.K[i] + sum.state[i], sum.own[i]);
  }
  if constexpr (!WRITE) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum.meet += __shfl_xor_sync(~0u, sum.meet, d);
    if (lane == 0) ((float *)(w.meet + ((int64_t)a.seq * c.chunks + a.k) * c.nh + h))[warp] = sum.meet;
  }
}

// One slice of a head: its part of du (dC or dB), of the sums, and dx.
template <int NN, bool WRITE>
__device__ inline void chunk_slice(const ssd_call &c, const grad_call &o, const ssd_chunk &a, int h, int slice,
                                   chunk_memory<NN> &m, int turn, float (&du)[NN / 8][4], row_sums &sum) {
  auto &in = m.in[turn];
  int warp = (int)threadIdx.x / 32;
  uint32_t M[4][4] = {};
  // The fades are taken anew for each product, and the barriers make the compiler do so: with 256 columns no
  // register is left to keep them in.
  chunk_scores<NN, WRITE>(m, turn, fades<WRITE>(in.steps), M, sum);
  __syncwarp();
  add_through_state<NN>(du, m, turn, fades<WRITE>(in.steps));
  __syncwarp();
  row_fades r = fades<WRITE>(in.steps);
  // All columns of the slice at once where registers allow it.
  constexpr int NB = NN <= 128 ? 8 : 4;
#pragma unroll 1
  for (int n0 = 0; n0 < 8; n0 += NB) {
    float y[NB][4], dot[2] = {};
    clear(y);
    add_xyt<NN>(y, m.U, 16 * warp, in.W, 8 * n0);
    add_dots(dot, in.u, y, n0);
    sum.state[0] += r.f[0] * dot[0], sum.state[1] += r.f[1] * dot[1];
    if (WRITE) chunk_inputs<NN>(c, o, a, h, slice, m, turn, M, r, y, n0, sum);
  }
  if (!WRITE && fast_exp2(in.steps[SSD_TOKENS - 1].x) > 0) chunk_meet<NN>(c, o.w, a, h, slice, m, turn, sum);
}

// After all heads: du += E V.
template <int NN, bool WRITE>
__device__ inline void chunk_close(const ssd_call &c, const bf16 *V, int n, chunk_memory<NN> &m,
                                   float (&du)[NN / 8][4]) {
  __syncthreads();
  load_tile<NN>(m.in[0].W, V, c.ld, n, c.N, c.wide_B);
  cp_async_commit();
  cp_async_wait();
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 4; k++) {
    if (!meets<WRITE>(k)) continue;
    float E[2][4];
    uint32_t p[4];
    take(E[0], m.E[2 * k][threadIdx.x]);
    take(E[1], m.E[2 * k + 1][threadIdx.x]);
    as_operand(p, E[0], E[1]);
    add_py<NN>(du, p, m.in[0].W, 16 * k, 0);
  }
}

template <int NN, bool WRITE>
__device__ inline void chunk_side(const ssd_call &c, const grad_call &o, const ssd_chunk &a, int group) {
  extern __shared__ __align__(128) unsigned char ssd_shared[];
  chunk_memory<NN> &m = *(chunk_memory<NN> *)ssd_shared;
  constexpr int STAGES = chunk_memory<NN>::STAGES;
  int64_t at = a.row * c.ld + (int64_t)group * c.N;
  const bf16 *B = (const bf16 *)c.B + at, *C = (const bf16 *)c.C + at;
  chunk_open<NN, WRITE>(c, WRITE ? B : C, WRITE ? C : B, a.n, m);
  float du[NN / 8][4];
  clear(du);
  row_sums sum = {};
  int h = group * c.heads, end = h + c.heads, slice = 0, turn = 0;
  chunk_load<NN, WRITE>(c, o.w, a, h, 0, m, 0);
#pragma unroll 1
  while (h < end) {
    bool last = slice == c.slices - 1;
    int next = last ? h + 1 : h, next_slice = last ? 0 : slice + 1;
    cp_async_wait();
    __syncthreads();
    if (STAGES == 2 && next < end) chunk_load<NN, WRITE>(c, o.w, a, next, next_slice, m, 1 - turn);
    chunk_slice<NN, WRITE>(c, o, a, h, slice, m, turn, du, sum);
    if (last) {
      put_sums<WRITE>(c, o.w, a, h, sum);
      sum = {};
    }
    if (STAGES == 1) {
      __syncthreads();
      if (next < end) chunk_load<NN, WRITE>(c, o.w, a, next, next_slice, m, 0);
    }
    h = next, slice = next_slice, turn = STAGES - 1 - turn;
  }
  chunk_close<NN, WRITE>(c, WRITE ? C : B, a.n, m, du);
  store_rows<NN>((WRITE ? o.dB : o.dC) + at, c.ld, m.U, du, (int)threadIdx.x / 32 * 16, 0, a.n, c.N, o.wide_dB);
}

// The two sides of a chunk are neighbours, so that the second read of x, dy and Z finds them in the L2 cache.
template <int NN> __global__ void __launch_bounds__(SSD_THREADS, 2) chunk(ssd_call c, grad_call o) {
  int i = (int)blockIdx.x, group = i / 2 % c.G;
  ssd_chunk a = chunk_at(c, i / 2 / c.G, SSD_TOKENS);
  if (i % 2 == 0)
    chunk_side<NN, false>(c, o, a, group);
  else
    chunk_side<NN, true>(c, o, a, group);
}

template <int NN> void launch_chunk(sk_stream *s, const ssd_call &c, const grad_call &o) {
  size_t bytes = sizeof(chunk_memory<NN>);
  int64_t blocks = (int64_t)c.b * c.chunks * c.G * 2;
  SK_CHECK(blocks < INT_MAX, "ssd_grad: %lld blocks", (long long)blocks);
  ssd_memory(chunk<NN>, bytes);
  chunk<NN><<<(unsigned)blocks, SSD_THREADS, bytes, sk_cuda_stream(s)>>>(c, o);
  SK_CUDA(cudaGetLastError());
}

// ---- finish ----

// For a token k: da_k = sum_{i >= k} (row_i - column_i + q_i) + sum_{j < k} p_j + keep <Z, S>. K without its
// diagonal enters rows and columns alike, so the first sum is that over the rectangle i >= k > j. A warp per
// (chunk, head), two tokens a lane, sums in double.
__global__ void finish(ssd_call c, grad_ws w, float *ddt) {
  int i = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
  if (i >= c.b * c.chunks * c.nh) return;
  int h = i % c.nh;
  ssd_chunk a = chunk_at(c, i / c.nh, SSD_TOKENS);
  double A = -exp((double)to_float(((const bf16 *)c.A_log)[h]));
  int64_t at = steps_at(c, a, h);
  float4 read = ((const float4 *)(w.read + at))[lane], meet = w.meet[i];
  float4 write[2] = {w.write[at + 2 * lane], w.write[at + 2 * lane + 1]};
  float keep = fast_exp2(c.steps[at + SSD_TOKENS - 1].x);
  double later[2] = {(double)read.x - (double)write[0].x, (double)read.z - (double)write[1].x};
  double from = later[0] + later[1], until = (double)write[0].y + (double)write[1].y, own = until;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    double after = __shfl_down_sync(~0u, from, d), before = __shfl_up_sync(~0u, until, d);
    if (lane + d < 32) from += after;
    if (lane >= d) until += before;
  }
  until -= own;
  double X = (double)keep * ((double)meet.x + (double)meet.y + (double)meet.z + (double)meet.w), dA = 0, dD = 0;
#pragma unroll
  for (int e = 0; e < 2; e++) {
    int t = 2 * lane + e;
    if (t >= a.n) break;
    float dt = c.dt[(a.row + t) * c.nh + h];
    double da = X + (e ? from - later[0] : from) + until + (e ? (double)write[0].y : 0);
    // Where nothing is left the sums leave their rounding instead of 0.
    bool begins = c.start[a.row + t] == a.first + t;
    if (begins || (double)dt * A < -126 / 1.4426950408889634) da = 0;
    ddt[(a.row + t) * c.nh + h] = (float)((double)write[e].z + A * da);
    dA += (double)dt * da;
    dD += (double)(e ? read.w : read.y);
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    dA += __shfl_xor_sync(~0u, dA, d);
    dD += __shfl_xor_sync(~0u, dD, d);
  }
  if (lane == 0) w.part[i] = make_double2(dA, dD);
}

// dA_log += A times the sums, dD += the sums; part[tasks][nh]. A block per head.
template <class T>
__global__ void reduce(float *dA_log, float *dD, const double2 *part, int tasks, int nh, const T *A_log) {
  int h = (int)blockIdx.x;
  double sum[2] = {};
  for (int i = (int)threadIdx.x; i < tasks; i += (int)blockDim.x) {
    double2 one = part[(int64_t)i * nh + h];
    sum[0] += one.x, sum[1] += one.y;
  }
  double A = block_sum(sum[0]), D = block_sum(sum[1]);
  if (threadIdx.x > 0) return;
  dA_log[h] = (float)(dA_log[h] - exp((double)to_float(A_log[h])) * A);
  dD[h] = (float)(dD[h] + D);
}

template <class T>
void launch_reduce(sk_stream *s, const ssd_call &c, float *dA_log, float *dD, const double2 *part) {
  reduce<T><<<c.nh, THREADS, 0, sk_cuda_stream(s)>>>(dA_log, dD, part, c.b * c.chunks, c.nh, (const T *)c.A_log);
  SK_CUDA(cudaGetLastError());
}

template <class T>
void all_plain(sk_stream *s, const ssd_call &c, const plain_grads &g, float *dA_log, float *dD, float *dS0,
               const float *S0, const float *dSf, void *ws) {
  launch_reduce<T>(s, c, dA_log, dD, plain_backward<T>(s, c, g, dS0, S0, dSf, ws));
}

ssd_walk backward_walk(const ssd_call &c, const float *dSf, bf16 *Z, float *dS0) {
  ssd_walk w = {(const bf16 *)c.dy, (const bf16 *)c.C, c.ldy, c.wide_y, true, dSf, Z, dS0};
  return w;
}

} // namespace

// ---- entries ----

extern "C" size_t sk_cuda_ssd_grad_ws(sk_dtype act, const sk_ssd_dims *d) {
  if (!ssd_fast(act, d)) return ssd_plain_grad_ws(d);
  ssd_call c = ssd_describe(d, SSD_TOKENS);
  grad_ws w;
  return cut_grad(&c, NULL, &w);
}

extern "C" void sk_cuda_ssd_grad(sk_stream *s, const sk_ssd_dims *d, void *dx, void *dB, void *dC, float *ddt,
                                 float *dA_log, float *dD, float *dS0, const void *dy, const void *x,
                                 const void *B, const void *C, const float *dt, const void *A_log,
                                 const void *D, const int32_t *start, const float *S0, const float *dSf,
                                 void *ws) {
  bool fast = ssd_fast(sk_cuda_act(s), d);
  ssd_call c = ssd_describe(d, fast ? SSD_TOKENS : SSD_PLAIN);
  c.x = x, c.B = B, c.C = C, c.dy = dy, c.dt = dt, c.A_log = A_log, c.D = D, c.start = start;
  if (!fast) {
    plain_grads g = {dx, dB, dC, ddt};
    if (sk_cuda_act(s) == SK_F32)
      all_plain<float>(s, c, g, dA_log, dD, dS0, S0, dSf, ws);
    else
      all_plain<bf16>(s, c, g, dA_log, dD, dS0, S0, dSf, ws);
    return;
  }
  grad_call o = {};
  cut_grad(&c, ws, &o.w);
  o.dx = (bf16 *)dx, o.dB = (bf16 *)dB, o.dC = (bf16 *)dC;
  c.wide_x = ssd_wide({x}, d->ld, c.P), c.wide_B = ssd_wide({B, C}, d->ld, c.N);
  c.wide_y = ssd_wide({dy}, d->ldy, c.P);
  o.wide_dx = ssd_wide({dx}, d->ld, c.P), o.wide_dB = ssd_wide({dB, dC}, d->ld, c.N);
  ssd_walk S = {(const bf16 *)x, (const bf16 *)B, d->ld, c.wide_x, false, S0, o.w.S, NULL};
  ssd_walk Z = backward_walk(c, dSf, o.w.Z, dS0);
  sk_cuda_ssd_steps(s, &c);
  sk_cuda_ssd_walk(s, &c, &S, &Z);
  if (c.N <= 64)
    launch_chunk<64>(s, c, o);
  else if (c.N <= 128)
    launch_chunk<128>(s, c, o);
  else
    launch_chunk<256>(s, c, o);
  unsigned grid = (unsigned)up((int64_t)c.b * c.chunks * c.nh, THREADS / 32);
  finish<<<grid, THREADS, 0, sk_cuda_stream(s)>>>(c, o.w, ddt);
  SK_CUDA(cudaGetLastError());
  launch_reduce<bf16>(s, c, dA_log, dD, o.w.part);
}

extern "C" void sk_cuda_ssd_state_grad(sk_stream *s, const sk_ssd_dims *d, float *dS0, const void *dy,
                                       const void *C, const float *dt, const void *A_log, const int32_t *start,
                                       void *ws) {
  bool fast = ssd_fast(sk_cuda_act(s), d);
  ssd_call c = ssd_describe(d, fast ? SSD_TOKENS : SSD_PLAIN);
  c.dy = dy, c.C = C, c.dt = dt, c.A_log = A_log, c.start = start;
  if (!fast) {
    if (sk_cuda_act(s) == SK_F32)
      plain_state_grads<float>(s, c, dS0, ws);
    else
      plain_state_grads<bf16>(s, c, dS0, ws);
    return;
  }
  grad_ws w;
  cut_grad(&c, ws, &w);
  c.wide_y = ssd_wide({dy}, d->ldy, c.P), c.wide_B = ssd_wide({C}, d->ld, c.N);
  ssd_walk Z = backward_walk(c, NULL, NULL, dS0);
  sk_cuda_ssd_steps(s, &c);
  sk_cuda_ssd_walk(s, &c, &Z, NULL);
}
