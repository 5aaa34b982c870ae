#include "tests/gpu/tune_compare.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/cuda/tune_ops.h"
#include "runtime/tune/cpu_ops.h"

namespace fewbit::testing {
namespace {

constexpr size_t kGuard = 64;  // unwritten floats behind every array

}  // namespace

std::unique_ptr<tune::Ops> TuneGpu::cpu_, TuneGpu::gpu_;

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double RelativeError(const std::vector<float>& x, const std::vector<float>& reference) {
  if (x.size() != reference.size()) return INFINITY;
  double error = 0, norm = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    if (std::isnan(x[i]) && std::isnan(reference[i])) continue;
    const double difference = static_cast<double>(x[i]) - reference[i];
    error += difference * difference;
    norm += static_cast<double>(reference[i]) * reference[i];
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

std::vector<float> Unwritten(size_t count) {
  return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN());
}

std::vector<float> RandomFloats(size_t count, std::mt19937* rng, bool exact) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::uniform_int_distribution<int> steps(-256, 256);
  std::vector<float> out(count);
  for (float& x : out) x = exact ? static_cast<float>(steps(*rng)) / 64.0f : normal(*rng);
  return out;
}

void TuneGpu::SetUpTestSuite() {
  cpu_ = tune::CreateCpuOps(0);
  auto gpu = tune::CreateCudaOps(0);
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  gpu_ = *std::move(gpu);
}

void TuneGpu::TearDownTestSuite() {
  cpu_.reset();
  gpu_.reset();
}

void TuneGpu::SetUp() { ASSERT_NE(gpu_, nullptr); }

TuneGpu::Outcome TuneGpu::RunOn(tune::Ops* ops, const std::vector<std::vector<float>>& arrays,
                                const Run& run) {
  const auto allocate = [ops](size_t bytes) {
    const auto data = ops->Allocate(bytes);
    EXPECT_TRUE(data.ok()) << data.status();
    return *data;
  };
  std::vector<float*> pointers;
  for (std::vector<float> array : arrays) {
    array.resize(array.size() + kGuard, std::numeric_limits<float>::quiet_NaN());
    const size_t bytes = array.size() * sizeof(float);
    pointers.push_back(static_cast<float*>(allocate(bytes)));
    ops->Upload(array.data(), bytes, pointers.back());
  }
  auto* sums = static_cast<tune::LossSums*>(allocate(sizeof(tune::LossSums)));
  ops->Upload(&kFirstSums, sizeof(kFirstSums), sums);
  run(ops, pointers, sums);
  Outcome outcome;
  for (size_t i = 0; i < arrays.size(); ++i) {
    std::vector<float> array(arrays[i].size() + kGuard);
    ops->Download(pointers[i], array.size() * sizeof(float), array.data());
    for (size_t g = arrays[i].size(); g < array.size(); ++g) {
      EXPECT_TRUE(std::isnan(array[g])) << ops->device() << " wrote beyond array " << i;
    }
    array.resize(arrays[i].size());
    outcome.arrays.push_back(std::move(array));
    ops->Free(pointers[i]);
  }
  ops->Download(sums, sizeof(outcome.sums), &outcome.sums);
  ops->Free(sums);
  return outcome;
}

void TuneGpu::ExpectSame(const std::vector<std::vector<float>>& arrays, double tolerance,
                         const Run& run) {
  const Outcome cpu = RunOn(cpu_.get(), arrays, run);
  const Outcome gpu = RunOn(gpu_.get(), arrays, run);
  const Outcome again = RunOn(gpu_.get(), arrays, run);
  for (size_t i = 0; i < arrays.size(); ++i) {
    EXPECT_LE(RelativeError(gpu.arrays[i], cpu.arrays[i]), tolerance) << "array " << i;
    EXPECT_TRUE(SameBits(gpu.arrays[i], again.arrays[i])) << "array " << i << " of two runs";
  }
  EXPECT_NEAR(gpu.sums.kl, cpu.sums.kl, tolerance * std::abs(cpu.sums.kl));
  EXPECT_EQ(gpu.sums.same_top, cpu.sums.same_top);
  EXPECT_EQ(std::memcmp(&gpu.sums, &again.sums, sizeof(gpu.sums)), 0) << "sums of two runs";
}

}  // namespace fewbit::testing
