// Four neighbouring elements of any stored type as floats, in one load.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/dense.h"

namespace fewbit::cuda {

__device__ __forceinline__ float4 Load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}

__device__ __forceinline__ float4 Load4(const __half* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&raw.x));
  const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
  return make_float4(a.x, a.y, b.x, b.y);
}

__device__ __forceinline__ float4 Load4(const __nv_bfloat16* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xFFFF0000u),
                     __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xFFFF0000u));
}

// Elements i .. i + 3 of a row of weights; i is a multiple of 4, so is the row's length.
__device__ __forceinline__ float4 LoadWeights4(const void* row, WeightType type, float scale,
                                               int i) {
  if (type == WeightType::kF32) return Load4(static_cast<const float*>(row) + i);
  if (type == WeightType::kF16) return Load4(static_cast<const __half*>(row) + i);
  if (type == WeightType::kBF16) return Load4(static_cast<const __nv_bfloat16*>(row) + i);
  const uint32_t codes = *reinterpret_cast<const uint32_t*>(static_cast<const uint8_t*>(row) + i);
  const auto one = [&](int shift) {
    return static_cast<float>(static_cast<int>(codes >> shift & 0xFF) - 128) * scale;
  };
  return make_float4(one(0), one(8), one(16), one(24));
}

}  // namespace fewbit::cuda
