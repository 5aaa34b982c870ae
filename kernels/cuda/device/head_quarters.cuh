// A head of kDim elements, a multiple of 64, in kDim / 8 lanes: each has 4 elements of the first
// half and their partners in rope. For many rows; the arithmetic of head_row.cuh in its order, so
// that a key has the same bits.
#pragma once

#include "kernels/cuda/device/head_row.cuh"
#include "kernels/cuda/device/load4.cuh"

namespace fewbit::cuda {

template <int kDim>
class HeadQuarters {
 public:
  static constexpr int kLanes = kDim / 8;

  template <typename T>
  __device__ __forceinline__ void Load(const T* row) {
    Put(0, Load4(row + d()));
    Put(4, Load4(row + kDim / 2 + d()));
  }

  __device__ __forceinline__ void AddBias(const float* bias) {
    if (bias == nullptr) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) x_[i] = __fadd_rn(x_[i], bias[Element(i)]);
  }

  // Lane d % 32 of a warp sums the squares of elements d % 32, d % 32 + 32, ...
  __device__ __forceinline__ void Norm(const float* weight, float eps) {
    if (weight == nullptr) return;
    const uint32_t lanes = (0xFFFFFFFFu >> (32 - kLanes)) << (threadIdx.x % 32 / kLanes * kLanes);
    float squares[4] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < kLanes / 8; ++j) {
        const float v = __shfl_sync(lanes, x_[i], lane() % 8 + 8 * j, kLanes);
        squares[i % 4] = __fmaf_rn(v, v, squares[i % 4]);
      }
    }
#pragma unroll
    for (int mask = 4; mask > 0; mask /= 2) {
#pragma unroll
      for (float& s : squares) s = __fadd_rn(s, __shfl_xor_sync(lanes, s, mask, kLanes));
    }
    const float sum =
        __fadd_rn(__fadd_rn(squares[0], squares[2]), __fadd_rn(squares[1], squares[3]));
    const float mean = __fdiv_rn(sum, static_cast<float>(kDim));
    const float scale = __frcp_rn(__fsqrt_rn(__fadd_rn(mean, eps)));
#pragma unroll
    for (int i = 0; i < 8; ++i) x_[i] = __fmul_rn(__fmul_rn(x_[i], scale), weight[Element(i)]);
  }

  // `turns`: of elements d .. d + 3.
  __device__ __forceinline__ void Turn(const float2 (&turns)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = x_[i], b = x_[i + 4];
      x_[i] = __fmaf_rn(a, turns[i].x, -__fmul_rn(b, turns[i].y));
      x_[i + 4] = __fmaf_rn(b, turns[i].x, __fmul_rn(a, turns[i].y));
    }
  }

  __device__ __forceinline__ void Scale(float factor) {
#pragma unroll
    for (float& v : x_) v *= factor;
  }

  // `at(d)`: where element d goes, a multiple of 4.
  template <kv::KvType kType, typename At>
  __device__ __forceinline__ void Store(const At& at) const {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      *reinterpret_cast<uint2*>(at(Element(i))) =
          make_uint2(PackPair<kType>(x_[i], x_[i + 1]), PackPair<kType>(x_[i + 2], x_[i + 3]));
    }
  }

  static __device__ int lane() { return threadIdx.x % kLanes; }
  static __device__ int d() { return 4 * lane(); }

 private:
  static __device__ int Element(int i) { return d() + i % 4 + i / 4 * (kDim / 2); }
  __device__ __forceinline__ void Put(int i, const float4& v) {
    x_[i] = v.x;
    x_[i + 1] = v.y;
    x_[i + 2] = v.z;
    x_[i + 3] = v.w;
  }
  float x_[8];
};

}  // namespace fewbit::cuda
