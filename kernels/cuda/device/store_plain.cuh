// Floats into an array whose type the launch knows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>

#include "kernels/matrix.h"

namespace fewbit::cuda {

__device__ __forceinline__ void StorePlain(void* plain, DType type, size_t at, float value) {
  if (type == DType::kF32) {
    static_cast<float*>(plain)[at] = value;
  } else if (type == DType::kF16) {
    static_cast<__half*>(plain)[at] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(plain)[at] = __float2bfloat16_rn(value);
  }
}

// Elements at .. at + 3; `at` is a multiple of 4.
__device__ __forceinline__ void StorePlain4(void* plain, DType type, size_t at, const float4& x) {
  if (type == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(plain) + at) = x;
  } else if (type == DType::kF16) {
    const __half2 low = __floats2half2_rn(x.x, x.y), high = __floats2half2_rn(x.z, x.w);
    *reinterpret_cast<uint2*>(static_cast<__half*>(plain) + at) =
        make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
  } else {
    const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(x.z, x.w);
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(plain) + at) =
        make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
  }
}

}  // namespace fewbit::cuda
