// Blocks that work on one row together: a cluster on sm_90, whose blocks read each other's shared
// memory; on older devices, and where one block is enough, the group is that block.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/warp_reduce.cuh"

namespace fewbit::cuda {

inline constexpr int kGroupThreads = 512;  // of each block
inline constexpr int kGroupWarps = kGroupThreads / 32;

__device__ __forceinline__ int GroupSize() {
#if __CUDA_ARCH__ >= 900
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
#else
  return 1;
#endif
}

__device__ __forceinline__ int GroupRank() {
#if __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return 0;
#endif
}

// All threads of the group; what they wrote to shared memory is visible to all of them after it.
__device__ __forceinline__ void GroupSync() {
#if __CUDA_ARCH__ >= 900
  if (GroupSize() > 1) {
    asm volatile(
        "barrier.cluster.arrive.aligned;\n"
        "barrier.cluster.wait.aligned;" ::
            : "memory");
    return;
  }
#endif
  __syncthreads();
}

// The same variable in the shared memory of block `rank` of the group.
template <typename T>
__device__ __forceinline__ const T* OfRank(const T* shared, int rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared), "r"(rank));
  return reinterpret_cast<const T*>(address);
#else
  return shared;
#endif
}

// Shared memory of GroupReduce. Two slots in turn: a block may start the next reduction while
// another one still reads this one's.
struct ReduceBoard {
  uint64_t warps[kGroupWarps];
  uint64_t slots[2];
};

// What `op` makes of one shared variable of every block, in every thread; lanes read the blocks
// side by side. `before`: of the blocks before this one.
template <typename Op, typename T>
__device__ __forceinline__ uint64_t GroupTotal(const T* shared, Op op, uint64_t* before = nullptr) {
  const int lane = threadIdx.x % 32;
  const uint64_t v = lane < GroupSize() ? static_cast<uint64_t>(*OfRank(shared, lane)) : 0;
  if (before != nullptr) *before = WarpReduce(lane < GroupRank() ? v : uint64_t{0}, op);
  return WarpReduce(v, op);
}

// One value per thread into one for the whole group, which every thread gets, and what the blocks
// before this one make together. `turn` counts the calls.
template <typename Op>
__device__ uint64_t GroupReduce(uint64_t v, Op op, ReduceBoard* board, int* turn,
                                uint64_t* before = nullptr) {
  v = WarpReduce(v, op);
  if (threadIdx.x % 32 == 0) board->warps[threadIdx.x / 32] = v;
  __syncthreads();
  uint64_t* slot = &board->slots[(*turn)++ & 1];
  if (threadIdx.x < 32) {
    v = WarpReduce(threadIdx.x < kGroupWarps ? board->warps[threadIdx.x] : uint64_t{0}, op);
    if (threadIdx.x == 0) *slot = v;
  }
  GroupSync();
  return GroupTotal(slot, op, before);
}

}  // namespace fewbit::cuda
