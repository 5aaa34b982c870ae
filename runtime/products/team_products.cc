#include "runtime/products/team_products.h"

#include <algorithm>
#include <utility>

#include "runtime/products/pieces.h"

namespace fewbit {
namespace {

// The part of an operand that begins at `row`, `col` of what is multiplied.
TileOperand Part(const TileOperand& whole, TileType type, int row, int col) {
  int64_t down = row, across = col;
  if (whole.transposed) std::swap(down, across);
  const int64_t bytes = type == TileType::kFloat32 ? 4 : 2;
  TileOperand part = whole;
  part.data = static_cast<const char*>(whole.data) + (down * whole.row_stride + across) * bytes;
  return part;
}

}  // namespace

void CutProduct(const TileProduct& whole, int rows, int cols, std::vector<TileProduct>* tiles) {
  for (int row = 0; row < whole.m; row += rows) {
    for (int col = 0; col < whole.n; col += cols) {
      TileProduct tile = whole;
      tile.m = std::min(rows, whole.m - row);
      tile.n = std::min(cols, whole.n - col);
      tile.a = Part(whole.a, whole.type, row, 0);
      tile.b = Part(whole.b, whole.type, 0, col);
      tile.c = whole.c + row * whole.c_row_stride + col;
      tiles->push_back(tile);
    }
  }
}

TeamProducts::TeamProducts(ThreadTeam* team)
    : team_(team), table_(cpu::FloatGradients(cpu::BestIsa())) {
  for (int rank = 0; rank < team->size(); ++rank) {
    ranks_.push_back(std::make_unique<TileMultiplier>());
  }
}

void TeamProducts::Multiply(std::span<const TileProduct> tiles) {
  ForPieces(team_, static_cast<int64_t>(tiles.size()), 1,
            [&](int rank, int64_t i, int64_t) { ranks_[rank]->Multiply(tiles[i]); });
}

void TeamProducts::Narrow(const float* x, int64_t count, uint16_t* y) const {
  ForPieces(team_, count, kPieceElements, [&](int, int64_t begin, int64_t end) {
    table_.to_bfloat16(x + begin, 1.0f, end - begin, y + begin);
  });
}

}  // namespace fewbit
