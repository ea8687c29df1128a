/* comm_nccl.c: comm.h on NCCL, for GPUs. Every group has a communicator and a stream of its own: an
 * operation waits for the stream it was called on (an event), and whoever waits for its ticket
 * waits for an event of the group's stream; the host waits for nothing. Large parts go by the copy
 * engines (direct.h) where the group is within a node: there the host waits for the other hosts.
 *
 * NCCL has no tags: operations of a group run one after the other in the order of the calls, which
 * is the same on all ranks. Messages in a bracket (together) are one operation. A message outside
 * would hold up everything behind it until its partner comes, and its partner may need what is
 * behind: such messages go by MPI. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif
#include "src/direct.h"
#include "src/transport.h"

#ifdef HAVE_NCCL
#include <nccl.h>
#include <string.h>
#include "kernels/cuda.h"

struct sk_ticket {
  sk_ticket *next; // in the pool
  cudaEvent_t done;
  sk_ticket *host; // MPI's ticket: not ours
  bool open;
};

typedef struct message {
  bool send;
  void *data;
  size_t bytes;
  int peer;
  sk_ticket *ticket;
} message;

struct sk_group {
  ncclComm_t comm;
  const sk_ops *op;
  sk_stream *stream;
  sk_direct *direct;  // NULL: there is none
  cudaEvent_t before; // the caller's work so far
  sk_group *host;     // MPI's group of the same ranks
  int rank, size;
  int open;        // tickets that have not been waited for
  sk_ticket *pool; // tickets not in use
  bool together;
  message *queue; // of a bracket
  int queued, cap;
  sk_comm_stats stats;
};

static void check(ncclResult_t rc, const sk_group *g, const char *what, int line) {
  if (rc == ncclSuccess || rc == ncclInProgress) return;
  sk_die(__FILE__, line, "%s: %s: %s", what, ncclGetErrorString(rc),
         ncclGetLastError(g ? g->comm : NULL));
}
#define SK_NCCL(call) check((call), g, #call, __LINE__)

static cudaStream_t queue_of(const sk_group *g) {
  return sk_cuda_stream(g->stream);
}

// ---- group and tickets ----

static sk_group *nccl_open(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e) {
  ncclUniqueId id;
  if (op != sk_cuda)
    sk_fail(e, SK_FAILED, "NCCL serves GPUs only, not the device \"%s\"", op->name);
  if (sk_agree(comm, e) != SK_OK) return NULL;
  sk_group *g = sk_calloc(1, sizeof *g);
  SK_MPI(MPI_Comm_rank(comm, &g->rank));
  SK_MPI(MPI_Comm_size(comm, &g->size));
  memset(&id, 0, sizeof id);
  ncclResult_t rc = g->rank == 0 ? ncclGetUniqueId(&id) : ncclSuccess;
  if (rc != ncclSuccess)
    sk_fail(e, SK_FAILED, "NCCL cannot start on %s: %s", sk_host(), ncclGetErrorString(rc));
  if (sk_agree(comm, e) == SK_OK) {
    SK_MPI(MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, comm));
    rc = ncclCommInitRank(&g->comm, g->size, id, g->rank);
    if (rc != ncclSuccess)
      sk_fail(e, SK_FAILED,
              "NCCL cannot connect %d GPUs (rank %d on %s): %s: %s\nNCCL_DEBUG=INFO tells more. "
              "--without-nccl "
              "builds a program that does without, slowly.",
              g->size, sk_base_rank(), sk_host(), ncclGetErrorString(rc), ncclGetLastError(NULL));
    sk_agree(comm, e);
  }
  if (e->code == SK_OK) g->host = sk_comm_mpi.open(comm, op, dev, e);
  if (e->code != SK_OK) {
    if (g->comm) ncclCommAbort(g->comm);
    sk_free(g);
    return NULL;
  }
  g->op = op;
  g->stream = op->copy_stream_create(dev);
  g->direct = sk_direct_open(comm, op, dev);
  SK_CUDA(cudaEventCreateWithFlags(&g->before, cudaEventDisableTiming));
  return g;
}

static void nccl_close(sk_group *g) {
  if (!g) return;
  SK_CHECK(g->open == 0, "a group was closed while %d operations were under way", g->open);
  g->op->sync(g->stream);
  sk_direct_close(g->direct);
  for (sk_ticket *t = g->pool, *next; t; t = next) {
    next = t->next;
    SK_CUDA(cudaEventDestroy(t->done));
    sk_free(t);
  }
  SK_NCCL(ncclCommDestroy(g->comm));
  SK_CUDA(cudaEventDestroy(g->before));
  g->op->stream_destroy(g->stream);
  sk_comm_mpi.close(g->host);
  sk_free(g->queue);
  sk_free(g);
}

static sk_ticket *take(sk_group *g) {
  sk_ticket *t = g->pool;
  if (t) {
    g->pool = t->next;
  } else {
    t = sk_calloc(1, sizeof *t);
    SK_CUDA(cudaEventCreateWithFlags(&t->done, cudaEventDisableTiming));
  }
  t->open = true;
  t->host = NULL;
  g->open++;
  return t;
}

// The group's stream waits for the caller's work so far.
static void follow(sk_group *g, sk_stream *st) {
  SK_CUDA(cudaEventRecord(g->before, sk_cuda_stream(st)));
  SK_CUDA(cudaStreamWaitEvent(queue_of(g), g->before, 0));
}

static sk_ticket *done(sk_group *g, sk_ticket *t) {
  SK_CUDA(cudaEventRecord(t->done, queue_of(g)));
  return t;
}

static void count_call(sk_group *g, sk_comm_kind kind, size_t bytes, int others) {
  g->stats.calls[kind]++;
  g->stats.bytes[kind] += (int64_t)bytes * others;
}

static ncclDataType_t type(sk_dtype t) {
  return t == SK_F32 ? ncclFloat32 : ncclBfloat16;
}

// ---- collectives ----

static bool large(size_t bytes) {
  return bytes >= sk_direct_from;
}

// fp32 sums, of gradients, stay with NCCL: here they would cost memory.
static bool scatters_directly(int64_t count, sk_dtype t) {
  return t == SK_BF16 && large((size_t)count * sk_dtype_size(t));
}

static sk_ticket *nccl_all_gather(sk_group *g, sk_stream *st, void *dst, const void *src,
                                  size_t bytes) {
  count_call(g, SK_COMM_GATHER, bytes, g->size - 1);
  if (bytes == 0) return NULL;
  follow(g, st);
  if (g->direct && large(bytes))
    sk_direct_gather(g->direct, g->stream, dst, src, bytes);
  else
    SK_NCCL(ncclAllGather(src, dst, bytes, ncclUint8, g->comm, queue_of(g)));
  return done(g, take(g));
}

static size_t nccl_scatter_ws(int ranks, int64_t count, sk_dtype t) {
  return scatters_directly(count, t) ? (size_t)(ranks - 1) * (size_t)count * sk_dtype_size(t) : 0;
}

static size_t no_ws(int ranks, int64_t count, sk_dtype t) {
  (void)ranks, (void)count, (void)t;
  return 0;
}

static sk_ticket *nccl_reduce_scatter(sk_group *g, sk_stream *st, void *dst, const void *src,
                                      int64_t count, sk_dtype t, void *ws) {
  count_call(g, SK_COMM_SCATTER, (size_t)count * sk_dtype_size(t), g->size - 1);
  if (count == 0) return NULL;
  follow(g, st);
  if (g->direct && scatters_directly(count, t))
    sk_direct_scatter(g->direct, g->stream, dst, src, count, t, ws);
  else
    SK_NCCL(ncclReduceScatter(src, dst, (size_t)count, type(t), ncclSum, g->comm, queue_of(g)));
  return done(g, take(g));
}

static sk_ticket *nccl_all_reduce(sk_group *g, sk_stream *st, void *x, int64_t count, sk_dtype t,
                                  void *ws) {
  (void)ws;
  count_call(g, SK_COMM_REDUCE, (size_t)count * sk_dtype_size(t), g->size - 1);
  if (count == 0) return NULL;
  follow(g, st);
  SK_NCCL(ncclAllReduce(x, x, (size_t)count, type(t), ncclSum, g->comm, queue_of(g)));
  return done(g, take(g));
}

// ---- messages ----

static void nccl_together(sk_group *g, sk_stream *st, bool begin) {
  SK_CHECK(g->together != begin, "brackets of messages do not nest");
  g->together = begin;
  if (begin || g->queued == 0) return;
  follow(g, st);
  SK_NCCL(ncclGroupStart());
  for (int i = 0; i < g->queued; i++) {
    const message *m = &g->queue[i];
    if (m->send)
      SK_NCCL(ncclSend(m->data, m->bytes, ncclUint8, m->peer, g->comm, queue_of(g)));
    else
      SK_NCCL(ncclRecv(m->data, m->bytes, ncclUint8, m->peer, g->comm, queue_of(g)));
  }
  SK_NCCL(ncclGroupEnd());
  for (int i = 0; i < g->queued; i++) done(g, g->queue[i].ticket);
  g->queued = 0;
}

static sk_ticket *enqueue(sk_group *g, bool send, void *data, size_t bytes, int peer) {
  SK_CHECK(peer >= 0 && peer < g->size, "a message to or from rank %d of %d", peer, g->size);
  if (bytes == 0) return NULL; // both sides know
  if (g->queued == g->cap)
    g->queue = sk_realloc(g->queue, (size_t)(g->cap = 2 * g->cap + 16) * sizeof *g->queue);
  sk_ticket *t = take(g);
  g->queue[g->queued++] = (message){send, data, bytes, peer, t};
  return t;
}

static sk_ticket *by_mpi(sk_group *g, sk_ticket *host) {
  sk_ticket *t = take(g);
  t->host = host;
  return t;
}

static sk_ticket *nccl_send(sk_group *g, sk_stream *st, const void *src, size_t bytes, int to,
                            int tag) {
  count_call(g, SK_COMM_SEND, bytes, to != g->rank);
  if (g->together) return enqueue(g, true, (void *)(uintptr_t)src, bytes, to);
  return by_mpi(g, sk_comm_mpi.send(g->host, st, src, bytes, to, tag));
}

static sk_ticket *nccl_recv(sk_group *g, sk_stream *st, void *dst, size_t bytes, int from,
                            int tag) {
  if (g->together) return enqueue(g, false, dst, bytes, from);
  return by_mpi(g, sk_comm_mpi.recv(g->host, st, dst, bytes, from, tag));
}

static void nccl_wait(sk_group *g, sk_stream *st, sk_ticket *t) {
  if (!t) return;
  SK_CHECK(t->open && !g->together, "an operation was waited for twice, or within a bracket");
  if (t->host)
    sk_comm_mpi.wait(g->host, st, t->host);
  else
    SK_CUDA(cudaStreamWaitEvent(sk_cuda_stream(st), t->done, 0));
  t->open = false;
  t->next = g->pool;
  g->pool = t;
  g->open--;
}

static sk_comm_stats *nccl_stats(sk_group *g) {
  return &g->stats;
}

static const sk_comm_ops table = {
    .name = "nccl",
    .open = nccl_open,
    .close = nccl_close,
    .all_gather = nccl_all_gather,
    .scatter_ws = nccl_scatter_ws,
    .reduce_scatter = nccl_reduce_scatter,
    .reduce_ws = no_ws,
    .all_reduce = nccl_all_reduce,
    .together = nccl_together,
    .send = nccl_send,
    .recv = nccl_recv,
    .wait = nccl_wait,
    .stats = nccl_stats,
};

const sk_comm_ops *const sk_comm_nccl = &table;

// ---- messages from one rank to another (transport.c) ----

struct sk_nccl_pair {
  ncclComm_t comm;
};

/* The first message sets the connection up, for which both hosts wait for each other inside NCCL:
 * now, because later the receiver's host waits for the sender's word first. */
static bool say_hello(sk_nccl_pair *p, bool sends) {
  enum { BYTES = 1 << 20 };
  void *x;
  if (cudaMalloc(&x, BYTES) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  ncclResult_t rc = sends ? ncclSend(x, BYTES, ncclUint8, 1, p->comm, NULL)
                          : ncclRecv(x, BYTES, ncclUint8, 0, p->comm, NULL);
  bool good = rc == ncclSuccess && cudaStreamSynchronize(NULL) == cudaSuccess;
  SK_CUDA(cudaFree(x));
  return good;
}

sk_nccl_pair *sk_nccl_pair_open(MPI_Comm comm, int from, int to, sk_err *e) {
  enum { TAG = 2 };
  ncclUniqueId id;
  ncclComm_t c = NULL;
  int rank;
  SK_MPI(MPI_Comm_rank(comm, &rank));
  memset(&id, 0, sizeof id);
  if (rank == from) {
    if (ncclGetUniqueId(&id) != ncclSuccess) memset(&id, 0, sizeof id);
    SK_MPI(MPI_Send(&id, sizeof id, MPI_BYTE, to, TAG, comm));
  } else {
    SK_MPI(MPI_Recv(&id, sizeof id, MPI_BYTE, from, TAG, comm, MPI_STATUS_IGNORE));
  }
  static const ncclUniqueId none;
  ncclResult_t rc = memcmp(&id, &none, sizeof id) == 0
                        ? ncclSystemError
                        : ncclCommInitRank(&c, 2, id, rank == to);
  if (rc != ncclSuccess) {
    sk_fail(e, SK_FAILED, "NCCL cannot connect the GPUs of ranks %d and %d of the pipeline on %s: %s", from, to,
            sk_host(), ncclGetErrorString(rc));
    return NULL;
  }
  sk_nccl_pair *p = sk_calloc(1, sizeof *p);
  p->comm = c;
  if (!say_hello(p, rank == from)) {
    sk_fail(e, SK_FAILED, "NCCL cannot send between ranks %d and %d of the pipeline (%s): %s", from, to, sk_host(),
            ncclGetLastError(c));
    ncclCommAbort(c);
    sk_free(p);
    return NULL;
  }
  return p;
}

void sk_nccl_pair_close(sk_nccl_pair *p, bool both) {
  if (!p) return;
  check(both ? ncclCommDestroy(p->comm) : ncclCommAbort(p->comm), NULL, "closing a pair", __LINE__);
  sk_free(p);
}

void sk_nccl_pair_send(sk_nccl_pair *p, sk_stream *s, const void *src, size_t bytes) {
  if (bytes)
    check(ncclSend(src, bytes, ncclUint8, 1, p->comm, sk_cuda_stream(s)), NULL, "ncclSend", __LINE__);
}

void sk_nccl_pair_recv(sk_nccl_pair *p, sk_stream *s, void *dst, size_t bytes) {
  if (bytes)
    check(ncclRecv(dst, bytes, ncclUint8, 0, p->comm, sk_cuda_stream(s)), NULL, "ncclRecv", __LINE__);
}
#else
const sk_comm_ops *const sk_comm_nccl = NULL;

#pragma GCC diagnostic ignored "-Wunused-parameter" // nobody gets a pair
sk_nccl_pair *sk_nccl_pair_open(MPI_Comm comm, int from, int to, sk_err *e) {
  sk_fail(e, SK_FAILED, "this program was built without NCCL");
  return NULL;
}
void sk_nccl_pair_close(sk_nccl_pair *p, bool both) {}
void sk_nccl_pair_send(sk_nccl_pair *p, sk_stream *s, const void *src, size_t bytes) {}
void sk_nccl_pair_recv(sk_nccl_pair *p, sk_stream *s, void *dst, size_t bytes) {}
#endif
