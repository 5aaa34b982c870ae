#include "runtime/tune/cpu_products.h"

#include <algorithm>
#include <utility>

#include "runtime/products/pieces.h"

namespace fewbit::tune {
namespace {

// A product is cut into tiles of at most this size, and smaller ones where there would be too few
// to share out.
constexpr int kTile = 1024;
constexpr int kSmallestTile = 64;
constexpr int64_t kMinTiles = 16;

// The tiles of one matrix of a product: by its shape and the number of matrices alone.
struct Tiling {
  explicit Tiling(const Product& p) : rows(std::min(p.m, kTile)), cols(std::min(p.n, kTile)) {
    const int64_t matrices = static_cast<int64_t>(p.outer) * p.inner;
    while (matrices * Pieces(p.m, rows) * Pieces(p.n, cols) < kMinTiles) {
      int& larger = rows >= cols ? rows : cols;
      if (larger <= kSmallestTile) break;
      larger = std::max(kSmallestTile, larger / 2);
    }
  }
  int rows, cols;
};

// One matrix of a batch.
struct Place {
  int64_t outer, inner;
};

int64_t Offset(const Operand& whole, Place place) {
  return place.outer * whole.outer_stride + place.inner * whole.inner_stride;
}

TileOperand Of(const Operand& whole, TileType type, Place place) {
  const int64_t bytes = type == TileType::kFloat32 ? 4 : 2;
  const void* data = reinterpret_cast<const char*>(whole.data) + Offset(whole, place) * bytes;
  return {data, whole.row_stride, whole.transposed};
}

}  // namespace

CpuProducts::CpuProducts(ThreadTeam* team, const cpu::GradientTable<float>* table, TileType type)
    : products_(team), table_(*table), type_(type) {}

void CpuProducts::Multiply(const Product& p) {
  Operand a = p.a, b = p.b;
  float alpha = p.alpha;
  if (type_ == TileType::kBFloat16) {
    a = Narrow(p.a, p, p.a.transposed ? p.k : p.m, p.a.transposed ? p.m : p.k, p.alpha, &a_);
    b = Narrow(p.b, p, p.b.transposed ? p.n : p.k, p.b.transposed ? p.k : p.n, 1.0f, &b_);
    alpha = 1.0f;
  }
  const Tiling tiling(p);
  std::vector<TileProduct> tiles;
  for (int64_t i = 0; i < static_cast<int64_t>(p.outer) * p.inner; ++i) {
    const Place place = {i / p.inner, i % p.inner};
    TileProduct whole;
    whole.m = p.m;
    whole.n = p.n;
    whole.k = p.k;
    whole.type = type_;
    whole.a = Of(a, type_, place);
    whole.b = Of(b, type_, place);
    whole.alpha = alpha;
    whole.beta = p.beta;
    whole.c = p.c + place.outer * p.c_outer_stride + place.inner * p.c_inner_stride;
    whole.c_row_stride = p.c_row_stride;
    CutProduct(whole, tiling.rows, tiling.cols, &tiles);
  }
  products_.Multiply(tiles);
}

Operand CpuProducts::Narrow(const Operand& whole, const Product& product, int rows, int cols,
                            float factor, std::vector<uint16_t>* narrow) {
  // A matrix that serves all is rounded once.
  const int64_t outer = whole.outer_stride == 0 ? 1 : product.outer;
  const int64_t inner = whole.inner_stride == 0 ? 1 : product.inner;
  const int64_t size = static_cast<int64_t>(rows) * cols;
  if (narrow->size() < static_cast<size_t>(outer * inner * size)) {
    narrow->resize(outer * inner * size);
  }
  uint16_t* to = narrow->data();
  ForPieces(products_.team(), outer * inner * rows, RowsPerPiece(cols),
            [&](int, int64_t begin, int64_t end) {
              for (int64_t r = begin; r < end; ++r) {
                const Place place = {r / rows / inner, r / rows % inner};
                const float* from = whole.data + Offset(whole, place) + r % rows * whole.row_stride;
                table_.to_bfloat16(from, factor, cols, to + r * cols);
              }
            });
  Operand out;
  // Read again as what it is by Of.
  out.data = reinterpret_cast<const float*>(to);
  out.row_stride = cols;
  out.transposed = whole.transposed;
  out.inner_stride = inner == 1 ? 0 : size;
  out.outer_stride = outer == 1 ? 0 : inner * size;
  return out;
}

}  // namespace fewbit::tune
