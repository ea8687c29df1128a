/* cuda_ssd_fused.cu: the SSD's forward in one kernel (section 3.3), by warpgroups, for the fast
 * path when there are enough sequences and heads.
 *
 * A block walks through a sequence, 64 tokens at a time, with two slices: 64 rows of P of a head
 * and all N columns of their states, one to a warpgroup, in its registers, fp32 from the first
 * token to the last. Both slices are of one group, so they share B and C. Everything is computed
 * transposed,
 *
 *   y^T = (S C^T) in + x^T M^T,  M = (C B^T) L dt,   then S = keep S + (x out dt)^T B
 *
 * so that states and x come from registers and no state ever goes through shared memory. M is made
 * by both warpgroups, half of its columns each. */
#include "kernels/cuda_ssd.h"

namespace {

enum { FUSED_THREADS = 256 };

template <int NN>
struct fused_memory {
  struct {
    bf16 C[64 * NN], B[64 * NN], x[2][PANEL];
    float2 steps[2][SSD_TOKENS];
  } in[2];
  bf16 M[2][PANEL], y[2][PANEL];
};

// A warpgroup's part of a state: 64 rows, of which p are there.
struct fused_slice {
  int h, p0, p;
  bool here; // else it is the other's once more
};

struct fused_call {
  const float *S0;
  float *Sf;
  bf16 *y;
  int segments;
  const float *states; // before the segments but the first, [segments - 1][b,nh,P,N]
};

__device__ inline fused_slice slice_at(const ssd_call &c, int group, int i) {
  fused_slice s;
  int all = c.heads * c.slices;
  s.here = i < all, i = min(i, all - 1);
  s.h = group * c.heads + i / c.slices, s.p0 = i % c.slices * SSD_ROWS;
  s.p = min(SSD_ROWS, c.P - s.p0);
  return s;
}

template <int NN>
__device__ inline void fused_load(const ssd_call &c, const ssd_chunk &a, int group,
                                  const fused_slice (&s)[2], fused_memory<NN> &m, int turn) {
  auto &in = m.in[turn];
  int64_t at = a.row * c.ld + (int64_t)group * c.N;
  load_panels<NN, 64, FUSED_THREADS>(in.C, (const bf16 *)c.C + at, c.ld, a.n, c.N, c.wide_B);
  load_panels<NN, 64, FUSED_THREADS>(in.B, (const bf16 *)c.B + at, c.ld, a.n, c.N, c.wide_B);
#pragma unroll
  for (int w = 0; w < 2; w++) {
    load_panels<64, 64, FUSED_THREADS>(
        in.x[w], (const bf16 *)c.x + a.row * c.ld + (int64_t)s[w].h * c.P + s[w].p0, c.ld, a.n,
        s[w].p, c.wide_x);
    load_steps(in.steps[w], c.steps + steps_at(c, a, s[w].h));
  }
}

// f(the element's place in [P][N], it) for the elements of a slice's state that a thread has.
template <int NN, class F>
__device__ inline void each_element(const ssd_call &c, const fused_slice &s, sums_of<NN> &S, F f) {
  int lane = thread_here() % 32, row = 16 * warp_here() + lane / 4;
#pragma unroll
  for (int i = 0; i < NN / 8; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int p = row + e / 2 * 8, n = 8 * i + lane % 4 * 2 + e % 2;
      if (p < s.p && n < c.N) f((int64_t)(s.p0 + p) * c.N + n, S.c[i / 16][i % 16][e]);
    }
}

// M of one head for 32 columns from j0 on, from R = C B^T, to shared memory.
__device__ inline void put_scores(bf16 *M, const float (&R)[4][4], const float2 *steps, int j0) {
  int lane = thread_here() % 32, t = lane % 4, row = 16 * warp_here() + lane / 4;
  const float cs[2] = {steps[row].x, steps[row + 8].x};
  int place = tile_at<64>(row, j0 / 8) + 2 * t; // the next chunks' differ in bits 3 and 4
#pragma unroll
  for (int n = 0; n < 4; n++) {
    int j = j0 + 8 * n + 2 * t;
    float4 two = *(const float4 *)(steps + j);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int i = row + 8 * half;
      float a = R[n][2 * half] * (fade(j <= i, cs[half], two.x) * two.y);
      float b = R[n][2 * half + 1] * (fade(j + 1 <= i, cs[half], two.z) * two.w);
      *(uint32_t *)(M + (place ^ 8 * n) + 8 * 64 * half) = pack2(a, b);
    }
  }
}

// Columns 16 (PACK q + k), k < PACK, of a state as operands.
enum { PACK = 4 };
template <int NN>
__device__ inline void pack_state(uint32_t (&p)[PACK][4], const sums_of<NN> &S, int q) {
#pragma unroll
  for (int k = 0; k < PACK; k++) {
    int n = 2 * (q * PACK + k);
    as_operand(p[k], S.c[n / 16][n % 16], S.c[n / 16][n % 16 + 1]);
  }
}
// y^T [+]= S C^T over these columns.
__device__ inline void start_state(float (&y)[8][4], const uint32_t (&p)[PACK][4], const bf16 *C,
                                   int q) {
  uint64_t b = wg_tile(shared_address(C + q * PANEL), 0);
  wg_begin();
#pragma unroll
  for (int k = 0; k < PACK; k++) wg_mma(y, p[k], b + k * 32 / 16, q + k > 0);
  wg_commit();
}

// The same head's x, transposed, as operands: 16 tokens each.
__device__ inline void columns_of(uint32_t (&xt)[4][4], const bf16 *x) {
  uint32_t xs = columns_address<64>(x, 0);
#pragma unroll
  for (int k = 0; k < 4; k++) ldmatrix_trans(xt[k], further<64>(xs, 16 * k, 2 * warp_here()));
}

// Columns (tokens) of y times what is left of the state before them.
__device__ inline void fade_columns(float (&y)[8][4], const float2 *steps) {
  int t = thread_here() % 4;
#pragma unroll
  for (int n = 0; n < 8; n++) {
    float4 two = *(const float4 *)(steps + 8 * n + 2 * t);
    float a = fast_exp2(two.x), b = fast_exp2(two.z);
    y[n][0] *= a, y[n][1] *= b, y[n][2] *= a, y[n][3] *= b;
  }
}

// y^T, by way of shared memory, to y.
__device__ inline void put_y(const ssd_call &c, bf16 *to, bf16 *turn, const float (&y)[8][4], int n,
                             int cols) {
  int lane = thread_here() % 32, warp = warp_here(), r = lane % 8, i = lane / 8;
#pragma unroll
  for (int k = 0; k < 8; k += 2) {
    uint32_t p[4];
    as_operand(p, y[k], y[k + 1]);
    stmatrix_trans(shared_address(turn + tile_at<64>(8 * (k + i / 2) + r, 2 * warp + i % 2)), p);
  }
  group_sync(1 + thread_here() / 128);
  if (c.wide_y) {
    int row = thread_here() % 128 / 8, chunk = thread_here() % 8, place = tile_at<64>(row, chunk);
    bf16 *p = to + row * c.ldy + chunk * 8;
    if (chunk * 8 >= cols) n = 0;
#pragma unroll
    for (int k = 0; k < 64; k += 16, p += 16 * c.ldy) {
      uint4 x = *(const uint4 *)(turn + place + k * 64);
      if (row + k < n) *(uint4 *)p = x;
    }
  } else {
#pragma unroll 1
    for (int k = thread_here() % 128; k < 64 * 64; k += 128) {
      int row = k / 64, col = k % 64;
      if (row < n && col < cols) to[row * c.ldy + col] = turn[tile_at<64>(row, col / 8) + col % 8];
    }
  }
}

// 64 tokens: y of the warpgroup's slice, and its state after them. load_next() starts to load the
// next ones while the products run.
template <int NN, class F>
__device__ inline void fused_step(const ssd_call &c, const fused_call &o, const ssd_chunk &a,
                                  const fused_slice &s, float D, sums_of<NN> &S,
                                  fused_memory<NN> &m, int turn, F load_next) {
  auto &in = m.in[turn];
  int w = thread_here() / 128, t = thread_here() % 4;
  const float2 *steps = in.steps[w];
  float R[4][4], y[8][4];
  uint32_t p[2][PACK][4];
  constexpr int PACKS = NN / (16 * PACK), AHEAD = PACKS < 2 ? PACKS : 2;
#pragma unroll
  for (int q = 0; q < AHEAD; q++) pack_state<NN>(p[q], S, q);
  wg_begin();
  {
    uint64_t x = wg_tile(shared_address(in.C), 0),
             z = wg_tile(shared_address(in.B) + (uint32_t)w * 32 * 128, 0);
#pragma unroll
    for (int k = 0; k < NN / 16; k++) {
      int at = (k / 4 * PANEL * 2 + k % 4 * 32) / 16;
      wg_mma(R, x + at, z + at, k > 0);
    }
  }
  wg_commit();
#pragma unroll
  for (int q = 0; q < AHEAD; q++) start_state(y, p[q], in.C, q);
  load_next();
  wg_wait<AHEAD>(); // y's products run on
  wg_done(R);
  put_scores(m.M[0], R, in.steps[0], 32 * w);
  if (c.slices == 1) put_scores(m.M[1], R, in.steps[1], 32 * w);
#pragma unroll
  for (int q = AHEAD; q < PACKS; q++) {
    wg_wait<1>();
    pack_state<NN>(p[q % 2], S, q);
    start_state(y, p[q % 2], in.C, q);
  }
  float end = steps[SSD_TOKENS - 1].x, keep = fast_exp2(end);
#pragma unroll
  for (int h = 0; h < sums_of<NN>::H; h++) scale_rows(S.c[h], {keep, keep});
  uint32_t xt[4][4];
  columns_of(xt, in.x[w]);
  wg_publish();
  __syncthreads();
  wg_wait<0>();
  wg_done(y);
  fade_columns(y, steps);
  {
    uint64_t b = wg_tile(shared_address(m.M[c.slices == 1 ? w : 0]), 0);
    wg_begin();
#pragma unroll
    for (int k = 0; k < 4; k++) wg_mma(y, xt[k], b + k * 32 / 16, true);
    wg_commit();
  }
  uint32_t xf[4][4];
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float4 two = *(const float4 *)(steps + 16 * k + 8 * half + 2 * t);
      float f0 = two.y * fast_exp2(end - two.x), f1 = two.w * fast_exp2(end - two.z);
      xf[k][2 * half] = scaled(xt[k][2 * half], f0, f1);
      xf[k][2 * half + 1] = scaled(xt[k][2 * half + 1], f0, f1);
    }
  {
    uint64_t b = wg_tile(shared_address(in.B), PANEL * 2);
    wg_begin();
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int h = 0; h < sums_of<NN>::H; h++)
        wg_mma_rows(S.c[h], xf[k], b + (h * 2 * PANEL * 2 + k * 16 * 128) / 16);
    wg_commit();
  }
  wg_wait<1>();
  wg_done(y);
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      y[2 * k + i / 2][2 * (i % 2)] += D * low(xt[k][i]);
      y[2 * k + i / 2][2 * (i % 2) + 1] += D * high(xt[k][i]);
    }
  put_y(c, o.y + a.row * c.ldy + (int64_t)s.h * c.P + s.p0, m.y[w], y, s.here ? a.n : 0, s.p);
  wg_wait<0>();
#pragma unroll
  for (int h = 0; h < sums_of<NN>::H; h++) wg_done(S.c[h]);
}

template <int NN>
__global__ void __launch_bounds__(FUSED_THREADS, 1) fused(ssd_call c, fused_call o) {
  extern __shared__ __align__(1024) unsigned char ssd_shared[];
  fused_memory<NN> &m = *(fused_memory<NN> *)ssd_shared;
  int pairs = (c.heads * c.slices + 1) / 2, i = (int)blockIdx.x, pair = i % pairs;
  int group = i / pairs % c.G, seq = i / pairs / c.G, w = thread_here() / 128;
  const fused_slice both[2] = {slice_at(c, group, 2 * pair), slice_at(c, group, 2 * pair + 1)};
  fused_slice s = w ? both[1] : both[0];
  int64_t at = ((int64_t)seq * c.nh + s.h) * c.P * c.N;
  float D = to_float(((const bf16 *)c.D)[s.h]);
  sums_of<NN> S = {};
  int len = ssd_segment(c, o.segments), first = (int)blockIdx.y * len;
  int end = min(first + len, c.chunks);
  const float *from =
      first == 0 ? o.S0 : o.states + (blockIdx.y - 1) * (int64_t)c.b * c.nh * c.P * c.N;
  if (from) each_element<NN>(c, s, S, [&](int64_t k, float &x) { x = from[at + k]; });
  fused_load<NN>(c, chunk_of(c, seq, first, SSD_TOKENS), group, both, m, 0);
  cp_async_commit();
#pragma unroll 1
  for (int k = first; k < end; k++) {
    int turn = (k - first) % 2;
    cp_async_wait();
    wg_publish();
    __syncthreads();
    fused_step<NN>(c, o, chunk_of(c, seq, k, SSD_TOKENS), s, D, S, m, turn, [&]() {
      if (k + 1 < end)
        fused_load<NN>(c, chunk_of(c, seq, k + 1, SSD_TOKENS), group, both, m, 1 - turn);
      cp_async_commit();
    });
  }
  if (o.Sf && s.here && end == c.chunks)
    each_element<NN>(c, s, S, [&](int64_t k, float &x) { o.Sf[at + k] = x; });
}

// ---- segments ----

// From what the segments add to the state to the states after them, in their order. A block has
// THREADS elements of one head's state.
__global__ void chain(ssd_call c, float *states, int segments) {
  int head = (int)blockIdx.y, len = ssd_segment(c, segments + 1);
  int64_t all = (int64_t)c.b * c.nh * c.P * c.N, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  const float2 *steps = c.steps + (int64_t)head * c.tiles * SSD_TOKENS;
  bool here = i < c.P * c.N;
  float *x = states + (int64_t)head * c.P * c.N + i, before = here ? *x : 0;
  for (int k = 1; k < segments; k++) {
    double sum = 0;
    for (int j = (int)threadIdx.x; j < len; j += THREADS)
      sum += (double)steps[(int64_t)(k * len + j + 1) * SSD_TOKENS - 1].x;
    double keep = exp2(fmax(block_sum(sum), -1000.0));
    x += all;
    if (here) *x = before = *x + (float)keep * before;
  }
}

// Parts of a sequence that are done at once, so that there are nearly as many blocks as
// multiprocessors; it depends on the sizes alone.
int fused_segments(const ssd_call &c, int64_t blocks) {
  int64_t most = up(c.chunks, 4), want = 128 / blocks;
  int64_t segments = want < 1 ? 1 : least(want, most);
  return (int)up(c.chunks, ssd_segment(c, (int)segments)); // none is empty
}
int64_t fused_blocks(const ssd_call &c) {
  return (int64_t)c.b * c.G * up(c.heads * c.slices, 2);
}

template <int NN>
void launch(sk_stream *s, const ssd_call &c, const fused_call &o) {
  ssd_memory(fused<NN>, sizeof(fused_memory<NN>));
  dim3 grid((unsigned)fused_blocks(c), (unsigned)o.segments);
  fused<NN><<<grid, FUSED_THREADS, sizeof(fused_memory<NN>), sk_cuda_stream(s)>>>(c, o);
  SK_CUDA(cudaGetLastError());
}

} // namespace

int64_t sk_cuda_ssd_fused_ws(const ssd_call *c) {
  return (int64_t)(fused_segments(*c, fused_blocks(*c)) - 1) * c->b * c->nh * c->P * c->N;
}

void sk_cuda_ssd_fused(sk_stream *s, const ssd_call *c, bf16 *y, float *Sf, const float *S0,
                       float *ws) {
  fused_call o = {S0, Sf, y, fused_segments(*c, fused_blocks(*c)), ws};
  if (o.segments > 1) {
    ssd_walk w = {(const bf16 *)c->x, (const bf16 *)c->B, c->ld, c->wide_x, false,
                  o.segments,         o.segments - 1,     S0,    NULL,      ws};
    sk_cuda_ssd_walk(s, c, &w);
    dim3 grid((unsigned)up((int64_t)c->P * c->N, THREADS), (unsigned)(c->b * c->nh));
    chain<<<grid, THREADS, 0, sk_cuda_stream(s)>>>(*c, ws, o.segments - 1);
    SK_CUDA(cudaGetLastError());
  }
  if (c->N <= 64)
    launch<64>(s, *c, o);
  else if (c->N <= 128)
    launch<128>(s, *c, o);
  else
    launch<256>(s, *c, o);
}
