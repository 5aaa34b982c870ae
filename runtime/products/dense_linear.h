// A layer's dense matrices multiplied by oneDNN.
#pragma once

#include <vector>

#include "kernels/cpu/gradients.h"
#include "kernels/cpu/linear.h"
#include "runtime/models/dense_products.h"
#include "runtime/products/team_products.h"

namespace fewbit {

// Where the processor has instructions for products of bfloat16 numbers, inputs are rounded to
// such, whatever the weights are; these never are, so those of other types take float32 products.
class DenseLinear : public DenseProducts {
 public:
  // `products` outlives the object.
  DenseLinear(TeamProducts* products, cpu::Isa isa);

  size_t ActivationBytes(const DenseMatrix& w, int tokens) const override;
  void Prepare(const DenseMatrix& w, const float* x, int begin, int end,
               void* activations) const override;
  void Linear(int rank, const DenseMatrix& w, const float* x, const void* activations, int tokens,
              int row_begin, int row_end, float* y, size_t y_stride) override;

 private:
  bool Narrow(const DenseMatrix& w) const { return bfloat16_ && w.dtype == DType::kBF16; }
  void MultiplyFloat32(int rank, const DenseMatrix& w, int row, TileProduct* product);

  TeamProducts& products_;
  const cpu::GradientTable<float>& table_;
  const bool bfloat16_;
  std::vector<std::vector<float>> rows_;  // of each rank: a unit of weights
};

}  // namespace fewbit
