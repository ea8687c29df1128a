/* cuda_cudnn_graph.c: attention forward and backward, operation by operation, in the spelling that
 * cuDNN's fused kernels are matched by (its frontend library's; others run slower or not at all).
 * Tensors are [b, heads, rows, columns]; a key/value head serves H / KV query heads. Intermediate
 * ones are fp32 unless said otherwise; only a fused kernel knows them. */
#include <stdio.h>
#include <string.h>
#include "kernels/cuda_cudnn.h"

// ---- descriptors ----

static bool bad(cudnn_graph *g, cudnnStatus_t rc, const char *what) {
  if (rc == CUDNN_STATUS_SUCCESS) return false;
  if (g->rc != CUDNN_STATUS_SUCCESS) return true;
  char text[160] = "";
  g->call->GetLastErrorString(text, sizeof text);
  g->rc = rc;
  snprintf(g->why, sizeof g->why, "%s: status %d: %s", what, (int)rc, text);
  return true;
}

node sk_graph_node(cudnn_graph *g, cudnnBackendDescriptorType_t type) {
  node d = NULL;
  if (g->rc != CUDNN_STATUS_SUCCESS) return NULL;
  SK_CHECK(g->n_all < GRAPH_NODES, "a graph of more than %d descriptors", GRAPH_NODES);
  if (bad(g, g->call->BackendCreateDescriptor(type, &d), "a descriptor")) return NULL;
  return g->all[g->n_all++] = d;
}

void sk_graph_set(cudnn_graph *g, node d, cudnnBackendAttributeName_t what,
                  cudnnBackendAttributeType_t type, int64_t n, const void *values) {
  char name[40];
  if (g->rc != CUDNN_STATUS_SUCCESS) return;
  snprintf(name, sizeof name, "attribute %d", (int)what);
  bad(g, g->call->BackendSetAttribute(d, what, type, n, values), name);
}

void sk_graph_finish(cudnn_graph *g, node d) {
  if (g->rc == CUDNN_STATUS_SUCCESS) bad(g, g->call->BackendFinalize(d), "a descriptor's end");
}

void sk_graph_free(cudnn_graph *g) {
  while (g->n_all) g->call->BackendDestroyDescriptor(g->all[--g->n_all]);
  g->n_ops = 0;
}

static void set_node(cudnn_graph *g, node d, cudnnBackendAttributeName_t what, node value) {
  sk_graph_set(g, d, what, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

// ---- tensors ----

typedef struct shape {
  int64_t dim[4], stride[4];
} shape;

static shape packed(int64_t b, int64_t heads, int64_t rows, int64_t cols) {
  return (shape){{b, heads, rows, cols}, {heads * rows * cols, rows * cols, cols, 1}};
}

// Head j of a token is columns j*hd .. of its row of stride ld; a sequence has `all` rows.
static shape tokens(int64_t b, int64_t heads, int64_t rows, int64_t hd, int64_t all, int64_t ld) {
  return (shape){{b, heads, rows, hd}, {all * ld, hd, ld, 1}};
}

static shape turned(shape s) {
  return (shape){{s.dim[0], s.dim[1], s.dim[3], s.dim[2]},
                 {s.stride[0], s.stride[1], s.stride[3], s.stride[2]}};
}

typedef enum store { MEMORY, VALUE, INSIDE } store;

static node tensor(cudnn_graph *g, int64_t id, cudnnDataType_t type, shape s, store where) {
  const int64_t align = 16;
  const bool inside = where == INSIDE, value = where == VALUE;
  node d = sk_graph_node(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  sk_graph_set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
  sk_graph_set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  sk_graph_set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, s.dim);
  sk_graph_set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, s.stride);
  sk_graph_set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
  sk_graph_set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inside);
  sk_graph_set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &value);
  sk_graph_finish(g, d);
  return d;
}

static node memory(cudnn_graph *g, int64_t id, cudnnDataType_t type, shape s) {
  return tensor(g, id, type, s, MEMORY);
}

static node value(cudnn_graph *g, int64_t id, cudnnDataType_t type) {
  return tensor(g, id, type, packed(1, 1, 1, 1), VALUE);
}

static node inside(cudnn_graph *g, cudnnDataType_t type, shape s) {
  return tensor(g, IDS + g->next++, type, s, INSIDE);
}

// ---- operations: each gives its output ----

static void add_op(cudnn_graph *g, node d) {
  sk_graph_finish(g, d);
  SK_CHECK(g->n_ops < GRAPH_OPS, "a graph of more than %d operations", GRAPH_OPS);
  g->op[g->n_ops++] = d;
}

// y = mode(x, b); mask: the third argument of a selection. axis >= 0: of GEN_INDEX, which only
// looks at x's shape.
static node pointwise(cudnn_graph *g, cudnnPointwiseMode_t mode, cudnnDataType_t compute,
                      int64_t axis, node x, node b, node mask, node y) {
  node how = sk_graph_node(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  sk_graph_set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  sk_graph_set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  if (axis >= 0) sk_graph_set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
  sk_graph_finish(g, how);
  node d = sk_graph_node(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  set_node(g, d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  set_node(g, d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
  if (b) set_node(g, d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
  if (mask) set_node(g, d, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, mask);
  set_node(g, d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
  add_op(g, d);
  return y;
}

static node map(cudnn_graph *g, cudnnPointwiseMode_t mode, node x, node b, node y) {
  return pointwise(g, mode, CUDNN_DATA_FLOAT, -1, x, b, NULL, y);
}

static node matmul(cudnn_graph *g, node a, node b, node c) {
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  node how = sk_graph_node(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  sk_graph_set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  sk_graph_finish(g, how);
  node d = sk_graph_node(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  set_node(g, d, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
  set_node(g, d, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
  set_node(g, d, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
  set_node(g, d, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
  add_op(g, d);
  return c;
}

// Over the axes that y has one of where x has more: columns, or query heads of a key/value head.
static node reduce(cudnn_graph *g, cudnnReduceTensorOp_t what, node x, node y) {
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  node how = sk_graph_node(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  sk_graph_set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &what);
  sk_graph_set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  sk_graph_finish(g, how);
  node d = sk_graph_node(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  set_node(g, d, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
  set_node(g, d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
  set_node(g, d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
  add_op(g, d);
  return y;
}

static node reshape(cudnn_graph *g, node x, node y) {
  node d = sk_graph_node(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  set_node(g, d, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
  set_node(g, d, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
  add_op(g, d);
  return y;
}

// ---- attention ----

static node index_of(cudnn_graph *g, node x, shape s, int64_t axis) {
  node y = inside(g, CUDNN_DATA_INT32, s);
  return pointwise(g, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, axis, x, NULL, NULL, y);
}

// Query i, at position q0 + i, sees keys up to it.
static node causal(cudnn_graph *g, const sk_attn_dims *d, node x, shape s) {
  node row = index_of(g, x, s, 2);
  if (d->q0)
    row = pointwise(g, CUDNN_POINTWISE_ADD, CUDNN_DATA_INT32, -1, row,
                    value(g, ID_SHIFT, CUDNN_DATA_INT32), NULL, inside(g, CUDNN_DATA_INT32, s));
  node col = index_of(g, x, s, 3);
  node seen = pointwise(g, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, -1, row, col, NULL,
                        inside(g, CUDNN_DATA_BOOLEAN, s));
  return pointwise(g, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, -1, x,
                   value(g, ID_LOW, CUDNN_DATA_FLOAT), seen, inside(g, CUDNN_DATA_FLOAT, s));
}

static const cudnnDataType_t F32 = CUDNN_DATA_FLOAT, BF16 = CUDNN_DATA_BFLOAT16;

static void forward(cudnn_graph *g, const sk_attn_dims *d) {
  const int64_t keys = d->q0 + d->Tq;
  const shape all = packed(d->b, d->H, d->Tq, keys), row = packed(d->b, d->H, d->Tq, 1);
  node q = memory(g, ID_Q, BF16, tokens(d->b, d->H, d->Tq, d->hd, d->Tq, d->ldq));
  node kt = memory(g, ID_K, BF16, turned(tokens(d->b, d->KV, keys, d->hd, d->Tk, d->ldk)));
  node v = memory(g, ID_V, BF16, tokens(d->b, d->KV, keys, d->hd, d->Tk, d->ldv));
  node o = memory(g, ID_O, BF16, tokens(d->b, d->H, d->Tq, d->hd, d->Tq, d->ldo));
  node lse = memory(g, ID_LSE, F32, row);

  node s = matmul(g, q, kt, inside(g, F32, all));
  s = map(g, CUDNN_POINTWISE_MUL, s, value(g, ID_SCALE, F32), inside(g, F32, all));
  s = causal(g, d, s, all);
  node top = reduce(g, CUDNN_REDUCE_TENSOR_MAX, s, inside(g, F32, row));
  s = map(g, CUDNN_POINTWISE_SUB, s, top, inside(g, F32, all));
  s = map(g, CUDNN_POINTWISE_EXP, s, NULL, inside(g, F32, all));
  node sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, s, inside(g, F32, row));
  node log = map(g, CUDNN_POINTWISE_LOG, sum, NULL, inside(g, F32, row));
  map(g, CUDNN_POINTWISE_ADD, top, log, lse);
  s = map(g, CUDNN_POINTWISE_DIV, s, sum, inside(g, BF16, all));
  matmul(g, s, v, o);
}

// out[b, KV, keys, hd] = x^T y, summed over the query heads of a key/value head; x is fp32
// [b, H, Tq, keys].
static void to_keys(cudnn_graph *g, const sk_attn_dims *d, node x, shape all, node y, node out) {
  node xt = reshape(g, x, inside(g, BF16, turned(all)));
  if (d->H == d->KV) {
    matmul(g, xt, y, out);
    return;
  }
  node heads = matmul(g, xt, y, inside(g, BF16, packed(d->b, d->H, d->Tk, d->hd)));
  reduce(g, CUDNN_REDUCE_TENSOR_ADD, heads, out);
}

static void backward(cudnn_graph *g, const sk_attn_dims *d, bool ordered) {
  const shape all = packed(d->b, d->H, d->Tq, d->Tk), row = packed(d->b, d->H, d->Tq, 1);
  const shape wide = packed(d->b, d->H, d->Tq, d->hd);
  const shape qs = tokens(d->b, d->H, d->Tq, d->hd, d->Tq, d->ldq),
              os = tokens(d->b, d->H, d->Tq, d->hd, d->Tq, d->ldo);
  const shape ks = tokens(d->b, d->KV, d->Tk, d->hd, d->Tk, d->ldk),
              vs = tokens(d->b, d->KV, d->Tk, d->hd, d->Tk, d->ldv);
  node q = memory(g, ID_Q, BF16, qs), kt = memory(g, ID_K, BF16, turned(ks));
  node vt = memory(g, ID_V, BF16, turned(vs)), o = memory(g, ID_O, BF16, os);
  node dout = memory(g, ID_DOUT, BF16, os), lse = memory(g, ID_LSE, F32, row);
  node scale = value(g, ID_SCALE, F32);

  // The 1 stands where the factor of a dropout would; the graph is not recognised without it.
  node sum = map(g, CUDNN_POINTWISE_MUL, dout, o, inside(g, F32, wide));
  sum = reduce(g, CUDNN_REDUCE_TENSOR_ADD, sum, inside(g, F32, row));
  sum = map(g, CUDNN_POINTWISE_MUL, sum, value(g, ID_ONE, F32), memory(g, ID_ROWSUM, F32, row));

  node p = matmul(g, q, kt, inside(g, F32, all));
  p = map(g, CUDNN_POINTWISE_MUL, p, scale, inside(g, F32, all));
  p = map(g, CUDNN_POINTWISE_SUB, p, lse, inside(g, F32, all));
  p = causal(g, d, p, all);
  p = map(g, CUDNN_POINTWISE_EXP, p, NULL, inside(g, F32, all));
  to_keys(g, d, p, all, dout, memory(g, ID_DV, BF16, vs));

  node ds = matmul(g, dout, vt, inside(g, F32, all));
  ds = map(g, CUDNN_POINTWISE_SUB, ds, sum, inside(g, F32, all));
  ds = map(g, CUDNN_POINTWISE_MUL, ds, p, inside(g, F32, all));
  ds = map(g, CUDNN_POINTWISE_MUL, ds, scale, inside(g, F32, all));
  to_keys(g, d, ds, all, q, memory(g, ID_DK, BF16, ks));

  // The shape of this end alone chooses the kernel: sums in memory in any order, or all of ds in
  // memory.
  node k = reshape(g, kt, inside(g, BF16, ks)), dq = memory(g, ID_DQ, BF16, qs);
  if (ordered) {
    matmul(g, ds, k, dq);
    return;
  }
  node dq_sum = matmul(g, ds, k, memory(g, ID_DQ_SUM, F32, wide));
  map(g, CUDNN_POINTWISE_IDENTITY, dq_sum, NULL, dq);
}

void sk_graph_attention(cudnn_graph *g, sk_cudnn_pass pass, const sk_attn_dims *d) {
  if (pass == SK_CUDNN_FORWARD)
    forward(g, d);
  else
    backward(g, d, pass == SK_CUDNN_ORDERED);
}
