/* cuda_mma.h: the warp instructions of the SSD kernels, one function each; private to
 * kernels/cuda_*.cu. Tiles and loops over them are built on top (cuda_ssd.h), so that nothing else
 * contains PTX.
 *
 * Operands and results of cuda_wgmma.h are those of mma.m16n8k16, by 16 columns of A and 8 of C.
 * With lane = 4 g + t a lane holds A: a0 (row g, k 2t, 2t + 1), a1 (row g + 8), a2 (row g, k 2t +
 * 8, 2t + 9), a3 (row g + 8) C: c0, c1 (row g, columns 2t, 2t + 1), c2, c3 (row g + 8) ldmatrix
 * reads four 8 x 8 matrices; lanes 8 i .. 8 i + 7 give the addresses of the rows of matrix i. A
 * lane gets of each (row g, columns 2t, 2t + 1), or with `trans` (rows 2t, 2t + 1, column g).
 */
#ifndef SK_CUDA_MMA_H
#define SK_CUDA_MMA_H
#include <cuda_bf16.h>
#include <stdint.h>
#include "kernels/cuda_arch.h"

static __device__ inline uint32_t shared_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p);
}

// 16 bytes from global to shared memory, or 16 zero bytes; `from` must be a valid address anyway.
static __device__ inline void cp_async16(void *to, const void *from, bool here) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(here ? 16 : 0)
               : "memory");
}

static __device__ inline void cp_async16(uint32_t to, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
static __device__ inline void cp_async16(uint32_t to, const void *from, bool here) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(here ? 16 : 0)
               : "memory");
}

static __device__ inline void cp_async_commit(void) {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// The thread waits for its own copies; a barrier makes them everybody's.
static __device__ inline void cp_async_wait(void) {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// threadIdx.x, of which the compiler knows nothing: the addresses that follow from it are computed
// where they are used. Else it keeps dozens of them in registers throughout a loop and has to
// spill.
static __device__ inline int thread_here(void) {
  int x = (int)threadIdx.x;
  asm volatile("" : "+r"(x));
  return x;
}

// A barrier of a warpgroup's 128 threads.
static __device__ inline void group_sync(int id) {
  asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory");
}

static __device__ inline void ldmatrix(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}

static __device__ inline void ldmatrix_trans(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}

// What ldmatrix and ldmatrix_trans would read, written.
static __device__ inline void stmatrix(uint32_t at, const uint32_t (&r)[4]) {
  SK_HOPPER_ASM("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

static __device__ inline void stmatrix_trans(uint32_t at, const uint32_t (&r)[4]) {
  SK_HOPPER_ASM("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// 2^x to 2^-22; below 2^-126 it is 0, also for -infinity.
static __device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats as bf16, `lo` in the low half.
static __device__ inline uint32_t pack2(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}

static __device__ inline float low(uint32_t pair) {
  return __uint_as_float(pair << 16);
}

static __device__ inline float high(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}
#endif
