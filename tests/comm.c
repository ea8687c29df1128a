/* comm.c: every operation of comm.h on the MPI table against a plain computation, with messages
 * whole and cut, on 1 to 4 ranks; once on the CPU device, once on one that has its copies made on
 * the host, as a GPU has (the same memory under another name). */
#include "src/comm.h"
#include "src/direct.h"
#include <string.h>
#include "tests/tap.h"

enum { GUARD = 64, BIG = 70001 }; // bytes on either side of outputs; elements

static const sk_comm_ops *const comm = &sk_comm_mpi;
static sk_ops ops; // the CPU's table, counting synchronisations
static bool far;   // its memory is not the host's
static sk_device *dev;
static sk_stream *st;
static sk_group *group;
static int syncs;

static void counted_sync(sk_stream *s) {
  syncs++;
  sk_cpu_ops.sync(s);
}

static void counted_to_host(sk_stream *s, void *host, const void *at, size_t bytes) {
  syncs++;
  sk_cpu_ops.to_host(s, host, at, bytes);
}

// ---- data: functions of (rank, index, key) ----

static float value(int rank, int64_t i, int key) {
  uint64_t k = sk_rand((uint64_t)key, (uint64_t)rank);
  // Magnitudes over 2^24: another order of adding gives other bits.
  return (float)((sk_uniform(k, (uint64_t)i) - 0.5) * exp2((double)(sk_rand(k, (uint64_t)i) % 24)));
}

static float sum_in_order(int64_t i, int key) {
  float s = value(0, i, key);
  for (int r = 1; r < tap_size; r++) s += value(r, i, key);
  return s;
}

static float sum_backwards(int64_t i, int key) {
  float s = value(tap_size - 1, i, key);
  for (int r = tap_size - 2; r >= 0; r--) s += value(r, i, key);
  return s;
}

static unsigned char byte(int rank, size_t i, int key) {
  return (unsigned char)sk_rand((uint64_t)key, (uint64_t)rank << 40 | i);
}

static bool same_bits(float a, float b) {
  return memcmp(&a, &b, sizeof a) == 0;
}

// ---- memory with guards; what is not written stays 0xee ----

static void *buffer(size_t bytes) {
  char *p = sk_malloc(bytes + 2 * GUARD);
  memset(p, 0xee, bytes + 2 * GUARD);
  return p + GUARD;
}

static bool untouched(const unsigned char *p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (p[i] != 0xee) return false;
  return true;
}

// Clears *ok when something was written beside the buffer.
static void release(void *p, size_t bytes, bool *ok) {
  unsigned char *at = (unsigned char *)p - GUARD;
  if (!untouched(at, GUARD) || !untouched(at + GUARD + bytes, GUARD)) *ok = false;
  sk_free(at);
}

static void fill(float *x, int64_t n, int64_t first, int key) {
  for (int64_t i = 0; i < n; i++) x[i] = value(tap_rank, first + i, key);
}

// Elements first .. first+n-1 of the sums over all ranks.
static bool is_sum(const float *x, int64_t n, int64_t first, int key) {
  for (int64_t i = 0; i < n; i++)
    if (!same_bits(x[i], sum_in_order(first + i, key))) return false;
  return true;
}

static bool is_from(const unsigned char *x, size_t n, int rank, int key) {
  for (size_t i = 0; i < n; i++)
    if (x[i] != byte(rank, i, key)) return false;
  return true;
}

static unsigned char *bytes_of(int rank, size_t n, int key) {
  unsigned char *x = buffer(n);
  for (size_t i = 0; i < n; i++) x[i] = byte(rank, i, key);
  return x;
}

// ---- single operations ----

static bool gather_once(size_t n, bool in_place) {
  unsigned char *src = bytes_of(tap_rank, n, 1), *dst = buffer(n * (size_t)tap_size);
  unsigned char *mine = dst + n * (size_t)tap_rank;
  if (in_place && n > 0) memcpy(mine, src, n);
  comm->wait(group, st, comm->all_gather(group, st, dst, in_place ? mine : src, n));
  bool ok = true;
  for (int r = 0; r < tap_size; r++) ok = ok && is_from(dst + n * (size_t)r, n, r, 1);
  ok = ok && is_from(src, n, tap_rank, 1);
  release(src, n, &ok);
  release(dst, n * (size_t)tap_size, &ok);
  return ok;
}

static void gathers(const char *how) {
  static const size_t size[] = {0, 1, 7, 1000, 4 * BIG};
  bool plain = true, in_place = true, mixed = true;
  for (int i = 0; i < 5; i++) {
    plain = gather_once(size[i], false) && plain;
    in_place = gather_once(size[i], true) && in_place;
    mixed = gather_once(size[i], tap_rank % 2) && mixed;
  }
  tap_ok(plain, "all_gather, messages %s", how);
  tap_ok(in_place && mixed, "all_gather in place, on all ranks or on some, messages %s", how);
}

static bool scatter_once(int64_t count, bool in_place) {
  const int64_t all = count * tap_size;
  size_t need = comm->scatter_ws(tap_size, count, SK_F32), bytes = (size_t)count * 4;
  float *src = buffer(bytes * (size_t)tap_size), *out = buffer(bytes), *ws = buffer(need);
  fill(src, all, 0, 2);
  float *dst = in_place ? src + count * tap_rank : out;
  comm->wait(group, st, comm->reduce_scatter(group, st, dst, src, count, SK_F32, ws));
  bool ok = is_sum(dst, count, count * tap_rank, 2);
  for (int64_t i = 0; i < all; i++) { // src is only read
    bool mine = in_place && i / count == tap_rank;
    ok = ok && (mine || same_bits(src[i], value(tap_rank, i, 2)));
  }
  release(src, bytes * (size_t)tap_size, &ok);
  release(out, bytes, &ok);
  release(ws, need, &ok);
  return ok;
}

static bool reduce_once(int64_t count) {
  size_t need = comm->reduce_ws(tap_size, count, SK_F32), bytes = (size_t)count * 4;
  float *x = buffer(bytes), *ws = buffer(need);
  fill(x, count, 0, 3);
  comm->wait(group, st, comm->all_reduce(group, st, x, count, SK_F32, ws));
  bool ok = is_sum(x, count, 0, 3);
  release(x, bytes, &ok);
  release(ws, need, &ok);
  return ok;
}

static void sums(const char *how) {
  static const int64_t count[] = {0, 1, 5, 1000, BIG};
  bool plain = true, in_place = true, reduced = true;
  for (int i = 0; i < 5; i++) {
    plain = scatter_once(count[i], false) && plain;
    in_place = scatter_once(count[i], true) && in_place;
    reduced = reduce_once(count[i]) && reduced;
  }
  tap_ok(plain, "reduce_scatter adds in rank order to the bit, messages %s", how);
  tap_ok(in_place, "reduce_scatter in place, messages %s", how);
  tap_ok(reduced, "all_reduce adds in rank order to the bit, messages %s", how);
}

static void order_matters(void) {
  int differ = 0;
  for (int64_t i = 0; i < 1000; i++) differ += !same_bits(sum_in_order(i, 2), sum_backwards(i, 2));
  tap_ok(tap_size <= 2 ? differ == 0 : differ > 100,
         "the sums tell orders apart: %d of 1000 differ", differ);
}

/* The same elements through one big reduce_scatter, through small ones and through all_reduce lie
 * at other places and with other ranks. */
static void cutting(void) {
  enum { N = 2520 }; // a multiple of 1..4 ranks times each piece below
  static const int64_t piece[] = {N, 210, 30};
  float *src = buffer(N * 4), *dst = buffer(N * 4),
        *ws = buffer(comm->reduce_ws(tap_size, N, SK_F32));
  bool ok = true;
  fill(src, N, 0, 4);
  for (int k = 0; k < 3; k++) {
    const int64_t len = piece[k] / tap_size;
    if (piece[k] % tap_size) continue;
    for (int64_t at = 0; at < N; at += piece[k]) {
      comm->wait(group, st, comm->reduce_scatter(group, st, dst, src + at, len, SK_F32, ws));
      ok = ok && is_sum(dst, len, at + len * tap_rank, 4);
    }
  }
  for (int64_t at = 0; at < N; at += 360) {
    memcpy(dst, src + at, 360 * 4);
    comm->wait(group, st, comm->all_reduce(group, st, dst, 360, SK_F32, ws));
    ok = ok && is_sum(dst, 360, at, 4);
  }
  release(src, N * 4, &ok);
  release(dst, N * 4, &ok);
  release(ws, comm->reduce_ws(tap_size, N, SK_F32), &ok);
  tap_ok(ok, "the bits do not depend on how the buffer is cut");
}

// ---- several operations under way ----

typedef struct flight {
  sk_group *g;
  unsigned char *src, *all;                       // gather
  float *part, *sum, *x, *ws_scatter, *ws_reduce; // reduce_scatter, all_reduce
  sk_ticket *ticket[3];
  int key;
} flight;

enum { BYTES = 30000, COUNT = 9001 };

static void depart(flight *f, sk_group *g, int key) {
  const size_t p = (size_t)tap_size;
  *f = (flight){.g = g, .key = key};
  f->src = bytes_of(tap_rank, BYTES, key);
  f->all = buffer(BYTES * p);
  f->part = buffer(COUNT * 4 * p);
  f->sum = buffer(COUNT * 4);
  f->x = buffer(COUNT * 4);
  f->ws_scatter = buffer(comm->scatter_ws(tap_size, COUNT, SK_F32));
  f->ws_reduce = buffer(comm->reduce_ws(tap_size, COUNT, SK_F32));
  fill(f->part, COUNT * tap_size, 0, key);
  fill(f->x, COUNT, 0, key + 50);
  f->ticket[0] = comm->all_gather(g, st, f->all, f->src, BYTES);
  f->ticket[1] = comm->reduce_scatter(g, st, f->sum, f->part, COUNT, SK_F32, f->ws_scatter);
  f->ticket[2] = comm->all_reduce(g, st, f->x, COUNT, SK_F32, f->ws_reduce);
}

static bool arrive(flight *f) {
  const size_t p = (size_t)tap_size;
  bool ok = is_sum(f->sum, COUNT, COUNT * tap_rank, f->key) && is_sum(f->x, COUNT, 0, f->key + 50);
  for (int r = 0; r < tap_size; r++)
    ok = ok && is_from(f->all + BYTES * (size_t)r, BYTES, r, f->key);
  release(f->src, BYTES, &ok);
  release(f->all, BYTES * p, &ok);
  release(f->part, COUNT * 4 * p, &ok);
  release(f->sum, COUNT * 4, &ok);
  release(f->x, COUNT * 4, &ok);
  release(f->ws_scatter, comm->scatter_ws(tap_size, COUNT, SK_F32), &ok);
  release(f->ws_reduce, comm->reduce_ws(tap_size, COUNT, SK_F32), &ok);
  return ok;
}

/* Nine collectives under way, waited for from the last to the first, or (even ranks, when `mixed`)
 * from the first to the last. */
static bool fly(sk_group *const g[3], bool mixed) {
  flight f[3];
  bool ok = true;
  for (int i = 0; i < 3; i++) depart(&f[i], g[i], 10 + i);
  for (int i = 0; i < 9; i++) {
    int k = mixed && tap_rank % 2 == 0 ? i : 8 - i;
    comm->wait(f[k / 3].g, st, f[k / 3].ticket[k % 3]);
  }
  for (int i = 0; i < 3; i++) ok = arrive(&f[i]) && ok;
  return ok;
}

static void in_flight(const char *how) {
  sk_err e = {0};
  sk_group *other = comm->open(MPI_COMM_WORLD, &ops, dev, &e), *const one[3] = {group, group,
                                                                                group};
  tap_ok(fly(one, false), "many operations under way, waited for in reverse order, messages %s",
         how);
  tap_ok(fly(one, true), "each rank waits in its own order, messages %s", how);
  // Groups know nothing of each other: the ranks may even begin with different ones.
  sk_group *const two[3] = {tap_rank % 2 ? group : other, tap_rank % 2 ? other : group, group};
  flight f[2];
  for (int i = 0; i < 2; i++) depart(&f[i], two[i], two[i] == group ? 20 : 21);
  for (int i = 5; i >= 0; i--) comm->wait(f[i / 3].g, st, f[i / 3].ticket[i % 3]);
  bool ok = arrive(&f[0]);
  tap_ok(arrive(&f[1]) && ok, "two groups on one communicator do not mix, messages %s", how);
  comm->close(other);
}

// ---- messages ----

/* Everybody sends n bytes to the next rank. early: the receive is there first, else it comes late.
 */
static bool pass_on(size_t n, bool early) {
  const int next = (tap_rank + 1) % tap_size, last = (tap_rank + tap_size - 1) % tap_size;
  unsigned char *src = bytes_of(tap_rank, n, 5), *dst = buffer(n);
  sk_ticket *in = NULL, *out;
  if (early) in = comm->recv(group, st, dst, n, last, 7);
  MPI_Barrier(MPI_COMM_WORLD);
  out = comm->send(group, st, src, n, next, 7);
  MPI_Barrier(MPI_COMM_WORLD);
  if (!early) in = comm->recv(group, st, dst, n, last, 7);
  comm->wait(group, st, early ? out : in);
  comm->wait(group, st, early ? in : out);
  bool ok = is_from(dst, n, last, 5);
  release(src, n, &ok);
  release(dst, n, &ok);
  return ok;
}

/* Messages of one pair: different tags, received in the opposite order; then one tag, in order;
 * while a collective and a message to itself are under way. */
static bool tags(void) {
  enum { M = 6, N = 3000 };
  static const int tag[M] = {0, SK_COMM_TAGS - 1, 1 << 15, 3, 3, 3};
  const int next = (tap_rank + 1) % tap_size, last = (tap_rank + tap_size - 1) % tap_size;
  unsigned char *src[M], *dst[M], *self = buffer(N);
  sk_ticket *out[M], *in[M];
  flight f;
  bool ok = true;
  for (int i = 0; i < M; i++) {
    src[i] = bytes_of(tap_rank, N, 30 + i);
    dst[i] = buffer(N);
    out[i] = comm->send(group, st, src[i], N, next, tag[i]);
  }
  depart(&f, group, 40);
  for (int i = 2; i >= 0; i--) in[i] = comm->recv(group, st, dst[i], N, last, tag[i]);
  for (int i = 3; i < M; i++) in[i] = comm->recv(group, st, dst[i], N, last, tag[i]);
  sk_ticket *to_self = comm->send(group, st, src[0], N, tap_rank, 9);
  sk_ticket *from_self = comm->recv(group, st, self, N, tap_rank, 9);
  for (int i = 0; i < M; i++) comm->wait(group, st, i % 2 ? in[i] : out[i]);
  for (int i = 0; i < M; i++) comm->wait(group, st, i % 2 ? out[i] : in[i]);
  for (int i = 2; i >= 0; i--) comm->wait(group, st, f.ticket[i]);
  comm->wait(group, st, from_self);
  comm->wait(group, st, to_self);
  ok = is_from(self, N, tap_rank, 30);
  for (int i = 0; i < M; i++) {
    ok = is_from(dst[i], N, last, 30 + i) && ok;
    release(src[i], N, &ok);
    release(dst[i], N, &ok);
  }
  release(self, N, &ok);
  return arrive(&f) && ok;
}

static void messages(const char *how) {
  static const size_t size[] = {0, 1, 1000, 300001};
  bool early = true, late = true;
  for (int i = 0; i < 4; i++) {
    early = pass_on(size[i], true) && early;
    late = pass_on(size[i], false) && late;
  }
  tap_ok(early, "messages whose receive is posted before the send, messages %s", how);
  tap_ok(late, "messages whose receive is posted after the send, messages %s", how);
  tap_ok(tags(), "tags tell messages apart; equal ones keep their order, messages %s", how);
}

/* Everybody to everybody in one bracket, in one order for each pair; what is sent differs by pair.
 */
static void brackets(void) {
  enum { N = 5000 };
  const size_t all = N * (size_t)tap_size;
  unsigned char *src = bytes_of(tap_rank, all, 60), *dst = buffer(all);
  sk_ticket *t[8];
  int n = 0;
  comm->together(group, st, true);
  for (int r = 0; r < tap_size; r++) {
    if (r == tap_rank) continue;
    t[n++] = comm->recv(group, st, dst + N * r, N, r, 3);
    t[n++] = comm->send(group, st, src + N * r, N, r, 3);
  }
  comm->together(group, st, false);
  while (n > 0) comm->wait(group, st, t[--n]);
  bool ok = true;
  for (int r = 0; r < tap_size; r++)
    for (size_t i = 0; i < N && r != tap_rank; i++)
      ok = ok && dst[N * r + (int)i] == byte(r, N * (size_t)tap_rank + i, 60);
  release(src, all, &ok);
  release(dst, all, &ok);
  tap_ok(ok, "messages in a bracket");
}

// ---- bf16, which only a device adds whose act elements it is ----

static sk_dtype act_bf16(const sk_device *d) {
  (void)d;
  return SK_BF16;
}

static void add_bf16(sk_stream *s, void *y, const void *a, const void *b, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    float v, w;
    sk_cpu_ops.cast(s, &v, SK_F32, (const uint16_t *)a + i, SK_BF16, 1);
    sk_cpu_ops.cast(s, &w, SK_F32, (const uint16_t *)b + i, SK_BF16, 1);
    v += w;
    sk_cpu_ops.cast(s, (uint16_t *)y + i, SK_BF16, &v, SK_F32, 1);
  }
}

static void half_sums(void) {
  enum { N = 300 };
  sk_err e = {0};
  sk_ops half = ops;
  half.name = "far", half.act = act_bf16, half.add = add_bf16;
  sk_group *g = comm->open(MPI_COMM_WORLD, &half, dev, &e);
  const int64_t all = N * tap_size;
  size_t need = comm->scatter_ws(tap_size, N, SK_BF16);
  float *x = buffer((size_t)all * 4);
  uint16_t *src = buffer((size_t)all * 2), *dst = buffer(N * 2), *ws = buffer(need);
  bool ok = need == (size_t)(tap_size - 1) * N * 2;
  fill(x, all, 0, 70);
  sk_cpu_ops.cast(st, src, SK_BF16, x, SK_F32, all);
  comm->wait(g, st, comm->reduce_scatter(g, st, dst, src, N, SK_BF16, ws));
  for (int64_t i = 0; i < N; i++) { // the same in order
    uint16_t sum = 0, part;
    for (int r = 0; r < tap_size; r++) {
      float v = value(r, N * tap_rank + i, 70);
      sk_cpu_ops.cast(st, r ? &part : &sum, SK_BF16, &v, SK_F32, 1);
      if (r) add_bf16(st, &sum, &sum, &part, 1);
    }
    ok = ok && sum == dst[i];
  }
  release(x, (size_t)all * 4, &ok);
  release(src, (size_t)all * 2, &ok);
  release(dst, N * 2, &ok);
  release(ws, need, &ok);
  comm->close(g);
  tap_ok(ok, "reduce_scatter of bf16");
}

// ---- the table's other promises ----

static void statistics(void) {
  enum { N = 100 };
  const int p = tap_size, next = (tap_rank + 1) % p, last = (tap_rank + p - 1) % p;
  sk_comm_stats *s = comm->stats(group), want = {.calls = {2, 1, 3, 1}};
  float *a = buffer(N * 4 * (size_t)p), *b = buffer(N * 4 * (size_t)p), *x = buffer(N * 4);
  fill(a, N * p, 0, 6);
  fill(x, N, 0, 6);
  memset(s, 0, sizeof *s);
  for (int i = 0; i < 2; i++) comm->wait(group, st, comm->all_gather(group, st, b, x, N * 4));
  comm->wait(group, st, comm->reduce_scatter(group, st, x, a, N, SK_F32, b));
  for (int i = 0; i < 3; i++) comm->wait(group, st, comm->all_reduce(group, st, x, N, SK_F32, b));
  sk_ticket *in = comm->recv(group, st, b, N, last, 0);
  comm->wait(group, st, comm->send(group, st, a, N, next, 0));
  comm->wait(group, st, in);
  want.bytes[SK_COMM_GATHER] = 2 * (p - 1) * (N * 4);
  want.bytes[SK_COMM_SCATTER] = (p - 1) * (N * 4);
  want.bytes[SK_COMM_REDUCE] = 3 * (p - 1) * (N * 4);
  want.bytes[SK_COMM_SEND] = p > 1 ? N : 0;
  for (int k = 0; k < SK_COMM_KINDS; k++)
    tap_ok(s->calls[k] == want.calls[k] && s->bytes[k] == want.bytes[k],
           "%s: %lld calls, %lld bytes sent", sk_comm_kind_name[k], (long long)want.calls[k],
           (long long)want.bytes[k]);
  bool ok = true;
  release(a, N * 4 * (size_t)p, &ok);
  release(b, N * 4 * (size_t)p, &ok);
  release(x, N * 4, &ok);
  tap_ok(ok, "and nothing was written beside the buffers");
}

/* A call must not read before the stream is done; a ticket comes from the pool once it is warm. */
static void stream_and_pool(void) {
  float x[4] = {0}, y[16] = {0}, z[16] = {0}, ws[16];
  bool synced = true, pooled = true;
  for (int k = 0; k < 4; k++) {
    int before = syncs;
    sk_ticket *t = k == 0   ? comm->all_gather(group, st, y, x, sizeof x)
                   : k == 1 ? comm->reduce_scatter(group, st, x, z, 4, SK_F32, ws)
                   : k == 2 ? comm->all_reduce(group, st, x, 4, SK_F32, ws)
                            : comm->recv(group, st, y, sizeof x, tap_rank, 1);
    synced = synced && (syncs > before || (k < 3 && tap_size == 1) || (k == 3 && far));
    sk_ticket *u = k < 3 ? NULL : comm->send(group, st, x, sizeof x, tap_rank, 1);
    synced = synced && (!u || syncs > before + !far);
    comm->wait(group, st, u);
    comm->wait(group, st, t);
  }
  tap_ok(synced, "every call waits for the stream before it reads");
  sk_ticket *first[2] = {NULL, NULL};
  for (int i = 0; i < 10; i++) {
    sk_ticket *t = comm->recv(group, st, y, 4, tap_rank, 1);
    sk_ticket *u = comm->send(group, st, x, 4, tap_rank, 1);
    if (i == 0) first[0] = t, first[1] = u;
    pooled = pooled && t == first[0] && u == first[1];
    comm->wait(group, st, u);
    comm->wait(group, st, t);
  }
  comm->wait(group, st, NULL);
  comm->close(NULL);
  tap_ok(pooled, "tickets are used again; NULL is no ticket and no group");
}

static bool complete(const sk_comm_ops *c) {
  return c->name && c->open && c->close && c->all_gather && c->scatter_ws && c->reduce_scatter &&
         c->reduce_ws && c->all_reduce && c->together && c->send && c->recv && c->wait && c->stats;
}

static void tables(void) {
  sk_err e = {0};
  tap_ok(complete(&sk_comm_mpi) && complete(&sk_comm_plan), "the tables have no NULL entry");
  sk_device *plan = sk_plan_open(&sk_cpu_ops, NULL, SK_F32);
  // Only one rank has the wrong device; nobody hangs.
  bool wrong = tap_rank == tap_size - 1;
  sk_group *g = comm->open(MPI_COMM_WORLD, wrong ? &sk_plan_ops : &ops, wrong ? plan : dev, &e);
  tap_ok(!g && e.code == SK_FAILED && strstr(e.msg, "\"plan\""), "a device without memory: %s",
         e.msg);
  e = (sk_err){0};
  const sk_comm_ops *c = &sk_comm_plan;
  g = c->open(MPI_COMM_NULL, &sk_plan_ops, plan, &e);
  float x = 1.0f, y = 2.0f;
  sk_ticket *t[5] = {c->all_gather(g, NULL, &y, &x, 4),
                     c->reduce_scatter(g, NULL, &y, &x, 1, SK_F32, NULL),
                     c->all_reduce(g, NULL, &x, 1, SK_F32, NULL), c->send(g, NULL, &x, 4, 5, 0),
                     c->recv(g, NULL, &y, 4, 5, 0)};
  bool idle = g && x == 1.0f && y == 2.0f && c->stats(g)->calls[SK_COMM_GATHER] == 0;
  for (int i = 0; i < 5; i++) {
    idle = idle && !t[i];
    c->wait(g, NULL, t[i]);
  }
  c->close(g);
  tap_ok(idle, "the plan's groups do nothing");
  bool sizes = true;
  for (int p = 1; p <= 9; p++) {
    const int64_t n = INT64_C(3000000000); // beyond 32 bits
    sizes = sizes && comm->scatter_ws(p, n, SK_F32) == (size_t)(p - 1) * 12000000000u;
    sizes = sizes && comm->reduce_ws(p, n, SK_F32) == (p == 1 ? 0 : (size_t)p * 12000000000u);
    sizes = sizes && c->scatter_ws(p, n, SK_F32) == comm->scatter_ws(p, n, SK_F32);
    sizes = sizes && c->reduce_ws(p, n, SK_F32) == comm->reduce_ws(p, n, SK_F32);
  }
  tap_ok(sizes, "the plan counts the same scratch memory");
  if (!sk_comm_nccl) {
    tap_skip("and that of the copy engines: this program was built without NCCL");
    return;
  }
  const int64_t least = (int64_t)(sk_direct_from / 2);
  sk_comm_plan_for(sk_comm_nccl);
  tap_ok(c->scatter_ws(4, least, SK_BF16) == 3 * sk_direct_from &&
             c->scatter_ws(4, least - 1, SK_BF16) == 0 && c->scatter_ws(4, least, SK_F32) == 0,
         "and that of the copy engines: for large bf16 parts");
  sk_comm_plan_for(comm);
}

// A group of some ranks only, in an order of their own; its communicator may be freed at once.
static void subgroup(void) {
  MPI_Comm half;
  sk_err e = {0};
  SK_MPI(MPI_Comm_split(MPI_COMM_WORLD, tap_rank % 2, -tap_rank, &half));
  sk_group *g = comm->open(half, &ops, dev, &e);
  int p = (tap_size + 1 - tap_rank % 2) / 2, mine = tap_rank, all[4];
  SK_MPI(MPI_Comm_free(&half));
  comm->wait(g, st, comm->all_gather(g, st, all, &mine, sizeof mine));
  bool ok = true;
  for (int i = 0; i < p; i++) ok = ok && all[i] == tap_rank % 2 + 2 * (p - 1 - i);
  comm->close(g);
  tap_ok(ok, "a group has its communicator's ranks and order, and outlives it");
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  sk_err e = {0};
  ops = sk_cpu_ops;
  ops.sync = counted_sync;
  ops.to_host = counted_to_host;
  dev = ops.open(0, SK_F32, &e);
  SK_CHECK(dev, "%s", e.msg);
  st = ops.stream_create(dev);
  tables();
  order_matters();
  const size_t whole = sk_comm_mpi_cut;
  for (int device = 0; device < 2; device++) {
    far = device == 1;
    ops.name = far ? "far" : "cpu";
    group = comm->open(MPI_COMM_WORLD, &ops, dev, &e);
    SK_CHECK(group, "%s", e.msg);
    for (int cut = 0; cut < 2; cut++) {
      char how[64];
      snprintf(how, sizeof how, "%s%s", cut ? "cut" : "whole",
               far ? ", by copies on the host" : "");
      sk_comm_mpi_cut = cut ? 997 : whole; // not a multiple of an element
      gathers(how);
      sums(how);
      in_flight(how);
      messages(how);
    }
    cutting();
    sk_comm_mpi_cut = whole;
    brackets();
    statistics();
    stream_and_pool();
    subgroup();
    comm->close(group);
  }
  half_sums();
  ops.stream_destroy(st);
  ops.close(dev);
  return tap_done();
}
