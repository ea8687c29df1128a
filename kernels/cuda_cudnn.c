/* cuda_cudnn.c: loads cuDNN, makes plans of attention and runs them. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "kernels/cuda.h"
#include "kernels/cuda_cudnn.h"

#define TEXT(x)    TEXT_OF(x)
#define TEXT_OF(x) #x
const char *const sk_cudnn_built =
    TEXT(CUDNN_MAJOR) "." TEXT(CUDNN_MINOR) "." TEXT(CUDNN_PATCHLEVEL);

enum {
  OLDEST = 91002, // 9.10.0 and 9.10.1 give wrong attention
  SHORTEST = 256, // queries of a sequence; for fewer a plan is not worth its second
  ANSWERS = 8,    // engine configurations that are tried
  LISTED = 64     // plans that attention_ready may make; a model has one or two shapes
};

struct sk_cudnn_plan {
  sk_cudnn *lib;
  sk_attn_dims d;
  sk_cudnn_pass pass;
  cudnn_graph graph; // its descriptors belong to the plan's
  node plan;         // NULL: refused
  size_t ws;         // the library's own
};

struct sk_cudnn {
  cudnn_calls call;
  cudnnHandle_t handle;
  cudaStream_t stream; // that the handle was last told
  sk_cudnn_plan *list[LISTED];
  int n;
  int64_t calls;
};

// ---- the library ----

// By the loader's own search (LD_LIBRARY_PATH, the system's folders), then beside the headers.
static void *load(char *why, size_t size) {
  void *so = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
  if (!so) snprintf(why, size, "%s", dlerror());
  if (!so && SK_CUDNN_LIB[0]) so = dlopen(SK_CUDNN_LIB "/libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
  return so;
}

static bool find_calls(void *so, cudnn_calls *c, const char **missing) {
  *missing = NULL;
#define FIND(name) \
  if (!(*(void **)&c->name = dlsym(so, "cudnn" #name))) *missing = "cudnn" #name;
  SK_CUDNN_CALLS(FIND)
#undef FIND
  return !*missing;
}

static sk_cudnn *refuse(void *so, char *text, size_t size, const char *why) {
  snprintf(text, size, ", no cuDNN (%s)", why);
  if (so) dlclose(so);
  return NULL;
}

sk_cudnn *sk_cudnn_open(char *text, size_t size) {
  cudnn_calls call;
  const char *missing;
  char why[200];
  cudnnHandle_t handle;
  void *so = load(why, sizeof why);
  if (!so) return refuse(NULL, text, size, why);
  if (!find_calls(so, &call, &missing)) {
    snprintf(why, sizeof why, "it lacks %s", missing);
    return refuse(so, text, size, why);
  }
  int v = (int)call.GetVersion(), major = v / 10000, minor = v / 100 % 100, patch = v % 100;
  if (v < OLDEST || major != 9) {
    snprintf(why, sizeof why, "%d.%d.%d is there, 9.10.2 or a later 9 is needed", major, minor,
             patch);
    return refuse(so, text, size, why);
  }
  // From here on the library stays loaded: it has threads and state of its own.
  cudnnStatus_t rc = call.Create(&handle);
  if (rc != CUDNN_STATUS_SUCCESS) {
    snprintf(why, sizeof why, "%d.%d.%d does not start: status %d: ", major, minor, patch, (int)rc);
    size_t at = strlen(why);
    call.GetLastErrorString(why + at, sizeof why - at);
    return refuse(NULL, text, size, why);
  }
  sk_cudnn *c = sk_calloc(1, sizeof *c);
  *c = (sk_cudnn){.call = call, .handle = handle};
  snprintf(text, size, ", cuDNN %d.%d.%d", major, minor, patch);
  return c;
}

void sk_cudnn_close(sk_cudnn *c) {
  if (!c) return;
  for (int i = 0; i < c->n; i++) sk_cudnn_plan_destroy(c->list[i]);
  c->call.Destroy(c->handle);
  sk_free(c);
}

sk_cudnn *sk_cudnn_of(sk_stream *s) {
  return sk_cuda_cudnn_of(s);
}

int64_t sk_cudnn_calls(const sk_cudnn *c) {
  return c->calls;
}

static void check(const sk_cudnn *c, cudnnStatus_t rc, const char *what) {
  char text[200] = "";
  if (rc == CUDNN_STATUS_SUCCESS) return;
  c->call.GetLastErrorString(text, sizeof text);
  sk_die(__FILE__, __LINE__, "cuDNN: %s: status %d: %s", what, (int)rc, text);
}

// ---- plans ----

// Compiles a configuration; NULL when the library cannot, or not within `limit` bytes.
static node compile(sk_cudnn_plan *p, node config, size_t limit) {
  const cudnn_calls *call = &p->lib->call;
  cudnn_graph try = {.call = call};
  int64_t ws = 0, n = 0;
  node d = sk_graph_node(&try, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  sk_graph_set(&try, d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
               &config);
  sk_graph_set(&try, d, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &p->lib->handle);
  sk_graph_finish(&try, d);
  if (try.rc == CUDNN_STATUS_SUCCESS)
    try.rc = call->BackendGetAttribute(d, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                       CUDNN_TYPE_INT64, 1, &n, &ws);
  if (try.rc == CUDNN_STATUS_SUCCESS && (size_t)ws <= limit) {
    p->ws = (size_t)ws;
    return d;
  }
  snprintf(p->graph.why, sizeof p->graph.why, "%s",
           try.why[0] ? try.why : "its workspace is too large");
  sk_graph_free(&try);
  return NULL;
}

// The library's answers, best first; the first that can be had.
static void choose(sk_cudnn_plan *p, size_t limit) {
  const cudnn_calls *call = &p->lib->call;
  cudnn_graph *g = &p->graph;
  const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  node config[ANSWERS];
  int64_t n = 0;
  node graph = sk_graph_node(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  sk_graph_set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_ops,
               g->op);
  sk_graph_set(g, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &p->lib->handle);
  sk_graph_finish(g, graph);
  node ask = sk_graph_node(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  sk_graph_set(g, ask, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
               &graph);
  sk_graph_set(g, ask, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  sk_graph_finish(g, ask);
  for (int i = 0; i < ANSWERS; i++)
    config[i] = sk_graph_node(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  if (g->rc != CUDNN_STATUS_SUCCESS) return;
  snprintf(g->why, sizeof g->why, "no kernel of the library takes it");
  if (call->BackendGetAttribute(ask, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                ANSWERS, &n, config) != CUDNN_STATUS_SUCCESS)
    return;
  for (int64_t i = 0; i < n && !p->plan; i++) p->plan = compile(p, config[i], limit);
}

static sk_cudnn_plan *plan_create(sk_cudnn *c, sk_cudnn_pass pass, const sk_attn_dims *d,
                                  size_t limit) {
  sk_cudnn_plan *p = sk_calloc(1, sizeof *p);
  *p = (sk_cudnn_plan){.lib = c, .d = *d, .pass = pass, .graph.call = &c->call};
  sk_graph_attention(&p->graph, pass, d);
  choose(p, limit);
  return p;
}

sk_cudnn_plan *sk_cudnn_plan_create(sk_cudnn *c, sk_cudnn_pass pass, const sk_attn_dims *d,
                                    sk_err *e) {
  if (!c) {
    sk_fail(e, SK_FAILED, "cuDNN was not found when the GPU was opened");
    return NULL;
  }
  sk_cudnn_plan *p = plan_create(c, pass, d, SIZE_MAX);
  if (p->plan) return p;
  sk_fail(e, SK_FAILED, "cuDNN: %s", p->graph.why);
  sk_cudnn_plan_destroy(p);
  return NULL;
}

void sk_cudnn_plan_destroy(sk_cudnn_plan *p) {
  if (!p) return;
  if (p->plan) p->lib->call.BackendDestroyDescriptor(p->plan);
  sk_graph_free(&p->graph);
  sk_free(p);
}

// ---- running ----

static size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// Scratch that the backward passes have as tensors, in front of the library's own.
static size_t row_bytes(const sk_cudnn_plan *p) {
  return p->pass == SK_CUDNN_FORWARD ? 0 : aligned((size_t)(p->d.b * p->d.H * p->d.Tq) * 4);
}
static size_t sum_bytes(const sk_cudnn_plan *p) {
  return p->pass == SK_CUDNN_BACKWARD ? aligned((size_t)(p->d.b * p->d.H * p->d.Tq * p->d.hd) * 4)
                                      : 0;
}

size_t sk_cudnn_plan_ws(const sk_cudnn_plan *p) {
  return row_bytes(p) + sum_bytes(p) + p->ws;
}

void sk_cudnn_plan_run(sk_cudnn_plan *p, sk_stream *s, const sk_cudnn_args *a, void *ws) {
  sk_cudnn *c = p->lib;
  const cudnn_calls *call = &c->call;
  float scale = (float)p->d.scale, low = -INFINITY, one = 1;
  int32_t shift = (int32_t)p->d.q0;
  char *row = ws, *sum = row + row_bytes(p), *own = sum + sum_bytes(p);
  const bool back = p->pass != SK_CUDNN_FORWARD;
  const struct {
    int64_t id;
    const void *at;
    bool used;
  } given[] = {{ID_Q, a->q, true},
               {ID_K, a->k, true},
               {ID_V, a->v, true},
               {ID_O, a->o, true},
               {ID_LSE, a->lse, true},
               {ID_DOUT, a->dout, back},
               {ID_DQ, a->dq, back},
               {ID_DK, a->dk, back},
               {ID_DV, a->dv, back},
               {ID_ROWSUM, row, back},
               {ID_DQ_SUM, sum, p->pass == SK_CUDNN_BACKWARD},
               {ID_SCALE, &scale, true},
               {ID_LOW, &low, true},
               {ID_ONE, &one, back},
               {ID_SHIFT, &shift, p->d.q0 != 0}};
  int64_t id[IDS], n = 0;
  const void *at[IDS];
  for (size_t i = 0; i < sizeof given / sizeof *given; i++)
    if (given[i].used) id[n] = given[i].id, at[n++] = given[i].at;
  if (c->stream != sk_cuda_stream(s))
    check(c, call->SetStream(c->handle, sk_cuda_stream(s)), "a stream");
  c->stream = sk_cuda_stream(s);
  cudnn_graph pack = {.call = call};
  node d = sk_graph_node(&pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  sk_graph_set(&pack, d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, id);
  sk_graph_set(&pack, d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, at);
  sk_graph_set(&pack, d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &own);
  sk_graph_finish(&pack, d);
  SK_CHECK(pack.rc == CUDNN_STATUS_SUCCESS, "cuDNN: %s", pack.why);
  check(c, call->BackendExecute(c->handle, p->plan, d), "attention");
  sk_graph_free(&pack);
}

// ---- sk_ops.attention ----

static bool same_shape(const sk_attn_dims *a, const sk_attn_dims *b) {
  return a->b == b->b && a->Tq == b->Tq && a->Tk == b->Tk && a->q0 == b->q0 && a->H == b->H &&
         a->KV == b->KV && a->hd == b->hd && a->ldq == b->ldq && a->ldk == b->ldk &&
         a->ldv == b->ldv && a->ldo == b->ldo;
}

static sk_cudnn_plan *find(const sk_cudnn *c, const sk_attn_dims *d) {
  for (int i = 0; i < c->n; i++)
    if (same_shape(&c->list[i]->d, d)) return c->list[i];
  return NULL;
}

// Rows of 16 bytes, heads that the library has kernels for, tensors within 32-bit element offsets.
static bool suits(const sk_attn_dims *d) {
  const int64_t ld = d->ldq | d->ldk | d->ldv | d->ldo, most = INT32_MAX;
  int64_t widest = d->ldq;
  if (widest < d->ldk) widest = d->ldk;
  if (widest < d->ldv) widest = d->ldv;
  if (widest < d->ldo) widest = d->ldo;
  return d->b > 0 && d->Tq >= SHORTEST && d->hd % 8 == 0 && d->hd <= 256 && ld % 8 == 0 &&
         d->b * (d->Tk > d->Tq ? d->Tk : d->Tq) <= most / widest;
}

void sk_cudnn_ready(sk_cudnn *c, const sk_attn_dims *d) {
  if (!c || !suits(d) || find(c, d) || c->n == LISTED) return;
  sk_cudnn_plan *p = c->list[c->n++] = plan_create(c, SK_CUDNN_FORWARD, d, SK_CUDA_WORKSPACE);
  if (!p->plan)
    sk_say("note: attention of %lld x %lld queries, %lld keys, %lld/%lld heads of %lld is not for cuDNN "
           "(%s) but for Saker's own kernel",
           (long long)d->b, (long long)d->Tq, (long long)(d->q0 + d->Tq), (long long)d->H,
           (long long)d->KV, (long long)d->hd, p->graph.why);
}

bool sk_cudnn_attention(sk_cudnn *c, sk_stream *s, const sk_attn_dims *d, void *o, float *lse,
                        const void *q, const void *k, const void *v) {
  if (!c || !d->whole) return false;
  sk_cudnn_plan *p = find(c, d);
  if (!p || !p->plan || p->d.scale != d->scale) return false;
  if (((uintptr_t)o | (uintptr_t)lse | (uintptr_t)q | (uintptr_t)k | (uintptr_t)v) % 16)
    return false;
  const sk_cudnn_args a = {.o = o, .lse = lse, .q = q, .k = k, .v = v};
  sk_cudnn_plan_run(p, s, &a, sk_cuda_workspace(s));
  c->calls++;
  return true;
}
