#include "runtime/quantize/tile_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/quant_pack.h"

namespace fewbit {
namespace {

constexpr int kSubScales = quant::kMaxSubScale + 1;

// Where the best step of a strip lies, as a fraction of its largest |weight|: at 2 bits the
// outermost level is 1.5 steps, at 4 bits 7.5. Small fractions serve strips in which the largest
// weight counts little.
constexpr float kStepFractions[] = {0.10f, 0.16f, 0.22f, 0.28f, 0.33f, 0.38f, 0.42f, 0.46f,
                                    0.50f, 0.54f, 0.58f, 0.62f, 0.66f, 0.70f, 0.75f};
constexpr int kNumStepFractions = std::size(kStepFractions);

constexpr float kDRatios[] = {0.40f, 0.50f, 0.58f, 0.65f, 0.71f, 0.76f, 0.81f, 0.86f,
                              0.90f, 0.94f, 0.98f, 1.02f, 1.06f, 1.11f, 1.17f};
constexpr int kRefits = 3;

float LargestMagnitude(const float* w, const float* h, int lane) {
  float largest = 0.0f;
  for (int k = 0; k < kGroup; ++k) {
    if (h[k * kLanes + lane] > 0.0f) largest = std::max(largest, std::abs(w[k * kLanes + lane]));
  }
  return largest;
}

// Given fit->d, finds the best sub-scale of every strip; totals[l] = the weighted error of the row.
void SearchSubScales(const LaneKernels& kernels, const TileBlock& block, TileFit* fit,
                     float* totals) {
  alignas(64) float steps[kSubScales * kLanes];
  alignas(64) float errors[kSubScales * kLanes];
  for (int s = 0; s < kSubScales; ++s) {
    for (int l = 0; l < kLanes; ++l) steps[s * kLanes + l] = static_cast<float>(s) * fit->d[l];
  }
  std::fill(totals, totals + kLanes, 0.0f);
  for (int g = 0; g < block.strips; ++g) {
    kernels.symmetric_errors(block.bits, block.w[g], block.h[g], steps, kSubScales, errors);
    for (int l = 0; l < kLanes; ++l) {
      int best = 0;
      for (int s = 1; s < kSubScales; ++s) {
        if (errors[s * kLanes + l] < errors[best * kLanes + l]) best = s;
      }
      fit->sub[g][l] = static_cast<uint8_t>(best);
      totals[l] += errors[best * kLanes + l];
    }
  }
}

void KeepBetterRows(const TileFit& candidate, const float* totals, int strips, TileFit* best,
                    float* best_totals) {
  for (int l = 0; l < kLanes; ++l) {
    if (!(totals[l] < best_totals[l])) continue;
    best_totals[l] = totals[l];
    best->d[l] = candidate.d[l];
    best->stored[l] = candidate.stored[l];
    for (int g = 0; g < strips; ++g) best->sub[g][l] = candidate.sub[g][l];
  }
}

// The least-squares d of each row for the codes and sub-scales of `fit`.
void LeastSquaresD(const TileBlock& block, const TileFit& fit, float* d) {
  float numerator[kLanes] = {};
  float denominator[kLanes] = {};
  for (int g = 0; g < block.strips; ++g) {
    for (int l = 0; l < kLanes; ++l) {
      const float sub = fit.sub[g][l];
      const float step = fit.step(g, l);
      for (int k = 0; k < kGroup; ++k) {
        const float w = block.w[g][k * kLanes + l];
        const float h = block.h[g][k * kLanes + l];
        const float level = sub * CodeWeight(block.bits, NearestCode(block.bits, w, step), 1.0f);
        numerator[l] += h * w * level;
        denominator[l] += h * level * level;
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    d[l] = denominator[l] > 0.0f ? numerator[l] / denominator[l] : 0.0f;
  }
}

struct MinMax {
  float step = 0.0f;
  int zero = 0;
};

// Leaves out outliers (h = 0) and channel `without`.
MinMax MinMaxOf(int bits, const float* w, const float* h, int lane, int without) {
  const int levels = (1 << bits) - 1;
  float low = 0.0f;
  float high = 0.0f;
  for (int k = 0; k < kGroup; ++k) {
    if (h[k * kLanes + lane] <= 0.0f || k == without) continue;
    low = std::min(low, w[k * kLanes + lane]);
    high = std::max(high, w[k * kLanes + lane]);
  }
  MinMax result;
  result.step = (high - low) / static_cast<float>(levels);
  if (result.step > 0.0f) {
    result.zero = std::clamp(static_cast<int>(std::lround(-low / result.step)), 0, levels);
  }
  return result;
}

int RoundedSubScale(float step, float d) {
  if (!(step > 0.0f) || !(d > 0.0f)) return 0;
  const float ratio = std::min(step / d, static_cast<float>(quant::kMaxSubScale));
  return std::clamp(static_cast<int>(std::lround(ratio)), 1, quant::kMaxSubScale);
}

float MinMaxError(int bits, const float* w, const float* h, int lane, const MinMax& range,
                  int without) {
  float sum = 0.0f;
  for (int k = 0; k < kGroup; ++k) {
    if (k == without) continue;
    const float value = w[k * kLanes + lane];
    const int code = NearestCode(bits, value, range.step, range.zero);
    const float error = value - CodeWeight(bits, code, range.step, range.zero);
    sum += h[k * kLanes + lane] * error * error;
  }
  return sum;
}

// The channel with the largest sign * weight among those that are no outliers (0 if all are).
int Extreme(const float* w, const float* h, int lane, float sign) {
  int best = 0;
  float largest = -std::numeric_limits<float>::infinity();
  for (int k = 0; k < kGroup; ++k) {
    if (h[k * kLanes + lane] <= 0.0f || sign * w[k * kLanes + lane] <= largest) continue;
    largest = sign * w[k * kLanes + lane];
    best = k;
  }
  return best;
}

int WorstCode(const TileBlock& block, int strip, int lane, const MinMax& range) {
  int worst = 0;
  float largest = -1.0f;
  for (int k = 0; k < kGroup; ++k) {
    const float value = block.w[strip][k * kLanes + lane];
    const int code = NearestCode(block.bits, value, range.step, range.zero);
    const float error = value - CodeWeight(block.bits, code, range.step, range.zero);
    const float weighted = block.h[strip][k * kLanes + lane] * error * error;
    if (weighted <= largest) continue;
    largest = weighted;
    worst = k;
  }
  return worst;
}

}  // namespace

void TileFit::SetD(int lane, float wanted) {
  stored[lane] = quant::FloatToHalf(wanted * quant::kStoredSecondOrderFactor);
  d[lane] = quant::HalfToFloat(stored[lane]) / quant::kStoredSecondOrderFactor;
}

int NearestCode(int bits, float value, float step) {
  const int half = 1 << (bits - 1);
  if (!(step > 0.0f)) return half;
  const float cell = std::floor(value / step);
  const float limit = static_cast<float>(half);
  return static_cast<int>(std::clamp(cell, -limit, limit - 1.0f)) + half;
}

int NearestCode(int bits, float value, float step, int zero) {
  const float levels = static_cast<float>((1 << bits) - 1);
  if (!(step > 0.0f)) return zero;
  return static_cast<int>(
      std::clamp(std::round(value / step) + static_cast<float>(zero), 0.0f, levels));
}

void BestFreeStep(const LaneKernels& kernels, int bits, const float* w, const float* h,
                  float* steps, float* errors) {
  alignas(64) float candidates[kNumStepFractions * kLanes];
  alignas(64) float all[kNumStepFractions * kLanes];
  const float to_step = bits == 2 ? 1.0f : 1.5f / 7.5f;
  for (int l = 0; l < kLanes; ++l) {
    const float largest = LargestMagnitude(w, h, l) * to_step;
    for (int c = 0; c < kNumStepFractions; ++c) {
      candidates[c * kLanes + l] = kStepFractions[c] * largest;
    }
  }
  kernels.symmetric_errors(bits, w, h, candidates, kNumStepFractions, all);
  for (int l = 0; l < kLanes; ++l) {
    int best = 0;
    for (int c = 1; c < kNumStepFractions; ++c) {
      if (all[c * kLanes + l] < all[best * kLanes + l]) best = c;
    }
    steps[l] = candidates[best * kLanes + l];
    errors[l] = all[best * kLanes + l];
  }
}

void FitSearched(const LaneKernels& kernels, const TileBlock& block, TileFit* fit) {
  float base[kLanes] = {};
  for (int g = 0; g < block.strips; ++g) {
    float steps[kLanes];
    float errors[kLanes];
    BestFreeStep(kernels, block.bits, block.w[g], block.h[g], steps, errors);
    for (int l = 0; l < kLanes; ++l) {
      base[l] = std::max(base[l], steps[l] / static_cast<float>(quant::kMaxSubScale));
    }
  }
  *fit = TileFit{};
  TileFit candidate{};
  float totals[kLanes];
  float best_totals[kLanes];
  std::fill(best_totals, best_totals + kLanes, std::numeric_limits<float>::infinity());
  for (const float ratio : kDRatios) {
    for (int l = 0; l < kLanes; ++l) candidate.SetD(l, base[l] * ratio);
    SearchSubScales(kernels, block, &candidate, totals);
    KeepBetterRows(candidate, totals, block.strips, fit, best_totals);
  }
  for (int round = 0; round < kRefits; ++round) {
    float d[kLanes];
    LeastSquaresD(block, *fit, d);
    for (int l = 0; l < kLanes; ++l) candidate.SetD(l, d[l]);
    SearchSubScales(kernels, block, &candidate, totals);
    KeepBetterRows(candidate, totals, block.strips, fit, best_totals);
  }
}

void FitMinMax(const TileBlock& block, TileFit* fit) {
  *fit = TileFit{};
  for (int l = 0; l < kLanes; ++l) {
    float steps[kMaxTileStrips] = {};
    float largest = 0.0f;
    for (int g = 0; g < block.strips; ++g) {
      const MinMax range = MinMaxOf(block.bits, block.w[g], block.h[g], l, -1);
      steps[g] = range.step;
      fit->zero[g][l] = static_cast<uint8_t>(range.zero);
      largest = std::max(largest, range.step);
    }
    fit->SetD(l, largest / static_cast<float>(quant::kMaxSubScale));
    for (int g = 0; g < block.strips; ++g) {
      fit->sub[g][l] = static_cast<uint8_t>(RoundedSubScale(steps[g], fit->d[l]));
    }
  }
}

void MinMaxErrors(int bits, const float* w, const float* h, float* errors) {
  for (int l = 0; l < kLanes; ++l) {
    errors[l] = MinMaxError(bits, w, h, l, MinMaxOf(bits, w, h, l, -1), -1);
  }
}

void FindOutliersSearched(const LaneKernels& kernels, const TileBlock& block, const TileFit& fit,
                          int strip, BestOutlier* best) {
  alignas(64) float steps[kSubScales * kLanes];
  alignas(64) float gains[kGroup * kLanes];
  for (int s = 0; s < kSubScales; ++s) {
    for (int l = 0; l < kLanes; ++l) steps[s * kLanes + l] = static_cast<float>(s) * fit.d[l];
  }
  kernels.symmetric_gains(block.w[strip], block.h[strip], steps, kSubScales, gains);
  *best = BestOutlier{};
  for (int k = 0; k < kGroup; ++k) {
    for (int l = 0; l < kLanes; ++l) {
      if (gains[k * kLanes + l] <= best->gain[l]) continue;
      best->gain[l] = gains[k * kLanes + l];
      best->channel[l] = static_cast<uint8_t>(k);
    }
  }
}

void FindOutliersMinMax(const TileBlock& block, const TileFit& fit, int strip, BestOutlier* best) {
  *best = BestOutlier{};
  const float* w = block.w[strip];
  const float* h = block.h[strip];
  for (int l = 0; l < kLanes; ++l) {
    const MinMax now{fit.step(strip, l), fit.zero[strip][l]};
    const float error = MinMaxError(block.bits, w, h, l, now, -1);
    // Any other channel leaves the range as it is and takes only its own error away.
    for (const int k :
         {Extreme(w, h, l, -1.0f), Extreme(w, h, l, 1.0f), WorstCode(block, strip, l, now)}) {
      if (h[k * kLanes + l] <= 0.0f) continue;
      MinMax without = MinMaxOf(block.bits, w, h, l, k);
      without.step = static_cast<float>(RoundedSubScale(without.step, fit.d[l])) * fit.d[l];
      const float gain = error - MinMaxError(block.bits, w, h, l, without, k);
      if (gain <= best->gain[l]) continue;
      best->gain[l] = gain;
      best->channel[l] = static_cast<uint8_t>(k);
    }
  }
}

}  // namespace fewbit
