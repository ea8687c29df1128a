/* cuda_range.c: the timer's sections as NVTX ranges, which Nsight Systems shows beside the GPU's work. Without a
 * profiler a range costs a few nanoseconds. */
#include "kernels/cuda.h"
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
void sk_cuda_range(const char *name) {
  if (name) nvtxRangePushA(name);
  else nvtxRangePop();
}
#else
void sk_cuda_range(const char *name) { (void)name; }
#endif
