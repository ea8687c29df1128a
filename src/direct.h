/* direct.h: exchanges within a node by the GPUs' copy engines: every rank copies its part into the
 * memory of the others, which it has mapped (CUDA IPC). That is faster than kernels of NCCL and
 * takes no SMs from the products that run beside it; the host pays for it with two words to the
 * other hosts at each exchange. For large parts (comm_nccl.c).
 *
 * An exchange is enqueued as a whole when its call returns: work enqueued later on its stream finds
 * what arrived and may overwrite what was sent. A host waits in the call for the other hosts (and
 * serves the pipeline's messages meanwhile), never for a GPU: exchanges of different groups are to be
 * called in one order by all ranks concerned. All exchanges of a group are called with the same
 * stream, and memory that others copy into (dst of gathers, ws of scatters) must not be freed
 * before sk_direct_close: it stays mapped until then. */
#ifndef SK_DIRECT_H
#define SK_DIRECT_H
#include "src/agree.h"
#include "kernels/ops.h"

typedef struct sk_direct sk_direct; /* borrows its table and device */

/* Collective over comm, which is only needed during the call. NULL on all ranks where there is one
 * rank, where they are on several nodes, or where they cannot map each other's memory and events. */
sk_direct *sk_direct_open(MPI_Comm comm, const sk_ops *op, sk_device *dev);
/* Collective. NULL is fine. */
void sk_direct_close(sk_direct *d);

/* Collective. dst[i * bytes ...] = rank i's src[0 .. bytes-1]; src may be its own place in dst, on
 * any of the ranks. */
void sk_direct_gather(sk_direct *d, sk_stream *st, void *dst, const void *src, size_t bytes);

/* Collective. dst[count] = sum over ranks of src[me * count ...], in rank order as comm_mpi's;
 * src[size * count]. t: fp32 or the device's act. dst may be its own place in src. ws: for the
 * others' parts, (size-1) * count elements. */
void sk_direct_scatter(sk_direct *d, sk_stream *st, void *dst, const void *src, int64_t count,
                       sk_dtype t, void *ws);

/* Bytes of a part from which comm_nccl.c takes this way. 4 MiB; the same on all ranks, and the same
 * as long as a group is open. Tests make it small. */
extern size_t sk_direct_from;
#endif
