#include "runtime/quantize/source_rows.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/quant_layout.h"
#include "runtime/products/pieces.h"

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

absl::Status CheckWeights(const std::string& name, const Matrix& matrix, ThreadTeam* team) {
  // d is at most the largest step / 15, a step at most the range of a group / 3.
  const float limit = kLargestHalf / quant::kStoredSecondOrderFactor * quant::kMaxSubScale;
  const int rows = MatrixRows(matrix), cols = MatrixCols(matrix);
  std::atomic<int> first_bad{rows};
  const auto bad_column = [&](const std::vector<float>& row) {
    const auto bad =
        std::find_if(row.begin(), row.end(), [limit](float w) { return !(std::abs(w) <= limit); });
    return static_cast<int>(bad - row.begin());
  };
  ForPieces(team, rows, RowsPerPiece(cols), [&](int, int64_t begin, int64_t end) {
    std::vector<float> row(cols);
    for (int r = static_cast<int>(begin); r < end; ++r) {
      cpu::DequantizeRow(matrix, r, row.data());
      if (bad_column(row) == cols) continue;
      int seen = first_bad.load();
      while (r < seen && !first_bad.compare_exchange_weak(seen, r)) {
      }
    }
  });
  const int r = first_bad.load();
  if (r == rows) return absl::OkStatus();
  std::vector<float> row(cols);
  cpu::DequantizeRow(matrix, r, row.data());
  const int k = bad_column(row);
  const char* what = std::isnan(row[k]) ? "NaN" : std::isinf(row[k]) ? "infinite" : "";
  if (*what != '\0') {
    return absl::InvalidArgumentError(absl::StrCat(name, ": weight [", r, ", ", k, "] is ", what));
  }
  return absl::InvalidArgumentError(absl::StrCat(name, ": weight [", r, ", ", k, "] is ", row[k],
                                                 ", beyond the format's limit of ", limit));
}

}  // namespace fewbit
