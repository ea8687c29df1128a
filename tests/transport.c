/* transport.c: messages of src/transport.c between neighbours of a ring of ranks: on the CPU, where
 * MPI takes the memory itself and where it goes through pieces as a GPU's does; on GPUs (one for
 * each rank, or one that all share) by every transport that this machine can. */
#include "src/direct.h"
#include "src/transport.h"
#include <sched.h>
#include <string.h>
#include "tests/tap.h"

enum { GUARD = 64, MOST = 8, ROUNDS = 12 };

static const sk_ops *op;
static sk_device *dev;
static sk_stream *st;
static const sk_comm_ops *pipe;
static sk_group *group;

static unsigned char byte(int from, int to, int tag, size_t i) {
  return (unsigned char)sk_rand((uint64_t)(from * 64 + to) << 32 | (uint64_t)tag, i / 8) +
         (unsigned char)i;
}

typedef struct message {
  int peer, tag;
  size_t bytes;
  bool send;
  char *dev;
  sk_ticket *ticket;
} message;

// Device memory of a message from rank `from` to rank `to`: its bytes, or poison to be overwritten.
static void fill(const message *m, bool poison, int from, int to) {
  unsigned char *h = sk_malloc(m->bytes + 2 * GUARD);
  memset(h, 0xee, m->bytes + 2 * GUARD);
  for (size_t i = 0; i < m->bytes && !poison; i++) h[GUARD + i] = byte(from, to, m->tag, i);
  op->from_host(st, m->dev, h, m->bytes + 2 * GUARD);
  sk_free(h);
}

static bool good(const message *m, int from, int to) {
  unsigned char *h = sk_malloc(m->bytes + 2 * GUARD);
  bool ok = true;
  op->to_host(st, h, m->dev, m->bytes + 2 * GUARD);
  for (size_t i = 0; i < GUARD; i++) ok = ok && h[i] == 0xee && h[GUARD + m->bytes + i] == 0xee;
  for (size_t i = 0; i < m->bytes; i++) ok = ok && h[GUARD + i] == byte(from, to, m->tag, i);
  sk_free(h);
  return ok;
}

static void post(message *m) {
  m->ticket = m->send ? pipe->send(group, st, m->dev + GUARD, m->bytes, m->peer, m->tag)
                      : pipe->recv(group, st, m->dev + GUARD, m->bytes, m->peer, m->tag);
}

static void shuffle(message *m, int n, uint64_t key) {
  for (int i = n - 1; i > 0; i--) {
    int k = (int)(sk_rand(key, (uint64_t)i) % (uint64_t)(i + 1));
    message t = m[i];
    m[i] = m[k];
    m[k] = t;
  }
}

// Buffers live as long as the group, as those of a pipeline do.
static char *memory[4 * MOST];
static size_t const size[MOST] = {0, 1, 999, 1000, 1001, 2000, 30011, 300007};

// MOST messages each way with each neighbour, posted and waited for in an order of every rank's own.
static bool exchange(int round) {
  message m[4 * MOST];
  int n = 0, next = (tap_rank + 1) % tap_size, before = (tap_rank + tap_size - 1) % tap_size;
  bool ok = true;
  for (int i = 0; i < MOST; i++)
    for (int k = 0; k < 4; k++) {
      // Two ranks: both neighbours are the same one, and the tags tell the messages apart.
      bool send = k % 2 == 0, forward = send == (k < 2);
      int tag = 2 * (i + MOST * round) + forward;
      m[n] = (message){k < 2 ? next : before, tag, size[(i + round) % MOST], send, memory[n], NULL};
      fill(&m[n], !send, tap_rank, m[n].peer);
      n++;
    }
  op->sync(st);
  shuffle(m, n, (uint64_t)(100 * round + tap_rank));
  for (int i = 0; i < n; i++) post(&m[i]);
  shuffle(m, n, (uint64_t)(100 * round + tap_rank + 50));
  for (int i = 0; i < n; i++) pipe->wait(group, st, m[i].ticket);
  for (int i = 0; i < n; i++)
    ok = (m[i].send ? good(&m[i], tap_rank, m[i].peer) : good(&m[i], m[i].peer, tap_rank)) && ok;
  return ok;
}

// Round the ring: what a rank sends on is what it has just received, and what it read is overwritten
// at once: all by the order of its stream.
static bool relay(void) {
  const size_t bytes = size[MOST - 1];
  int next = (tap_rank + 1) % tap_size, before = (tap_rank + tap_size - 1) % tap_size;
  message in = {before, 0, bytes, false, memory[0], NULL}, out = {next, 0, bytes, true, memory[1], NULL};
  bool first = tap_rank == 0, ok = true;
  fill(&in, true, 0, 0);
  fill(&out, !first, 0, 0);
  for (int turn = 0; turn < 5; turn++) {
    in.tag = out.tag = turn;
    if (first) post(&out);
    post(&in);
    pipe->wait(group, st, in.ticket);
    if (!first) {
      op->copy(st, out.dev, in.dev, bytes + 2 * GUARD);
      post(&out);
    }
    pipe->wait(group, st, out.ticket);
    if (first) op->copy(st, out.dev, in.dev, bytes + 2 * GUARD);
    op->zero(st, in.dev + GUARD, bytes);
  }
  if (first) {
    out.tag = 0;
    ok = good(&out, 0, 0);
  }
  return ok;
}

// The receive comes only after the sender has waited for something else.
static bool late_receive(void) {
  message a = {(tap_rank + 1) % tap_size, 7, 30011, true, memory[0], NULL};
  message b = {(tap_rank + 1) % tap_size, 8, 1001, false, memory[1], NULL};
  message c = {(tap_rank + tap_size - 1) % tap_size, 8, 1001, true, memory[2], NULL};
  message d = {(tap_rank + tap_size - 1) % tap_size, 7, 30011, false, memory[3], NULL};
  fill(&a, false, tap_rank, a.peer);
  fill(&b, true, 0, 0);
  fill(&c, false, tap_rank, c.peer);
  fill(&d, true, 0, 0);
  post(&a);
  post(&b);
  post(&c);
  pipe->wait(group, st, b.ticket);
  post(&d);
  pipe->wait(group, st, a.ticket);
  pipe->wait(group, st, d.ticket);
  pipe->wait(group, st, c.ticket);
  return good(&b, b.peer, tap_rank) && good(&d, d.peer, tap_rank);
}

// The last rank waits for the others outside of the messages, and the first for a message of its.
static bool served(void) {
  const bool last = tap_rank == tap_size - 1;
  message out = {(tap_rank + 1) % tap_size, 9, 30011, true, memory[0], NULL};
  message in = {(tap_rank + tap_size - 1) % tap_size, 9, 30011, false, memory[1], NULL};
  MPI_Request all;
  int over = 0;
  fill(&out, false, tap_rank, out.peer);
  fill(&in, true, 0, 0);
  post(&out);
  if (tap_rank > 0) post(&in);
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  if (tap_rank == 0) post(&in);
  if (!last) pipe->wait(group, st, in.ticket);
  if (!last) pipe->wait(group, st, out.ticket);
  SK_MPI(MPI_Ibarrier(MPI_COMM_WORLD, &all));
  while (!over) {
    sk_transport_serve();
    SK_MPI(MPI_Test(&all, &over, MPI_STATUS_IGNORE));
    sched_yield();
  }
  if (last) pipe->wait(group, st, in.ticket);
  if (last) pipe->wait(group, st, out.ticket);
  return good(&in, in.peer, tap_rank);
}

static void test(int transport, const char *name) {
  sk_err e = {0};
  int links[SK_NTRANSPORTS], all = tap_size == 2 ? 1 : 2;
  pipe = sk_transport_table(transport);
  group = pipe->open(MPI_COMM_WORLD, op, dev, &e);
  if (!group) {
    tap_ok(false, "%s: %s", name, e.msg);
    return;
  }
  sk_transport_links(group, links);
  int found = links[SK_TRANSPORT_IPC] + links[SK_TRANSPORT_MPI] + links[SK_TRANSPORT_NCCL];
  tap_ok(found == all && (transport == SK_TRANSPORT_AUTO || links[transport] == all),
         "%s: links: ipc %d, mpi %d, nccl %d", name, links[SK_TRANSPORT_IPC],
         links[SK_TRANSPORT_MPI], links[SK_TRANSPORT_NCCL]);
  for (int i = 0; i < 4 * MOST; i++) memory[i] = op->alloc(dev, size[MOST - 1] + 2 * GUARD);
  bool ok = true;
  for (int round = 0; round < ROUNDS; round++) ok = exchange(round) && ok;
  tap_ok(ok, "%s: messages in any order, of 0 to %zu bytes", name, size[MOST - 1]);
  sk_comm_stats *s = pipe->stats(group);
  int64_t sum = 0;
  for (int i = 0; i < MOST; i++) sum += 2 * ROUNDS * (int64_t)size[i];
  for (int i = 0; i < MOST; i++)
    for (int r = 0; r < ROUNDS; r++) sum += 2 * (int64_t)(size[(i + r) % MOST] - size[i]);
  tap_ok(s->calls[SK_COMM_SEND] == 2 * MOST * ROUNDS && s->bytes[SK_COMM_SEND] == sum,
         "%s: what was sent is counted", name);
  tap_ok(relay(), "%s: a relay in the order of the stream", name);
  tap_ok(late_receive(), "%s: who waits serves others", name);
  tap_ok(served(), "%s: messages are served from outside", name);
  op->sync(st);
  pipe->close(group);
  for (int i = 0; i < 4 * MOST; i++) op->free(dev, memory[i]);
}

static void refused(int transport, const char *text) {
  sk_err e = {0};
  const sk_comm_ops *t = sk_transport_table(transport);
  sk_group *g = t->open(MPI_COMM_WORLD, op, dev, &e);
  tap_ok(!g && e.code == SK_FAILED && strstr(e.msg, text), "%s on the CPU is refused", t->name);
}

static void test_cpu(void) {
  sk_err e = {0};
  op = &sk_cpu_ops;
  dev = op->open(0, SK_F32, &e);
  st = op->stream_create(dev);
  sk_transport_piece = 1000;
  test(SK_TRANSPORT_AUTO, "cpu, auto");
  test(SK_TRANSPORT_MPI, "cpu, mpi");
  sk_transport_staged_cpu = true;
  test(SK_TRANSPORT_MPI, "cpu, mpi in pieces");
  sk_transport_staged_cpu = false;
  refused(SK_TRANSPORT_IPC, "do not share");
  refused(SK_TRANSPORT_NCCL, "GPUs only");
  tap_ok(!sk_direct_open(MPI_COMM_WORLD, op, dev) && !sk_direct_open(MPI_COMM_SELF, op, dev),
         "the CPU's ranks, and a rank alone, have no direct exchanges");
  op->stream_destroy(st);
  op->close(dev);
}

static void test_gpu(int gpus) {
  sk_err e = {0};
  op = sk_cuda;
  dev = op->open(tap_rank % gpus, SK_F32, &e);
  SK_CHECK(dev, "%s", e.msg);
  st = op->stream_create(dev);
  sk_transport_piece = 10000;
  test(SK_TRANSPORT_MPI, "gpu, mpi");
  test(SK_TRANSPORT_AUTO, "gpu, auto");
  test(SK_TRANSPORT_IPC, "gpu, ipc");
  if (gpus < tap_size) tap_skip("nccl: fewer GPUs than ranks");
  else if (!sk_comm_nccl) tap_skip("nccl: this program was built without it");
  else test(SK_TRANSPORT_NCCL, "gpu, nccl");
  op->stream_destroy(st);
  op->close(dev);
}

int main(int argc, char **argv) {
  sk_err e = {0};
  tap_init(&argc, &argv);
  test_cpu();
  int gpus = sk_cuda ? sk_cuda->count(&e) : 0;
  if (gpus == 0) tap_skip("between GPUs: %s", sk_cuda ? e.msg : "this program was built without CUDA");
  else test_gpu(gpus);
  return tap_done();
}
