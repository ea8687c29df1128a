/* device.h: which device a run computes on, and with what its ranks exchange data. */
#ifndef SK_DEVICE_H
#define SK_DEVICE_H
#include "src/comm.h"
#include "src/config.h"

/* Collective over comm (errors are agreed). The table for run.device `wanted` (SK_DEVICE_...): auto takes the
 * GPUs where the program was built for them and every rank's node has some. Each rank of a node needs a GPU of
 * its own (rank i of the node takes GPU i); fewer are refused, unless the ranks may share them. With plan nothing
 * will be opened and `cuda` needs no GPU. NULL and *e on failure. */
const sk_ops *sk_device_choose(MPI_Comm comm, int wanted, bool share, bool plan, sk_err *e);

/* Not collective. Whether `ranks` ranks of one node, that see `gpus` GPUs each, have one of their own: SK_OK or
 * SK_FAILED with the cure; visible: CUDA_VISIBLE_DEVICES or NULL. */
int sk_device_fits(int ranks, int gpus, const char *visible, const char *host, sk_err *e);

/* What ranks with this device exchange data with. */
const sk_comm_ops *sk_device_comm(const sk_ops *op);

/* Whether a mixer's two branches run on two streams: on GPUs. */
bool sk_device_branches(const sk_ops *op);

/* What carries their messages between pipeline stages: parallel.transport on GPUs, on the CPU `comm`. */
const sk_comm_ops *sk_device_pipe(const sk_ops *op, const sk_comm_ops *comm, const sk_config *cfg);

/* FLOP/s of matrix products of act elements that the data sheet of a device so described promises (dense, without
 * TF32); 0: not known. */
double sk_device_peak(const char *describe, sk_dtype act);

/* The type of act elements: train.dtype on a GPU, fp32 on the CPU. */
sk_dtype sk_device_act(const sk_ops *op, const sk_config *cfg);
#endif
