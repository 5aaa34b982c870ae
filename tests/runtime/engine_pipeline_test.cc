// The engine with an executor that takes two steps in flight: a step is launched before the one
// before it is collected, and a decoding request runs ahead of the token it does not know yet.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/engine.h"
#include "tests/runtime/engine_requests.h"
#include "tests/runtime/event_log.h"
#include "tests/runtime/fake_executor.h"

namespace fewbit {
namespace {

FakeExecutorOptions InFlight(int32_t steps) {
  FakeExecutorOptions options;
  options.info.max_steps_in_flight = steps;
  return options;
}

FakeExecutorOptions ClosedWithTwo() {
  FakeExecutorOptions options = InFlight(2);
  options.gate_closed = true;
  return options;
}

TEST(EnginePipelineTest, LaunchesTheNextStepBeforeItCollects) {
  FakeExecutor executor(ClosedWithTwo());
  EventLog log;
  Engine engine({}, &executor, &log);
  auto request = MakeRequest(1, 4, 3);
  const std::vector<TokenId> expected = Expected(executor, *request);
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  executor.WaitUntilInFlight(2);  // the prompt, and the first token that nobody knows yet
  EXPECT_EQ(executor.steps(), 0u);
  EXPECT_TRUE(log.line(RequestId{1}).tokens.empty());
  executor.AllowSteps(1);
  log.WaitTokens(RequestId{1}, 1);
  executor.WaitUntilInFlight(2);
  executor.OpenGate();
  EXPECT_EQ(log.WaitFinished(RequestId{1}).tokens, expected);
  engine.Drain(absl::InfiniteFuture());
  EXPECT_EQ(executor.steps(), 3u) << "a length is known ahead: no step beyond it";
  EXPECT_EQ(engine.stats().dropped_decode_tokens, 0u);
  EXPECT_EQ(executor.max_steps_in_flight_seen(), 2);
}

// A mix of lengths, stops, chunked and scored prompts, all submitted while the first step is held.
std::vector<EventLog::Line> RunMix(int32_t steps_in_flight, EngineStats* stats) {
  FakeExecutorOptions fake = InFlight(steps_in_flight);
  for (int32_t i = 0; i < 40; ++i) fake.alphabet.push_back(TokenId{i});
  fake.gate_closed = true;
  FakeExecutor executor(fake);
  EventLog log;
  EngineOptions options;
  options.max_running = 7;
  options.step_token_budget = 48;
  Engine engine(options, &executor, &log);
  std::mt19937_64 random(5);
  constexpr uint64_t kRequests = 120;
  for (uint64_t id = 1; id <= kRequests; ++id) {
    auto request = MakeRequest(id, 1 + static_cast<int32_t>(random() % 90),
                               1 + static_cast<int32_t>(random() % 30));
    if (random() % 2 == 0) request->stop_token_ids = {TokenId{static_cast<int32_t>(id % 40)}};
    request->min_new_tokens = static_cast<int32_t>(random() % 3) % request->max_new_tokens;
    request->want_prompt_logprobs = random() % 4 == 0;
    EXPECT_TRUE(engine.Submit(std::move(request)).ok());
  }
  executor.OpenGate();
  std::vector<EventLog::Line> lines;
  for (uint64_t id = 1; id <= kRequests; ++id) lines.push_back(log.WaitFinished(RequestId{id}));
  engine.Drain(absl::InfiniteFuture());
  *stats = engine.stats();
  return lines;
}

TEST(EnginePipelineTest, RequestsAreToldTheSameWhateverIsInFlight) {
  EngineStats stats;
  const std::vector<EventLog::Line> one = RunMix(1, &stats);
  EXPECT_EQ(stats.dropped_decode_tokens, 0u);
  for (const int32_t steps_in_flight : {2, 3}) {
    const std::vector<EventLog::Line> more = RunMix(steps_in_flight, &stats);
    uint64_t stopped = 0;
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_EQ(more[i].tokens, one[i].tokens) << i;
      EXPECT_EQ(more[i].scored, one[i].scored) << i;
      EXPECT_EQ(more[i].reason, one[i].reason) << i;
      stopped += one[i].reason == FinishReason::kStopToken;
    }
    EXPECT_GT(stopped, 10u);
    EXPECT_GT(stats.dropped_decode_tokens, 0u);
    EXPECT_LE(stats.dropped_decode_tokens, stopped * (steps_in_flight - 1));
    EXPECT_EQ(stats.dropped_prefill_tokens, 0u);
    EXPECT_EQ(stats.blocks_used, 0);
  }
}

TEST(EnginePipelineTest, ACancelledRequestKeepsItsPlaceUntilItsLastStepEnds) {
  FakeExecutor executor(ClosedWithTwo());
  EventLog log;
  Engine engine({}, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 1000)).ok());
  executor.WaitUntilInFlight(2);
  engine.Cancel(RequestId{1});
  executor.AllowSteps(1);
  const EventLog::Line line = log.WaitFinished(RequestId{1});  // the second step is still held
  EXPECT_EQ(line.reason, FinishReason::kCancelled);
  EXPECT_EQ(line.tokens.size(), 1u);
  EXPECT_EQ(executor.steps(), 1u);
  EXPECT_EQ(engine.stats().requests_running, 1);
  EXPECT_GT(engine.stats().blocks_used, 0);
  log.Forget(RequestId{1});
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 2)).ok()) << "its id is free at once";
  executor.OpenGate();
  EXPECT_EQ(log.WaitFinished(RequestId{1}).reason, FinishReason::kLength);
  engine.Drain(absl::InfiniteFuture());
  EXPECT_EQ(engine.stats().dropped_decode_tokens, 1u);
  EXPECT_EQ(engine.stats().blocks_used, 0);
  EXPECT_EQ(engine.stats().requests_running, 0);
}

TEST(EnginePipelineTest, AReportNamesWhatWasRunForNobody) {
  FakeExecutor executor(InFlight(2));
  EventLog log;
  Engine engine({}, &executor, &log);
  auto request = MakeRequest(7, 10, 50);
  std::vector<TokenId> expected = Expected(executor, *request);
  expected.resize(9);
  request->stop_token_ids = {expected.back()};
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  EXPECT_EQ(log.WaitFinished(RequestId{7}).tokens, expected);
  engine.Drain(absl::InfiniteFuture());
  const std::vector<StepReport> reports = log.reports();
  ASSERT_EQ(reports.size(), 10u) << "nine tokens, and one behind the stop";
  for (size_t i = 0; i < reports.size(); ++i) {
    EXPECT_EQ(reports[i].dropped_decode_tokens, i == 9 ? 1 : 0) << i;
    EXPECT_EQ(reports[i].dropped_prefill_tokens, 0) << i;
  }
  EXPECT_EQ(engine.stats().decode_tokens, 9u);
  EXPECT_EQ(engine.stats().dropped_decode_tokens, 1u);
}

TEST(EnginePipelineTest, SecondsOfStepsDoNotOverlap) {
  FakeExecutorOptions fake = InFlight(2);
  fake.step_time = absl::Milliseconds(3);
  FakeExecutor executor(fake);
  EventLog log;
  double busy = 0.0;
  const absl::Time begin = absl::Now();
  {
    Engine engine({}, &executor, &log);
    ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 12)).ok());
    engine.Drain(absl::InfiniteFuture());
    busy = engine.stats().busy_seconds;
  }
  const double wall = absl::ToDoubleSeconds(absl::Now() - begin);
  double seconds = 0.0;
  for (const StepReport& report : log.reports()) seconds += report.seconds;
  EXPECT_EQ(log.reports().size(), 12u);
  EXPECT_NEAR(seconds, busy, 1e-9);
  EXPECT_GE(seconds, 12 * 0.003 - 1e-4) << "twelve steps one after the other";
  EXPECT_LE(seconds, wall + 1e-4);
}

TEST(EnginePipelineTest, AnErrorFailsWhatIsInFlightAndLaunchesNothingMore) {
  FakeExecutor executor(ClosedWithTwo());
  EventLog log;
  EngineOptions options;
  options.max_running = 1;
  Engine engine(options, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 100)).ok());
  ASSERT_TRUE(engine.Submit(MakeRequest(2, 4, 100)).ok());
  executor.WaitUntilInFlight(2);
  executor.FailNextStep(absl::InternalError("device lost"));
  executor.OpenGate();
  for (uint64_t id = 1; id <= 2; ++id) {
    EXPECT_EQ(log.WaitFinished(RequestId{id}).reason, FinishReason::kError) << id;
    EXPECT_TRUE(log.line(RequestId{id}).tokens.empty()) << id;
  }
  engine.Drain(absl::InfiniteFuture());
  EXPECT_EQ(executor.steps(), 2u);
  executor.WaitUntilInFlight(0);
  EXPECT_TRUE(engine.stats().failed);
  EXPECT_EQ(engine.stats().blocks_used, 0);
  EXPECT_EQ(engine.stats().requests_running, 0);
}

TEST(EnginePipelineTest, ARowWithoutATokenFailsItsRequestOnly) {
  FakeExecutor executor(ClosedWithTwo());
  EventLog log;
  Engine engine({}, &executor, &log);
  auto good = MakeRequest(2, 4, 10);
  const std::vector<TokenId> expected = Expected(executor, *good);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 10)).ok());
  ASSERT_TRUE(engine.Submit(std::move(good)).ok());
  executor.FailRowsOf(RequestId{1});
  executor.OpenGate();
  EXPECT_EQ(log.WaitFinished(RequestId{1}).reason, FinishReason::kError);
  EXPECT_TRUE(log.line(RequestId{1}).tokens.empty());
  EXPECT_EQ(log.WaitFinished(RequestId{2}).tokens, expected);
  engine.Drain(absl::InfiniteFuture());
  EXPECT_FALSE(engine.stats().failed);
  EXPECT_EQ(engine.stats().dropped_decode_tokens, 1u);
}

TEST(EnginePipelineTest, DrainDeadlineEndsRequestsWithStepsInFlight) {
  FakeExecutorOptions fake = InFlight(2);
  fake.step_time = absl::Milliseconds(1);
  FakeExecutor executor(fake);
  EventLog log;
  Engine engine({}, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 4000)).ok());  // four seconds of steps
  log.WaitTokens(RequestId{1}, 1);
  engine.Drain(absl::Now());
  EXPECT_EQ(engine.stats().blocks_used, 0);
  EXPECT_EQ(engine.stats().requests_running, 0);
  const EventLog::Line line = log.line(RequestId{1});
  EXPECT_EQ(line.reason, FinishReason::kDrained);
  EXPECT_GE(line.tokens.size(), 1u) << "what was collected still counts";
  executor.WaitUntilInFlight(0);
}

TEST(EnginePipelineTest, ARequestThatArrivesInBetweenJoins) {
  FakeExecutor executor(ClosedWithTwo());
  EventLog log;
  Engine engine({}, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 20)).ok());
  executor.WaitUntilInFlight(2);
  auto late = MakeRequest(2, 9, 5);
  const std::vector<TokenId> expected = Expected(executor, *late);
  ASSERT_TRUE(engine.Submit(std::move(late)).ok());
  executor.AllowSteps(2);  // those in flight; the step behind them has both
  executor.WaitUntilHeld();
  executor.OpenGate();
  EXPECT_EQ(log.WaitFinished(RequestId{2}).tokens, expected);
  EXPECT_EQ(log.WaitFinished(RequestId{1}).tokens.size(), 20u);
  EXPECT_EQ(executor.max_sequences_seen(), 2);
}

}  // namespace
}  // namespace fewbit
