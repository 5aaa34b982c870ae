#include "runtime/quantize/layer_quantizer.h"

#include "absl/strings/str_cat.h"
#include "kernels/cpu/linear.h"

namespace fewbit {

void LayerQuantizer::Load(const Matrix& matrix) {
  const int rows = MatrixRows(matrix);
  const size_t cols = MatrixCols(matrix);
  dense_.resize(rows * cols);
  team_->Run([&](int rank) {
    const Share share = ShareOf(rows, 1, rank, team_->size());
    for (int r = share.begin; r < share.end; ++r) {
      cpu::DequantizeRow(matrix, r, dense_.data() + r * cols);
    }
  });
}

absl::StatusOr<QuantizedMatrix> LayerQuantizer::Quantize(int layer, LinearRole role,
                                                         const Matrix& matrix,
                                                         const Hessian& hessian,
                                                         const MatrixSettings& settings) {
  Load(matrix);
  return QuantizeMatrix(absl::StrCat("layers.", layer, ".", LinearRoleName(role)), dense_.data(),
                        MatrixRows(matrix), MatrixCols(matrix), hessian, settings, team_, kernels_);
}

std::vector<StorageChoice> LayerQuantizer::Choices(const Matrix& matrix, const Hessian& hessian,
                                                   const MatrixSettings& settings) {
  Load(matrix);
  return StorageChoices(dense_.data(), MatrixRows(matrix), MatrixCols(matrix), hessian, settings,
                        team_, kernels_);
}

}  // namespace fewbit
