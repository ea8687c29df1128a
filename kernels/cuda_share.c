/* cuda_share.c: pinned host memory, and memory and events that other processes of the node use
 * (CUDA IPC). Mapped memory is reached over NVLink or PCIe where the GPUs are peers; the first
 * mapping enables that. */
#ifdef HAVE_CONFIG_H
#include <config.h>
#endif
#include <cuda.h> // types of the driver's functions; nothing of it is linked
#include <string.h>
#include "kernels/cuda.h"

_Static_assert(sizeof(cudaIpcMemHandle_t) <= sizeof((sk_share *)0)->handle, "a memory handle fits");
_Static_assert(sizeof(cudaIpcEventHandle_t) <= sizeof((sk_share *)0)->handle, "an event's fits");

static int no(cudaError_t rc, const char *what, sk_err *e) {
  cudaGetLastError(); // forget it
  return sk_fail(e, SK_FAILED, "CUDA IPC does not work on %s: %s: %s", sk_host(), what,
                 cudaGetErrorString(rc));
}

bool sk_cuda_event_done(sk_event *ev) {
  cudaError_t rc = cudaEventQuery(ev->event);
  if (rc == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  SK_CUDA(rc);
  return true;
}

void *sk_cuda_host_alloc(sk_device *d, size_t bytes) {
  void *p = NULL;
  (void)d;
  if (cudaMallocHost(&p, bytes ? bytes : 1) == cudaSuccess) return p;
  cudaGetLastError();
  return NULL;
}

void sk_cuda_host_free(sk_device *d, void *p) {
  (void)d;
  SK_CUDA(cudaFreeHost(p));
}

void sk_cuda_copy_host(sk_stream *s, void *dst, const void *src, size_t bytes) {
  if (bytes) SK_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, sk_cuda_stream(s)));
}

/* In one call, between whose copies the engine does not pause: 1000 of 0.5 MB 10.6 ms on an H100, one by one 11.8. */
static cudaError_t copy_batch(sk_stream *s, int64_t n, const sk_copy *list) {
  struct cudaMemcpyAttributes in_order = {.srcAccessOrder = cudaMemcpySrcAccessOrderStream};
  void **dst = sk_malloc((size_t)n * sizeof *dst), **src = sk_malloc((size_t)n * sizeof *src);
  size_t *bytes = sk_malloc((size_t)n * sizeof *bytes), first = 0;
  for (int64_t i = 0; i < n; i++) {
    dst[i] = list[i].dst;
    src[i] = (void *)(uintptr_t)list[i].src;
    bytes[i] = list[i].bytes;
  }
#if CUDART_VERSION >= 13000
  cudaError_t rc = cudaMemcpyBatchAsync(dst, (const void **)src, bytes, (size_t)n, &in_order, &first, 1, sk_cuda_stream(s));
#else
  size_t failed;
  cudaError_t rc = cudaMemcpyBatchAsync(dst, src, bytes, (size_t)n, &in_order, &first, 1, &failed, sk_cuda_stream(s));
#endif
  sk_free(bytes);
  sk_free(src);
  sk_free(dst);
  return rc;
}

bool sk_cuda_copies_host(sk_stream *s, int64_t n, const sk_copy *list, sk_sum *sum) {
  (void)sum; // the bytes come by themselves: no core has them
  if (n == 0 || copy_batch(s, n, list) == cudaSuccess) return false;
  cudaGetLastError(); // an older driver
  for (int64_t i = 0; i < n; i++) sk_cuda_copy_host(s, list[i].dst, list[i].src, list[i].bytes);
  return false;
}

// The allocation that p lies in: a handle names it as a whole.
static cudaError_t find_base(const void *p, uint64_t *offset) {
  CUresult (*range)(CUdeviceptr *, size_t *, CUdeviceptr) = NULL;
  enum cudaDriverEntryPointQueryResult found;
  void *f = NULL;
  cudaError_t rc = cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &f, 12000,
                                                    cudaEnableDefault, &found);
  if (rc != cudaSuccess) return rc;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  memcpy(&range, &f, sizeof f); // ISO C has no cast for it
  CUdeviceptr base = 0, at = (CUdeviceptr)(uintptr_t)p;
  size_t size;
  if (range(&base, &size, at) != CUDA_SUCCESS) return cudaErrorInvalidValue;
  *offset = at - base;
  return cudaSuccess;
}

int sk_cuda_share(sk_device *d, const void *p, sk_share *out, sk_err *e) {
  cudaIpcMemHandle_t h;
  (void)d;
  memset(out, 0, sizeof *out);
  cudaError_t rc = find_base(p, &out->offset);
  if (rc != cudaSuccess) return no(rc, "the allocation's start", e);
  rc = cudaIpcGetMemHandle(&h, (void *)((uintptr_t)p - out->offset));
  if (rc != cudaSuccess) return no(rc, "a handle of memory", e);
  memcpy(out->handle, &h, sizeof h);
  return SK_OK;
}

void *sk_cuda_map(sk_device *d, const sk_share *s, sk_err *e) {
  cudaIpcMemHandle_t h;
  void *p = NULL;
  (void)d;
  memcpy(&h, s->handle, sizeof h);
  cudaError_t rc = cudaIpcOpenMemHandle(&p, h, cudaIpcMemLazyEnablePeerAccess);
  if (rc == cudaSuccess) return p;
  no(rc, "mapping another rank's memory", e);
  return NULL;
}

void sk_cuda_unmap(sk_device *d, void *base) {
  (void)d;
  SK_CUDA(cudaIpcCloseMemHandle(base));
}

sk_event *sk_cuda_event_share(sk_device *d, sk_share *out, sk_err *e) {
  cudaIpcEventHandle_t h;
  cudaEvent_t event;
  (void)d;
  memset(out, 0, sizeof *out);
  cudaError_t rc =
      cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventInterprocess);
  if (rc != cudaSuccess) {
    no(rc, "an event between processes", e);
    return NULL;
  }
  rc = cudaIpcGetEventHandle(&h, event);
  if (rc != cudaSuccess) {
    no(rc, "an event's handle", e);
    SK_CUDA(cudaEventDestroy(event));
    return NULL;
  }
  memcpy(out->handle, &h, sizeof h);
  sk_event *ev = sk_calloc(1, sizeof *ev);
  ev->event = event;
  return ev;
}

sk_event *sk_cuda_event_map(sk_device *d, const sk_share *s, sk_err *e) {
  cudaIpcEventHandle_t h;
  cudaEvent_t event;
  (void)d;
  memcpy(&h, s->handle, sizeof h);
  cudaError_t rc = cudaIpcOpenEventHandle(&event, h);
  if (rc != cudaSuccess) {
    no(rc, "mapping another rank's event", e);
    return NULL;
  }
  sk_event *ev = sk_calloc(1, sizeof *ev);
  ev->event = event;
  return ev;
}

size_t sk_cuda_total(sk_device *d) {
  size_t free, total;
  (void)d;
  SK_CUDA(cudaMemGetInfo(&free, &total));
  return total;
}
