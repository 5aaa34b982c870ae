// One weight matrix to 2/4/16 bits: which strips get 4 bits, which weights stay at 16, the codes
// and scales of all others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/linear.h"
#include "kernels/quant_pack.h"
#include "runtime/products/team_products.h"
#include "runtime/quantize/bit_allocation.h"
#include "runtime/quantize/hessian.h"
#include "runtime/quantize/lane_kernels.h"
#include "runtime/quantize/methods.h"
#include "runtime/thread_team.h"

namespace fewbit {

struct MatrixSettings {
  const QuantizeMethod* method = &kQuantizeMethods[0];
  double share4 = 0.25;     // of the strips of each matrix
  double outliers = 0.002;  // at most this share of the weights of each matrix
  bool last_use = false;    // of the Hessian, which may be used up
};

// Sums over a matrix; sums over several matrices add up.
struct MatrixQuality {
  double weighted_error = 0.0;  // sum of H_kk (w - w^)^2
  double weighted_norm = 0.0;   // sum of H_kk w^2
  double error = 0.0;           // sum of (w - w^)^2
  double norm = 0.0;            // sum of w^2
  int64_t weights = 0;
  int64_t weights4 = 0;  // in 4-bit strips
  int64_t outliers = 0;

  void Add(const MatrixQuality& other);
};

struct QuantizedMatrix {
  quant::UnpackedMatrix unpacked;
  MatrixQuality quality;
};

// Quantizes `matrix` [rows, cols], of any dtype but packed. The result depends on the arguments
// and, with error feedback, the kind of processor (oneDNN's products) only, not on the team's size.
// With error feedback the Hessian is rearranged and factored in its own memory; it can be used
// again, but for its misses. INVALID_ARGUMENT naming `name` (the tensor): cols no multiple of 16, a
// NaN or infinite weight (with its place), a weight too large for the fp16 scales. The team must
// not be inside a Run.
absl::StatusOr<QuantizedMatrix> QuantizeMatrix(const std::string& name, const Matrix& matrix,
                                               Hessian* hessian, const MatrixSettings& settings,
                                               TeamProducts* products, const LaneKernels& kernels);

// The ways to store the matrix, one per useful number of 4-bit strips (strip_choice.h): bytes in
// the file, and as loss the H-weighted squared error that nearest codes leave. REQUIRES: weights
// that QuantizeMatrix takes.
std::vector<StorageChoice> StorageChoices(const Matrix& matrix, const Hessian& hessian,
                                          const MatrixSettings& settings, ThreadTeam* team,
                                          const LaneKernels& kernels);

// The dense matrix that `m` stands for, [rows, cols] in source channel order: what every kernel
// computes with.
std::vector<float> Dequantize(const quant::UnpackedMatrix& m);

}  // namespace fewbit
