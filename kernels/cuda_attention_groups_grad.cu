/* cuda_attention_groups_grad.cu: attention, backward, in bf16 for heads up to 128 wide, by
 * warpgroups in two roles (cuda_flash_groups.h). Two kernels with 4 and 3 products, not one with 5:
 * dk and dv by tiles of keys, dq by tiles of rows, as in cuda_attention_grad.cu. So every output
 * has one owner and every sum one order. */
#include "kernels/cuda_flash_grad.h"
#include "kernels/cuda_flash_groups.h"

// ---- backward: dk and dv ----

template <int HD>
struct keys_block : block_shape<2, 64, 4> {};

template <int HD>
struct keys_share {
  typedef keys_block<HD> S;
  bf16 k[S::ROWS * HD], v[S::ROWS * HD];
  bf16 q[S::STAGES][S::OTHERS * HD], dout[S::STAGES][S::OTHERS * HD];
  float2 stat[S::STAGES][S::OTHERS];
  int2 seen[S::STAGES][S::OTHERS];
  ring<S::STAGES> rows;
  int found[S::THREADS / 32];
};

template <int HD, bool WIDE>
static __device__ inline void keys_load(const flash_call &c, keys_share<HD> &sh, row_walk w, int bi,
                                        int kv) {
  typedef keys_block<HD> S;
  ring_place at = {0, 0};
  int i = (int)threadIdx.x % 128;
  const float2 *stat = c.stat + ((int64_t)bi * c.KV + kv) * c.padded;
  const int2 *seen = c.seen + (int64_t)bi * c.padded;
#pragma unroll 1
  for (int tile = w.first; tile <= w.last; tile = next_tile(w, tile + 1)) {
    int r0 = tile * S::OTHERS;
    ring_claim(sh.rows, at);
    load_queries<HD, S::OTHERS, WIDE>(c, sh.q[at.stage], sh.dout[at.stage], bi, kv, r0);
    // 16 bytes hold the statistics of two rows.
    if (i < S::OTHERS / 2)
      cp_async16(&sh.stat[at.stage][2 * i], stat + r0 + 2 * i, true);
    else if (i < S::OTHERS)
      cp_async16(&sh.seen[at.stage][2 * i - S::OTHERS], seen + r0 + 2 * i - S::OTHERS, true);
    ring_fill<WIDE>(sh.rows, at);
    at = after<S::STAGES>(at);
  }
  cp_async_commit();
  cp_async_wait();
}

// dk and dv of the warpgroup's keys. While it takes probabilities and ds, one product is under way;
// and it has no registers for more, but the other warpgroup's are under way too.
template <int HD>
static __device__ inline void keys_multiply(const flash_call &c, keys_share<HD> &sh, row_walk w,
                                            int j0, float (&dk)[1][HD / 8][4],
                                            float (&dv)[1][HD / 8][4]) {
  typedef keys_block<HD> S;
  const int N = S::OTHERS / 8;
  int key0 = j0 + (int)threadIdx.x / 32 * 16;
  float s[1][N][4], dp[1][N][4];
  uint32_t p[1][N / 2][4], ds[1][N / 2][4];
  ring_place at = {0, 0};
  ring_wait(sh.rows, at);
  begin_xyt<HD, S::ROWS>(s, sh.k, sh.q[0]);
  begin_xyt<HD, S::ROWS>(dp, sh.v, sh.dout[0]);
  wg_wait<0>();
  wg_done(s[0]);
  wg_done(dp[0]);
#pragma unroll 1
  for (int tile = w.first;;) {
    int then = next_tile(w, tile + 1);
    if (!all_seen(c, w, tile, S::ROWS)) mask_rows(s, sh.seen[at.stage], key0);
    probabilities_of_rows(s, sh.stat[at.stage], c.scale2);
    as_operand(p, s);
    begin_py<HD>(dv, p, sh.dout[at.stage]);
    wg_wait<1>();
    wg_done(dp[0]);
    grads_of_rows(s, dp, sh.stat[at.stage]);
    as_operand(ds, dp);
    if (then > w.last) break;
    ring_place next = after<S::STAGES>(at);
    ring_wait(sh.rows, next);
    begin_xyt<HD, S::ROWS>(s, sh.k, sh.q[next.stage]);
    begin_py<HD>(dk, ds, sh.q[at.stage]);
    wg_wait<0>();
    wg_done(s[0]);
    wg_done(dv[0]);
    wg_done(dk[0]);
    ring_release_each(sh.rows, at);
    begin_xyt<HD, S::ROWS>(dp, sh.v, sh.dout[next.stage]);
    at = next;
    tile = then;
  }
  begin_py<HD>(dk, ds, sh.q[at.stage]);
  wg_wait<0>();
  wg_done(dv[0]);
  wg_done(dk[0]);
}

template <int HD, bool WIDE>
static __global__ void __launch_bounds__(keys_block<HD>::THREADS, 1)
    grad_keys_groups(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef keys_block<HD> S;
  keys_share<HD> &sh = *(keys_share<HD> *)shared;
  int heads = c.b * c.KV, head = (int)blockIdx.x % heads, bi = head / c.KV, kv = head % c.KV;
  int j0 = (int)blockIdx.x / heads * S::ROWS;
  int group = (int)threadIdx.x / 128, mine = j0 + 64 * group;
  if (threadIdx.x == 0) ring_init(sh.rows, 128 * S::GROUPS);
  if (group < S::GROUPS) {
    int n = min(c.Tk, c.q0 + c.Tq) - mine; // later keys may hold anything
    load_tile<HD, S::ROWS, 128, WIDE, 64>(sh.k + 64 * 64 * group, c.k, n, c.hd, [&](int r) {
      return key_at(c, bi, kv, mine + r, c.ldk);
    });
    load_tile<HD, S::ROWS, 128, WIDE, 64>(sh.v + 64 * 64 * group, c.v, n, c.hd, [&](int r) {
      return key_at(c, bi, kv, mine + r, c.ldv);
    });
    cp_async_commit();
  }
  row_walk w = walk_of<S::THREADS / 32>(c, sh.found, bi, j0, S::ROWS);
  typedef role_registers<S::GROUPS> R;
  if (group == S::GROUPS) {
    registers_give<R::LOAD>();
    keys_load<HD, WIDE>(c, sh, w, bi, kv);
  } else {
    registers_take<R::MULTIPLY>();
    cp_async_wait();
    wg_publish();
    named_sync(1 + group, 128); // the group's keys are here
    float dk[1][HD / 8][4], dv[1][HD / 8][4];
    clear(dk);
    clear(dv);
    if (w.first <= w.last) keys_multiply<HD>(c, sh, w, j0, dk, dv);
    multiply(dk, c.scale);
    int m0 = (int)threadIdx.x / 32 * 16;
    store_rows<HD, S::ROWS, WIDE>(c.dk, sh.k, dk, m0, 0, c.Tk - j0, c.hd,
                                  [&](int r) { return key_at(c, bi, kv, j0 + r, c.ldk); });
    store_rows<HD, S::ROWS, WIDE>(c.dv, sh.v, dv, m0, 0, c.Tk - j0, c.hd,
                                  [&](int r) { return key_at(c, bi, kv, j0 + r, c.ldv); });
  }
}

// ---- backward: dq ----

template <int HD>
struct rows_block : block_shape<3, 64, 4> {};
template <>
struct rows_block<128> : block_shape<2, 80, 3> {};

template <int HD>
struct rows_share {
  typedef rows_block<HD> S;
  bf16 q[S::ROWS * HD], dout[S::ROWS * HD];
  bf16 k[S::STAGES][S::OTHERS * HD], v[S::STAGES][S::OTHERS * HD];
  float2 stat[S::ROWS];
  int2 seen[S::ROWS];
  ring<S::STAGES> keys;
};

template <int HD, bool WIDE>
static __device__ inline void rows_load(const flash_call &c, const flash_task &t,
                                        rows_share<HD> &sh, int j0, int n, int end) {
  typedef rows_block<HD> S;
  ring_place at = {0, 0};
#pragma unroll 1
  for (int i = 0; i < n; i++, j0 += S::OTHERS, at = after<S::STAGES>(at)) {
    ring_claim(sh.keys, at);
    load_keys<HD, S::OTHERS, WIDE>(sh.k[at.stage], c.k, key_at(c, t.bi, t.kv, j0, c.ldk), c.ldk,
                                   end - j0, c.hd);
    load_keys<HD, S::OTHERS, WIDE>(sh.v[at.stage], c.v, key_at(c, t.bi, t.kv, j0, c.ldv), c.ldv,
                                   end - j0, c.hd);
    ring_fill<WIDE>(sh.keys, at);
  }
  cp_async_commit();
  cp_async_wait();
}

template <int HD>
static __device__ inline void rows_multiply(const flash_call &c, rows_share<HD> &sh,
                                            const flash_span &span, int j0, int n,
                                            float (&dq)[1][HD / 8][4]) {
  typedef rows_block<HD> S;
  const int N = S::OTHERS / 8;
  int m0 = (int)threadIdx.x / 32 * 16;
  float s[1][N][4], dp[1][N][4];
  uint32_t ds[1][N / 2][4];
  ring_place at = {0, 0}, before = {-1, 0};
  ring_wait(sh.keys, at);
  begin_xyt<HD, S::ROWS>(s, sh.q, sh.k[0]);
  begin_xyt<HD, S::ROWS>(dp, sh.dout, sh.v[0]);
  wg_wait<0>();
  wg_done(s[0]);
  wg_done(dp[0]);
#pragma unroll 1
  for (int i = 1;; i++, j0 += S::OTHERS) {
    if (j0 < span.lo || j0 + S::OTHERS - 1 > span.hi) mask_keys(s, sh.seen, m0, j0);
    probabilities_of_keys(s, sh.stat + m0, c.scale2);
    wg_wait<0>();
    wg_done(dp[0]);
    wg_done(dq[0]);
    if (before.stage >= 0) ring_release(sh.keys, before);
    grads_of_keys(s, dp, sh.stat + m0);
    as_operand(ds, dp);
    if (i >= n) break;
    before = at;
    at = after<S::STAGES>(at);
    ring_wait(sh.keys, at);
    begin_xyt<HD, S::ROWS>(s, sh.q, sh.k[at.stage]);
    begin_py<HD>(dq, ds, sh.k[before.stage]);
    begin_xyt<HD, S::ROWS>(dp, sh.dout, sh.v[at.stage]);
    wg_wait<2>();
    wg_done(s[0]);
  }
  begin_py<HD>(dq, ds, sh.k[at.stage]);
  wg_wait<0>();
  wg_done(dq[0]);
}

template <int HD, bool WIDE>
static __global__ void __launch_bounds__(rows_block<HD>::THREADS, 1)
    grad_rows_groups(const __grid_constant__ flash_call c) {
  extern __shared__ __align__(1024) unsigned char shared[];
  typedef rows_block<HD> S;
  rows_share<HD> &sh = *(rows_share<HD> *)shared;
  flash_task t = rows_of_block(c, S::ROWS);
  int group = (int)threadIdx.x / 128, r0 = t.r0 + 64 * group;
  if (threadIdx.x == 0) ring_init(sh.keys, 4 * S::GROUPS);
  if (group < S::GROUPS) {
    load_tile<HD, S::ROWS, 128, WIDE, 64>(
        sh.q + 64 * 64 * group, c.q, c.rows - r0, c.hd,
        [&](int r) { return query_at(c, t.bi, t.kv, r0 + r, c.ldq); });
    load_tile<HD, S::ROWS, 128, WIDE, 64>(
        sh.dout + 64 * 64 * group, c.dout, c.rows - r0, c.hd,
        [&](int r) { return query_at(c, t.bi, t.kv, r0 + r, c.ldo); });
    cp_async_commit();
  }
  const float2 *stat = c.stat + ((int64_t)t.bi * c.KV + t.kv) * c.padded;
  for (int r = (int)threadIdx.x; r < S::ROWS; r += S::THREADS)
    sh.stat[r] = stat[min(t.r0 + r, c.rows - 1)];
  flash_span span = place_rows<S::ROWS, S::THREADS>(c, sh.seen, t.bi, t.r0);
  int j0 = span.first / S::OTHERS * S::OTHERS;
  int n = max((span.end - j0 + S::OTHERS - 1) / S::OTHERS, 1);
  typedef role_registers<S::GROUPS> R;
  if (group == S::GROUPS) {
    registers_give<R::LOAD>();
    rows_load<HD, WIDE>(c, t, sh, j0, n, span.end);
  } else {
    registers_take<R::MULTIPLY>();
    cp_async_wait();
    wg_publish();
    named_sync(1 + group, 128); // the group's rows are here
    float dq[1][HD / 8][4];
    clear(dq);
    rows_multiply<HD>(c, sh, span, j0, n, dq);
    multiply(dq, c.scale);
    store_rows<HD, S::ROWS, WIDE>(c.dq, sh.q, dq, (int)threadIdx.x / 32 * 16, 0, c.rows - t.r0,
                                  c.hd,
                                  [&](int r) { return query_at(c, t.bi, t.kv, t.r0 + r, c.ldq); });
  }
}

// ---- launcher ----

template <int HD>
static void backward(sk_stream *s, const flash_call &c) {
  typedef keys_block<HD> K;
  typedef rows_block<HD> R;
  SK_CHECK(flash_row_tile(c) == K::OTHERS, "attention_grad: tiles of %d rows", flash_row_tile(c));
  flash_launch(s, c.wide ? grad_keys_groups<HD, true> : grad_keys_groups<HD, false>, c,
               flash_blocks(c, c.Tk, K::ROWS), K::THREADS, sizeof(keys_share<HD>));
  flash_launch(s, c.wide ? grad_rows_groups<HD, true> : grad_rows_groups<HD, false>, c,
               flash_blocks(c, c.rows, R::ROWS), R::THREADS, sizeof(rows_share<HD>));
}

void sk_flash_backward(sk_stream *s, const flash_call &c) {
  if (c.columns == 64)
    backward<64>(s, c);
  else
    backward<128>(s, c);
}
