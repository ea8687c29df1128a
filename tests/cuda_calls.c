/* cuda_calls.c: counts a program's calls of the CUDA runtime that allocate, that create streams and
 * events, and that wait for the GPU. Preloaded by tests/calls.sh; at the end one line on stderr.
 * What libraries do with a runtime of their own (NCCL, cuBLASLt) is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef void *any;
typedef int (*call)(any, any, any, any, any, any);

static long allocates, creates, waits;

static int pass(const char *name, call *real, long *count, any a, any b, any c, any d, any e, any f) {
  if (!*real) {
    any p = dlsym(RTLD_NEXT, name);
    if (!p) abort();
    *(any *)real = p;
  }
  ++*count;
  return (*real)(a, b, c, d, e, f);
}

// Pointers and integers alike travel in registers; more of them than a function takes do no harm.
#define COUNT(name, count)                               \
  int name(any a, any b, any c, any d, any e, any f);    \
  int name(any a, any b, any c, any d, any e, any f) {   \
    static call real;                                    \
    return pass(#name, &real, &count, a, b, c, d, e, f); \
  }
COUNT(cudaMalloc, allocates)
COUNT(cudaMallocAsync, allocates)
COUNT(cudaMallocHost, allocates)
COUNT(cudaHostAlloc, allocates)
COUNT(cudaFree, allocates)
COUNT(cudaFreeAsync, allocates)
COUNT(cudaFreeHost, allocates)
COUNT(cudaStreamCreateWithFlags, creates)
COUNT(cudaEventCreateWithFlags, creates)
COUNT(cudaStreamSynchronize, waits)
COUNT(cudaEventSynchronize, waits)
COUNT(cudaDeviceSynchronize, waits)
COUNT(cudaMemcpy, waits)

// Its handle is passed by value.
typedef struct handle {
  char bytes[64];
} handle;
int cudaIpcOpenMemHandle(any *p, handle h, unsigned flags);
int cudaIpcOpenMemHandle(any *p, handle h, unsigned flags) {
  static int (*real)(any *, handle, unsigned);
  if (!real) *(any *)&real = dlsym(RTLD_NEXT, "cudaIpcOpenMemHandle");
  if (!real) abort();
  ++allocates;
  return real(p, h, flags);
}

__attribute__((destructor)) static void report(void) {
  if (allocates) fprintf(stderr, "cuda calls: %ld %ld %ld\n", allocates, creates, waits);
}
