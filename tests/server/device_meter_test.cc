#include "server/device_meter.h"

#include <gtest/gtest.h>

namespace fewbit {
namespace {

StepReport Step(double seconds, int32_t prefill_tokens, int32_t tokens) {
  StepReport report;
  report.sequences = 1;
  report.tokens = tokens;
  report.prefill_tokens = prefill_tokens;
  report.seconds = seconds;
  return report;
}

TEST(DeviceMeterTest, SplitsAStepByItsTokens) {
  DeviceMeter meter(100.0);
  meter.AddStep(Step(2.0, 30, 40), 105.0);
  meter.AddStep(Step(1.0, 0, 10), 107.0);
  const PhaseSeconds seconds = meter.Phases(110.0);
  EXPECT_DOUBLE_EQ(seconds.prefill, 1.5);
  EXPECT_DOUBLE_EQ(seconds.decode, 1.5);
  EXPECT_DOUBLE_EQ(seconds.idle, 7.0);
}

TEST(DeviceMeterTest, NothingFallsWhenAStepEndsBetweenTwoReadings) {
  DeviceMeter meter(0.0);
  EXPECT_DOUBLE_EQ(meter.Phases(5.0).idle, 5.0);
  meter.AddStep(Step(2.0, 0, 1), 7.0);
  // The reader still has the state of the engine before the step.
  EXPECT_DOUBLE_EQ(meter.Phases(5.0).idle, 5.0);
  const PhaseSeconds seconds = meter.Phases(8.0);
  EXPECT_DOUBLE_EQ(seconds.idle, 6.0);
  EXPECT_DOUBLE_EQ(seconds.prefill + seconds.decode + seconds.idle, 8.0);
}

TEST(DeviceMeterTest, SharesFollowTheTokensAndSumUpToTheSteps) {
  DeviceMeter meter(0.0);
  meter.AddStep(Step(3.0, 30, 30), 3.0);  // two prompts, of 10 and 20
  meter.AddStep(Step(1.0, 0, 2), 4.0);
  meter.AddStep(Step(0.5, 0, 1), 4.5);
  EXPECT_DOUBLE_EQ(meter.TakeShare(10, 1), 1.0 + 0.5);
  EXPECT_DOUBLE_EQ(meter.TakeShare(20, 2), 2.0 + 1.0);
  EXPECT_DOUBLE_EQ(meter.TakeShare(5, 5), 0.0) << "nothing is left";
}

TEST(DeviceMeterTest, WhoIsServedBearsWhatWasDropped) {
  DeviceMeter meter(0.0);
  StepReport report = Step(1.0, 0, 2);
  report.dropped_decode_tokens = 1;
  meter.AddStep(report, 1.0);
  EXPECT_DOUBLE_EQ(meter.TakeShare(0, 1), 1.0);
  report = Step(1.0, 0, 1);
  report.dropped_decode_tokens = 1;  // nothing else was in it
  meter.AddStep(report, 2.0);
  EXPECT_DOUBLE_EQ(meter.TakeShare(0, 1), 0.0);
  meter.AddStep(Step(1.0, 0, 1), 3.0);
  EXPECT_DOUBLE_EQ(meter.TakeShare(0, 1), 2.0);
  report = Step(4.0, 8, 8);
  report.dropped_prefill_tokens = 4;
  meter.AddStep(report, 7.0);
  EXPECT_DOUBLE_EQ(meter.TakeShare(4, 0), 4.0);
  const PhaseSeconds seconds = meter.Phases(7.0);
  EXPECT_DOUBLE_EQ(seconds.prefill, 4.0);
  EXPECT_DOUBLE_EQ(seconds.decode, 3.0);
}

TEST(DeviceMeterTest, RecentUseForgetsWhatIsOlderThanTheWindow) {
  DeviceMeter meter(0.0);
  const auto run = [&](double from, double to) {  // one second of work and ten tokens per second
    for (double now = from; now < to; now += 2.0) {
      meter.AddStep(Step(1.0, 0, 20), now);
      for (int i = 0; i < 20; ++i) meter.AddGeneratedToken();
    }
  };
  EXPECT_EQ(meter.Recent(50.0).generated_tokens, 0u);
  run(0.0, 100.0);
  RecentUse recent = meter.Recent(100.0);
  EXPECT_DOUBLE_EQ(recent.seconds, 100.0);
  EXPECT_DOUBLE_EQ(recent.busy_seconds, 50.0);
  EXPECT_EQ(recent.generated_tokens, 1000u);

  run(1000.0, 1100.0);
  recent = meter.Recent(1100.0);
  EXPECT_DOUBLE_EQ(recent.seconds, DeviceMeter::kWindowSeconds);
  EXPECT_DOUBLE_EQ(recent.busy_seconds, 50.0) << "what ran 1000 s ago is not recent";
  EXPECT_EQ(recent.generated_tokens, 1000u);
  EXPECT_EQ(meter.Recent(2000.0).generated_tokens, 0u);
}

}  // namespace
}  // namespace fewbit
