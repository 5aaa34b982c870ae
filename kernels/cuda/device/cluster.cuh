// Clusters of thread blocks, sm_90: barriers that several blocks arrive at, and stores into the
// shared memory of another block.
#pragma once

#include "kernels/cuda/device/async_copy.cuh"

namespace fewbit::cuda {

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all blocks of the cluster meet: each arrives, then waits, by whole warps. Orders
// no memory accesses but initialised barriers (BarrierInitFence) and what comes after.
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The address in block `rank` of what lies at `shared` in this one.
__device__ __forceinline__ uint32_t ClusterAddress(uint32_t shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}
__device__ __forceinline__ uint32_t ClusterAddress(const void* shared, uint32_t rank) {
  return ClusterAddress(SharedAddress(shared), rank);
}
// Stores 16 bytes there, without waiting; they count as copied for the barrier, of the same block.
__device__ __forceinline__ void ClusterStore(uint32_t address, float a, float b, float c, float d,
                                             uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(barrier)
      : "memory");
}

// Barriers by shared address, as BarrierExpect and BulkCopy (async_copy.cuh).
__device__ __forceinline__ void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void BulkCopy(void* shared, const void* global, uint32_t bytes,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// To the same place in every block of `blocks`, a bit each, and counted by the barrier at the same
// place there. `bytes` is a multiple of 16, both addresses are 16-byte aligned.
__device__ __forceinline__ void BulkCopyToAll(void* shared, const void* global, uint32_t bytes,
                                              uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1], %2, [%3], %4;" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(barrier), "h"(blocks)
      : "memory");
}

// Arrives at a barrier of any block of the cluster, to say that something has been read.
__device__ __forceinline__ void BarrierArriveCluster(uint32_t address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
__device__ __forceinline__ void BarrierWaitCluster(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}
__device__ __forceinline__ void BarrierWaitCluster(uint64_t* barrier, uint32_t parity) {
  BarrierWaitCluster(SharedAddress(barrier), parity);
}

}  // namespace fewbit::cuda
