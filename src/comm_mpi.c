/* comm_mpi.c: comm.h on MPI. Everything is posted at the call and finished in wait; between the two
 * MPI moves data only where it progresses by itself. A device with memory of its own (a GPU) is
 * served through copies on the host: at the call, after the stream's work so far, and in wait. */
#include <limits.h>
#include <string.h>
#include "src/comm.h"

const char *const sk_comm_kind_name[SK_COMM_KINDS] = {"gather", "scatter", "reduce", "send"};
size_t sk_comm_mpi_cut = (size_t)1 << 30;

enum { SEQUENCE = 1 << 15 }; // tags of collectives: what the MPI standard promises at least

typedef struct staging {
  struct staging *next; // in the pool
  size_t bytes;
  char data[];
} staging;

struct sk_ticket {
  sk_ticket *next; // in the pool
  bool open;
  MPI_Request *req; // receives come first
  MPI_Status *status;
  int n, cap;        // requests: posted, allocated
  int receives;      // how many of them are checked for their size
  size_t bytes, cut; // each rank's message and how it was cut
  // A sum to take when everything is here. ws has the parts in rank order, without mine if `hole`.
  void *sum, *ws; // sum NULL: nothing to add
  const void *own;
  int64_t count;
  sk_dtype type;
  bool hole;
  // A device with memory of its own: the host's copy, and what of it goes where in wait.
  staging *host;
  void *land; // NULL: nothing arrives
  const char *landing;
  size_t land_bytes;
};

struct sk_group {
  const sk_ops *op;
  sk_device *dev;
  bool staged;                  // the device's memory is not the host's
  staging *host;                // copies not in use
  MPI_Comm collective, message; // owned: a tag of one means nothing in the other
  int rank, size;
  int sequence;    // of collectives made of messages
  int open;        // tickets that have not been waited for
  sk_ticket *pool; // tickets not in use
  sk_comm_stats stats;
};

// ---- group and tickets ----

static void mpi_close(sk_group *g) {
  if (!g) return;
  SK_CHECK(g->open == 0, "a group was closed while %d operations were under way", g->open);
  for (sk_ticket *t = g->pool, *next; t; t = next) {
    next = t->next;
    sk_free(t->req);
    sk_free(t->status);
    sk_free(t);
  }
  for (staging *h = g->host, *next; h; h = next) {
    next = h->next;
    sk_free(h);
  }
  SK_MPI(MPI_Comm_free(&g->message));
  SK_MPI(MPI_Comm_free(&g->collective));
  sk_free(g);
}

static sk_group *mpi_open(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e) {
  int *limit, found;
  if (op == &sk_plan_ops)
    sk_fail(e, SK_FAILED, "the device \"%s\" has no memory that MPI could send", op->name);
  SK_MPI(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &limit, &found));
  if (found && *limit < SK_COMM_TAGS - 1)
    sk_fail(e, SK_FAILED,
            "this MPI has message tags up to %d and %d are needed; raise its limit (Intel MPI: "
            "MPIR_CVAR_CH4_OFI_TAG_BITS) or use another MPI",
            *limit, SK_COMM_TAGS - 1);
  if (sk_agree(comm, e) != SK_OK) return NULL;
  sk_group *g = sk_calloc(1, sizeof *g);
  g->op = op;
  g->dev = dev;
  g->staged = strcmp(op->name, "cpu") != 0;
  SK_MPI(MPI_Comm_dup(comm, &g->collective));
  SK_MPI(MPI_Comm_dup(comm, &g->message));
  SK_MPI(MPI_Comm_rank(comm, &g->rank));
  SK_MPI(MPI_Comm_size(comm, &g->size));
  return g;
}

static sk_ticket *take(sk_group *g, int64_t requests) {
  sk_ticket *t = g->pool;
  if (t) {
    g->pool = t->next;
  } else {
    t = sk_calloc(1, sizeof *t);
  }
  if (requests > t->cap) {
    SK_CHECK(requests <= INT_MAX, "an operation of %lld messages", (long long)requests);
    t->cap = (int)requests;
    t->req = sk_realloc(t->req, (size_t)requests * sizeof *t->req);
    t->status = sk_realloc(t->status, (size_t)requests * sizeof *t->status);
  }
  t->open = true;
  t->n = t->receives = 0;
  t->sum = t->land = NULL;
  t->host = NULL;
  g->open++;
  return t;
}

/* Host memory for a copy: the first in the pool that is large enough, or a new one. */
static staging *take_staging(sk_group *g, size_t bytes) {
  for (staging **at = &g->host; *at; at = &(*at)->next) {
    if ((*at)->bytes < bytes) continue;
    staging *h = *at;
    *at = h->next;
    return h;
  }
  staging *h = sk_malloc(sizeof *h + bytes);
  h->bytes = bytes;
  return h;
}

/* In wait, `bytes` of the host's copy go to `dst`; NULL: only the copy is kept until then. */
static void land_later(sk_ticket *t, staging *h, void *dst, const char *from, size_t bytes) {
  t->host = h;
  t->land = dst;
  t->landing = from;
  t->land_bytes = bytes;
}

static void count_call(sk_group *g, sk_comm_kind kind, size_t bytes, int others) {
  g->stats.calls[kind]++;
  g->stats.bytes[kind] += (int64_t)bytes * others;
}

// ---- messages, cut where they are too long for MPI's counts ----

static int64_t pieces(size_t bytes, size_t cut) {
  return bytes <= cut ? 1 : (int64_t)((bytes - 1) / cut) + 1;
}

static void post_recv(sk_ticket *t, MPI_Comm comm, char *dst, int from, int tag) {
  size_t at = 0;
  do {
    size_t n = t->bytes - at < t->cut ? t->bytes - at : t->cut;
    SK_MPI(MPI_Irecv(dst + at, (int)n, MPI_BYTE, from, tag, comm, &t->req[t->n++]));
    at += n;
  } while (at < t->bytes);
  t->receives = t->n;
}

static void post_send(sk_ticket *t, MPI_Comm comm, const char *src, int to, int tag) {
  size_t at = 0;
  do {
    size_t n = t->bytes - at < t->cut ? t->bytes - at : t->cut;
    SK_MPI(MPI_Isend(src + at, (int)n, MPI_BYTE, to, tag, comm, &t->req[t->n++]));
    at += n;
  } while (at < t->bytes);
}

static sk_ticket *take_messages(sk_group *g, size_t bytes, int64_t messages) {
  SK_CHECK(sk_comm_mpi_cut > 0 && sk_comm_mpi_cut <= INT_MAX, "messages cut at %zu bytes",
           sk_comm_mpi_cut);
  sk_ticket *t = take(g, messages * pieces(bytes, sk_comm_mpi_cut));
  t->bytes = bytes;
  t->cut = sk_comm_mpi_cut;
  return t;
}

/* Every rank's `bytes` at src + (receiver) * stride go to dst + (sender) * bytes; with hole, dst
 * has no place for mine. Ranks start with different partners, so that nobody is everybody's first.
 */
static sk_ticket *exchange(sk_group *g, char *dst, bool hole, const char *src, size_t stride,
                           size_t bytes) {
  const int p = g->size, me = g->rank, tag = g->sequence;
  sk_ticket *t = take_messages(g, bytes, 2 * (int64_t)(p - 1));
  g->sequence = (g->sequence + 1) % SEQUENCE;
  for (int s = 1; s < p; s++) {
    int from = (me - s + p) % p, place = from - (hole && from > me);
    post_recv(t, g->collective, dst + (size_t)place * bytes, from, tag);
  }
  for (int s = 1; s < p; s++) {
    int to = (me + s) % p;
    post_send(t, g->collective, src + (size_t)to * stride, to, tag);
  }
  return t;
}

/* All ranks' `bytes` into dst, mine is there already. MPI's own collective where its counts reach.
 */
static sk_ticket *gather(sk_group *g, char *dst, size_t bytes) {
  if (bytes > sk_comm_mpi_cut / (size_t)g->size)
    return exchange(g, dst, false, dst + (size_t)g->rank * bytes, 0, bytes);
  sk_ticket *t = take(g, 1);
  SK_MPI(MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, dst, (int)bytes, MPI_BYTE,
                        g->collective, &t->req[t->n++]));
  return t;
}

// ---- the table ----

static sk_ticket *mpi_all_gather(sk_group *g, sk_stream *st, void *dst, const void *src,
                                 size_t bytes) {
  count_call(g, SK_COMM_GATHER, bytes, g->size - 1);
  if (bytes == 0) return NULL;
  const size_t mine = (size_t)g->rank * bytes, all = (size_t)g->size * bytes;
  if (g->size == 1 || !g->staged) {
    if (src != (char *)dst + mine) g->op->copy(st, (char *)dst + mine, src, bytes);
    if (g->size == 1) return NULL;
    g->op->sync(st);
    return gather(g, dst, bytes);
  }
  staging *h = take_staging(g, all);
  g->op->to_host(st, h->data + mine, src, bytes);
  sk_ticket *t = gather(g, h->data, bytes);
  land_later(t, h, dst, h->data, all);
  return t;
}

static size_t array_bytes(int64_t count, sk_dtype t) {
  SK_CHECK(count >= 0, "a sum of %lld elements", (long long)count);
  return (size_t)count * sk_dtype_size(t);
}

static size_t mpi_scatter_ws(int ranks, int64_t count, sk_dtype t) {
  return (size_t)(ranks - 1) * array_bytes(count, t);
}

static size_t mpi_reduce_ws(int ranks, int64_t count, sk_dtype t) {
  return ranks == 1 ? 0 : (size_t)ranks * array_bytes(count, t);
}

static void sum_later(sk_ticket *t, void *sum, const void *own, void *ws, bool hole, int64_t count,
                      sk_dtype type) {
  t->sum = sum;
  t->own = own;
  t->ws = ws;
  t->hole = hole;
  t->count = count;
  t->type = type;
}

// The device adds fp32, and its act elements.
static void check_type(const sk_group *g, sk_dtype type) {
  SK_CHECK(type == SK_F32 || type == g->op->act(g->dev),
           "a sum of elements of type %d on device \"%s\"", (int)type, g->op->name);
}

static sk_ticket *mpi_reduce_scatter(sk_group *g, sk_stream *st, void *dst, const void *src,
                                     int64_t count, sk_dtype type, void *ws) {
  const size_t bytes = array_bytes(count, type), all = (size_t)g->size * bytes;
  const char *own = (const char *)src + (size_t)g->rank * bytes;
  check_type(g, type);
  count_call(g, SK_COMM_SCATTER, bytes, g->size - 1);
  if (count == 0) return NULL;
  if (g->size == 1) {
    if (dst != own) g->op->copy(st, dst, own, bytes);
    return NULL;
  }
  staging *h = g->staged ? take_staging(g, 2 * all - bytes) : NULL; // what is sent, what comes
  if (h)
    g->op->to_host(st, h->data, src, all);
  else
    g->op->sync(st);
  sk_ticket *t = exchange(g, h ? h->data + all : ws, true, h ? h->data : src, bytes, bytes);
  if (h) land_later(t, h, ws, h->data + all, all - bytes);
  sum_later(t, dst, own, ws, true, count, type);
  return t;
}

static sk_ticket *mpi_all_reduce(sk_group *g, sk_stream *st, void *x, int64_t count, sk_dtype type,
                                 void *ws) {
  const size_t bytes = array_bytes(count, type), all = (size_t)g->size * bytes;
  const size_t mine = (size_t)g->rank * bytes;
  check_type(g, type);
  count_call(g, SK_COMM_REDUCE, bytes, g->size - 1);
  if (count == 0 || g->size == 1) return NULL;
  staging *h = g->staged ? take_staging(g, all) : NULL;
  if (h) {
    g->op->to_host(st, h->data + mine, x, bytes);
  } else {
    g->op->copy(st, (char *)ws + mine, x, bytes);
    g->op->sync(st);
  }
  sk_ticket *t = gather(g, h ? h->data : ws, bytes);
  if (h) land_later(t, h, ws, h->data, all);
  sum_later(t, x, x, ws, false, count, type);
  return t;
}

static void check_message(const sk_group *g, int peer, int tag) {
  SK_CHECK(peer >= 0 && peer < g->size && tag >= 0 && tag < SK_COMM_TAGS,
           "a message to or from rank %d of %d with tag %d", peer, g->size, tag);
}

static void mpi_together(sk_group *g, sk_stream *st, bool begin) {
  (void)g, (void)st, (void)begin; // every message goes its own way here
}

static sk_ticket *mpi_send(sk_group *g, sk_stream *st, const void *src, size_t bytes, int to,
                           int tag) {
  check_message(g, to, tag);
  count_call(g, SK_COMM_SEND, bytes, to != g->rank);
  staging *h = g->staged ? take_staging(g, bytes) : NULL;
  if (h)
    g->op->to_host(st, h->data, src, bytes);
  else
    g->op->sync(st);
  sk_ticket *t = take_messages(g, bytes, 1);
  if (h) land_later(t, h, NULL, NULL, 0);
  post_send(t, g->message, h ? h->data : src, to, tag);
  return t;
}

static sk_ticket *mpi_recv(sk_group *g, sk_stream *st, void *dst, size_t bytes, int from, int tag) {
  check_message(g, from, tag);
  staging *h = g->staged ? take_staging(g, bytes) : NULL;
  if (!h) g->op->sync(st); // earlier work may still use dst
  sk_ticket *t = take_messages(g, bytes, 1);
  if (h) land_later(t, h, dst, h->data, bytes);
  post_recv(t, g->message, h ? h->data : dst, from, tag);
  return t;
}

// Too long a message is MPI's error; too short a one would leave old numbers behind.
static void check_sizes(const sk_ticket *t) {
  int64_t each = pieces(t->bytes, t->cut);
  for (int i = 0; i < t->receives; i++) {
    size_t want = i % each < each - 1 ? t->cut : t->bytes - (size_t)(each - 1) * t->cut;
    int got;
    SK_MPI(MPI_Get_count(&t->status[i], MPI_BYTE, &got));
    SK_CHECK((size_t)got == want,
             "a message of %d bytes from rank %d of its group where %zu were due", got,
             t->status[i].MPI_SOURCE, want);
  }
}

// It grows in the first place of the others' parts, whose part is added first or second; the last
// step, which is the first one where the sum may overwrite my own part, puts it where it belongs.
void sk_comm_add_parts(const sk_ops *op, sk_stream *st, void *sum, const sk_parts *p, int64_t count,
                       sk_dtype type) {
  const void *before = NULL;
  for (int r = 0; r < p->size; r++) {
    const void *part = (char *)p->others + (size_t)(r - (p->hole && r > p->rank)) * p->stride;
    void *to = r == p->size - 1 ? sum : p->others;
    if (r == p->rank) part = p->own;
    if (r > 0 && type == SK_F32) op->add_f32(st, to, before, part, count);
    else if (r > 0) op->add(st, to, before, part, count);
    before = r > 0 ? to : part;
  }
}

static void mpi_wait(sk_group *g, sk_stream *st, sk_ticket *t) {
  if (!t) return;
  SK_CHECK(t->open, "an operation was waited for twice");
  SK_MPI(MPI_Waitall(t->n, t->req, t->status));
  check_sizes(t);
  if (t->land) g->op->from_host(st, t->land, t->landing, t->land_bytes);
  if (t->host) {
    t->host->next = g->host;
    g->host = t->host;
  }
  if (t->sum)
    sk_comm_add_parts(g->op, st, t->sum,
                      &(sk_parts){g->rank, g->size, t->own, t->ws, array_bytes(t->count, t->type),
                                  t->hole},
                      t->count, t->type);
  t->open = false;
  t->next = g->pool;
  g->pool = t;
  g->open--;
}

static sk_comm_stats *mpi_stats(sk_group *g) {
  return &g->stats;
}

const sk_comm_ops sk_comm_mpi = {
    .name = "mpi",
    .open = mpi_open,
    .close = mpi_close,
    .all_gather = mpi_all_gather,
    .scatter_ws = mpi_scatter_ws,
    .reduce_scatter = mpi_reduce_scatter,
    .reduce_ws = mpi_reduce_ws,
    .all_reduce = mpi_all_reduce,
    .together = mpi_together,
    .send = mpi_send,
    .recv = mpi_recv,
    .wait = mpi_wait,
    .stats = mpi_stats,
};
