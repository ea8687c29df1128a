/* cuda_ssd.cu: the SSD recurrence in chunks, forward (section 3.3; cuda_ssd.h has the plan).
 *
 *   prepare  dt and cs of every token and head
 *   walk     the state before every chunk or at the end, one block per 64 rows and 128 columns of a
 *            state: for the backward, for pieces of a sequence, and for parts of it below
 *   fused    y (cuda_ssd_fused.cu) */
#include "kernels/cuda_ssd.h"
#include "kernels/cuda_ssd_plain.h"

namespace {

// Base-2 exponent of what forgets everything: 2^x is 0 for it and anything below.
constexpr double NOTHING = -256;

// ---- steps ----

// A warp per (sequence, chunk, head), two tokens a lane. Sums in double, each then rounded once.
__global__ void prepare(ssd_call c) {
  int i = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
  if (i >= c.b * c.tiles * c.nh) return;
  int h = i % c.nh;
  c.chunks = c.tiles; // also those without tokens
  ssd_chunk a = chunk_at(c, i / c.nh, SSD_TOKENS);
  double A = -exp((double)to_float(((const bf16 *)c.A_log)[h])) * 1.4426950408889634, cs[2];
  float dt[2];
#pragma unroll
  for (int e = 0; e < 2; e++) {
    int t = 2 * lane + e;
    bool here = t < a.n;
    dt[e] = here ? c.dt[(a.row + t) * c.nh + h] : 0.0f;
    bool begins = here && c.start[a.row + t] == a.first + t;
    cs[e] = begins ? NOTHING : fmax(dt[e] * A, NOTHING);
  }
  double sum = cs[0] + cs[1];
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    double before = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += before;
  }
  float4 two = make_float4((float)(sum - cs[1]), dt[0], (float)sum, dt[1]);
  *(float4 *)(c.steps + steps_at(c, a, h) + 2 * lane) = two;
}

// ---- walk ----

// Waits for all loads but those of the last N commits.
template <int N>
__device__ inline void cp_async_wait_but(void) {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Narrow parts are for few blocks, which wait for memory unless two loads are under way.
template <int NW>
struct walk_memory {
  enum { STAGES = NW == 64 ? 3 : 2 };
  struct {
    bf16 u[SSD_TOKENS * SSD_ROWS], v[SSD_TOKENS * NW]; // v in panels
    float2 steps[SSD_TOKENS], none[SSD_TOKENS];        // none: the rest of 1024 bytes
  } in[STAGES];
  bf16 turn[SSD_ROWS * NW];
};

// A block's part of a state: rows p0 .. of P, columns n0 .. of N, of one head.
struct walk_part {
  int seq, h, group, p0, n0, p, n; // p, n: rows and columns there are
};

template <int NW>
__device__ inline walk_part part_of_block(const ssd_call &c) {
  int columns = (c.N + NW - 1) / NW, i = (int)blockIdx.x;
  walk_part a;
  a.n0 = i % columns * NW, i /= columns;
  a.p0 = i % c.slices * SSD_ROWS, i /= c.slices;
  a.h = i % c.nh, a.seq = i / c.nh, a.group = a.h / c.heads;
  a.p = min(SSD_ROWS, c.P - a.p0), a.n = min(NW, c.N - a.n0);
  return a;
}

// f(the element's place in [P][N], c) for the elements of the block's part that a thread has.
template <int NW, class F>
__device__ inline void each_element(const ssd_call &c, const walk_part &a, float (&S)[NW / 8][4],
                                    F f) {
  int lane = thread_here() % 32, row = thread_here() / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < NW / 8; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int p = row + e / 2 * 8, n = 8 * i + lane % 4 * 2 + e % 2;
      if (p < a.p && n < a.n) f((int64_t)(a.p0 + p) * c.N + a.n0 + n, S[i][e]);
    }
}

template <int NW>
__device__ inline void walk_load(const ssd_call &c, const ssd_walk &w, const walk_part &a, int k,
                                 walk_memory<NW> &m, int turn) {
  auto &in = m.in[turn];
  ssd_chunk t = chunk_of(c, a.seq, k, SSD_TOKENS);
  load_panels<64, 64, SSD_THREADS>(in.u, w.u + t.row * w.ldu + (int64_t)a.h * c.P + a.p0, w.ldu,
                                   t.n, a.p, w.wide_u);
  load_panels<NW, 64, SSD_THREADS>(in.v, w.v + t.row * c.ld + (int64_t)a.group * c.N + a.n0, c.ld,
                                   t.n, a.n, c.wide_B);
  load_steps(in.steps, c.steps + steps_at(c, t, a.h));
}

// A warp starts to load its rows of its part of a state to `turn`.
template <int NW>
__device__ inline void load_other(const ssd_call &c, const walk_part &a, const bf16 *S,
                                  bf16 *turn) {
  int lane = thread_here() % 32, chunk = lane % (NW / 8);
#pragma unroll
  for (int i = 0; i < NW / 16; i++) {
    int row = warp_here() * 16 + (32 * i + lane) / (NW / 8);
    bool here = row < a.p && a.n0 + 8 * chunk < c.stateN;
    cp_async16(turn + tile_at<NW>(row, chunk), here ? S + row * c.stateN + 8 * chunk : S, here);
  }
}

// <Z, S> over the warp's rows; S is in `turn`.
template <int NW>
__device__ inline float meet(const float (&Z)[NW / 8][4], const bf16 *turn) {
  uint32_t at = rows_address<NW>(turn, 16 * warp_here()), p[4];
  float sum = 0;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < NW / 8; i++) {
    if (i % 2 == 0) ldmatrix(p, further<NW>(at, 0, i));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t pair = p[i % 2 * 2 + half];
      sum += low(pair) * Z[i][2 * half];
      sum += high(pair) * Z[i][2 * half + 1];
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
  return sum;
}

// S = keep S + sum over the tokens of f_j u_j v_j^T; f: dt and what is left at the chunk's end, or
// backwards what is left of the chunk's begin.
template <int NW>
__device__ inline void walk_step(float (&S)[NW / 8][4], const walk_memory<NW> &m, int turn,
                                 bool back) {
  const auto &in = m.in[turn];
  int warp = thread_here() / 32, t = thread_here() % 4;
  float end = in.steps[SSD_TOKENS - 1].x, keep = fast_exp2(end);
  uint32_t us = columns_address<SSD_ROWS>(in.u, 0);
  uint64_t vs = wg_tile(shared_address(in.v), PANEL * 2);
  uint32_t p[SSD_TOKENS / 16][4];
#pragma unroll
  for (int k = 0; k < SSD_TOKENS / 16; k++) {
    ldmatrix_trans(p[k], further<SSD_ROWS>(us, 16 * k, 2 * warp));
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float4 two = *(const float4 *)(in.steps + 16 * k + 8 * half + 2 * t);
      float f0 = back ? fast_exp2(two.x) : two.y * fast_exp2(end - two.x);
      float f1 = back ? fast_exp2(two.z) : two.w * fast_exp2(end - two.z);
      p[k][2 * half] = scaled(p[k][2 * half], f0, f1);
      p[k][2 * half + 1] = scaled(p[k][2 * half + 1], f0, f1);
    }
  }
  scale_rows(S, {keep, keep});
  wg_begin();
#pragma unroll
  for (int k = 0; k < SSD_TOKENS / 16; k++) wg_mma_rows(S, p[k], vs + k * 16 * 128 / 16);
  wg_commit();
  wg_wait<0>();
  wg_done(S);
}

template <int NW>
__global__ void __launch_bounds__(SSD_THREADS, 3) walk(ssd_call c, ssd_walk w) {
  extern __shared__ __align__(1024) unsigned char ssd_shared[];
  walk_memory<NW> &m = *(walk_memory<NW> *)ssd_shared;
  walk_part a = part_of_block<NW>(c);
  int64_t at = ((int64_t)a.seq * c.nh + a.h) * c.P * c.N;
  int64_t states = (int64_t)a.seq * ((c.chunks + SSD_PER - 1) / SSD_PER) * c.nh + a.h;
  int64_t place = (int64_t)a.p0 * c.stateN + a.n0;
  int part = (int)blockIdx.x % (c.slices * ((c.N + NW - 1) / NW)) * 4 + warp_here();
  int len = ssd_segment(c, w.segments), from = (int)blockIdx.y * len;
  int chunks = min(len, c.chunks - from);
  float S[NW / 8][4];
  clear(S);
  if (w.in && from == 0) each_element<NW>(c, a, S, [&](int64_t i, float &s) { s = w.in[at + i]; });
  constexpr int STAGES = walk_memory<NW>::STAGES;
  auto at_step = [&](int i) { return w.back ? chunks - 1 - i : from + i; };
  if (w.meet)
    load_other<NW>(
        c, a, w.S + (states + (int64_t)((chunks - 1) / SSD_PER) * c.nh) * c.state + place, m.turn);
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < chunks) walk_load(c, w, a, at_step(i), m, i);
    cp_async_commit();
  }
  for (int i = 0, stage = 0; i < chunks; i++, stage = stage + 1 < STAGES ? stage + 1 : 0) {
    int k = at_step(i), ahead = i + STAGES - 1;
    if (i < 2)
      cp_async_wait(); // for S, which may be needed twice in a row
    else
      cp_async_wait_but<STAGES - 2>();
    wg_publish();
    __syncthreads();
    if (ahead < chunks) walk_load(c, w, a, at_step(ahead), m, (stage + STAGES - 1) % STAGES);
    if (w.states && (w.back ? k % SSD_PER == SSD_PER - 1 || i == 0 : k % SSD_PER == 0)) {
      int64_t slot = states + (int64_t)(k / SSD_PER) * c.nh;
      if (w.meet) {
        float sum = meet<NW>(S, m.turn);
        if (thread_here() % 32 == 0) w.meet[slot * SSD_PARTS + part] = sum;
      }
      store_rows<NW>(w.states + slot * c.state + place, c.stateN, m.turn, S, 16 * warp_here(), 0,
                     a.p, min(NW, c.stateN - a.n0), true);
      if (w.meet && k >= SSD_PER)
        load_other<NW>(c, a, w.S + (slot - c.nh) * c.state + place, m.turn);
    }
    cp_async_commit();
    if (i + 1 < chunks || w.out) walk_step<NW>(S, m, stage, w.back);
  }
  if (!w.out) return;
  at += (int64_t)blockIdx.y * c.b * c.nh * c.P * c.N;
  each_element<NW>(c, a, S, [&](int64_t i, float &s) { w.out[at + i] = s; });
}

template <int NW>
int launch_walk(sk_stream *s, const ssd_call &c, const ssd_walk &w) {
  size_t bytes = sizeof(walk_memory<NW>);
  int parts = c.slices * (int)up(c.N, NW);
  dim3 grid((unsigned)(c.b * c.nh * parts), (unsigned)w.walked);
  ssd_memory(walk<NW>, bytes);
  walk<NW><<<grid, SSD_THREADS, bytes, sk_cuda_stream(s)>>>(c, w);
  SK_CUDA(cudaGetLastError());
  return parts * SSD_THREADS / 32;
}

// ---- what a piece keeps ----

// keep[b,nh] = e^(its total log decay), 0 when a document begins in it. A block each.
template <class T>
__global__ void total_decay(ssd_call c, float *keep) {
  int seq = (int)blockIdx.x / c.nh, h = (int)blockIdx.x % c.nh;
  const float *dt = c.dt + (int64_t)seq * c.T * c.nh + h;
  double sum = 0;
  for (int t = (int)threadIdx.x; t < c.T; t += (int)blockDim.x) sum += dt[(int64_t)t * c.nh];
  sum = block_sum(sum);
  if (threadIdx.x > 0) return;
  double A = -exp((double)to_float(((const T *)c.A_log)[h]));
  keep[blockIdx.x] = c.start[(int64_t)(seq + 1) * c.T - 1] < 0 ? (float)exp(sum * A) : 0.0f;
}

template <class T>
void launch_total_decay(sk_stream *s, const ssd_call &c, float *keep) {
  total_decay<T><<<c.b * c.nh, THREADS, 0, sk_cuda_stream(s)>>>(c, keep);
  SK_CUDA(cudaGetLastError());
}

} // namespace

// ---- for the backward too ----

void sk_cuda_ssd_steps(sk_stream *s, const ssd_call *c) {
  int64_t warps = (int64_t)c->b * c->tiles * c->nh;
  prepare<<<(unsigned)up(warps, THREADS / 32), THREADS, 0, sk_cuda_stream(s)>>>(*c);
  SK_CUDA(cudaGetLastError());
}

int sk_cuda_ssd_walk(sk_stream *s, const ssd_call *c, const ssd_walk *w) {
  // Narrow parts read u more often; they are for few sequences and heads.
  int64_t wide = (int64_t)c->b * c->nh * c->slices * up(c->N, 128) * w->walked;
  bool narrow = c->N <= 64 || wide < 2 * sk_cuda_sms(s);
  return narrow ? launch_walk<64>(s, *c, *w) : launch_walk<128>(s, *c, *w);
}

// ---- entries ----

namespace {

struct forward_ws {
  float2 *steps;
  float *states;
};

size_t cut_forward(ssd_call *c, void *ws, forward_ws *w) {
  ssd_cutter cut = {(char *)ws, 0};
  cut.take(&w->steps, (int64_t)c->b * c->nh * c->chunks * SSD_TOKENS);
  cut.take(&w->states, sk_cuda_ssd_fused_ws(c));
  c->steps = w->steps;
  return cut.used;
}

} // namespace

extern "C" size_t sk_cuda_ssd_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *d) {
  if (!ssd_fast(dev, act, d)) return ssd_plain_ws(d);
  ssd_call c = ssd_describe(d, SSD_TOKENS);
  forward_ws w;
  return cut_forward(&c, NULL, &w);
}

extern "C" void sk_cuda_ssd(sk_stream *s, const sk_ssd_dims *d, void *y, float *Sf, const void *x,
                            const void *B, const void *C, const float *dt, const void *A_log,
                            const void *D, const int32_t *start, const float *S0, void *ws) {
  bool fast = ssd_fast(sk_cuda_device(s), sk_cuda_act(s), d);
  ssd_call c = ssd_describe(d, fast ? SSD_TOKENS : SSD_PLAIN);
  c.x = x, c.B = B, c.C = C, c.dt = dt, c.A_log = A_log, c.D = D, c.start = start;
  if (!fast) {
    if (sk_cuda_act(s) == SK_F32)
      plain_forward<float>(s, c, (float *)y, Sf, S0, ws);
    else
      plain_forward<bf16>(s, c, (bf16 *)y, Sf, S0, ws);
    return;
  }
  forward_ws f;
  cut_forward(&c, ws, &f);
  c.wide_x = ssd_wide({x}, d->ld, c.P), c.wide_B = ssd_wide({B, C}, d->ld, c.N);
  c.wide_y = ssd_wide({y}, d->ldy, c.P);
  sk_cuda_ssd_steps(s, &c);
  sk_cuda_ssd_fused(s, &c, (bf16 *)y, Sf, S0, f.states);
}

extern "C" void sk_cuda_ssd_state(sk_stream *s, const sk_ssd_dims *d, float *Sf, float *keep,
                                  const void *x, const void *B, const float *dt, const void *A_log,
                                  const int32_t *start, void *ws) {
  bool fast = ssd_fast(sk_cuda_device(s), sk_cuda_act(s), d);
  ssd_call c = ssd_describe(d, fast ? SSD_TOKENS : SSD_PLAIN);
  c.x = x, c.B = B, c.dt = dt, c.A_log = A_log, c.start = start;
  if (sk_cuda_act(s) == SK_F32) {
    launch_total_decay<float>(s, c, keep);
    plain_states<float>(s, c, Sf, NULL, ws);
    return;
  }
  launch_total_decay<bf16>(s, c, keep);
  if (!fast) {
    plain_states<bf16>(s, c, Sf, NULL, ws);
    return;
  }
  forward_ws f;
  cut_forward(&c, ws, &f);
  c.wide_x = ssd_wide({x}, d->ld, c.P), c.wide_B = ssd_wide({B}, d->ld, c.N);
  ssd_walk w = {(const bf16 *)x, (const bf16 *)B, c.ld, c.wide_x, false, 1, 1, NULL, NULL, Sf};
  sk_cuda_ssd_steps(s, &c);
  sk_cuda_ssd_walk(s, &c, &w);
}
