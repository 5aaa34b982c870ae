#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/eval/evaluate.h"
#include "runtime/quantize/calibration.h"
#include "runtime/quantize/checkpoint_quantizer.h"
#include "runtime/weights/canary.h"
#include "tests/runtime/checkpoint_files.h"
#include "tests/runtime/quantize_golden.h"

namespace fewbit {
namespace {

using ::testing::HasSubstr;

TEST(QuantizeCheckpointTest, EveryFamilyRunsQuantized) {
  for (const char* name :
       {"llama2", "llama3", "mistral-swa", "qwen2", "qwen3", "glm", "chatglm2"}) {
    const TempDirectory directory;
    QuantizeOptions options = GoldenOptions(directory, name);
    options.bits = 8.0;
    const auto report = QuantizeGolden(options);
    ASSERT_TRUE(report.ok()) << name << ": " << report.status();
    const auto original = LoadModel(options.model_dir);
    const auto quantized = LoadModel(options.out_dir);
    ASSERT_TRUE(quantized.ok()) << name << ": " << quantized.status();
    EXPECT_TRUE((*quantized)->quantization.quantized);
    EXPECT_NEAR((*quantized)->quantization.average_bits, report->average_bits, 1e-9);
    ThreadTeam team(1);
    const auto score = ScoreText(**quantized, original->get(), SomeIds(124), {.context = 32}, &team,
                                 nullptr, nullptr);
    ASSERT_TRUE(score.ok()) << score.status();
    EXPECT_GT(score->kl_divergence, 1e-7) << name;
    EXPECT_LT(score->kl_divergence, 0.2) << name;
    EXPECT_GT(score->top1_agreement, 0.5) << name;
  }
}

TEST(QuantizeCheckpointTest, ReportCountsTheBytesOfTheFiles) {
  const TempDirectory directory;
  QuantizeOptions options = GoldenOptions(directory);
  options.method = "searched";
  options.outliers = 0.01;
  options.embedding_bits = 8;
  const auto report = QuantizeGolden(options);
  ASSERT_TRUE(report.ok()) << report.status();
  // Per layer: q k v o of 64 x 64, gate and up of 96 x 64, down of 64 x 96.
  EXPECT_EQ(report->all.weights, 2 * (4 * 64 * 64 + 3 * 64 * 96));
  EXPECT_EQ(report->bytes.linear_weights, report->all.weights);
  EXPECT_EQ(report->all.weights4, 0);
  EXPECT_GT(report->all.outliers, 0);
  EXPECT_LE(report->all.outliers, 0.01 * report->all.weights);
  EXPECT_DOUBLE_EQ(report->average_bits, 8.0 * report->bytes.linear_bytes / report->all.weights);
  EXPECT_NEAR(report->embedding_bits, 8.0 + 32.0 / 64, 1e-9);  // codes, and a scale per row of 64
  EXPECT_EQ(report->windows, 8);
  int64_t on_disk = 0;
  for (const auto& [name, text] : Files(options.out_dir)) {
    if (name.ends_with(".safetensors")) on_disk += static_cast<int64_t>(text.size());
  }
  EXPECT_GT(on_disk, report->bytes.linear_bytes + report->bytes.embedding_bytes);
  const std::string table = FormatReport(options, *report);
  for (const char* part : {"down_proj", "bits per weight", "method searched", "outliers"}) {
    EXPECT_THAT(table, HasSubstr(part));
  }
  const auto config = nlohmann::json::parse(ReadText(options.out_dir + "/config.json"));
  EXPECT_EQ(config["quantization_config"]["method"], "searched");
  EXPECT_EQ(config["quantization_config"]["outliers"], 0.01);
}

TEST(QuantizeCheckpointTest, SaysThatFewerBitsCannotBe) {
  const TempDirectory directory;
  QuantizeOptions options = GoldenOptions(directory);
  options.bits = 2.25;
  const auto report = QuantizeGolden(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->average_bits, 2.25);
  EXPECT_THAT(FormatReport(options, *report), HasSubstr("more than the 2.25 asked for"));
  options.bits = 8.0;
  EXPECT_THAT(FormatReport(options, *report), Not(HasSubstr("asked for")));
}

// Perplexity, divergence and canary of the run are those that the finished directory has.
TEST(QuantizeCheckpointTest, MeasuresWhatBecameOfIt) {
  const TempDirectory directory;
  QuantizeOptions options = GoldenOptions(directory);
  options.embedding_bits = 8;
  const auto report = QuantizeGolden(options);
  ASSERT_TRUE(report.ok()) << report.status();
  // 400 tokens are 12 windows of 31 and BOS; 8 are calibrated on.
  EXPECT_FALSE(report->held_out_is_seen);
  const TextScore& score = report->held_out;
  EXPECT_EQ(score.windows, 4);
  EXPECT_EQ(score.tokens, 4 * 31);
  const auto original = LoadModel(options.model_dir);
  const auto quantized = LoadModel(options.out_dir);
  ASSERT_TRUE(original.ok() && quantized.ok());
  EXPECT_EQ(report->original_bytes, (*original)->weight_bytes);
  EXPECT_EQ(report->quantized_bytes, (*quantized)->weight_bytes);

  const auto windows = CutWindows(SomeIds(400), (*original)->spec.bos, 32, 8, 0, 320, 8);
  ASSERT_TRUE(windows.ok());
  std::vector<TokenId> text;
  for (int w = 0; w < windows->count(); ++w) {
    text.insert(text.end(), windows->tokens.begin() + w * 32 + 1,
                windows->tokens.begin() + (w + 1) * 32);
  }
  ThreadTeam team(1);
  const auto expected =
      ScoreText(**quantized, original->get(), text, {.context = 32}, &team, nullptr, nullptr);
  ASSERT_TRUE(expected.ok()) << expected.status();
  EXPECT_NEAR(score.nll, expected->nll, 1e-4);
  EXPECT_NEAR(score.reference_perplexity / expected->reference_perplexity, 1.0, 1e-4);
  EXPECT_NEAR(score.kl_divergence / expected->kl_divergence, 1.0, 1e-2);
  EXPECT_EQ(score.top1_agreement, expected->top1_agreement);

  const auto canary = LoadCanary(options.out_dir, 320);
  ASSERT_TRUE(canary.ok() && canary->has_value()) << canary.status();
  ASSERT_EQ((*canary)->prompts.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    const CanaryPrompt& prompt = (*canary)->prompts[i];
    EXPECT_EQ(prompt.token_ids, std::vector<TokenId>(windows->tokens.begin() + i * 32,
                                                     windows->tokens.begin() + i * 32 + 16));
    const auto answer = [&](const Model& model) {
      const auto result = RunPrompt(model, prompt.token_ids, 0, true, &team);
      return TopOf(std::span(result->logits).last(320), Canary::kTop);
    };
    EXPECT_LT(TopDivergence(prompt.expected, answer(**quantized)), 1e-4);
    ASSERT_TRUE(prompt.original.has_value());
    EXPECT_LT(TopDivergence(*prompt.original, answer(**original)), 1e-4);
    EXPECT_EQ(prompt.original->ids[0], answer(**original).ids[0]);
  }
}

TEST(QuantizeCheckpointTest, MeasuresOnCalibrationWhereNoTextIsLeft) {
  const TempDirectory directory;
  QuantizeOptions options = GoldenOptions(directory);
  options.calibration_windows = 100;
  options.held_out_windows = 3;
  const auto report = QuantizeGolden(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->held_out_is_seen);
  EXPECT_EQ(report->held_out.windows, 3);
  EXPECT_THAT(FormatReport(options, *report), HasSubstr("no other is left"));
}

TEST(CutWindowsTest, DrawnWindowsDoNotComeAgain) {
  const std::vector<TokenId> text = SomeIds(100);
  const auto cut = [&](int count, int drawn) {
    return CutWindows(text, TokenId{-1}, 10, count, 7, 320, drawn);
  };
  const auto first = cut(6, 0), rest = cut(100, 6);
  ASSERT_TRUE(first.ok() && rest.ok());
  EXPECT_EQ(first->count(), 6);
  EXPECT_EQ(rest->count(), 4);
  std::vector<TokenId> both = first->tokens;
  both.insert(both.end(), rest->tokens.begin(), rest->tokens.end());
  std::vector<TokenId> all = text;
  std::sort(both.begin(), both.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(both, all);
  EXPECT_EQ(cut(100, 10)->count(), 0);
  EXPECT_EQ(cut(2, 1000)->count(), 0);
  EXPECT_EQ(cut(2, 6)->count(), 2);
}

TEST(QuantizeCheckpointTest, FilesDoNotDependOnThreads) {
  for (const QuantizeMethod& method : kQuantizeMethods) {
    const TempDirectory one;
    const TempDirectory many;
    QuantizeOptions options = GoldenOptions(one);
    options.method = method.name;
    options.threads = 1;
    ASSERT_TRUE(QuantizeGolden(options).ok());
    options.out_dir = many / "out";
    options.threads = 5;
    ASSERT_TRUE(QuantizeGolden(options).ok());
    EXPECT_EQ(Files(one / "out"), Files(many / "out")) << method.name;
  }
}

TEST(QuantizeCheckpointTest, SeedChoosesTheWindows) {
  const std::vector<TokenId> text = SomeIds(31 * 40);
  const auto cut = [&](uint64_t seed) {
    return CutWindows(text, TokenId{1}, 32, 5, seed, 320)->tokens;
  };
  EXPECT_EQ(cut(7), cut(7));
  EXPECT_NE(cut(7), cut(8));
  const std::vector<TokenId> windows = cut(7);
  ASSERT_EQ(windows.size(), 5u * 32);
  size_t last = 0;
  for (int w = 0; w < 5; ++w) {
    EXPECT_EQ(windows[w * 32], TokenId{1});
    // Each is a piece of the text at a multiple of 31, later than the one before.
    const auto at = std::search(text.begin() + last, text.end(), windows.begin() + w * 32 + 1,
                                windows.begin() + w * 32 + 32);
    ASSERT_NE(at, text.end());
    EXPECT_EQ((at - text.begin()) % 31, 0);
    last = at - text.begin() + 1;
  }
  EXPECT_EQ(CutWindows(text, TokenId{1}, 32, 1000, 7, 320)->count(), 40);
  EXPECT_EQ(CutWindows(text, TokenId{-1}, 31, 1000, 7, 320)->tokens, text);
}

TEST(QuantizeCheckpointTest, RefusesOptionsByName) {
  const TempDirectory directory;
  const auto message = [&](auto change) {
    QuantizeOptions options = GoldenOptions(directory);
    change(&options);
    const absl::Status status = QuantizeGolden(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(Empty(directory));
    return std::string(status.message());
  };
  using O = QuantizeOptions*;
  EXPECT_THAT(message([](O o) { o->method = "best"; }),
              AllOf(HasSubstr("method is \"best\""), HasSubstr("default, searched, published")));
  EXPECT_THAT(message([](O o) { o->bits = 1.9; }), HasSubstr("bits is 1.9, not in 2 to 8"));
  EXPECT_THAT(message([](O o) { o->probe_windows = 0; }), HasSubstr("probe_windows is 0"));
  EXPECT_THAT(message([](O o) { o->share4 = 1.5; }), HasSubstr("share4 is 1.5"));
  EXPECT_THAT(message([](O o) { o->share4 = std::nan(""); }), HasSubstr("share4 is nan"));
  EXPECT_THAT(message([](O o) { o->outliers = -0.1; }), HasSubstr("outliers is -0.1"));
  EXPECT_THAT(message([](O o) { o->embedding_bits = 4; }), HasSubstr("embedding_bits is 4"));
  EXPECT_THAT(message([](O o) { o->threads = -1; }), HasSubstr("threads is -1"));
  EXPECT_THAT(message([](O o) { o->calibration_windows = 0; }),
              HasSubstr("calibration_windows is 0"));
  EXPECT_THAT(message([](O o) { o->context = 1; }), HasSubstr("context is 1"));
  EXPECT_THAT(message([](O o) { o->context = 513; }), HasSubstr("at most 512"));
  EXPECT_THAT(message([](O o) { o->model_dir = ""; }), HasSubstr("model is empty"));
  EXPECT_THAT(message([](O o) { o->out_dir = ""; }), HasSubstr("out is empty"));
}

TEST(QuantizeCheckpointTest, RefusesUnusableCalibration) {
  const TempDirectory directory;
  const QuantizeOptions options = GoldenOptions(directory);
  EXPECT_THAT(std::string(QuantizeGolden(options, 0).status().message()),
              HasSubstr("too short: 0 tokens"));
  EXPECT_THAT(std::string(QuantizeGolden(options, 30).status().message()),
              HasSubstr("too short: 30 tokens, and one window takes 31"));
  std::vector<TokenId> ids = SomeIds(100);
  ids[17] = TokenId{320};
  const absl::Status status = QuantizeCheckpoint(options, ids, nullptr, nullptr).status();
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("calibration token 17 has the id 320, outside the model's vocabulary"));
  EXPECT_TRUE(Empty(directory));
}

void SetBf16(OwnedTensor* tensor, size_t index, uint16_t bits) {
  ASSERT_EQ(tensor->type, TensorType::kBF16);
  std::memcpy(tensor->bytes.data() + 2 * index, &bits, 2);
}

TEST(QuantizeCheckpointTest, NamesTensorsThatAreNotFinite) {
  constexpr uint16_t kNaN = 0x7FC0;
  constexpr uint16_t kInfinity = 0x7F80;
  const struct {
    const char* tensor;
    size_t index;
    uint16_t bits;
    const char* message;
  } cases[] = {
      {"model.layers.1.mlp.up_proj.weight", 3 * 64 + 7, kNaN,
       "layers.1.up_proj: weight [3, 7] is NaN"},
      {"model.layers.0.self_attn.k_proj.weight", 0, kInfinity,
       "layers.0.k_proj: weight [0, 0] is infinite"},
      {"model.embed_tokens.weight", 5 * 64 + 1, kNaN, "embedding row 5: value 1 is NaN"},
      {"lm_head.weight", 64, kNaN, "output head row 1: value 0 is NaN"},
      {"model.norm.weight", 2, kInfinity, "'model.norm.weight': element 2 is NaN or infinite"},
      {"model.layers.1.post_attention_layernorm.weight", 9, kNaN,
       "post_attention_layernorm.weight': element 9 is NaN or infinite"},
  };
  for (const auto& c : cases) {
    const TempDirectory source;
    const TempDirectory directory;
    EditableCheckpoint checkpoint = ReadGolden("llama2");
    SetBf16(&checkpoint.Get(c.tensor), c.index, c.bits);
    WriteCheckpoint(source.path(), checkpoint);
    QuantizeOptions options = GoldenOptions(directory);
    options.model_dir = source.path();
    const absl::Status status = QuantizeGolden(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.tensor << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
    EXPECT_TRUE(Empty(directory)) << c.tensor;
  }
}

// Keeps the first `size` entries of dimension `dim` (0 or 1) of a two-dimensional bf16 tensor.
void Shrink(OwnedTensor* tensor, int dim, int64_t size) {
  const int64_t cols = tensor->shape[1];
  tensor->shape[dim] = size;
  std::vector<uint8_t> bytes;
  for (int64_t r = 0; r < tensor->shape[0]; ++r) {
    const uint8_t* row = tensor->bytes.data() + 2 * r * cols;
    bytes.insert(bytes.end(), row, row + 2 * tensor->shape[1]);
  }
  tensor->bytes = bytes;
}

TEST(QuantizeCheckpointTest, RefusesInputsThatAreNoMultipleOf16) {
  const TempDirectory source;
  const TempDirectory directory;
  EditableCheckpoint checkpoint = ReadGolden("llama2");
  checkpoint.config["intermediate_size"] = 90;
  for (const std::string layer : {"model.layers.0.mlp.", "model.layers.1.mlp."}) {
    Shrink(&checkpoint.Get(layer + "gate_proj.weight"), 0, 90);
    Shrink(&checkpoint.Get(layer + "up_proj.weight"), 0, 90);
    Shrink(&checkpoint.Get(layer + "down_proj.weight"), 1, 90);
  }
  WriteCheckpoint(source.path(), checkpoint);
  QuantizeOptions options = GoldenOptions(directory);
  options.model_dir = source.path();
  const absl::Status status = QuantizeGolden(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("K = 90"), HasSubstr("down_proj"), HasSubstr("multiple of 16")));
  EXPECT_TRUE(Empty(directory));
}

TEST(QuantizeCheckpointTest, RefusesAnOutputThatExistsAndASourceThatIsQuantized) {
  const TempDirectory directory;
  QuantizeOptions options = GoldenOptions(directory);
  ASSERT_TRUE(QuantizeGolden(options).ok());
  const auto before = Files(options.out_dir);
  EXPECT_EQ(QuantizeGolden(options).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Files(options.out_dir), before);
  options.model_dir = options.out_dir;
  options.out_dir = directory / "again";
  const absl::Status status = QuantizeGolden(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("quantized already"));
  EXPECT_FALSE(std::filesystem::exists(options.out_dir));
}

}  // namespace
}  // namespace fewbit
