/* cuda.c: the CUDA device: opening, memory, streams, copies, and the table. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda.h"
#include "kernels/cudnn.h"

enum { STAGE = 4 << 20 }; // bytes of one of a stream's two pinned buffers

struct sk_device {
  int index, sms;
  sk_cuda_code code;
  size_t shared; // of a block, in bytes
  sk_dtype act;
  sk_cuda_blas *blas;
  sk_cudnn *dnn;  // NULL: without cuDNN, or in fp32
  char text[600]; // describe()
};

struct sk_stream {
  sk_device *device;
  cudaStream_t stream;
  void *scratch, *workspace; // SK_CUDA_SCRATCH, SK_CUDA_WORKSPACE; NULL, as stage, for copies alone
  // Copies from and to the host pass through pinned memory, the halves in turn.
  char *stage[2];
  cudaEvent_t staged[2]; // the last copy of that half
  int turn;
  size_t used; // of the half before, by small copies from the host
};

void sk_cuda_check(cudaError_t rc, const char *what, const char *file, int line) {
  if (rc == cudaSuccess) return;
  sk_die(file, line, "%s: %s", what, cudaGetErrorString(rc));
}

// ---- device ----

static int version_major(int v) {
  return v / 1000;
}
static int version_minor(int v) {
  return v % 1000 / 10;
}

static int cuda_count(sk_err *e) {
  int n = 0, driver = 0;
  // As many hardware queues as there are: streams that share one hold each other up, and those of
  // exchanges wait for other ranks.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  cudaError_t rc = cudaGetDeviceCount(&n);
  if (rc == cudaSuccess && n > 0) return n;
  cudaGetLastError(); // forget it
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (rc == cudaErrorInsufficientDriver) {
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    if (driver == 0)
      sk_fail(e, SK_FAILED,
              "no NVIDIA driver on %s. Run where there is a GPU with its driver, or set "
              "run.device: cpu.",
              sk_host());
    else
      sk_fail(e, SK_FAILED,
              "the NVIDIA driver on %s is for CUDA %d.%d and this program was built with CUDA "
              "%d.%d. Update the "
              "driver, build with an older toolkit (--with-cuda=DIR), or set run.device: cpu.",
              sk_host(), version_major(driver), version_minor(driver),
              version_major(CUDART_VERSION), version_minor(CUDART_VERSION));
  } else if (rc == cudaErrorNoDevice || rc == cudaSuccess) {
    sk_fail(e, SK_FAILED,
            "no GPU can be seen on %s (CUDA_VISIBLE_DEVICES is %s). Ask the batch system for GPUs, "
            "let every rank "
            "see all of its node, or set run.device: cpu.",
            sk_host(), visible ? visible[0] ? visible : "empty" : "not set");
  } else {
    sk_fail(e, SK_FAILED,
            "the GPUs on %s cannot be used: %s. See nvidia-smi, or set run.device: cpu.", sk_host(),
            cudaGetErrorString(rc));
  }
  return 0;
}

// The program was compiled for this GPU, and it has the memory that every GPU's kernels need.
static int check_architecture(int index, const struct cudaDeviceProp *p, sk_cuda_code *code,
                              sk_err *e) {
  cudaError_t rc = sk_cuda_probe(code);
  if (rc == cudaSuccess && p->sharedMemPerBlockOptin >= SK_CUDA_SHARED) return SK_OK;
  if (rc == cudaSuccess)
    return sk_fail(e, SK_FAILED,
                   "GPU %d on %s, %s, has %s of shared memory for a block and attention needs %s, "
                   "as A100, H100 and B200 have. Set run.device: cpu.",
                   index, sk_host(), p->name, sk_bytes((double)p->sharedMemPerBlockOptin),
                   sk_bytes(SK_CUDA_SHARED));
  cudaGetLastError();
  if (rc == cudaErrorNoKernelImageForDevice || rc == cudaErrorInvalidDeviceFunction)
    return sk_fail(e, SK_FAILED,
                   "GPU %d on %s, %s, has compute capability %d.%d; this program was compiled for "
                   "%s. Configure "
                   "with --with-cuda-arch=%d%d%s, or set run.device: cpu.",
                   index, sk_host(), p->name, p->major, p->minor, SK_CUDA_ARCH, p->major, p->minor,
                   p->major == 9 ? "a" : ""); // the one with kernels of warpgroups
  return sk_fail(e, SK_FAILED,
                 "GPU %d on %s, %s, cannot be used: %s. See nvidia-smi for who else uses it, or "
                 "set run.device: cpu.",
                 index, sk_host(), p->name, cudaGetErrorString(rc));
}

static sk_device *cuda_open(int index, sk_dtype act, sk_err *e) {
  struct cudaDeviceProp p;
  sk_cuda_code code;
  int n = cuda_count(e), driver = 0;
  if (n == 0) return NULL;
  if (index < 0 || index >= n) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    sk_fail(e, SK_FAILED,
            "GPU %d was asked for on %s and %d can be seen (CUDA_VISIBLE_DEVICES is %s). Start at "
            "most %d rank%s on "
            "a node, or let every rank see all GPUs of its node.",
            index, sk_host(), n, visible ? visible : "not set", n, n == 1 ? "" : "s");
    return NULL;
  }
  cudaError_t rc = cudaSetDevice(index);
  if (rc == cudaSuccess) rc = cudaGetDeviceProperties(&p, index);
  if (rc != cudaSuccess) {
    sk_fail(e, SK_FAILED, "GPU %d on %s cannot be opened: %s. See nvidia-smi for who else uses it.",
            index, sk_host(), cudaGetErrorString(rc));
    cudaGetLastError();
    return NULL;
  }
  if (check_architecture(index, &p, &code, e) != SK_OK) return NULL;
  sk_device *d = sk_calloc(1, sizeof *d);
  char blas[80], dnn[200] = "", slow[80] = "";
  *d = (sk_device){.index = index, .sms = p.multiProcessorCount, .code = code,
                   .shared = p.sharedMemPerBlockOptin, .act = act};
  d->blas = sk_cuda_blas_open(blas, sizeof blas);
  if (act == SK_BF16) d->dnn = sk_cudnn_open(dnn, sizeof dnn);
  if (act == SK_BF16 && !code.groups)
    snprintf(slow, sizeof slow, "; compiled for %d: bf16 attention and SSD by slower kernels",
             code.arch);
  SK_CUDA(cudaDriverGetVersion(&driver));
  snprintf(d->text, sizeof d->text,
           "GPU %d, %s, %d SMs, %s, %s; CUDA %d.%d, driver for %d.%d, %s%s%s", index, p.name, d->sms,
           sk_bytes((double)p.totalGlobalMem), act == SK_BF16 ? "bf16" : "fp32",
           version_major(CUDART_VERSION), version_minor(CUDART_VERSION), version_major(driver),
           version_minor(driver), blas, dnn, slow);
  return d;
}

static void cuda_close(sk_device *d) {
  if (!d) return;
  sk_cudnn_close(d->dnn);
  sk_cuda_blas_close(d->blas);
  sk_free(d);
}

static const char *cuda_describe(sk_device *d) {
  return d->text;
}
static sk_dtype cuda_act(const sk_device *d) {
  return d->act;
}

static void *cuda_alloc(sk_device *d, size_t bytes) {
  void *p = NULL;
  (void)d;
  cudaError_t rc = cudaMalloc(&p, bytes ? bytes : 1);
  if (rc == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return NULL;
  }
  SK_CUDA(rc);
  return p;
}

static void cuda_free(sk_device *d, void *p) {
  (void)d;
  SK_CUDA(cudaFree(p));
}

static size_t cuda_used(sk_device *d) {
  size_t left, all;
  (void)d;
  SK_CUDA(cudaMemGetInfo(&left, &all));
  return all - left;
}

// ---- streams and events ----

static void *must_alloc(size_t bytes) {
  void *p = cuda_alloc(NULL, bytes);
  SK_CHECK(p, "out of GPU memory: %zu bytes of a stream's scratch", bytes);
  return p;
}

static sk_stream *cuda_copy_stream_create(sk_device *d) {
  sk_stream *s = sk_calloc(1, sizeof *s);
  s->device = d;
  SK_CUDA(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking));
  return s;
}

static sk_stream *cuda_stream_create(sk_device *d) {
  sk_stream *s = cuda_copy_stream_create(d);
  s->used = STAGE;
  s->scratch = must_alloc(SK_CUDA_SCRATCH);
  s->workspace = must_alloc(SK_CUDA_WORKSPACE);
  for (int i = 0; i < 2; i++) {
    SK_CUDA(cudaMallocHost((void **)&s->stage[i], STAGE));
    SK_CUDA(cudaEventCreateWithFlags(&s->staged[i], cudaEventDisableTiming));
  }
  return s;
}

static void cuda_stream_destroy(sk_stream *s) {
  if (!s) return;
  SK_CUDA(cudaStreamSynchronize(s->stream));
  for (int i = 0; i < 2 && s->scratch; i++) {
    SK_CUDA(cudaFreeHost(s->stage[i]));
    SK_CUDA(cudaEventDestroy(s->staged[i]));
  }
  SK_CUDA(cudaFree(s->scratch));
  SK_CUDA(cudaFree(s->workspace));
  SK_CUDA(cudaStreamDestroy(s->stream));
  sk_free(s);
}

static void cuda_sync(sk_stream *s) {
  SK_CUDA(cudaStreamSynchronize(s->stream));
}

static sk_event *cuda_event_create(sk_device *d) {
  (void)d;
  sk_event *ev = sk_calloc(1, sizeof *ev);
  SK_CUDA(cudaEventCreate(&ev->event));
  return ev;
}

static void cuda_event_destroy(sk_event *ev) {
  if (!ev) return;
  SK_CUDA(cudaEventDestroy(ev->event));
  sk_free(ev);
}

static void cuda_record(sk_event *ev, sk_stream *s) {
  SK_CUDA(cudaEventRecord(ev->event, s->stream));
}
static void cuda_wait(sk_stream *s, sk_event *ev) {
  SK_CUDA(cudaStreamWaitEvent(s->stream, ev->event, 0));
}

static double cuda_elapsed(sk_event *from, sk_event *to) {
  float ms;
  SK_CUDA(cudaEventSynchronize(to->event));
  SK_CUDA(cudaEventElapsedTime(&ms, from->event, to->event));
  return 1e-3 * (double)ms;
}

cudaStream_t sk_cuda_stream(sk_stream *s) {
  return s->stream;
}
sk_dtype sk_cuda_act(sk_stream *s) {
  return s->device->act;
}
int sk_cuda_sms(sk_stream *s) {
  return s->device->sms;
}
int sk_cuda_arch(sk_stream *s) {
  return s->device->code.arch;
}
sk_device *sk_cuda_device(sk_stream *s) {
  return s->device;
}
bool sk_cuda_groups(const sk_device *d) {
  return d ? d->code.groups : strstr(SK_CUDA_ARCH, "90a") != NULL;
}
size_t sk_cuda_shared(const sk_device *d) {
  return d ? d->shared : SIZE_MAX;
}
sk_cuda_blas *sk_cuda_blas_of(sk_stream *s) {
  return s->device->blas;
}
sk_cudnn *sk_cuda_cudnn_of(sk_stream *s) {
  return s->device->dnn;
}
void *sk_cuda_workspace(sk_stream *s) {
  return s->workspace;
}

void *sk_cuda_scratch(sk_stream *s, size_t bytes) {
  SK_CHECK(s->scratch && bytes <= SK_CUDA_SCRATCH,
           "%zu bytes of scratch asked for, a stream has %d (one for copies: none)", bytes,
           SK_CUDA_SCRATCH);
  return s->scratch;
}

// ---- copies ----

static void cuda_copy(sk_stream *s, void *dst, const void *src, size_t bytes) {
  if (bytes) SK_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, s->stream));
}

static void cuda_copy2d(sk_stream *s, void *dst, size_t ldd, const void *src, size_t lds,
                        size_t width, int64_t rows) {
  if (width == 0 || rows == 0) return;
  SK_CUDA(cudaMemcpy2DAsync(dst, ldd, src, lds, width, (size_t)rows, cudaMemcpyDeviceToDevice,
                            s->stream));
}

// The next pinned half, once its last copy is over.
static int next_stage(sk_stream *s) {
  int i = s->turn;
  s->turn = 1 - i;
  s->used = STAGE;
  SK_CUDA(cudaEventSynchronize(s->staged[i]));
  return i;
}

static size_t piece(size_t bytes, size_t at) {
  return bytes - at < STAGE ? bytes - at : STAGE;
}

// Small copies fill a half one behind the other, so that the host waits for the stream once in
// STAGE bytes and not at every micro-batch's tokens.
static void cuda_from_host(sk_stream *s, void *dev, const void *host, size_t bytes) {
  for (size_t at = 0; at < bytes; at += STAGE) {
    size_t n = piece(bytes, at);
    if (n > STAGE - s->used) {
      next_stage(s);
      s->used = 0;
    }
    int i = 1 - s->turn;
    char *pinned = s->stage[i] + s->used;
    s->used += (n + 15) / 16 * 16;
    memcpy(pinned, (const char *)host + at, n);
    SK_CUDA(cudaMemcpyAsync((char *)dev + at, pinned, n, cudaMemcpyHostToDevice, s->stream));
    SK_CUDA(cudaEventRecord(s->staged[i], s->stream));
  }
}

// One half is filled while the other is emptied.
static void cuda_to_host(sk_stream *s, void *host, const void *dev, size_t bytes) {
  size_t sent = 0, taken = 0;
  int first = s->turn;
  for (int k = 0; taken < bytes; k++) {
    if (sent < bytes) {
      int i = next_stage(s);
      size_t n = piece(bytes, sent);
      SK_CUDA(cudaMemcpyAsync(s->stage[i], (const char *)dev + sent, n, cudaMemcpyDeviceToHost,
                              s->stream));
      SK_CUDA(cudaEventRecord(s->staged[i], s->stream));
      sent += n;
    }
    if (k == 0 && sent < bytes) continue; // the other half too, before waiting for this one
    int i = (first + (int)(taken / STAGE)) % 2;
    size_t n = piece(bytes, taken);
    SK_CUDA(cudaEventSynchronize(s->staged[i]));
    memcpy((char *)host + taken, s->stage[i], n);
    taken += n;
  }
}

static void cuda_zero(sk_stream *s, void *p, size_t bytes) {
  if (bytes) SK_CUDA(cudaMemsetAsync(p, 0, bytes, s->stream));
}

// ---- attention: by cuDNN where there is a plan, by our own kernels otherwise ----

static void cuda_attention_ready(sk_device *d, const sk_attn_dims *dims) {
  sk_cudnn_ready(d->dnn, dims);
}

static void cuda_attention(sk_stream *s, const sk_attn_dims *d, void *o, float *lse, const void *q,
                           const void *k, const void *v, const int32_t *start) {
  if (sk_cudnn_attention(s->device->dnn, s, d, o, lse, q, k, v)) return;
  sk_cuda_attention(s, d, o, lse, q, k, v, start);
}

static int cuda_gemm_choose(sk_device *d, int choice) {
  return sk_cuda_blas_choose(d->blas, choice);
}

// ---- the table ----

static const sk_ops ops = {
    .name = "cuda",
    .count = cuda_count,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .act = cuda_act,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .used = cuda_used,
    .stream_create = cuda_stream_create,
    .copy_stream_create = cuda_copy_stream_create,
    .stream_destroy = cuda_stream_destroy,
    .sync = cuda_sync,
    .range = sk_cuda_range,
    .event_create = cuda_event_create,
    .event_destroy = cuda_event_destroy,
    .record = cuda_record,
    .wait = cuda_wait,
    .elapsed = cuda_elapsed,
    .copy = cuda_copy,
    .copy2d = cuda_copy2d,
    .to_host = cuda_to_host,
    .from_host = cuda_from_host,
    .zero = cuda_zero,
    .event_done = sk_cuda_event_done,
    .host_alloc = sk_cuda_host_alloc,
    .host_free = sk_cuda_host_free,
    .copy_host = sk_cuda_copy_host,
    .copies_host = sk_cuda_copies_host,
    .share = sk_cuda_share,
    .map = sk_cuda_map,
    .unmap = sk_cuda_unmap,
    .event_share = sk_cuda_event_share,
    .event_map = sk_cuda_event_map,
    .total = sk_cuda_total,
    .cast = sk_cuda_cast,
    .gemm = sk_cuda_gemm,
    .gemm_choose = cuda_gemm_choose,
    .bias = sk_cuda_bias,
    .bias_grad = sk_cuda_bias_grad,
    .add_f32 = sk_cuda_add_f32,
    .add = sk_cuda_add,
    .embed = sk_cuda_embed,
    .embed_grad = sk_cuda_embed_grad,
    .rmsnorm = sk_cuda_rmsnorm,
    .rmsnorm_grad = sk_cuda_rmsnorm_grad,
    .gate = sk_cuda_gate,
    .gate_stats = sk_cuda_gate_stats,
    .gate_grad = sk_cuda_gate_grad,
    .gate_grad_stats = sk_cuda_gate_grad_stats,
    .swiglu = sk_cuda_swiglu,
    .swiglu_grad = sk_cuda_swiglu_grad,
    .rope = sk_cuda_rope,
    .attention = cuda_attention,
    .attention_ready = cuda_attention_ready,
    .attention_ws = sk_cuda_attention_ws,
    .attention_grad = sk_cuda_attention_grad,
    .conv = sk_cuda_conv,
    .conv_grad = sk_cuda_conv_grad,
    .dt = sk_cuda_dt,
    .dt_grad = sk_cuda_dt_grad,
    .ssd_ws = sk_cuda_ssd_ws,
    .ssd = sk_cuda_ssd,
    .ssd_grad_ws = sk_cuda_ssd_grad_ws,
    .ssd_grad = sk_cuda_ssd_grad,
    .ssd_state = sk_cuda_ssd_state,
    .ssd_state_grad = sk_cuda_ssd_state_grad,
    .fade_add = sk_cuda_fade_add,
    .xent_stats = sk_cuda_xent_stats,
    .xent_merge = sk_cuda_xent_merge,
    .xent_grad = sk_cuda_xent_grad,
    .sum = sk_cuda_sum,
    .sqnorm = sk_cuda_sqnorm,
    .adamw = sk_cuda_adamw,
};

const sk_ops *const sk_cuda = &ops;

const char *const sk_cuda_built = "CUDA " SK_CUDA_VERSION " for " SK_CUDA_ARCH;
