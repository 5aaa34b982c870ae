#include "runtime/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/runtime/engine_requests.h"
#include "tests/runtime/event_log.h"
#include "tests/runtime/fake_executor.h"

namespace fewbit {
namespace {

using ::testing::HasSubstr;

FakeExecutorOptions Closed() {
  FakeExecutorOptions options;
  options.gate_closed = true;
  return options;
}

TEST(EngineTest, RunsOneRequestToItsLength) {
  FakeExecutor executor;
  EventLog log;
  Engine engine({}, &executor, &log);
  auto request = MakeRequest(1, 700, 5);  // longer than a step's 512 tokens
  const std::vector<TokenId> expected = Expected(executor, *request);
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  const EventLog::Line line = log.WaitFinished(RequestId{1});
  EXPECT_EQ(line.tokens, expected);
  EXPECT_EQ(line.reason, FinishReason::kLength);
  EXPECT_EQ(line.timing.prompt_tokens, 700);
  EXPECT_EQ(line.timing.generated_tokens, 5);
  EXPECT_GE(line.timing.queue_wait_ms, 0.0);
  EXPECT_GE(line.timing.prefill_ms, 0.0);
  EXPECT_GE(line.timing.decode_ms, 0.0);
}

TEST(EngineTest, ReportsEveryStep) {
  FakeExecutor executor;
  EventLog log;
  Engine engine({}, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 700, 3)).ok());
  log.WaitFinished(RequestId{1});
  engine.Drain(absl::InfiniteFuture());
  const std::vector<StepReport> reports = log.reports();
  ASSERT_EQ(reports.size(), 4u);  // 512 + 188 prompt tokens, then two decodes
  EXPECT_EQ(reports[0].tokens, 512);
  EXPECT_EQ(reports[0].prefill_tokens, 512);
  EXPECT_EQ(reports[0].sampled_rows, 0);
  EXPECT_EQ(reports[1].tokens, 188);
  EXPECT_EQ(reports[1].sampled_rows, 1);
  EXPECT_EQ(reports[2].tokens, 1);
  EXPECT_EQ(reports[2].prefill_tokens, 0);
  EXPECT_EQ(reports[3].sequences, 1);
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.steps, 4u);
  EXPECT_EQ(stats.prefill_tokens, 700u);
  EXPECT_EQ(stats.decode_tokens, 2u);
  EXPECT_EQ(stats.step_tokens, 702u);
  EXPECT_EQ(stats.blocks_used, 0);
  EXPECT_EQ(stats.blocks_total, 4096);
  EXPECT_EQ(stats.requests_running, 0);
  EXPECT_EQ(stats.requests_waiting, 0);
}

TEST(EngineTest, BatchesWhatArrivesTogether) {
  FakeExecutor executor(Closed());
  EventLog log;
  Engine engine({}, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 8)).ok());
  executor.WaitUntilHeld();
  std::vector<std::vector<TokenId>> expected;
  for (uint64_t id = 2; id <= 40; ++id) {
    auto request = MakeRequest(id, 1 + static_cast<int32_t>(id % 13), 8);
    expected.push_back(Expected(executor, *request));
    ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  }
  executor.OpenGate();
  for (uint64_t id = 2; id <= 40; ++id) {
    EXPECT_EQ(log.WaitFinished(RequestId{id}).tokens, expected[id - 2]) << id;
  }
  EXPECT_EQ(executor.max_sequences_seen(), 40);
}

TEST(EngineTest, StopTokenEndsARequestAndIsItsLastToken) {
  FakeExecutor executor;
  EventLog log;
  Engine engine({}, &executor, &log);
  auto request = MakeRequest(7, 10, 50);
  std::vector<TokenId> expected = Expected(executor, *request);
  expected.resize(9);
  request->stop_token_ids = {expected.back()};
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  const EventLog::Line line = log.WaitFinished(RequestId{7});
  EXPECT_EQ(line.tokens, expected);
  EXPECT_EQ(line.reason, FinishReason::kStopToken);
}

TEST(EngineTest, ScoresThePromptButItsFirstToken) {
  FakeExecutor executor;
  EventLog log;
  EngineOptions options;
  options.max_running = 4;
  options.step_token_budget = 7;
  Engine engine(options, &executor, &log);
  auto request = MakeRequest(3, 20, 2);
  request->want_prompt_logprobs = true;
  const std::vector<TokenId> scored(request->prompt.begin() + 1, request->prompt.end());
  const std::vector<TokenId> expected = Expected(executor, *request);
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  const EventLog::Line line = log.WaitFinished(RequestId{3});
  EXPECT_EQ(line.scored, scored);
  EXPECT_EQ(line.tokens, expected);
}

TEST(EngineTest, CancelEndsARunningRequestWithinAStep) {
  FakeExecutor executor(Closed());
  EventLog log;
  Engine engine({}, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 1000)).ok());
  executor.WaitUntilHeld();
  executor.AllowSteps(3);
  log.WaitTokens(RequestId{1}, 3);
  executor.WaitUntilHeld();
  engine.Cancel(RequestId{1});
  engine.Cancel(RequestId{1});
  executor.AllowSteps(1);  // the step in flight; there is no further one
  const EventLog::Line line = log.WaitFinished(RequestId{1});
  EXPECT_EQ(line.reason, FinishReason::kCancelled);
  EXPECT_EQ(line.tokens.size(), 4u);
  EXPECT_EQ(engine.stats().blocks_used, 0);
  engine.Cancel(RequestId{1});   // finished: nothing happens
  engine.Cancel(RequestId{99});  // unknown: nothing happens
  executor.OpenGate();
  log.Forget(RequestId{1});
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 2)).ok()) << "a finished id can be used again";
  engine.Drain(absl::InfiniteFuture());
  EXPECT_EQ(executor.steps(), 6u);
}

TEST(EngineTest, CancelReachesARequestStillInTheInbox) {
  FakeExecutor executor(Closed());
  EventLog log;
  Engine engine({}, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 4)).ok());
  executor.WaitUntilHeld();
  ASSERT_TRUE(engine.Submit(MakeRequest(2, 4, 4)).ok());
  engine.Cancel(RequestId{2});
  executor.OpenGate();
  const EventLog::Line line = log.WaitFinished(RequestId{2});
  EXPECT_EQ(line.reason, FinishReason::kCancelled);
  EXPECT_TRUE(line.tokens.empty());
  EXPECT_EQ(log.WaitFinished(RequestId{1}).reason, FinishReason::kLength);
}

TEST(EngineTest, AnExpiredRequestFailsAndCostsNoStep) {
  FakeExecutor executor;
  EventLog log;
  Engine engine({}, &executor, &log);
  auto expired = MakeRequest(1, 4, 100);
  expired->deadline = absl::Now() - absl::Seconds(1);
  ASSERT_TRUE(engine.Submit(std::move(expired)).ok());
  EXPECT_EQ(log.WaitFinished(RequestId{1}).reason, FinishReason::kDeadline);
  EXPECT_EQ(executor.steps(), 0u);
}

TEST(EngineTest, TimeLimitEndsARunningRequestWithWhatThereIs) {
  FakeExecutorOptions fake;
  fake.step_time = absl::Milliseconds(1);
  FakeExecutor executor(fake);
  EventLog log;
  Engine engine({}, &executor, &log);
  auto limited = MakeRequest(2, 4, 4000);  // 4 seconds of steps
  const absl::Time limit = absl::Now() + absl::Milliseconds(30);
  limited->time_limit = limit;
  limited->deadline = limit + absl::Hours(1);
  ASSERT_TRUE(engine.Submit(std::move(limited)).ok());
  const EventLog::Line line = log.WaitFinished(RequestId{2});
  EXPECT_GE(absl::Now(), limit);
  EXPECT_EQ(line.reason, FinishReason::kTimeLimit);
  EXPECT_LT(line.tokens.size(), 4000u);
  EXPECT_EQ(line.timing.generated_tokens, static_cast<int32_t>(line.tokens.size()));
}

TEST(EngineTest, RefusesBeyondItsLimitsAndNamesThem) {
  FakeExecutor executor(Closed());
  EventLog log;
  EngineOptions options;
  options.max_running = 1;
  options.max_waiting = 3;
  options.max_waiting_tokens = 100;
  Engine engine(options, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 4)).ok());
  executor.WaitUntilHeld();  // 1 runs, all others wait
  ASSERT_TRUE(engine.Submit(MakeRequest(2, 60, 4)).ok());
  absl::Status status = engine.Submit(MakeRequest(3, 41, 4));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      status.message(),
      "token queue is full: 60 prompt tokens wait, this request has 41, max_waiting_tokens is 100");
  ASSERT_TRUE(engine.Submit(MakeRequest(4, 20, 4)).ok());
  ASSERT_TRUE(engine.Submit(MakeRequest(5, 20, 4)).ok());
  status = engine.Submit(MakeRequest(6, 1, 4));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "request queue is full: 3 requests wait, max_waiting is 3");
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.requests_running, 1);
  EXPECT_EQ(stats.requests_waiting, 3);
  EXPECT_EQ(stats.waiting_tokens, 100);
  executor.OpenGate();
  log.WaitFinishedCount(4);
  EXPECT_TRUE(engine.Submit(MakeRequest(7, 100, 4)).ok()) << "room again after the queue emptied";
  EXPECT_EQ(log.WaitFinished(RequestId{7}).reason, FinishReason::kLength);
}

TEST(EngineTest, RefusesWhatCouldNeverRun) {
  FakeExecutorOptions fake;
  fake.info.num_blocks = 4;  // 64 tokens
  fake.info.max_context = 100;
  FakeExecutor executor(fake);
  EventLog log;
  EngineOptions options;
  options.max_waiting_tokens = 50;
  Engine engine(options, &executor, &log);
  const auto refusal = [&engine](std::unique_ptr<Request> request) {
    const absl::Status status = engine.Submit(std::move(request));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal(MakeRequest(1, 0, 1)), HasSubstr("prompt has no tokens"));
  EXPECT_THAT(refusal(MakeRequest(1, 4, 0)), HasSubstr("max_new_tokens = 0"));
  EXPECT_THAT(refusal(MakeRequest(1, 90, 11)), HasSubstr("make 101, more than the context of 100"));
  EXPECT_THAT(refusal(MakeRequest(1, 40, 25)), HasSubstr("need 5 KV blocks of 16 tokens"));
  EXPECT_THAT(refusal(MakeRequest(1, 51, 2)), HasSubstr("max_waiting_tokens = 50"));
  auto request = MakeRequest(1, 4, 4);
  request->prompt[2] = TokenId{1000};
  EXPECT_THAT(refusal(std::move(request)), HasSubstr("prompt[2] = 1000 is outside"));
  request = MakeRequest(1, 4, 4);
  request->stop_token_ids = {TokenId{3}, TokenId{-1}};
  EXPECT_THAT(refusal(std::move(request)), HasSubstr("stop_token_ids[1] = -1"));
  request = MakeRequest(1, 4, 4);
  request->sampling.logit_bias = {{TokenId{5000}, 1.0f}};
  EXPECT_THAT(refusal(std::move(request)), HasSubstr("logit_bias[0] = 5000"));
  request = MakeRequest(1, 4, 4);
  request->min_new_tokens = 5;
  EXPECT_THAT(refusal(std::move(request)), HasSubstr("min_new_tokens = 5"));
  request = MakeRequest(1, 4, 4);
  request->num_top_logprobs = 21;
  EXPECT_THAT(refusal(std::move(request)), HasSubstr("num_top_logprobs = 21"));
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 40, 24)).ok()) << "exactly the whole cache";
  EXPECT_EQ(log.WaitFinished(RequestId{1}).tokens.size(), 24u);
}

TEST(EngineTest, RefusesAnIdThatIsLive) {
  FakeExecutor executor(Closed());
  EventLog log;
  Engine engine({}, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 4)).ok());
  executor.WaitUntilHeld();
  const absl::Status status = engine.Submit(MakeRequest(1, 4, 4));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("request id 1 is live"));
  executor.OpenGate();
}

// Returns once the engine refuses requests because it drains. The probe has the id of a live
// request: it is never accepted.
void WaitUntilDraining(Engine* engine, uint64_t live_id) {
  while (engine->Submit(MakeRequest(live_id, 1, 1)).code() != absl::StatusCode::kUnavailable) {
    std::this_thread::yield();
  }
}

TEST(EngineTest, DrainFinishesWhatItHasAndRefusesMore) {
  FakeExecutor executor(Closed());
  EventLog log;
  EngineOptions options;
  options.max_running = 2;
  Engine engine(options, &executor, &log);
  for (uint64_t id = 1; id <= 6; ++id) ASSERT_TRUE(engine.Submit(MakeRequest(id, 4, 4)).ok());
  executor.WaitUntilHeld();
  std::thread drainer([&engine] { engine.Drain(absl::InfiniteFuture()); });
  WaitUntilDraining(&engine, 1);
  const absl::Status status = engine.Submit(MakeRequest(7, 4, 4));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("draining"));
  executor.OpenGate();
  drainer.join();
  engine.Drain(absl::Now());  // again: returns at once
  for (uint64_t id = 1; id <= 6; ++id) {
    EXPECT_EQ(log.line(RequestId{id}).reason, FinishReason::kLength) << id;
  }
  EXPECT_EQ(log.num_finished(), 6u);
  EXPECT_EQ(engine.stats().blocks_used, 0);
  EXPECT_EQ(engine.Submit(MakeRequest(8, 4, 4)).code(), absl::StatusCode::kUnavailable);
}

TEST(EngineTest, DrainDeadlineEndsRequestsWithWhatThereIs) {
  FakeExecutor executor(Closed());
  EventLog log;
  EngineOptions options;
  options.max_running = 1;
  Engine engine(options, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 1000)).ok());
  ASSERT_TRUE(engine.Submit(MakeRequest(2, 4, 1000)).ok());
  executor.WaitUntilHeld();
  executor.AllowSteps(2);
  log.WaitTokens(RequestId{1}, 2);
  executor.WaitUntilHeld();
  std::thread drainer([&engine] { engine.Drain(absl::Now()); });
  WaitUntilDraining(&engine, 1);
  executor.OpenGate();
  drainer.join();
  EXPECT_EQ(log.line(RequestId{1}).reason, FinishReason::kDrained);
  EXPECT_EQ(log.line(RequestId{1}).tokens.size(), 3u) << "the step in flight still counts";
  EXPECT_EQ(log.line(RequestId{2}).reason, FinishReason::kDrained);
  EXPECT_TRUE(log.line(RequestId{2}).tokens.empty());
}

TEST(EngineTest, DestructorDrainsAtOnce) {
  FakeExecutor executor;
  EventLog log;
  {
    Engine engine({}, &executor, &log);
    for (uint64_t id = 1; id <= 20; ++id) ASSERT_TRUE(engine.Submit(MakeRequest(id, 4, 4000)).ok());
  }
  EXPECT_EQ(log.num_finished(), 20u);
}

TEST(EngineTest, ExecutorErrorFailsEveryRequestAndRefusesMore) {
  FakeExecutor executor(Closed());
  EventLog log;
  EngineOptions options;
  options.max_running = 1;
  Engine engine(options, &executor, &log);
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 4, 100)).ok());
  executor.WaitUntilHeld();
  ASSERT_TRUE(engine.Submit(MakeRequest(2, 4, 100)).ok());
  executor.AllowSteps(1);
  executor.WaitUntilHeld();  // 1 runs, 2 is in the queue, 3 comes to lie in the inbox
  ASSERT_TRUE(engine.Submit(MakeRequest(3, 4, 100)).ok());
  EXPECT_FALSE(engine.stats().failed);
  executor.FailNextStep(absl::InternalError("device lost"));
  executor.OpenGate();
  for (uint64_t id = 1; id <= 3; ++id) {
    EXPECT_EQ(log.WaitFinished(RequestId{id}).reason, FinishReason::kError) << id;
  }
  const absl::Status status = engine.Submit(MakeRequest(5, 4, 4));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "the engine has failed: device lost");
  EXPECT_TRUE(engine.stats().failed);
  EXPECT_EQ(engine.stats().requests_waiting, 0);
  EXPECT_EQ(engine.stats().blocks_used, 0);
  EXPECT_EQ(executor.steps(), 2u) << "a failed executor is not asked again";
  engine.Drain(absl::InfiniteFuture());
  EXPECT_EQ(log.num_finished(), 3u);
}

TEST(EngineTest, ARowWithoutATokenFailsItsRequestOnly) {
  FakeExecutor executor(Closed());
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
  EXPECT_FALSE(engine.stats().failed);
}

TEST(EngineTest, StatsDoNotWaitForAStepAndShowProgress) {
  FakeExecutor executor(Closed());
  EventLog log;
  Engine engine({}, &executor, &log);
  // Idle: progress is now, however long nothing has happened.
  int64_t progress = 0;
  const int64_t begin = absl::ToUnixNanos(absl::Now());
  while (progress < begin) progress = engine.stats().last_progress_unix_ns;  // until it sleeps
  ASSERT_TRUE(engine.Submit(MakeRequest(1, 40, 5)).ok());
  executor.WaitUntilHeld();
  const EngineStats held = engine.stats();
  EXPECT_EQ(held.requests_running, 1);
  EXPECT_EQ(held.blocks_used, 3);  // 45 tokens
  EXPECT_EQ(held.steps, 0u);
  EXPECT_GE(held.last_progress_unix_ns, progress);
  EXPECT_EQ(engine.stats().last_progress_unix_ns, held.last_progress_unix_ns) << "a held step";
  executor.AllowSteps(1);
  log.WaitTokens(RequestId{1}, 1);
  executor.WaitUntilHeld();
  EXPECT_GT(engine.stats().last_progress_unix_ns, held.last_progress_unix_ns);
  EXPECT_EQ(engine.stats().steps, 1u);
  EXPECT_GT(engine.stats().busy_seconds, 0.0);
  executor.OpenGate();
  log.WaitFinished(RequestId{1});
}

TEST(EngineTest, ValidatesOptionsAgainstTheExecutor) {
  const ExecutorInfo info = FakeExecutorOptions{}.info;
  EXPECT_TRUE(ValidateEngineOptions({}, info).ok());
  const auto refusal = [&info](EngineOptions options) {
    const absl::Status status = ValidateEngineOptions(options, info);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(refusal({.max_running = 0}), HasSubstr("max_running = 0"));
  EXPECT_THAT(refusal({.max_running = 65}), HasSubstr("max_sequences = 64"));
  EXPECT_THAT(refusal({.max_waiting = 0}), HasSubstr("max_waiting = 0"));
  EXPECT_THAT(refusal({.max_waiting_tokens = 0}), HasSubstr("max_waiting_tokens = 0"));
  EXPECT_THAT(refusal({.step_token_budget = 63}), HasSubstr("step_token_budget = 63"));
  EXPECT_THAT(refusal({.step_token_budget = 513}), HasSubstr("max_step_tokens = 512"));
}

}  // namespace
}  // namespace fewbit
