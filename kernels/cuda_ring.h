/* cuda_ring.h: a block's warpgroups in two roles, for kernels/cuda_flash_groups.h: some multiply,
 * the last one loads tiles ahead of them into a ring in shared memory.
 *
 * A ring has stages; each has two barriers (PTX ISA, mbarrier). `full`: the loader's 128 threads
 * arrive, each when its copies are there. `empty`: every warp that multiplies, or every thread of it,
 * arrives when it is done with the stage. Both sides walk over the same tiles in the same order, so the arrivals are
 * those that the barriers count: whoever skips a tile must skip it on both sides. Stage and phase
 * are a ring_place. */
#ifndef SK_CUDA_RING_H
#define SK_CUDA_RING_H
#include "kernels/cuda_flash.h"

template <int STAGES>
struct ring {
  uint64_t full[STAGES], empty[STAGES];
};

struct ring_place {
  int stage;
  uint32_t phase;
};

template <int STAGES>
static __device__ inline ring_place after(ring_place at) {
  bool last = at.stage == STAGES - 1;
  ring_place next = {last ? 0 : at.stage + 1, at.phase ^ (last ? 1u : 0u)};
  return next;
}

static __device__ inline void barrier_init(uint64_t *b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
               : "memory");
}

static __device__ inline void barrier_arrive(uint64_t *b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

// Arrives when the thread's copies so far are there.
static __device__ inline void barrier_arrive_with_copies(uint64_t *b) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(b))
               : "memory");
}

// Waits for the end of the phase of that parity.
static __device__ inline void barrier_wait(uint64_t *b, uint32_t parity) {
  uint32_t done = 0;
#ifdef SK_DEBUG
  int64_t began = clock64();
#endif
  while (true) {
    SK_HOPPER_ASM(
        "{.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(shared_address(b)), "r"(parity)
        : "memory");
    if (done) return;
#ifdef SK_DEBUG
    if (clock64() - began > INT64_C(4000000000)) __trap(); // two seconds: it hangs
#endif
  }
}

// One thread calls it; a barrier of the block follows. arrivals: those that give a stage back.
template <int STAGES>
static __device__ inline void ring_init(ring<STAGES> &r, int arrivals) {
  for (int i = 0; i < STAGES; i++) {
    barrier_init(&r.full[i], 128);
    barrier_init(&r.empty[i], arrivals);
  }
}

// The loader: waits until nobody reads the stage; and says that what it loads is on its way.
template <int STAGES>
static __device__ inline void ring_claim(ring<STAGES> &r, ring_place at) {
  barrier_wait(&r.empty[at.stage], at.phase ^ 1); // the first time round nobody reads it
}
template <bool WIDE, int STAGES>
static __device__ inline void ring_fill(ring<STAGES> &r, ring_place at) {
  if (WIDE) {
    barrier_arrive_with_copies(&r.full[at.stage]);
  } else {
    cp_async_commit();
    cp_async_wait();
    barrier_arrive(&r.full[at.stage]);
  }
}

// Those that multiply: waits for a stage; and gives it back, when the warp's products of it are
// done.
template <int STAGES>
static __device__ inline void ring_wait(ring<STAGES> &r, ring_place at) {
  barrier_wait(&r.full[at.stage], at.phase);
  wg_publish();
}
template <int STAGES>
static __device__ inline void ring_release(ring<STAGES> &r, ring_place at) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(&r.empty[at.stage]);
}
// Where threads read the stage themselves, each arrives: compute-sanitizer's racecheck does not follow the
// order that __syncwarp gives (docs/kernels.md). The branch, always taken, is for ptxas: without one it spills
// 172 bytes of a thread of dk and dv instead of 68, which costs 13 %.
template <int STAGES>
static __device__ inline void ring_release_each(ring<STAGES> &r, ring_place at) {
  __syncwarp();
  if (at.stage >= 0) barrier_arrive(&r.empty[at.stage]);
}

// A warpgroup's share of the registers changes. The block's sum must not exceed what it began with,
// 128 threads x registers at launch for every warpgroup: else those that take wait for ever.
template <int N>
static __device__ inline void registers_take(void) {
  SK_HOPPER_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
static __device__ inline void registers_give(void) {
  SK_HOPPER_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// Named barriers, of `threads` threads of the block: 0 is that of __syncthreads.
static __device__ inline void named_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
static __device__ inline void named_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Registers of a thread that loads and of one that multiplies, with GROUPS warpgroups of the
// latter.
template <int GROUPS>
struct role_registers;
template <>
struct role_registers<2> {
  enum { LOAD = 24, MULTIPLY = 240 }; // 168 at launch
};
template <>
struct role_registers<3> {
  enum { LOAD = 32, MULTIPLY = 160 }; // 128 at launch
};

#endif
