// Whole models on the GPU: every golden checkpoint against the reference implementation's logits,
// the bundled packed model against the CPU runtime, and its perplexity.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "gtest/gtest.h"
#include "tests/golden/checkpoints.h"
#include "tests/gpu/runtime/gpu_model.h"
#include "tests/npy.h"
#include "tests/runtime/model_runner.h"
#include "tests/runtime/random_model.h"
#include "tests/runtime/step_driver.h"

namespace fewbit::testing {
namespace {

class GoldenGpuTest : public ::testing::TestWithParam<const char*> {};

// Up to where two logits of the reference come within `margin` of each other, the tokens are its
// own.
void ExpectGreedy(const Golden& golden, const std::vector<SampledToken>& sampled, float margin) {
  ASSERT_EQ(sampled.size(), golden.greedy.size());
  for (size_t i = 0; i < sampled.size() && golden.top2_margins[i] > margin; ++i) {
    EXPECT_EQ(ToInt(sampled[i].token), golden.greedy[i]) << "token " << i;
  }
}

TEST_P(GoldenGpuTest, LogitsAndGreedyTokens) {
  const Golden golden = LoadGolden(GetParam());
  ASSERT_NE(golden.model, nullptr);
  const int vocab = golden.model->spec.vocab_size;
  const Request request = ScoredRequest(golden.prompt, static_cast<int>(golden.greedy.size()));
  struct Case {
    kv::KvType kv_type;
    bool graphs;
    double tolerance;
  };
  for (const Case& c : {Case{kv::KvType::kF16, true, 2e-3}, Case{kv::KvType::kF16, false, 2e-3},
                        Case{kv::KvType::kBF16, true, 1e-2}, Case{kv::KvType::kI8, true, 2e-2}}) {
    CudaOptions options = SmallCudaOptions();
    options.kv_type = c.kv_type;
    options.graphs = c.graphs;
    const auto executor = MakeCuda(*golden.model, options);
    ASSERT_NE(executor, nullptr);
    for (const int chunk : {64, 7, 1}) {
      const RequestRun run = RunRequest(executor.get(), request, chunk);
      const Difference d = Compare(run.logits, golden.logits, vocab);
      std::printf("%s, %s KV, %s, chunks of %d: relative error %.2e, largest %.2e\n", GetParam(),
                  kv::KvTypeName(c.kv_type), c.graphs ? "graphs" : "eager", chunk, d.relative,
                  static_cast<double>(d.largest));
      EXPECT_LE(d.relative, c.tolerance) << kv::KvTypeName(c.kv_type) << " chunk " << chunk;
      ExpectGreedy(golden, run.sampled, static_cast<float>(20 * c.tolerance));
    }
  }
}

// A prompt in one step: more tokens than the batch-invariant kernels of dense matrices take.
TEST_P(GoldenGpuTest, WholePromptInOneStep) {
  const Golden golden = LoadGolden(GetParam());
  ASSERT_NE(golden.model, nullptr);
  const auto executor = MakeCuda(*golden.model, SmallCudaOptions());
  ASSERT_NE(executor, nullptr);
  Request request = ScoredRequest(golden.prompt, static_cast<int>(golden.greedy.size()));
  const RequestRun chunks = RunRequest(executor.get(), request, 64);
  StepDriver driver(executor.get());
  driver.Add(request);
  while (!driver.Done()) ASSERT_TRUE(driver.Step(512).ok());
  ExpectGreedy(golden, driver.sequence(0).sampled, 0.05f);
  ASSERT_EQ(driver.sequence(0).scored.size(), chunks.scored.size());
  for (size_t i = 0; i < chunks.scored.size(); ++i) {
    EXPECT_NEAR(driver.sequence(0).scored[i].logprob, chunks.scored[i].logprob, 0.05f) << i;
  }
}

// What lies between the linear layers of a family (biases, norms of heads, kinds of rope, windows)
// meets the kernels of packed ones. The reference is the CPU with their values in float32.
TEST_P(GoldenGpuTest, PackedLayers) {
  const Golden golden = LoadGolden(GetParam());
  ASSERT_NE(golden.model, nullptr);
  const int vocab = golden.model->spec.vocab_size;
  const auto exact = PackedModel(*golden.model, true), packed = PackedModel(*golden.model, false);
  ModelRunner runner(exact->model);
  std::vector<int32_t> prompt;
  for (const TokenId id : golden.prompt) prompt.push_back(ToInt(id));
  const int all = runner.Add(prompt);
  runner.Step({{all, static_cast<int>(prompt.size())}});
  const Request request = ScoredRequest(golden.prompt, 1);
  struct Case {
    kv::KvType kv_type;
    double tolerance;
  };
  for (const Case& c : {Case{kv::KvType::kF16, 2e-3}, Case{kv::KvType::kI8, 2e-2}}) {
    CudaOptions options = SmallCudaOptions();
    options.kv_type = c.kv_type;
    const auto executor = MakeCuda(packed->model, options);
    ASSERT_NE(executor, nullptr);
    for (const int chunk : {64, 7, 1}) {
      const Difference d = Compare(RunRequest(executor.get(), request, chunk).logits,
                                   runner.sequence(all).logits, vocab);
      std::printf("%s packed, %s KV, chunks of %d: relative error %.2e, largest %.2e\n", GetParam(),
                  kv::KvTypeName(c.kv_type), chunk, d.relative, static_cast<double>(d.largest));
      EXPECT_LE(d.relative, c.tolerance) << kv::KvTypeName(c.kv_type) << " chunk " << chunk;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenGpuTest, ::testing::ValuesIn(kGoldenCheckpoints),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

std::vector<SampledToken> ScoreOn(Executor* executor, const Request& request, int chunk) {
  StepDriver driver(executor);
  driver.Add(request);
  while (!driver.Done()) EXPECT_TRUE(driver.Step(chunk).ok());
  return driver.sequence(0).scored;
}

// Mean and largest distance of two rows of log-likelihoods.
struct Distance {
  double mean = 0.0, largest = 0.0;
};
Distance Between(const std::vector<SampledToken>& a, const std::vector<SampledToken>& b) {
  Distance d;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double e = std::fabs(static_cast<double>(a[i].logprob) - b[i].logprob);
    d.mean += e / static_cast<double>(a.size());
    d.largest = std::max(d.largest, e);
  }
  return d;
}

// Prompts of several sequences in one step: 640 and 400 tokens make fp16 weights on their way to
// the tensor cores, in token groups, 600 go through scratch memory (sm_90; elsewhere all do).
TEST(PackedLayersGpu, LargeSteps) {
  const Golden golden = LoadGolden("llama3");
  ASSERT_NE(golden.model, nullptr);
  constexpr int kSequences = 4;
  const auto packed = PackedModel(*golden.model, false);
  CudaOptions options = SmallCudaOptions();
  options.max_step_tokens = 640;
  const auto executor = MakeCuda(packed->model, options);
  ASSERT_NE(executor, nullptr);
  const Request request = ScoredRequest(golden.prompt, 1);
  const auto few = ScoreOn(executor.get(), request, 64);
  for (const int chunk : {160, 150, 100}) {
    StepDriver driver(executor.get());
    for (int i = 0; i < kSequences; ++i) driver.Add(request);
    while (!driver.Done()) ASSERT_TRUE(driver.Step(chunk).ok());
    for (int i = 0; i < kSequences; ++i) {
      const Distance d = Between(driver.sequence(i).scored, few);
      EXPECT_LT(d.largest, 0.05) << "chunks of " << chunk << ", sequence " << i;
      EXPECT_GT(d.largest, 0.0);
    }
  }
}

// Of a text that the bundled model has not seen (tests/golden/README.md).
std::vector<TokenId> TextIds() {
  std::vector<TokenId> ids;
  for (const int32_t id : ReadNpy<int32_t>(GoldenDirectory() + "/text_ids.npy").values) {
    ids.push_back(TokenId(id));
  }
  return ids;
}

// Negative log-likelihoods over windows of `context` tokens, each begun with BOS.
std::vector<double> Nll(Executor* executor, const Model& model, const std::vector<TokenId>& ids,
                        int context) {
  std::vector<double> out;
  for (size_t begin = 0; begin + context - 1 <= ids.size(); begin += context - 1) {
    std::vector<TokenId> window = {model.spec.bos};
    window.insert(window.end(), ids.begin() + begin, ids.begin() + begin + context - 1);
    StepDriver driver(executor);
    driver.Add(ScoredRequest(window, 1));
    while (!driver.Done()) EXPECT_TRUE(driver.Step(128).ok());
    for (const SampledToken& token : driver.sequence(0).scored) out.push_back(-token.logprob);
  }
  return out;
}

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// The GPU rounds activations to 15 bits and the cache to 16; beside the same weights in float32
// that is all that may be seen. The CPU's packed kernels round activations as they like.
TEST(BundledModelGpu, LogLikelihoodsAreThoseOfTheDequantizedModel) {
  const auto model = LoadTestModel(ModelDirectory());
  ASSERT_NE(model, nullptr);
  std::vector<TokenId> ids = TextIds();
  ids.resize(320);
  const Request request = ScoredRequest(ids, 1);
  const DenseTwin twin(*model);
  const auto exact = ScoreOn(MakeCpu(twin.model, 512).get(), request, 64);
  const Distance cpu = Between(ScoreOn(MakeCpu(*model, 512).get(), request, 64), exact);
  std::printf("CPU, packed: log-likelihoods differ by %.2e, at most %.2e\n", cpu.mean, cpu.largest);
  struct Case {
    kv::KvType kv_type;
    int lm_head_bits;
    double tolerance;
  };
  for (const Case& c : {Case{kv::KvType::kF16, 0, 2.5e-2}, Case{kv::KvType::kBF16, 0, 2.5e-2},
                        Case{kv::KvType::kI8, 0, 5e-2}, Case{kv::KvType::kF16, 8, 2.5e-2},
                        Case{kv::KvType::kF16, 4, 0.2}}) {
    CudaOptions options = SmallCudaOptions();
    options.kv_type = c.kv_type;
    options.lm_head_bits = c.lm_head_bits;
    const auto executor = MakeCuda(*model, options);
    ASSERT_NE(executor, nullptr);
    for (const int chunk : {512, 64, 5}) {
      const Distance d = Between(ScoreOn(executor.get(), request, chunk), exact);
      std::printf("GPU, %s KV, head option %d, chunks of %d: differ by %.2e, at most %.2e\n",
                  kv::KvTypeName(c.kv_type), c.lm_head_bits, chunk, d.mean, d.largest);
      EXPECT_LE(d.mean, c.tolerance) << "chunk " << chunk << " head " << c.lm_head_bits;
      EXPECT_GT(d.largest, 0.0);
    }
  }
}

// Both round their activations, each in its way. Single tokens feel that, thousands hardly.
TEST(BundledModelGpu, PerplexityIsTheCpus) {
  const auto model = LoadTestModel(ModelDirectory());
  ASSERT_NE(model, nullptr);
  constexpr int kContext = 256;
  const std::vector<TokenId> ids = TextIds();
  const auto cpu = MakeCpu(*model, 512);
  const std::vector<double> expected = Nll(cpu.get(), *model, ids, kContext);
  ASSERT_FALSE(expected.empty());
  CudaOptions options = SmallCudaOptions();
  const auto executor = MakeCuda(*model, options);
  ASSERT_NE(executor, nullptr);
  const std::vector<double> got = Nll(executor.get(), *model, ids, kContext);
  ASSERT_EQ(got.size(), expected.size());
  const double tokens = static_cast<double>(got.size());
  std::vector<double> differences(got.size()), squares(got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    differences[i] = got[i] - expected[i];
    squares[i] = differences[i] * differences[i];
  }
  const double error = std::sqrt(Mean(squares) / tokens);
  std::printf("perplexity of %.0f tokens: %.5f on the GPU, %.5f on the CPU, standard error %.2e\n",
              tokens, std::exp(Mean(got)), std::exp(Mean(expected)), error);
  EXPECT_NEAR(Mean(differences), 0.0, 1e-3);
  EXPECT_LT(error, 1e-3);
}

}  // namespace
}  // namespace fewbit::testing
