// CpuOps: products against sums in double, scaled matrices with their outliers against the packed
// layout's own reading, and that no result depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/quant_pack.h"
#include "runtime/tune/cpu_ops.h"

namespace fewbit::tune {
namespace {

using Floats = std::vector<float>;

Floats Random(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  Floats out(n);
  for (float& x : out) x = normal(engine);
  return out;
}

float ToBFloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// An operand of `outer` x `inner` matrices [rows, cols] with gaps between rows and matrices.
struct TestOperand {
  TestOperand(int outer, int inner, int rows, int cols, bool transposed, uint32_t seed) {
    const int stored_rows = transposed ? cols : rows, stored_cols = transposed ? rows : cols;
    operand.row_stride = stored_cols + 3;
    operand.transposed = transposed;
    operand.inner_stride = operand.row_stride * stored_rows + 5;
    operand.outer_stride = operand.inner_stride * inner + 7;
    values = Random(operand.outer_stride * outer, seed);
    operand.data = values.data();
  }
  float At(int o, int i, int row, int col) const {
    if (operand.transposed) std::swap(row, col);
    return values[o * operand.outer_stride + i * operand.inner_stride + row * operand.row_stride +
                  col];
  }
  Floats values;
  Operand operand;
};

struct Shape {
  int m, n, k, outer, inner;
};

void PrintTo(const Shape& s, std::ostream* out) {
  *out << s.m << "x" << s.n << "x" << s.k << ", " << s.outer << "x" << s.inner << " matrices";
}

class Products : public ::testing::TestWithParam<Shape> {};

void ExpectSumsOfProducts(const Shape& s, TileType type) {
  const auto ops = CreateCpuOps(3, cpu::BestIsa(), type);
  const auto seen = [&](float x) { return type == TileType::kBFloat16 ? ToBFloat16(x) : x; };
  for (const int flags : {0, 1, 2, 3}) {
    const TestOperand a(s.outer, s.inner, s.m, s.k, flags & 1, 1);
    const TestOperand b(s.outer, s.inner, s.k, s.n, flags & 2, 2);
    for (const float beta : {0.0f, 0.5f}) {
      SCOPED_TRACE(::testing::Message() << "transposed " << flags << ", beta " << beta);
      const TestOperand start(s.outer, s.inner, s.m, s.n, false, 3);
      Floats c = start.values;
      // With beta 0 what was there is not read; what lies between the rows stays in any case.
      const auto index = [&](int o, int i, int row, int col) {
        return o * start.operand.outer_stride + i * start.operand.inner_stride +
               row * start.operand.row_stride + col;
      };
      const auto for_each = [&](const std::function<void(int, int, int, int)>& fn) {
        for (int o = 0; o < s.outer; ++o) {
          for (int i = 0; i < s.inner; ++i) {
            for (int row = 0; row < s.m; ++row) {
              for (int col = 0; col < s.n; ++col) fn(o, i, row, col);
            }
          }
        }
      };
      if (beta == 0.0f) {
        for_each([&](int o, int i, int row, int col) { c[index(o, i, row, col)] = kNan; });
      }
      Product p;
      p.m = s.m;
      p.n = s.n;
      p.k = s.k;
      p.a = a.operand;
      p.b = b.operand;
      p.c = c.data();
      p.c_row_stride = start.operand.row_stride;
      p.c_outer_stride = start.operand.outer_stride;
      p.c_inner_stride = start.operand.inner_stride;
      p.outer = s.outer;
      p.inner = s.inner;
      p.alpha = 0.25f;
      p.beta = beta;
      ops->Multiply(p);
      double error = 0.0;
      for_each([&](int o, int i, int row, int col) {
        double want = 0.0;
        for (int k = 0; k < s.k; ++k) {
          want += static_cast<double>(seen(a.At(o, i, row, k))) * seen(b.At(o, i, k, col));
        }
        want = 0.25 * want + beta * start.At(o, i, row, col);
        float& got = c[index(o, i, row, col)];
        const double e = std::fabs(got - want);
        if (!(e <= error)) error = e;
        got = start.values[index(o, i, row, col)];
      });
      EXPECT_LE(error, 1e-6 * s.k + 1e-6);
      EXPECT_EQ(c, start.values);
    }
  }
}

TEST_P(Products, AreSumsOfProducts) { ExpectSumsOfProducts(GetParam(), TileType::kFloat32); }

TEST_P(Products, OfBFloat16Numbers) {
  if (!HasBFloat16Products()) GTEST_SKIP() << "not on this processor";
  ExpectSumsOfProducts(GetParam(), TileType::kBFloat16);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Products,
                         ::testing::Values(Shape{1, 1, 1, 1, 1}, Shape{7, 5, 3, 2, 3},
                                           Shape{1, 130, 64, 1, 1}, Shape{65, 33, 17, 1, 4},
                                           Shape{150, 140, 40, 1, 1}, Shape{530, 24, 9, 3, 1}));

// An operand with stride 0 is the same matrix for all.
TEST(Multiply, OneMatrixForAll) {
  const auto ops = CreateCpuOps(2);
  const Floats a = {1, 2, 3, 4, 5, 6}, b = {2, 10};
  Floats c(3);
  Product p;
  p.m = 1;
  p.n = 1;
  p.k = 2;
  p.a = {.data = a.data(), .row_stride = 2, .inner_stride = 2};
  p.b = {.data = b.data(), .row_stride = 1};
  p.c = c.data();
  p.c_row_stride = 1;
  p.c_inner_stride = 1;
  p.inner = 3;
  ops->Multiply(p);
  EXPECT_THAT(c, ::testing::ElementsAre(22, 46, 70));
}

// What a process may do: two of them at the same time.
TEST(Multiply, FromTwoCallersAtOnce) {
  const int size = 96, rounds = 1000;
  const Floats a = Random(size * size, 4), b = Random(size * size, 5);
  const auto multiply = [&](Ops* ops, Floats* c) {
    Product p;
    p.m = p.n = p.k = size;
    p.a = {.data = a.data(), .row_stride = size};
    p.b = {.data = b.data(), .row_stride = size, .transposed = true};
    p.c = c->data();
    p.c_row_stride = size;
    ops->Multiply(p);
  };
  Floats want(size * size);
  multiply(CreateCpuOps(1).get(), &want);
  int wrong[2] = {};
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      const auto ops = CreateCpuOps(2);
      Floats c(size * size);
      for (int i = 0; i < rounds; ++i) {
        multiply(ops.get(), &c);
        count += c != want;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong[0] + wrong[1], 0);
}

// A matrix with strips of both widths, padding, several tiles and outliers, and its scales.
struct Scaled {
  explicit Scaled(int num_rows) : rows(num_rows) {
    std::mt19937 engine(6);
    for (int i = 0; i < rows * cols; ++i) {
      levels.push_back(static_cast<int8_t>(static_cast<int>(engine() % 16) * 2 - 15));
    }
    for (int i = 0; i < strips; ++i) tile_of_strip.push_back(static_cast<int>(engine() % tiles));
    sub_scales = Random(rows * strips, 7, 4.0f);
    for (float& s : sub_scales) s += 7.0f;
    second_order = Random(rows * tiles, 8, 0.01f);
    for (int at = 3; at < rows * cols; at += 1 + engine() % 400) outlier_at.push_back(at);
    outliers = Random(outlier_at.size(), 9);
  }

  ScaledMatrix View(bool rounded) const {
    ScaledMatrix m;
    m.rows = rows;
    m.cols = cols;
    m.tiles = tiles;
    m.levels = levels.data();
    m.tile_of_strip = tile_of_strip.data();
    m.sub_scales = sub_scales.data();
    m.second_order = second_order.data();
    m.num_outliers = static_cast<int>(outliers.size());
    m.outlier_at = outlier_at.data();
    m.outliers = outliers.data();
    m.rounded = rounded;
    return m;
  }

  static constexpr int cols = 80, strips = 5, tiles = 3;
  int rows;
  std::vector<int8_t> levels;
  std::vector<int32_t> tile_of_strip, outlier_at;
  Floats sub_scales, second_order, outliers;
};

TEST(Weights, AreScaledLevelsAndOutliers) {
  const Scaled matrix(700);
  const auto ops = CreateCpuOps(3);
  for (const bool rounded : {false, true}) {
    Floats weights(matrix.levels.size());
    ops->Weights(matrix.View(rounded), weights.data());
    Floats want;
    for (int i = 0; i < static_cast<int>(weights.size()); ++i) {
      const int r = i / matrix.cols, strip = i % matrix.cols / 16;
      double s = matrix.sub_scales[r * matrix.strips + strip];
      double d = matrix.second_order[r * matrix.tiles + matrix.tile_of_strip[strip]];
      if (rounded) {
        s = std::nearbyint(std::clamp(s, 0.0, 15.0));
        d = quant::HalfToFloat(quant::FloatToHalf(static_cast<float>(64 * d))) / 64.0;
      }
      want.push_back(static_cast<float>(matrix.levels[i] * s * d / 2));
    }
    for (size_t i = 0; i < matrix.outliers.size(); ++i) {
      want[matrix.outlier_at[i]] += matrix.outliers[i];
    }
    EXPECT_THAT(weights, ::testing::Pointwise(::testing::FloatNear(1e-6f), want));
  }
}

TEST(WeightGradients, AreThoseOfTheWeights) {
  const Scaled matrix(700);
  const auto ops = CreateCpuOps(3);
  const Floats dw = Random(matrix.levels.size(), 10);
  Floats d_sub(matrix.sub_scales.size(), 1.0f), d_second(matrix.second_order.size(), 2.0f);
  Floats d_outliers(matrix.outliers.size(), 3.0f);
  ops->WeightGradients(matrix.View(false), dw.data(),
                       {d_sub.data(), d_second.data(), d_outliers.data()});
  std::vector<double> want_sub(d_sub.size(), 1.0), want_second(d_second.size(), 2.0);
  for (int i = 0; i < static_cast<int>(dw.size()); ++i) {
    const int r = i / matrix.cols, strip = i % matrix.cols / 16;
    const int s = r * matrix.strips + strip, d = r * matrix.tiles + matrix.tile_of_strip[strip];
    const double product = 0.5 * matrix.levels[i] * dw[i];
    want_sub[s] += product * matrix.second_order[d];
    want_second[d] += product * matrix.sub_scales[s];
  }
  for (size_t i = 0; i < d_sub.size(); ++i) ASSERT_NEAR(d_sub[i], want_sub[i], 1e-5) << i;
  for (size_t i = 0; i < d_second.size(); ++i) ASSERT_NEAR(d_second[i], want_second[i], 3e-3) << i;
  for (size_t i = 0; i < d_outliers.size(); ++i) {
    ASSERT_EQ(d_outliers[i], 3.0f + dw[matrix.outlier_at[i]]) << i;
  }
}

TEST(Widen, EveryType) {
  const auto ops = CreateCpuOps(2);
  const size_t count = 70001;
  const Floats values = Random(count, 11);
  std::vector<uint16_t> halves, brains;
  Floats want_half, want_brain;
  for (const float x : values) {
    halves.push_back(quant::FloatToHalf(x));
    want_half.push_back(quant::HalfToFloat(halves.back()));
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    brains.push_back(static_cast<uint16_t>(bits >> 16));
    bits &= 0xFFFF0000u;
    want_brain.push_back(0.0f);
    std::memcpy(&want_brain.back(), &bits, sizeof(bits));
  }
  Floats got(count);
  ops->Widen(values.data(), DType::kF32, count, got.data());
  EXPECT_EQ(got, values);
  ops->Widen(halves.data(), DType::kF16, count, got.data());
  EXPECT_EQ(got, want_half);
  ops->Widen(brains.data(), DType::kBF16, count, got.data());
  EXPECT_EQ(got, want_brain);
}

// Everything that is cut into pieces, on sizes of several pieces; all that was written.
Floats RunAll(Ops* ops) {
  Floats all;
  const auto keep = [&](const Floats& x) { all.insert(all.end(), x.begin(), x.end()); };
  const int rows = 1200, cols = 100;
  const Floats x = Random(rows * cols, 12), dy = Random(rows * cols, 13), weight = Random(cols, 14);
  Floats y(x.size()), inverse(rows), dx = x, d_weight(cols, 1.0f);
  ops->RmsNorm(x.data(), weight.data(), 1e-5f, rows, cols, y.data(), inverse.data());
  ops->RmsNormBackward(x.data(), weight.data(), inverse.data(), dy.data(), rows, cols, true,
                       dx.data(), d_weight.data());
  ops->AddBias(weight.data(), rows, cols, y.data());
  ops->Add(x.data(), rows * cols, y.data());
  keep(y);
  keep(dx);
  keep(d_weight);

  Floats scores = Random(6 * 150 * 150, 15), d_scores = Random(scores.size(), 16);
  ops->CausalSoftmax(6, 150, 20, scores.data());
  ops->CausalSoftmaxBackward(6, 150, 20, scores.data(), d_scores.data());
  keep(scores);
  keep(d_scores);

  Floats gate = x, up = dy, activated(x.size());
  ops->SiluMul(gate.data(), up.data(), rows * cols, activated.data());
  ops->SiluMulBackward(activated.data(), rows * cols, gate.data(), up.data());
  keep(gate);
  keep(up);

  Floats student = y, value = x, first(x.size()), second(x.size());
  LossSums sums;
  ops->KlDivergence(x.data(), rows, cols, 0.5f, true, student.data(), &sums);
  keep(student);
  all.push_back(static_cast<float>(sums.kl));
  all.push_back(static_cast<float>(sums.same_top));
  AdamArgs adam;
  adam.count = rows * cols;
  adam.values = value.data();
  adam.gradients = dy.data();
  adam.first_moments = first.data();
  adam.second_moments = second.data();
  adam.learning_rate = 0.01f;
  adam.step = 3;
  ops->Adam(adam);
  keep(value);

  const Scaled matrix(900);
  Floats weights(matrix.levels.size()), d_sub(matrix.sub_scales.size());
  Floats d_second(matrix.second_order.size()), d_outliers(matrix.outliers.size());
  ops->Weights(matrix.View(true), weights.data());
  ops->WeightGradients(matrix.View(true), weights.data(),
                       {d_sub.data(), d_second.data(), d_outliers.data()});
  keep(weights);
  keep(d_sub);
  keep(d_second);
  keep(d_outliers);
  return all;
}

TEST(CpuOps, NeitherThreadsNorInstructionsChangeABit) {
  const Floats one = RunAll(CreateCpuOps(1, cpu::Isa::kPortable).get());
  for (const int threads : {1, 2, 5}) {
    for (const cpu::Isa isa : {cpu::Isa::kPortable, cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
      if (!cpu::IsaSupported(isa)) continue;
      const Floats more = RunAll(CreateCpuOps(threads, isa).get());
      ASSERT_EQ(more.size(), one.size());
      EXPECT_EQ(std::memcmp(more.data(), one.data(), one.size() * sizeof(float)), 0)
          << threads << " threads, " << cpu::IsaName(isa);
    }
  }
}

// The pieces of d_weight add up to what one row at a time gives.
TEST(CpuOps, RmsNormBackwardSumsAllRows) {
  const auto ops = CreateCpuOps(2);
  const int rows = 1200, cols = 100;
  const Floats x = Random(rows * cols, 17), dy = Random(rows * cols, 18), weight = Random(cols, 19);
  Floats y(x.size()), inverse(rows), dx(x.size()), d_weight(cols, 5.0f);
  ops->RmsNorm(x.data(), weight.data(), 1e-5f, rows, cols, y.data(), inverse.data());
  ops->RmsNormBackward(x.data(), weight.data(), inverse.data(), dy.data(), rows, cols, false,
                       dx.data(), d_weight.data());
  for (int i = 0; i < cols; ++i) {
    double want = 5.0;
    for (int r = 0; r < rows; ++r) want += 1.0 * dy[r * cols + i] * x[r * cols + i] * inverse[r];
    EXPECT_NEAR(d_weight[i], want, 1e-4) << i;
  }
}

TEST(CpuOps, CountsMemory) {
  const auto ops = CreateCpuOps(1);
  void* a = ops->Allocate(1000).value();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 256, 0u);
  void* b = ops->Allocate(300).value();
  EXPECT_EQ(ops->PeakBytes(), 1024 + 512);
  ops->Free(a);
  ops->Free(b);
  void* c = ops->Allocate(0).value();
  EXPECT_NE(c, nullptr);
  EXPECT_EQ(ops->PeakBytes(), 1024 + 512);
  ops->Free(c);
  ops->Free(nullptr);
  const absl::Status status = ops->Allocate(size_t{1} << 50).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("1125899906842624 bytes"));
}

}  // namespace
}  // namespace fewbit::tune
