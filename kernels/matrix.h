// Weight matrices as kernels see them: pointers and shapes. W is [rows = output channels, cols =
// input channels], row-major, so that a linear layer is y[T, rows] = x[T, cols] W^T. Memory belongs
// to somebody else (a mapped file, as a rule).
#pragma once

#include <cstdint>
#include <variant>

#include "kernels/quant_layout.h"

namespace fewbit {

enum class DType : uint8_t { kF32, kF16, kBF16 };

struct DenseMatrix {
  const void* data = nullptr;  // [rows, cols] of dtype, aligned to its element
  DType dtype = DType::kBF16;
  int32_t rows = 0;
  int32_t cols = 0;
};

// weight[r, c] = (codes[r, c] - 128) * scales[r]; code 0 is not used, so weights are symmetric in
// [-127, 127] steps.
struct Int8Matrix {
  const uint8_t* codes = nullptr;  // [rows, cols]
  const float* scales = nullptr;   // [rows]
  int32_t rows = 0;
  int32_t cols = 0;
};

using Matrix = std::variant<DenseMatrix, Int8Matrix, quant::PackedMatrix>;

inline int32_t MatrixRows(const Matrix& m) {
  if (const auto* packed = std::get_if<quant::PackedMatrix>(&m)) return packed->shape.rows;
  if (const auto* int8 = std::get_if<Int8Matrix>(&m)) return int8->rows;
  return std::get<DenseMatrix>(m).rows;
}

inline int32_t MatrixCols(const Matrix& m) {
  if (const auto* packed = std::get_if<quant::PackedMatrix>(&m)) return packed->shape.cols;
  if (const auto* int8 = std::get_if<Int8Matrix>(&m)) return int8->cols;
  return std::get<DenseMatrix>(m).cols;
}

}  // namespace fewbit
