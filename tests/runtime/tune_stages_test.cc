// Quantizing and tuning as one run: what an interrupted one leaves between the stages. And the page
// of a run.
#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/tune/cpu_ops.h"
#include "runtime/tune/html_report.h"
#include "runtime/tune/tune_checkpoint.h"
#include "runtime/tune/two_stages.h"
#include "tests/runtime/checkpoint_files.h"
#include "tests/runtime/quantize_golden.h"

namespace fewbit::tune {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Stages {
  TempDirectory directory;
  std::string out = directory / "out";
  QuantizeOptions quantize = GoldenOptions(directory);

  Stages() { quantize.out_dir = QuantizedStage(out); }
  absl::StatusOr<bool> Begin(int ids = 400) const {
    return BeginTwoStages(quantize, out, SomeIds(ids));
  }
};

TEST(TwoStagesTest, GoesOnInTheStageThatWasInterrupted) {
  Stages stages;
  const auto first = stages.Begin();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(*first);
  const auto still_first = stages.Begin();
  ASSERT_TRUE(still_first.ok()) << still_first.status();
  EXPECT_FALSE(*still_first);
  ASSERT_TRUE(QuantizeGolden(stages.quantize).ok());
  const auto second = stages.Begin();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(*second);
  stages.quantize.threads = 1;  // changes no byte
  EXPECT_TRUE(*stages.Begin());
  ASSERT_TRUE(EndTwoStages(stages.out).ok());
  EXPECT_EQ(Files(stages.directory.path()).size(), Files(stages.quantize.out_dir).size());
}

TEST(TwoStagesTest, RefusesAnotherRun) {
  Stages stages;
  ASSERT_TRUE(stages.Begin().ok());
  ASSERT_TRUE(QuantizeGolden(stages.quantize).ok());
  const auto expect = [&](int ids, const char* what) {
    const absl::Status status = stages.Begin(ids).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(what), HasSubstr("--restart")));
  };
  expect(401, "another calibration");
  stages.quantize.seed = 5;
  expect(400, "another seed");
  WriteText(stages.out + ".run.json", "{\"fingerprint\": 3}");
  const absl::Status damaged = stages.Begin().status();
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss) << damaged;
  EXPECT_THAT(std::string(damaged.message()), HasSubstr(".run.json: damaged"));
  stages.quantize.restart = true;
  const auto again = stages.Begin();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_FALSE(*again);
  EXPECT_FALSE(std::filesystem::exists(stages.quantize.out_dir));
}

TEST(TwoStagesTest, RefusesWhatItDidNotLeave) {
  Stages stages;
  std::filesystem::create_directory(stages.quantize.out_dir);
  EXPECT_THAT(std::string(stages.Begin().status().message()), HasSubstr("move it away"));
  stages.quantize.restart = true;
  EXPECT_EQ(stages.Begin().status().code(), absl::StatusCode::kAlreadyExists);
  std::filesystem::remove(stages.quantize.out_dir);
  std::filesystem::create_directory(stages.out);
  EXPECT_TRUE(stages.Begin().ok()) << "an empty directory is as good as none";
  WriteText(stages.out + "/x", "");
  EXPECT_EQ(stages.Begin().status().code(), absl::StatusCode::kAlreadyExists);
}

TEST(TuningReportTest, ShowsCurveNumbersAndCommand) {
  const TempDirectory directory;
  QuantizeOptions quantize = GoldenOptions(directory);
  quantize.method = "searched";
  ASSERT_TRUE(QuantizeGolden(quantize).ok());
  TuneOptions options;
  options.model_dir = quantize.model_dir;
  options.quantized_dir = quantize.out_dir;
  options.out_dir = directory / "tuned";
  options.steps = 4;
  options.batch = 2;
  options.context = 32;
  options.held_out = 2;
  options.evaluate_every = 2;
  const auto ops = CreateCpuOps(1);
  const auto report = TuneCheckpoint(options, SomeIds(400), {}, ops.get(), nullptr, nullptr);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto page = ReportPage(options, *report, "fewbit-tune --seed=9");
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_FALSE(page->sections.empty());
  const auto& items = page->sections[0].items;
  const auto* curve = std::get_if<html::Chart>(&items[2]);
  ASSERT_NE(curve, nullptr);
  ASSERT_EQ(curve->series.size(), 2u);
  EXPECT_EQ(curve->series[0].points.size(), 2u) << "no training loss before the first step";
  EXPECT_EQ(curve->series[1].points.size(), 3u);
  EXPECT_EQ(curve->series[1].points[0].second, report->before.kl);
  const std::string text = html::Render(*page);
  for (const char* part : {"4 steps of 2 windows of 32 tokens", "256 tokens in all",
                           "fewbit-tune --seed=9", "second-order scales", "Channels with 4 bits"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
}

}  // namespace
}  // namespace fewbit::tune
