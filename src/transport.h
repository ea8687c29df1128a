/* transport.h: what carries the pipeline's messages: comm.h tables with messages alone (no
 * collectives) for devices with memory of their own. A rank exchanges messages with the ranks before
 * and after it in the group, the last one being before the first.
 *
 *   ipc   same node: the receiver's memory is mapped (CUDA IPC) when a message first arrives in it,
 *         and the sender copies into it; neither host waits for a GPU
 *   mpi   MPI_Isend and MPI_Irecv: of the device's memory where the MPI can (CUDA-aware), else
 *         through pinned memory in pieces, two on their way at a time
 *   nccl  one NCCL communicator for each neighbour and direction
 *   auto  for each neighbour the fastest of these that works: ipc within a node, then nccl, then mpi
 *
 * One protocol serves them all, with short control messages by MPI: the receiver of a message says
 * READY, with the event after which its memory is free and where it is; the sender enqueues the copy
 * behind that event and behind its own work so far and says GO; the receiver's stream waits for the
 * event behind the copy. All that a host waits for is the other host's control message, or, in mpi,
 * MPI and the copies in pinned memory. Neither send nor recv ever waits, and a wait serves whatever
 * else is under way on the group, so that two ranks that wait for each other's messages get them.
 *
 * At most SK_TRANSPORT_OPEN receives from one rank may be open. With ipc, memory that a message has
 * arrived in must not be freed before the group is closed. Sums, gathers and brackets are the
 * business of comm_mpi.c and comm_nccl.c. */
#ifndef SK_TRANSPORT_H
#define SK_TRANSPORT_H
#include "src/comm.h"

enum { SK_TRANSPORT_AUTO, SK_TRANSPORT_IPC, SK_TRANSPORT_MPI, SK_TRANSPORT_NCCL, SK_NTRANSPORTS };
extern const char *const sk_transport_name[SK_NTRANSPORTS]; /* the choices of parallel.transport */

enum { SK_TRANSPORT_OPEN = 16 };

/* The table for parallel.transport. Its open is collective and fails, on all ranks and saying why,
 * where what was asked for does not work between two neighbours; auto then takes the next. */
const sk_comm_ops *sk_transport_table(int transport);

/* Does whatever the messages of all open groups need now, without waiting: for a rank whose host waits for another's
 * outside of them, which may itself wait for a message. */
void sk_transport_serve(void);

/* How this rank's links to the ranks before and after it go: links[] counts them by transport (ipc,
 * mpi, nccl). The group is one of these tables'. */
void sk_transport_links(const sk_group *g, int links[SK_NTRANSPORTS]);

/* For tests: bytes of a piece of a message in pinned memory (2 MiB; the same on all ranks), and
 * whether the CPU's messages are staged as a GPU's are. Set before a group is opened. */
extern size_t sk_transport_piece;
extern bool sk_transport_staged_cpu;

/* comm_nccl.c: messages from one rank of comm to another, in the order of the calls, which is the
 * same on both. */
typedef struct sk_nccl_pair sk_nccl_pair;
/* Collective over the two ranks; the errors are each rank's own. NULL and *e on failure, and in a
 * program without NCCL. */
sk_nccl_pair *sk_nccl_pair_open(MPI_Comm comm, int from, int to, sk_err *e);
/* With `both` collective over the two: each waits for the other. Without, after a failure at the
 * other end, at once. NULL is fine. */
void sk_nccl_pair_close(sk_nccl_pair *p, bool both);
void sk_nccl_pair_send(sk_nccl_pair *p, sk_stream *s, const void *src, size_t bytes);
void sk_nccl_pair_recv(sk_nccl_pair *p, sk_stream *s, void *dst, size_t bytes);
#endif
