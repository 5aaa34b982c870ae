#include "runtime/quantize/code_descent.h"

#include <algorithm>
#include <cmath>

#include "kernels/quant_layout.h"

namespace fewbit {
namespace {

// The weight that a code stands for at step 1.
inline float Level(int bits, int code) {
  return static_cast<float>(code) - 0.5f * static_cast<float>((1 << bits) - 1);
}

}  // namespace

// The weights of channel k of a strip have changed by `change` [16 rows]: what that does to the
// strip's own slopes.
void CodeDescent::SpreadInStrip(int strip, int k, const float* change, DescentTile* tile) const {
  float negative[kLanes];
  bool any = false;
  for (int l = 0; l < kLanes; ++l) {
    negative[l] = -change[l];
    any |= change[l] != 0.0f;
  }
  if (!any) return;
  const int first = strip * kGroup;
  kernels_.subtract_outer(tile->slope + first * kLanes, negative, Row(first + k) + first, kGroup);
}

// What the changes of a strip's channels [16 channels][16 rows] do to the slopes of all others.
void CodeDescent::SpreadStrip(int strip, const float* changes, DescentTile* tile) const {
  const int first = strip * kGroup, end = first + kGroup;
  float negative[kGroup * kLanes];
  const float* before[kGroup];
  const float* after[kGroup];
  int count = 0;
  for (int k = 0; k < kGroup; ++k) {
    bool any = false;
    for (int l = 0; l < kLanes; ++l) {
      negative[count * kLanes + l] = -changes[k * kLanes + l];
      any |= changes[k * kLanes + l] != 0.0f;
    }
    before[count] = Row(first + k);
    after[count] = Row(first + k) + end;
    if (any) ++count;
  }
  kernels_.subtract_outers(tile->slope, negative, before, count, first);
  kernels_.subtract_outers(tile->slope + end * kLanes, negative, after, count, channels_ - end);
}

// The best step of a strip for its codes, rounded to the grid of its d. Adds to `changes`
// [16 channels][16 rows].
void CodeDescent::MoveSubScale(int strip, float* changes, DescentTile* tile) const {
  TileCodes& codes = tile->codes;
  const int first = strip * kGroup;
  float level[kGroup][kLanes], along[kLanes] = {}, bend[kLanes] = {};
  for (int k = 0; k < kGroup; ++k) {
    for (int l = 0; l < kLanes; ++l) {
      const int i = (first + k) * kLanes + l;
      level[k][l] = codes.is_outlier[i] != 0 ? 0.0f : Level(codes.bits, codes.codes[i]);
      along[l] += level[k][l] * tile->slope[i];
    }
  }
  for (int k = 0; k < kGroup; ++k) {
    const float* row = Row(first + k) + first;
    for (int j = 0; j < kGroup; ++j) {
      for (int l = 0; l < kLanes; ++l) bend[l] += row[j] * level[k][l] * level[j][l];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    const float d = tile->fit.d[l];
    if (!(d > 0.0f) || !(bend[l] > 0.0f)) continue;
    uint8_t& sub = tile->fit.sub[strip][l];
    const float wanted = static_cast<float>(sub) - along[l] / (bend[l] * d);
    sub = static_cast<uint8_t>(
        std::lround(std::clamp(wanted, 0.0f, static_cast<float>(quant::kMaxSubScale))));
  }
  for (int k = 0; k < kGroup; ++k) {
    float change[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int i = (first + k) * kLanes + l;
      const float next = codes.is_outlier[i] != 0 ? codes.values[i]
                                                  : codes.ValueOf(false, tile->fit, first + k, l);
      change[l] = next - codes.values[i];
      changes[k * kLanes + l] += change[l];
      codes.values[i] = next;
    }
    SpreadInStrip(strip, k, change, tile);
  }
}

void CodeDescent::MoveCodes(int strip, float* changes, DescentTile* tile) const {
  TileCodes& codes = tile->codes;
  for (int k = 0; k < kGroup; ++k) {
    const int channel = strip * kGroup + k;
    const float inverse = 1.0f / Row(channel)[channel];
    float change[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int i = channel * kLanes + l;
      float next = codes.values[i] - tile->slope[i] * inverse;
      if (codes.is_outlier[i] == 0) {
        const float step = tile->fit.step(strip, l);
        codes.codes[i] = static_cast<uint8_t>(NearestCode(codes.bits, next, step));
        next = CodeWeight(codes.bits, codes.codes[i], step);
      }
      change[l] = next - codes.values[i];
      changes[k * kLanes + l] += change[l];
      codes.values[i] = next;
    }
    SpreadInStrip(strip, k, change, tile);
  }
}

void CodeDescent::MoveStrips(Descent moves, DescentTile* tile) const {
  TileCodes& codes = tile->codes;
  for (int strip = 0; strip < channels_ / kGroup; ++strip) {
    float changes[kGroup * kLanes] = {};
    MoveSubScale(strip, changes, tile);
    if (moves == Descent::kCodesAndScales) MoveCodes(strip, changes, tile);
    SpreadStrip(strip, changes, tile);
    for (int i = 0; i < kGroup * kLanes; ++i) {
      tile->change[strip * kGroup * kLanes + i] += changes[i];
    }
  }
  for (int i = 0; i < channels_ * kLanes; ++i) {
    const int strip = i / kLanes / kGroup;
    tile->direction[i] = codes.is_outlier[i] != 0
                             ? 0.0f
                             : Level(codes.bits, codes.codes[i]) *
                                   static_cast<float>(tile->fit.sub[strip][i % kLanes]);
  }
}

void CodeDescent::MoveTileScales(DescentTile* tile) const {
  float along[kLanes] = {}, bend[kLanes] = {};
  for (int i = 0; i < channels_; ++i) {
    for (int l = 0; l < kLanes; ++l) {
      const int at = i * kLanes + l;
      along[l] += tile->direction[at] * tile->slope[at];
      bend[l] += tile->direction[at] * tile->bend[at];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    if (!(bend[l] > 0.0f)) continue;
    const float wanted = tile->fit.d[l] - along[l] / bend[l];
    if (wanted > 0.0f) tile->fit.SetD(l, wanted);
  }
  TileCodes& codes = tile->codes;
  for (int i = 0; i < channels_; ++i) {
    for (int l = 0; l < kLanes; ++l) {
      const int at = i * kLanes + l;
      if (codes.is_outlier[at] != 0) continue;
      const float next = codes.ValueOf(false, tile->fit, i, l);
      tile->change[at] += next - codes.values[at];
      codes.values[at] = next;
    }
  }
}

}  // namespace fewbit
