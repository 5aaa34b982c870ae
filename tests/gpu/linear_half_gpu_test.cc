// The kernel for many tokens (kernels/cuda/linear_half.h) on a real device: against float64, and
// the same bits in every launch.
#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>
#include <set>

#include "kernels/cuda/half_instances.h"
#include "tests/gpu/gpu_linear.h"
#include "tests/gpu/on_device.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::testing {
namespace {

// x is exact; a weight is rounded to fp16 twice, its scale and itself. Outputs in 16 bits round
// once more.
constexpr double kError = 1e-3;
double Tolerance(DType y_type) {
  return kError + (y_type == DType::kF32 ? 0.0 : y_type == DType::kF16 ? 3e-4 : 3e-3);
}

struct Case : LinearCase {
  Case(const PackedOptions& options, std::mt19937* rng) : LinearCase(options, rng) {
    desc.y_type = DType::kF32;
  }
  std::vector<float> Tokens(int m, std::mt19937* rng) const {
    return RoundTo(DType::kF16, RandomActivations(size_t{1} * m * plain.shape.cols, rng));
  }
};

bool HasHalf() { return ThisDevice().half_clusters > 0; }

TEST(LinearHalfGpu, EveryFormMatchesFloat64) {
  if (!HasHalf()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(31);
  std::set<int> reached;
  const PackedOptions shapes[] = {
      {16, 128, 0.25},  {77, 48, 0.5},    {40, 16, 0.0},    {333, 1040, 0.3},
      {48, 4096, 0.25}, {2131, 528, 1.0}, {161, 2816, 0.0}, {300, 5504, 0.1, false, 0.0, 2}};
  const int token_counts[] = {65, 128, 77, 129, 200, 256, 100, 191};
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  int next = 0;
  for (PackedOptions options : shapes) {
    for (bool zero_points : {false, true}) {
      for (double outliers : {0.0, 0.002, 0.01}) {
        options.zero_points = zero_points;
        options.outlier_share = outliers;
        Case c(options, &rng);
        for (int round = 0; round < 2; ++round, ++next) {
          c.desc.m = token_counts[(next + next / 8) % 8];
          c.desc.y_type = kTypes[next % 3];
          const cuda::Plan plan = cuda::Select(c.desc, ThisDevice());
          ASSERT_EQ(plan.path, cuda::Path::kHalf);
          reached.insert(2 * plan.half.form + zero_points);
          const auto x = c.Tokens(c.desc.m, &rng);
          const auto y = RunGpuLinear(c.desc, c.gpu, x);
          ASSERT_FALSE(HasFailure()) << Describe(options) << " m " << c.desc.m;
          EXPECT_LT(RelativeError(y, ReferenceLinear(c.plain, x, c.desc.m)),
                    Tolerance(c.desc.y_type))
              << Describe(options) << " m " << c.desc.m << " next " << next;
        }
      }
    }
  }
  EXPECT_EQ(reached.size(), 2 * cuda::kHalfForms.size()) << "an instance was never run";
}

// Several groups in one launch, the last one full, ragged or of a single token. What is behind the
// tokens that exist is NaN.
TEST(LinearHalfGpu, TokenGroupsMatchFloat64) {
  if (!HasHalf()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(36);
  std::set<int> reached;
  const PackedOptions shapes[] = {
      {200, 1040, 0.3}, {77, 48, 0.5}, {300, 528, 1.0}, {520, 272, 0.0}};
  const int token_counts[] = {257, 640, 300, 1024, 512, 1000, 383, 700, 270};
  constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  int next = 0;
  for (PackedOptions options : shapes) {
    for (bool zero_points : {false, true}) {
      for (double outliers : {0.0, 0.01}) {
        options.zero_points = zero_points;
        options.outlier_share = outliers;
        Case c(options, &rng);
        const int m = c.desc.m = token_counts[next % 9];
        c.desc.y_type = kTypes[next++ % 3];
        const cuda::Plan plan = cuda::Select(c.desc, ThisDevice());
        ASSERT_EQ(plan.path, cuda::Path::kHalf);
        reached.insert(plan.half.groups);
        const auto x = c.Tokens(m, &rng);
        const auto y = RunGpuLinear(c.desc, c.gpu, x);
        ASSERT_FALSE(HasFailure()) << Describe(options) << " m " << m;
        EXPECT_LT(RelativeError(y, ReferenceLinear(c.plain, x, m)), Tolerance(c.desc.y_type))
            << Describe(options) << " m " << m;
      }
    }
  }
  EXPECT_EQ(reached, (std::set<int>{2, 3, 4}));
}

// Outliers in every place of a tile's operands, alone: all other weights are zero for the tokens.
TEST(LinearHalfGpu, ManyOutliers) {
  if (!HasHalf()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(32);
  Case c({260, 1024, 0.1, false, 0.05}, &rng);
  c.desc.m = 70;
  const auto x = c.Tokens(70, &rng);
  EXPECT_LT(RelativeError(RunGpuLinear(c.desc, c.gpu, x), ReferenceLinear(c.plain, x, 70)), kError);
}

// For runs under compute-sanitizer.
TEST(LinearHalfGpu, ReducedSetForSanitizers) {
  if (!HasHalf()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(33);
  for (bool zero_points : {false, true}) {
    Case c({200, 1552, 0.3, zero_points, 0.01}, &rng);
    for (int m : {70, 140, 300}) {
      c.desc.m = m;
      const auto x = c.Tokens(m, &rng);
      EXPECT_LT(RelativeError(RunGpuLinear(c.desc, c.gpu, x), ReferenceLinear(c.plain, x, m)),
                kError);
    }
  }
}

// Units cut into pieces anywhere, launch after launch without a pause: the same bits always.
void ExpectSameBitsInEveryLaunch(const PackedOptions& options, std::initializer_list<int> tokens) {
  std::mt19937 rng(34);
  const int chain = OnDevice(8, 2);
  Case c(options, &rng);
  const cuda::DeviceBuffer<uint8_t> exchange = ZeroedExchange();
  for (int m : tokens) {
    c.desc.m = m;
    const auto x = c.Tokens(m, &rng);
    const cuda::Plan plan = cuda::Select(c.desc, ThisDevice());
    ASSERT_EQ(plan.path, cuda::Path::kHalf);
    LaunchInARow(c.desc, plan, c.gpu, x, chain, exchange);
  }
}

TEST(LinearHalfGpu, SameBitsInEveryLaunch) {
  if (!HasHalf()) GTEST_SKIP() << "needs sm_90";
  ExpectSameBitsInEveryLaunch({OnDevice(6200, 1400), 2064, 0.25, false, 0.004},
                              {100, 256, 140, 640});
}

// Several clusters to a unit, cut anywhere, and units of several token groups beside each other.
TEST(LinearHalfGpu, SameBitsInEveryLaunchOfTokenGroups) {
  if (!HasHalf()) GTEST_SKIP() << "needs sm_90";
  ExpectSameBitsInEveryLaunch({700, 1040, 0.25, false, 0.004}, {300, 512, 1000});
}

// Three matrices with one input, each with strips in its own order, side by side in y.
void ExpectGroupMatchesFloat64(int tokens) {
  std::mt19937 rng(35);
  constexpr int kCols = 1040;
  const int rows[] = {512, 100, 300};
  std::vector<Case> cases;
  cuda::Desc desc;
  cuda::DeviceGroup group;
  cuda::LinearOutput out;
  int64_t all = 0;
  for (int r : rows) {
    cases.emplace_back(
        PackedOptions{r, kCols, 0.1 * static_cast<double>(cases.size()), false, 0.004}, &rng);
  }
  for (const Case& c : cases) {
    desc.shapes[group.count] = c.plain.shape;
    out.column[group.count] = all;
    all += c.plain.shape.rows;
    group.parts[group.count++] = c.gpu.view();
  }
  desc.count = group.count;
  desc.m = tokens;
  desc.y_type = DType::kF32;
  const auto x = cases[0].Tokens(tokens, &rng);
  const cuda::DeviceBuffer<uint8_t> x_device(AllBytes(desc.x_type, x));
  const cuda::Plan plan = cuda::Select(desc, ThisDevice());
  ASSERT_EQ(plan.path, cuda::Path::kHalf);
  const cuda::DeviceBuffer<uint8_t> staged(cuda::StagedBytes(desc, plan));
  const cuda::LinearInput in = cuda::InputOf(desc, plan, group, staged.get(), nullptr);
  cuda::CheckCuda(cuda::StageActivations(desc, x_device.get(), kCols, in, nullptr), "stage");
  const cuda::DeviceBuffer<uint8_t> exchange = ZeroedExchange();
  cuda::LinearWorkspace workspace;
  workspace.exchange = exchange.get();
  cuda::DeviceBuffer<float> y(size_t{1} * tokens * all);
  cuda::CheckCuda(cudaMemset(y.get(), 0xFF, y.bytes()), "poison");
  out.y = y.get();
  out.stride = all;
  ASSERT_EQ(cuda::LaunchLinear(desc, plan, group, in, out, workspace, nullptr), "");
  cuda::CheckCuda(cudaDeviceSynchronize(), "group");
  ExpectZero(exchange);
  const std::vector<float> result = y.Download();
  for (int p = 0; p < group.count; ++p) {
    std::vector<float> part;
    for (int i = 0; i < tokens; ++i) {
      const auto row = result.begin() + i * all + out.column[p];
      part.insert(part.end(), row, row + cases[p].plain.shape.rows);
    }
    EXPECT_LT(RelativeError(part, ReferenceLinear(cases[p].plain, x, tokens)), kError)
        << p << " m " << tokens;
  }
}

TEST(LinearHalfGpu, GroupOfMatrices) {
  if (!HasHalf()) GTEST_SKIP() << "needs sm_90";
  for (int tokens : {150, 300}) ExpectGroupMatchesFloat64(tokens);
}

}  // namespace
}  // namespace fewbit::testing
