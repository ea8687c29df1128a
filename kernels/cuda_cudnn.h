/* cuda_cudnn.h: cuDNN's functions as they were loaded, and attention as graphs of its operations; private to
 * cuda_cudnn.c and cuda_cudnn_graph.c. Descriptors are made, given attributes and finalized; a graph keeps all of
 * its own until it is freed. The first failure stays, what comes after it does nothing. */
#ifndef SK_CUDA_CUDNN_H
#define SK_CUDA_CUDNN_H
#include <cudnn_graph.h>
#include "kernels/cudnn.h"

#define CUDNN_CALLS(X)                                                                       \
  X(GetVersion) X(GetLastErrorString) X(Create) X(Destroy) X(SetStream)                      \
  X(BackendCreateDescriptor) X(BackendDestroyDescriptor) X(BackendSetAttribute)              \
  X(BackendGetAttribute) X(BackendFinalize) X(BackendExecute)
typedef struct cudnn_calls {
#define CUDNN_CALL(name) __typeof__(&cudnn##name) name;
  CUDNN_CALLS(CUDNN_CALL)
#undef CUDNN_CALL
} cudnn_calls;

typedef cudnnBackendDescriptor_t node;

enum { CUDNN_NODES = 120, CUDNN_OPS = 32 }; // the ordered backward pass has 23 operations, 83 descriptors

typedef struct cudnn_graph {
  const cudnn_calls *call;
  node all[CUDNN_NODES], op[CUDNN_OPS];
  int n_all, n_ops;
  int64_t next;     // unique id of the next intermediate tensor
  cudnnStatus_t rc; // of the first failure
  char why[240];
} cudnn_graph;

/* Unique ids of the tensors that a caller gives memory or a value for. */
enum {
  CUDNN_Q = 1, CUDNN_K, CUDNN_V, CUDNN_O, CUDNN_LSE, CUDNN_DOUT, CUDNN_DQ, CUDNN_DK, CUDNN_DV,
  CUDNN_ROWSUM, // fp32 [b, H, Tq]: scratch, row sums of dout * o
  CUDNN_DQ_SUM, // fp32 [b, H, Tq, hd]: scratch, dq before it is rounded; not when ordered
  CUDNN_SCALE, CUDNN_LOW, CUDNN_ONE, // float: the scale, minus infinity, 1
  CUDNN_SHIFT,                       // int32: position of the first query, where it is not key 0
  CUDNN_IDS
};

node cudnn_node(cudnn_graph *g, cudnnBackendDescriptorType_t type);
void cudnn_set(cudnn_graph *g, node d, cudnnBackendAttributeName_t what, cudnnBackendAttributeType_t type, int64_t n,
               const void *values);
void cudnn_finish(cudnn_graph *g, node d);

/* The operations of a pass in g->op. */
void cudnn_attention_graph(cudnn_graph *g, sk_cudnn_pass pass, const sk_attn_dims *d);
void cudnn_graph_free(cudnn_graph *g);
#endif
