/* transport_open.c: how each link of a transport group goes: tried out when the group is opened. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif
#include <stdio.h>
#include <string.h>
#include "src/transport_link.h"
#ifdef HAVE_MPI_QUERY_DEVICE
#include <mpi-ext.h>
#endif

const char *const sk_transport_name[SK_NTRANSPORTS] = {"auto", "ipc", "mpi", "nccl"};
bool sk_transport_staged_cpu;

enum { PINS = 12 }; // messages that a schedule has under way, and those of a tied matrix

// Whether MPI sends and receives this device's memory itself.
static bool is_direct(const sk_ops *op) {
  if (strcmp(op->name, "cpu") == 0) return !sk_transport_staged_cpu;
#ifdef HAVE_MPI_QUERY_DEVICE
  return MPIX_Query_cuda_support() == 1;
#else
  return false;
#endif
}

// ---- ipc ----

// What one end of a link tells the other.
typedef struct introduction {
  sk_share freed[SLOTS], done[SLOTS], memory;
} introduction;

static void swap(sk_group *g, const link *l, const void *mine, void *its, size_t bytes) {
  SK_MPI(MPI_Sendrecv(mine, (int)bytes, MPI_BYTE, l->peer, 1, its, (int)bytes, MPI_BYTE, l->peer, 1,
                      g->control, MPI_STATUS_IGNORE));
}

// Both ends say whether it went well. The reason is kept on the end that has it.
static bool both(sk_group *g, const link *l, const sk_err *e) {
  int32_t mine = e->code == SK_OK, its;
  swap(g, l, &mine, &its, sizeof its);
  return mine && its;
}

static void drop_events(sk_group *g, link *l) {
  for (int i = 0; i < SLOTS; i++) {
    slot *s = &l->slot[i];
    g->op->event_destroy(s->freed);
    g->op->event_destroy(s->done);
    g->op->event_destroy(s->its_freed);
    g->op->event_destroy(s->its_done);
    *s = (slot){0};
  }
}

static void map_events(sk_group *g, link *l, const introduction *its, sk_err *e) {
  for (int i = 0; i < SLOTS && !e->code; i++) {
    l->slot[i].its_freed = g->op->event_map(g->dev, &its->freed[i], e);
    if (!e->code) l->slot[i].done = g->op->event_map(g->dev, &its->done[i], e);
  }
  if (e->code) return;
  void *base = g->op->map(g->dev, &its->memory, e); // whether the memory can be mapped at all
  if (base) g->op->unmap(g->dev, base);
}

// Collective over the two ends: events of both, mapped by both.
static bool try_ipc(sk_group *g, link *l, sk_err *e) {
  introduction mine = {0}, its;
  void *probe = g->op->alloc(g->dev, 2 << 20);
  if (!probe) sk_fail(e, SK_FAILED, "out of memory on %s", sk_host());
  for (int i = 0; i < SLOTS && !e->code; i++) {
    l->slot[i].freed = g->op->event_share(g->dev, &mine.freed[i], e);
    if (!e->code) l->slot[i].its_done = g->op->event_share(g->dev, &mine.done[i], e);
  }
  if (!e->code) g->op->share(g->dev, probe, &mine.memory, e);
  swap(g, l, &mine, &its, sizeof mine);
  if (both(g, l, e)) map_events(g, l, &its, e);
  bool works = both(g, l, e);
  if (!works) drop_events(g, l);
  if (probe) g->op->free(g->dev, probe);
  return works;
}

// ---- nccl ----

// Whatever is done with a pair waits for its other end, so every rank takes its pairs in one order
// of all: those between an even rank and the next first, then those of an odd one.
typedef void (*with_pair)(sk_group *g, link *l, int from, int to, sk_err *e);
static void each_pair(sk_group *g, with_pair call, sk_err *e) {
  for (int odd = 0; odd < 2; odd++)
    for (int a = odd; a < g->size; a += 2)
      for (int back = 0; back < 2; back++) {
        int b = (a + 1) % g->size, other = g->rank == a ? b : a;
        if ((g->rank != a && g->rank != b) || (g->size == 2 && a == 1)) continue;
        for (int i = 0; i < g->n_links; i++)
          if (g->link[i].peer == other && g->link[i].how == SK_TRANSPORT_NCCL)
            call(g, &g->link[i], back ? b : a, back ? a : b, e);
      }
}

static void open_pair(sk_group *g, link *l, int from, int to, sk_err *e) {
  sk_err failed = {0};
  sk_nccl_pair **p = from == g->rank ? &l->to : &l->from;
  *p = sk_nccl_pair_open(g->control, from, to, &failed);
  if (failed.code && !e->code) *e = failed;
}

static void close_pair(sk_group *g, link *l, int from, int to, sk_err *e) {
  sk_nccl_pair **p = from == g->rank ? &l->to : &l->from;
  (void)to, (void)e;
  sk_nccl_pair_close(*p, true);
  *p = NULL;
}

// The link is NCCL's where both ends have both pairs, else mpi.
static void settle(sk_group *g, link *l, int from, int to, sk_err *e) {
  sk_err failed = {.code = l->to && l->from ? SK_OK : SK_FAILED};
  (void)from, (void)to, (void)e;
  if (both(g, l, &failed)) return;
  sk_nccl_pair_close(l->to, false);
  sk_nccl_pair_close(l->from, false);
  l->to = l->from = NULL;
  l->how = SK_TRANSPORT_MPI;
}

// ---- choosing ----

// Whether each link's other end is on this node.
static void find_nodes(sk_group *g, MPI_Comm comm, bool same[2]) {
  MPI_Comm node;
  int first = g->rank, *all = sk_calloc((size_t)g->size, sizeof *all);
  SK_MPI(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, g->rank, MPI_INFO_NULL, &node));
  SK_MPI(MPI_Bcast(&first, 1, MPI_INT, 0, node));
  SK_MPI(MPI_Comm_free(&node));
  SK_MPI(MPI_Allgather(&first, 1, MPI_INT, all, 1, MPI_INT, comm));
  for (int i = 0; i < g->n_links; i++) same[i] = all[g->link[i].peer] == first;
  sk_free(all);
}

// In the order of the links' lower rank, then of the rank before: the same at both ends of a link,
// so that pairs of ranks never wait for each other in a ring.
static void choose_ipc(sk_group *g, const bool same[2], sk_err why[2]) {
  for (int odd = 0; odd < 2; odd++)
    for (int a = odd; a < g->size; a += 2)
      for (int i = 0; i < g->n_links; i++) {
        link *l = &g->link[i];
        int b = (a + 1) % g->size;
        bool mine = (g->rank == a && l->peer == b) || (g->rank == b && l->peer == a);
        if (!mine || l->how != SK_TRANSPORT_AUTO) continue; // (of two ranks: once)
        if (!same[i])
          sk_fail(&why[i], SK_FAILED, "they are on different nodes (this one is %s)", sk_host());
        l->how = same[i] && try_ipc(g, l, &why[i]) ? SK_TRANSPORT_IPC : SK_TRANSPORT_NCCL;
      }
}

static void refuse(const sk_group *g, const link *l, int wanted, const sk_err *why, sk_err *e) {
  sk_fail(e, SK_FAILED,
          "parallel.transport: %s does not work between pipeline stages %d and %d%s%s.\n"
          "Set parallel.transport: auto, which takes for every neighbour what works.",
          sk_transport_name[wanted], g->rank, l->peer, why->code ? ": " : "", why->msg);
}

// Sets every link's `how`.
static void choose(sk_group *g, MPI_Comm comm, int wanted, sk_err *e) {
  bool same[2];
  sk_err why[2] = {{0}}, nccl = {0};
  const bool gpu = strcmp(g->op->name, "cpu") != 0;
  if (!gpu && wanted == SK_TRANSPORT_NCCL)
    sk_fail(e, SK_FAILED, "parallel.transport: nccl serves GPUs only, not the device \"%s\"", g->op->name);
  if (e->code) return;
  find_nodes(g, comm, same);
  for (int i = 0; i < g->n_links; i++)
    g->link[i].how = gpu || wanted != SK_TRANSPORT_AUTO ? wanted : SK_TRANSPORT_MPI;
  if (wanted == SK_TRANSPORT_IPC)
    for (int i = 0; i < g->n_links; i++) g->link[i].how = SK_TRANSPORT_AUTO;
  choose_ipc(g, same, why);
  if (wanted == SK_TRANSPORT_IPC) {
    for (int i = 0; i < g->n_links && !e->code; i++)
      if (g->link[i].how != SK_TRANSPORT_IPC) refuse(g, &g->link[i], wanted, &why[i], e);
    return;
  }
  each_pair(g, open_pair, &nccl);
  each_pair(g, settle, NULL);
  for (int i = 0; i < g->n_links && !e->code; i++) {
    if (g->link[i].how != SK_TRANSPORT_MPI || wanted == SK_TRANSPORT_MPI) continue;
    if (wanted == SK_TRANSPORT_NCCL) refuse(g, &g->link[i], wanted, &nccl, e);
    else if (gpu && same[i] && !g->direct)
      sk_warn("pipeline stages %d and %d exchange data through the host, which is slow: %s; %s", g->rank,
              g->link[i].peer, why[i].msg, nccl.msg);
  }
}

// ---- open and close ----

static void add_link(sk_group *g, int peer) {
  if (peer == g->rank || (g->n_links && g->link[0].peer == peer)) return;
  g->link[g->n_links++] = (link){.peer = peer};
}

// Streams, and events where they are not another process's.
static void equip(sk_group *g, link *l) {
  l->out = g->op->copy_stream_create(g->dev);
  l->in = g->op->copy_stream_create(g->dev);
  if (l->how == SK_TRANSPORT_IPC) return;
  for (int i = 0; i < SLOTS; i++) {
    l->slot[i].freed = g->op->event_create(g->dev);
    l->slot[i].done = g->op->event_create(g->dev);
  }
}

static sk_group *open_as(MPI_Comm comm, const sk_ops *op, sk_device *dev, int wanted, sk_err *e) {
  bool staged = false;
  if (sk_agree(comm, e) != SK_OK) return NULL;
  sk_group *g = sk_calloc(1, sizeof *g);
  g->op = op;
  g->dev = dev;
  g->direct = is_direct(op);
  SK_MPI(MPI_Comm_dup(comm, &g->control));
  SK_MPI(MPI_Comm_dup(comm, &g->data));
  SK_MPI(MPI_Comm_rank(comm, &g->rank));
  SK_MPI(MPI_Comm_size(comm, &g->size));
  add_link(g, (g->rank + g->size - 1) % g->size);
  add_link(g, (g->rank + 1) % g->size);
  choose(g, comm, wanted, e);
  for (int i = 0; i < g->n_links; i++) {
    equip(g, &g->link[i]);
    staged = staged || (g->link[i].how == SK_TRANSPORT_MPI && !g->direct);
  }
  for (int i = 0; i < PINS && staged; i++) sk_transport_add_pin(g);
  if (sk_agree(comm, e) != SK_OK) {
    sk_transport_close(g);
    return NULL;
  }
  sk_transport_enlist(g);
  return g;
}

sk_group *sk_transport_open_auto(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e) {
  return open_as(comm, op, dev, SK_TRANSPORT_AUTO, e);
}
sk_group *sk_transport_open_ipc(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e) {
  return open_as(comm, op, dev, SK_TRANSPORT_IPC, e);
}
sk_group *sk_transport_open_mpi(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e) {
  return open_as(comm, op, dev, SK_TRANSPORT_MPI, e);
}
sk_group *sk_transport_open_nccl(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e) {
  return open_as(comm, op, dev, SK_TRANSPORT_NCCL, e);
}

static void close_link(sk_group *g, link *l) {
  sk_mapped_clear(&l->memory, g->op, g->dev);
  drop_events(g, l);
  g->op->stream_destroy(l->out);
  g->op->stream_destroy(l->in);
}

void sk_transport_close(sk_group *g) {
  if (!g) return;
  SK_CHECK(g->open == 0, "a group was closed while %d messages were under way", g->open);
  sk_transport_strike(g);
  for (int i = 0; i < g->n_links; i++) {
    if (g->link[i].out) g->op->sync(g->link[i].out);
    if (g->link[i].in) g->op->sync(g->link[i].in);
  }
  SK_MPI(MPI_Barrier(g->control)); // nobody waits for another's events any more
  each_pair(g, close_pair, NULL);
  for (int i = 0; i < g->n_links; i++) close_link(g, &g->link[i]);
  for (sk_ticket *t = g->pool, *next; t; t = next) {
    next = t->next;
    g->op->event_destroy(t->before);
    g->op->event_destroy(t->done);
    sk_free(t);
  }
  for (pinned *p = g->pins, *next; p; p = next) {
    next = p->next;
    for (int i = 0; i < 2; i++) {
      g->op->event_destroy(p->copied[i]);
      g->op->host_free(g->dev, p->half[i]);
    }
    sk_free(p);
  }
  SK_MPI(MPI_Barrier(g->control)); // nobody frees memory that another still has mapped
  SK_MPI(MPI_Comm_free(&g->control));
  SK_MPI(MPI_Comm_free(&g->data));
  sk_free(g);
}

void sk_transport_links(const sk_group *g, int links[SK_NTRANSPORTS]) {
  memset(links, 0, SK_NTRANSPORTS * sizeof *links);
  for (int i = 0; i < g->n_links; i++) links[g->link[i].how]++;
}
