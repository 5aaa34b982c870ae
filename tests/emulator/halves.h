// 16-bit floats of the GPU: conversions with one rounding.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace fewbit::emulator {

struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

inline float ToFloat(F16 h) { return _cvtsh_ss(h.bits); }
inline float ToFloat(Bf16 h) { return std::bit_cast<float>(static_cast<uint32_t>(h.bits) << 16); }

// To nearest even.
inline F16 ToF16(float x) {
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
}
inline Bf16 ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// A double as the float that rounds to the same 16-bit float: inexact results become odd, which no
// later rounding to fewer bits takes for a tie (Boldo and Melquiond, "When double rounding is
// odd").
inline float RoundToOdd(double x) {
  const float nearest = static_cast<float>(x);
  if (static_cast<double>(nearest) == x || !std::isfinite(nearest)) return nearest;
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(x)) --bits;
  return std::bit_cast<float>(bits | 1);
}

}  // namespace fewbit::emulator
