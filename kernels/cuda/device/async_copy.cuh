// Copies from global to shared memory that run while the warp computes, and the words around
// programmatic dependent launch. The bulk engine and its barriers need sm_90; cp.async is the sm_80
// form.
#pragma once

#include <cstdint>

namespace fewbit::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// A barrier is named by its pointer or, where conversions would cost, by its shared address.
__device__ __forceinline__ void BarrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void BarrierInit(uint64_t* barrier, uint32_t arrivals) {
  BarrierInit(SharedAddress(barrier), arrivals);
}

// Makes initialised barriers visible to the bulk engine; a block barrier has to follow.
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives, and lets the phase end only after `bytes` have been copied.
__device__ __forceinline__ void BarrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

// Only lets the phase end after `bytes` more have been copied; an arrival has to follow.
__device__ __forceinline__ void BarrierExpectBytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  BarrierArrive(SharedAddress(barrier));
}

// Arrives when `value`, what this warp loaded last from the memory that it hands back, has come. A
// plain arrival does not wait for loads that are under way: under load it was seen to overtake them
// by a whole bulk copy, which then was what they read. %ctaid.y is 0 in the grids here, which the
// compiler cannot know, so the address depends on the value.
__device__ __forceinline__ void BarrierArriveAfter(uint32_t barrier, uint32_t value) {
  asm volatile(
      "{ .reg .b32 t; mov.u32 t, %%ctaid.y; and.b32 t, t, %1; add.u32 t, t, %0; "
      "mbarrier.arrive.shared::cta.b64 _, [t]; }" ::"r"(barrier),
      "r"(value)
      : "memory");
}
__device__ __forceinline__ void BarrierArriveAfter(uint64_t* barrier, uint32_t value) {
  BarrierArriveAfter(SharedAddress(barrier), value);
}

__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, uint32_t parity) {
  BarrierWait(SharedAddress(barrier), parity);
}

// `bytes` is a multiple of 16, both addresses are 16-byte aligned.
__device__ __forceinline__ void BulkCopy(void* shared, const void* global, uint32_t bytes,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

// For data that no other block reads: the L2 cache may drop it first. Places in shared memory by
// address.
__device__ __forceinline__ uint64_t ReadOncePolicy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void BulkCopyOnce(uint32_t shared, const void* global, uint32_t bytes,
                                             uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], "
      "%2, [%3], %4;" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}
#endif

// A barrier of some warps of the block; id 0 is that of __syncthreads().
__device__ __forceinline__ void NamedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void CopyAsync16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(SharedAddress(shared)), "l"(global)
               : "memory");
}
__device__ __forceinline__ void CopyAsync4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(SharedAddress(shared)), "l"(global)
               : "memory");
}
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Everything that earlier kernels of the stream wrote is visible after this. Weights never change,
// so a kernel starts loading them before.
__device__ __forceinline__ void WaitForPreviousKernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the stream start as soon as there is room for it.
__device__ __forceinline__ void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace fewbit::cuda
