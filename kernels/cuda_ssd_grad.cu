/* cuda_ssd_grad.cu: the SSD recurrence in chunks, backward (section 3.4; the plan is in
 * cuda_ssd.h). Its chunks are twice as long as the forward's: that halves the traffic of states.
 *
 *   walk    the states S before the chunks; then, on the way back, the gradients Z of those after
 *           them, and <Z, S>
 *   read, write  the products within chunks (cuda_ssd_chunk.cu)
 *   finish  ddt, and the sums over a chunk's tokens for A_log and D
 *   reduce  those sums over the chunks */
#include "kernels/cuda_ssd_chunk.h"
#include "kernels/cuda_ssd_plain.h"

namespace {

size_t cut_grad(ssd_call *c, void *ws, ssd_grad_call *o) {
  ssd_cutter cut = {(char *)ws, 0};
  ssd_grad_ws *w = &o->w;
  o->wides = (int)up(c->T, CHUNK_TOKENS), c->tiles = 2 * o->wides;
  int64_t wides = (int64_t)c->b * o->wides, heads = wides * c->nh, tokens = heads * CHUNK_TOKENS;
  c->state = (int64_t)c->P * c->stateN;
  cut.take(&w->steps, tokens);
  cut.take(&w->S, heads * c->state);
  cut.take(&w->Z, heads * c->state);
  cut.take(&w->read, tokens);
  cut.take(&w->early[0], tokens);
  cut.take(&w->early[1], tokens);
  cut.take(&w->column, tokens);
  cut.take(&w->write, tokens);
  cut.take(&w->meet, heads * SSD_PARTS);
  cut.take(&w->part, heads);
  cut.take(&w->E, wides * c->G * 3 * SSD_TOKENS * SSD_TOKENS);
  c->steps = w->steps;
  return cut.used;
}

// ---- finish ----

// For a token k: da_k = sum_{i >= k} (row_i - column_i + q_i) + sum_{j < k} p_j + keep <Z, S>.
// K without its diagonal enters rows and columns alike, so the sum over them is that over the
// rectangle i >= k > j. A warp per (chunk, head), four tokens a lane, sums in double.
__global__ void finish(ssd_call c, ssd_grad_call o, float *ddt) {
  enum { MINE = CHUNK_TOKENS / 32 };
  const ssd_grad_ws &w = o.w;
  int i = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
  if (i >= c.b * o.wides * c.nh) return;
  int h = i % c.nh, seq = i / c.nh / o.wides, wide = i / c.nh % o.wides;
  int first = wide * CHUNK_TOKENS;
  int64_t row = (int64_t)seq * c.T + first;
  int64_t at = (((int64_t)seq * c.nh + h) * c.tiles + 2 * wide) * SSD_TOKENS;
  double A = -exp((double)to_float(((const bf16 *)c.A_log)[h]));
  double later[MINE], p[MINE], from = 0, until = 0;
  float2 read[MINE], write[MINE];
#pragma unroll
  for (int e = 0; e < MINE; e++) {
    int64_t t = at + MINE * lane + e;
    read[e] = w.read[t], write[e] = w.write[t];
    later[e] = (double)read[e].x - (double)w.column[t];
    if (lane >= 16) later[e] += (double)w.early[0][t] + (double)w.early[1][t];
    p[e] = write[e].x;
    from += later[e], until += p[e];
  }
  double mine = until;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    double after = __shfl_down_sync(~0u, from, d), before = __shfl_up_sync(~0u, until, d);
    if (lane + d < 32) from += after;
    if (lane >= d) until += before;
  }
  until -= mine;
  double X = 0, dA = 0, dD = 0;
  for (int k = 0; k < o.parts; k++) X += (double)w.meet[(int64_t)i * SSD_PARTS + k];
  X *= (double)fast_exp2(c.steps[at + SSD_TOKENS - 1].x + c.steps[at + CHUNK_TOKENS - 1].x);
#pragma unroll
  for (int e = 0; e < MINE; e++) {
    int t = MINE * lane + e;
    if (first + t >= c.T) break;
    float dt = c.dt[(row + t) * c.nh + h];
    double da = X + from + until;
    from -= later[e], until += p[e];
    // Where nothing is left the sums leave their rounding instead of 0.
    bool begins = c.start[row + t] == first + t;
    if (begins || (double)dt * A < -126 / 1.4426950408889634) da = 0;
    ddt[(row + t) * c.nh + h] = (float)((double)write[e].y + A * da);
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
__global__ void reduce(ssd_call c, int chunks, sk_dtype act, float *dA_log, float *dD,
                       const double2 *part) {
  int h = (int)blockIdx.x;
  double sum[2] = {};
  for (int i = (int)threadIdx.x; i < c.b * chunks; i += (int)blockDim.x) {
    double2 one = part[(int64_t)i * c.nh + h];
    sum[0] += one.x, sum[1] += one.y;
  }
  double A = block_sum(sum[0]), D = block_sum(sum[1]);
  if (threadIdx.x > 0) return;
  float A_log = act == SK_F32 ? ((const float *)c.A_log)[h] : to_float(((const bf16 *)c.A_log)[h]);
  dA_log[h] = (float)(dA_log[h] - exp((double)A_log) * A);
  dD[h] = (float)(dD[h] + D);
}

void launch_reduce(sk_stream *s, const ssd_call &c, int chunks, float *dA_log, float *dD,
                   const double2 *part) {
  reduce<<<c.nh, THREADS, 0, sk_cuda_stream(s)>>>(c, chunks, sk_cuda_act(s), dA_log, dD, part);
  SK_CUDA(cudaGetLastError());
}

ssd_walk backward_walk(const ssd_call &c, const float *dSf, float *dS0, const ssd_grad_ws *ws) {
  ssd_walk w = {(const bf16 *)c.dy, (const bf16 *)c.C, c.ldy, c.wide_y, true, 1, 1, dSf, NULL, dS0};
  if (ws) w.states = ws->Z, w.S = ws->S, w.meet = ws->meet;
  return w;
}

} // namespace

// ---- entries ----

extern "C" size_t sk_cuda_ssd_grad_ws(const sk_device *dev, sk_dtype act, const sk_ssd_dims *d) {
  if (!ssd_fast(dev, act, d)) return ssd_plain_grad_ws(d);
  ssd_call c = ssd_describe(d, SSD_TOKENS);
  ssd_grad_call o;
  return cut_grad(&c, NULL, &o);
}

extern "C" void sk_cuda_ssd_grad(sk_stream *s, const sk_ssd_dims *d, void *dx, void *dB, void *dC,
                                 float *ddt, float *dA_log, float *dD, float *dS0, const void *dy,
                                 const void *x, const void *B, const void *C, const float *dt,
                                 const void *A_log, const void *D, const int32_t *start,
                                 const float *S0, const float *dSf, void *ws) {
  bool fast = ssd_fast(sk_cuda_device(s), sk_cuda_act(s), d);
  ssd_call c = ssd_describe(d, fast ? SSD_TOKENS : SSD_PLAIN);
  c.x = x, c.B = B, c.C = C, c.dy = dy, c.dt = dt, c.A_log = A_log, c.D = D, c.start = start;
  if (!fast) {
    plain_grads g = {dx, dB, dC, ddt};
    auto back = sk_cuda_act(s) == SK_F32 ? plain_backward<float> : plain_backward<bf16>;
    launch_reduce(s, c, c.chunks, dA_log, dD, back(s, c, g, dS0, S0, dSf, ws));
    return;
  }
  ssd_grad_call o = {};
  cut_grad(&c, ws, &o);
  o.dx = (bf16 *)dx, o.dB = (bf16 *)dB, o.dC = (bf16 *)dC;
  c.wide_x = ssd_wide({x}, d->ld, c.P), c.wide_B = ssd_wide({B, C}, d->ld, c.N);
  c.wide_y = ssd_wide({dy}, d->ldy, c.P);
  o.wide_dx = ssd_wide({dx}, d->ld, c.P), o.wide_dB = ssd_wide({dB, dC}, d->ld, c.N);
  ssd_walk S = {(const bf16 *)x, (const bf16 *)B, c.ld, c.wide_x, false, 1, 1, S0, o.w.S, NULL};
  ssd_walk Z = backward_walk(c, dSf, dS0, &o.w);
  sk_cuda_ssd_steps(s, &c);
  sk_cuda_ssd_walk(s, &c, &S);
  o.parts = sk_cuda_ssd_walk(s, &c, &Z);
  sk_cuda_ssd_chunks(s, &c, &o);
  unsigned grid = (unsigned)up((int64_t)c.b * o.wides * c.nh, THREADS / 32);
  finish<<<grid, THREADS, 0, sk_cuda_stream(s)>>>(c, o, ddt);
  SK_CUDA(cudaGetLastError());
  launch_reduce(s, c, o.wides, dA_log, dD, o.w.part);
}

extern "C" void sk_cuda_ssd_state_grad(sk_stream *s, const sk_ssd_dims *d, float *dS0,
                                       const void *dy, const void *C, const float *dt,
                                       const void *A_log, const int32_t *start, void *ws) {
  bool fast = ssd_fast(sk_cuda_device(s), sk_cuda_act(s), d);
  ssd_call c = ssd_describe(d, fast ? SSD_TOKENS : SSD_PLAIN);
  c.dy = dy, c.C = C, c.dt = dt, c.A_log = A_log, c.start = start;
  if (!fast) {
    auto back = sk_cuda_act(s) == SK_F32 ? plain_state_grads<float> : plain_state_grads<bf16>;
    back(s, c, dS0, ws);
    return;
  }
  ssd_grad_call o;
  cut_grad(&c, ws, &o);
  c.wide_y = ssd_wide({dy}, d->ldy, c.P), c.wide_B = ssd_wide({C}, d->ld, c.N);
  ssd_walk Z = backward_walk(c, NULL, dS0, NULL);
  sk_cuda_ssd_steps(s, &c);
  sk_cuda_ssd_walk(s, &c, &Z);
}
