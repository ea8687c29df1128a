/* cuda_wgmma.h: the matrix products of Hopper's warpgroups (PTX ISA, wgmma), for kernels/cuda_flash.h.
 * 128 threads multiply 64 x 16 by 16 x N with bf16 operands and fp32 sums; of the 64 rows warp w has
 * 16 w .. 16 w + 15, and there the registers of the left operand and of the result are those of
 * mma.m16n8k16. The right operand lies in shared memory, the left one in either.
 *
 * Tiles in shared memory: panels of 64 columns; a row of a panel has 128 bytes, its 16-byte chunk c
 * lies at c ^ (row & 7) (the 128-byte swizzle), a panel begins at a multiple of 1024 bytes. What
 * threads write there is seen after wg_publish() and a barrier.
 *
 * Products are asynchronous: wg_begin, products, wg_commit, and wg_wait<n> for all but the last n
 * commits; then wg_done(c) before c is read. */
#ifndef SK_CUDA_WGMMA_H
#define SK_CUDA_WGMMA_H
#include <stdint.h>
#include "kernels/cuda_arch.h"

static __device__ inline void wg_publish(void) {
  SK_HOPPER_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}
static __device__ inline void wg_begin(void) {
  SK_HOPPER_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ inline void wg_commit(void) {
  SK_HOPPER_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N>
static __device__ inline void wg_wait(void) {
  SK_HOPPER_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Keeps the compiler from reading c before the wait.
template <int N>
static __device__ inline void wg_done(float (&c)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++)
    asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}

// Describes a tile at a shared address; lead: bytes from one panel to the next, where columns are the
// result's columns.
static __device__ inline uint64_t wg_tile(uint32_t address, uint32_t lead) {
  return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(lead >> 4) << 16 |
         (uint64_t)(1024 >> 4) << 32 | UINT64_C(1) << 62;
}

#define SK_WG4(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SK_WG16(i) SK_WG4(i), SK_WG4(i + 1), SK_WG4(i + 2), SK_WG4(i + 3)

// c = [c +] a b, 32 columns; a, b: see wg_tile; b is stored [column][k].
static __device__ inline void wg_mma(float (&c)[4][4], uint64_t a, uint64_t b, bool add) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, p, 1, 1, 0, 0;}"
      : SK_WG16(0)
      : "l"(a), "l"(b), "r"((int)add));
}
// The same with a in registers.
static __device__ inline void wg_mma(float (&c)[4][4], const uint32_t (&a)[4], uint64_t b,
                                     bool add) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;}"
      : SK_WG16(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
// c += a b, b stored [k][column].
static __device__ inline void wg_mma_rows(float (&c)[4][4], const uint32_t (&a)[4], uint64_t b) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, %20, p, 1, 1, 1;}"
      : SK_WG16(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

// c = [c +] a b, 64 columns; a, b: see wg_tile; b is stored [column][k].
static __device__ inline void wg_mma(float (&c)[8][4], uint64_t a, uint64_t b, bool add) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;}"
      : SK_WG16(0), SK_WG16(4)
      : "l"(a), "l"(b), "r"((int)add));
}
// The same with a in registers.
static __device__ inline void wg_mma(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b,
                                     bool add) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;}"
      : SK_WG16(0), SK_WG16(4)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
// c += a b, b stored [k][column].
static __device__ inline void wg_mma_rows(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;}"
      : SK_WG16(0), SK_WG16(4)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

// c = [c +] a b, 80 columns; a, b: see wg_tile; b is stored [column][k].
static __device__ inline void wg_mma(float (&c)[10][4], uint64_t a, uint64_t b, bool add) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %42, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39"
      "}, %40, %41, p, 1, 1, 0, 0;}"
      : SK_WG16(0), SK_WG16(4), SK_WG4(8), SK_WG4(9)
      : "l"(a), "l"(b), "r"((int)add));
}

// c = [c +] a b, 128 columns; a, b: see wg_tile; b is stored [column][k].
static __device__ inline void wg_mma(float (&c)[16][4], uint64_t a, uint64_t b, bool add) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, 0, 0;}"
      : SK_WG16(0), SK_WG16(4), SK_WG16(8), SK_WG16(12)
      : "l"(a), "l"(b), "r"((int)add));
}
// The same with a in registers.
static __device__ inline void wg_mma(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b,
                                     bool add) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;}"
      : SK_WG16(0), SK_WG16(4), SK_WG16(8), SK_WG16(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}
// c += a b, b stored [k][column].
static __device__ inline void wg_mma_rows(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b) {
  SK_HOPPER_ASM(
      "{.reg .pred p; setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
      : SK_WG16(0), SK_WG16(4), SK_WG16(8), SK_WG16(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

#undef SK_WG16
#undef SK_WG4
#endif
