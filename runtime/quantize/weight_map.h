// Where the bits of a quantized checkpoint are: per matrix, which strips have 4 bits and where its
// outliers lie, read from the files.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/weights/checkpoint.h"

namespace fewbit {

struct WeightMap {
  int rows = 0;
  int64_t weights = 0;
  int64_t bytes = 0;              // tiles, strip order, outliers and their starts
  std::vector<bool> four_bits;    // [K / 16] by source strip: its 16 input channels have 4 bits
  std::vector<int64_t> outliers;  // [K / 16] likewise
  int64_t total_outliers() const;
  double bits() const { return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights); }
};

// [layer * kNumLinearRoles + role], a layer at a time. FAILED_PRECONDITION: the checkpoint is not
// quantized; the errors of CheckpointReader::Layer.
absl::StatusOr<std::vector<WeightMap>> ReadWeightMaps(const CheckpointReader& reader);

}  // namespace fewbit
