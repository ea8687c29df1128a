/* transport.c: messages between pipeline stages; see transport.h for the protocol. */
#include <sched.h>
#include <string.h>
#include "src/transport_link.h"

size_t sk_transport_piece = 2 << 20;

// ---- tickets ----

static sk_ticket *take(sk_group *g, link *l, bool send, void *data, size_t bytes, int tag) {
  sk_ticket *t = g->pool;
  if (t) {
    g->pool = t->next;
  } else {
    t = sk_calloc(1, sizeof *t);
    t->before = g->op->event_create(g->dev);
    t->done = g->op->event_create(g->dev);
  }
  *t = (sk_ticket){.link = l, .open = true, .send = send, .data = data, .bytes = bytes, .tag = tag,
                   .before = t->before, .done = t->done, .out_request = MPI_REQUEST_NULL,
                   .request = {MPI_REQUEST_NULL, MPI_REQUEST_NULL}};
  g->open++;
  return t;
}

static link *link_to(sk_group *g, int peer, int tag) {
  for (int i = 0; i < g->n_links; i++)
    if (g->link[i].peer == peer) {
      SK_CHECK(tag >= 0 && tag < SK_COMM_TAGS, "a message with tag %d", tag);
      return &g->link[i];
    }
  sk_die(__FILE__, __LINE__, "a message between ranks %d and %d of a pipeline of %d", g->rank, peer,
         g->size);
}

static void post_control(sk_group *g, sk_ticket *t, const control *c) {
  t->out = *c;
  SK_MPI(MPI_Isend(&t->out, sizeof t->out, MPI_BYTE, t->link->peer, 0, g->control,
                   &t->out_request));
}

// ---- pieces of a message through MPI ----

// At the end: its last copy may still be under way.
static void give_back(sk_group *g, pinned *p) {
  pinned **at = &g->pins;
  while (*at) at = &(*at)->next;
  *at = p;
  p->next = NULL;
}

void sk_transport_add_pin(sk_group *g) {
  pinned *p = sk_calloc(1, sizeof *p);
  for (int i = 0; i < 2; i++) {
    p->half[i] = g->op->host_alloc(g->dev, sk_transport_piece);
    SK_CHECK(p->half[i], "out of memory: %zu bytes of pinned memory", sk_transport_piece);
    p->copied[i] = g->op->event_create(g->dev);
  }
  give_back(g, p);
}

static pinned *take_pin(sk_group *g) {
  if (!g->pins) sk_transport_add_pin(g);
  pinned *p = g->pins;
  g->pins = p->next;
  return p;
}

static size_t piece_bytes(const sk_ticket *t, int64_t i) {
  size_t at = (size_t)i * sk_transport_piece;
  return t->bytes - at < sk_transport_piece ? t->bytes - at : sk_transport_piece;
}

static char *piece_of(const sk_ticket *t, int64_t i) {
  return t->data + (size_t)i * sk_transport_piece;
}

// What MPI reads or writes for piece i.
static char *place(const sk_ticket *t, int64_t i) {
  return t->pin ? t->pin->half[i % 2] : piece_of(t, i);
}

static void begin_moving(sk_group *g, sk_ticket *t) {
  t->pieces = (int64_t)((t->bytes + sk_transport_piece - 1) / sk_transport_piece);
  t->pin = g->direct ? NULL : take_pin(g);
  if (t->pin && t->send) {
    g->op->wait(t->link->out, t->before);
    for (int i = 0; i < 2; i++) g->op->wait(t->link->out, t->pin->copied[i]);
  } else if (t->pin) {
    g->op->wait(t->link->in, t->link->slot[t->slot].freed);
  }
  SK_CHECK(g->n_moving < 4 * SLOTS, "more than %d messages under way", 4 * SLOTS);
  g->moving[g->n_moving++] = t;
}

static bool arrived(sk_ticket *t, bool check) {
  MPI_Status status;
  int flag, got;
  SK_MPI(MPI_Test(&t->request[t->moved % 2], &flag, &status));
  if (flag && check) {
    SK_MPI(MPI_Get_count(&status, MPI_BYTE, &got));
    SK_CHECK((size_t)got == piece_bytes(t, t->moved), "a piece of %d bytes where %zu were due", got,
             piece_bytes(t, t->moved));
  }
  return flag;
}

// From the device into a half, from there to the other rank; a half is used again when MPI has read
// it.
static void move_out(sk_group *g, sk_ticket *t) {
  while (t->pin && t->copied < t->pieces && t->copied < t->moved + 2) {
    g->op->copy_host(t->link->out, place(t, t->copied), piece_of(t, t->copied),
                     piece_bytes(t, t->copied));
    g->op->record(t->pin->copied[t->copied % 2], t->link->out);
    t->copied++;
  }
  while (t->posted < t->pieces && t->posted < t->moved + 2) {
    if (t->pin && t->posted == t->copied) break;
    if (!g->op->event_done(t->pin ? t->pin->copied[t->posted % 2] : t->before)) break;
    SK_MPI(MPI_Isend(place(t, t->posted), (int)piece_bytes(t, t->posted), MPI_BYTE, t->link->peer,
                     t->slot, g->data, &t->request[t->posted % 2]));
    t->posted++;
  }
  while (t->moved < t->posted && arrived(t, false)) t->moved++;
}

// From the other rank into a half, from there to the device; a half is used again when the device
// has read it.
static void move_in(sk_group *g, sk_ticket *t) {
  const slot *s = &t->link->slot[t->slot];
  while (t->posted < t->pieces && t->posted < t->moved + 2) {
    if (!g->op->event_done(t->pin ? t->pin->copied[t->posted % 2] : s->freed)) break;
    SK_MPI(MPI_Irecv(place(t, t->posted), (int)piece_bytes(t, t->posted), MPI_BYTE, t->link->peer,
                     t->slot, g->data, &t->request[t->posted % 2]));
    t->posted++;
  }
  while (t->moved < t->posted && arrived(t, true)) {
    if (t->pin) {
      g->op->copy_host(t->link->in, piece_of(t, t->moved), place(t, t->moved),
                       piece_bytes(t, t->moved));
      g->op->record(t->pin->copied[t->moved % 2], t->link->in);
    }
    t->moved++;
  }
}

// True when all pieces are through. The halves go back to the pool: who takes them next waits for
// the copies from them.
static bool move(sk_group *g, sk_ticket *t) {
  if (t->send) move_out(g, t);
  else move_in(g, t);
  t->over = t->moved == t->pieces;
  if (!t->over) return false;
  if (!t->send) g->op->record(t->link->slot[t->slot].done, t->link->in);
  if (t->pin) give_back(g, t->pin);
  t->pin = NULL;
  return true;
}

// ---- the protocol ----

// The message's receiver has said READY.
static void start_send(sk_group *g, sk_ticket *t, const control *c) {
  link *l = t->link;
  slot *s = &l->slot[c->slot];
  SK_CHECK(c->bytes == t->bytes, "a message of %zu bytes where rank %d of its group expects %llu",
           t->bytes, l->peer, (unsigned long long)c->bytes);
  t->slot = c->slot;
  if (l->how == SK_TRANSPORT_MPI) {
    begin_moving(g, t);
    return;
  }
  g->op->wait(l->out, t->before);
  if (l->how == SK_TRANSPORT_IPC) {
    g->op->wait(l->out, s->its_freed);
    if (t->bytes) g->op->copy(l->out, sk_mapped_at(&l->memory, g->op, g->dev, &c->at), t->data, t->bytes);
    g->op->record(s->its_done, l->out);
  } else {
    sk_nccl_pair_send(l->to, l->out, t->data, t->bytes);
  }
  g->op->record(t->done, l->out);
  post_control(g, t, &(control){.go = 1, .slot = c->slot, .tag = t->tag});
  t->over = true;
}

static void on_go(sk_group *g, link *l, const control *c) {
  sk_ticket *t = l->slot[c->slot].ticket;
  SK_CHECK(t && t->tag == c->tag && !t->over, "a message with tag %d that was not expected", c->tag);
  if (l->how == SK_TRANSPORT_NCCL) {
    g->op->wait(l->in, l->slot[c->slot].freed);
    sk_nccl_pair_recv(l->from, l->in, t->data, t->bytes);
    g->op->record(l->slot[c->slot].done, l->in);
  }
  t->over = true;
}

static void on_ready(sk_group *g, link *l, const control *c) {
  for (sk_ticket **at = &l->sends; *at; at = &(*at)->next) {
    sk_ticket *t = *at;
    if (t->tag != c->tag) continue;
    *at = t->next;
    start_send(g, t, c);
    return;
  }
  SK_CHECK(l->n_ready < SLOTS, "more than %d messages are waited for", SLOTS);
  l->ready[l->n_ready++] = *c;
}

// Whatever can be done now, without waiting.
static void progress(sk_group *g) {
  for (;;) {
    MPI_Status status;
    int flag;
    control c;
    SK_MPI(MPI_Iprobe(MPI_ANY_SOURCE, 0, g->control, &flag, &status));
    if (!flag) break;
    SK_MPI(MPI_Recv(&c, sizeof c, MPI_BYTE, status.MPI_SOURCE, 0, g->control, MPI_STATUS_IGNORE));
    SK_CHECK(c.slot >= 0 && c.slot < SLOTS, "slot %d", c.slot);
    link *l = link_to(g, status.MPI_SOURCE, c.tag);
    if (c.go) on_go(g, l, &c);
    else on_ready(g, l, &c);
  }
  int kept = 0;
  for (int i = 0; i < g->n_moving; i++) {
    sk_ticket *t = g->moving[i];
    if (!move(g, t)) g->moving[kept++] = t;
  }
  g->n_moving = kept;
}

// ---- all groups that are open ----

static sk_group *g_open;

void sk_transport_enlist(sk_group *g) {
  g->next = g_open;
  g_open = g;
}

void sk_transport_strike(sk_group *g) {
  for (sk_group **at = &g_open; *at; at = &(*at)->next)
    if (*at == g) {
      *at = g->next;
      return;
    }
}

void sk_transport_serve(void) {
  for (sk_group *g = g_open; g; g = g->next) progress(g);
}

// ---- the table ----

static sk_ticket *post_recv(sk_group *g, sk_stream *st, void *dst, size_t bytes, int from,
                            int tag) {
  link *l = link_to(g, from, tag);
  sk_err e = {0};
  int i = 0;
  while (i < SLOTS && l->slot[i].ticket) i++;
  SK_CHECK(i < SLOTS, "more than %d receives from rank %d are open", SLOTS, from);
  sk_ticket *t = take(g, l, false, dst, bytes, tag);
  control c = {.slot = i, .tag = tag, .bytes = bytes};
  l->slot[i].ticket = t;
  t->slot = i;
  g->op->record(l->slot[i].freed, st);
  if (l->how == SK_TRANSPORT_IPC && bytes)
    SK_CHECK(g->op->share(g->dev, dst, &c.at, &e) == SK_OK, "%s", e.msg);
  if (l->how == SK_TRANSPORT_MPI) begin_moving(g, t);
  post_control(g, t, &c);
  progress(g);
  return t;
}

static sk_ticket *post_send(sk_group *g, sk_stream *st, const void *src, size_t bytes, int to,
                            int tag) {
  link *l = link_to(g, to, tag);
  sk_ticket *t = take(g, l, true, (void *)(uintptr_t)src, bytes, tag);
  g->stats.calls[SK_COMM_SEND]++;
  g->stats.bytes[SK_COMM_SEND] += (int64_t)bytes;
  g->op->record(t->before, st);
  for (int i = 0; i < l->n_ready; i++) {
    control c = l->ready[i];
    if (c.tag != tag) continue;
    memmove(&l->ready[i], &l->ready[i + 1], (size_t)(--l->n_ready - i) * sizeof c);
    start_send(g, t, &c);
    progress(g);
    return t;
  }
  sk_ticket **at = &l->sends;
  while (*at) at = &(*at)->next;
  *at = t;
  progress(g);
  return t;
}

static void finish(sk_group *g, sk_stream *st, sk_ticket *t) {
  int sent = 0;
  if (!t) return;
  SK_CHECK(t->open, "a message was waited for twice");
  for (;;) { // the host's only wait: for the other host, or for MPI
    progress(g);
    if (t->over && !sent) SK_MPI(MPI_Test(&t->out_request, &sent, MPI_STATUS_IGNORE));
    if (sent) break;
    sched_yield();
  }
  link *l = t->link;
  if (!t->send) {
    g->op->wait(st, l->slot[t->slot].done);
    l->slot[t->slot].ticket = NULL;
  } else if (l->how != SK_TRANSPORT_MPI) {
    g->op->wait(st, t->done);
  }
  t->open = false;
  t->next = g->pool;
  g->pool = t;
  g->open--;
}

// Every message is served for itself.
static void together(sk_group *g, sk_stream *st, bool begin) {
  (void)g, (void)st, (void)begin;
}

static sk_comm_stats *stats(sk_group *g) {
  return &g->stats;
}

static const sk_comm_ops table[SK_NTRANSPORTS] = {
#define TABLE(label, opens)                                                        \
  {.name = label, .open = opens, .close = sk_transport_close, .together = together, \
   .send = post_send, .recv = post_recv, .wait = finish, .stats = stats}
    [SK_TRANSPORT_AUTO] = TABLE("auto", sk_transport_open_auto),
    [SK_TRANSPORT_IPC] = TABLE("ipc", sk_transport_open_ipc),
    [SK_TRANSPORT_MPI] = TABLE("mpi", sk_transport_open_mpi),
    [SK_TRANSPORT_NCCL] = TABLE("nccl", sk_transport_open_nccl),
#undef TABLE
};

const sk_comm_ops *sk_transport_table(int transport) {
  return &table[transport];
}
