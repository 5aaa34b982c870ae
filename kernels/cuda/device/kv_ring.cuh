// A ring of KV blocks in shared memory, private to one warp, so that no block barrier is needed:
// the warp asks for a block several blocks ahead and waits for its own copies only. Every lane
// calls every function, converged. Blocks are asked for and consumed in the same order; up to two
// may be in use at once.
#pragma once

#include "kernels/cuda/device/async_copy.cuh"

namespace fewbit::cuda {

class KvRing {
 public:
  // All are this warp's parts: `stages` slots of slot_bytes, as many numbers of their blocks and
  // as many barriers. 2 to 4 stages on sm_80.
  __device__ KvRing(uint8_t* slots, int32_t* ids, uint64_t* barriers, int stages, int slot_bytes)
      : slots_(slots), ids_(ids), barriers_(barriers), stages_(stages), slot_bytes_(slot_bytes) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x % 32 < stages) {
      BarrierInit(barriers + threadIdx.x % 32, 1);
      BarrierInitFence();
    }
    __syncwarp();
#endif
  }

  // Block `id` into the slot that has been longest out of use. `bytes` is a multiple of 16.
  __device__ __forceinline__ void Issue(const uint8_t* from, int bytes, int id) {
    __syncwarp();  // every lane has read what the slot held before
    uint8_t* slot = slots_ + head_ * slot_bytes_;
    if (threadIdx.x % 32 == 0) ids_[head_] = id;
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x % 32 == 0) {
      BarrierExpect(barriers_ + head_, bytes);
      BulkCopyOnce(SharedAddress(slot), from, bytes, SharedAddress(barriers_ + head_),
                   ReadOncePolicy());
    }
#else
    for (int i = 16 * (threadIdx.x % 32); i < bytes; i += 16 * 32) CopyAsync16(slot + i, from + i);
    CopyAsyncCommit();
#endif
    if (++head_ == stages_) head_ = 0;
  }
  // In the place of an Issue when there are no more blocks: copies are counted.
  __device__ __forceinline__ void IssueNothing() {
#if __CUDA_ARCH__ < 900
    CopyAsyncCommit();
#endif
  }

  // The next block, and its number. It stays readable until Issue has been called once for it.
  __device__ __forceinline__ uint8_t* Wait(int* id) {
    uint8_t* slot = slots_ + tail_ * slot_bytes_;
#if __CUDA_ARCH__ >= 900
    BarrierWait(barriers_ + tail_, parity_);
#else
    // The two oldest copies of `stages`.
    if (stages_ == 2) {
      CopyAsyncWait<0>();
    } else if (stages_ == 3) {
      CopyAsyncWait<1>();
    } else {
      CopyAsyncWait<2>();
    }
    __syncwarp();
#endif
    *id = ids_[tail_];
    if (++tail_ == stages_) {
      tail_ = 0;
      parity_ ^= 1;
    }
    return slot;
  }

 private:
  uint8_t* const slots_;
  int32_t* const ids_;
  uint64_t* const barriers_;
  const int stages_, slot_bytes_;
  int head_ = 0, tail_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace fewbit::cuda
