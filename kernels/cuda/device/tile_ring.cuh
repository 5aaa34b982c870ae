// A ring of weight tiles in shared memory, private to one warp, so that no block barrier is needed:
// the warp asks for a tile several tiles ahead and waits for its own copies only.
#pragma once

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

// Every lane calls every function, converged. Tiles are issued and consumed in the same order.
class TileRing {
 public:
  // `slots`: this warp's part, kAsyncStages * slot_bytes bytes.
  __device__ TileRing(uint8_t* slots, int slot_bytes) : slots_(slots), slot_bytes_(slot_bytes) {}

  // Asks for `count` tiles of `bytes` bytes, `stride` apart, which arrive `pitch` apart.
  template <int kMost>
  __device__ __forceinline__ void Issue(const uint8_t* from, int bytes, int count, size_t stride,
                                        int pitch) {
    __syncwarp();  // every lane has read what the slot held before
    uint8_t* slot = slots_ + head_ * slot_bytes_;
#pragma unroll
    for (int tile = 0; tile < kMost; ++tile) {
      if (tile >= count) break;
      for (int i = 16 * (threadIdx.x % 32); i < bytes; i += 16 * 32) {
        CopyAsync16(slot + tile * pitch + i, from + tile * stride + i);
      }
    }
    IssueNothing();
  }
  // Groups are counted: an empty one stands for a tile that does not exist.
  __device__ __forceinline__ void IssueNothing() {
    CopyAsyncCommit();
    head_ = (head_ + 1) % kAsyncStages;
  }
  // The oldest tile; it stays readable until as many Issue calls follow as there are stages.
  __device__ __forceinline__ const uint8_t* Wait() {
    CopyAsyncWait<kAsyncStages - 1>();
    __syncwarp();
    const uint8_t* slot = slots_ + tail_ * slot_bytes_;
    tail_ = (tail_ + 1) % kAsyncStages;
    return slot;
  }

 private:
  uint8_t* slots_;
  int slot_bytes_;
  int head_ = 0, tail_ = 0;
};

}  // namespace fewbit::cuda
