/* cuda_attention_groups.cu: attention, forward, in bf16 for heads up to 128 wide, by warpgroups in
 * two roles (cuda_flash_groups.h). The scores of the next tile of keys are under way while a tile's
 * exponentials and sums are taken. */
#include "kernels/cuda_flash_groups.h"

template <int HD>
struct forward_block : block_shape<3, 128, 2> {};
template <>
struct forward_block<128> : block_shape<2, 128, 2> {};

template <int HD>
struct forward_share {
  typedef forward_block<HD> S;
  bf16 q[S::ROWS * HD], k[S::STAGES][S::OTHERS * HD], v[S::STAGES][S::OTHERS * HD];
  int2 seen[S::ROWS];
  ring<S::STAGES> keys, values;
};

// Scores become probabilities relative to the new maxima; the sums so far are rescaled, and what
// the output so far has to be multiplied with is left in `shrink`; false: by 1. A row's columns lie
// in the four lanes of a quad; its sum stays apart in them until the end.
template <int N>
static __device__ inline bool softmax_step(float (&s)[1][N][4], float (&top)[2], float (&sum)[2],
                                           float (&shrink)[2], float scale2) {
  bool same = true;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float high = top[half];
#pragma unroll
    for (int n = 0; n < N; n++) high = fmaxf(high, fmaxf(s[0][n][2 * half], s[0][n][2 * half + 1]));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
    high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
    shrink[half] = fast_exp2((top[half] - high) * scale2);
    same = same && top[half] == high;
    float base = high * scale2, part[2] = {0, 0};
    top[half] = high;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float &x = s[0][n][2 * half + e];
        x = fast_exp2(fmaf(x, scale2, -base));
        part[e] += x;
      }
    sum[half] = sum[half] * shrink[half] + (part[0] + part[1]);
  }
  return !__all_sync(0xffffffffu, same); // often, once some tiles are behind, all factors are 1
}

template <int C>
static __device__ inline void multiply_rows(float (&o)[1][C][4], const float (&f)[2]) {
#pragma unroll
  for (int n = 0; n < C; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) o[0][n][e] *= f[e / 2];
}

// Divides by the sums, whose parts four lanes hold, and writes lse.
template <int C>
static __device__ inline void finish_rows(const flash_call &c, const flash_task &t,
                                          float (&o)[1][C][4], const float (&top)[2],
                                          const float (&sum)[2], int m0) {
  int lane = (int)threadIdx.x % 32;
  float inv[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float all = sum[half];
    all += __shfl_xor_sync(0xffffffffu, all, 1);
    all += __shfl_xor_sync(0xffffffffu, all, 2);
    inv[half] = 1 / all;
    int row = t.r0 + m0 + 8 * half + lane / 4;
    if (lane % 4 == 0 && row < c.rows)
      c.lse[lse_at(c, t.bi, t.kv, row)] = top[half] * c.scale + logf(all);
  }
  multiply_rows(o, inv);
}

template <int HD, bool WIDE>
static __device__ inline void forward_load(const flash_call &c, const flash_task &t,
                                           forward_share<HD> &sh, int j0, int n, int end) {
  typedef forward_block<HD> S;
  ring_place at = {0, 0};
#pragma unroll 1
  for (int i = 0; i < n; i++, j0 += S::OTHERS, at = after<S::STAGES>(at)) {
    ring_claim(sh.keys, at);
    load_keys<HD, S::OTHERS, WIDE>(sh.k[at.stage], c.k, key_at(c, t.bi, t.kv, j0, c.ldk), c.ldk,
                                   end - j0, c.hd);
    ring_fill<WIDE>(sh.keys, at);
    ring_claim(sh.values, at);
    load_keys<HD, S::OTHERS, WIDE>(sh.v[at.stage], c.v, key_at(c, t.bi, t.kv, j0, c.ldv), c.ldv,
                                   end - j0, c.hd);
    ring_fill<WIDE>(sh.values, at);
  }
  cp_async_commit();
  cp_async_wait();
}

// Whose turn it is to begin products: two warpgroups take turns, so that the exponentials of one
// run beside the products of the other; three do so unasked. Each arrives at the other's barrier as
// often as that one waits there, but for the last arrival, which nobody waits for.
template <int GROUPS>
static __device__ inline void turn_wait(int group) {
  if (GROUPS == 2) named_sync(8 + group, 256);
}
template <int GROUPS>
static __device__ inline void turn_pass(int group) {
  if (GROUPS == 2) named_arrive(8 + (group == GROUPS - 1 ? 0 : group + 1), 256);
}

template <int HD, bool WIDE>
static __device__ inline void forward_multiply(const flash_call &c, const flash_task &t,
                                               forward_share<HD> &sh, const flash_span &span,
                                               int j0, int n) {
  typedef forward_block<HD> S;
  const int N = S::OTHERS / 8;
  int m0 = (int)threadIdx.x / 32 * 16, group = (int)threadIdx.x / 128;
  cp_async_wait();
  wg_publish();
  named_sync(1 + group, 128); // the group's rows of q are here

  float s[1][N][4], o[1][HD / 8][4], top[2] = {-1e30f, -1e30f}, sum[2] = {0, 0}, shrink[2];
  uint32_t p[1][N / 2][4];
  ring_place at = {0, 0};
  clear(o);
  if (group == S::GROUPS - 1) turn_pass<S::GROUPS>(group); // the first turn is the first group's
  ring_wait(sh.keys, at);
  turn_wait<S::GROUPS>(group);
  begin_xyt<HD, S::ROWS>(s, sh.q, sh.k[0]);
  turn_pass<S::GROUPS>(group);
  wg_wait<0>();
  wg_done(s[0]);
  ring_release(sh.keys, at);
  if (j0 < span.lo || j0 + S::OTHERS - 1 > span.hi) mask_keys(s, sh.seen, m0, j0);
  softmax_step(s, top, sum, shrink, c.scale2); // o is still 0
  as_operand(p, s);
#pragma unroll 1
  for (int i = 1; i < n; i++) {
    ring_place next = after<S::STAGES>(at);
    j0 += S::OTHERS;
    ring_wait(sh.keys, next);
    turn_wait<S::GROUPS>(group);
    begin_xyt<HD, S::ROWS>(s, sh.q, sh.k[next.stage]);
    ring_wait(sh.values, at);
    begin_py<HD>(o, p, sh.v[at.stage]);
    turn_pass<S::GROUPS>(group);
    wg_wait<1>();
    wg_done(s[0]);
    ring_release(sh.keys, next);
    if (j0 < span.lo || j0 + S::OTHERS - 1 > span.hi) mask_keys(s, sh.seen, m0, j0);
    bool grown = softmax_step(s, top, sum, shrink, c.scale2);
    wg_wait<0>();
    wg_done(o[0]);
    ring_release(sh.values, at);
    if (grown) multiply_rows(o, shrink);
    as_operand(p, s);
    at = next;
  }
  ring_wait(sh.values, at);
  begin_py<HD>(o, p, sh.v[at.stage]);
  wg_wait<0>();
  wg_done(o[0]);
  finish_rows(c, t, o, top, sum, m0);
  store_rows<HD, S::ROWS, WIDE>(c.out, sh.q, o, m0, 0, c.rows - t.r0, c.hd,
                                [&](int r) { return query_at(c, t.bi, t.kv, t.r0 + r, c.ldo); });
}

template <int HD, bool WIDE>
static __global__ void __launch_bounds__(forward_block<HD>::THREADS, 1)
    forward_groups(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef forward_block<HD> S;
  forward_share<HD> &sh = *(forward_share<HD> *)shared;
  flash_task t = rows_of_block(c, S::ROWS);
  int group = (int)threadIdx.x / 128, r0 = t.r0 + 64 * group;
  if (threadIdx.x == 0) {
    ring_init(sh.keys, 4 * S::GROUPS);
    ring_init(sh.values, 4 * S::GROUPS);
  }
  if (group < S::GROUPS) {
    load_tile<HD, S::ROWS, 128, WIDE, 64>(
        sh.q + 64 * 64 * group, c.q, c.rows - r0, c.hd,
        [&](int r) { return query_at(c, t.bi, t.kv, r0 + r, c.ldq); });
    cp_async_commit();
  }
  flash_span span = place_rows<S::ROWS, S::THREADS>(c, sh.seen, t.bi, t.r0);
  int j0 = span.first / S::OTHERS * S::OTHERS;
  int n = max((span.end - j0 + S::OTHERS - 1) / S::OTHERS, 1);
  typedef role_registers<S::GROUPS> R;
  if (group == S::GROUPS) {
    registers_give<R::LOAD>();
    forward_load<HD, WIDE>(c, t, sh, j0, n, span.end);
  } else {
    registers_take<R::MULTIPLY>();
    forward_multiply<HD, WIDE>(c, t, sh, span, j0, n);
  }
}

// ---- launcher ----

template <int HD>
static void forward(sk_stream *s, const flash_call &c) {
  typedef forward_block<HD> S;
  flash_launch(s, c.wide ? forward_groups<HD, true> : forward_groups<HD, false>, c,
               flash_blocks(c, c.rows, S::ROWS), S::THREADS, sizeof(forward_share<HD>));
}

void sk_flash_forward(sk_stream *s, const flash_call &c) {
  if (c.columns == 64)
    forward<64>(s, c);
  else
    forward<128>(s, c);
}
