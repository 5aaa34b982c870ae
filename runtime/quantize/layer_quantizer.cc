#include "runtime/quantize/layer_quantizer.h"

#include "absl/strings/str_cat.h"

namespace fewbit {

absl::StatusOr<QuantizedMatrix> LayerQuantizer::Quantize(int layer, LinearRole role,
                                                         const Matrix& matrix,
                                                         const Hessian& hessian,
                                                         const MatrixSettings& settings) {
  return QuantizeMatrix(absl::StrCat("layers.", layer, ".", LinearRoleName(role)), matrix, hessian,
                        settings, team_, kernels_);
}

std::vector<StorageChoice> LayerQuantizer::Choices(const Matrix& matrix, const Hessian& hessian,
                                                   const MatrixSettings& settings) {
  return StorageChoices(matrix, hessian, settings, team_, kernels_);
}

}  // namespace fewbit
