// Interrupted runs of the quantizer: what they leave, and that going on gives the same bytes.
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/quantize/checkpoint_quantizer.h"
#include "runtime/quantize/run_record.h"
#include "tests/runtime/checkpoint_files.h"
#include "tests/runtime/quantize_golden.h"

namespace fewbit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kLayers = 2;
constexpr int kStepsPerLayer = kNumLinearRoles + 1;

absl::Status RunAndStop(const QuantizeOptions& options, int stop_at) {
  std::atomic<bool> stop{false};
  int calls = 0;
  return QuantizeCheckpoint(
             options, SomeIds(400),
             [&](const QuantizeProgress& progress) {
               EXPECT_EQ(progress.done, calls);
               if (calls++ == stop_at) stop = true;
             },
             &stop)
      .status();
}

// Runs to the end; says how many layers were finished before.
absl::StatusOr<QuantizeReport> GoOn(const QuantizeOptions& options, int* resumed_layers) {
  return QuantizeCheckpoint(
      options, SomeIds(400),
      [&](const QuantizeProgress& progress) { *resumed_layers = progress.resumed_layers; },
      nullptr);
}

// One layer is finished, the other has begun.
QuantizeOptions Interrupted(const TempDirectory& directory) {
  const QuantizeOptions options = GoldenOptions(directory);
  const absl::Status status = RunAndStop(options, (kLayers + 1) * kStepsPerLayer + 2);
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("1 of 2 layers"), HasSubstr("the same command goes on")));
  return options;
}

std::map<std::string, std::string> Uninterrupted(const QuantizeOptions& like) {
  const TempDirectory directory;
  QuantizeOptions options = like;
  options.out_dir = directory / "out";
  const auto report = QuantizeGolden(options);
  EXPECT_TRUE(report.ok()) << report.status();
  return Files(options.out_dir);
}

TEST(QuantizeResumeTest, StoppedAnywhereItGoesOnToTheSameBytes) {
  const TempDirectory undisturbed;
  for (const char* method : {"default", "searched"}) {
    QuantizeOptions reference_options = GoldenOptions(undisturbed);
    reference_options.method = method;
    reference_options.out_dir = undisturbed / method;
    const auto reference = QuantizeGolden(reference_options);
    ASSERT_TRUE(reference.ok()) << reference.status();
    const auto expected = Files(reference_options.out_dir);
    const int plan_steps = FindQuantizeMethod(method)->shared_bits ? kLayers * kStepsPerLayer : 0;
    // Layers are quantized, then measured.
    const int steps = plan_steps + kLayers * kStepsPerLayer + kLayers;
    for (int stop_at = 0; stop_at < steps; ++stop_at) {
      SCOPED_TRACE(testing::Message() << method << ", stopped at step " << stop_at);
      const TempDirectory directory;
      QuantizeOptions options = GoldenOptions(directory);
      options.method = method;
      const absl::Status status = RunAndStop(options, stop_at);
      ASSERT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
      EXPECT_FALSE(std::filesystem::exists(options.out_dir));
      EXPECT_EQ(Empty(directory), stop_at < plan_steps) << "kept once the plan is made";
      options.threads = 1 + stop_at % 4;
      int resumed_layers = -1;
      const auto report = GoOn(options, &resumed_layers);
      ASSERT_TRUE(report.ok()) << report.status();
      EXPECT_EQ(resumed_layers,
                std::clamp((stop_at + 1 - plan_steps) / kStepsPerLayer, 0, kLayers));
      EXPECT_EQ(Files(options.out_dir), expected);
      EXPECT_FALSE(std::filesystem::exists(options.out_dir + ".partial"));
      EXPECT_EQ(FormatReport(options, *report), FormatReport(options, *reference));
      EXPECT_EQ(report->all.weighted_error, reference->all.weighted_error);
    }
  }
}

TEST(QuantizeResumeTest, InterruptedTwice) {
  const TempDirectory directory;
  const QuantizeOptions options = Interrupted(directory);
  std::atomic<bool> stop{true};
  const auto again = QuantizeCheckpoint(options, SomeIds(400), nullptr, &stop);
  EXPECT_EQ(again.status().code(), absl::StatusCode::kCancelled);
  int resumed_layers = 0;
  ASSERT_TRUE(GoOn(options, &resumed_layers).ok());
  EXPECT_EQ(resumed_layers, 1);
  EXPECT_EQ(Files(options.out_dir), Uninterrupted(options));
}

TEST(QuantizeResumeTest, OtherOptionsAreNamed) {
  const TempDirectory directory;
  const QuantizeOptions options = Interrupted(directory);
  const auto before = Files(options.out_dir + ".partial");
  const auto expect_refused = [&](const QuantizeOptions& other, int ids, const char* what) {
    const absl::Status status = QuantizeGolden(other, ids).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << what << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(options.out_dir + ".partial"),
                                                     HasSubstr(what), HasSubstr("--restart")));
    EXPECT_EQ(Files(options.out_dir + ".partial"), before) << what;
  };
  const auto refused = [&](auto change, const char* what) {
    QuantizeOptions other = options;
    change(&other);
    expect_refused(other, 400, what);
  };
  using O = QuantizeOptions*;
  refused([](O o) { o->method = "searched"; }, "another method (default, not searched)");
  refused([](O o) { o->bits = 2.0000000001; }, "another bits (2.0, not 2.0000000001)");
  refused([](O o) { o->share4 = 0.5; }, "another share4");
  refused([](O o) { o->outliers = 0.001; }, "another outliers");
  refused([](O o) { o->embedding_bits = 8; }, "another embedding_bits (16, not 8)");
  refused([](O o) { o->calibration_windows = 7; }, "another calibration_windows");
  refused([](O o) { o->probe_windows = 3; }, "another probe_windows");
  refused([](O o) { o->held_out_windows = 3; }, "another held_out_windows");
  refused([](O o) { o->context = 31; }, "another context");
  refused([](O o) { o->seed = 1; }, "another seed (0, not 1)");
  refused([](O o) { o->program = "2.0"; }, "another program");
  expect_refused(options, 399, "another calibration (400 tokens");

  QuantizeOptions other = options;
  other.seed = 1;
  other.restart = true;
  int resumed_layers = -1;
  ASSERT_TRUE(GoOn(other, &resumed_layers).ok());
  EXPECT_EQ(resumed_layers, 0);
  EXPECT_EQ(Files(other.out_dir), Uninterrupted(other));
}

TEST(QuantizeResumeTest, AModelThatChangedIsNamed) {
  const TempDirectory source;
  const TempDirectory directory;
  WriteCheckpoint(source.path(), ReadGolden("llama2"));
  QuantizeOptions options = GoldenOptions(directory);
  options.model_dir = source.path();
  ASSERT_EQ(RunAndStop(options, 3 * kStepsPerLayer).code(), absl::StatusCode::kCancelled);
  const auto message = [&] {
    const absl::Status status = QuantizeGolden(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return std::string(status.message());
  };
  WriteText(source / "generation_config.json", "{}");
  EXPECT_THAT(message(), HasSubstr("another model file generation_config.json (absent, not 2"));
  std::filesystem::remove(source / "generation_config.json");
  const std::string weights = source / "model.safetensors";
  const auto time = std::filesystem::last_write_time(weights);
  std::filesystem::last_write_time(weights, time + std::chrono::nanoseconds(1000));
  EXPECT_THAT(message(), HasSubstr("another model file model.safetensors ("));
  std::filesystem::last_write_time(weights, time);
  EXPECT_TRUE(QuantizeGolden(options).ok());
}

TEST(QuantizeResumeTest, TwoRunsCannotShareADirectory) {
  const TempDirectory directory;
  const QuantizeOptions options = GoldenOptions(directory);
  int tries = 0;
  const auto report = QuantizeCheckpoint(
      options, SomeIds(400),
      [&](const QuantizeProgress& progress) {
        if (progress.done % kStepsPerLayer != 0) return;
        QuantizeOptions second = options;
        second.restart = tries++ % 2 == 0;
        const absl::Status status = QuantizeGolden(second).status();
        EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
        EXPECT_THAT(std::string(status.message()),
                    AllOf(HasSubstr("another run"), HasSubstr(options.out_dir + ".partial/lock")));
      },
      nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(tries, 2 * kLayers + 1) << "the last time when it measures";
  EXPECT_EQ(Files(options.out_dir), Uninterrupted(options));
}

TEST(QuantizeResumeTest, ADamagedLayerIsMadeAgain) {
  const auto damages = {
      +[](std::string* text) { text->resize(text->size() / 2); },
      +[](std::string* text) { (*text)[text->size() / 2] ^= 1; },
      +[](std::string* text) { text->clear(); },
  };
  for (const int finished : {1, 2}) {
    for (const auto damage : damages) {
      const TempDirectory directory;
      const QuantizeOptions options = GoldenOptions(directory);
      ASSERT_EQ(RunAndStop(options, (kLayers + finished) * kStepsPerLayer - 1).code(),
                absl::StatusCode::kCancelled);
      const std::string shard = options.out_dir + ".partial/files/model-00002-of-00003.safetensors";
      std::string text = ReadText(shard);
      damage(&text);
      WriteText(shard, text);
      int resumed_layers = 0;
      const auto report = GoOn(options, &resumed_layers);
      ASSERT_TRUE(report.ok()) << report.status();
      EXPECT_EQ(resumed_layers, finished);
      EXPECT_EQ(Files(options.out_dir), Uninterrupted(options));
    }
  }
  const TempDirectory directory;
  const QuantizeOptions options = Interrupted(directory);
  std::filesystem::remove(options.out_dir + ".partial/files/model-00002-of-00003.safetensors");
  WriteText(options.out_dir + ".partial/files/model-00003-of-00003.safetensors.tmp", "half");
  ASSERT_TRUE(QuantizeGolden(options).ok());
  EXPECT_EQ(Files(options.out_dir), Uninterrupted(options));
}

TEST(QuantizeResumeTest, ADamagedRecordIsAnError) {
  const TempDirectory directory;
  const QuantizeOptions options = Interrupted(directory);
  const std::string path = options.out_dir + ".partial/progress.json";
  const std::string good = ReadText(path);
  const auto expect_damaged = [&](const std::string& text) {
    WriteText(path, text);
    const absl::Status status = QuantizeGolden(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status << text;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr("--restart")));
  };
  expect_damaged("");
  expect_damaged(good.substr(0, good.size() / 2));
  for (const char* key : {"fingerprint", "shares", "divergences", "layers"}) {
    nlohmann::json record = nlohmann::json::parse(good);
    record[key] = 1;
    expect_damaged(record.dump());
    record.erase(key);
    expect_damaged(record.dump());
    if (std::string(key) == "fingerprint") continue;
    record[key] = nlohmann::json::array();
    expect_damaged(record.dump());
  }
  nlohmann::json record = nlohmann::json::parse(good);
  record["layers"][0]["qualities"][3].erase(2);
  expect_damaged(record.dump());
  record = nlohmann::json::parse(good);
  record["shares"][0] = 1.5;
  expect_damaged(record.dump());

  WriteText(path, good);
  const auto parsed = ParseRunRecord(nlohmann::json::parse(good));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(ToJson(*parsed), nlohmann::json::parse(good));
  WriteText(path, "?");
  QuantizeOptions restarted = options;
  restarted.restart = true;
  ASSERT_TRUE(QuantizeGolden(restarted).ok());
  EXPECT_EQ(Files(options.out_dir), Uninterrupted(options));
}

TEST(QuantizeResumeTest, ADirectoryThatIsNotOursIsNotTouched) {
  const TempDirectory directory;
  QuantizeOptions options = GoldenOptions(directory);
  std::filesystem::create_directory(options.out_dir + ".partial");
  WriteText(options.out_dir + ".partial/mine", "x");
  for (const bool restart : {false, true}) {
    options.restart = restart;
    const absl::Status status = QuantizeGolden(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("holds mine but no progress.json"));
    EXPECT_EQ(Files(options.out_dir + ".partial"),
              (std::map<std::string, std::string>{{"mine", "x"}}));
  }
  std::filesystem::remove(options.out_dir + ".partial/mine");
  EXPECT_TRUE(QuantizeGolden(options).ok()) << "what a run killed in its plan leaves is empty";
}

TEST(QuantizeResumeTest, ATargetThatAppearedMeanwhileIsNotReplaced) {
  const TempDirectory directory;
  const QuantizeOptions options = Interrupted(directory);
  std::filesystem::create_directory(options.out_dir);
  WriteText(options.out_dir + "/mine", "x");
  EXPECT_EQ(QuantizeGolden(options).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(std::filesystem::exists(options.out_dir + ".partial/progress.json"));
  std::filesystem::remove(options.out_dir + "/mine");
  EXPECT_TRUE(QuantizeGolden(options).ok());
  EXPECT_EQ(Files(options.out_dir), Uninterrupted(options));
}

TEST(QuantizeResumeTest, KilledBehindTheRenameItHasFinished) {
  const TempDirectory directory;
  const QuantizeOptions options = GoldenOptions(directory);
  std::string progress;
  const std::string partial = options.out_dir + ".partial";
  const auto report = QuantizeCheckpoint(
      options, SomeIds(400),
      [&](const QuantizeProgress& now) {
        if (std::string(now.activity) == "measuring")
          progress = ReadText(partial + "/progress.json");
      },
      nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto files = Files(options.out_dir);
  EXPECT_EQ(files.count("lock") + files.count("progress.json"), 0u);
  EXPECT_FALSE(std::filesystem::exists(partial));
  // What the process would have left.
  std::filesystem::create_directory(partial);
  WriteText(partial + "/lock", "");
  WriteText(partial + "/progress.json", progress);
  EXPECT_EQ(QuantizeGolden(options).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Files(options.out_dir), files);
  std::filesystem::remove_all(options.out_dir);
  ASSERT_TRUE(QuantizeGolden(options).ok()) << "all layers are made again";
  EXPECT_EQ(Files(options.out_dir), files);
  EXPECT_FALSE(std::filesystem::exists(partial));
}

TEST(QuantizeResumeTest, AFullDiskCanBeMadeRoomOn) {
  // A limit on the size of files stands for the full disk: writes fail half way with an error code.
  const TempDirectory directory;
  const QuantizeOptions options = GoldenOptions(directory);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {100, 70000}) {  // the hidden states take 65536, the embeddings 82568
    const rlimit small{.rlim_cur = limit, .rlim_max = before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    const absl::Status status = QuantizeGolden(options).status();
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(options.out_dir + ".partial"));
    // The first limit is too small even for the record of the plan.
    EXPECT_EQ(Empty(directory), limit == 100);
    EXPECT_FALSE(std::filesystem::exists(options.out_dir));
  }
  signal(SIGXFSZ, old_handler);
  ASSERT_TRUE(QuantizeGolden(options).ok());
  EXPECT_EQ(Files(options.out_dir), Uninterrupted(options));
}

}  // namespace
}  // namespace fewbit
