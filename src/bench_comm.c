/* bench_comm.c: the communication table's operations by size. */
#include "src/bench.h"

typedef struct call {
  const sk_comm_ops *comm;
  sk_group *group;
  sk_stream *st;
  int kind, rank, ranks;
  int64_t count; /* floats */
  float *a, *b;
  void *ws;
} call;

static void once(void *arg) {
  call *k = arg;
  size_t bytes = (size_t)k->count * sizeof(float);
  int next = (k->rank + 1) % k->ranks, before = (k->rank + k->ranks - 1) % k->ranks;
  sk_ticket *t = NULL;
  switch (k->kind) {
    case SK_COMM_GATHER: t = k->comm->all_gather(k->group, k->st, k->b, k->a, bytes); break;
    case SK_COMM_SCATTER:
      t = k->comm->reduce_scatter(k->group, k->st, k->a, k->b, k->count, SK_F32, k->ws);
      break;
    case SK_COMM_REDUCE: t = k->comm->all_reduce(k->group, k->st, k->a, k->count, SK_F32, k->ws); break;
    default: {
      sk_ticket *in = k->comm->recv(k->group, k->st, k->b, bytes, before, 1);
      t = k->comm->send(k->group, k->st, k->a, bytes, next, 1);
      k->comm->wait(k->group, k->st, in);
    }
  }
  k->comm->wait(k->group, k->st, t);
}

/* All ranks make the same number of calls, so the number cannot depend on a rank's own clock. */
static double time_all(const sk_bench *b, call *k, const sk_ops *op) {
  double best = 1e30;
  for (int64_t i = 0; i < b->warmup; i++) once(k);
  for (int64_t i = 0; i < b->repeat; i++) {
    MPI_Barrier(b->comm);
    double begin = sk_now(), mine;
    once(k);
    op->sync(k->st);
    mine = sk_now() - begin;
    SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &mine, 1, MPI_DOUBLE, MPI_MAX, b->comm));
    if (mine < best) best = mine;
  }
  return best;
}

/* bytes: what every rank contributes; gbps: what it sends and receives for that, per second (bus bandwidth). */
static void report(sk_bench *b, const char *device, const char *kind, double bytes, double moved, double s) {
  sk_say("  %-16s %12s %12.3f ms %10.3f GB/s", kind, sk_bytes(bytes), 1e3 * s, 1e-9 * moved / s);
  json_t *o = sk_bench_result(b, "comm", device);
  json_object_set_new(o, "kind", json_string(kind));
  json_object_set_new(o, "bytes", json_real(bytes));
  json_object_set_new(o, "ms", json_real(1e3 * s));
  json_object_set_new(o, "gbps", json_real(1e-9 * moved / s));
  if (!b->results) json_decref(o);
}

static void one_size(sk_bench *b, call *k, const char *device) {
  double bytes = (double)k->count * sizeof(float), p = b->ranks;
  const double moved[SK_COMM_KINDS] = {(p - 1) * bytes, (p - 1) * bytes, 2 * (p - 1) / p * bytes, bytes};
  for (int kind = 0; kind < SK_COMM_KINDS; kind++) {
    k->kind = kind;
    report(b, device, sk_comm_kind_name[kind], bytes, moved[kind], time_all(b, k, b->op));
  }
}

int sk_bench_comm(sk_bench *b, sk_err *e) {
  enum { LARGEST = 16 << 20 }; /* floats: 64 MiB */
  if (b->ranks < 2) return sk_fail(e, SK_USAGE, "saker bench comm: needs at least 2 ranks (mpirun -np 2 ...)");
  sk_device *dev = b->op->open(0, SK_F32, e);
  if (sk_agree(b->comm, e) != SK_OK) return e->code;
  call k = {.comm = b->comms, .rank = b->rank, .ranks = b->ranks, .st = b->op->stream_create(dev)};
  k.group = k.comm->open(b->comm, b->op, dev, e);
  size_t all = (size_t)b->ranks * LARGEST * sizeof(float);
  size_t ws = k.comm->scatter_ws(b->ranks, LARGEST, SK_F32), ws2 = k.comm->reduce_ws(b->ranks, LARGEST, SK_F32);
  k.a = b->op->alloc(dev, all), k.b = b->op->alloc(dev, all), k.ws = b->op->alloc(dev, ws > ws2 ? ws : ws2);
  if (!e->code && (!k.a || !k.b || !k.ws)) sk_fail(e, SK_FAILED, "out of memory: %s", sk_bytes(3.0 * (double)all));
  if (sk_agree(b->comm, e) == SK_OK) {
    b->op->zero(k.st, k.a, all);
    b->op->zero(k.st, k.b, all);
    sk_say("Communication over %d ranks (%s), best of %lld", b->ranks, k.comm->name, (long long)b->repeat);
    for (k.count = 1 << 10; k.count <= LARGEST; k.count *= 4) one_size(b, &k, b->op->describe(dev));
  }
  b->op->free(dev, k.a);
  b->op->free(dev, k.b);
  b->op->free(dev, k.ws);
  k.comm->close(k.group);
  b->op->stream_destroy(k.st);
  b->op->close(dev);
  return e->code;
}
