// Embedding rows at 8 bits: symmetric, one float scale per row.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/matrix.h"

namespace fewbit {

struct Int8Storage {
  std::vector<uint8_t> codes;  // [rows, cols]
  std::vector<float> scales;   // [rows]
};

// code = 128 + round(w / scale), scale = max |w| of the row / 127; a row of zeros has scale 0.
// INVALID_ARGUMENT when a weight is NaN or infinite.
absl::StatusOr<Int8Storage> RoundToInt8(const DenseMatrix& matrix);

// INVALID_ARGUMENT names the row with a NaN or an infinity.
absl::Status CheckFinite(const DenseMatrix& matrix);

}  // namespace fewbit
