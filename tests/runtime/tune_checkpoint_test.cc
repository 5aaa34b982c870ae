// Whole tuning runs on golden checkpoints: that they help, that they come to the same bytes however
// they are run, and what they refuse.
#include "runtime/tune/tune_checkpoint.h"

#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/eval/evaluate.h"
#include "runtime/tune/cpu_ops.h"
#include "runtime/weights/canary.h"
#include "tests/runtime/checkpoint_files.h"
#include "tests/runtime/quantize_golden.h"

namespace fewbit::tune {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kIds = 3000;

// A quantized golden model in directory/quantized, and options that tune it in a moment.
TuneOptions Prepared(const TempDirectory& directory, const std::string& name = "llama2",
                     const std::string& method = "searched") {
  QuantizeOptions quantize = GoldenOptions(directory, name);
  quantize.out_dir = directory / "quantized";
  quantize.method = method;
  EXPECT_TRUE(QuantizeGolden(quantize).ok());
  TuneOptions options;
  options.model_dir = quantize.model_dir;
  options.quantized_dir = quantize.out_dir;
  options.out_dir = directory / "tuned";
  options.steps = 24;
  options.batch = 4;
  options.context = 32;
  options.held_out = 8;
  options.evaluate_every = 6;
  options.checkpoint_every = 5;
  options.sub_scale_rate = 0.1;
  return options;
}

absl::StatusOr<TuneReport> Tune(const TuneOptions& options,
                                const std::function<void(const TuneProgress&)>& progress = nullptr,
                                const std::atomic<bool>* stop = nullptr, int threads = 2) {
  const std::unique_ptr<Ops> ops = CreateCpuOps(threads);
  return TuneCheckpoint(options, SomeIds(kIds), {}, ops.get(), progress, stop);
}

std::map<std::string, std::string> Tuned(TuneOptions options, const std::string& out,
                                         int threads = 2) {
  options.out_dir = out;
  const auto report = Tune(options, nullptr, nullptr, threads);
  EXPECT_TRUE(report.ok()) << report.status();
  return Files(out);
}

absl::Status RunAndStop(const TuneOptions& options, int stop_at) {
  std::atomic<bool> stop{false};
  return Tune(
             options,
             [&](const TuneProgress& progress) { stop = stop || progress.step >= stop_at; }, &stop)
      .status();
}

TEST(TuneCheckpointTest, ComesNearerToTheOriginalInEveryFamily) {
  for (const char* name :
       {"llama2", "llama3", "mistral-swa", "qwen2", "qwen3", "glm", "chatglm2"}) {
    SCOPED_TRACE(name);
    const TempDirectory directory;
    const TuneOptions options = Prepared(directory, name);
    const auto report = Tune(options);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_LT(report->after.kl, 0.95 * report->before.kl);
    EXPECT_GT(report->best_step, 0);
    EXPECT_EQ(report->curve.size(), 5u);
    EXPECT_TRUE(std::isnan(report->curve[0].training_kl));
    EXPECT_GT(report->peak_bytes, 0);

    // On text that the run has not seen, by the evaluation's own decoder.
    const auto original = LoadModel(options.model_dir);
    const auto quantized = LoadModel(options.quantized_dir);
    const auto tuned = LoadModel(options.out_dir);
    ASSERT_TRUE(tuned.ok()) << tuned.status();
    EXPECT_EQ((*tuned)->quantization.average_bits, (*quantized)->quantization.average_bits);
    EXPECT_NEAR((*tuned)->quantization.average_bits, report->average_bits, 1e-9);
    ThreadTeam team(1);
    const auto other = SomeIds(4000);
    const auto score = [&](const Model& model) {
      return ScoreText(model, original->get(), std::span(other).subspan(kIds), {.context = 32},
                       &team, nullptr, nullptr)
          ->kl_divergence;
    };
    EXPECT_LT(score(**tuned), 0.97 * score(**quantized));
  }
}

TEST(TuneCheckpointTest, ZeroPointsStay) {
  const TempDirectory directory;
  const TuneOptions options = Prepared(directory, "llama2", "published");
  const auto report = Tune(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(report->after.kl, 0.97 * report->before.kl);
}

TEST(TuneCheckpointTest, OutputSaysWhatItIs) {
  const TempDirectory directory;
  const TuneOptions options = Prepared(directory);
  const auto report = Tune(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto config = nlohmann::json::parse(ReadText(options.out_dir + "/config.json"));
  auto before = nlohmann::json::parse(ReadText(options.quantized_dir + "/config.json"));
  const auto tuned = config["quantization_config"]["tuned"];
  EXPECT_EQ(tuned["steps"], report->best_step);
  EXPECT_EQ(tuned["tokens"], report->best_step * 4 * 32);
  EXPECT_EQ(tuned["seed"], 0);
  EXPECT_EQ(tuned["held_out_kl"]["before"], report->before.kl);
  EXPECT_EQ(tuned["held_out_kl"]["after"], report->after.kl);
  before["quantization_config"]["tuned"] = tuned;
  EXPECT_EQ(config, before) << "nothing else changes";
  const auto canary = LoadCanary(options.out_dir, 320);
  ASSERT_TRUE(canary.ok()) << canary.status();
  ASSERT_TRUE(canary->has_value());
  EXPECT_TRUE((*canary)->prompts[0].original.has_value());
  EXPECT_NE(ReadText(options.out_dir + "/canary.json"),
            ReadText(options.quantized_dir + "/canary.json"));
  const std::string table = FormatReport(options, *report);
  EXPECT_THAT(table, AllOf(HasSubstr("24 steps of 4 windows of 32 tokens"), HasSubstr("<- written"),
                           HasSubstr("sub-scales")));
}

TEST(TuneCheckpointTest, TheSameBytesHoweverItRuns) {
  const TempDirectory directory;
  const TuneOptions options = Prepared(directory);
  const auto files = Tuned(options, directory / "a");
  EXPECT_EQ(files, Tuned(options, directory / "b", /*threads=*/1));
  TuneOptions low = options;
  low.low_memory = true;
  EXPECT_EQ(files, Tuned(low, directory / "c", /*threads=*/3));
  TuneOptions other = options;
  other.seed = 1;
  EXPECT_NE(files, Tuned(other, directory / "d"));
}

TEST(TuneCheckpointTest, StoppedAnywhereItGoesOnToTheSameBytes) {
  const TempDirectory directory;
  TuneOptions options = Prepared(directory);
  const auto files = Tuned(options, directory / "undisturbed");
  for (const bool low_memory : {false, true}) {
    options.low_memory = low_memory;
    for (const int stop_at : {0, 3, 6, 23}) {
      SCOPED_TRACE(stop_at);
      options.out_dir = directory / ("stopped" + std::to_string(stop_at + 100 * low_memory));
      const absl::Status status = RunAndStop(options, stop_at);
      ASSERT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
      EXPECT_THAT(std::string(status.message()),
                  HasSubstr(std::to_string(stop_at) + " of 24 steps"));
      EXPECT_FALSE(std::filesystem::exists(options.out_dir));
      int resumed = -1;
      const auto report =
          Tune(options, [&](const TuneProgress& progress) { resumed = progress.resumed_step; });
      ASSERT_TRUE(report.ok()) << report.status();
      EXPECT_EQ(resumed, stop_at);
      EXPECT_EQ(Files(options.out_dir), files);
      EXPECT_FALSE(std::filesystem::exists(options.out_dir + ".partial"));
    }
  }
}

// A learning rate that ruins everything leaves the input's own scales.
TEST(TuneCheckpointTest, NeverWorseThanTheInput) {
  const TempDirectory directory;
  TuneOptions options = Prepared(directory);
  options.sub_scale_rate = options.norm_rate = options.second_order_rate = 1.0;
  const auto report = Tune(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->best_step, 0);
  EXPECT_EQ(report->after.kl, report->before.kl);
  const auto before = LoadModel(options.quantized_dir);
  const auto after = LoadModel(options.out_dir);
  for (size_t l = 0; l < (*before)->layers.size(); ++l) {
    for (int r = 0; r < kNumLinearRoles; ++r) {
      const auto& a = std::get<quant::PackedMatrix>((*before)->layers[l].linears[r]);
      const auto& b = std::get<quant::PackedMatrix>((*after)->layers[l].linears[r]);
      EXPECT_EQ(std::vector<uint8_t>(a.tiles, a.tiles + a.shape.total_bytes()),
                std::vector<uint8_t>(b.tiles, b.tiles + b.shape.total_bytes()));
    }
    EXPECT_EQ((*before)->layers[l].input_norm, (*after)->layers[l].input_norm);
  }
}

TEST(TuneCheckpointTest, StopsWhenItOnlyGetsWorse) {
  const TempDirectory directory;
  TuneOptions options = Prepared(directory);
  options.sub_scale_rate = options.norm_rate = options.second_order_rate = 1.0;
  options.steps = 90;
  const auto report = Tune(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->steps, 30);
  EXPECT_EQ(report->tokens, 30 * 4 * 32);
}

TEST(TuneCheckpointTest, RefusesModelsThatDoNotBelongTogether) {
  const TempDirectory directory;
  const TuneOptions good = Prepared(directory);
  const auto expect = [&](const TuneOptions& options, absl::StatusCode code, const char* what) {
    const absl::Status status = Tune(options).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    EXPECT_FALSE(std::filesystem::exists(options.out_dir));
    EXPECT_FALSE(std::filesystem::exists(options.out_dir + ".partial"));
  };
  TuneOptions options = good;
  options.model_dir = good.quantized_dir;
  expect(options, absl::StatusCode::kFailedPrecondition, "is quantized; model must be");
  options = good;
  options.quantized_dir = good.model_dir;
  expect(options, absl::StatusCode::kFailedPrecondition, "is not quantized");
  options = good;
  options.model_dir = GoldenDirectory("qwen2");
  expect(options, absl::StatusCode::kInvalidArgument, "is a llama");
  options = good;
  options.context = 513;
  expect(options, absl::StatusCode::kInvalidArgument, "at most 512");
  options = good;
  options.held_out = 200;
  expect(options, absl::StatusCode::kInvalidArgument, "too short: 3000 tokens");
  options = good;
  options.out_dir = directory / "nowhere/out";
  expect(options, absl::StatusCode::kNotFound, "nowhere");

  // Another model of the same shape.
  EditableCheckpoint other = ReadGolden("llama2");
  for (OwnedTensor& tensor : other.tensors) {
    if (tensor.name == "model.embed_tokens.weight") std::swap(tensor.bytes[1], tensor.bytes[3]);
    if (tensor.name == "model.embed_tokens.weight") {
      std::rotate(tensor.bytes.begin(), tensor.bytes.begin() + 64, tensor.bytes.end());
    }
  }
  std::filesystem::create_directory(directory / "other");
  WriteCheckpoint(directory / "other", other);
  options = good;
  options.model_dir = directory / "other";
  expect(options, absl::StatusCode::kInvalidArgument, "their embeddings differ");
}

TEST(TuneCheckpointTest, RefusesWhatIsNotItsOwnRun) {
  const TempDirectory directory;
  const TuneOptions options = Prepared(directory);
  ASSERT_EQ(RunAndStop(options, 7).code(), absl::StatusCode::kCancelled);
  const std::string partial = options.out_dir + ".partial";
  const auto before = Files(partial);
  const auto expect = [&](const TuneOptions& other, absl::StatusCode code, const char* what) {
    const absl::Status status = Tune(other).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(partial), HasSubstr(what), HasSubstr("--restart")));
  };
  TuneOptions other = options;
  other.norm_rate = 0.5;
  expect(other, absl::StatusCode::kFailedPrecondition, "another norm_rate");
  other = options;
  other.steps = 25;
  expect(other, absl::StatusCode::kFailedPrecondition, "another tune_steps");
  EXPECT_EQ(Files(partial), before);

  std::string state = before.at("tuning-7-1.state");
  state[100] ^= 1;
  WriteText(partial + "/tuning-7-1.state", state);
  expect(options, absl::StatusCode::kDataLoss, "tuning-7-1.state");
  std::filesystem::remove(partial + "/tuning-7-1.state");
  expect(options, absl::StatusCode::kDataLoss, "tuning-7-1.state");
  WriteText(partial + "/tuning-7-1.state", before.at("tuning-7-1.state"));
  auto progress = nlohmann::json::parse(before.at("progress.json"));
  for (const char* entry : {"step", "best_step", "curve", "checksums", "loss_sum", "fingerprint"}) {
    auto broken = progress;
    broken[entry] = "x";
    WriteText(partial + "/progress.json", broken.dump());
    expect(options, absl::StatusCode::kDataLoss, entry);
  }
  progress["best_step"] = 5;  // no point of the curve
  WriteText(partial + "/progress.json", progress.dump());
  expect(options, absl::StatusCode::kDataLoss, "contradict");

  TuneOptions again = options;
  again.restart = true;
  ASSERT_TRUE(Tune(again).ok());
  EXPECT_EQ(Files(options.out_dir), Tuned(options, directory / "undisturbed"));
}

TEST(TuneOptionsTest, NamesWhatIsOutOfRange) {
  TuneOptions good;
  good.model_dir = good.quantized_dir = good.out_dir = "x";
  EXPECT_TRUE(good.Validate().ok());
  const auto expect = [&](auto change, const char* what) {
    TuneOptions options = good;
    change(&options);
    EXPECT_THAT(std::string(options.Validate().message()), HasSubstr(what));
  };
  expect([](TuneOptions* o) { o->model_dir.clear(); }, "model is empty");
  expect([](TuneOptions* o) { o->quantized_dir.clear(); }, "quantized is empty");
  expect([](TuneOptions* o) { o->out_dir.clear(); }, "out is empty");
  expect([](TuneOptions* o) { o->steps = 0; }, "tune_steps is 0");
  expect([](TuneOptions* o) { o->held_out = 1; }, "held_out is 1, not in 2");
  expect([](TuneOptions* o) { o->norm_rate = -1; }, "norm_rate is -1");
  expect([](TuneOptions* o) { o->sub_scale_rate = NAN; }, "sub_scale_rate is nan");
}

TEST(TuneOptionsTest, RatesWarmUpAndFallToNearlyNothing) {
  TuneOptions options;
  options.steps = 100;
  options.norm_rate = 1.0;
  const auto rate = [&](int step) {
    return options.RatesOf(step).of[static_cast<int>(TunedKind::kNorms)];
  };
  EXPECT_DOUBLE_EQ(rate(1), 0.2);
  EXPECT_DOUBLE_EQ(rate(5), 1.0);
  for (int step = 6; step <= 100; ++step) EXPECT_LT(rate(step), rate(step - 1));
  EXPECT_LT(rate(100), 0.001);
  EXPECT_GT(rate(100), 0.0);
}

}  // namespace
}  // namespace fewbit::tune
