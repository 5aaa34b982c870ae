// Error feedback (GPTQ, Frantar et al., arXiv 2210.17323): channels are quantized one after the
// other, and the error of each is made up for by the channels that are still to come, as the
// correlations of the inputs tell.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/quantize/tile_fit.h"
#include "runtime/thread_team.h"

namespace fewbit {

// Added to the diagonal of H, as a share of its mean.
inline constexpr double kHessianDamping = 0.01;

// Thread rule: immutable after Create.
class ErrorFeedback {
 public:
  // `hessian` [K, K] in source order; channels[i] is the source channel that is quantized i-th. 1 %
  // of the mean diagonal is added to the diagonal. INTERNAL if the matrix is not positive definite
  // even so (inputs with NaN).
  static absl::StatusOr<std::unique_ptr<ErrorFeedback>> Create(const std::vector<float>& hessian,
                                                               std::span<const int> channels,
                                                               ThreadTeam* team,
                                                               const LaneKernels& kernels);

  // What an error in channel i costs once all later channels have made up for it as well as they
  // can: 1 / U_ii^2.
  float weight(int i) const { return weights_[i]; }

  // Takes the errors [16 rows] of channel i out of the later channels of its strip in `work` [K
  // channels][16 rows].
  void SpreadInStrip(const LaneKernels& kernels, int i, const float* errors, float* work) const;

  // Takes the errors [16 channels][16 rows] of a strip out of the channels of all later strips.
  void SpreadStrip(const LaneKernels& kernels, int strip, const float* errors, float* work) const;

  // rows [K channels][16 rows] <- rows (H + damping)^-1, channels in the order of Create.
  void Solve(const LaneKernels& kernels, float* rows) const;

 private:
  ErrorFeedback() = default;

  int size_ = 0;
  std::vector<float> upper_;    // upper triangle [K, K]: U_ij / U_ii, with U^T U = H^-1
  std::vector<float> weights_;  // [K]
};

// The best 4-bit sub-scale of one strip under the d of `fit`, for the weights now in `block`.
void RefitSubScale(const LaneKernels& kernels, const TileBlock& block, int strip, TileFit* fit);

}  // namespace fewbit
