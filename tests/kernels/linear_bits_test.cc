// Bits: results are the same on every instruction set, alone and in any batch, and however rows and
// tokens are cut among callers.
#include <cstring>
#include <random>

#include "gtest/gtest.h"
#include "kernels/cpu/linear.h"
#include "tests/kernels/linear_runner.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::cpu {
namespace {

using fewbit::testing::Guarded;
using fewbit::testing::RandomActivations;
using fewbit::testing::RandomDense;
using fewbit::testing::RandomInt8;
using fewbit::testing::RandomPacked;
using fewbit::testing::RunLinear;
using fewbit::testing::SupportedIsas;
using fewbit::testing::TestMatrix;

uint32_t BitsOf(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(BitsOf(a[i]), BitsOf(b[i])) << what << " at " << i << ": " << a[i] << " " << b[i];
  }
}

std::vector<TestMatrix> Matrices(std::mt19937* rng) {
  std::vector<TestMatrix> out;
  for (const bool zero_points : {false, true}) {
    for (const double outliers : {0.0, 0.02}) {
      out.push_back(RandomPacked({50, 1600, 0.25, zero_points, outliers, 0}, rng));
      out.push_back(RandomPacked({33, 336, 0.6, zero_points, outliers, 1}, rng));
      out.push_back(RandomPacked({16, 256, 1.0, zero_points, outliers, 0}, rng));
      out.push_back(RandomPacked({7, 640, 0.0, zero_points, outliers, 0}, rng));
    }
  }
  for (const int cols : {30, 512, 1000}) out.push_back(RandomInt8(50, cols, rng));
  return out;
}

TEST(LinearBitsTest, AllInstructionSetsGiveTheSameBits) {
  std::mt19937 rng(21);
  for (const TestMatrix& test : Matrices(&rng)) {
    SCOPED_TRACE(test.name);
    const int cols = MatrixCols(test.matrix);
    for (const int tokens : {1, 2, 3, 4, 6, 8, 9, 16, 25, 40}) {
      const Guarded<float> x(RandomActivations(static_cast<size_t>(tokens) * cols, &rng));
      const auto reference = RunLinear(Isa::kPortable, test.matrix, x.data(), cols, tokens);
      for (const Isa isa : SupportedIsas()) {
        SCOPED_TRACE(tokens);
        ExpectSameBits(reference, RunLinear(isa, test.matrix, x.data(), cols, tokens),
                       IsaName(isa));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(LinearBitsTest, ATokenDoesNotDependOnItsBatch) {
  std::mt19937 rng(22);
  std::vector<TestMatrix> tests = Matrices(&rng);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    tests.push_back(RandomDense(dtype, 50, 533, &rng));
  }
  constexpr int kTokens = 40;
  for (const TestMatrix& test : tests) {
    SCOPED_TRACE(test.name);
    const int cols = MatrixCols(test.matrix), rows = MatrixRows(test.matrix);
    const Guarded<float> x(RandomActivations(static_cast<size_t>(kTokens) * cols, &rng));
    for (const Isa isa : SupportedIsas()) {
      std::vector<float> alone;
      for (int t = 0; t < kTokens; ++t) {
        const auto y = RunLinear(isa, test.matrix, x.data() + t * cols, cols, 1);
        alone.insert(alone.end(), y.begin(), y.end());
      }
      for (int tokens = 2; tokens <= kTokens; ++tokens) {
        const auto y = RunLinear(isa, test.matrix, x.data(), cols, tokens);
        ExpectSameBits({alone.begin(), alone.begin() + tokens * rows}, y, IsaName(isa));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(LinearBitsTest, CuttingTheWorkChangesNothing) {
  std::mt19937 rng(23);
  std::vector<TestMatrix> tests = Matrices(&rng);
  tests.push_back(RandomDense(DType::kBF16, 50, 533, &rng));
  for (const TestMatrix& test : tests) {
    SCOPED_TRACE(test.name);
    const int cols = MatrixCols(test.matrix);
    for (const int tokens : {1, 3, 16, 37}) {
      const Guarded<float> x(RandomActivations(static_cast<size_t>(tokens) * cols, &rng));
      for (const Isa isa : SupportedIsas()) {
        const auto whole = RunLinear(isa, test.matrix, x.data(), cols, tokens);
        ExpectSameBits(whole, RunLinear(isa, test.matrix, x.data(), cols, tokens, {2, 2}),
                       IsaName(isa));
        ExpectSameBits(whole, RunLinear(isa, test.matrix, x.data(), cols, tokens, {5, 4}),
                       IsaName(isa));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// The dense order is 16 lanes with fused multiply-add in both vector files.
TEST(LinearBitsTest, DenseVectorPathsAgree) {
  if (!IsaSupported(Isa::kAvx512)) GTEST_SKIP() << "needs a processor with AVX2 and AVX-512";
  std::mt19937 rng(24);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int cols : {5, 16, 100, 1600}) {
      const TestMatrix test = RandomDense(dtype, 37, cols, &rng);
      SCOPED_TRACE(test.name);
      const Guarded<float> x(RandomActivations(static_cast<size_t>(9) * cols, &rng));
      ExpectSameBits(RunLinear(Isa::kAvx2, test.matrix, x.data(), cols, 9),
                     RunLinear(Isa::kAvx512, test.matrix, x.data(), cols, 9), "avx2 and avx512");
    }
  }
}

}  // namespace
}  // namespace fewbit::cpu
