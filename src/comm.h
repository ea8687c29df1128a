/* comm.h: collectives and messages on device memory, within one line or plane of the grid. A table
 * like the device's: comm_mpi.c serves every device (a GPU through the host's memory), comm_nccl.c
 * GPUs, comm_plan.c does nothing; transport.h has those for the pipeline's messages alone.
 *
 * open, close and the three collectives are collective over the group: all ranks make the same
 * calls in the same order, with the same sizes. A message concerns its two ranks; waiting concerns
 * nobody else. Different groups do not mix, even on the same communicator. One thread at a time
 * uses a group.
 *
 * Everything is asynchronous: a call reads src after the work enqueued on `stream` so far, and what
 * it writes may be used by work enqueued after wait on its ticket. Until then src may only be read,
 * and dst and ws must not be touched. Several tickets may be open at once and be waited for in any
 * order.
 *
 * A host waits for other hosts in wait (MPI; messages), or in the call where GPUs exchange large
 * parts directly (direct.h): such calls to different groups are to be made in one order by all ranks
 * concerned, as by a program that is the same on all of them. With NCCL it never waits for a GPU.
 *
 * Sums are of fp32 or of the device's act elements. MPI takes them in the group's rank order,
 * ((part 0 + part 1) + part 2) + ...: the same bits on every rank, whatever the position in the
 * buffer and however the buffer is cut. So do the GPUs where they exchange bf16 parts directly
 * (direct.h); NCCL's order is its own, fixed for a size and a set of GPUs, and the same bits on
 * every rank. Sizes are in bytes (gather, send, recv) or in elements of type t (sums), 64 bits wide;
 * 0 is fine. Failures of MPI and NCCL are fatal, and so are messages of another size than the
 * receiver gave.
 */
#ifndef SK_COMM_H
#define SK_COMM_H
#include "kernels/ops.h"
#include "src/agree.h"

typedef enum sk_comm_kind {
  SK_COMM_GATHER,
  SK_COMM_SCATTER,
  SK_COMM_REDUCE,
  SK_COMM_SEND,
  SK_COMM_KINDS
} sk_comm_kind;
extern const char *const sk_comm_kind_name[SK_COMM_KINDS];

enum { SK_COMM_TAGS = 1 << 20 }; /* messages have tags 0 .. SK_COMM_TAGS-1 */

/* What this rank has sent to others: counted for tests, the documentation's table and `bench comm`.
 * calls: of each op on this rank (receives are not counted). bytes, with p ranks: gather (p-1) *
 * bytes, scatter and reduce (p-1) * count * 4, send bytes (to itself: 0). */
typedef struct sk_comm_stats {
  int64_t calls[SK_COMM_KINDS], bytes[SK_COMM_KINDS];
} sk_comm_stats;

typedef struct sk_group sk_group;   /* backend-private; borrows its device */
typedef struct sk_ticket sk_ticket; /* an operation under way; from a pool of the group */

typedef struct sk_comm_ops {
  const char *name; /* "mpi", "nccl", "plan" */
  /* Collective over comm (errors are agreed). A group of comm's ranks for device `dev` of table
   * `op`, which outlive the group; comm itself is only needed during the call. NULL and *e when
   * this table cannot serve the device. */
  sk_group *(*open)(MPI_Comm comm, const sk_ops *op, sk_device *dev, sk_err *e);
  /* Collective. NULL is fine; every ticket must have been waited for. */
  void (*close)(sk_group *);
  /* Collective. dst[i * bytes ...] = rank i's src[0 .. bytes-1]. src may be its own place in dst,
   * on any of the ranks. On GPUs dst must not be freed before the group is closed: other ranks may
   * have it mapped. */
  sk_ticket *(*all_gather)(sk_group *, sk_stream *, void *dst, const void *src, size_t bytes);
  /* Collective. dst[count] = sum over ranks of src[me * count ...]; src[size * count]. dst may be
   * its own place in src. ws: scatter_ws bytes; on GPUs not to be freed before the group is closed,
   * as dst of all_gather. */
  size_t (*scatter_ws)(int ranks, int64_t count, sk_dtype t);
  sk_ticket *(*reduce_scatter)(sk_group *, sk_stream *, void *dst, const void *src, int64_t count,
                               sk_dtype t, void *ws);
  /* Collective. x[count] = sum over ranks of x, in place. For small arrays: every rank gets all
   * parts and adds them itself. ws: reduce_ws bytes. */
  size_t (*reduce_ws)(int ranks, int64_t count, sk_dtype t);
  sk_ticket *(*all_reduce)(sk_group *, sk_stream *, void *x, int64_t count, sk_dtype t, void *ws);
  /* Messages between two ranks of the group (or of a rank to itself). The tag tells messages of one
   * pair apart; those with the same tag arrive in the order sent. Both sides give the same size. A
   * receive may be posted before or after its send; waiting for a send may take until then. */
  sk_ticket *(*send)(sk_group *, sk_stream *, const void *src, size_t bytes, int to, int tag);
  sk_ticket *(*recv)(sk_group *, sk_stream *, void *dst, size_t bytes, int from, int tag);
  /* Between together(begin = true) and together(false) the messages of a rank are independent of
   * each other, and all ranks concerned give theirs in such a bracket, in one order for each pair.
   * NCCL then moves them itself, at the end of the bracket; other messages it leaves to MPI,
   * because a GPU's queue cannot say which of two messages must wait for the other. */
  void (*together)(sk_group *, sk_stream *, bool begin);
  /* Work enqueued on stream from now on comes after the operation. Frees the ticket; NULL is fine.
   */
  void (*wait)(sk_group *, sk_stream *, sk_ticket *);
  sk_comm_stats *(*stats)(sk_group *); /* may be cleared by the caller */
} sk_comm_ops;

extern const sk_comm_ops sk_comm_mpi;         /* comm_mpi.c */
extern const sk_comm_ops *const sk_comm_nccl; /* comm_nccl.c; NULL in a build without NCCL */
extern const sk_comm_ops sk_comm_plan; /* comm_plan.c: does nothing, needs no MPI (comm may be
                                          MPI_COMM_NULL) */
/* comm_plan.c: ws sizes are those of `target`, at first of comm_mpi's. */
void sk_comm_plan_for(const sk_comm_ops *target);

/* comm_mpi.c: sum[count] = ((part 0 + part 1) + part 2) + ... of at least two ranks, by the device.
 * `others`: the parts in rank order, `stride` bytes apart, with a place for mine unless `hole`; it
 * is scratch afterwards. sum may be my own part. */
typedef struct sk_parts {
  int rank, size;
  const void *own;
  void *others;
  size_t stride;
  bool hole;
} sk_parts;
void sk_comm_add_parts(const sk_ops *op, sk_stream *st, void *sum, const sk_parts *p, int64_t count,
                       sk_dtype type);

/* comm_mpi.c: bytes of its largest MPI message; longer ones are cut. 1 GiB; the same on all ranks.
 * Tests make it small. */
extern size_t sk_comm_mpi_cut;
#endif
