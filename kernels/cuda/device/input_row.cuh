// The arithmetic of the rows that linear layers take, for kernels of their own (ops.cu) and for
// linear layers that make their input themselves: the same bits either way.
#pragma once

#include "kernels/cuda/device/load4.cuh"
#include "kernels/cuda/device/warp_reduce.cuh"
#include "kernels/cuda/stream_plan.h"

namespace fewbit::cuda {

constexpr int NormSegments(int cols) { return (cols + kNormSegment - 1) / kNormSegment; }

__device__ __forceinline__ float4 Add4(const float4& a, const float4& b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float4 Mul4(const float4& a, const float4& b) {
  return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

// The sum of squares of a segment of a row, of which each lane has 4 elements: the lane's part, and
// the whole.
__device__ __forceinline__ float LaneSquare(const float4& x) {
  float square = x.x * x.x;
  square = fmaf(x.y, x.y, square);
  square = fmaf(x.z, x.z, square);
  return fmaf(x.w, x.w, square);
}
__device__ __forceinline__ float SegmentSquare(const float4& x) {
  return WarpReduce(LaneSquare(x), TakeSum{});
}

// 1 / sqrt(mean square + eps) from the sums of all segments.
__device__ __forceinline__ float NormScale(const float* squares, int cols, float eps) {
  float sum = 0;
  for (int s = threadIdx.x % 32; s < NormSegments(cols); s += 32) sum += squares[s];
  const float mean = WarpReduce(sum, TakeSum{}) / static_cast<float>(cols);
  return 1.0f / sqrtf(mean + eps);
}

// A norm that is staged leaves `scale` to the tiles' scales (StageValues): what it rounds does then
// not wait for the row's sum.
__device__ __forceinline__ float4 Norm4(const float4& x, float scale, const float4& w) {
  return make_float4(x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z, x.w * scale * w.w);
}

__device__ __forceinline__ float4 SiluMul4(const float4& g, const float4& u) {
  const auto one = [](float a, float b) {
    // A power of two that is no normal number vanishes beside 1.
    float power = a * -1.4426950408889634f;
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(power));
    return __fdividef(a, 1.0f + power) * b;
  };
  return make_float4(one(g.x, u.x), one(g.y, u.y), one(g.z, u.z), one(g.w, u.w));
}

}  // namespace fewbit::cuda
