// A packed linear layer taken apart into what tuning changes (scales, outlier values) and what it
// keeps (codes, order, places), and put together again.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/quant_pack.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// Host side of ScaledMatrix; same arrays, same order.
struct HostScaledMatrix {
  quant::UnpackedMatrix source;  // codes, strip order, places of outliers
  int rows = 0;
  int cols = 0;
  int tiles = 0;
  std::vector<int8_t> levels;
  std::vector<int32_t> tile_of_strip;
  std::vector<float> sub_scales;
  std::vector<float> second_order;
  std::vector<int32_t> outlier_at;
  std::vector<float> outliers;
};

HostScaledMatrix TakeApart(const quant::PackedMatrix& matrix);

// Back into the layout, with the scales and outlier values at hand, rounded as ScaledMatrix says.
quant::PackedStorage PutTogether(const HostScaledMatrix& matrix);

}  // namespace fewbit::tune
