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
__device__ __forceinline__ uint32_t ClusterAddress(const void* shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(SharedAddress(shared)), "r"(rank));
  return address;
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

// Arrives at a barrier of any block of the cluster, to say that something has been read.
__device__ __forceinline__ void BarrierArriveCluster(uint32_t address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}
__device__ __forceinline__ void BarrierWaitCluster(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

}  // namespace fewbit::cuda
