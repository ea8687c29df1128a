/* cuda_conv.cu: the causal depthwise convolution with SiLU (sections 2.4 item 4, 3.5).
 *
 * A thread has V neighbouring channels and walks over a run of consecutive tokens of a sequence
 * with the last K raw rows in registers, so that a row is read once (and the K - 1 before a run
 * once more). With the released models' 4 taps and aligned rows V is 4, else one, for up to 16 taps.
 *
 * The next rows are on their way into the thread's own ring in shared memory. Forward: short runs.
 * Backward in one pass: a run computes the gradient before SiLU of its own tokens and of the K - 1
 * after them, which its rows' gradients need too. Those are read twice, so runs are longer, and as many
 * blocks as the GPU has at once take turns with them. Sums for dw and dbias are over the tokens of a
 * thread's runs, then over the threads of a block, then over the blocks, in double. */
#include "kernels/cuda_arch.h"
#include "kernels/cuda_kernel.h"

namespace {

enum {
  MOST_TAPS = 16,
  LANES = 64, // of a block, next to each other in the channels
  RUNS = 2,   // of a block, each with LANES threads
  AHEAD = 4,  // tokens at once: the taps of the usual kernel, so that shifting rows costs nothing
  FWD_RUN = 16,    // tokens of a run: short ones, for then blocks take memory in its order
  BACK_SHORT = 16, // of the backward: from here
  BACK_LONG = 160, // to there
  BACK_MORE = 6,   // tokens that a run of the backward costs beyond its own
  SUM_COLS = 32,   // of a block that adds up parts, of which there are few dozens
  SUM_ROWS = 8,
  FWD_DEPTH = 2,   // batches of a ring: one in use, one on its way; four are 6 % slower
  BACK_DEPTH = 2   // three are 5 % slower, four 6 %
};
// Blocks on an SM.
const dim3 THREADS_XY(LANES, RUNS);
constexpr int FWD_WIDE = 4, BACK_WIDE = 4; // most elements of a thread
constexpr int FWD_BLOCKS = 6;
template <class T>
constexpr int BACK_BLOCKS = sizeof(T) == 2 ? 3 : 2;

struct conv_call {
  int T, K, run, parts; // tokens of a run, groups of RUNS runs of a sequence
  int ldx, ldy;
  int64_t groups; // of all sequences
  int64_t cd;
  int64_t end[2]; // where the first two segments end
  float mult[3];
  const void *x, *halo, *w, *bias, *dy;
  void *y, *dx, *dhalo;
  const int32_t *start;
  float *part; // [K + 1][gridDim.y][cd] sums for dw and dbias
};

__device__ inline float mult_of(const conv_call &c, int64_t channel) {
  return c.mult[channel < c.end[0] ? 0 : channel < c.end[1] ? 1 : 2];
}

// ---- a thread's channels and run ----

// The rows of N arrays on their way into a thread's part of shared memory, AHEAD tokens at a time and
// up to DEPTH - 1 times as many at once. A thread reads only what it asked for: no barriers.
template <class T, int V, int N, int DEPTH>
struct row_ring {
  typedef packed<T, V> row;
  static constexpr int bytes = DEPTH * AHEAD * N * LANES * RUNS * (int)sizeof(row);
  row *mine; // [DEPTH][AHEAD][N][threads]
  const T *from[N];
  int64_t step[N];
  int left, ask, use; // rows not asked for yet; where the next ones go and are

  __device__ row *at(int turn, int i, int k) const {
    return mine + ((turn * AHEAD + i) * N + k) * (LANES * RUNS);
  }
  __device__ void request() {
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
#pragma unroll
      for (int k = 0; k < N; k++)
        if (i < left) fetch(at(ask, i, k), from[k] + i * step[k]);
    asm volatile("cp.async.commit_group;" ::: "memory");
#pragma unroll
    for (int k = 0; k < N; k++) from[k] += AHEAD * step[k];
    left -= AHEAD;
    ask = ask + 1 < DEPTH ? ask + 1 : 0;
  }
  static __device__ void fetch(row *to, const T *x) {
    unsigned there = (unsigned)__cvta_generic_to_shared(to);
    // A single bf16 is a word in registers and here, but two bytes in memory, and copies have four or more.
    if constexpr (row::bytes == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(there), "l"(x) : "memory");
    else if constexpr (row::bytes >= 4)
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(there), "l"(x), "n"(row::bytes)
                   : "memory");
    else
      to->load(x);
  }
  // `rows` of them, of which the first are at from[].
  __device__ void start(int rows) {
    extern __shared__ uint4 memory[];
    mine = (row *)memory + threadIdx.y * LANES + threadIdx.x;
    left = rows, ask = use = 0;
#pragma unroll
    for (int i = 0; i < DEPTH - 1; i++) request();
  }
  // The next AHEAD rows; those after the last are undefined.
  __device__ void take(row (&x)[N][AHEAD]) {
    request(); // into what the last call read
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory");
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
#pragma unroll
      for (int k = 0; k < N; k++) x[k][i] = *at(use, i, k);
    use = use + 1 < DEPTH ? use + 1 : 0;
  }
};

// Rows and weights are indexed by distance: 0 is the current token, d the one d before it.
template <class T, int TAPS, int V>
struct conv_thread {
  typedef packed<T, V> row;
  const conv_call &c;
  int64_t channel, seq;
  int first, end; // the run's tokens
  int64_t origin; // row of its first token
  float w[TAPS][V], bias[V]; // once weights() was called
  bool weighed;

  __device__ conv_thread(const conv_call &call) : c(call) {
    channel = ((int64_t)blockIdx.x * LANES + threadIdx.x) * V;
    weighed = false;
  }
  // Loads them for the thread's first run, best where its rows are on their way. They include the multiplier; taps
  // that the conv does not have are 0. V > 1 has all its taps.
  __device__ void weights() {
    if (weighed) return;
    weighed = true;
    const T *from = (const T *)c.w + channel * c.K;
    float all[TAPS][V];
    if constexpr (V > 1) {
#pragma unroll
      for (int i = 0; i < TAPS; i++) fetch(c.w, channel * TAPS + i * V).unpack(all[i]);
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
      float mult = mult_of(c, channel + v);
      bias[v] = c.bias ? to_float(((const T *)c.bias)[channel + v]) : 0.0f;
#pragma unroll
      for (int d = 0; d < TAPS; d++) {
        constexpr int last = TAPS - 1;
        if constexpr (V > 1)
          w[d][v] = mult * all[(v * TAPS + last - d) / V][(v * TAPS + last - d) % V];
        else
          w[d][v] = d < c.K ? mult * to_float(from[c.K - 1 - d]) : 0.0f;
      }
    }
  }

  // f() for each of the thread's runs; mostly there is one.
  template <class F>
  __device__ void each_run(F f) {
    if (channel >= c.cd) return;
    for (int64_t i = blockIdx.y; i < c.groups; i += gridDim.y) {
      seq = i / c.parts;
      first = ((int)(i % c.parts) * RUNS + (int)threadIdx.y) * c.run;
      end = min(first + c.run, c.T);
      origin = seq * c.T + first;
      if (first < end) f();
    }
  }

  // Element of token t in rows of stride ld, and in the halo.
  __device__ int64_t at(int t, int ld) const {
    return origin * ld + channel + (int64_t)(t - first) * ld;
  }
  __device__ int64_t halo_at(int t) const {
    return (seq * (c.K - 1) + c.K - 1 + t) * c.cd + channel;
  }
  __device__ row fetch(const void *x, int64_t at) const {
    row r;
    r.load((const T *)x + at);
    return r;
  }
  __device__ static void put(void *to, int64_t at, const float (&x)[V]) {
    row r;
    r.pack(x);
    r.store((T *)to + at);
  }

  // How many tokens back token t sees.
  __device__ int reach(int t) const {
    return min(t - c.start[origin + t - first], c.K - 1);
  }
  // The start of the last of AHEAD tokens from t on. Starts do not decrease.
  __device__ int latest(int t) const {
    return c.start[origin + min(t + AHEAD, c.T) - 1 - first];
  }
  // All of t .. t + AHEAD - 1 are the run's own and see TAPS - 1 tokens back.
  __device__ bool whole(int t, int latest) const {
    return c.K == TAPS && t + AHEAD <= end && latest <= t - (TAPS - 1);
  }

  // Fills the raw rows before token t, except the oldest, which is the first to leave: from the
  // piece, its halo, or 0.
  __device__ void rows_before(float (&x)[TAPS][V], int t) const {
#pragma unroll
    for (int d = 0; d < TAPS - 1; d++) {
      int j = t - 1 - d;
      row r = {};
      if (d < c.K - 1 && (j >= 0 || c.halo))
        r = j >= 0 ? fetch(c.x, at(j, c.ldx)) : fetch(c.halo, halo_at(j));
      r.unpack(x[d]);
    }
  }

  // Before SiLU.
  __device__ void sum(float (&y)[V], const float (&x)[TAPS][V], int seen) const {
#pragma unroll
    for (int v = 0; v < V; v++) y[v] = bias[v];
#pragma unroll
    for (int d = TAPS - 1; d >= 0; d--)
      if (d <= seen)
#pragma unroll
        for (int v = 0; v < V; v++) y[v] += w[d][v] * x[d][v];
  }
};

// Every row becomes the one before it; the newest is filled.
template <int TAPS, class T, int V>
__device__ inline void shift(float (&x)[TAPS][V], const packed<T, V> &row) {
#pragma unroll
  for (int d = TAPS - 1; d > 0; d--)
#pragma unroll
    for (int v = 0; v < V; v++) x[d][v] = x[d - 1][v];
  row.unpack(x[0]);
}

// ---- forward ----

// Up to AHEAD tokens from t0, whose rows are given; x: the rows before.
template <bool WHOLE, class T, int TAPS, int V>
__device__ inline void batch(const conv_thread<T, TAPS, V> &me, const packed<T, V> (&row)[AHEAD],
                             float (&x)[TAPS][V], int t0) {
  const conv_call &c = me.c;
  float y[V];
  int seen[AHEAD];
#pragma unroll
  for (int i = 0; i < AHEAD; i++)
    seen[i] = WHOLE ? TAPS - 1 : t0 + i < me.end ? me.reach(t0 + i) : 0;
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    if (!WHOLE && t0 + i >= me.end) break;
    shift(x, row[i]);
    me.sum(y, x, seen[i]);
#pragma unroll
    for (int v = 0; v < V; v++) y[v] *= logistic<T>(y[v]);
    me.put(c.y, me.at(t0 + i, c.ldy), y);
  }
}

template <class T, int V>
using fwd_ring = row_ring<T, V, 1, FWD_DEPTH>;

template <class T, int TAPS, int V>
__device__ inline void run(conv_thread<T, TAPS, V> &me) {
  const conv_call &c = me.c;
  fwd_ring<T, V> ring;
  float x[TAPS][V];
  ring.from[0] = (const T *)c.x + me.at(me.first, c.ldx), ring.step[0] = c.ldx;
  ring.start(me.end - me.first);
  me.rows_before(x, me.first);
  me.weights();
  int soon = me.latest(me.first);
#pragma unroll 1
  for (int t0 = me.first; t0 < me.end; t0 += AHEAD) {
    packed<T, V> row[1][AHEAD];
    int latest = soon;
    ring.take(row);
    soon = me.latest(t0 + AHEAD);
    if (me.whole(t0, latest))
      batch<true>(me, row[0], x, t0);
    else
      batch<false>(me, row[0], x, t0);
  }
}

template <class T, int TAPS, int V>
__global__ void __launch_bounds__(LANES *RUNS, FWD_BLOCKS) conv(conv_call c) {
  conv_thread<T, TAPS, V> me(c);
  me.each_run([&]() { run(me); });
}

// ---- backward ----

// What a thread adds up over its runs.
template <int TAPS, int V>
struct conv_sums {
  float dw[TAPS][V], dbias[V];
};

// Adds up what the threads of the block have, and writes it as part [blockIdx.y] of every tap and of the bias.
template <int TAPS, int V>
__device__ inline void put_parts(const conv_call &c, const conv_sums<TAPS, V> &sum, int64_t channel) {
  __shared__ float turn[TAPS + 1][RUNS][LANES * V];
  int at = (int)threadIdx.x * V;
#pragma unroll
  for (int v = 0; v < V; v++) {
#pragma unroll
    for (int d = 0; d < TAPS; d++) turn[d][threadIdx.y][at + v] = sum.dw[d][v];
    turn[TAPS][threadIdx.y][at + v] = sum.dbias[v];
  }
  __syncthreads();
  if (channel >= c.cd) return;
  for (int k = (int)threadIdx.y; k <= c.K; k += RUNS) {
    float *to = c.part + ((int64_t)k * gridDim.y + blockIdx.y) * c.cd + channel;
    int d = k < c.K ? c.K - 1 - k : TAPS;
#pragma unroll
    for (int v = 0; v < V; v++) {
      float all = 0;
#pragma unroll
      for (int y = 0; y < RUNS; y++) all += turn[d][y][at + v];
      to[v] = all;
    }
  }
}

// Token t, which sees `seen` tokens back to rows x: its gradient before SiLU goes to the gradients
// dx of those rows, and to the sums where the token is the run's own.
template <class T, int TAPS, int V>
__device__ inline void token_back(const conv_thread<T, TAPS, V> &me, float (&dx)[TAPS][V],
                                  const float (&x)[TAPS][V], const packed<T, V> &dy, int seen,
                                  bool own, conv_sums<TAPS, V> &sum) {
  float dv[V], e[V];
  me.sum(dv, x, seen);
  dy.unpack(e);
#pragma unroll
  for (int v = 0; v < V; v++) {
    float s = logistic<T>(dv[v]);
    dv[v] = e[v] * s * (1.0f + dv[v] * (1.0f - s));
    if (own) sum.dbias[v] += dv[v];
  }
#pragma unroll
  for (int d = 0; d < TAPS; d++) {
    if (d > seen) break;
#pragma unroll
    for (int v = 0; v < V; v++) {
      dx[d][v] += me.w[d][v] * dv[v];
      if (own) sum.dw[d][v] += dv[v] * x[d][v];
    }
  }
}

// AHEAD tokens may be any; or the run's own, with as many after them in the sequence; or after the run, the
// last two each seeing TAPS - 1 tokens back.
enum tokens { ANY, OWN, AFTER };

template <class T, int V>
using back_ring = row_ring<T, V, 2, BACK_DEPTH>;

// What a run keeps from one token to the next.
template <class T, int TAPS, int V>
struct back_state {
  float x[TAPS][V], dx[TAPS][V]; // of the row [d] before the current token
  back_ring<T, V> next; // rows of x and dy
  T *to;                // the row of dx that is complete with the next token
};

// Row t, K - 1 before the token, has met the last token that sees it.
template <tokens WHICH, class T, int TAPS, int V>
__device__ inline void row_done(const conv_thread<T, TAPS, V> &me, back_state<T, TAPS, V> &run, int t,
                                int K) {
  const conv_call &c = me.c;
  packed<T, V> row;
#pragma unroll
  for (int d = 0; d < TAPS; d++)
    if (d == K - 1) row.pack(run.dx[d]);
  if (WHICH == AFTER || t >= me.first)
    row.store_once(run.to);
  else if (WHICH == ANY && t < 0 && c.dhalo)
    row.store_once((T *)c.dhalo + me.halo_at(t));
  run.to += c.ldx;
}

// AHEAD tokens from t0. A run's rows need the tokens before `last`, of which those before `stop` exist.
template <tokens WHICH, class T, int TAPS, int V>
__device__ inline void batch_back(const conv_thread<T, TAPS, V> &me, back_state<T, TAPS, V> &run,
                                  conv_sums<TAPS, V> &sum, int t0, int last, int stop) {
  const packed<T, V> zero = {};
  packed<T, V> next[2][AHEAD];
  int seen[AHEAD], K = WHICH == ANY ? me.c.K : TAPS;
  run.next.take(next);
#pragma unroll
  for (int i = 0; i < AHEAD; i++)
    seen[i] = WHICH != ANY ? TAPS - 1 : t0 + i < stop ? me.reach(t0 + i) : -1;
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    int t = t0 + i;
    if (WHICH == ANY ? t >= last : WHICH == AFTER && i == TAPS - 1) break;
    packed<T, V> row = zero, dy = zero;
    if (seen[i] >= 0) row = next[0][i], dy = next[1][i];
    shift(run.x, row);
    shift(run.dx, zero);
    token_back(me, run.dx, run.x, dy, seen[i], WHICH == OWN || (WHICH == ANY && t < me.end), sum);
    row_done<WHICH>(me, run, t - (K - 1), K);
  }
}

// The run: dx of its rows, and dhalo of the rows before the first.
template <class T, int TAPS, int V>
__device__ inline void run_back(conv_thread<T, TAPS, V> &me, conv_sums<TAPS, V> &sum) {
  const conv_call &c = me.c;
  int last = me.end + c.K - 1, stop = min(last, c.T);
  back_state<T, TAPS, V> run = {};
  run.to = (T *)c.dx + me.at(me.first - (c.K - 1), c.ldx);
  run.next.from[0] = (const T *)c.x + me.at(me.first, c.ldx), run.next.step[0] = c.ldx;
  run.next.from[1] = (const T *)c.dy + me.at(me.first, c.ldy), run.next.step[1] = c.ldy;
  run.next.start(stop - me.first);
  me.rows_before(run.x, me.first);
  me.weights();
  const int32_t *start = c.start + me.seq * c.T;
  // Where a batch may be OWN; the first may not when the halo's rows want its gradients.
  int from = me.first == 0 && c.dhalo ? AHEAD : me.first;
  int to = c.K == TAPS ? min(me.end - AHEAD, c.T - 2 * AHEAD) : -1;
  int latest = start[min(me.first + AHEAD, c.T) - 1]; // of a batch's last token
#pragma unroll 1
  for (int t0 = me.first; t0 < last; t0 += AHEAD) {
    // In a loop of their own, where what a run keeps stays in its registers.
#pragma unroll 1
    while (t0 >= from && t0 <= to && latest <= t0 - (TAPS - 1)) {
      latest = start[t0 + 2 * AHEAD - 1];
      batch_back<OWN>(me, run, sum, t0, last, stop);
      t0 += AHEAD;
    }
    bool after = c.K == TAPS && t0 == me.end && last == stop && latest <= t0 - (TAPS - 1);
    latest = start[min(t0 + 2 * AHEAD, c.T) - 1];
    if (after)
      batch_back<AFTER>(me, run, sum, t0, last, stop);
    else
      batch_back<ANY>(me, run, sum, t0, last, stop);
  }
}

template <class T, int TAPS, int V>
__global__ void __launch_bounds__(LANES *RUNS, BACK_BLOCKS<T>) conv_back(conv_call c) {
  let_next_begin(); // conv_reduce may come to where a block has ended
  conv_thread<T, TAPS, V> me(c);
  conv_sums<TAPS, V> sum = {};
  me.each_run([&]() { run_back(me, sum); });
  put_parts(c, sum, me.channel);
}

// dw[cd, K] and dbias[cd] += the sums over the parts: tap blockIdx.y of SUM_COLS channels.
__global__ void conv_reduce(conv_call c, int64_t parts, float *dw, float *dbias) {
  int64_t channel = (int64_t)blockIdx.x * SUM_COLS + threadIdx.x;
  int k = (int)blockIdx.y;
  float *to = k < c.K ? dw + channel * c.K + k : dbias ? dbias + channel : nullptr;
  bool mine = threadIdx.y == 0 && channel < c.cd && to;
  float before = mine ? *to : 0.0f; // conv_back does not write it, and all before it is over
  double mult = k < c.K ? mult_of(c, channel) : 1;
  wait_for_previous(); // conv_back is over
  double sum = sum_parts<SUM_COLS, SUM_ROWS>(c.part + k * parts * c.cd, parts, c.cd, channel);
  if (mine) *to = (float)(before + mult * sum);
}

// ---- launches ----

// Cuts sequences into runs of `run` tokens, a block for RUNS of them.
dim3 cut_runs(conv_call *c, int64_t b, int V, int run) {
  c->run = run;
  c->parts = (int)up(c->T, (int64_t)run * RUNS);
  c->groups = b * c->parts;
  return dim3((unsigned)up(c->cd, LANES * V), (unsigned)least(c->groups, 65535));
}

// For the backward, in which a block has sums: as many blocks as an H100 has at once, `each` on an SM (the
// rule knows sizes alone), but at most `most` in y, take turns with short runs of the length that ends first.
dim3 cut_turns(conv_call *c, int64_t b, int V, int each, int64_t most) {
  int64_t wide = up(c->cd, LANES * V), tall = least(up(132 * each - wide + 1, wide), most), least_cost = 0;
  int best = BACK_SHORT;
  if (tall < 1) tall = 1;
  for (int run = BACK_SHORT; run <= BACK_LONG; run += AHEAD) {
    int64_t cost = up(b * up(c->T, run * RUNS), tall) * (run + BACK_MORE);
    if (!least_cost || cost < least_cost) least_cost = cost, best = run;
  }
  dim3 grid = cut_runs(c, b, V, best);
  grid.y = (unsigned)least(grid.y, tall);
  return grid;
}

conv_call describe(const sk_conv_dims *d) {
  conv_call c = {};
  SK_CHECK(d->K >= 1 && d->K <= MOST_TAPS, "conv: %d taps, at most %d", (int)d->K, (int)MOST_TAPS);
  SK_CHECK(d->T < (1 << 30), "conv: sequence too long");
  SK_CHECK(d->ldx < (1 << 30) && d->ldy < (1 << 30), "conv: rows too long");
  c.T = (int)d->T, c.K = (int)d->K, c.ldx = (int)d->ldx, c.ldy = (int)d->ldy;
  c.cd = d->width[0] + d->width[1] + d->width[2];
  c.end[0] = d->width[0], c.end[1] = d->width[0] + d->width[1];
  for (int i = 0; i < 3; i++) c.mult[i] = (float)d->mult[i];
  return c;
}

// f(type_tag<T>, number<TAPS>, number<V>)
template <class W, class F>
void by_taps(sk_stream *s, const conv_call &c, W wide, F f) {
  auto four = [&](int V) { return c.K == 4 && wide(V); };
  by_type(s, four, [&](auto type, auto V) {
    if (c.K <= 4)
      f(type, number<4>(), V);
    else
      f(type, number<16>(), number<1>());
  });
}

} // namespace

extern "C" void sk_cuda_conv(sk_stream *s, const sk_conv_dims *d, void *y, const void *x,
                             const void *halo, const void *w, const void *bias,
                             const int32_t *start) {
  conv_call c = describe(d);
  if (d->b == 0 || c.T == 0 || c.cd == 0) return;
  c.x = x, c.halo = halo, c.w = w, c.bias = bias, c.start = start, c.y = y;
  auto wide = [&](int V) { return fits(V, {c.cd, c.ldx, c.ldy}, {x, halo, y, w}); };
  by_taps(s, c, wide, [&](auto type, auto taps, auto v) {
    constexpr int V = SK_NUMBER(v) < FWD_WIDE ? SK_NUMBER(v) : FWD_WIDE, TAPS = SK_NUMBER(taps);
    typedef SK_TYPE(type) T;
    dim3 grid = cut_runs(&c, d->b, V, FWD_RUN);
    conv<T, TAPS, V><<<grid, THREADS_XY, fwd_ring<T, V>::bytes, sk_cuda_stream(s)>>>(c);
  });
  SK_CUDA(cudaGetLastError());
}

extern "C" void sk_cuda_conv_grad(sk_stream *s, const sk_conv_dims *d, void *dx, void *dhalo,
                                  float *dw, float *dbias, const void *dy, const void *x,
                                  const void *halo, const void *w, const void *bias,
                                  const int32_t *start) {
  conv_call c = describe(d);
  if (d->b == 0 || c.T == 0 || c.cd == 0) return;
  int64_t sums = (d->K + 1) * c.cd * (int64_t)sizeof(float), parts = 0;
  int64_t most = least(65535, SK_CUDA_SCRATCH / sums);
  SK_CHECK(most > 0, "conv_grad: %lld channels", (long long)c.cd);
  c.x = x, c.halo = halo, c.w = w, c.bias = bias, c.start = start;
  c.dy = dy, c.dx = dx, c.dhalo = dhalo;
  auto wide = [&](int V) { return fits(V, {c.cd, c.ldx, c.ldy}, {x, halo, dy, dx, dhalo, w}); };
  by_taps(s, c, wide, [&](auto type, auto taps, auto v) {
    constexpr int V = SK_NUMBER(v) < BACK_WIDE ? SK_NUMBER(v) : BACK_WIDE, TAPS = SK_NUMBER(taps);
    typedef SK_TYPE(type) T;
    dim3 grid = cut_turns(&c, d->b, V, BACK_BLOCKS<T>, most);
    parts = grid.y;
    c.part = (float *)sk_cuda_scratch(s, (size_t)(parts * sums));
    conv_back<T, TAPS, V><<<grid, THREADS_XY, back_ring<T, V>::bytes, sk_cuda_stream(s)>>>(c);
  });
  SK_CUDA(cudaGetLastError());
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3((unsigned)up(c.cd, SUM_COLS), (unsigned)(d->K + 1));
  how.blockDim = dim3(SUM_COLS, SUM_ROWS);
  how.stream = sk_cuda_stream(s);
  how.attrs = &early, how.numAttrs = sk_cuda_arch(s) >= 90; // before, conv_reduce simply follows
  SK_CUDA(cudaLaunchKernelEx(&how, conv_reduce, c, parts, dw, dbias));
}
