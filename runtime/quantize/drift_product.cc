#include "runtime/quantize/drift_product.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/linear.h"
#include "runtime/products/pieces.h"

namespace fewbit {
namespace {

constexpr int kBlock = 512;     // channels that are made, and given back, together
constexpr int kTileRows = 128;  // of these, by one thread

}  // namespace

ScratchFloats DriftProduct(const Matrix& matrix, bool drop, ScratchFloats* drift,
                           TeamProducts* products) {
  const int rows = MatrixRows(matrix), cols = MatrixCols(matrix), panel_rows = PanelRows(cols);
  const auto* dense = std::get_if<DenseMatrix>(&matrix);
  const bool narrow = dense != nullptr && dense->dtype == DType::kBF16 && HasBFloat16Products();
  const int64_t panels = Pieces(rows, panel_rows);
  ScratchFloats result = ScratchFloats::InMemory(static_cast<size_t>(panels) * cols * panel_rows);
  std::vector<uint16_t> narrowed;
  std::vector<std::vector<float>> widened(products->team()->size());
  for (int begin = 0; begin < cols; begin += kBlock) {
    const int count = std::min(kBlock, cols - begin);
    const float* block = drift->values().data() + static_cast<size_t>(begin) * cols;
    if (narrow) {
      narrowed.resize(static_cast<size_t>(count) * cols);
      products->Narrow(block, static_cast<int64_t>(count) * cols, narrowed.data());
    }
    const int64_t tiles = Pieces(count, kTileRows);
    ForPieces(products->team(), panels * tiles, 1, [&](int rank, int64_t piece, int64_t) {
      const int first = static_cast<int>(piece / tiles) * panel_rows;
      const int row = static_cast<int>(piece % tiles) * kTileRows;
      TileProduct product;
      product.m = std::min(kTileRows, count - row);
      product.n = std::min(panel_rows, rows - first);
      product.k = cols;
      product.c = result.values().data() + (static_cast<size_t>(first) * cols) +
                  static_cast<size_t>(begin + row) * panel_rows;
      product.c_row_stride = panel_rows;
      if (narrow) {
        product.type = TileType::kBFloat16;
        product.a = {narrowed.data() + static_cast<size_t>(row) * cols, cols, false};
        product.b = {static_cast<const uint16_t*>(dense->data) + int64_t{first} * cols, cols, true};
      } else {
        std::vector<float>& weights = widened[rank];
        weights.resize(static_cast<size_t>(panel_rows) * cols);
        for (int r = 0; r < product.n; ++r) {
          cpu::DequantizeRow(matrix, first + r, weights.data() + static_cast<size_t>(r) * cols);
        }
        product.a = {block + static_cast<size_t>(row) * cols, cols, false};
        product.b = {weights.data(), cols, true};
      }
      products->multiplier(rank).Multiply(product);
    });
    if (drop) drift->Drop(static_cast<size_t>(begin) * cols, static_cast<size_t>(count) * cols);
  }
  return result;
}

}  // namespace fewbit
