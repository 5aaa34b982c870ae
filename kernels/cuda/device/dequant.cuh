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

// 4-bit codes of one (row, strip) as bytes, from the planes of device_tile.h: out[f] has the codes
// of channels 4f .. 4f + 3.
__device__ __forceinline__ void JoinPlanes(uint32_t high, uint32_t low, uint32_t (&out)[4]) {
  constexpr uint32_t kPairs = 0x33333333u, kCode = 0x0F0F0F0Fu;
  const uint32_t even = (low & kPairs) | ((high << 2) & ~kPairs);
  const uint32_t odd = ((low >> 2) & kPairs) | (high & ~kPairs);
  out[0] = even & kCode;
  out[1] = odd & kCode;
  out[2] = (even >> 4) & kCode;
  out[3] = (odd >> 4) & kCode;
}

// 4-bit codes as one byte per weight: 128 + A with (2 q - 15) s = 2 A + (s & 1), |A| <= 113.
__device__ __forceinline__ void ExpandSymmetric4(uint32_t high, uint32_t low, uint32_t sub_scale,
                                                 uint32_t (&out)[4]) {
  const uint32_t bias = (128u - ((15u * sub_scale + 1u) >> 1)) * 0x01010101u;
  JoinPlanes(high, low, out);
#pragma unroll
  for (uint32_t& bytes : out) bytes = bytes * sub_scale + bias;
}

// 4-bit codes with a zero-point as the sum of two bytes, 256 + (q - zero) s: each takes half of
// code and zero-point, rounded down or up, so that it stays within 128 +- 120.
__device__ __forceinline__ void ExpandZeroPoint4(uint32_t high, uint32_t low, uint32_t sub_scale,
                                                 uint32_t zero, uint32_t (&down)[4],
                                                 uint32_t (&up)[4]) {
  constexpr uint32_t kHalf = 0x07070707u;
  const uint32_t bias_down = (128u - (zero >> 1) * sub_scale) * 0x01010101u;
  const uint32_t bias_up = (128u - (zero - (zero >> 1)) * sub_scale) * 0x01010101u;
  uint32_t codes[4];
  JoinPlanes(high, low, codes);
#pragma unroll
  for (int f = 0; f < 4; ++f) {
    const uint32_t half = (codes[f] >> 1) & kHalf;
    down[f] = half * sub_scale + bias_down;
    up[f] = (codes[f] - half) * sub_scale + bias_up;
  }
}

}  // namespace fewbit::cuda
