// The GPU executor behind the engine: a request's tokens do not depend on what else runs, graphs
// replay what eager launches do, and a failing CUDA call says where.
#include <algorithm>
#include <cstring>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/engine.h"
#include "tests/gpu/on_device.h"
#include "tests/gpu/runtime/gpu_model.h"
#include "tests/runtime/event_log.h"
#include "tests/runtime/step_driver.h"

namespace fewbit::testing {
namespace {

using ::testing::HasSubstr;

// Prompts of 1 to 300 tokens; greedy and sampled, with and without cuts, penalties and biases.
Request MixedRequest(int index, int vocab) {
  std::mt19937 rng(static_cast<uint32_t>(index) * 7919 + 1);
  Request request;
  request.id = RequestId(static_cast<uint64_t>(index) + 1);
  const int length = index % 5 == 0 ? 1 + index : 1 + static_cast<int>(rng() % 300);
  for (int i = 0; i < length; ++i) {
    request.prompt.push_back(TokenId(static_cast<int32_t>(rng() % vocab)));
  }
  request.max_new_tokens = 20 + static_cast<int>(rng() % 60);
  SamplingParams& s = request.sampling;
  s.seed = rng();
  s.temperature = index % 3 == 0 ? 0.0f : 0.7f + 0.1f * static_cast<float>(index % 7);
  if (index % 4 == 1) s.top_k = 40;
  if (index % 4 == 2) s.top_p = 0.9f;
  if (index % 8 == 3) s.min_p = 0.05f;
  if (index % 5 == 2) s.repetition_penalty = 1.2f;
  if (index % 5 == 3) s.frequency_penalty = 0.5f;
  if (index % 6 == 4) s.logit_bias = {{TokenId(5), 4.0f}, {TokenId(9), -50.0f}};
  if (index % 7 == 5) {
    request.stop_token_ids = {TokenId(2), TokenId(13)};
    request.min_new_tokens = 10;
  }
  request.want_logprobs = index % 2 == 0;
  request.num_top_logprobs = index % 6 == 0 ? 3 : 0;
  request.want_prompt_logprobs = index % 9 == 4;
  return request;
}

EngineOptions OptionsFor(const ExecutorInfo& info) {
  EngineOptions options;
  options.max_running = info.max_sequences;
  options.step_token_budget = info.max_step_tokens;
  return options;
}

std::vector<EventLog::Line> RunAll(Executor* executor, int requests, bool alone) {
  EventLog log;
  Engine engine(OptionsFor(executor->info()), executor, &log);
  for (int i = 0; i < requests; ++i) {
    Request request = MixedRequest(i, executor->info().vocab_size);
    const RequestId id = request.id;
    const absl::Status status = engine.Submit(std::make_unique<Request>(std::move(request)));
    EXPECT_TRUE(status.ok()) << status;
    if (alone && status.ok()) log.WaitFinished(id);
  }
  std::vector<EventLog::Line> lines;
  for (int i = 0; i < requests; ++i) {
    lines.push_back(log.WaitFinished(RequestId(static_cast<uint64_t>(i) + 1)));
  }
  return lines;
}

void ExpectSameAloneAndTogether(const Model& model, const CudaOptions& options, int requests) {
  const auto executor = MakeCuda(model, options);
  ASSERT_NE(executor, nullptr);
  const auto alone = RunAll(executor.get(), requests, true);
  const auto together = RunAll(executor.get(), requests, false);
  size_t tokens = 0;
  for (int i = 0; i < requests; ++i) {
    const auto& a = alone[i].tokens;
    const auto& t = together[i].tokens;
    EXPECT_EQ(t.size(), a.size()) << "request " << i;
    const size_t same =
        std::mismatch(a.begin(), a.begin() + std::min(a.size(), t.size()), t.begin()).first -
        a.begin();
    EXPECT_EQ(same, a.size()) << "request " << i << ": tokens from " << same << " on differ";
    EXPECT_EQ(together[i].scored, alone[i].scored) << "request " << i;
    EXPECT_EQ(together[i].reason, alone[i].reason) << "request " << i;
    EXPECT_NE(alone[i].reason, FinishReason::kError) << "request " << i;
    tokens += alone[i].tokens.size();
  }
  EXPECT_GT(tokens, static_cast<size_t>(10 * requests));
}

TEST(EngineGpu, TokensAloneAndTogetherAreTheSameWithPackedWeights) {
  const auto model = LoadTestModel(ModelDirectory());
  ASSERT_NE(model, nullptr);
  for (const kv::KvType kv_type : {kv::KvType::kF16, kv::KvType::kI8}) {
    SCOPED_TRACE(kv::KvTypeName(kv_type));
    CudaOptions options = SmallCudaOptions();
    options.max_sequences = 24;
    options.max_step_tokens = 64;  // more go through 16-bit products, which round otherwise
    options.kv_type = kv_type;
    ExpectSameAloneAndTogether(*model, options, OnDevice(40, 6));
  }
}

// Dense matrices give the same bits up to 64 tokens in a step, so steps are kept that short.
TEST(EngineGpu, TokensAloneAndTogetherAreTheSameWithDenseWeights) {
  const Golden golden = LoadGolden("llama3");
  ASSERT_NE(golden.model, nullptr);
  CudaOptions options = SmallCudaOptions();
  options.max_sequences = 16;
  options.max_step_tokens = 64;
  ExpectSameAloneAndTogether(*golden.model, options, OnDevice(24, 6));
}

// Logits and log-likelihoods bit for bit, for batches of every size.
TEST(EngineGpu, GraphsReplayWhatEagerLaunchesDo) {
  const auto model = LoadTestModel(ModelDirectory());
  ASSERT_NE(model, nullptr);
  const int vocab = model->spec.vocab_size;
  std::vector<std::vector<float>> logits[2];
  std::vector<float> logprobs[2];
  for (const bool graphs : {false, true}) {
    CudaOptions options = SmallCudaOptions();
    options.max_sequences = 20;
    options.graphs = graphs;
    const auto executor = MakeCuda(*model, options);
    ASSERT_NE(executor, nullptr);
    StepDriver driver(executor.get());
    for (int i = 0; i < 20; ++i) {
      Request request = MixedRequest(i, vocab);
      request.want_prompt_logprobs = false;
      request.max_new_tokens = 4 + i;  // so that the batch shrinks
      driver.Add(std::move(request));
    }
    while (!driver.Done()) {
      ASSERT_TRUE(driver.Step(24).ok());
      logits[graphs].push_back(executor->Logits(1));
    }
    for (int i = 0; i < 20; ++i) {
      for (const SampledToken& token : driver.sequence(i).sampled) {
        logprobs[graphs].push_back(static_cast<float>(ToInt(token.token)));
        logprobs[graphs].push_back(token.logprob);
      }
    }
  }
  ASSERT_EQ(logits[0].size(), logits[1].size());
  for (size_t step = 0; step < logits[0].size(); ++step) {
    EXPECT_EQ(std::memcmp(logits[0][step].data(), logits[1][step].data(), vocab * sizeof(float)), 0)
        << "step " << step;
  }
  EXPECT_EQ(logprobs[0], logprobs[1]);
}

TEST(EngineGpu, SaysWhatItGot) {
  const Golden golden = LoadGolden("llama2");
  ASSERT_NE(golden.model, nullptr);
  CudaOptions options = SmallCudaOptions();
  options.num_blocks = 40;
  const auto executor = MakeCuda(*golden.model, options);
  ASSERT_NE(executor, nullptr);
  const ExecutorInfo& info = executor->info();
  EXPECT_THAT(info.device, HasSubstr("cuda:0: "));
  EXPECT_THAT(info.pci_bus_id, HasSubstr(":"));
  EXPECT_EQ(info.num_blocks, 40);
  EXPECT_EQ(info.max_steps_in_flight, 2);
  EXPECT_GT(info.weight_bytes, 0);
  EXPECT_EQ(executor->memory().kv, info.kv_bytes);

  options.num_blocks = 3;
  EXPECT_EQ(CreateCudaExecutor(golden.model.get(), options).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.num_blocks = 0;
  options.max_context = golden.model->spec.max_context + 1;
  EXPECT_EQ(CreateCudaExecutor(golden.model.get(), options).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.max_context = 0;
  options.lm_head_bits = 5;
  EXPECT_EQ(CreateCudaExecutor(golden.model.get(), options).status().code(),
            absl::StatusCode::kInvalidArgument);
  options.lm_head_bits = 0;
  options.num_blocks = 1 << 30;
  const absl::Status status = CreateCudaExecutor(golden.model.get(), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("memory is too small"));
}

TEST(EngineGpu, RefusesWeightsThatF16CannotHold) {
  const Golden golden = LoadGolden("llama2");
  ASSERT_NE(golden.model, nullptr);
  Model model = *golden.model;
  DenseMatrix down = std::get<DenseMatrix>(model.layers[1][LinearRole::kDown]);
  ASSERT_EQ(down.dtype, DType::kBF16);
  const auto* from = static_cast<const uint16_t*>(down.data);
  std::vector<uint16_t> weights(from, from + static_cast<size_t>(down.rows) * down.cols);
  weights[77] = 0x4B80;  // 2^24
  down.data = weights.data();
  model.layers[1][LinearRole::kDown] = down;
  const absl::Status status = CreateCudaExecutor(&model, SmallCudaOptions()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 weights are beyond 65504"));
}

// A block that does not exist makes the attention read outside the cache.
TEST(EngineGpuDeathTest, AFailingKernelEndsTheProcessAndSaysWhere) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto fail = [] {
    const Golden golden = LoadGolden("llama2");
    const auto executor = MakeCuda(*golden.model, SmallCudaOptions());
    Request request;
    request.max_new_tokens = 1;
    ForwardBatch batch;
    batch.token_ids = {TokenId(1), TokenId(2), TokenId(3)};
    batch.positions = {0, 1, 2};
    batch.q_start = {0, 3};
    batch.kv_len = {3};
    batch.slots = {0};
    batch.block_table = {BlockId(1 << 30)};
    batch.block_table_stride = 1;
    StepResult result;
    const StepHandle handle = executor->Launch(batch);
    (void)executor->Collect(handle, &result);
  };
  EXPECT_DEATH(fail(),
               "CUDA failed in .* of step 1 \\(3 tokens, 1 sequences, 0 rows, longest "
               "query 3\\): .*illegal");
}

}  // namespace
}  // namespace fewbit::testing
