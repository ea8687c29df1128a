/* cuda_ssd_grad.cu: the SSD recurrence in chunks, backward (section 3.4; the plan is in
 * cuda_ssd.h).
 *
 *   walk    the states before the chunks and the gradients of those after them, in one launch
 *   chunk   one block per chunk, group and side, head after head, so that dB, dC and the gradient E
 *           of C B^T are sums over heads that never leave the block, in the order of the heads
 *   finish  ddt, and the sums over a chunk's tokens for A_log and D
 *   reduce  those sums over the chunks
 *
 * The two sides mirror each other. Tokens i read the state, tokens j write to it:
 *
 *           rows  U  u   columns  V  v   W   gives
 *   READ    i     C  dy  j <= i   B  x   S   dC_i = sum_j E_ij B_j + in_i S^T dy_i
 *   WRITE   j     B  x   i >= j   C  dy  Z   dB_j = sum_i E_ij C_i + out_j dt_j Z^T x_j, and dx
 *
 * with F_ij = dy_i . x_j, E_ij = F_ij L_ij dt_j and K_ij = E_ij (C_i . B_j). Both compute F and E;
 * each adds up K along its rows, which are K's rows on one side and its columns on the other. */
#include "kernels/cuda_ssd.h"
#include "kernels/cuda_ssd_plain.h"

namespace {

enum { CHUNK_THREADS = 256, WARPS = CHUNK_THREADS / 32 };

struct grad_ws {
  float2 *steps;
  bf16 *S, *Z; // states [b][chunks][nh]
  // Sums of a head for every token, like steps, each in two parts:
  float2 *read[2];  // what passes to token i: K's row and the part q of the state; dy_i . x_i
  float4 *write[2]; // K's column; the part p through the state; x_j . dXt_j
  float *meet;      // [b * chunks][nh][WARPS] parts of <Z, S>
  double2 *part;    // [b * chunks][nh] sums over a chunk's tokens for A (times dt) and D
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
  for (int half = 0; half < 2; half++) {
    cut.take(&w->read[half], tokens);
    cut.take(&w->write[half], tokens);
  }
  cut.take(&w->meet, chunks * WARPS);
  cut.take(&w->part, chunks);
  c->steps = w->steps;
  return cut.used;
}

// ---- one side of a chunk ----
// Two warps share 16 rows: of results [64][N], [64][P] each has one half of the columns, of those
// [64][64 tokens] every other 16 columns. Warps w and w + 4 run on the same scheduler, so they get
// rows that make up for each other in how many columns they meet.

__device__ inline int half_of_warp() {
  return thread_here() / 128;
}
__device__ inline int rows_of_warp() { // in units of 16
  int w = thread_here() / 32 % 4;
  return half_of_warp() ? 3 - w : w;
}
// The first of the thread's two rows; the other is 8 further.
__device__ inline int row_of_thread() {
  return 16 * rows_of_warp() + thread_here() % 32 / 4;
}

// The place of block (rows r, columns k) among the 10 of 16 x 16 where rows meet columns.
template <bool WRITE>
__device__ inline bool meets(int r, int k) {
  return WRITE ? k >= r : k <= r;
}
template <bool WRITE>
__device__ inline int block_at(int r, int k) {
  if (WRITE) r = 3 - r, k = 3 - k;
  return r * (r + 1) / 2 + k;
}

template <int NN>
struct chunk_memory {
  enum { STAGES = NN <= 128 ? 2 : 1 };
  bf16 U[SSD_TOKENS * NN];
  struct {
    bf16 W[SSD_ROWS * NN], u[SSD_TOKENS * SSD_ROWS], v[SSD_TOKENS * SSD_ROWS];
    float2 steps[SSD_TOKENS];
  } in[STAGES];
  // [block][half of its columns][lane]: results as the lanes of a warp have them
  float4 R[10][2][32], E[10][2][32];
  uint4 M[10][32]; // [block][lane]: operands
};

// A thread's sums over the columns of its rows, for one head.
struct row_sums {
  float K[2];     // K along the row
  float state[2]; // u . (W U), faded
  float own[2];   // READ: dy . x of the token; WRITE: x . dXt
  float meet;     // READ: <Z, S>
};

// A head's fades for the thread's rows.
struct row_fades {
  float cs[2], dt[2];
  float left[2]; // WRITE: what is left at the chunk's end
  float f[2];    // in_i, or out_j dt_j
};

template <bool WRITE>
__device__ inline row_fades fades(const float2 *steps) {
  row_fades r;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float2 step = steps[row_of_thread() + 8 * i];
    r.cs[i] = step.x, r.dt[i] = step.y;
    r.left[i] = WRITE ? fast_exp2(steps[SSD_TOKENS - 1].x - step.x) : 0.0f;
    r.f[i] = WRITE ? step.y * r.left[i] : fast_exp2(step.x);
  }
  return r;
}

// Slice i of a group's heads; a head has one or two.
struct slice_of_head {
  int h, p0, p; // head, first row of P, rows there are
  bool last;
};
__device__ inline slice_of_head slice_at(const ssd_call &c, int group, int i) {
  slice_of_head s;
  int slice = i & (c.slices - 1);
  s.h = group * c.heads + (i >> (c.slices - 1));
  s.p0 = slice * SSD_ROWS, s.p = min(SSD_ROWS, c.P - s.p0);
  s.last = slice == c.slices - 1;
  return s;
}

// Starts to load what slice i needs, where there is one.
template <int NN, bool WRITE>
__device__ inline void chunk_load(const ssd_call &c, const grad_ws &w, const ssd_chunk &a,
                                  int group, int i, chunk_memory<NN> &m) {
  if (i == c.heads * c.slices) return;
  auto &in = m.in[i % chunk_memory<NN>::STAGES];
  slice_of_head s = slice_at(c, group, i);
  int64_t col = (int64_t)s.h * c.P + s.p0, state = state_at(c, a.seq, a.k, s.h) + s.p0 * c.stateN;
  const bf16 *x = (const bf16 *)c.x + a.row * c.ld + col;
  const bf16 *dy = (const bf16 *)c.dy + a.row * c.ldy + col;
  load_tile<NN, CHUNK_THREADS>(in.W, (WRITE ? w.Z : w.S) + state, c.stateN, s.p, c.stateN, true);
  load_tile<SSD_ROWS, CHUNK_THREADS>(WRITE ? in.u : in.v, x, c.ld, a.n, s.p, c.wide_x);
  load_tile<SSD_ROWS, CHUNK_THREADS>(WRITE ? in.v : in.u, dy, c.ldy, a.n, s.p, c.wide_y);
  load_steps(in.steps, c.steps + steps_at(c, a, s.h));
  cp_async_commit();
}

__device__ inline void take(float (&x)[4], const float4 &y) {
  x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
}

// U and V of the group: U stays, R = U V^T goes to its place, E starts from 0.
template <int NN, bool WRITE>
__device__ inline void chunk_open(const ssd_call &c, const bf16 *U, const bf16 *V, int n,
                                  chunk_memory<NN> &m) {
  int r = rows_of_warp(), lane = thread_here() % 32;
  load_tile<NN, CHUNK_THREADS>(m.U, U, c.ld, n, c.N, c.wide_B);
  load_tile<NN, CHUNK_THREADS>(m.in[0].W, V, c.ld, n, c.N, c.wide_B);
  cp_async_commit();
  cp_async_wait();
  __syncthreads();
#pragma unroll 1
  for (int k = half_of_warp(); k < 4; k += 2) {
    if (!meets<WRITE>(r, k)) continue;
    float R[2][4];
    clear(R);
    add_xyt<NN>(R, m.U, 16 * r, m.in[0].W, 16 * k);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      m.R[block_at<WRITE>(r, k)][i][lane] = make_float4(R[i][0], R[i][1], R[i][2], R[i][3]);
      m.E[block_at<WRITE>(r, k)][i][lane] = make_float4(0, 0, 0, 0);
    }
  }
  __syncthreads();
}

// From F of 8 columns: E, the sums of K, and M = R L (instead of F).
template <bool WRITE>
__device__ inline void score_grads(float (&F)[4], const float4 &Rs, float4 &Es, const float2 *steps,
                                   const row_fades &r, int col, row_sums &sum) {
  int row = row_of_thread();
  float4 two = *(const float4 *)(steps + col);
  const float cs[2] = {two.x, two.z}, dt[2] = {two.y, two.w};
  float R[4], E[4];
  take(R, Rs);
  take(E, Es);
#pragma unroll
  for (int e = 0; e < 4; e++) {
    int late = row + e / 2 * 8, early = col + e % 2; // READ
    float L = WRITE ? fade(early >= late, cs[e % 2], r.cs[e / 2])
                    : fade(late >= early, r.cs[e / 2], cs[e % 2]);
    float Ldt = L * (WRITE ? r.dt[e / 2] : dt[e % 2]);
    E[e] += F[e] * Ldt;
    if (late != early)
      sum.K[e / 2] += F[e] * (R[e] * Ldt);
    else if (!WRITE)
      sum.own[e / 2] += F[e];
    F[e] = R[e] * L;
  }
  Es = make_float4(E[0], E[1], E[2], E[3]);
}

// F of the warp's blocks and what follows from it; M: WRITE alone.
template <int NN, bool WRITE>
__device__ inline void chunk_scores(chunk_memory<NN> &m, int i, const row_fades &f, row_sums &sum) {
  auto &in = m.in[i % chunk_memory<NN>::STAGES];
  int r = rows_of_warp(), lane = thread_here() % 32;
#pragma unroll 1
  for (int k = half_of_warp(); k < 4; k += 2) {
    if (!meets<WRITE>(r, k)) continue;
    int at = block_at<WRITE>(r, k), col = 16 * k + lane % 4 * 2;
    float F[2][4];
    clear(F);
    add_xyt<SSD_ROWS>(F, in.u, 16 * r, in.v, 16 * k);
#pragma unroll
    for (int n = 0; n < 2; n++)
      score_grads<WRITE>(F[n], m.R[at][n][lane], m.E[at][n][lane], in.steps, f, col + 8 * n, sum);
    if (WRITE) {
      uint32_t M[4];
      as_operand(M, F[0], F[1]);
      m.M[at][lane] = make_uint4(M[0], M[1], M[2], M[3]);
    }
  }
}

// du += (f u) W for the warp's part.
template <int NN>
__device__ inline void add_through_state(float (&du)[NN / 16][4], const chunk_memory<NN> &m, int i,
                                         const row_fades &r) {
  const auto &in = m.in[i % chunk_memory<NN>::STAGES];
  uint32_t us = rows_address<SSD_ROWS>(in.u, 16 * rows_of_warp());
#pragma unroll 1
  for (int p = 0; p < 4; p++) {
    uint32_t u[4];
    ldmatrix(u, further<SSD_ROWS>(us, 0, 2 * p));
#pragma unroll
    for (int e = 0; e < 4; e++) u[e] = scaled(u[e], r.f[e % 2], r.f[e % 2]);
    add_py<NN>(du, u, in.W, 16 * p, half_of_warp() * (NN / 16));
  }
}

// u . y for the warp's part; y: 8 NB columns from 8 n0 on.
template <int NB>
__device__ inline void add_dots(float (&sum)[2], const bf16 *u, const float (&y)[NB][4], int n0) {
#pragma unroll
  for (int i = 0; i < NB; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t two = tile_pair<SSD_ROWS>(u, row_of_thread() + 8 * half, n0 + i);
      sum[half] += low(two) * y[i][2 * half];
      sum[half] += high(two) * y[i][2 * half + 1];
    }
}

// WRITE: from y = Z B_j to dXt, dx and x . dXt, for the warp's part of the slice.
template <int NN>
__device__ inline void chunk_inputs(const ssd_call &c, const grad_call &o, const ssd_chunk &a,
                                    const slice_of_head &s, chunk_memory<NN> &m, int i,
                                    const row_fades &f, float (&y)[4][4], row_sums &sum) {
  auto &in = m.in[i % chunk_memory<NN>::STAGES];
  int r = rows_of_warp(), n0 = 4 * half_of_warp();
  float D = to_float(((const bf16 *)c.D)[s.h]);
  scale_rows(y, f.left);
#pragma unroll 1
  for (int k = r; k < 4; k++) {
    uint4 four = m.M[block_at<true>(r, k)][threadIdx.x % 32];
    const uint32_t M[4] = {four.x, four.y, four.z, four.w};
    add_py<SSD_ROWS>(y, M, in.v, 16 * k, n0);
  }
  add_dots(sum.own, in.u, y, n0);
#pragma unroll
  for (int n = 0; n < 4; n++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t dy = tile_pair<SSD_ROWS>(in.v, row_of_thread() + 8 * half, n0 + n);
      y[n][2 * half] = f.dt[half] * y[n][2 * half] + D * low(dy);
      y[n][2 * half + 1] = f.dt[half] * y[n][2 * half + 1] + D * high(dy);
    }
  store_rows<SSD_ROWS>(o.dx + a.row * c.ld + (int64_t)s.h * c.P + s.p0, c.ld, in.u, y, 16 * r, n0,
                       a.n, s.p, o.wide_dx);
}

// READ: <Z, S> of the slice; S is in shared memory, the other side's Z comes from memory.
template <int NN>
__device__ inline void chunk_meet(const ssd_call &c, const grad_ws &w, const ssd_chunk &a,
                                  const slice_of_head &s, const bf16 *S, row_sums &sum) {
  const bf16 *Z = w.Z + state_at(c, a.seq, a.k, s.h) + (int64_t)s.p0 * c.stateN;
#pragma unroll 4
  for (int i = 0; i < SSD_ROWS * NN / 8 / CHUNK_THREADS; i++) {
    int at = i * CHUNK_THREADS + thread_here(), row = at / (NN / 8), chunk = at % (NN / 8);
    if (row >= s.p || chunk * 8 >= c.stateN) continue;
    uint4 z = *(const uint4 *)(Z + row * c.stateN + chunk * 8);
    uint4 y = *(const uint4 *)(S + tile_at<NN>(row, chunk));
    const uint32_t zs[4] = {z.x, z.y, z.z, z.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
      sum.meet += low(zs[e]) * low(ys[e]);
      sum.meet += high(zs[e]) * high(ys[e]);
    }
  }
}

// The sums of a head to memory, for `finish`.
template <bool WRITE>
__device__ inline void put_sums(const ssd_call &c, const grad_ws &w, const ssd_chunk &a, int h,
                                row_sums &sum) {
  int lane = thread_here() % 32, half = half_of_warp();
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
      sum.K[i] += __shfl_xor_sync(~0u, sum.K[i], d);
      sum.state[i] += __shfl_xor_sync(~0u, sum.state[i], d);
      sum.own[i] += __shfl_xor_sync(~0u, sum.own[i], d);
    }
  int64_t at = steps_at(c, a, h) + row_of_thread();
  float4 *write = half ? w.write[1] : w.write[0];
  float2 *read = half ? w.read[1] : w.read[0];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (lane % 4 != 0) break;
    if (WRITE)
      write[at + 8 * i] = make_float4(sum.K[i], sum.state[i], sum.own[i], 0);
    else
      read[at + 8 * i] = make_float2(sum.K[i] + sum.state[i], sum.own[i]);
  }
  if constexpr (!WRITE) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum.meet += __shfl_xor_sync(~0u, sum.meet, d);
    if (lane == 0)
      w.meet[(((int64_t)a.seq * c.chunks + a.k) * c.nh + h) * WARPS + threadIdx.x / 32] = sum.meet;
  }
}

// One slice of a head: its part of du (dC or dB), of the sums, and dx.
template <int NN, bool WRITE>
__device__ inline void chunk_slice(const ssd_call &c, const grad_call &o, const ssd_chunk &a,
                                   int group, int i, chunk_memory<NN> &m, float (&du)[NN / 16][4],
                                   row_sums &sum) {
  auto &in = m.in[i % chunk_memory<NN>::STAGES];
  slice_of_head s = slice_at(c, group, i);
  int r = rows_of_warp(), n0 = 4 * half_of_warp();
  // The fades are taken anew for each product, and the barriers make the compiler do so: with 256
  // columns no register is left to keep them in.
  chunk_scores<NN, WRITE>(m, i, fades<WRITE>(in.steps), sum);
  __syncwarp();
  add_through_state<NN>(du, m, i, fades<WRITE>(in.steps));
  if (WRITE)
    pair_sync(1 + r); // M of the rows is there, and dx may take the place of x
  else
    __syncwarp();
  row_fades f = fades<WRITE>(in.steps);
  float y[4][4], dot[2] = {};
  clear(y);
  add_xyt<NN>(y, m.U, 16 * r, in.W, 8 * n0);
  add_dots(dot, in.u, y, n0);
  sum.state[0] += f.f[0] * dot[0], sum.state[1] += f.f[1] * dot[1];
  if (WRITE)
    chunk_inputs<NN>(c, o, a, s, m, i, f, y, sum);
  else if (fast_exp2(in.steps[SSD_TOKENS - 1].x) > 0)
    chunk_meet<NN>(c, o.w, a, s, in.W, sum);
  if (!s.last) return;
  put_sums<WRITE>(c, o.w, a, s.h, sum);
  sum = {};
}

// After all heads: du += E V.
template <int NN, bool WRITE>
__device__ inline void chunk_close(const ssd_call &c, const bf16 *V, int n, chunk_memory<NN> &m,
                                   float (&du)[NN / 16][4]) {
  int r = rows_of_warp(), lane = thread_here() % 32;
  __syncthreads();
  load_tile<NN, CHUNK_THREADS>(m.in[0].W, V, c.ld, n, c.N, c.wide_B);
  cp_async_commit();
  cp_async_wait();
  __syncthreads();
#pragma unroll 1
  for (int k = 0; k < 4; k++) {
    if (!meets<WRITE>(r, k)) continue;
    float E[2][4];
    uint32_t p[4];
    take(E[0], m.E[block_at<WRITE>(r, k)][0][lane]);
    take(E[1], m.E[block_at<WRITE>(r, k)][1][lane]);
    as_operand(p, E[0], E[1]);
    add_py<NN>(du, p, m.in[0].W, 16 * k, half_of_warp() * (NN / 16));
  }
}

template <int NN, bool WRITE>
__device__ inline void chunk_side(const ssd_call &c, const grad_call &o, const ssd_chunk &a,
                                  int group) {
  extern __shared__ __align__(128) unsigned char ssd_shared[];
  chunk_memory<NN> &m = *(chunk_memory<NN> *)ssd_shared;
  constexpr int STAGES = chunk_memory<NN>::STAGES;
  int64_t at = a.row * c.ld + (int64_t)group * c.N;
  const void *V = WRITE ? c.C : c.B;
  chunk_open<NN, WRITE>(c, (const bf16 *)(WRITE ? c.B : c.C) + at, (const bf16 *)V + at, a.n, m);
  float du[NN / 16][4];
  clear(du);
  row_sums sum = {};
  chunk_load<NN, WRITE>(c, o.w, a, group, 0, m);
#pragma unroll 1
  for (int i = 0; i < c.heads * c.slices; i++) {
    cp_async_wait();
    __syncthreads();
    if (STAGES == 2) chunk_load<NN, WRITE>(c, o.w, a, group, i + 1, m);
    chunk_slice<NN, WRITE>(c, o, a, group, i, m, du, sum);
    if (STAGES == 2) continue;
    __syncthreads();
    chunk_load<NN, WRITE>(c, o.w, a, group, i + 1, m);
  }
  chunk_close<NN, WRITE>(c, (const bf16 *)V + at, a.n, m, du);
  store_rows<NN>((WRITE ? o.dB : o.dC) + at, c.ld, m.U, du, 16 * rows_of_warp(),
                 half_of_warp() * (NN / 16), a.n, c.N, o.wide_dB);
}

// The two sides of a chunk are neighbours, so that what both read may be in the L2 cache.
template <int NN>
__global__ void __launch_bounds__(CHUNK_THREADS, 2) chunk(ssd_call c, grad_call o) {
  int i = (int)blockIdx.x, group = i / 2 % c.G;
  ssd_chunk a = chunk_at(c, i / 2 / c.G, SSD_TOKENS);
  if (i % 2 == 0)
    chunk_side<NN, false>(c, o, a, group);
  else
    chunk_side<NN, true>(c, o, a, group);
}

template <int NN>
void launch_chunk(sk_stream *s, const ssd_call &c, const grad_call &o) {
  size_t bytes = sizeof(chunk_memory<NN>);
  int64_t blocks = (int64_t)c.b * c.chunks * c.G * 2;
  SK_CHECK(blocks < INT_MAX, "ssd_grad: %lld blocks", (long long)blocks);
  ssd_memory(chunk<NN>, bytes);
  chunk<NN><<<(unsigned)blocks, CHUNK_THREADS, bytes, sk_cuda_stream(s)>>>(c, o);
  SK_CUDA(cudaGetLastError());
}

// ---- finish ----

__device__ inline float2 both(float2 *const (&x)[2], int64_t i) {
  return make_float2(x[0][i].x + x[1][i].x, x[0][i].y + x[1][i].y);
}
__device__ inline float4 both(float4 *const (&x)[2], int64_t i) {
  float4 a = x[0][i], b = x[1][i];
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, 0);
}

// For a token k: da_k = sum_{i >= k} (row_i - column_i + q_i) + sum_{j < k} p_j + keep <Z, S>.
// K without its diagonal enters rows and columns alike, so the sum over them is that over the
// rectangle i >= k > j. A warp per (chunk, head), two tokens a lane, sums in double.
__global__ void finish(ssd_call c, grad_ws w, float *ddt) {
  int i = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
  if (i >= c.b * c.chunks * c.nh) return;
  int h = i % c.nh;
  ssd_chunk a = chunk_at(c, i / c.nh, SSD_TOKENS);
  double A = -exp((double)to_float(((const bf16 *)c.A_log)[h]));
  int64_t at = steps_at(c, a, h);
  float2 read[2] = {both(w.read, at + 2 * lane), both(w.read, at + 2 * lane + 1)};
  float4 write[2] = {both(w.write, at + 2 * lane), both(w.write, at + 2 * lane + 1)};
  float keep = fast_exp2(c.steps[at + SSD_TOKENS - 1].x);
  double later[2] = {(double)read[0].x - (double)write[0].x,
                     (double)read[1].x - (double)write[1].x};
  double from = later[0] + later[1], until = (double)write[0].y + (double)write[1].y, own = until;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    double after = __shfl_down_sync(~0u, from, d), before = __shfl_up_sync(~0u, until, d);
    if (lane + d < 32) from += after;
    if (lane >= d) until += before;
  }
  until -= own;
  double X = 0, dA = 0, dD = 0;
  for (int k = 0; k < WARPS; k++) X += (double)w.meet[(int64_t)i * WARPS + k];
  X *= (double)keep;
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
    dD += (double)read[e].y;
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    dA += __shfl_xor_sync(~0u, dA, d);
    dD += __shfl_xor_sync(~0u, dD, d);
  }
  if (lane == 0) w.part[i] = make_double2(dA, dD);
}

// dA_log += A times the sums, dD += the sums; part[tasks][nh]. A block per head.
__global__ void reduce(ssd_call c, sk_dtype act, float *dA_log, float *dD, const double2 *part) {
  int h = (int)blockIdx.x;
  double sum[2] = {};
  for (int i = (int)threadIdx.x; i < c.b * c.chunks; i += (int)blockDim.x) {
    double2 one = part[(int64_t)i * c.nh + h];
    sum[0] += one.x, sum[1] += one.y;
  }
  double A = block_sum(sum[0]), D = block_sum(sum[1]);
  if (threadIdx.x > 0) return;
  float A_log = act == SK_F32 ? ((const float *)c.A_log)[h] : to_float(((const bf16 *)c.A_log)[h]);
  dA_log[h] = (float)(dA_log[h] - exp((double)A_log) * A);
  dD[h] = (float)(dD[h] + D);
}

void launch_reduce(sk_stream *s, const ssd_call &c, float *dA_log, float *dD, const double2 *part) {
  reduce<<<c.nh, THREADS, 0, sk_cuda_stream(s)>>>(c, sk_cuda_act(s), dA_log, dD, part);
  SK_CUDA(cudaGetLastError());
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

extern "C" void sk_cuda_ssd_grad(sk_stream *s, const sk_ssd_dims *d, void *dx, void *dB, void *dC,
                                 float *ddt, float *dA_log, float *dD, float *dS0, const void *dy,
                                 const void *x, const void *B, const void *C, const float *dt,
                                 const void *A_log, const void *D, const int32_t *start,
                                 const float *S0, const float *dSf, void *ws) {
  bool fast = ssd_fast(sk_cuda_act(s), d);
  ssd_call c = ssd_describe(d, fast ? SSD_TOKENS : SSD_PLAIN);
  c.x = x, c.B = B, c.C = C, c.dy = dy, c.dt = dt, c.A_log = A_log, c.D = D, c.start = start;
  if (!fast) {
    plain_grads g = {dx, dB, dC, ddt};
    auto back = sk_cuda_act(s) == SK_F32 ? plain_backward<float> : plain_backward<bf16>;
    launch_reduce(s, c, dA_log, dD, back(s, c, g, dS0, S0, dSf, ws));
    return;
  }
  grad_call o = {};
  cut_grad(&c, ws, &o.w);
  o.dx = (bf16 *)dx, o.dB = (bf16 *)dB, o.dC = (bf16 *)dC;
  c.wide_x = ssd_wide({x}, d->ld, c.P), c.wide_B = ssd_wide({B, C}, d->ld, c.N);
  c.wide_y = ssd_wide({dy}, d->ldy, c.P);
  o.wide_dx = ssd_wide({dx}, d->ld, c.P), o.wide_dB = ssd_wide({dB, dC}, d->ld, c.N);
  ssd_walk S = {(const bf16 *)x, (const bf16 *)B, c.ld, c.wide_x, false, S0, o.w.S, NULL};
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
  launch_reduce(s, c, dA_log, dD, o.w.part);
}

extern "C" void sk_cuda_ssd_state_grad(sk_stream *s, const sk_ssd_dims *d, float *dS0,
                                       const void *dy, const void *C, const float *dt,
                                       const void *A_log, const int32_t *start, void *ws) {
  bool fast = ssd_fast(sk_cuda_act(s), d);
  ssd_call c = ssd_describe(d, fast ? SSD_TOKENS : SSD_PLAIN);
  c.dy = dy, c.C = C, c.dt = dt, c.A_log = A_log, c.start = start;
  if (!fast) {
    auto back = sk_cuda_act(s) == SK_F32 ? plain_state_grads<float> : plain_state_grads<bf16>;
    back(s, c, dS0, ws);
    return;
  }
  grad_ws w;
  cut_grad(&c, ws, &w);
  c.wide_y = ssd_wide({dy}, d->ldy, c.P), c.wide_B = ssd_wide({C}, d->ld, c.N);
  ssd_walk Z = backward_walk(c, NULL, NULL, dS0);
  sk_cuda_ssd_steps(s, &c);
  sk_cuda_ssd_walk(s, &c, &Z, NULL);
}
