// Where a prefilled row of a head goes: to the combining kernel as floats, or straight to the next
// layer.
#pragma once

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/fragment.cuh"

namespace fewbit::cuda {

// By the whole block: some row of the item goes on.
__device__ __forceinline__ bool IsWanted(const WantedRows& wanted, const PrefillItem& item) {
  if (wanted.tokens == nullptr) return true;
  bool any = false;
  for (int i = threadIdx.x; i < wanted.count; i += blockDim.x) {
    const int row = wanted.tokens[i] - item.token;
    any = any || (row >= 0 && row < item.rows);
  }
  return __syncthreads_or(any);
}

// What divides a row of weighted values, whose weights four neighbouring lanes have summed.
__device__ __forceinline__ float OneOverSum(float of_lane) {
  of_lane += __shfl_xor_sync(0xFFFFFFFFu, of_lane, 1);
  of_lane += __shfl_xor_sync(0xFFFFFFFFu, of_lane, 2);
  return __fdiv_rn(1.0f, of_lane);
}

class AttendedRow {
 public:
  AttendedRow() = default;
  // Row `row` of heads, as PrefillArgs::attended has them.
  __device__ AttendedRow(const PrefillArgs& a, size_t row)
      : at_(static_cast<uint8_t*>(a.attended) +
            row * a.head_dim * (a.attended_type == DType::kF32 ? 4 : 2)),
        type_(a.attended_type) {}

  __device__ bool exists() const { return at_ != nullptr; }
  // Elements d and d + 1, d even.
  __device__ __forceinline__ void Store(int d, float first, float second) const {
    if (type_ == DType::kF32) {
      reinterpret_cast<float2*>(at_)[d / 2] = make_float2(first, second);
    } else {
      reinterpret_cast<uint32_t*>(at_)[d / 2] =
          type_ == DType::kF16 ? HalfMath::Pack(first, second) : BfloatMath::Pack(first, second);
    }
  }

  // Elements d .. d + 7 of a row of 16 bits, d a multiple of 8.
  __device__ __forceinline__ void Store8(int d, const uint32_t (&words)[4]) const {
    reinterpret_cast<uint4*>(at_)[d / 8] = make_uint4(words[0], words[1], words[2], words[3]);
  }

 private:
  uint8_t* at_ = nullptr;
  DType type_ = DType::kF32;
};

}  // namespace fewbit::cuda
