// Shared memory of the lists of outliers of a block's rows (device/outlier_rows.cuh).
#pragma once

#include "kernels/cuda/device_tile.h"

namespace fewbit::cuda {

// Entries that are fetched ahead; more are read from global memory.
inline constexpr int kOutlierWindow = 640;

// Where the lists of `rows` rows begin and the last one ends, for one unit; whole vectors of four.
constexpr int OutlierStartWords(int rows) { return kSegments * rows + 4; }

constexpr int OutlierListBytes(int rows) {
  return 4 * (2 * OutlierStartWords(rows) + kOutlierWindow);
}

}  // namespace fewbit::cuda
