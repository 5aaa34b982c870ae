// Scales of one tile: the second-order d of each row and the 4-bit sub-scale of each (row, strip),
// for 16 rows side by side.
#pragma once

#include <cstdint>

#include "runtime/quantize/lane_kernels.h"

namespace fewbit {

inline constexpr int kMaxTileStrips = 32;

// The weights of one tile of one row block. Thread rule: plain data, one thread at a time.
struct TileBlock {
  int bits = 2;
  int strips = 0;  // real strips; padding has no weights
  // [strip][channel][row]: weights, and Hessian diagonal with 0 exactly where an outlier takes
  // over.
  alignas(64) float w[kMaxTileStrips][kGroup * kLanes];
  alignas(64) float h[kMaxTileStrips][kGroup * kLanes];
};

struct TileFit {
  float d[kLanes];          // exactly what is stored: fp16(64 d) / 64
  uint16_t stored[kLanes];  // fp16 bits of 64 d
  uint8_t sub[kMaxTileStrips][kLanes];
  uint8_t zero[kMaxTileStrips][kLanes];  // min-max only

  // d as it can be stored.
  void SetD(int lane, float wanted);
  float step(int strip, int lane) const { return static_cast<float>(sub[strip][lane]) * d[lane]; }
};

// Symmetric levels. Searches d and the sub-scales together for the least sum of h * (error)^2 of
// each row: a line search over d with the best sub-scale of every strip at each point, then
// least-squares updates of d for the codes found.
void FitSearched(const LaneKernels& kernels, const TileBlock& block, TileFit* fit);

// Asymmetric min-max (arXiv 2311.16442): step = (max - min) / (2^bits - 1) over the weights that
// are no outliers, range including 0; d = the largest step of the row's tile / 15.
void FitMinMax(const TileBlock& block, TileFit* fit);

// errors[l]: the least sum of h * (error)^2 of a strip over a grid of steps, symmetric levels;
// steps[l]: where it is.
void BestFreeStep(const LaneKernels& kernels, int bits, const float* w, const float* h,
                  float* steps, float* errors);

// errors[l]: sum of h * (error)^2 of a strip under unrounded min-max scales, 2 or 4 bits.
void MinMaxErrors(int bits, const float* w, const float* h, float* errors);

// For each row of strip `strip` the channel whose removal lowers the weighted error most, and by
// how much. gain 0: none.
struct BestOutlier {
  float gain[kLanes];
  uint8_t channel[kLanes];
};
void FindOutliersSearched(const LaneKernels& kernels, const TileBlock& block, const TileFit& fit,
                          int strip, BestOutlier* best);
void FindOutliersMinMax(const TileBlock& block, const TileFit& fit, int strip, BestOutlier* best);

// The code nearest to `value`, and the weight that a code stands for.
int NearestCode(int bits, float value, float step);            // symmetric
int NearestCode(int bits, float value, float step, int zero);  // with a zero-point
inline float CodeWeight(int bits, int code, float step) {
  return (static_cast<float>(code) - 0.5f * static_cast<float>((1 << bits) - 1)) * step;
}
inline float CodeWeight(int /*bits*/, int code, float step, int zero) {
  return static_cast<float>(code - zero) * step;
}

}  // namespace fewbit
