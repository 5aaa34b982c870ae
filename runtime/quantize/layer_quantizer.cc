#include "runtime/quantize/layer_quantizer.h"

#include "absl/strings/str_cat.h"
#include "runtime/products/pieces.h"

namespace fewbit {

absl::StatusOr<QuantizedMatrix> LayerQuantizer::Quantize(int layer, LinearRole role,
                                                         const Matrix& matrix, Hessian* hessian,
                                                         const MatrixSettings& settings) {
  return QuantizeMatrix(absl::StrCat("layers.", layer, ".", LinearRoleName(role)), matrix, hessian,
                        settings, products_, kernels_);
}

quant::PackedStorage LayerQuantizer::Pack(const quant::UnpackedMatrix& matrix) {
  return quant::Pack(matrix, [this](int rows, const auto& pack) {
    ForPieces(products_->team(), rows, quant::kBlockRows, [&](int, int64_t begin, int64_t end) {
      pack(static_cast<int>(begin), static_cast<int>(end));
    });
  });
}

std::vector<StorageChoice> LayerQuantizer::Choices(const Matrix& matrix, const Hessian& hessian,
                                                   const MatrixSettings& settings) {
  return StorageChoices(matrix, hessian, settings, products_->team(), kernels_);
}

}  // namespace fewbit
