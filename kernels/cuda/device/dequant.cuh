// Sixteen 2-bit codes of one (row, strip) to bytes: weight byte = 128 + unit * (q - zero) *
// sub_scale, with unit 4 for the symmetric levels (zero = 1.5) and 2 with zero-points. All four
// bytes of a word come from one multiply-add, because no byte leaves [38, 218]. The 128 is taken
// back per tile, where it is a multiple of the sum of the activations.
#pragma once

#include <cstdint>

namespace fewbit::cuda {

// What codes of one (row, strip) are multiplied with.
struct RowScale {
  uint32_t low;   // for codes at bits 0-1 of their byte
  uint32_t high;  // for codes at bits 2-3, which are 4 q; unused with zero-points
  uint32_t bias;  // 128 - unit * zero * sub_scale, in each byte
};

__device__ __forceinline__ RowScale SymmetricScale(uint32_t sub_scale) {
  return {4 * sub_scale, sub_scale, 0x80808080u - sub_scale * 0x06060606u};
}
__device__ __forceinline__ RowScale ZeroPointScale(uint32_t sub_scale, uint32_t zero) {
  return {2 * sub_scale, 0, 0x80808080u - sub_scale * zero * 0x02020202u};
}

// out[f] = the bytes of channels 4f .. 4f + 3.
template <bool kZeroPoints>
__device__ __forceinline__ void ExpandCodes(uint32_t codes, const RowScale& s, uint32_t (&out)[4]) {
  constexpr uint32_t kLow = 0x03030303u, kHigh = 0x0C0C0C0Cu;
  const uint32_t upper = codes >> 4;
  out[0] = (codes & kLow) * s.low + s.bias;
  out[2] = (upper & kLow) * s.low + s.bias;
  if constexpr (kZeroPoints) {
    out[1] = ((codes >> 2) & kLow) * s.low + s.bias;
    out[3] = ((codes >> 6) & kLow) * s.low + s.bias;
  } else {
    out[1] = (codes & kHigh) * s.high + s.bias;
    out[3] = (upper & kHigh) * s.high + s.bias;
  }
}

}  // namespace fewbit::cuda
