// The linear layers of a checkpoint one at a time.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "runtime/models/model.h"
#include "runtime/quantize/bit_allocation.h"
#include "runtime/quantize/lane_kernels.h"
#include "runtime/quantize/matrix_quantizer.h"
#include "runtime/thread_team.h"

namespace fewbit {

// Thread rule: one caller at a time, which is not inside team->Run.
class LayerQuantizer {
 public:
  // `products` outlives the object.
  LayerQuantizer(TeamProducts* products, cpu::Isa isa)
      : products_(products), kernels_(LaneKernelsFor(isa)) {}

  // Errors as QuantizeMatrix, with "layers.LAYER.ROLE" as the name.
  absl::StatusOr<QuantizedMatrix> Quantize(int layer, LinearRole role, const Matrix& matrix,
                                           Hessian* hessian, const MatrixSettings& settings);

  quant::PackedStorage Pack(const quant::UnpackedMatrix& matrix);

  // StorageChoices of a matrix that Quantize takes.
  std::vector<StorageChoice> Choices(const Matrix& matrix, const Hessian& hessian,
                                     const MatrixSettings& settings);

 private:
  TeamProducts* const products_;
  const LaneKernels& kernels_;
};

}  // namespace fewbit
