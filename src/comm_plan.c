/* comm_plan.c: groups on which nothing is sent, for the planning device (kernels/plan.c): running a
 * training step only measures memory. */
#include "src/comm.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" // nothing here looks at its arguments

static sk_comm_stats g_stats; // stays zero, unless a caller writes to it
static char g_token;          // what groups point at
static const sk_comm_ops *g_target = &sk_comm_mpi;

void sk_comm_plan_for(const sk_comm_ops *target) {
  g_target = target;
}

static sk_group *plan_open(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e) {
  return (sk_group *)(void *)&g_token;
}

static void plan_close(sk_group *g) {}

static sk_ticket *plan_all_gather(sk_group *g, sk_stream *st, void *dst, const void *src,
                                  size_t bytes) {
  return NULL;
}

static size_t plan_scatter_ws(int ranks, int64_t count, sk_dtype t) {
  return g_target->scatter_ws(ranks, count, t);
}

static sk_ticket *plan_reduce_scatter(sk_group *g, sk_stream *st, void *dst, const void *src,
                                      int64_t count, sk_dtype t, void *ws) {
  return NULL;
}

static size_t plan_reduce_ws(int ranks, int64_t count, sk_dtype t) {
  return g_target->reduce_ws(ranks, count, t);
}

static sk_ticket *plan_all_reduce(sk_group *g, sk_stream *st, void *x, int64_t count, sk_dtype t,
                                  void *ws) {
  return NULL;
}

static void plan_together(sk_group *g, sk_stream *st, bool begin) {}

static sk_ticket *plan_send(sk_group *g, sk_stream *st, const void *src, size_t bytes, int to,
                            int tag) {
  return NULL;
}

static sk_ticket *plan_recv(sk_group *g, sk_stream *st, void *dst, size_t bytes, int from,
                            int tag) {
  return NULL;
}

static void plan_wait(sk_group *g, sk_stream *st, sk_ticket *t) {}

static sk_comm_stats *plan_stats(sk_group *g) {
  return &g_stats;
}

const sk_comm_ops sk_comm_plan = {
    .name = "plan",
    .open = plan_open,
    .close = plan_close,
    .all_gather = plan_all_gather,
    .scatter_ws = plan_scatter_ws,
    .reduce_scatter = plan_reduce_scatter,
    .reduce_ws = plan_reduce_ws,
    .all_reduce = plan_all_reduce,
    .together = plan_together,
    .send = plan_send,
    .recv = plan_recv,
    .wait = plan_wait,
    .stats = plan_stats,
};
