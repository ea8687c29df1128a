/* cuda_arch.h: what the GPU has that device code is being compiled for; nothing else asks. Private to
 * kernels/cuda_*.cu.
 *
 * The kernels of warpgroups (cuda_flash_groups.h, and the fast path of cuda_ssd.h) are made of
 * instructions that Hopper alone has, and only as architecture 90a. Compiled for anything else they
 * end in a trap and are not launched (sk_cuda_groups): other kernels, slower ones, take their place. */
#ifndef SK_CUDA_ARCH_H
#define SK_CUDA_ARCH_H
#include <cuda_runtime.h>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SK_HOPPER 1
#define SK_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define SK_HOPPER 0
#define SK_HOPPER_ASM(...) __trap()
#endif

// Programmatic dependent launch, which came with 9.0: elsewhere one kernel follows the other, as
// launched by a host that knows (sk_cuda_arch).
static __device__ inline void let_next_begin(void) {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
static __device__ inline void wait_for_previous(void) {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
#endif
