/* direct.c: exchanges within a node by the GPUs' copy engines; see direct.h. An exchange is:
 *
 *   every rank   records `ready`: its memory may be written, what it sends is there
 *   hosts        tell each other where that memory is, so everybody's `ready` has been recorded
 *   every rank   waits for the others' `ready`, copies into their memory, records `done`
 *   hosts        wait for each other again, so everybody's `done` has been recorded
 *   every rank   has its stream wait for the others' `done`, and for its own copies
 *
 * One event of each kind is enough. `ready` is recorded again after the second wait for the hosts,
 * when all have enqueued their waits for the last record; `done` is recorded again after the first
 * wait of the next exchange, which a host enters when it has enqueued its waits for the last one. The
 * GPUs keep the same order: a stream that records `ready` is behind everybody's copies of the last
 * exchange, and copies that end in `done` are behind everybody's next `ready`. */
#include "src/direct.h"
#include <sched.h>
#include "src/comm.h"
#include "src/mapped.h"
#include "src/transport.h"

size_t sk_direct_from = 4 << 20;

typedef struct peer {
  sk_event *ready, *done; // mapped; of this rank: its own
  sk_mapped memory;
} peer;

// What a rank says at each exchange: where others write, and how long a part is.
typedef struct word {
  sk_share at;
  uint64_t bytes;
} word;

// What a rank says when it opens.
typedef struct introduction {
  sk_share ready, done, memory;
} introduction;

struct sk_direct {
  const sk_ops *op;
  sk_device *dev;
  MPI_Comm comm; // owned
  int rank, size;
  peer *peer;
  word *said;
  sk_stream *out; // copies to others
};

// ---- open and close ----

// What others own goes first: an event is not used once its owner has destroyed it, and nobody frees
// memory that another still has mapped.
static void discard(sk_direct *d) {
  for (int r = 0; r < d->size; r++) {
    if (r == d->rank) continue;
    sk_mapped_clear(&d->peer[r].memory, d->op, d->dev);
    d->op->event_destroy(d->peer[r].ready);
    d->op->event_destroy(d->peer[r].done);
  }
  SK_MPI(MPI_Barrier(d->comm));
  d->op->event_destroy(d->peer[d->rank].ready);
  d->op->event_destroy(d->peer[d->rank].done);
  d->op->stream_destroy(d->out);
  SK_MPI(MPI_Comm_free(&d->comm));
  sk_free(d->peer);
  sk_free(d->said);
  sk_free(d);
}

static bool all_good(const sk_direct *d, const sk_err *e) {
  int good = e->code == SK_OK;
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &good, 1, MPI_INT, MPI_MIN, d->comm));
  return good;
}

// This rank's events, and memory to try.
static void offer(sk_direct *d, const void *probe, introduction *mine, sk_err *e) {
  peer *me = &d->peer[d->rank];
  if (!probe) sk_fail(e, SK_FAILED, "out of memory on %s", sk_host());
  if (!e->code) me->ready = d->op->event_share(d->dev, &mine->ready, e);
  if (!e->code) me->done = d->op->event_share(d->dev, &mine->done, e);
  if (!e->code) d->op->share(d->dev, probe, &mine->memory, e);
}

static void accept(sk_direct *d, const introduction *all, sk_err *e) {
  for (int r = 0; r < d->size && !e->code; r++) {
    if (r == d->rank) continue;
    d->peer[r].ready = d->op->event_map(d->dev, &all[r].ready, e);
    if (!e->code) d->peer[r].done = d->op->event_map(d->dev, &all[r].done, e);
    void *base = e->code ? NULL : d->op->map(d->dev, &all[r].memory, e);
    if (base) d->op->unmap(d->dev, base);
  }
}

// Whether all ranks can map all others' events and memory.
static bool introduce(sk_direct *d) {
  introduction mine = {0}, *all = sk_calloc((size_t)d->size, sizeof *all);
  sk_err e = {0};
  void *probe = d->op->alloc(d->dev, 2 << 20);
  offer(d, probe, &mine, &e);
  bool works = all_good(d, &e);
  if (works) {
    SK_MPI(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, d->comm));
    accept(d, all, &e);
    works = all_good(d, &e);
  }
  if (probe) d->op->free(d->dev, probe);
  sk_free(all);
  return works;
}

sk_direct *sk_direct_open(MPI_Comm comm, const sk_ops *op, sk_device *dev) {
  MPI_Comm node;
  int near, size;
  SK_MPI(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
  SK_MPI(MPI_Comm_size(node, &near));
  SK_MPI(MPI_Comm_free(&node));
  SK_MPI(MPI_Comm_size(comm, &size));
  if (size == 1 || near < size) return NULL;
  sk_direct *d = sk_calloc(1, sizeof *d);
  d->op = op;
  d->dev = dev;
  d->size = size;
  SK_MPI(MPI_Comm_dup(comm, &d->comm));
  SK_MPI(MPI_Comm_rank(comm, &d->rank));
  d->peer = sk_calloc((size_t)size, sizeof *d->peer);
  d->said = sk_calloc((size_t)size, sizeof *d->said);
  d->out = op->copy_stream_create(dev);
  if (introduce(d)) return d;
  discard(d);
  return NULL;
}

void sk_direct_close(sk_direct *d) {
  if (!d) return;
  d->op->sync(d->out);
  SK_MPI(MPI_Barrier(d->comm)); // nobody waits for another's events any more
  discard(d);
}

// ---- the parts of an exchange ----

// The other hosts may be waiting for messages of the pipeline before they come here.
static void finish(MPI_Request *request) {
  for (;;) {
    int over;
    SK_MPI(MPI_Test(request, &over, MPI_STATUS_IGNORE));
    if (over) return;
    sk_transport_serve();
    sched_yield();
  }
}

// Others may write their parts, `bytes` each, to `mine` after the work on st so far.
static void begin(sk_direct *d, sk_stream *st, void *mine, size_t bytes) {
  MPI_Request request;
  word here = {.bytes = bytes};
  sk_err e = {0};
  d->op->record(d->peer[d->rank].ready, st);
  SK_CHECK(d->op->share(d->dev, mine, &here.at, &e) == SK_OK, "%s", e.msg);
  SK_MPI(MPI_Iallgather(&here, sizeof here, MPI_BYTE, d->said, sizeof here, MPI_BYTE, d->comm,
                        &request));
  finish(&request);
  for (int r = 0; r < d->size; r++)
    SK_CHECK(d->said[r].bytes == bytes, "parts of %zu bytes here, of %llu on rank %d of the group",
             bytes, (unsigned long long)d->said[r].bytes, r);
  d->op->wait(d->out, d->peer[d->rank].ready); // what is sent is there
}

// `bytes` to what rank r has named, from its byte `at` on.
static void give(sk_direct *d, int r, size_t at, const void *src, size_t bytes) {
  char *its = sk_mapped_at(&d->peer[r].memory, d->op, d->dev, &d->said[r].at);
  d->op->wait(d->out, d->peer[r].ready);
  d->op->copy(d->out, its + at, src, bytes);
}

// st comes after all copies into my memory and out of it.
static void end(sk_direct *d, sk_stream *st) {
  MPI_Request request;
  d->op->record(d->peer[d->rank].done, d->out);
  SK_MPI(MPI_Ibarrier(d->comm, &request));
  finish(&request);
  for (int r = 0; r < d->size; r++) d->op->wait(st, d->peer[r].done);
}

// ---- exchanges ----

// Ranks start with different ones, so that nobody is everybody's first.
void sk_direct_gather(sk_direct *d, sk_stream *st, void *dst, const void *src, size_t bytes) {
  const size_t at = (size_t)d->rank * bytes;
  begin(d, st, dst, bytes);
  for (int s = 1; s < d->size; s++) give(d, (d->rank + s) % d->size, at, src, bytes);
  if (src != (char *)dst + at) d->op->copy(st, (char *)dst + at, src, bytes);
  end(d, st);
}

void sk_direct_scatter(sk_direct *d, sk_stream *st, void *dst, const void *src, int64_t count,
                       sk_dtype t, void *ws) {
  const size_t bytes = (size_t)count * sk_dtype_size(t);
  const char *part = src;
  SK_CHECK(t == SK_F32 || t == d->op->act(d->dev), "a sum of elements of type %d", (int)t);
  begin(d, st, ws, bytes);
  for (int s = 1; s < d->size; s++) {
    int r = (d->rank + s) % d->size, place = d->rank - (d->rank > r); // r has none for its own
    give(d, r, (size_t)place * bytes, part + (size_t)r * bytes, bytes);
  }
  end(d, st);
  const sk_parts all = {.rank = d->rank, .size = d->size, .own = part + (size_t)d->rank * bytes,
                        .others = ws, .stride = bytes, .hole = true};
  sk_comm_add_parts(d->op, st, dst, &all, count, t);
}
