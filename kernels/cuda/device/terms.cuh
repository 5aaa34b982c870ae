// From the exact integer sums of a tile to its float terms in shared memory.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device_tile.h"

namespace fewbit::cuda {

// One float per row and token of the tile: the exact sum, d and the scale of x. `meta`: {scale,
// bias} of this lane's tokens 4 * j + lane % 4.
template <int kTiles, bool kZeroPoints>
__device__ __forceinline__ void WriteTerms(const int (&sums)[kTiles][4], const uint8_t* d_bytes,
                                           const int2 (&meta)[kTiles], int tokens, int lane,
                                           float* terms) {
  const int g = lane / 4, t = lane % 4;
  constexpr float kUnit = 1.0f / (quant::kStoredSecondOrderFactor * (kZeroPoints ? 2.0f : 4.0f));
  const float2 d = __half22float2(reinterpret_cast<const __half2*>(d_bytes)[g]);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const int token = 4 * j + t;
    if (token >= tokens) continue;
    const float scale = __fmul_rn(__int_as_float(meta[j].x), kUnit);
    // Wraps around on the way; the sum itself fits.
    const auto total = [&](int high, int low) {
      return __int2float_rn(static_cast<int>(256u * high + low + static_cast<uint32_t>(meta[j].y)));
    };
    terms[g * TermStride(kTiles) + token] =
        __fmul_rn(__fmul_rn(total(sums[j][0], sums[j][1]), d.x), scale);
    terms[(g + 8) * TermStride(kTiles) + token] =
        __fmul_rn(__fmul_rn(total(sums[j][2], sums[j][3]), d.y), scale);
  }
}

}  // namespace fewbit::cuda
