// Error feedback (GPTQ, Frantar et al., arXiv 2210.17323): channels are quantized one after the
// other, and the error of each is made up for by the channels that are still to come, as the
// correlations of the inputs tell. In the form of LDLQ (Chee et al., arXiv 2307.13304), which gives
// the same: with H = U D U^T, U upper triangular with ones on its diagonal, the best for channel j
// is what it should be less sum_i<j e_i U_ij, e_i the errors so far.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/products/team_products.h"
#include "runtime/quantize/hessian.h"
#include "runtime/quantize/lane_kernels.h"

namespace fewbit {

// Added to the diagonal of H, as a share of its mean.
inline constexpr double kHessianDamping = 0.01;

// Thread rule: immutable after Create.
class ErrorFeedback {
 public:
  // Factors `hessian`, freshly arranged, in its own upper triangle; it outlives the object. 1 % of
  // the mean diagonal is added to the diagonal. INTERNAL if there are NaN in it.
  static absl::StatusOr<std::unique_ptr<ErrorFeedback>> Create(HessianMatrix* hessian,
                                                               TeamProducts* products);

  // What an error in channel i costs once all later channels have made up for it as well as they
  // can: D_i.
  float weight(int i) const { return weights_[i]; }

  // result [end - begin, rows] = what the errors [begin channels, rows] of all channels before
  // `begin` take away from the channels [begin, end).
  void Collect(TileMultiplier* multiplier, int begin, int end, const float* errors, int rows,
               float* result) const;

  // Takes the errors [16 rows] of channel i out of the later channels of its strip, which begin at
  // `next` [channels][16 rows].
  void SpreadInStrip(const LaneKernels& kernels, int i, const float* errors, float* next) const;

  // Takes the errors [16 channels][16 rows] of a strip out of the channels behind it up to `end`;
  // `next` as above.
  void SpreadStrip(const LaneKernels& kernels, int strip, const float* errors, int end,
                   float* next) const;

  // panel [K channels, rows] <- (H + damping)^-1 panel.
  void Solve(TileMultiplier* multiplier, int rows, float* panel) const;

 private:
  static constexpr int kBlock = 64;  // channels that are factored together

  explicit ErrorFeedback(HessianMatrix* hessian);
  bool Factor(TeamProducts* products);
  void SubtractLater(int begin, int end, TeamProducts* products, float* diagonal) const;
  bool FactorBlock(int begin, int end, double floor, float* block);
  void DivideByBlock(int begin, int end, const float* inverse, TeamProducts* products) const;
  void ToUnitDiagonal(TeamProducts* products);
  float* inverse(int begin) { return inverses_.data() + static_cast<size_t>(begin) * kBlock; }
  const float* inverse(int begin) const {
    return inverses_.data() + static_cast<size_t>(begin) * kBlock;
  }

  HessianMatrix& hessian_;
  const int size_;
  std::vector<float> weights_;   // [K] D
  std::vector<float> roots_;     // [K] of D, with signs as in the factor
  std::vector<float> inverses_;  // of U's blocks on the diagonal, [K / kBlock][kBlock, kBlock]
};

}  // namespace fewbit
