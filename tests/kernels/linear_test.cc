// Values: every instruction set that this machine has against float64 references, over a grid of
// shapes with odd sizes, with poisoned outputs and with every input array ending at an unreadable
// page.
#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "gtest/gtest.h"
#include "kernels/quant_pack.h"
#include "tests/kernels/linear_runner.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::cpu {
namespace {

using fewbit::testing::Guarded;
using fewbit::testing::PackedOptions;
using fewbit::testing::RandomActivations;
using fewbit::testing::RandomDense;
using fewbit::testing::RandomInt8;
using fewbit::testing::RandomPacked;
using fewbit::testing::RunLinear;
using fewbit::testing::SupportedIsas;
using fewbit::testing::TestMatrix;

// x rounded as the contract says: to max/127 steps within each of `groups` (lists of channels).
std::vector<double> Rounded(const float* x, int cols, const std::vector<std::vector<int>>& groups) {
  std::vector<double> out(cols, 0.0);
  for (const std::vector<int>& group : groups) {
    float max = 0.0f;
    for (const int c : group) max = std::max(max, std::fabs(x[c]));
    if (max == 0.0f) continue;
    const float inverse = 127.0f / max;
    for (const int c : group) {
      out[c] = static_cast<double>(std::nearbyintf(x[c] * inverse)) * (max / 127.0f);
    }
  }
  return out;
}

std::vector<std::vector<int>> GroupsOf(const Matrix& w) {
  std::vector<std::vector<int>> groups;
  if (const auto* m = std::get_if<quant::PackedMatrix>(&w)) {
    int position = 0;
    for (int chunk = 0; chunk < m->shape.chunks2 + m->shape.chunks4; ++chunk) {
      groups.emplace_back();
      for (int s = 0; s < (chunk < m->shape.chunks2 ? 8 : 4); ++s, ++position) {
        if (m->strip_order[position] == quant::kNoStrip) continue;
        for (int k = 0; k < 16; ++k) groups.back().push_back(m->strip_order[position] * 16 + k);
      }
    }
  } else {
    for (int c = 0; c < MatrixCols(w); ++c) {
      if (c % 128 == 0) groups.emplace_back();
      groups.back().push_back(c);
    }
  }
  return groups;
}

void CheckAgainstReference(const TestMatrix& test, int tokens, std::mt19937* rng) {
  const int rows = MatrixRows(test.matrix), cols = MatrixCols(test.matrix);
  const bool dense = std::holds_alternative<DenseMatrix>(test.matrix);
  Matrix without_outliers = test.matrix;
  if (auto* packed = std::get_if<quant::PackedMatrix>(&without_outliers)) {
    packed->outlier_start = nullptr;
  }
  const size_t stride = cols + 3;
  const Guarded<float> x(RandomActivations(tokens * stride - 3, rng));
  std::vector<std::vector<float>> outputs;
  for (const Isa isa : SupportedIsas()) {
    outputs.push_back(RunLinear(isa, test.matrix, x.data(), stride, tokens));
  }
  const auto groups = GroupsOf(test.matrix);
  std::vector<float> full(cols), base(cols);
  for (int t = 0; t < tokens; t += std::max(1, tokens / 4)) {
    const float* token = x.data() + t * stride;
    const std::vector<double> rounded = Rounded(token, cols, groups);
    for (int r = 0; r < rows; ++r) {
      DequantizeRow(test.matrix, r, full.data());
      DequantizeRow(without_outliers, r, base.data());
      double tight = 0, magnitude = 0, loose = 0, w_norm = 0, x_norm = 0;
      for (int c = 0; c < cols; ++c) {
        const double in = dense ? token[c] : rounded[c];
        const double outlier = static_cast<double>(full[c]) - base[c];
        tight += base[c] * in + outlier * token[c];
        magnitude += std::fabs(base[c] * in) + std::fabs(outlier * token[c]);
        loose += static_cast<double>(full[c]) * token[c];
        w_norm += static_cast<double>(full[c]) * full[c];
        x_norm += static_cast<double>(token[c]) * token[c];
      }
      for (size_t i = 0; i < outputs.size(); ++i) {
        const double y = outputs[i][static_cast<size_t>(t) * rows + r];
        ASSERT_NEAR(y, tight, 2e-6 * magnitude + 1e-12)
            << IsaName(SupportedIsas()[i]) << " token " << t << " of " << tokens << " row " << r;
        ASSERT_NEAR(y, loose, 0.03 * std::sqrt(w_norm * x_norm) + 1e-12);
      }
    }
  }
}

TEST(LinearTest, PackedMatchesTheReference) {
  std::mt19937 rng(11);
  const int token_counts[] = {1, 2, 3, 5, 8, 16, 17, 40};
  int next = 0;
  for (const int rows : {1, 16, 31, 50}) {
    for (const int cols : {16, 32, 144, 640, 1600}) {
      for (const double share4 : {0.0, 0.25, 0.6, 1.0}) {
        for (const bool zero_points : {false, true}) {
          for (const double outliers : {0.0, 0.01}) {
            const auto test = RandomPacked(
                {rows, cols, share4, zero_points, outliers, cols == 144 ? 1 : 0}, &rng);
            SCOPED_TRACE(test.name);
            CheckAgainstReference(test, 1, &rng);
            CheckAgainstReference(test, token_counts[next++ % 8], &rng);
            if (::testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(LinearTest, Int8MatchesTheReference) {
  std::mt19937 rng(12);
  for (const int rows : {1, 15, 16, 33, 50}) {
    for (const int cols : {16, 40, 127, 128, 129, 512, 1601}) {
      const auto test = RandomInt8(rows, cols, &rng);
      SCOPED_TRACE(test.name);
      for (const int tokens : {1, 2, 3, 4, 7, 16, 40}) CheckAgainstReference(test, tokens, &rng);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(LinearTest, DenseMatchesTheReference) {
  std::mt19937 rng(13);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int rows : {1, 3, 16, 50}) {
      for (const int cols : {1, 15, 16, 17, 100, 512, 1600}) {
        const auto test = RandomDense(dtype, rows, cols, &rng);
        SCOPED_TRACE(test.name);
        for (const int tokens : {1, 2, 3, 4, 5, 16, 40}) CheckAgainstReference(test, tokens, &rng);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// The largest sums that the layout allows, where narrow accumulators would overflow: every weight
// at one end of its range and every activation at full scale, so that the result is known exactly.
TEST(LinearTest, LargestSumsFit) {
  constexpr int kRows = 16, kCols = 512;
  for (const double share4 : {0.0, 1.0}) {
    for (const bool zero_points : {false, true}) {
      for (const bool top : {false, true}) {
        std::mt19937 rng(15);
        quant::UnpackedMatrix m =
            fewbit::testing::RandomUnpacked({kRows, kCols, share4, zero_points, 0.0, 0}, &rng);
        const int max_code = share4 == 0.0 ? 3 : 15;
        std::fill(m.codes.begin(), m.codes.end(), top ? max_code : 0);
        std::fill(m.sub_scales.begin(), m.sub_scales.end(), 15);
        std::fill(m.zeros.begin(), m.zeros.end(), top ? 0 : max_code);
        for (auto& d : m.second_order) std::fill(d.begin(), d.end(), quant::FloatToHalf(64.0f));
        const quant::PackedStorage storage = quant::Pack(m);
        // With d = 1 a weight is 15 * (q - zero); x = 127 is staged as 127 with scale 1.
        const double weight = 15.0 * (zero_points ? max_code : max_code / 2.0) * (top ? 1 : -1);
        for (const float sign : {1.0f, -1.0f}) {
          for (const int tokens : {1, 2, 9}) {
            const std::vector<float> x(tokens * kCols, sign * 127.0f);
            for (const Isa isa : SupportedIsas()) {
              for (const float y : RunLinear(isa, storage.view(), x.data(), kCols, tokens)) {
                ASSERT_EQ(y, weight * sign * 127.0 * kCols)
                    << IsaName(isa) << " tokens " << tokens << " share4 " << share4
                    << " zero points " << zero_points << " top " << top;
              }
            }
          }
        }
      }
    }
  }
  for (const uint8_t code : {0, 1, 255}) {
    const std::vector<uint8_t> codes(kRows * kCols, code);
    const std::vector<float> scales(kRows, 1.0f);
    const Int8Matrix m{codes.data(), scales.data(), kRows, kCols};
    for (const int tokens : {1, 9}) {
      const std::vector<float> x(tokens * kCols, -127.0f);
      for (const Isa isa : SupportedIsas()) {
        for (const float y : RunLinear(isa, m, x.data(), kCols, tokens)) {
          ASSERT_EQ(y, (code - 128) * -127.0 * kCols) << IsaName(isa) << " tokens " << tokens;
        }
      }
    }
  }
}

// Zero, tiny and non-finite activations: zeros stay zero, a chunk too small to scale counts as
// zero, Inf and NaN reach the output as NaN.
TEST(LinearTest, UnusualActivations) {
  std::mt19937 rng(14);
  std::vector<TestMatrix> tests;
  tests.push_back(RandomPacked({20, 320, 0.3, false, 0.0, 0}, &rng));
  tests.push_back(RandomInt8(20, 320, &rng));
  for (const TestMatrix& test : tests) {
    for (const Isa isa : SupportedIsas()) {
      for (const int tokens : {1, 9}) {
        std::vector<float> x(320 * tokens, 0.0f);
        for (const float v : RunLinear(isa, test.matrix, x.data(), 320, tokens)) EXPECT_EQ(v, 0.0f);
        std::fill(x.begin(), x.end(), 1e-40f);
        for (const float v : RunLinear(isa, test.matrix, x.data(), 320, tokens)) EXPECT_EQ(v, 0.0f);
        for (const float bad :
             {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
          x.assign(x.size(), 1.0f);
          x[(tokens - 1) * 320 + 7] = bad;
          const auto y = RunLinear(isa, test.matrix, x.data(), 320, tokens);
          for (int r = 0; r < 20; ++r) {
            EXPECT_TRUE(std::isnan(y[(tokens - 1) * 20 + r])) << IsaName(isa);
            if (tokens > 1) {
              EXPECT_TRUE(std::isfinite(y[r])) << IsaName(isa);
            }
          }
        }
      }
    }
  }
}

TEST(LinearTest, EverySupportedIsaHasItsOwnName) {
  EXPECT_TRUE(IsaSupported(Isa::kPortable));
  EXPECT_TRUE(IsaSupported(BestIsa()));
  EXPECT_STREQ(IsaName(Isa::kPortable), "portable");
  EXPECT_STREQ(IsaName(Isa::kAvx2), "avx2");
  EXPECT_STREQ(IsaName(Isa::kAvx512), "avx512");
}

}  // namespace
}  // namespace fewbit::cpu
