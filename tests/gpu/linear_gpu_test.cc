// Every small-m kernel instance on a real device: against float64, for any mix of widths and odd
// shapes, and bit for bit against itself in other batches and geometries.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "kernels/cuda/cluster_instances.h"
#include "kernels/cuda/half_instances.h"
#include "kernels/cuda/small_instances.h"
#include "kernels/cuda/wide_instances.h"
#include "tests/gpu/gpu_linear.h"
#include "tests/gpu/gpu_values.h"
#include "tests/gpu/on_device.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::testing {
namespace {

// x is rounded to 15 bits of its tile's largest value; the tests' activations have a few large
// ones, so that this error is about 1e-4 of the norm. Outputs in 16 bits round once more.
constexpr double kFixedPointError = 6e-4;
double Tolerance(DType y_type) {
  const double rounding = y_type == DType::kF32 ? 0.0 : y_type == DType::kF16 ? 3e-4 : 3e-3;
  return kFixedPointError + rounding;
}

using Case = LinearCase;

// A number for the compiled kernel that a plan launches.
int KernelOf(const cuda::Desc& desc, const cuda::Plan& plan) {
  constexpr int kPath = 100;
  switch (plan.path) {
    case cuda::Path::kStream:
      return 2 * plan.stream.form + desc.shapes[0].zero_points;
    case cuda::Path::kSmall:
      return kPath + plan.small[0].instance;
    case cuda::Path::kWide:
      return (plan.wide.clustered ? 3 : 2) * kPath + 2 * plan.wide.form +
             desc.shapes[0].zero_points;
    default:
      return 4 * kPath;
  }
}

bool SameBits(const float* a, const float* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

TEST(LinearGpu, EveryInstanceMatchesFloat64) {
  std::mt19937 rng(11);
  std::set<int> reached;
  const PackedOptions shapes[] = {
      {16, 128, 0.25},  {77, 48, 0.5},    {40, 16, 0.0},    {333, 1040, 0.3},
      {48, 4096, 0.25}, {2131, 528, 1.0}, {161, 2816, 0.0}, {64, 5504, 0.1, false, 0.0, 2}};
  const int token_counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 40, 64};
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  int next = 0;
  for (PackedOptions options : shapes) {
    for (bool zero_points : {false, true}) {
      for (double outliers : {0.0, 0.01}) {
        options.zero_points = zero_points;
        options.outlier_share = outliers;
        Case c(options, &rng);
        for (int use_cp_async : {0, 1}) {
          for (int round = 0; round < 4; ++round, ++next) {
            cuda::Tuning tuning;
            tuning.use_cp_async = use_cp_async;
            c.desc.m = token_counts[next % std::size(token_counts)];
            c.desc.x_type = kTypes[next % 3];
            c.desc.y_type = kTypes[next / 3 % 3];
            const auto x = RoundTo(c.desc.x_type,
                                   RandomActivations(size_t{1} * c.desc.m * options.cols, &rng));
            reached.insert(KernelOf(c.desc, cuda::Select(c.desc, ThisDevice(), tuning)));
            const auto y = RunGpuLinear(c.desc, c.gpu, x, tuning);
            ASSERT_FALSE(HasFailure()) << Describe(options) << " m " << c.desc.m;
            EXPECT_LT(RelativeError(y, ReferenceLinear(c.plain, x, c.desc.m)),
                      Tolerance(c.desc.y_type))
                << Describe(options) << " m " << c.desc.m << " cp.async " << use_cp_async;
          }
        }
      }
    }
  }
  const size_t small = cuda::kSmallInstances, stream = 2 * cuda::kStreamForms.size();
  const size_t wide = 2 * (cuda::kWideForms.size() + cuda::kClusteredForms.size());
  EXPECT_EQ(reached.size(), ThisDevice().major >= 9 ? small + stream + wide : small)
      << "an instance was never run";
}

TEST(LinearGpu, ManyOutliersInOneTile) {
  std::mt19937 rng(12);
  PackedOptions options{40, 1024, 0.1, false, 0.03};  // about 250 in a full tile
  Case c(options, &rng);
  c.desc.m = 6;
  c.desc.y_type = DType::kF32;
  const auto x = RoundTo(DType::kF16, RandomActivations(6 * 1024, &rng));
  EXPECT_LT(RelativeError(RunGpuLinear(c.desc, c.gpu, x), ReferenceLinear(c.plain, x, 6)),
            Tolerance(DType::kF32));
}

// One small case of every kind of instance, for runs under compute-sanitizer.
TEST(LinearGpu, ReducedSetForSanitizers) {
  std::mt19937 rng(18);
  for (bool zero_points : {false, true}) {
    Case c({72, 784, 0.3, zero_points, 0.01}, &rng);
    c.desc.y_type = DType::kF32;
    for (int m : {1, 3, 7, 16, 21}) {
      for (int use_cp_async : {0, 1}) {
        cuda::Tuning tuning;
        tuning.use_cp_async = use_cp_async;
        c.desc.m = m;
        const auto x = RoundTo(DType::kF16, RandomActivations(size_t{1} * m * 784, &rng));
        EXPECT_LT(
            RelativeError(RunGpuLinear(c.desc, c.gpu, x, tuning), ReferenceLinear(c.plain, x, m)),
            Tolerance(DType::kF32));
      }
    }
  }
}

// A token's result is the same bits alone and at any place of any batch of up to 64 tokens.
TEST(LinearGpu, BatchInvariant) {
  std::mt19937 rng(13);
  constexpr int kMost = 64;
  struct Row {
    PackedOptions options;
    DType x_type;
  };
  const Row table[] = {{{208, 4096, 0.25, false, 0.002}, DType::kF16},
                       {{208, 4096, 0.25, true, 0.002}, DType::kBF16},
                       {{101, 1040, 0.0, false, 0.01}, DType::kBF16},
                       {{150, 2064, 1.0}, DType::kF32}};
  for (const Row& row : table) {
    Case c(row.options, &rng);
    c.desc.x_type = row.x_type;
    c.desc.y_type = DType::kF32;
    const int rows = c.desc.shapes[0].rows, cols = c.desc.shapes[0].cols;
    const auto all = RoundTo(row.x_type, RandomActivations(size_t{kMost} * cols, &rng));
    c.desc.m = kMost;
    const auto y = RunGpuLinear(c.desc, c.gpu, all);
    ASSERT_FALSE(HasFailure());
    for (int m = 1; m < kMost; m += OnDevice(1, 9)) {
      const int first = (7 * m) % (kMost - m);
      c.desc.m = m;
      const std::vector<float> part(all.begin() + size_t{1} * first * cols,
                                    all.begin() + size_t{1} * (first + m) * cols);
      const auto few = RunGpuLinear(c.desc, c.gpu, part);
      ASSERT_FALSE(HasFailure());
      EXPECT_TRUE(SameBits(few.data(), y.data() + size_t{1} * first * rows, few.size()))
          << Describe(row.options) << " m " << m << ", from token " << first;
    }
  }
}

// How tiles are shared out among warps, blocks and clusters does not change a bit.
TEST(LinearGpu, GeometryInvariant) {
  std::mt19937 rng(14);
  Case c({1040, 3584, 0.25, false, 0.002}, &rng);
  c.desc.y_type = DType::kF32;
  for (int m : {1, 6, 16}) {
    c.desc.m = m;
    const auto x =
        RoundTo(DType::kF16, RandomActivations(size_t{1} * m * c.desc.shapes[0].cols, &rng));
    const auto expected = RunGpuLinear(c.desc, c.gpu, x);
    ASSERT_FALSE(HasFailure());
    const cuda::Tuning tunings[] = {{4, 1, 1, 0}, {7, 3, 2, 0}, {10, 2, 1, 0},
                                    {8, 0, 1, 1}, {5, 2, 1, 0}, {3, 1, 3, 0}};
    for (const cuda::Tuning& t : tunings) {
      if (!cuda::Select(c.desc, ThisDevice(), t).error.empty()) continue;
      const auto y = RunGpuLinear(c.desc, c.gpu, x, t);
      EXPECT_TRUE(SameBits(y.data(), expected.data(), y.size()))
          << "m " << m << " warps " << t.warps << " stages " << t.stages;
    }
  }
}

// So few tiles in a row block that warps run row blocks ahead of each other.
TEST(LinearGpu, ManyRowBlocksOfFewTiles) {
  std::mt19937 rng(20);
  Case c({6016, 512, 0.0, false, 0.02}, &rng);
  c.desc.y_type = DType::kF32;
  for (int m : {1, 2, 3, 8}) {
    c.desc.m = m;
    const auto x = RoundTo(DType::kF16, RandomActivations(size_t{1} * m * 512, &rng));
    EXPECT_LT(RelativeError(RunGpuLinear(c.desc, c.gpu, x), ReferenceLinear(c.plain, x, m)),
              Tolerance(DType::kF32))
        << m;
  }
}

// NaN and infinity stay with their token, on every path.
TEST(LinearGpu, NonFiniteStaysInItsToken) {
  std::mt19937 rng(19);
  constexpr int kRows = 300, kCols = 1040;
  Case c({kRows, kCols, 0.25, false, 0.01}, &rng);
  c.desc.y_type = DType::kF32;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int m : {3, 8, 20, 40, 100, 200, 300}) {
    c.desc.m = m;
    // RunGpuLinear makes the largest finite number of an infinite one in f16.
    c.desc.x_type = m % 8 == 0 ? DType::kBF16 : DType::kF16;
    auto x = RoundTo(c.desc.x_type, RandomActivations(size_t{1} * m * kCols, &rng));
    std::vector<float> expected = RunGpuLinear(c.desc, c.gpu, x);
    ASSERT_FALSE(HasFailure());
    const int bad[] = {1, m / 2, m - 1};
    x[bad[0] * kCols + 17] = kNan;
    x[bad[1] * kCols + 800] = c.desc.x_type == DType::kF16 ? kNan : -kInfinity;
    x[bad[2] * kCols + 300] = kNan;
    std::vector<float> y = RunGpuLinear(c.desc, c.gpu, x);
    for (int token : bad) {
      const auto row = y.begin() + size_t{1} * token * kRows;
      EXPECT_TRUE(std::none_of(row, row + kRows, [](float v) { return std::isfinite(v); }))
          << "m " << m << " token " << token;
      std::copy_n(row, kRows, expected.begin() + size_t{1} * token * kRows);
    }
    EXPECT_TRUE(SameBits(y.data(), expected.data(), y.size())) << "m " << m;
  }
}

TEST(LinearGpu, ZeroAndNonFiniteActivations) {
  std::mt19937 rng(15);
  Case c({32, 1024, 0.25}, &rng);
  c.desc.y_type = DType::kF32;
  c.desc.x_type = DType::kBF16;
  c.desc.m = 4;
  std::vector<float> x(4 * 1024, 0.0f);
  x[1024 + 5] = std::numeric_limits<float>::quiet_NaN();
  x[2048 + 600] = std::numeric_limits<float>::infinity();
  x[3072 + 7] = 0x1p-126f;
  const auto y = RunGpuLinear(c.desc, c.gpu, x);
  ASSERT_FALSE(HasFailure());
  for (int r = 0; r < 32; ++r) {
    EXPECT_EQ(y[r], 0.0f);
    EXPECT_FALSE(std::isfinite(y[32 + r])) << r;
    EXPECT_FALSE(std::isfinite(y[64 + r])) << r;
    EXPECT_LT(std::fabs(y[96 + r]), 0x1p-100f);
  }
}

// Plain weights are those of the reference, up to one rounding (two where there is an outlier), and
// padding does not disturb them. Checked as a product with unit vectors would see them.
TEST(LinearGpu, DequantizeMatchesFloat64) {
  std::mt19937 rng(16);
  for (bool zero_points : {false, true}) {
    for (DType type : {DType::kF16, DType::kBF16}) {
      const PackedOptions options{77, 1040, 0.3, zero_points, 0.01};
      Case c(options, &rng);
      cuda::DeviceBuffer<uint8_t> out(cuda::ScratchBytes(c.desc.shapes[0]));
      cuda::CheckCuda(cudaMemset(out.get(), 0xFF, out.bytes()), "poison");
      cuda::CheckCuda(cuda::Dequantize({1, {c.gpu.view()}}, type, out.get(), nullptr),
                      "Dequantize");
      cuda::CheckCuda(cudaDeviceSynchronize(), "Dequantize");
      const std::vector<uint8_t> raw = out.Download();
      std::vector<float> unit(size_t{1} * options.cols * options.cols, 0.0f), weights;
      for (int i = 0; i < options.cols; ++i) unit[size_t{1} * i * options.cols + i] = 1.0f;
      for (int col = 0; col < options.cols; ++col) {
        for (int row = 0; row < options.rows; ++row) {
          uint16_t bits;
          std::memcpy(&bits, raw.data() + 2 * (size_t{1} * row * options.cols + col), 2);
          weights.push_back(FromBits(type, bits));
        }
      }
      const double error = RelativeError(weights, ReferenceLinear(c.plain, unit, options.cols));
      EXPECT_LT(error, type == DType::kF16 ? 4e-4 : 3e-3) << Describe(options);
    }
  }
}

TEST(LinearGpu, ThroughScratchMatchesFloat64) {
  std::string error;
  const auto cublas = cuda::Cublas::Open(&error);
  if (cublas == nullptr) GTEST_SKIP() << "needs cuBLAS: " << error;
  std::mt19937 rng(17);
  Case c({80, 1040, 0.25, false, 0.002}, &rng);
  c.desc.m = cuda::kMostHalfTokens + 44;
  for (DType type : {DType::kF16, DType::kBF16}) {
    c.desc.x_type = c.desc.y_type = type;
    ASSERT_EQ(cuda::Select(c.desc, ThisDevice()).path, cuda::Path::kDequantize);
    const auto x = RoundTo(type, RandomActivations(size_t{1} * c.desc.m * 1040, &rng));
    const auto y = RunGpuLinear(c.desc, c.gpu, x, {}, cublas.get());
    EXPECT_LT(RelativeError(y, ReferenceLinear(c.plain, x, c.desc.m)),
              type == DType::kF16 ? 1e-3 : 8e-3);
  }
}

TEST(LinearGpu, ThroughScratchAddsToWhatIsThere) {
  std::string error;
  const auto cublas = cuda::Cublas::Open(&error);
  if (cublas == nullptr) GTEST_SKIP() << "needs cuBLAS: " << error;
  std::mt19937 rng(18);
  Case c({80, 1040, 0.25, false, 0.002}, &rng);
  c.desc.m = cuda::kMostHalfTokens + 44;
  c.desc.y_type = DType::kF32;
  const auto x = RoundTo(DType::kF16, RandomActivations(size_t{1} * c.desc.m * 1040, &rng));
  const auto rows = RandomActivations(size_t{1} * c.desc.m * 80, &rng);
  const cuda::DeviceBuffer<uint8_t> x_device(StoredAs(DType::kF16, x));
  const cuda::DeviceBuffer<uint8_t> scratch(cuda::ScratchBytes(c.desc.shapes[0]));
  const cuda::DeviceBuffer<float> y(rows);
  const cuda::Plan plan = cuda::Select(c.desc, ThisDevice());
  ASSERT_TRUE(plan.adds_in_place());
  const cuda::DeviceGroup group = {1, {c.gpu.view()}};
  const cuda::LinearInput in = cuda::InputOf(c.desc, plan, group, nullptr, x_device.get());
  cuda::LinearOutput out;
  out.y = y.get();
  out.stride = 80;
  out.add = y.get();
  EXPECT_EQ(cuda::LaunchLinear(c.desc, plan, group, in, out, {scratch.get(), cublas.get(), nullptr},
                               nullptr),
            "");
  cuda::CheckCuda(cudaDeviceSynchronize(), "LaunchLinear");
  std::vector<double> want = ReferenceLinear(c.plain, x, c.desc.m);
  for (size_t i = 0; i < want.size(); ++i) want[i] += rows[i];
  EXPECT_LT(RelativeError(y.Download(), want), 1e-3);
}

}  // namespace
}  // namespace fewbit::testing
