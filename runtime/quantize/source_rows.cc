#include "runtime/quantize/source_rows.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/quant_layout.h"

namespace fewbit {
namespace {

constexpr float kLargestHalf = 65504.0f;

}  // namespace

void LoadRowBlock(const Matrix& matrix, int row_block, std::vector<float>* rows) {
  const int num_rows = MatrixRows(matrix), cols = MatrixCols(matrix);
  rows->resize(static_cast<size_t>(cols) * kLanes);
  std::vector<float> row(cols);
  for (int l = 0; l < kLanes; ++l) {
    const int r = row_block * quant::kBlockRows + l;
    if (r < num_rows) {
      cpu::DequantizeRow(matrix, r, row.data());
    } else {
      std::fill(row.begin(), row.end(), 0.0f);
    }
    for (int k = 0; k < cols; ++k) (*rows)[static_cast<size_t>(k) * kLanes + l] = row[k];
  }
}

absl::Status CheckWeights(const std::string& name, const Matrix& matrix) {
  // d is at most the largest step / 15, a step at most the range of a group / 3.
  const float limit = kLargestHalf / quant::kStoredSecondOrderFactor * quant::kMaxSubScale;
  std::vector<float> row(MatrixCols(matrix));
  for (int r = 0; r < MatrixRows(matrix); ++r) {
    cpu::DequantizeRow(matrix, r, row.data());
    for (int k = 0; k < MatrixCols(matrix); ++k) {
      const float w = row[k];
      if (std::abs(w) <= limit) continue;
      const char* what = std::isnan(w) ? "NaN" : std::isinf(w) ? "infinite" : "";
      if (*what != '\0') {
        return absl::InvalidArgumentError(
            absl::StrCat(name, ": weight [", r, ", ", k, "] is ", what));
      }
      return absl::InvalidArgumentError(absl::StrCat(name, ": weight [", r, ", ", k, "] is ", w,
                                                     ", beyond the format's limit of ", limit));
    }
  }
  return absl::OkStatus();
}

}  // namespace fewbit
