/* bench_comm.c: the communication tables' operations by size. */
#include "src/bench.h"
#include "src/device.h"
#include "src/transport.h"
#include <stdio.h>
#include <string.h>

enum { SMALLEST = 1 << 10, LARGEST = 16 << 20 }; /* floats: 4 KiB to 64 MiB */

typedef struct call {
  const sk_comm_ops *comm;
  sk_group *group;
  const sk_ops *op;
  sk_device *dev;
  sk_stream *st;
  int kind, rank, ranks;
  int64_t count; /* floats */
  float *a, *b;
  void *ws;
} call;

/* To the next rank and from the one before, both at once. */
static void pass_on(const call *k, size_t bytes) {
  int next = (k->rank + 1) % k->ranks, before = (k->rank + k->ranks - 1) % k->ranks;
  k->comm->together(k->group, k->st, true);
  sk_ticket *in = k->comm->recv(k->group, k->st, k->b, bytes, before, 1);
  sk_ticket *out = k->comm->send(k->group, k->st, k->a, bytes, next, 1);
  k->comm->together(k->group, k->st, false);
  k->comm->wait(k->group, k->st, in);
  k->comm->wait(k->group, k->st, out);
}

static void once(const call *k) {
  size_t bytes = (size_t)k->count * sizeof(float);
  sk_ticket *t = NULL;
  switch (k->kind) {
    case SK_COMM_GATHER: t = k->comm->all_gather(k->group, k->st, k->b, k->a, bytes); break;
    case SK_COMM_SCATTER:
      t = k->comm->reduce_scatter(k->group, k->st, k->a, k->b, k->count, SK_F32, k->ws);
      break;
    case SK_COMM_REDUCE: t = k->comm->all_reduce(k->group, k->st, k->a, k->count, SK_F32, k->ws); break;
    default: pass_on(k, bytes); return;
  }
  k->comm->wait(k->group, k->st, t);
}

/* All ranks make the same number of calls, so the number cannot depend on a rank's own clock. A device that works
 * behind the host gets several calls at once, as in training. */
static double time_all(const sk_bench *b, const call *k) {
  int calls = k->op == sk_cuda ? 10 : 1;
  double best = 1e30;
  for (int64_t i = 0; i < b->warmup; i++) once(k);
  for (int64_t i = 0; i < b->repeat; i++) {
    k->op->sync(k->st);
    MPI_Barrier(b->comm);
    double begin = sk_now(), mine;
    for (int j = 0; j < calls; j++) once(k);
    k->op->sync(k->st);
    mine = (sk_now() - begin) / calls;
    SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &mine, 1, MPI_DOUBLE, MPI_MAX, b->comm));
    if (mine < best) best = mine;
  }
  return best;
}

/* bytes: what every rank contributes; gbps: what it sends (and receives as much) for that, per second. */
static void report(sk_bench *b, const call *k, double bytes, double moved, double s) {
  const char *kind = sk_comm_kind_name[k->kind], *of = k->comm->all_gather ? "" : "pipeline ";
  char *name = sk_strf("%s%s", of, k->comm->name);
  sk_say("  %-13s %-8s %12s %12.3f ms %10.3f GB/s", name, kind, sk_bytes(bytes), 1e3 * s, 1e-9 * moved / s);
  json_t *o = sk_bench_result(b, "comm", k->op->describe(k->dev));
  json_object_set_new(o, "transport", json_string(name));
  json_object_set_new(o, "kind", json_string(kind));
  json_object_set_new(o, "bytes", json_real(bytes));
  json_object_set_new(o, "ms", json_real(1e3 * s));
  json_object_set_new(o, "gbps", json_real(1e-9 * moved / s));
  if (!b->results) json_decref(o);
  sk_free(name);
}

/* One table by size: its collectives if it has any, and messages. */
static void one_table(sk_bench *b, call *k, sk_err *e) {
  const double p = b->ranks;
  k->group = k->comm->open(b->comm, k->op, k->dev, e);
  if (!k->group) return;
  for (k->kind = k->comm->all_gather ? 0 : SK_COMM_SEND; k->kind < SK_COMM_KINDS; k->kind++)
    for (k->count = SMALLEST; k->count <= LARGEST; k->count *= 4) {
      double bytes = (double)k->count * sizeof(float);
      const double moved[SK_COMM_KINDS] = {(p - 1) * bytes, (p - 1) * bytes, 2 * (p - 1) / p * bytes, bytes};
      report(b, k, bytes, moved[k->kind], time_all(b, k));
    }
  k->comm->close(k->group);
}

static void all_tables(sk_bench *b, call *k, sk_err *e) {
  const sk_comm_ops *cpu[] = {&sk_comm_mpi}, *gpu[] = {sk_comm_nccl, &sk_comm_mpi}, **table = cpu;
  int n = 1;
  if (k->op == sk_cuda) table = gpu, n = 2;
  for (int i = 0; i < n && !e->code; i++)
    if ((k->comm = table[i])) one_table(b, k, e);
  for (int t = SK_TRANSPORT_IPC; t < SK_NTRANSPORTS && k->op == sk_cuda && !e->code; t++) {
    sk_err why = {0};
    if (t == SK_TRANSPORT_NCCL && !sk_comm_nccl) continue;
    k->comm = sk_transport_table(t);
    one_table(b, k, &why);
    if (why.code) sk_say("  pipeline %-4s does not work here: %s", k->comm->name, why.msg);
  }
}

/* ---- plain MPI messages ---- */

/* Seconds from rank 0 to rank 1, half of there and back, by the clock of rank 0. */
static double ping_pong(const sk_bench *b, char *buf, int bytes, int rounds) {
  MPI_Barrier(b->comm);
  double begin = sk_now();
  for (int i = 0; i < rounds && b->rank < 2; i++) {
    if (b->rank == 0) SK_MPI(MPI_Send(buf, bytes, MPI_BYTE, 1, 0, b->comm));
    SK_MPI(MPI_Recv(buf, bytes, MPI_BYTE, 1 - b->rank, 0, b->comm, MPI_STATUS_IGNORE));
    if (b->rank == 1) SK_MPI(MPI_Send(buf, bytes, MPI_BYTE, 0, 0, b->comm));
  }
  return (sk_now() - begin) / (2 * rounds);
}

/* What the level of threads that MPI grants costs shows here first (SAKER_MPI_THREADS asks for less). */
static void messages(sk_bench *b) {
  static const int size[] = {8, 1 << 20};
  char *buf = sk_calloc(1, 1 << 20);
  for (int k = 0; k < 2; k++) {
    int rounds = size[k] > 4096 ? 200 : 5000;
    double best = 1e30;
    for (int64_t i = -b->warmup; i < b->repeat; i++) {
      double s = ping_pong(b, buf, size[k], rounds);
      if (i >= 0 && s < best) best = s;
    }
    sk_say("  %-13s %-8s %12s %12.3f us %10.3f GB/s", "MPI", "message", sk_bytes(size[k]), 1e6 * best, 1e-9 * size[k] / best);
    json_t *o = sk_bench_result(b, "comm", "host memory");
    json_object_set_new(o, "transport", json_string("MPI"));
    json_object_set_new(o, "kind", json_string("message"));
    json_object_set_new(o, "bytes", json_real(size[k]));
    json_object_set_new(o, "ms", json_real(1e3 * best));
    json_object_set_new(o, "gbps", json_real(1e-9 * size[k] / best));
    if (!b->results) json_decref(o);
  }
  sk_free(buf);
}

static int node_rank(MPI_Comm comm) {
  MPI_Comm node;
  int rank;
  SK_MPI(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
  SK_MPI(MPI_Comm_rank(node, &rank));
  SK_MPI(MPI_Comm_free(&node));
  return rank;
}

int sk_bench_comm(sk_bench *b, sk_err *e) {
  if (b->ranks < 2) return sk_fail(e, SK_USAGE, "saker bench comm: needs at least 2 ranks (mpirun -np 2 ...)");
  call k = {.rank = b->rank, .ranks = b->ranks};
  k.op = sk_device_choose(b->comm, b->cfg ? b->cfg->run.device : SK_DEVICE_AUTO, false, false, e);
  if (!k.op) return e->code;
  k.dev = k.op->open(node_rank(b->comm), SK_F32, e);
  if (sk_agree(b->comm, e) != SK_OK) {
    k.op->close(k.dev);
    return e->code;
  }
  k.st = k.op->stream_create(k.dev);
  size_t all = (size_t)b->ranks * LARGEST * sizeof(float);
  size_t ws = sk_comm_mpi.scatter_ws(b->ranks, LARGEST, SK_F32), ws2 = sk_comm_mpi.reduce_ws(b->ranks, LARGEST, SK_F32);
  k.a = k.op->alloc(k.dev, all), k.b = k.op->alloc(k.dev, all), k.ws = k.op->alloc(k.dev, ws > ws2 ? ws : ws2);
  if (!k.a || !k.b || !k.ws) sk_fail(e, SK_FAILED, "out of memory: %s", sk_bytes(3.0 * (double)all));
  if (sk_agree(b->comm, e) == SK_OK) {
    float *host = sk_malloc(all);
    sk_bench_random(host, (int64_t)(all / sizeof *host), (uint64_t)b->rank, 1);
    k.op->from_host(k.st, k.a, host, all);
    k.op->from_host(k.st, k.b, host, all);
    sk_free(host);
    sk_say("Communication over %d ranks with a %s, best of %lld; GB/s: sent by a rank, which receives as much", b->ranks,
           k.op == sk_cuda ? "GPU each" : "CPU", (long long)b->repeat);
    messages(b);
    all_tables(b, &k, e);
  }
  k.op->free(k.dev, k.a);
  k.op->free(k.dev, k.b);
  k.op->free(k.dev, k.ws);
  k.op->stream_destroy(k.st);
  k.op->close(k.dev);
  return e->code;
}
