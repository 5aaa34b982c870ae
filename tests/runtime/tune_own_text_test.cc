// Text that the original writes for tuning.
#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/tune/own_text.h"
#include "tests/runtime/checkpoint_files.h"
#include "tests/runtime/quantize_golden.h"

namespace fewbit::tune {
namespace {

using ::testing::HasSubstr;

constexpr int kPrompt = 17;  // BOS included

TuneOptions Golden() {
  TuneOptions options;
  options.model_dir = GoldenDirectory("llama2");
  options.quantized_dir = options.out_dir = "unused";
  options.device = "cpu";
  options.threads = 2;
  options.context = 32;
  options.held_out = 4;
  options.own_windows = 12;
  options.noise = 0.0;
  return options;
}

absl::StatusOr<std::vector<TokenId>> Write(const TuneOptions& options) {
  return WriteOwnText(options, SomeIds(1500), nullptr, nullptr);
}

TEST(OwnTextTest, GoesOnFromTheCalibrationText) {
  const TuneOptions options = Golden();
  int done = 0;
  const auto text = WriteOwnText(
      options, SomeIds(1500), [&](int windows) { done = windows; }, nullptr);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(done, 12);
  ASSERT_EQ(text->size(), 12u * 32u);
  const std::vector<TokenId> calibration = SomeIds(1500);
  for (size_t w = 0; w < 12; ++w) {
    const auto window = std::span(*text).subspan(w * 32, 32);
    EXPECT_EQ(ToInt(window[0]), 1);
    const auto found = std::search(calibration.begin(), calibration.end(), window.begin() + 1,
                                   window.begin() + kPrompt);
    EXPECT_NE(found, calibration.end()) << "window " << w << " begins elsewhere";
    const auto whole =
        std::search(calibration.begin(), calibration.end(), window.begin() + 1, window.end());
    EXPECT_EQ(whole, calibration.end()) << "window " << w << " is a copy";
    for (const TokenId id : window) EXPECT_TRUE(ToInt(id) >= 0 && ToInt(id) < 320);
  }
}

TEST(OwnTextTest, DependsOnTheSeedNotOnTheThreads) {
  TuneOptions options = Golden();
  const auto text = Write(options);
  ASSERT_TRUE(text.ok()) << text.status();
  options.threads = 1;
  EXPECT_EQ(*Write(options), *text);
  options.seed = 1;
  EXPECT_NE(*Write(options), *text);
}

TEST(OwnTextTest, StopsAndRefuses) {
  std::atomic<bool> stop{true};
  EXPECT_EQ(WriteOwnText(Golden(), SomeIds(1500), nullptr, &stop).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_THAT(
      std::string(WriteOwnText(Golden(), SomeIds(200), nullptr, nullptr).status().message()),
      HasSubstr("too short: 200 tokens"));
  TuneOptions options = Golden();
  options.model_dir = "/nowhere";
  EXPECT_EQ(Write(options).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace fewbit::tune
