// Dense matrices through oneDNN: the numbers of cpu::Linear but for rounded inputs, and the same
// bits however rows are shared out.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/quant_pack.h"
#include "runtime/products/dense_linear.h"
#include "runtime/products/pieces.h"

namespace fewbit {
namespace {

constexpr int kRows = 200, kCols = 304, kTokens = 37;

struct Layer {
  std::vector<uint16_t> narrow;
  std::vector<float> wide;
  DenseMatrix matrix;
};

Layer RandomLayer(DType dtype) {
  Layer layer;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < kRows * kCols; ++i) {
    const auto bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(random)) >> 16);
    layer.narrow.push_back(dtype == DType::kF16 ? quant::FloatToHalf(normal(random)) : bits);
    layer.wide.push_back(normal(random));
  }
  layer.matrix.data =
      dtype == DType::kF32 ? static_cast<const void*>(layer.wide.data()) : layer.narrow.data();
  layer.matrix.dtype = dtype;
  layer.matrix.rows = kRows;
  layer.matrix.cols = kCols;
  return layer;
}

std::vector<float> Inputs() {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(kTokens * kCols);
  for (float& value : x) value = normal(random);
  return x;
}

std::vector<float> Multiply(const DenseMatrix& w, int threads, int unit) {
  ThreadTeam team(threads);
  TeamProducts products(&team);
  DenseLinear linear(&products, cpu::BestIsa());
  const std::vector<float> x = Inputs();
  std::vector<uint8_t> staged(linear.ActivationBytes(w, kTokens));
  ForPieces(&team, kTokens, 5, [&](int, int64_t begin, int64_t end) {
    linear.Prepare(w, x.data(), static_cast<int>(begin), static_cast<int>(end), staged.data());
  });
  std::vector<float> y(kTokens * kRows);
  ForPieces(&team, kRows, unit, [&](int rank, int64_t begin, int64_t end) {
    linear.Linear(rank, w, x.data(), staged.data(), kTokens, static_cast<int>(begin),
                  static_cast<int>(end), y.data(), kRows);
  });
  return y;
}

TEST(DenseLinearTest, IsTheProductForEveryType) {
  const std::vector<float> x = Inputs();
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    const Layer layer = RandomLayer(dtype);
    const std::vector<float> y = Multiply(layer.matrix, 2, DenseProducts::kRowUnit);
    // Inputs are rounded to eight binary digits at worst, each for itself.
    const double bound = (HasBFloat16Products() ? 1.0 / 512.0 : 1e-6) * 5.0;
    std::vector<float> row(kCols);
    for (int r = 0; r < kRows; ++r) {
      cpu::DequantizeRow(layer.matrix, r, row.data());
      for (int t = 0; t < kTokens; ++t) {
        double sum = 0.0, squares = 0.0;
        for (int k = 0; k < kCols; ++k) {
          const double term = static_cast<double>(row[k]) * x[t * kCols + k];
          sum += term;
          squares += term * term;
        }
        ASSERT_NEAR(y[t * kRows + r], sum, bound * std::sqrt(squares)) << r << " " << t;
      }
    }
  }
}

TEST(DenseLinearTest, SharesDoNotMatter) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const Layer layer = RandomLayer(dtype);
    const std::vector<float> one = Multiply(layer.matrix, 1, kRows);
    for (const int threads : {2, 3}) {
      EXPECT_EQ(Multiply(layer.matrix, threads, DenseProducts::kRowUnit), one);
      EXPECT_EQ(Multiply(layer.matrix, threads, 2 * DenseProducts::kRowUnit), one);
    }
  }
}

TEST(CutProductTest, TilesAreTheWhole) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  constexpr int kM = 50, kN = 70, kK = 33;
  std::vector<float> a(kM * kK), b(kK * kN);
  for (float& value : a) value = normal(random);
  for (float& value : b) value = normal(random);
  ThreadTeam team(2);
  TeamProducts products(&team);
  for (const bool transposed : {false, true}) {
    std::vector<float> c(kM * kN, 1.0f);
    TileProduct whole;
    whole.m = kM;
    whole.n = kN;
    whole.k = kK;
    whole.a = {a.data(), transposed ? kM : kK, transposed};
    whole.b = {b.data(), transposed ? kK : kN, transposed};
    whole.beta = 2.0f;
    whole.c = c.data();
    whole.c_row_stride = kN;
    std::vector<TileProduct> tiles;
    CutProduct(whole, 16, 32, &tiles);
    EXPECT_EQ(tiles.size(), 4u * 3u);
    products.Multiply(tiles);
    for (int i = 0; i < kM; ++i) {
      for (int j = 0; j < kN; ++j) {
        double sum = 2.0;
        for (int k = 0; k < kK; ++k) {
          sum += static_cast<double>(transposed ? a[k * kM + i] : a[i * kK + k]) *
                 (transposed ? b[j * kK + k] : b[k * kN + j]);
        }
        ASSERT_NEAR(c[i * kN + j], sum, 1e-4);
      }
    }
  }
}

}  // namespace
}  // namespace fewbit
