// Another way to multiply by a layer's dense matrices than cpu::Linear: for who runs long texts
// through a layer and need not have the bits that serving has.
#pragma once

#include <cstddef>

#include "kernels/matrix.h"

namespace fewbit {

// Results must not depend on how rows are shared out, in multiples of kRowUnit, among ranks. Thread
// rule: all ranks of a team at once.
class DenseProducts {
 public:
  static constexpr int kRowUnit = 64;

  virtual ~DenseProducts() = default;

  // Scratch for `tokens` inputs of `w`, in bytes.
  virtual size_t ActivationBytes(const DenseMatrix& w, int tokens) const = 0;

  // Fills it for the tokens [begin, end) of x [tokens, K].
  virtual void Prepare(const DenseMatrix& w, const float* x, int begin, int end,
                       void* activations) const = 0;

  // y[t, r] for every t < tokens and r in [row_begin, row_end), which begins at a multiple of
  // kRowUnit and ends at one or at N; y has row stride y_stride.
  virtual void Linear(int rank, const DenseMatrix& w, const float* x, const void* activations,
                      int tokens, int row_begin, int row_end, float* y, size_t y_stride) = 0;
};

}  // namespace fewbit
