#include "runtime/quantize/code_descent.h"

#include <algorithm>
#include <cmath>

#include "kernels/quant_layout.h"
#include "kernels/quant_pack.h"
#include "runtime/quantize/error_feedback.h"

namespace fewbit {

// Of one row block. `slope` is H (w^ - w), half the gradient.
struct CodeDescent::State {
  EncodedBlock* block = nullptr;
  std::vector<float> slope;  // [K source channels][16 rows]

  float* SlopeOf(int source) { return slope.data() + static_cast<size_t>(source) * kLanes; }
};

namespace {

// The weight that a code stands for at step 1.
inline float Level(int bits, int code) {
  return static_cast<float>(code) - 0.5f * static_cast<float>((1 << bits) - 1);
}

}  // namespace

CodeDescent::CodeDescent(const std::vector<float>& hessian, std::span<const StripPlace> places,
                         const LaneKernels& kernels)
    : hessian_(hessian),
      places_(places),
      kernels_(kernels),
      size_(static_cast<int>(places.size()) * kGroup) {
  double mean = 0.0;
  for (int i = 0; i < size_; ++i) mean += Row(i)[i];
  damping_ = static_cast<float>(kHessianDamping * (mean > 0.0 ? mean / size_ : 1.0));
}

// The weights of channel k of the strip at channel `source` have changed by `change` [16 rows]:
// what that does to the strip's own slopes.
void CodeDescent::SpreadInStrip(int source, int k, const float* change, State* state) const {
  float negative[kLanes];
  bool any = false;
  for (int l = 0; l < kLanes; ++l) {
    negative[l] = -change[l];
    any |= change[l] != 0.0f;
  }
  if (!any) return;
  kernels_.subtract_outer(state->SlopeOf(source), negative, Row(source + k) + source, kGroup);
  float* own = state->SlopeOf(source + k);
  for (int l = 0; l < kLanes; ++l) own[l] += damping_ * change[l];
}

// What the changes of a strip's channels [16 channels][16 rows] do to the slopes of all others, in
// one pass over them.
void CodeDescent::SpreadStrip(int source, const float* changes, State* state) const {
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
    before[count] = Row(source + k);
    after[count] = Row(source + k) + source + kGroup;
    if (any) ++count;
  }
  kernels_.subtract_outers(state->SlopeOf(0), negative, before, count, source);
  const int rest = size_ - source - kGroup;
  kernels_.subtract_outers(state->SlopeOf(source + kGroup), negative, after, count, rest);
}

// Both, for changes that no slope was asked between.
void CodeDescent::Spread(int source, const float* changes, State* state) const {
  for (int k = 0; k < kGroup; ++k) SpreadInStrip(source, k, changes + k * kLanes, state);
  SpreadStrip(source, changes, state);
}

// The best step of a strip for its codes, rounded to the grid of its d.
void CodeDescent::MoveSubScale(int strip, State* state) const {
  const StripPlace& place = places_[strip];
  TileFit& fit = state->block->fits[place.fit];
  float level[kGroup][kLanes], along[kLanes] = {}, bend[kLanes] = {}, move[kLanes];
  for (int k = 0; k < kGroup; ++k) {
    const float* slope = state->SlopeOf(place.source + k);
    for (int l = 0; l < kLanes; ++l) {
      const size_t i = EncodedBlock::Index(strip, k, l);
      level[k][l] = state->block->is_outlier[i] ? 0.0f : Level(place.bits, state->block->codes[i]);
      along[l] += level[k][l] * slope[l];
    }
  }
  for (int k = 0; k < kGroup; ++k) {
    const float* row = Row(place.source + k) + place.source;
    for (int j = 0; j < kGroup; ++j) {
      const float h = row[j] + (j == k ? damping_ : 0.0f);
      for (int l = 0; l < kLanes; ++l) bend[l] += h * level[k][l] * level[j][l];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    move[l] = 0.0f;
    const float d = fit.d[l];
    if (!(d > 0.0f) || !(bend[l] > 0.0f)) continue;
    uint8_t& sub = fit.sub[place.strip_in_tile][l];
    const float wanted = static_cast<float>(sub) - along[l] / (bend[l] * d);
    const int best = static_cast<int>(
        std::lround(std::clamp(wanted, 0.0f, static_cast<float>(quant::kMaxSubScale))));
    move[l] = static_cast<float>(best - sub) * d;
    sub = static_cast<uint8_t>(best);
  }
  float changes[kGroup * kLanes];
  for (int k = 0; k < kGroup; ++k) {
    for (int l = 0; l < kLanes; ++l) {
      changes[k * kLanes + l] = move[l] * level[k][l];
      state->block->values[EncodedBlock::Index(strip, k, l)] += changes[k * kLanes + l];
    }
  }
  Spread(place.source, changes, state);
}

void CodeDescent::MoveCodes(int strip, State* state) const {
  const StripPlace& place = places_[strip];
  const TileFit& fit = state->block->fits[place.fit];
  float changes[kGroup * kLanes];
  for (int k = 0; k < kGroup; ++k) {
    const float inverse = 1.0f / (Row(place.source + k)[place.source + k] + damping_);
    const float* slope = state->SlopeOf(place.source + k);
    float* change = changes + k * kLanes;
    for (int l = 0; l < kLanes; ++l) {
      const size_t i = EncodedBlock::Index(strip, k, l);
      float& value = state->block->values[i];
      const float wanted = value - slope[l] * inverse;
      float next = wanted;
      if (!state->block->is_outlier[i]) {
        const float step = fit.step(place.strip_in_tile, l);
        const int code = NearestCode(place.bits, wanted, step);
        state->block->codes[i] = static_cast<uint8_t>(code);
        next = CodeWeight(place.bits, code, step);
      }
      change[l] = next - value;
      value = next;
    }
    SpreadInStrip(place.source, k, change, state);
  }
  SpreadStrip(place.source, changes, state);
}

// The best d of each row of a tile for its codes and sub-scales.
void CodeDescent::MoveTileScales(int fit_index, int first_strip, int last_strip,
                                 State* state) const {
  TileFit& fit = state->block->fits[fit_index];
  const int channels = (last_strip - first_strip) * kGroup;
  std::vector<float> direction(static_cast<size_t>(channels) * kLanes);
  float along[kLanes] = {}, bend[kLanes] = {}, move[kLanes];
  const auto source_of = [&](int i) {
    return places_[first_strip + i / kGroup].source + i % kGroup;
  };
  for (int i = 0; i < channels; ++i) {
    const StripPlace& place = places_[first_strip + i / kGroup];
    const float* slope = state->SlopeOf(source_of(i));
    for (int l = 0; l < kLanes; ++l) {
      const size_t at = EncodedBlock::Index(first_strip, i, l);
      const float value = state->block->is_outlier[at]
                              ? 0.0f
                              : Level(place.bits, state->block->codes[at]) *
                                    static_cast<float>(fit.sub[place.strip_in_tile][l]);
      direction[static_cast<size_t>(i) * kLanes + l] = value;
      along[l] += value * slope[l];
    }
  }
  for (int i = 0; i < channels; ++i) {
    const float* row = Row(source_of(i));
    float sum[kLanes] = {};
    for (int j = 0; j < channels; ++j) {
      const float h = row[source_of(j)] + (j == i ? damping_ : 0.0f);
      const float* other = direction.data() + static_cast<size_t>(j) * kLanes;
      for (int l = 0; l < kLanes; ++l) sum[l] += h * other[l];
    }
    for (int l = 0; l < kLanes; ++l) {
      bend[l] += direction[static_cast<size_t>(i) * kLanes + l] * sum[l];
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    move[l] = 0.0f;
    if (!(bend[l] > 0.0f)) continue;
    const float wanted = fit.d[l] - along[l] / bend[l];
    if (!(wanted > 0.0f)) continue;
    const float old = fit.d[l];
    fit.SetD(l, wanted);
    move[l] = fit.d[l] - old;
  }
  float changes[kGroup * kLanes];
  for (int i = 0; i < channels; ++i) {
    float* change = changes + i % kGroup * kLanes;
    for (int l = 0; l < kLanes; ++l) {
      change[l] = move[l] * direction[static_cast<size_t>(i) * kLanes + l];
      state->block->values[EncodedBlock::Index(first_strip, i, l)] += change[l];
    }
    if (i % kGroup == kGroup - 1) Spread(source_of(i - kGroup + 1), changes, state);
  }
}

void CodeDescent::Run(const std::vector<float>& weights, int sweeps, Descent moves,
                      EncodedBlock* block) const {
  State state{.block = block, .slope = std::vector<float>(static_cast<size_t>(size_) * kLanes)};
  const int strips = static_cast<int>(places_.size());
  float errors[kGroup * kLanes];
  for (int strip = 0; strip < strips; ++strip) {
    for (int k = 0; k < kGroup; ++k) {
      const int source = places_[strip].source + k;
      for (int l = 0; l < kLanes; ++l) {
        errors[k * kLanes + l] = block->values[EncodedBlock::Index(strip, k, l)] -
                                 weights[static_cast<size_t>(source) * kLanes + l];
      }
    }
    Spread(places_[strip].source, errors, &state);
  }
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    for (int begin = 0; begin < strips;) {
      int end = begin;
      for (; end < strips && places_[end].fit == places_[begin].fit; ++end) {
        MoveSubScale(end, &state);
        if (moves == Descent::kCodesAndScales) MoveCodes(end, &state);
      }
      MoveTileScales(places_[begin].fit, begin, end, &state);
      begin = end;
    }
  }
}

}  // namespace fewbit
