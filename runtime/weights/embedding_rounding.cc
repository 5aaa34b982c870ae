#include "runtime/weights/embedding_rounding.h"

#include <algorithm>
#include <cmath>

#include "runtime/weights/tensor_values.h"
#include "runtime/weights/text.h"

namespace fewbit {
namespace {

// Calls visit(row, values) for every row as floats; stops at the first that is not finite.
template <typename Visit>
absl::Status VisitFiniteRows(const DenseMatrix& matrix, const Visit& visit) {
  Tensor row{.type = matrix.dtype == DType::kF32
                         ? TensorType::kF32
                         : (matrix.dtype == DType::kF16 ? TensorType::kF16 : TensorType::kBF16),
             .shape = {matrix.cols},
             .data = {}};
  const size_t row_bytes =
      static_cast<size_t>(matrix.cols) * static_cast<size_t>(TensorTypeBytes(row.type));
  std::vector<float> values(static_cast<size_t>(matrix.cols));
  for (int32_t r = 0; r < matrix.rows; ++r) {
    row.data = {static_cast<const uint8_t*>(matrix.data) + static_cast<size_t>(r) * row_bytes,
                row_bytes};
    ToFloats(row, values.data());
    if (const int64_t bad = FindNonFinite(values); bad >= 0) {
      return absl::InvalidArgumentError(StrCat("row ", r, ", column ", bad, " is NaN or infinite"));
    }
    visit(r, values);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Int8Storage> RoundToInt8(const DenseMatrix& matrix) {
  constexpr float kSteps = 127.0f;
  constexpr uint8_t kZeroCode = 128;
  Int8Storage storage;
  storage.codes.resize(static_cast<size_t>(matrix.rows) * static_cast<size_t>(matrix.cols));
  storage.scales.resize(static_cast<size_t>(matrix.rows));
  const absl::Status status =
      VisitFiniteRows(matrix, [&](int32_t row, const std::vector<float>& values) {
        float largest = 0.0f;
        for (const float value : values) largest = std::max(largest, std::fabs(value));
        const float scale = largest / kSteps;
        storage.scales[static_cast<size_t>(row)] = scale;
        uint8_t* codes = storage.codes.data() + static_cast<size_t>(row) * values.size();
        for (size_t i = 0; i < values.size(); ++i) {
          // A scale that underflows to zero stands for a row of zeros.
          const float steps = scale > 0.0f ? std::nearbyint(values[i] / scale) : 0.0f;
          codes[i] = static_cast<uint8_t>(kZeroCode +
                                          static_cast<int>(std::clamp(steps, -kSteps, kSteps)));
        }
      });
  if (!status.ok()) return status;
  return storage;
}

absl::Status CheckFinite(const DenseMatrix& matrix) {
  return VisitFiniteRows(matrix, [](int32_t, const std::vector<float>&) {});
}

}  // namespace fewbit
