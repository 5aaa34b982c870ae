// The wide kernel (kernels/cuda/linear_wide.h) on a real device: against float64 and, bit for bit,
// against the kernels for few tokens.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cuda/half_instances.h"
#include "kernels/cuda/wide_instances.h"
#include "tests/gpu/gpu_linear.h"
#include "tests/gpu/on_device.h"
#include "tests/gpu/stage_rows.h"
#include "tests/kernels/random_matrix.h"

namespace fewbit::testing {
namespace {

constexpr double kError = 6e-4;  // of 15-bit activations, as in linear_gpu_test.cc

struct Case : LinearCase {
  Case(const PackedOptions& options, std::mt19937* rng) : LinearCase(options, rng) {
    desc.y_type = DType::kF32;
  }
  // Sets the number of tokens, with an input type that the wide kernel takes that many of.
  void SetTokens(int m) {
    desc.m = m;
    desc.x_type = m < cuda::kLeastHalfTokens                ? DType::kF16
                  : m <= cuda::kMaxWideTokens && m % 2 == 0 ? DType::kBF16
                                                            : DType::kF32;
  }
  std::vector<float> Tokens(int m, std::mt19937* rng) const {
    return RoundTo(desc.x_type, RandomActivations(size_t{1} * m * plain.shape.cols, rng));
  }
};

bool HasWide() { return ThisDevice().wide_teams > 0; }

TEST(LinearWideGpu, EveryFormMatchesFloat64) {
  if (!HasWide()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(21);
  const PackedOptions shapes[] = {{16, 128, 0.25},
                                  {77, 48, 0.5},
                                  {40, 16, 0.0},
                                  {333, 1040, 0.3},
                                  {136, 4096, 0.25},
                                  {260, 528, 1.0},
                                  {161, 2816, 0.0},
                                  {64, 5504, 0.1, false, 0.0, 2},
                                  {144, 2048, 0.25, false, 0.03}};
  const int token_counts[] = {9, 16, 17, 31, 32, 33, 64, 65, 70, 127, 128, 129, 300};
  int next = 0;
  for (PackedOptions options : shapes) {
    for (bool zero_points : {false, true}) {
      for (double outliers : {options.outlier_share, 0.01}) {
        options.zero_points = zero_points;
        options.outlier_share = outliers;
        Case c(options, &rng);
        for (int round = 0; round < 4; ++round, next += 3) {
          c.SetTokens(token_counts[next % std::size(token_counts)]);
          ASSERT_EQ(cuda::Select(c.desc, ThisDevice()).path, cuda::Path::kWide);
          const auto x = c.Tokens(c.desc.m, &rng);
          const auto y = RunGpuLinear(c.desc, c.gpu, x);
          ASSERT_FALSE(HasFailure()) << Describe(options) << " m " << c.desc.m;
          EXPECT_LT(RelativeError(y, ReferenceLinear(c.plain, x, c.desc.m)), kError)
              << Describe(options) << " m " << c.desc.m;
        }
      }
    }
  }
}

// The kernel for few tokens that every device has, on a sample of the tokens of a large batch.
TEST(LinearWideGpu, SameBitsAsFewTokens) {
  if (!HasWide()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(22);
  cuda::Tuning few;
  few.use_cp_async = 1;
  for (const PackedOptions& options :
       {PackedOptions{208, 4096, 0.25, false, 0.002}, PackedOptions{208, 4096, 0.25, true, 0.002},
        PackedOptions{150, 1040, 0.4, false, 0.01}, PackedOptions{77, 784, 1.0},
        PackedOptions{130, 11008, 0.25, false, 0.002}}) {
    Case c(options, &rng);
    for (int m : {9, 20, 50, 64, 100, 300, 1000}) {
      c.SetTokens(m);
      const auto x = c.Tokens(m, &rng);
      const auto y = RunGpuLinear(c.desc, c.gpu, x);
      ASSERT_FALSE(HasFailure()) << Describe(options) << " m " << m;
      for (int token : {0, 8, m / 2, m - 1}) {
        c.desc.m = 1;
        const std::vector<float> one(x.begin() + size_t{1} * token * options.cols,
                                     x.begin() + size_t{1} * (token + 1) * options.cols);
        const auto alone = RunGpuLinear(c.desc, c.gpu, one, few);
        EXPECT_EQ(std::memcmp(alone.data(), y.data() + size_t{1} * token * options.rows,
                              alone.size() * sizeof(float)),
                  0)
            << Describe(options) << " m " << m << " token " << token;
      }
    }
  }
}

// Query, key and value in one launch, one after the other with nothing but stream order between
// them: each kernel starts early and must still wait for what it reads.
TEST(LinearWideGpu, GroupsInAChain) {
  if (!HasWide()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(23);
  constexpr int kCols = 2048, kChain = 6;
  const int rows[] = {320, 144, 100};
  std::vector<Case> parts;
  for (int r : rows) parts.emplace_back(PackedOptions{r, kCols, 0.25, false, 0.004}, &rng);
  cuda::Desc desc = parts[0].desc;
  cuda::DeviceGroup group;
  cuda::LinearOutput out;
  desc.count = group.count = 3;
  for (int p = 0; p < 3; ++p) {
    desc.shapes[p] = parts[p].plain.shape;
    group.parts[p] = parts[p].gpu.view();
    out.column[p] = p == 0 ? 0 : out.column[p - 1] + rows[p - 1];
  }
  out.stride = rows[0] + rows[1] + rows[2];
  for (int m : {12, 60, 120}) {
    for (Case& part : parts) part.SetTokens(m);
    desc.m = m;
    desc.x_type = parts[0].desc.x_type;
    const cuda::Plan plan = cuda::Select(desc, ThisDevice());
    ASSERT_EQ(plan.path, cuda::Path::kWide);
    const cuda::DeviceBuffer<uint8_t> staged(cuda::StagedBytes(desc, plan));
    const cuda::LinearInput in = cuda::InputOf(desc, plan, group, staged.get(), nullptr);
    std::vector<std::vector<float>> x(kChain);
    std::vector<cuda::DeviceBuffer<uint8_t>> x_device;
    std::vector<cuda::DeviceBuffer<float>> y;
    for (auto& tokens : x) {
      tokens = parts[0].Tokens(m, &rng);
      x_device.emplace_back(AllBytes(desc.x_type, tokens));
      y.emplace_back(size_t{1} * m * out.stride);
      cuda::CheckCuda(cudaMemset(y.back().get(), 0xAB, y.back().bytes()), "poison");
    }
    const cuda::DeviceBuffer<uint8_t> exchange = ZeroedExchange();
    cuda::LinearWorkspace workspace;
    workspace.exchange = exchange.get();
    for (int i = 0; i < kChain; ++i) {
      out.y = y[i].get();
      cuda::CheckCuda(cuda::StageActivations(desc, x_device[i].get(), kCols, in, nullptr), "stage");
      ASSERT_EQ(cuda::LaunchLinear(desc, plan, group, in, out, workspace, nullptr), "");
    }
    cuda::CheckCuda(cudaDeviceSynchronize(), "chain");
    ExpectZero(exchange);
    for (int i = 0; i < kChain; ++i) {
      const std::vector<float> all = y[i].Download();
      for (int p = 0; p < 3; ++p) {
        const auto expected = RunGpuLinear(parts[p].desc, parts[p].gpu, x[i]);
        for (int token = 0; token < m; ++token) {
          ASSERT_EQ(std::memcmp(&expected[size_t{1} * token * rows[p]],
                                &all[token * out.stride + out.column[p]], rows[p] * sizeof(float)),
                    0)
              << "m " << m << " link " << i << " part " << p << " token " << token;
        }
      }
    }
  }
}

// Races between copies and readers are rare: this is one launch many times over, on an idle machine
// each time. (Stages that were handed back before the last load from them had come made about one
// launch of a thousand wrong.) With outliers, and more units than clusters find room: blocks of one
// launch wait for others that start only while those of the launch before end.
TEST(LinearWideGpu, ManyLaunchesGiveTheSameBits) {
  if (!HasWide()) GTEST_SKIP() << "needs sm_90";
  const int launches = OnDevice(3000, 3);
  std::mt19937 rng(25);
  Case c({8320, 4096, 0.25, false, 0.002}, &rng);
  const cuda::DeviceGroup group = {1, {c.gpu.view()}};
  const cuda::DeviceBuffer<uint8_t> exchange = ZeroedExchange();
  cuda::LinearWorkspace workspace;
  workspace.exchange = exchange.get();
  c.desc.x_type = DType::kF16;  // from kLeastHalfTokens on, these are the kernel for many tokens
  for (int m : {16, 32, 64, 128, 256}) {
    c.desc.m = m;
    const cuda::Plan plan = cuda::Select(c.desc, ThisDevice());
    const cuda::DeviceBuffer<uint8_t> staged(cuda::StagedBytes(c.desc, plan));
    const cuda::LinearInput in = cuda::InputOf(c.desc, plan, group, staged.get(), nullptr);
    const cuda::DeviceBuffer<uint8_t> x(AllBytes(c.desc.x_type, c.Tokens(m, &rng)));
    cuda::CheckCuda(cuda::StageActivations(c.desc, x.get(), c.plain.shape.cols, in, nullptr),
                    "stage");
    const int64_t count = int64_t{m} * c.plain.shape.rows;
    const cuda::DeviceBuffer<float> first(count), again(count);
    const cuda::DeviceBuffer<unsigned long long> differences(std::vector<unsigned long long>{0});
    for (int i = 0; i < launches; ++i) {
      cuda::LinearOutput out;
      out.y = i == 0 ? first.get() : again.get();
      out.stride = c.plain.shape.rows;
      ASSERT_EQ(cuda::LaunchLinear(c.desc, plan, group, in, out, workspace, nullptr), "");
      if (i == 0) continue;
      cuda::CheckCuda(CountDifferences(first.get(), again.get(), count, differences.get(), nullptr),
                      "CountDifferences");
    }
    EXPECT_EQ(differences.Download()[0], 0u) << "m " << m;
  }
}

// So many units that every box between the blocks of a team is used again, several times in a row
// without a pause.
TEST(LinearWideGpu, ManyUnitsPerTeam) {
  if (!HasWide()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(25);
  constexpr int kRows = 4660, kCols = 784, kChain = 5;
  Case c({kRows, kCols, 0.25, false, 0.004}, &rng);
  cuda::Tuning few;
  few.use_cp_async = 1;
  const cuda::DeviceBuffer<uint8_t> exchange = ZeroedExchange();
  for (int m : {16, 250}) {
    c.SetTokens(m);
    const auto x = c.Tokens(m, &rng);
    const cuda::Plan plan = cuda::Select(c.desc, ThisDevice());
    const std::vector<float> first = LaunchInARow(c.desc, plan, c.gpu, x, kChain, exchange);
    for (int token : {0, m / 2, m - 1}) {
      c.desc.m = 1;
      const std::vector<float> one(x.begin() + size_t{1} * token * kCols,
                                   x.begin() + size_t{1} * (token + 1) * kCols);
      const auto alone = RunGpuLinear(c.desc, c.gpu, one, few);
      EXPECT_EQ(std::memcmp(alone.data(), &first[size_t{1} * token * kRows],
                            alone.size() * sizeof(float)),
                0)
          << "m " << m << " token " << token;
    }
  }
}

// For runs under compute-sanitizer.
TEST(LinearWideGpu, ReducedSetForSanitizers) {
  if (!HasWide()) GTEST_SKIP() << "needs sm_90";
  std::mt19937 rng(24);
  for (bool zero_points : {false, true}) {
    Case c({200, 784, 0.3, zero_points, 0.01}, &rng);
    for (int m : {16, 30, 64, 140}) {
      c.SetTokens(m);
      const auto x = c.Tokens(m, &rng);
      EXPECT_LT(RelativeError(RunGpuLinear(c.desc, c.gpu, x), ReferenceLinear(c.plain, x, m)),
                kError);
    }
  }
}

}  // namespace
}  // namespace fewbit::testing
