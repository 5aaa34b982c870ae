#include "runtime/products/dense_linear.h"

#include <algorithm>
#include <bit>

namespace fewbit {

DenseLinear::DenseLinear(TeamProducts* products, cpu::Isa isa)
    : products_(*products),
      table_(cpu::FloatGradients(isa)),
      bfloat16_(HasBFloat16Products()),
      rows_(products->team()->size()) {}

size_t DenseLinear::ActivationBytes(const DenseMatrix& w, int tokens) const {
  if (!bfloat16_) return 0;
  return (Narrow(w) ? sizeof(uint16_t) : sizeof(float)) * tokens * w.cols;
}

void DenseLinear::Prepare(const DenseMatrix& w, const float* x, int begin, int end,
                          void* activations) const {
  if (!bfloat16_) return;
  const int64_t first = int64_t{begin} * w.cols, count = int64_t{end - begin} * w.cols;
  if (Narrow(w)) {
    table_.to_bfloat16(x + first, 1.0f, count, static_cast<uint16_t*>(activations) + first);
    return;
  }
  std::vector<uint16_t> rounded(count);
  table_.to_bfloat16(x + first, 1.0f, count, rounded.data());
  float* out = static_cast<float*>(activations) + first;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = std::bit_cast<float>(static_cast<uint32_t>(rounded[i]) << 16);
  }
}

void DenseLinear::Linear(int rank, const DenseMatrix& w, const float* x, const void* activations,
                         int tokens, int row_begin, int row_end, float* y, size_t y_stride) {
  for (int row = row_begin; row < row_end; row += kRowUnit) {
    TileProduct product;
    product.m = tokens;
    product.n = std::min(kRowUnit, row_end - row);
    product.k = w.cols;
    product.c = y + row;
    product.c_row_stride = static_cast<int64_t>(y_stride);
    if (!Narrow(w)) {
      product.a = {bfloat16_ ? activations : x, w.cols, false};
      MultiplyFloat32(rank, w, row, &product);
      continue;
    }
    product.type = TileType::kBFloat16;
    product.a = {activations, w.cols, false};
    product.b = {static_cast<const uint16_t*>(w.data) + int64_t{row} * w.cols, w.cols, true};
    products_.multiplier(rank).Multiply(product);
  }
}

void DenseLinear::MultiplyFloat32(int rank, const DenseMatrix& w, int row, TileProduct* product) {
  if (w.dtype == DType::kF32) {
    product->b = {static_cast<const float*>(w.data) + int64_t{row} * w.cols, w.cols, true};
  } else {
    std::vector<float>& rows = rows_[rank];
    rows.resize(size_t{kRowUnit} * w.cols);
    for (int r = 0; r < product->n; ++r) {
      cpu::DequantizeRow(w, row + r, rows.data() + static_cast<size_t>(r) * w.cols);
    }
    product->b = {rows.data(), w.cols, true};
  }
  products_.multiplier(rank).Multiply(*product);
}

}  // namespace fewbit
