#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/cpu_executor.h"
#include "runtime/eval/evaluate.h"
#include "runtime/eval/npy.h"
#include "runtime/eval/score_as_served.h"
#include "tests/runtime/checkpoint_files.h"

namespace fewbit {
namespace {

using ::testing::HasSubstr;

struct Golden {
  std::unique_ptr<Model> model;
  std::vector<TokenId> prompt;
  std::vector<TokenId> greedy;
  NpyArray logits;
};

Golden LoadGolden(const std::string& name) {
  Golden golden;
  golden.model = *LoadModel(GoldenDirectory(name));
  const auto json = nlohmann::json::parse(ReadText(GoldenDirectory(name) + "/golden.json"));
  for (const int id : json["prompt_ids"]) golden.prompt.push_back(TokenId{id});
  for (const int id : json["greedy_ids"]) golden.greedy.push_back(TokenId{id});
  golden.logits = *ReadNpy(GoldenDirectory(name) + "/logits.npy");
  return golden;
}

// -log softmax of the golden logits of row `row` at `target`.
double GoldenNll(const Golden& golden, int row, TokenId target) {
  const size_t vocab = golden.logits.shape[1];
  const float* logits = golden.logits.floats.data() + row * vocab;
  double sum = 0.0;
  for (size_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]));
  return std::log(sum) - logits[ToInt(target)];
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// A text of the golden prompt, again and again.
std::vector<TokenId> LongText(const Golden& golden, size_t tokens) {
  std::vector<TokenId> text;
  while (text.size() < tokens) text.push_back(golden.prompt[text.size() % golden.prompt.size()]);
  return text;
}

TEST(ScoreAsServedTest, IsWhatTheDecoderSaysWindowByWindow) {
  for (const char* name : {"llama2", "chatglm2"}) {
    const Golden golden = LoadGolden(name);
    const std::vector<TokenId> text = LongText(golden, 333);
    const TextOptions options{.context = 24, .max_windows = 0};
    ThreadTeam team(2);
    const auto exact = ScoreText(*golden.model, nullptr, text, options, &team, {}, nullptr);
    ASSERT_TRUE(exact.ok()) << exact.status();
    CpuExecutorOptions device;
    device.threads = 2;
    device.max_sequences = 3;
    device.max_step_tokens = 50;
    device.kv_type = kv::KvType::kF32;
    auto executor = CpuExecutor::Create(golden.model.get(), device);
    ASSERT_TRUE(executor.ok()) << executor.status();
    int reported = 0;
    const auto served = ScoreTextAsServed(
        executor->get(), golden.model->spec.bos, text, options,
        [&](int done, int total) {
          EXPECT_EQ(done, reported++);
          EXPECT_EQ(total, exact->windows);
        },
        nullptr);
    ASSERT_TRUE(served.ok()) << served.status();
    EXPECT_EQ(served->tokens, exact->tokens);
    EXPECT_EQ(served->windows, exact->windows);
    EXPECT_EQ(served->stride, exact->stride);
    EXPECT_NEAR(served->nll, exact->nll, 1e-4) << name;
    EXPECT_NEAR(served->perplexity, std::exp(served->nll), 1e-9);
    EXPECT_EQ(reported, exact->windows);
  }
}

TEST(ScoreAsServedTest, RefusesAndStops) {
  const Golden golden = LoadGolden("llama2");
  CpuExecutorOptions device;
  device.threads = 1;
  device.max_sequences = 2;
  device.max_step_tokens = 8;
  device.max_context = 16;
  auto executor = CpuExecutor::Create(golden.model.get(), device);
  ASSERT_TRUE(executor.ok()) << executor.status();
  const std::vector<TokenId> text = LongText(golden, 64);
  const TokenId bos = golden.model->spec.bos;
  const auto score = [&](const std::vector<TokenId>& ids, int context, bool stopped) {
    const std::atomic<bool> stop{stopped};
    return ScoreTextAsServed(executor->get(), bos, ids, {.context = context, .max_windows = 0}, {},
                             &stop)
        .status();
  };
  EXPECT_TRUE(score(text, 15, false).ok());
  EXPECT_THAT(Message(score(text, 16, false)), HasSubstr("more than the context of 16"));
  EXPECT_THAT(Message(score(text, 1, false)), HasSubstr("below 2 tokens"));
  EXPECT_THAT(Message(score({TokenId{-3}}, 8, false)), HasSubstr("text token 0 has the id -3"));
  EXPECT_EQ(score(text, 15, true).code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(score(text, 15, false).ok()) << "the executor is as good as new";
}

TEST(EvaluateTest, PromptGivesGoldenLogitsAndGreedyIds) {
  for (const char* name : {"llama2", "llama3", "chatglm2"}) {
    const Golden golden = LoadGolden(name);
    ThreadTeam team(2);
    const auto result = RunPrompt(*golden.model, golden.prompt, 24, true, &team);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(result->logits.size(), golden.logits.floats.size());
    for (size_t i = 0; i < result->logits.size(); ++i) {
      ASSERT_NEAR(result->logits[i], golden.logits.floats[i], 2e-3) << name << " " << i;
    }
    EXPECT_EQ(result->greedy_ids, golden.greedy) << name;
  }
}

TEST(EvaluateTest, PerplexityIsThatOfTheGoldenLogits) {
  Golden golden = LoadGolden("llama2");
  golden.model->spec.bos = TokenId{-1};  // so that the window is the golden prompt itself
  ThreadTeam team(2);
  const int count = static_cast<int>(golden.prompt.size());
  double nll = 0.0;
  for (int i = 0; i + 1 < count; ++i) nll += GoldenNll(golden, i, golden.prompt[i + 1]);
  nll /= count - 1;
  const auto score =
      ScoreText(*golden.model, nullptr, golden.prompt, {.context = count}, &team, nullptr, nullptr);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_EQ(score->tokens, count - 1);
  EXPECT_EQ(score->stride, count);
  EXPECT_NEAR(score->nll, nll, 1e-4);
  EXPECT_NEAR(score->perplexity, std::exp(nll), 0.05);
}

TEST(EvaluateTest, WindowsBeginWithBosAndDoNotOverlap) {
  Golden golden = LoadGolden("llama2");
  ThreadTeam team(1);
  // The same two windows by hand, in a model that adds no BOS of its own.
  const int half = 20;
  const std::span<const TokenId> text = std::span(golden.prompt).first(2 * half + 3);
  const auto score =
      ScoreText(*golden.model, nullptr, text, {.context = half + 1}, &team, nullptr, nullptr);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_EQ(score->windows, 2);
  EXPECT_EQ(score->stride, half);
  EXPECT_EQ(score->tokens, 2 * half);
  const TokenId bos = golden.model->spec.bos;
  golden.model->spec.bos = TokenId{-1};
  double nll = 0.0;
  for (int w = 0; w < 2; ++w) {
    std::vector<TokenId> window = {bos};
    window.insert(window.end(), text.begin() + w * half, text.begin() + (w + 1) * half);
    const auto one =
        ScoreText(*golden.model, nullptr, window, {.context = half + 1}, &team, nullptr, nullptr);
    ASSERT_TRUE(one.ok());
    EXPECT_EQ(one->tokens, half);
    nll += one->nll / 2;
  }
  EXPECT_NEAR(score->nll, nll, 1e-12);
}

TEST(EvaluateTest, WindowsAreCountedAndLimited) {
  const Golden golden = LoadGolden("llama2");
  ThreadTeam team(2);
  const auto score = [&](int tokens, TextOptions options) {
    const auto result = ScoreText(*golden.model, nullptr, std::span(golden.prompt).first(tokens),
                                  options, &team, nullptr, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return *result;
  };
  EXPECT_EQ(score(48, {.context = 9}).windows, 6);
  EXPECT_EQ(score(47, {.context = 9}).windows, 5);
  EXPECT_EQ(score(48, {.context = 9, .max_windows = 2}).tokens, 16);
  const TextScore only = score(5, {.context = 512});  // incomplete, but the only one
  EXPECT_EQ(only.windows, 1);
  EXPECT_EQ(only.tokens, 5);
  EXPECT_EQ(score(1, {.context = 2}).tokens, 1);
}

TEST(EvaluateTest, ThreadsChangeNothing) {
  const Golden golden = LoadGolden("qwen3");
  double first = 0.0;
  for (const int threads : {1, 2, 5}) {
    ThreadTeam team(threads);
    const auto score =
        ScoreText(*golden.model, nullptr, golden.prompt, {.context = 17}, &team, nullptr, nullptr);
    ASSERT_TRUE(score.ok());
    if (threads == 1) first = score->nll;
    EXPECT_EQ(score->nll, first);
  }
}

TEST(EvaluateTest, DistanceFromItselfIsZeroAndFromAnotherIsNot) {
  const Golden golden = LoadGolden("llama2");
  const Golden other = LoadGolden("qwen2");
  ThreadTeam team(2);
  const auto same = ScoreText(*golden.model, golden.model.get(), golden.prompt, {.context = 25},
                              &team, nullptr, nullptr);
  ASSERT_TRUE(same.ok());
  EXPECT_NEAR(same->kl_divergence, 0.0, 1e-7);
  EXPECT_EQ(same->top1_agreement, 1.0);
  EXPECT_DOUBLE_EQ(same->reference_perplexity, same->perplexity);
  const auto far = ScoreText(*golden.model, other.model.get(), golden.prompt, {.context = 25},
                             &team, nullptr, nullptr);
  ASSERT_TRUE(far.ok()) << far.status();
  EXPECT_GT(far->kl_divergence, 0.1);
  EXPECT_LT(far->top1_agreement, 0.5);
  EXPECT_NE(far->reference_perplexity, far->perplexity);
}

TEST(EvaluateTest, RefusesBadInput) {
  const Golden golden = LoadGolden("llama2");
  ThreadTeam team(1);
  const auto text = [&](std::vector<TokenId> ids, TextOptions options) {
    return Message(
        ScoreText(*golden.model, nullptr, ids, options, &team, nullptr, nullptr).status());
  };
  EXPECT_THAT(text({}, {}), HasSubstr("the text is empty"));
  EXPECT_THAT(text({TokenId{4}}, {.context = 1}), HasSubstr("context is 1"));
  EXPECT_THAT(text({TokenId{4}}, {.context = 513}), HasSubstr("context of 512"));
  EXPECT_THAT(text({TokenId{4}, TokenId{-3}}, {}), HasSubstr("text token 1 has the id -3"));
  const auto prompt = [&](std::vector<TokenId> ids, int greedy) {
    return Message(RunPrompt(*golden.model, ids, greedy, false, &team).status());
  };
  EXPECT_THAT(prompt({}, 4), HasSubstr("no token"));
  EXPECT_THAT(prompt({TokenId{320}}, 4), HasSubstr("vocabulary of 320"));
  EXPECT_THAT(prompt({TokenId{3}}, -1), HasSubstr("greedy is -1"));
  EXPECT_THAT(prompt({TokenId{3}}, 512), HasSubstr("context of 512"));
  auto small = LoadGolden("qwen2");
  small.model->spec.vocab_size = 100;
  EXPECT_THAT(Message(ScoreText(*golden.model, small.model.get(), golden.prompt, {}, &team, nullptr,
                                nullptr)
                          .status()),
              HasSubstr("reference one of 100"));
}

TEST(EvaluateTest, NanWeightsAreAnErrorAndNoNumbers) {
  const TempDirectory directory;
  EditableCheckpoint checkpoint = ReadGolden("llama2");
  std::vector<uint8_t>& embedding = checkpoint.Get("model.embed_tokens.weight").bytes;
  const uint16_t nan = 0x7FC0;
  std::memcpy(embedding.data() + 5 * 64 * sizeof(nan), &nan, sizeof(nan));  // the row of token 5
  WriteCheckpoint(directory.path(), checkpoint);
  const auto broken = LoadModel(directory.path());
  ASSERT_TRUE(broken.ok()) << broken.status();
  const Golden golden = LoadGolden("llama2");
  ThreadTeam team(2);
  const std::vector<TokenId> prompt = {TokenId{4}, TokenId{7}, TokenId{5}, TokenId{9}, TokenId{6}};
  EXPECT_TRUE(RunPrompt(**broken, std::span(prompt).first(2), 1, false, &team).ok()) << "unhurt";
  const auto expect = [](const absl::Status& status, const char* text) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(Message(status), HasSubstr(text));
  };
  expect(RunPrompt(**broken, prompt, 3, false, &team).status(), "model: the logits are not finite");
  const TextOptions options{.context = 6};  // BOS and the prompt
  expect(ScoreText(**broken, nullptr, prompt, options, &team, nullptr, nullptr).status(),
         "model: the logits are not finite");
  expect(ScoreText(*golden.model, broken->get(), prompt, options, &team, nullptr, nullptr).status(),
         "reference: the logits are not finite");
}

TEST(EvaluateTest, StopsAndReportsProgress) {
  const Golden golden = LoadGolden("llama2");
  ThreadTeam team(1);
  std::atomic<bool> stop{false};
  int calls = 0;
  const auto score = ScoreText(
      *golden.model, nullptr, golden.prompt, {.context = 9}, &team,
      [&](int done, int total) {
        EXPECT_EQ(done, calls++);
        EXPECT_EQ(total, 6);
        if (calls == 3) stop = true;
      },
      &stop);
  EXPECT_EQ(score.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 3);
}

TEST(NpyTest, RoundTrip) {
  const TempDirectory directory;
  const std::vector<float> values = {1.5f, -2.0f, 3.25f, 0.0f, 1e-30f, 7.0f};
  ASSERT_TRUE(WriteNpy(directory / "a.npy", values, 2, 3).ok());
  EXPECT_EQ(std::filesystem::file_size(directory / "a.npy") % 64, values.size() * 4 % 64);
  const auto array = ReadNpy(directory / "a.npy");
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(array->floats, values);
  EXPECT_TRUE(array->ints.empty());
}

TEST(NpyTest, ReadsWhatNumpyWrote) {
  const auto ids = ReadNpy(GoldenDirectory("llama2") + "/input_ids.npy");
  ASSERT_TRUE(ids.ok()) << ids.status();
  ASSERT_EQ(ids->shape, (std::vector<int64_t>{48}));
  EXPECT_EQ(ids->ints[0], 183);
  EXPECT_EQ(ids->ints[47], 315);
}

TEST(NpyTest, RefusesMalformedFilesByName) {
  const TempDirectory directory;
  ASSERT_TRUE(WriteNpy(directory / "good.npy", std::vector<float>(6), 2, 3).ok());
  const std::string good = ReadText(directory / "good.npy");
  const auto refusal = [&](const std::string& bytes) {
    const std::string path = directory / "bad.npy";
    WriteText(path, bytes);
    const absl::Status status = ReadNpy(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr(path));
    return Message(status);
  };
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string bytes = good;
    bytes.replace(bytes.find(from), from.size(), to);
    return bytes;
  };
  EXPECT_THAT(refusal(""), HasSubstr("not an .npy file"));
  EXPECT_THAT(refusal("PK\x03\x04 something else altogether"), HasSubstr("not an .npy file"));
  EXPECT_THAT(refusal(good.substr(0, 40)), HasSubstr("truncated header"));
  EXPECT_THAT(refusal(good.substr(0, good.size() - 1)), HasSubstr("truncated: 6 values"));
  EXPECT_THAT(refusal(good + "x"), HasSubstr("bytes after"));
  EXPECT_THAT(refusal(replaced("<f4", "<f8")), HasSubstr("type '<f8'"));
  EXPECT_THAT(refusal(replaced("False", "True ")), HasSubstr("Fortran"));
  EXPECT_THAT(refusal(replaced("(2, 3)", "(2,-3)")), HasSubstr("bad shape"));
  EXPECT_THAT(refusal(replaced("shape", "shade")), HasSubstr("no 'shape'"));
  EXPECT_THAT(refusal(replaced(", 3), }  ", ", 3333333")), HasSubstr("bad 'shape'"));
  EXPECT_THAT(refusal(replaced("(2, 3), }         ", "(99999, 99999), } ")),
              HasSubstr("too large"));
  EXPECT_EQ(ReadNpy(directory / "none.npy").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(WriteNpy(directory / "no/such/place.npy", std::vector<float>(1), 1, 1).ok());
}

}  // namespace
}  // namespace fewbit
