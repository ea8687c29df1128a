/* transport_link.h: the parts of a transport group; private to transport.c (messages) and
 * transport_open.c (opening, choosing, closing). */
#ifndef SK_TRANSPORT_LINK_H
#define SK_TRANSPORT_LINK_H
#include "src/mapped.h"
#include "src/transport.h"

enum { SLOTS = SK_TRANSPORT_OPEN };

/* Pinned memory of a message under way: pieces pass through its halves in turn. */
typedef struct pinned {
  struct pinned *next; /* in the pool */
  char *half[2];
  sk_event *copied[2]; /* the last copy from or to that half */
} pinned;

typedef struct control {
  int32_t go;   /* 0: READY */
  int32_t slot; /* the receiver's number for the message, until it has been waited for */
  int32_t tag;
  int32_t pad;
  uint64_t bytes;
  sk_share at; /* ipc: the receiver's memory */
} control;

/* A message that is being received. freed: the work before the receive, which may still use its
 * memory; done: the copy into it (ipc: the sender's event, mapped). */
typedef struct slot {
  sk_ticket *ticket; /* NULL: not in use */
  sk_event *freed, *done;
  /* ipc, of the peer's slot of this number, to which I send. */
  sk_event *its_freed, *its_done;
} slot;

/* One rank that messages are exchanged with. */
typedef struct link {
  int peer, how; /* SK_TRANSPORT_IPC, MPI or NCCL */
  sk_stream *out, *in;
  slot slot[SLOTS];
  sk_ticket *sends;      /* without a READY yet, oldest first */
  control ready[SLOTS];  /* READYs without a send yet, oldest first */
  int n_ready;
  sk_mapped memory; /* ipc: the peer's */
  sk_nccl_pair *to, *from; /* nccl */
} link;

struct sk_ticket {
  sk_ticket *next; /* in the pool or among the link's sends */
  link *link;
  bool open, send, over; /* over: nothing left to do for the host but to have the stream wait */
  char *data;
  size_t bytes;
  int tag, slot;
  sk_event *before, *done; /* send: the caller's work so far; the copy */
  control out;             /* its READY or GO */
  MPI_Request out_request;
  /* mpi: pieces whose copy was enqueued, given to MPI, through with it. */
  int64_t pieces, copied, posted, moved;
  pinned *pin; /* NULL: MPI takes the device's memory */
  MPI_Request request[2];
};

struct sk_group {
  sk_group *next; /* among those that are open */
  const sk_ops *op;
  sk_device *dev;
  int rank, size, n_links, open;
  bool direct;           /* MPI takes the device's memory */
  link link[2];          /* the rank before, the rank after; one where they are the same */
  MPI_Comm control, data; /* owned */
  sk_ticket *pool;
  sk_ticket *moving[4 * SLOTS]; /* tickets whose pieces MPI moves; sends and receives of two links */
  int n_moving;
  pinned *pins; /* not in use */
  sk_comm_stats stats;
};

/* transport.c: one more piece of pinned memory in the pool. */
void sk_transport_add_pin(sk_group *g);
/* transport.c: sk_transport_serve serves the group from now on; no longer (if it did). */
void sk_transport_enlist(sk_group *g);
void sk_transport_strike(sk_group *g);

/* transport_open.c: open and close of the tables. */
sk_group *sk_transport_open_auto(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e);
sk_group *sk_transport_open_ipc(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e);
sk_group *sk_transport_open_mpi(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e);
sk_group *sk_transport_open_nccl(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e);
void sk_transport_close(sk_group *g);
#endif
