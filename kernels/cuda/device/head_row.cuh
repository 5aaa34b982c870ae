// One head of one token between the linear layer and the cache: bias, norm, rope, and the cached
// form. Each function is called by a converged warp; results do not depend on the caller, so a key
// has the same bits in a decode and in a prefill step.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/attention_kernels.h"
#include "kernels/kv_layout.h"

namespace fewbit::cuda {

// Where a head comes from and what is done to it.
struct HeadSource {
  const void* x = nullptr;  // [D] of `type`
  DType type = DType::kF32;
  const float* bias = nullptr;    // [D] or null
  const float* norm = nullptr;    // [D] or null
  const float2* turns = nullptr;  // [rotary_dim / 2] cosine and sine, or null: no rope
};

__device__ __forceinline__ float LoadNumber(const void* x, DType type, int i) {
  return type == DType::kF32 ? static_cast<const float*>(x)[i]
                             : __half2float(static_cast<const __half*>(x)[i]);
}

// Rope where elements d and d + D / 2 are a lane's i and i + kPerLane / 2.
template <int kPerLane>
__device__ __forceinline__ void TurnOwnPairs(const float2 (&turn)[kPerLane], float (&x)[kPerLane]) {
#pragma unroll
  for (int i = 0; i < kPerLane / 2; ++i) {
    const float a = x[i], b = x[i + kPerLane / 2];
    x[i] = __fmaf_rn(a, turn[i].x, -__fmul_rn(b, turn[i].y));
    x[i + kPerLane / 2] = __fmaf_rn(b, turn[i].x, __fmul_rn(a, turn[i].y));
  }
}

// To elements lane + 32 i of a head.
template <int kPerLane>
__device__ __forceinline__ void AddBias(const HeadShape& shape, const HeadSource& from,
                                        float (&x)[kPerLane]) {
  if (from.bias == nullptr) return;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = static_cast<int>(threadIdx.x % 32) + 32 * i;
    if (d < shape.dim) x[i] = __fadd_rn(x[i], from.bias[d]);
  }
}

// Elements lane + 32 i of a head with its bias, zeros behind D.
template <int kPerLane>
__device__ __forceinline__ void LoadHead(const HeadShape& shape, const HeadSource& from,
                                         float (&x)[kPerLane]) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = static_cast<int>(threadIdx.x % 32) + 32 * i;
    x[i] = d < shape.dim ? LoadNumber(from.x, from.type, d) : 0.0f;
  }
  AddBias(shape, from, x);
}

// The head's norm, if it has one.
template <int kPerLane>
__device__ __forceinline__ void NormHead(const HeadShape& shape, const HeadSource& from,
                                         float (&x)[kPerLane]) {
  if (from.norm == nullptr) return;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) squares = __fmaf_rn(x[i], x[i], squares);
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    squares = __fadd_rn(squares, __shfl_xor_sync(0xFFFFFFFFu, squares, mask));
  }
  const float mean = __fdiv_rn(squares, static_cast<float>(shape.dim));
  const float scale = __frcp_rn(__fsqrt_rn(__fadd_rn(mean, shape.rms_eps)));
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = static_cast<int>(threadIdx.x % 32) + 32 * i;
    if (d < shape.dim) x[i] = __fmul_rn(__fmul_rn(x[i], scale), from.norm[d]);
  }
}

// The turns of a lane's elements; (1, 0) where there are none.
template <int kPerLane>
__device__ __forceinline__ void LoadTurns(const HeadShape& shape, const float2* turns,
                                          float2 (&turn)[kPerLane]) {
  const int pairs = shape.rotary_dim / 2;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = static_cast<int>(threadIdx.x % 32) + 32 * i;
    turn[i] = make_float2(1, 0);
    if (turns != nullptr && d < shape.rotary_dim) {
      turn[i] = turns[shape.interleaved ? d / 2 : d < pairs ? d : d - pairs];
    }
  }
}

// Both elements of a pair are in one lane.
template <int kDim>
__device__ __forceinline__ bool OwnPairs(const HeadShape& shape) {
  return kDim % 64 == 0 && !shape.interleaved && shape.rotary_dim == kDim;
}

// out [kDim] floats in shared memory: the head, zeros behind D.
template <int kDim>
__device__ __forceinline__ void PrepareHead(const HeadShape& shape, const HeadSource& from,
                                            float* out) {
  const int lane = threadIdx.x % 32, pairs = shape.rotary_dim / 2;
  constexpr int kPerLane = (kDim + 31) / 32;
  float x[kPerLane];
  float2 turn[kPerLane];
  LoadTurns(shape, from.turns, turn);
  LoadHead(shape, from, x);
  NormHead(shape, from, x);
  const bool own_pairs = OwnPairs<kDim>(shape);  // as a rule
  if (own_pairs) TurnOwnPairs<kPerLane>(turn, x);
  __syncwarp();  // whoever read `out` before is done
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (lane + 32 * i < kDim) out[lane + 32 * i] = x[i];
  }
  __syncwarp();
  if (from.turns == nullptr || own_pairs) return;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int d = lane + 32 * i;
    if (d >= shape.rotary_dim) continue;
    const bool first = shape.interleaved ? d % 2 == 0 : d < pairs;
    const int step = shape.interleaved ? 1 : pairs;
    const float other = __fmul_rn(out[first ? d + step : d - step], turn[i].y);
    x[i] = __fmaf_rn(x[i], turn[i].x, first ? -other : other);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (lane + 32 * i < shape.rotary_dim) out[lane + 32 * i] = x[i];
  }
  __syncwarp();
}

// Clamped to the largest f16 number; NaN stays.
__device__ __forceinline__ float ClampToHalf(float v) {
  return v != v ? v : fminf(fmaxf(v, -65504.0f), 65504.0f);
}

// A pair of 16-bit elements of a cache or a query.
template <kv::KvType kType>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  if constexpr (kType == kv::KvType::kBF16) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(v);
  } else {
    const __half2 v = __floats2half2_rn(ClampToHalf(low), ClampToHalf(high));
    return reinterpret_cast<const uint32_t&>(v);
  }
}

// A head as the cache holds it, pieces still in their natural order, into `to` (16-byte aligned);
// returns the scale of i8. The scale is the largest |x| / 127, rounded up so that no code leaves
// [-127, 127]; if it is not finite the scale is NaN.
template <kv::KvType kType, int kDim>
__device__ __forceinline__ __half EncodeRow(const float* x, uint8_t* to) {
  const int lane = threadIdx.x % 32;
  uint32_t* words = reinterpret_cast<uint32_t*>(to);
  if constexpr (kType != kv::KvType::kI8) {
    for (int i = lane; i < kDim / 2; i += 32) words[i] = PackPair<kType>(x[2 * i], x[2 * i + 1]);
    return __half{};
  } else {
    uint32_t largest = 0;
    for (int i = lane; i < kDim; i += 32) {
      largest = max(largest, __float_as_uint(x[i]) & 0x7FFFFFFFu);
    }
    const float top = __uint_as_float(__reduce_max_sync(0xFFFFFFFFu, largest));
    const bool finite = top < __int_as_float(0x7F800000);
    const __half scale = finite ? __float2half_ru(fminf(__fdiv_rn(top, 127.0f), 65504.0f))
                                : __ushort_as_half(0x7E00);
    const float wide = __half2float(scale);
    const float inverse = finite && wide > 0 ? __frcp_rn(wide) : 0.0f;
    for (int i = lane; i < kDim / 4; i += 32) {
      uint32_t word = 0;
      for (int j = 0; j < 4; ++j) {
        const float v = fminf(fmaxf(__fmul_rn(x[4 * i + j], inverse), -127.0f), 127.0f);
        word |= static_cast<uint32_t>(__float2int_rn(v) + 128) << (8 * j);
      }
      words[i] = word;
    }
    return scale;
  }
}

// Puts an encoded row where token `token` of a head's keys (or values) lies, in the cache or in a
// copy of it in shared memory. `half` is the first key (value).
template <kv::KvType kType, int kDim>
__device__ __forceinline__ void PlaceRow(const uint8_t* row, uint8_t* half, int token) {
  constexpr int kPieces = kDim * kv::KvTypeBytes(kType) / 16;
  for (int piece = threadIdx.x % 32; piece < kPieces; piece += 32) {
    *reinterpret_cast<uint4*>(half + kv::DeviceBlockShape::piece_offset(kPieces, token, piece)) =
        *reinterpret_cast<const uint4*>(row + 16 * piece);
  }
}

}  // namespace fewbit::cuda
