// The CPU executor as the engine sees it: limits, determinism of whole generations, prompt
// logprobs, bad weights, and no allocation per step.
#include "runtime/cpu_executor.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/random_model.h"
#include "tests/runtime/step_driver.h"
#include "tests/scheduler/counting_new.h"

namespace fewbit {
namespace {

using ::testing::HasSubstr;
using testing::OwnedModel;
using testing::PackedModel;
using testing::RandomModel;
using testing::SmallSpec;
using testing::StepDriver;

CpuExecutorOptions SmallOptions() {
  CpuExecutorOptions options;
  options.threads = 2;
  options.max_sequences = 8;
  options.max_step_tokens = 200;
  options.max_context = 256;
  return options;
}

Request MakeRequest(int prompt, int new_tokens, int seed) {
  Request request;
  request.id = RequestId(seed + 1);
  for (int i = 0; i < prompt; ++i) request.prompt.push_back(TokenId((seed * 37 + i * 11) % 128));
  request.max_new_tokens = new_tokens;
  request.sampling.temperature = seed % 3 == 0 ? 0.0f : 1.0f;
  request.sampling.seed = seed;
  request.sampling.top_p = seed % 2 ? 0.9f : 1.0f;
  request.sampling.repetition_penalty = seed % 4 == 3 ? 1.3f : 1.0f;
  return request;
}

std::vector<int> Tokens(const StepDriver::Sequence& s) {
  std::vector<int> out;
  for (const SampledToken& t : s.sampled) out.push_back(ToInt(t.token));
  return out;
}

std::unique_ptr<CpuExecutor> Make(const Model& model, const CpuExecutorOptions& options) {
  auto executor = CpuExecutor::Create(&model, options);
  EXPECT_TRUE(executor.ok()) << executor.status();
  return executor.ok() ? *std::move(executor) : nullptr;
}

TEST(CpuExecutor, GenerationsDependOnTheirRequestOnly) {
  const auto source = RandomModel(SmallSpec(), 1);
  const auto packed = PackedModel(source->model, false);
  for (const Model* model : {&source->model, &packed->model}) {
    std::vector<std::vector<int>> alone;
    for (int i = 0; i < 6; ++i) {
      const auto executor = Make(*model, SmallOptions());
      StepDriver driver(executor.get());
      driver.Add(MakeRequest(5 + 20 * i, 30, i));
      while (!driver.Done()) ASSERT_TRUE(driver.Step(1000).ok());
      alone.push_back(Tokens(driver.sequence(0)));
    }
    EXPECT_NE(alone[1], alone[2]);
    for (const int threads : {1, 3}) {
      for (const int chunk : {1, 9, 25}) {
        CpuExecutorOptions options = SmallOptions();
        options.threads = threads;
        const auto executor = Make(*model, options);
        StepDriver driver(executor.get());
        for (int i = 5; i >= 0; --i) driver.Add(MakeRequest(5 + 20 * i, 30, i));
        while (!driver.Done()) ASSERT_TRUE(driver.Step(chunk).ok());
        for (int i = 0; i < 6; ++i) {
          EXPECT_EQ(Tokens(driver.sequence(5 - i)), alone[i])
              << threads << " threads, request " << i;
        }
      }
    }
  }
}

// More scored rows in a step than the logits buffer holds, in chunks or at once, and the sum rule
// of what they mean.
TEST(CpuExecutor, PromptLogprobs) {
  const auto owned = RandomModel(SmallSpec(), 2);
  std::vector<std::vector<float>> all;
  for (const int chunk : {1000, 64, 65, 10, 1}) {
    const auto executor = Make(owned->model, SmallOptions());
    StepDriver driver(executor.get());
    Request request = MakeRequest(150, 2, 1);
    request.want_prompt_logprobs = true;
    request.num_top_logprobs = 3;
    driver.Add(std::move(request));
    while (!driver.Done()) ASSERT_TRUE(driver.Step(chunk).ok());
    const StepDriver::Sequence& s = driver.sequence(0);
    ASSERT_EQ(s.scored.size(), 149u);
    std::vector<float> logprobs;
    for (size_t i = 0; i < s.scored.size(); ++i) {
      EXPECT_EQ(s.scored[i].token, s.request.prompt[i + 1]);
      EXPECT_LT(s.scored[i].logprob, 0.0f);
      EXPECT_GE(s.scored[i].top[0].logprob, s.scored[i].logprob);
      EXPECT_EQ(s.scored[i].rank == 1, s.scored[i].top[0].token == s.scored[i].token);
      logprobs.push_back(s.scored[i].logprob);
    }
    all.push_back(logprobs);
  }
  for (const auto& logprobs : all) EXPECT_EQ(logprobs, all[0]);
}

// Allocations are counted on the engine's thread; with one thread everything runs there.
TEST(CpuExecutor, StepsDoNotAllocate) {
  const auto source = RandomModel(SmallSpec(), 3);
  const auto packed = PackedModel(source->model, false);
  for (const int threads : {1, 2}) {
    CpuExecutorOptions options = SmallOptions();
    options.threads = threads;
    const auto executor = Make(packed->model, options);
    StepDriver driver(executor.get());
    for (int i = 0; i < 6; ++i) {
      Request request = MakeRequest(60, 40, i);
      request.num_top_logprobs = i % 2 * 5;
      request.want_prompt_logprobs = i == 1;
      request.sampling.top_k = i == 5 ? 10 : 0;
      driver.Add(std::move(request));
    }
    ASSERT_TRUE(driver.Step(10).ok());
    const int64_t before = AllocationsOnThisThread();
    absl::Status status;
    while (!driver.Done() && status.ok()) status = driver.Step(10);
    EXPECT_EQ(AllocationsOnThisThread() - before, 0) << threads << " threads";
    EXPECT_TRUE(status.ok()) << status;
  }
}

// A NaN must come through dense and packed layers alike and end as a failed row, not as a token.
TEST(CpuExecutor, BadWeightsFailTheRowAndNotTheProcess) {
  const auto source = RandomModel(SmallSpec(), 4);
  for (const bool packed : {false, true}) {
    for (const cpu::Isa isa : {cpu::Isa::kPortable, cpu::Isa::kAvx2, cpu::Isa::kAvx512}) {
      if (!cpu::IsaSupported(isa)) continue;
      SCOPED_TRACE(std::string(cpu::IsaName(isa)) + (packed ? ", packed" : ", dense"));
      const auto model = PackedModel(source->model, !packed);
      model->model.layers[1].post_attention_norm[7] = std::numeric_limits<float>::quiet_NaN();
      CpuExecutorOptions options = SmallOptions();
      options.isa = isa;
      const auto executor = Make(model->model, options);
      StepDriver driver(executor.get());
      driver.Add(MakeRequest(10, 3, 41));
      const absl::Status status = driver.Step(1000);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(driver.sequence(0).sampled.size(), 1u);
      EXPECT_EQ(driver.sequence(0).sampled[0].token, kNoToken);
    }
  }
}

TEST(CpuExecutor, InfoSaysWhatItGot) {
  const auto owned = RandomModel(SmallSpec(), 5);
  CpuExecutorOptions options = SmallOptions();
  options.isa = cpu::Isa::kPortable;
  options.kv_type = kv::KvType::kF32;
  const auto executor = Make(owned->model, options);
  const ExecutorInfo& info = executor->info();
  EXPECT_EQ(info.device, "cpu: portable, 2 threads");
  EXPECT_EQ(info.vocab_size, 128);
  EXPECT_EQ(info.max_context, 256);
  EXPECT_EQ(info.max_step_tokens, 200);
  EXPECT_EQ(info.max_sequences, 8);
  EXPECT_EQ(info.block_tokens, 16);
  EXPECT_EQ(info.num_blocks, 8 * 16);  // no more than 8 full contexts can use
  EXPECT_EQ(info.kv_bytes,
            128ll * 16 * 2 * 2 * 16 * 4 * 2);  // blocks, tokens, k and v, heads, D, f32, layers
  options.threads = 1;
  options.kv_type = kv::KvType::kF16;
  options.num_blocks = 20;
  const auto one = Make(owned->model, options);
  EXPECT_EQ(one->info().device, "cpu: portable, 1 thread");
  EXPECT_EQ(one->info().num_blocks, 20);
  EXPECT_EQ(one->info().kv_bytes, 20ll * 16 * 2 * 2 * 16 * 2 * 2);
}

TEST(CpuExecutor, RefusesBadOptionsByName) {
  const auto owned = RandomModel(SmallSpec(), 6);
  const auto refused = [&](auto change, const std::string& message) {
    CpuExecutorOptions options = SmallOptions();
    change(options);
    const auto executor = CpuExecutor::Create(&owned->model, options);
    EXPECT_EQ(executor.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(executor.status().message()), HasSubstr(message));
  };
  refused([](auto& o) { o.threads = -1; }, "threads is -1: must be 0 (automatic) to 1024");
  refused([](auto& o) { o.max_sequences = 0; }, "max_sequences is 0: must be at least 1");
  refused([](auto& o) { o.max_step_tokens = 7; },
          "max_step_tokens is 7: must be at least max_sequences = 8");
  refused([](auto& o) { o.max_context = 1025; },
          "max_context is 1025: must be 0 (the model's) to 1024");
  refused([](auto& o) { o.num_blocks = 15; },
          "num_blocks is 15: too few, one sequence of 256 tokens needs 16 blocks of 4096 bytes = "
          "65536 bytes");
  refused([](auto& o) { o.kv_bytes = 65535; },
          "a KV cache of 65535 bytes is too small: one sequence of 256 tokens needs 16 blocks of "
          "4096 bytes");
  refused([](auto& o) { o.kv_bytes = 0; }, "kv_bytes is 0: must be at least 1");
  refused([](auto& o) { o.num_blocks = -1; }, "num_blocks is -1");
  CpuExecutorOptions options = SmallOptions();
  options.kv_bytes = 65536;
  EXPECT_TRUE(CpuExecutor::Create(&owned->model, options).ok());
}

}  // namespace
}  // namespace fewbit
