#include "runtime/models/rope.h"

#include <cmath>
#include <numbers>

namespace fewbit {
namespace {

constexpr int32_t kLowPositions = 256;

// Frequencies whose wave is long against the original context are slowed down by the factor, short
// waves stay, and those between are blended (Llama 3.1).
double Llama3Frequency(double frequency, const RopeSpec& rope) {
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  const double longest = rope.original_max_positions / rope.low_freq_factor;
  const double shortest = rope.original_max_positions / rope.high_freq_factor;
  if (wavelength > longest) return frequency / rope.factor;
  if (wavelength < shortest) return frequency;
  const double keep = (rope.original_max_positions / wavelength - rope.low_freq_factor) /
                      (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - keep) * frequency / rope.factor + keep * frequency;
}

}  // namespace

std::vector<double> RopeFrequencies(const RopeSpec& rope) {
  std::vector<double> frequencies(rope.rotary_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double frequency = std::pow(rope.theta, -2.0 * i / rope.rotary_dim);
    switch (rope.scaling) {
      case RopeScaling::kNone:
        frequencies[i] = frequency;
        break;
      case RopeScaling::kLinear:
        frequencies[i] = frequency / rope.factor;
        break;
      case RopeScaling::kLlama3:
        frequencies[i] = Llama3Frequency(frequency, rope);
        break;
    }
  }
  return frequencies;
}

RopeTable::RopeTable(const RopeSpec& rope, int32_t max_positions)
    : frequencies_(RopeFrequencies(rope)) {
  for (int32_t position = 0; position < kLowPositions; ++position) {
    for (const double f : frequencies_) {
      low_.push_back({std::cos(position * f), std::sin(position * f)});
    }
  }
  for (int32_t base = 0; base < max_positions; base += kLowPositions) {
    for (const double f : frequencies_) high_.push_back({std::cos(base * f), std::sin(base * f)});
  }
}

void RopeTable::Fill(int32_t position, float* cosines, float* sines) const {
  const Turn* low = low_.data() + position % kLowPositions * frequencies_.size();
  const Turn* high = high_.data() + position / kLowPositions * frequencies_.size();
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    cosines[i] = static_cast<float>(high[i].cosine * low[i].cosine - high[i].sine * low[i].sine);
    sines[i] = static_cast<float>(high[i].sine * low[i].cosine + high[i].cosine * low[i].sine);
  }
}

}  // namespace fewbit
