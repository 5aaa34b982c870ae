#include "runtime/tune/scale_refit.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/quant_pack.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {
namespace {

// One strip of a row: the scale it wants, and what a difference from it costs.
struct Wanted {
  int strip = 0;
  double scale = 0.0;   // s * d
  double weight = 0.0;  // sum of the squared levels
};

struct Fit {
  double second_order = 0.0;
  double error = 0.0;
};

double Nearest(double scale, double second_order) {
  if (second_order <= 0.0) return 0.0;
  return std::clamp(std::nearbyint(scale / second_order), 0.0,
                    static_cast<double>(quant::kMaxSubScale));
}

double ErrorOf(const std::vector<Wanted>& tile, double second_order) {
  double error = 0.0;
  for (const Wanted& w : tile) {
    const double e = Nearest(w.scale, second_order) * second_order - w.scale;
    error += w.weight * e * e;
  }
  return error;
}

// Least squares for the sub-scales that are nearest at `second_order`.
double Improved(const std::vector<Wanted>& tile, double second_order) {
  double product = 0.0, square = 0.0;
  for (const Wanted& w : tile) {
    const double s = Nearest(w.scale, second_order);
    product += w.weight * s * w.scale;
    square += w.weight * s * s;
  }
  return square > 0.0 ? product / square : second_order;
}

// As the file stores it.
double Stored(double second_order) {
  const auto scaled = static_cast<float>(second_order * quant::kStoredSecondOrderFactor);
  return quant::HalfToFloat(quant::FloatToHalf(scaled)) / quant::kStoredSecondOrderFactor;
}

double BestSecondOrder(const std::vector<Wanted>& tile, double now) {
  double largest = 0.0;
  for (const Wanted& w : tile) largest = std::max(largest, w.scale);
  Fit best{Stored(now), ErrorOf(tile, Stored(now))};
  constexpr double kFirstSteps = 7.0, kLastSteps = 16.0, kStride = 0.25;
  for (double steps = kFirstSteps; steps <= kLastSteps; steps += kStride) {
    const double d = Stored(Improved(tile, largest / steps));
    if (const double error = ErrorOf(tile, d); error < best.error) best = {d, error};
  }
  return best.second_order;
}

void RefitRow(const ScaledMatrix& matrix, int row, float* sub_scales, float* second_order) {
  const int strips = matrix.cols / quant::kStripChannels;
  std::vector<std::vector<Wanted>> tiles(static_cast<size_t>(matrix.tiles));
  for (int g = 0; g < strips; ++g) {
    const int tile = matrix.tile_of_strip[g];
    Wanted wanted{.strip = g, .scale = double{sub_scales[g]} * second_order[tile]};
    const int8_t* levels =
        matrix.levels + static_cast<size_t>(row) * matrix.cols + g * quant::kStripChannels;
    for (int k = 0; k < quant::kStripChannels; ++k) wanted.weight += levels[k] * levels[k];
    tiles[static_cast<size_t>(tile)].push_back(wanted);
  }
  for (int t = 0; t < matrix.tiles; ++t) {
    const double d = BestSecondOrder(tiles[static_cast<size_t>(t)], second_order[t]);
    for (const Wanted& w : tiles[static_cast<size_t>(t)]) {
      sub_scales[w.strip] = static_cast<float>(Nearest(w.scale, d));
    }
    second_order[t] = static_cast<float>(d);
  }
}

}  // namespace

void RefitScales(const TunedLayer& layer, std::span<float> values) {
  for (const TunedLayout::Linear& linear : layer.layout.linears) {
    const ScaledMatrix matrix =
        ScaledMatrixAt(linear, layer.fixed.data(), layer.values.data(), false);
    const int strips = linear.cols / quant::kStripChannels;
    for (int row = 0; row < linear.rows; ++row) {
      RefitRow(matrix, row, values.data() + linear.sub_scales + int64_t{row} * strips,
               values.data() + linear.second_order + int64_t{row} * linear.tiles);
    }
  }
}

}  // namespace fewbit::tune
