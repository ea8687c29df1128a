/* devices.c: two ranks with a GPU each: collectives and messages between the GPUs' memories, by
 * NCCL, by the copy engines and through the host by MPI, and small models trained on tp 2, cp 2,
 * pp 2 and dp 2 against one GPU. Where there is one GPU the ranks share it and NCCL, which cannot,
 * is tried by each rank alone; without a GPU all is skipped. With SAKER_SHARED_GPU=1 other programs
 * may use the GPUs, and what a step allocates, which is seen by what the GPU has left, is not looked
 * at. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "src/device.h"
#include "src/direct.h"
#include "src/overlap.h"
#include "src/transport.h"
#include "tests/small_model.h"
#include "tests/tap.h"

enum { COUNT = 300007, STEPS = 20, B = 4, T = 160 }; // many tokens: bf16's roundings average out in the loss

static const sk_ops *op;
static int gpus; // that can be seen; rank r has number r % gpus
static sk_device *dev;
static sk_stream *st;
static const sk_comm_ops *comm;
static sk_group *group;

// ---- communication ----

// Small integers: their sums are exact in fp32 and in bf16, whatever the order.
static float value(int rank, int64_t i, int key) {
  return (float)(sk_rand((uint64_t)(7 * rank + key), (uint64_t)i) % 17) - 8;
}

typedef struct memory {
  void *at;
  int64_t n;
  sk_dtype type;
} memory;

// Memory that other ranks may have mapped lives until the group is closed.
static void *kept[128];
static int n_kept;

static void *keep(size_t bytes) {
  SK_CHECK(n_kept < 128, "%d blocks of memory", n_kept);
  void *p = op->alloc(dev, bytes + 256);
  SK_CHECK(p, "out of memory");
  return kept[n_kept++] = p;
}

static void drop_all(void) {
  while (n_kept) op->free(dev, kept[--n_kept]);
}

// n elements; poison with key < 0.
static memory make(int64_t n, sk_dtype type, int rank, int key) {
  size_t bytes = (size_t)n * sk_dtype_size(type);
  memory m = {keep(bytes), n, type};
  float *x = sk_malloc((size_t)n * sizeof *x);
  char *raw = sk_malloc(bytes);
  for (int64_t i = 0; i < n; i++) x[i] = key < 0 ? NAN : value(rank, i, key);
  sk_cpu_ops.cast(NULL, raw, type, x, SK_F32, n);
  op->from_host(st, m.at, raw, bytes);
  sk_free(raw);
  sk_free(x);
  return m;
}

// Element i is `want` of (first + i).
typedef float (*wanted)(int64_t i, int key);
static bool take(memory *m, wanted want, int64_t first, int key) {
  size_t bytes = (size_t)m->n * sk_dtype_size(m->type);
  float *x = sk_malloc((size_t)m->n * sizeof *x);
  char *raw = sk_malloc(bytes);
  bool good = true;
  op->to_host(st, raw, m->at, bytes);
  sk_cpu_ops.cast(NULL, x, SK_F32, raw, m->type, m->n);
  for (int64_t i = 0; i < m->n; i++) good = good && x[i] == want(first + i, key);
  sk_free(raw);
  sk_free(x);
  return good;
}

static float sum_of(int64_t i, int key) {
  float sum = 0;
  for (int r = 0; r < tap_size; r++) sum += value(r, i, key);
  return sum;
}
static float gathered(int64_t i, int key) {
  return value((int)(i / COUNT), i % COUNT, key);
}
static float of_other(int64_t i, int key) {
  return value(1 - tap_rank, i, key);
}

static void test_collectives(sk_dtype type) {
  size_t bytes = COUNT * sk_dtype_size(type);
  memory src = make(COUNT, type, tap_rank, 1), all = make(2 * COUNT, type, 0, -1);
  memory part = make(2 * COUNT, type, tap_rank, 2), mine = make(COUNT, type, 0, -1);
  memory x = make(COUNT, type, tap_rank, 3);
  void *ws = keep(comm->scatter_ws(2, COUNT, type)), *ws2 = keep(comm->reduce_ws(2, COUNT, type));
  sk_ticket *t[3] = {comm->all_gather(group, st, all.at, src.at, bytes),
                     comm->reduce_scatter(group, st, mine.at, part.at, COUNT, type, ws),
                     comm->all_reduce(group, st, x.at, COUNT, type, ws2)};
  for (int i = 2; i >= 0; i--) comm->wait(group, st, t[i]);
  bool gather = take(&all, gathered, 0, 1),
       scatter = take(&mine, sum_of, (int64_t)tap_rank * COUNT, 2);
  bool reduce = take(&x, sum_of, 0, 3);
  const char *name = type == SK_F32 ? "fp32" : "bf16", *way = sk_direct_from == 1 ? ", directly" : "";
  tap_ok(gather, "%s, %s%s: all_gather", comm->name, name, way);
  tap_ok(scatter, "%s, %s%s: reduce_scatter", comm->name, name, way);
  tap_ok(reduce, "%s, %s%s: all_reduce", comm->name, name, way);
}

// A call reads after the work enqueued so far, and who waits finds what arrived: sums on both
// sides.
static void test_order(void) {
  memory x = make(COUNT, SK_F32, tap_rank, 4), y = make(COUNT, SK_F32, tap_rank, 5),
         all = make(2 * COUNT, SK_F32, 0, -1);
  for (int i = 0; i < 50; i++) op->add_f32(st, x.at, x.at, y.at, COUNT);
  comm->wait(group, st, comm->all_gather(group, st, all.at, x.at, COUNT * 4));
  float *mine = all.at, *sum = mine + (1 - tap_rank) * COUNT;
  op->copy(st, x.at, sum, COUNT * 4);
  float *got = sk_malloc(COUNT * sizeof *got);
  op->to_host(st, got, x.at, COUNT * 4);
  bool good = true;
  for (int64_t i = 0; i < COUNT; i++) good = good && got[i] == of_other(i, 4) + 50 * of_other(i, 5);
  tap_ok(good, "%s: in the order of the stream", comm->name);
  sk_free(got);
}

static void test_messages(bool together) {
  const int other = 1 - tap_rank;
  memory src[2] = {make(COUNT, SK_F32, tap_rank, 6), make(1000, SK_F32, tap_rank, 7)};
  memory dst[2] = {make(COUNT, SK_F32, 0, -1), make(1000, SK_F32, 0, -1)};
  sk_ticket *t[4];
  if (together) comm->together(group, st, true);
  for (int i = 0; i < 2; i++) {
    t[2 * i] = comm->recv(group, st, dst[i].at, (size_t)dst[i].n * 4, other, i);
    t[2 * i + 1] = comm->send(group, st, src[i].at, (size_t)src[i].n * 4, other, i);
  }
  if (together) comm->together(group, st, false);
  for (int i = 0; i < 4; i++) comm->wait(group, st, t[3 - i]);
  bool good = take(&dst[0], of_other, 0, 6);
  good = take(&dst[1], of_other, 0, 7) && good;
  tap_ok(good, "%s: messages both ways%s", comm->name, together ? " in a bracket" : "");
}

// src is in dst, on both ranks or on the second alone.
static void test_in_place(void) {
  bool good = true;
  for (int both = 0; both < 2; both++) {
    memory src = make(COUNT, SK_F32, tap_rank, 8), all = make(2 * COUNT, SK_F32, 0, -1);
    float *mine = (float *)all.at + tap_rank * COUNT;
    bool inside = both || tap_rank == 1;
    if (inside) op->copy(st, mine, src.at, COUNT * 4);
    comm->wait(group, st, comm->all_gather(group, st, all.at, inside ? mine : src.at, COUNT * 4));
    good = take(&all, gathered, 0, 8) && good;
  }
  tap_ok(good, "%s: all_gather in place%s", comm->name, sk_direct_from == 1 ? ", directly" : "");
}

static bool same_bits(const void *a, const void *b, size_t bytes) {
  char *x = sk_malloc(bytes), *y = sk_malloc(bytes);
  op->to_host(st, x, a, bytes);
  op->to_host(st, y, b, bytes);
  bool same = memcmp(x, y, bytes) == 0;
  sk_free(x);
  sk_free(y);
  return same;
}

// Numbers whose sums are rounded.
static void *fractions(int64_t n, sk_dtype type, int key) {
  size_t bytes = (size_t)n * sk_dtype_size(type);
  float *x = sk_malloc((size_t)n * sizeof *x);
  void *raw = sk_malloc(bytes), *at = keep(bytes);
  for (int64_t i = 0; i < n; i++)
    x[i] = (float)(sk_rand((uint64_t)(10 + tap_rank), (uint64_t)(key * n + i)) >> 40) * 1e-6f - 8;
  sk_cpu_ops.cast(NULL, raw, type, x, SK_F32, n);
  op->from_host(st, at, raw, bytes);
  sk_free(raw);
  sk_free(x);
  return at;
}

// Gathers and sums of n elements of act a rank, all under way before the first is waited for, give
// the same bits by the copy engines as by NCCL (a sum of two bf16 is rounded once in both).
static void test_same(int64_t n, sk_dtype act) {
  enum { EACH = 3 };
  const size_t bytes = (size_t)n * sk_dtype_size(act), from = sk_direct_from;
  void *src[EACH], *all[2][EACH], *sum[2][EACH];
  for (int i = 0; i < EACH; i++) src[i] = fractions(2 * n, act, i);
  for (int direct = 0; direct < 2; direct++) {
    sk_ticket *t[2 * EACH];
    sk_direct_from = direct ? from : SIZE_MAX;
    for (int i = 0; i < EACH; i++) {
      all[direct][i] = keep(2 * bytes);
      sum[direct][i] = keep(bytes);
      void *ws = keep(comm->scatter_ws(2, n, act));
      t[2 * i] = comm->all_gather(group, st, all[direct][i], src[i], bytes);
      t[2 * i + 1] = comm->reduce_scatter(group, st, sum[direct][i], src[i], n, act, ws);
    }
    for (int i = 2 * EACH - 1; i >= 0; i--) comm->wait(group, st, t[i]);
  }
  bool gathers = true, sums = true;
  for (int i = 0; i < EACH; i++) {
    gathers = same_bits(all[0][i], all[1][i], 2 * bytes) && gathers;
    sums = same_bits(sum[0][i], sum[1][i], bytes) && sums;
  }
  tap_ok(gathers && sums, "several gathers and %s sums of %zu bytes at once: NCCL's bits",
         act == SK_F32 ? "fp32" : "bf16", bytes);
}

static void test_direct_parts(sk_dtype act) {
  const size_t usual = sk_direct_from;
  sk_direct_from = 1;
  test_collectives(act);
  test_in_place();
  test_same(1, act);
  test_same(COUNT, act);
  sk_direct_from = usual;
  test_same((64 << 20) / (int64_t)sk_dtype_size(act), act);
}

static void test_comm(const sk_comm_ops *table) {
  sk_err e = {0};
  comm = table;
  for (int act = SK_F32; act <= (op == sk_cuda ? SK_BF16 : SK_F32); act++) {
    dev = op->open(tap_rank % gpus, (sk_dtype)act, &e);
    SK_CHECK(dev, "%s", e.msg);
    st = op->stream_create(dev);
    group = comm->open(MPI_COMM_WORLD, op, dev, &e);
    SK_CHECK(group, "%s", e.msg);
    test_collectives((sk_dtype)act);
    if (act == SK_F32) {
      test_in_place();
      test_order();
      test_messages(true);
      test_messages(false);
    }
    if (table == sk_comm_nccl) test_direct_parts((sk_dtype)act);
    comm->close(group);
    drop_all();
    op->stream_destroy(st);
    op->close(dev);
  }
}

static float own(int64_t i, int key) {
  return value(tap_rank, i, key);
}

// A group of this rank alone.
static void test_alone(void) {
  sk_err e = {0};
  comm = sk_comm_nccl;
  dev = op->open(tap_rank % gpus, SK_F32, &e);
  SK_CHECK(dev, "%s", e.msg);
  st = op->stream_create(dev);
  group = comm->open(MPI_COMM_SELF, op, dev, &e);
  SK_CHECK(group, "%s", e.msg);
  memory src = make(COUNT, SK_F32, tap_rank, 1), dst[4];
  for (int i = 0; i < 4; i++) dst[i] = make(COUNT, SK_F32, tap_rank, i == 2 ? 1 : -1);
  sk_ticket *t[5] = {comm->all_gather(group, st, dst[0].at, src.at, COUNT * 4),
                     comm->reduce_scatter(group, st, dst[1].at, src.at, COUNT, SK_F32, NULL),
                     comm->all_reduce(group, st, dst[2].at, COUNT, SK_F32, NULL)};
  comm->together(group, st, true);
  t[3] = comm->recv(group, st, dst[3].at, COUNT * 4, 0, 0);
  t[4] = comm->send(group, st, src.at, COUNT * 4, 0, 0);
  comm->together(group, st, false);
  for (int i = 4; i >= 0; i--) comm->wait(group, st, t[i]);
  bool good = true;
  for (int i = 0; i < 4; i++) good = take(&dst[i], own, 0, 1) && good;
  tap_ok(good, "%s: a group of one rank", comm->name);
  comm->close(group);
  drop_all();
  op->stream_destroy(st);
  op->close(dev);
}

// ---- training ----

typedef struct batch {
  int32_t ids[B * T], label[B * T], start[B * T];
} batch;

static long long grown; // bytes that the last training took of the GPU after its second step

// The losses of STEPS steps on this grid, the same on all of its ranks.
// at_once: without overlap.
static void train_how(const sk_config *cfg, const sk_grid *grid, const batch *k, bool at_once, double *loss) {
  const sk_comm_ops *table = gpus < tap_size ? &sk_comm_mpi : sk_device_comm(op);
  sk_engine g;
  sk_err e = {0};
  int bad;
  SK_CHECK(sk_engine_open(&g, cfg, op, table, grid, true, 1, T, T, &e) == SK_OK, "%s", e.msg);
  sk_engine_init(&g);
  if (at_once) sk_overlap_open(&g, true);
  int64_t local = B / grid->n[SK_DP], at = grid->at[SK_DP] * local * T;
  const double scale = 1.0 / (B * (T - 1));
  bool counts = grid->at[SK_PP] == grid->n[SK_PP] - 1 && grid->at[SK_TP] == 0;
  size_t before = 0;
  for (int i = 0; i < STEPS; i++) {
    if (i == 2) before = op->used(g.ctx.dev);
    sk_engine_step(&g, k->ids + at, k->label + at, k->start + at, scale);
    loss[i] = counts ? sk_engine_take_loss(&g) * scale : 0;
    if (!counts) sk_engine_take_loss(&g);
    if (grid->size > 1)
      SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &loss[i], 1, MPI_DOUBLE, MPI_SUM, grid->world));
    if (grid->size > 1) sk_optim_norm(&g.opt, &g.ctx, grid->zero, grid->model, g.model.all.n, &bad);
    sk_optim_update(&g.opt, &g.ctx, cfg, i + 1, cfg->optimizer.lr, 1);
    sk_optim_gather(&g.opt, &g.ctx);
  }
  grown = (long long)op->used(g.ctx.dev) - (long long)before;
  if (at_once) sk_overlap_close();
  sk_engine_close(&g);
}

static void train(const sk_config *cfg, const sk_grid *grid, const batch *k, double *loss) {
  train_how(cfg, grid, k, false, loss);
}

typedef struct variant {
  const char *name;
  int axis, transport, schedule, virtual_stages;
  bool tied;
} variant;

static const variant variants[] = {
    {"pp", SK_PP, SK_TRANSPORT_AUTO, SK_SCHED_1F1B, 1, false},
    {"pp, ipc", SK_PP, SK_TRANSPORT_IPC, SK_SCHED_1F1B, 1, false},
    {"pp, mpi", SK_PP, SK_TRANSPORT_MPI, SK_SCHED_1F1B, 1, false},
    {"pp, nccl", SK_PP, SK_TRANSPORT_NCCL, SK_SCHED_1F1B, 1, false},
    {"pp, ipc, interleaved, tied", SK_PP, SK_TRANSPORT_IPC, SK_SCHED_INTERLEAVED, 2, true},
    {"pp, nccl, interleaved, tied", SK_PP, SK_TRANSPORT_NCCL, SK_SCHED_INTERLEAVED, 2, true},
    {"pp, mpi, interleaved, tied", SK_PP, SK_TRANSPORT_MPI, SK_SCHED_INTERLEAVED, 2, true},
    {"pp, ipc, zb-h1, tied", SK_PP, SK_TRANSPORT_IPC, SK_SCHED_ZB_H1, 1, true},
    {"pp, nccl, zb-h1", SK_PP, SK_TRANSPORT_NCCL, SK_SCHED_ZB_H1, 1, false},
    {"dp", SK_DP, SK_TRANSPORT_AUTO, SK_SCHED_1F1B, 1, false},
    {"cp", SK_CP, SK_TRANSPORT_AUTO, SK_SCHED_1F1B, 1, false},
    {"tp", SK_TP, SK_TRANSPORT_AUTO, SK_SCHED_1F1B, 1, false},
};

// Whether this variant's parts may go by the copy engines, which small ones do only when told to.
static bool may_go_directly(const variant *v) {
  return sk_comm_nccl && gpus >= tap_size && (v->axis == SK_TP || v->axis == SK_CP);
}

static void test_variant(sk_config *c, const variant *v, const batch *k, const double *want, double limit) {
  double got[STEPS], again[STEPS], plain[STEPS], worst = 0;
  int n[SK_NAXES] = {1, 1, 1, 1};
  sk_grid grid;
  n[v->axis] = 2;
  sk_grid_create(&grid, MPI_COMM_WORLD, n);
  grid.node_rank = tap_rank % gpus;
  c->parallel.transport = v->transport;
  c->parallel.schedule = v->schedule;
  c->parallel.virtual_stages = v->virtual_stages;
  train(c, &grid, k, got);
  train(c, &grid, k, again);
  train_how(c, &grid, k, true, plain);
  if (may_go_directly(v)) {
    const size_t usual = sk_direct_from;
    double direct[STEPS];
    sk_direct_from = 1;
    train(c, &grid, k, direct);
    sk_direct_from = usual;
    tap_ok(memcmp(got, direct, sizeof got) == 0, "%s 2: the same bits by the copy engines", v->name);
  }
  c->parallel.virtual_stages = 1;
  c->parallel.schedule = SK_SCHED_1F1B;
  for (int i = 0; i < STEPS; i++) worst = fmax(worst, fabs(got[i] / want[i] - 1));
  tap_ok(worst <= limit, "%s, %s 2: losses of %d steps, %.6f to %.6f, within %.2g of one GPU's, limit %.0e",
         c->train.dtype == SK_DTYPE_FP32 ? "fp32" : "bf16", v->name, STEPS, got[0], got[STEPS - 1], worst, limit);
  tap_ok(memcmp(got, again, sizeof got) == 0, "and a second run gives the same bits");
  tap_ok(memcmp(got, plain, sizeof got) == 0, "and so does a run without overlap");
  sk_grid_destroy(&grid);
}

static void configure(sk_config *c, batch *k) {
  const char *const pattern[] = {"P-", "P-", "P-", "P-"};
  small_config(c, 4, pattern);
  c->parallel.virtual_stages = 1;
  c->train.global_batch = B, c->train.micro_batch = 1;
  c->optimizer.betas[0] = 0.9, c->optimizer.betas[1] = 0.95;
  c->optimizer.lr = 1e-3, c->optimizer.eps = 1e-8, c->optimizer.weight_decay = 0.1;
  small_ids(k->ids, B * T, c->model.vocab_size, 3);
  for (int i = 0; i < B * T; i++) {
    k->start[i] = i % T >= 13 ? 13 : 0;
    k->label[i] = i % T + 1 < T && i % T != 12 ? k->ids[i + 1] : -1;
  }
}

// For bf16: a wider model with the same scale of activations. Where the sums of the small one are regrouped over
// ranks, bf16's roundings alone move the loss of a step by more than 1e-3, whichever grouping is right. It learns
// slowly: in 20 fast steps it would know its few tokens by heart, and a loss near 0 has no digits to compare.
static void widen(sk_config *c) {
  sk_model_cfg *m = &c->model;
  m->hidden_size = 256, m->intermediate_size = 512, m->head_dim = 64;
  m->mamba_d_ssm = 512, m->mamba_n_heads = 8, m->mamba_d_head = 64, m->mamba_d_state = 64;
  m->initializer_range = 0.06;
  c->optimizer.lr = 1e-4;
  for (int i = 0; i < c->n_layers; i++) c->layer[i].m = *m;
}

static bool possible(const variant *v) {
  return v->transport != SK_TRANSPORT_NCCL || (gpus >= tap_size && sk_comm_nccl);
}

// After the second step the GPU has as much left as after the last.
static void test_growth(sk_config *c, const batch *k) {
  const size_t usual = sk_direct_from;
  double loss[STEPS];
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
    const variant *v = &variants[i];
    int n[SK_NAXES] = {1, 1, 1, 1};
    sk_grid grid;
    if (v->tied || !possible(v)) continue;
    n[v->axis] = 2;
    sk_grid_create(&grid, MPI_COMM_WORLD, n);
    c->parallel.transport = v->transport;
    c->parallel.schedule = v->schedule;
    for (int direct = 0; direct <= may_go_directly(v); direct++) {
      sk_direct_from = direct ? 1 : usual;
      train(c, &grid, k, loss);
      tap_ok(grown == 0, "%s 2%s: nothing is allocated after the second step (%lld bytes)", v->name,
             direct ? ", directly" : "", grown);
    }
    sk_direct_from = usual;
    sk_grid_destroy(&grid);
  }
  c->parallel.schedule = SK_SCHED_1F1B;
}

static void test_grids(void) {
  sk_config c;
  sk_grid one;
  static batch k;
  configure(&c, &k);
  if (gpus < tap_size || getenv("SAKER_SHARED_GPU")) tap_skip("what the steps allocate: the GPUs are shared");
  else test_growth(&c, &k);
  sk_grid_pretend(&one, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  one.node_rank = tap_rank % gpus;
  for (int dtype = SK_DTYPE_FP32; dtype <= (op == sk_cuda ? SK_DTYPE_BF16 : SK_DTYPE_FP32);
       dtype++) {
    double want[2][STEPS], limit = dtype == SK_DTYPE_FP32 ? 1e-5 : 1e-3;
    c.train.dtype = dtype;
    if (dtype == SK_DTYPE_BF16) widen(&c);
    for (int tied = 0; tied < 2; tied++) {
      c.model.tie_word_embeddings = tied;
      train(&c, &one, &k, want[tied]);
    }
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
      const variant *v = &variants[i];
      c.model.tie_word_embeddings = v->tied;
      if (!possible(v))
        tap_skip("%s: NCCL between two GPUs is needed", v->name);
      else test_variant(&c, v, &k, want[v->tied], limit);
    }
  }
  sk_free(c.layer);
}

int main(int argc, char **argv) {
  sk_err e = {0};
  tap_init(&argc, &argv);
  op = sk_cuda;
  gpus = op ? op->count(&e) : 0;
  if (gpus == 0) {
    if (tap_rank == 0)
      printf("1..0 # SKIP no GPU: %s\n", op ? e.msg : "this program was built without CUDA");
    MPI_Finalize();
    return 0;
  }
  if (!sk_comm_nccl)
    tap_skip("NCCL: this program was built without it");
  else
    test_alone();
  if (sk_comm_nccl && gpus < tap_size)
    tap_skip("NCCL between GPUs, training with NCCL: there is one GPU");
  else if (sk_comm_nccl)
    test_comm(sk_comm_nccl);
  test_comm(&sk_comm_mpi);
  test_grids();
  return tap_done();
}
