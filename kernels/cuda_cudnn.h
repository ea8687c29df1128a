/* cuda_cudnn.h: cuDNN's functions as they were loaded, and attention as graphs of its operations;
 * private to cuda_cudnn.c and cuda_cudnn_graph.c. Descriptors are made, given attributes and
 * finalized; a graph keeps all of its own until it is freed. The first failure stays, what comes
 * after it does nothing. */
#ifndef SK_CUDA_CUDNN_H
#define SK_CUDA_CUDNN_H
#include <cudnn_graph.h>
#include "kernels/cudnn.h"

#define SK_CUDNN_CALLS(X)                                                       \
  X(GetVersion) X(GetLastErrorString) X(Create) X(Destroy) X(SetStream)         \
  X(BackendCreateDescriptor) X(BackendDestroyDescriptor) X(BackendSetAttribute) \
  X(BackendGetAttribute) X(BackendFinalize) X(BackendExecute)
typedef struct cudnn_calls {
#define SK_CUDNN_CALL(name) __typeof__(&cudnn##name) name;
  SK_CUDNN_CALLS(SK_CUDNN_CALL)
#undef SK_CUDNN_CALL
} cudnn_calls;

typedef cudnnBackendDescriptor_t node;

// The backward pass in any order has 24 operations and 79 descriptors; with planning 90.
enum { GRAPH_NODES = 120, GRAPH_OPS = 32 };

typedef struct cudnn_graph {
  const cudnn_calls *call;
  node all[GRAPH_NODES], op[GRAPH_OPS];
  int n_all, n_ops;
  int64_t next;     // unique id of the next intermediate tensor
  cudnnStatus_t rc; // of the first failure
  char why[240];
} cudnn_graph;

/* Unique ids of the tensors that a caller gives memory or a value for. */
enum {
  ID_Q = 1, ID_K, ID_V, ID_O, ID_LSE, ID_DOUT, ID_DQ, ID_DK, ID_DV,
  ID_ROWSUM, // fp32 [b, H, Tq]: scratch, row sums of dout * o
  ID_DQ_SUM, // fp32 [b, H, Tq, hd]: scratch, dq before it is rounded; not when ordered
  ID_SCALE, ID_LOW, ID_ONE, // float: the scale, minus infinity, 1
  ID_SHIFT,                 // int32: position of the first query, where it is not key 0
  IDS
};

node sk_graph_node(cudnn_graph *g, cudnnBackendDescriptorType_t type);
void sk_graph_set(cudnn_graph *g, node d, cudnnBackendAttributeName_t what,
               cudnnBackendAttributeType_t type, int64_t n, const void *values);
void sk_graph_finish(cudnn_graph *g, node d);

/* The operations of a pass in g->op. */
void sk_graph_attention(cudnn_graph *g, sk_cudnn_pass pass, const sk_attn_dims *d);
void sk_graph_free(cudnn_graph *g);
#endif
