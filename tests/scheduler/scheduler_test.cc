#include "scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/scheduler/request_maker.h"

namespace fewbit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr TokenId kToken{500};
constexpr TokenId kStop{501};

SchedulerLimits SmallLimits() {
  return {.max_running = 4,
          .max_waiting = 8,
          .step_token_budget = 10,
          .max_context = 64,
          .block_tokens = 4,
          .num_blocks = 32,
          .vocab_size = 1000,
          .max_steps_in_flight = 1};
}

absl::Time At(int64_t ms) { return absl::UnixEpoch() + absl::Milliseconds(ms); }

// (request id, first position, tokens, rows) of a planned sequence.
using Share = std::tuple<uint64_t, int32_t, int32_t, int32_t>;

class SchedulerTest : public ::testing::Test {
 protected:
  explicit SchedulerTest(const SchedulerLimits& limits = SmallLimits()) : scheduler_(limits) {}

  std::vector<Share> Plan(int64_t ms = 0) {
    const StepPlan* plan = scheduler_.PlanStep(At(ms), &events_);
    Check();
    std::vector<Share> shares;
    if (plan == nullptr) return shares;
    rows_.push_back(plan->num_rows);
    for (const PlannedSequence& planned : plan->sequences) {
      shares.emplace_back(ToInt(planned.sequence->request->id), planned.first_position,
                          planned.num_tokens, planned.score_tokens + (planned.sample ? 1 : 0));
    }
    return shares;
  }

  // Every row of the oldest step becomes `token`.
  void Apply(int64_t ms = 0, TokenId token = kToken) {
    std::vector<SampledToken> results(rows_.front());
    for (SampledToken& result : results) result.token = token;
    rows_.erase(rows_.begin());
    scheduler_.ApplyStep(results, At(ms), &events_);
    Check();
  }

  void Check() {
    const absl::Status status = scheduler_.CheckInvariants();
    ASSERT_TRUE(status.ok()) << status;
  }

  // The events since the last call, as "id:token" and "id!reason".
  std::vector<std::string> Events() {
    std::vector<std::string> texts;
    for (const TokenEvent& event : events_) {
      const std::string id = std::to_string(ToInt(event.request));
      if (event.kind == TokenEvent::Kind::kFinished) {
        texts.push_back(id + "!" + Name(event.finish_reason));
      } else {
        const char* sign = event.kind == TokenEvent::Kind::kToken ? ":" : "?";
        texts.push_back(id + sign + std::to_string(ToInt(event.token.token)));
      }
    }
    if (!events_.empty()) last_ = events_.back();
    events_.clear();
    return texts;
  }

  static std::string Name(FinishReason reason) {
    const char* names[] = {"none",      "length",   "stop",    "time_limit",
                           "cancelled", "deadline", "drained", "error"};
    return names[static_cast<int>(reason)];
  }

  Scheduler scheduler_;
  std::vector<TokenEvent> events_;
  std::vector<int32_t> rows_;  // of the steps in flight
  TokenEvent last_;
};

TEST_F(SchedulerTest, RunsAPromptInChunksAndThenTokenByToken) {
  scheduler_.Add(MakeRequest(1, 23, 3));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 10, 0)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 10, 10, 0)));
  Apply();
  EXPECT_THAT(Events(), IsEmpty());
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 20, 3, 1)));
  Apply();
  EXPECT_THAT(Events(), ElementsAre("1:500"));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 23, 1, 1)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 24, 1, 1)));
  Apply();
  EXPECT_THAT(Events(), ElementsAre("1:500", "1:500", "1!length"));
  EXPECT_THAT(Plan(), IsEmpty());
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
  EXPECT_EQ(scheduler_.stats().prefill_tokens, 23u);
  EXPECT_EQ(scheduler_.stats().decode_tokens, 2u);
  EXPECT_EQ(scheduler_.stats().steps, 5u);
}

// A chunk of one token would be summed as if it decoded.
TEST_F(SchedulerTest, NoPromptIsCutIntoASingleToken) {
  scheduler_.Add(MakeRequest(1, 11, 3));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 9, 0)));  // not 10 and 1
  Apply();
  scheduler_.Add(MakeRequest(2, 7, 3));
  scheduler_.Add(MakeRequest(3, 4, 3));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 9, 2, 1), Share(2, 0, 7, 1)));  // 1 token is left over
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 11, 1, 1), Share(2, 7, 1, 1), Share(3, 0, 4, 1)));
  Apply();
  scheduler_.Add(MakeRequest(4, 1, 3));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 12, 1, 1), Share(2, 8, 1, 1), Share(3, 4, 1, 1),
                                  Share(4, 0, 1, 1)));
}

class TightBudgetTest : public SchedulerTest {
 protected:
  static SchedulerLimits Limits() {
    SchedulerLimits limits = SmallLimits();
    limits.step_token_budget = limits.max_running + 1;
    return limits;
  }
  TightBudgetTest() : SchedulerTest(Limits()) {}
};

// Otherwise the oldest prompt might wait for as long as the others decode.
TEST_F(TightBudgetTest, CutsAnyhow) {
  scheduler_.Add(MakeRequest(1, 6, 3));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 5, 0)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 5, 1, 1)));
}

TEST_F(SchedulerTest, DecodesComeBeforePromptsAndPromptsInOrderOfArrival) {
  scheduler_.Add(MakeRequest(1, 2, 9));
  scheduler_.Add(MakeRequest(2, 2, 9));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 2, 1), Share(2, 0, 2, 1)));
  Apply();
  scheduler_.Add(MakeRequest(3, 20, 9));
  scheduler_.Add(MakeRequest(4, 6, 9));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 2, 1, 1), Share(2, 2, 1, 1), Share(3, 0, 8, 0)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 3, 1, 1), Share(2, 3, 1, 1), Share(3, 8, 8, 0)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 4, 1, 1), Share(2, 4, 1, 1), Share(3, 16, 4, 1),
                                  Share(4, 0, 4, 0)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 5, 1, 1), Share(2, 5, 1, 1), Share(3, 20, 1, 1),
                                  Share(4, 4, 2, 1)));
}

TEST_F(SchedulerTest, TheOldestWaitsForBlocksAndNobodyOvertakesIt) {
  scheduler_.Add(MakeRequest(1, 4, 60));   // 16 of 32 blocks
  scheduler_.Add(MakeRequest(2, 10, 54));  // the other 16
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 4, 1), Share(2, 0, 6, 0)));
  Apply();
  EXPECT_EQ(scheduler_.stats().blocks_used, 32);
  scheduler_.Add(MakeRequest(3, 30, 30));  // 15 blocks
  scheduler_.Add(MakeRequest(4, 1, 1));    // one block, and still behind 3
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 4, 1, 1), Share(2, 6, 4, 1)));
  Apply();
  EXPECT_TRUE(scheduler_.Finish(RequestId{1}, FinishReason::kCancelled, At(0), &events_));
  EXPECT_THAT(Plan(), ElementsAre(Share(2, 10, 1, 1), Share(3, 0, 9, 0)));
  Apply();
  EXPECT_EQ(scheduler_.num_waiting(), 1);
  EXPECT_THAT(Plan(), ElementsAre(Share(2, 11, 1, 1), Share(3, 9, 9, 0)));
}

TEST_F(SchedulerTest, SlotsBoundTheRunning) {
  for (uint64_t id = 1; id <= 6; ++id) scheduler_.Add(MakeRequest(id, 1, 2));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 1, 1), Share(2, 0, 1, 1), Share(3, 0, 1, 1),
                                  Share(4, 0, 1, 1)));
  Apply(0);
  EXPECT_EQ(scheduler_.stats().requests_running, 4);
  EXPECT_EQ(scheduler_.stats().requests_waiting, 2);
  EXPECT_EQ(scheduler_.stats().waiting_tokens, 2);
  Plan();
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(5, 0, 1, 1), Share(6, 0, 1, 1)));
}

TEST_F(SchedulerTest, StopTokenCountsOnlyAfterMinNewTokens) {
  auto request = MakeRequest(1, 1, 9);
  request->stop_token_ids = {TokenId{7}, kStop};
  request->min_new_tokens = 2;
  scheduler_.Add(std::move(request));
  Plan();
  Apply(0, kStop);  // an executor masks it; the rule holds on its own all the same
  Plan();
  Apply(0, kStop);
  EXPECT_THAT(Events(), ElementsAre("1:501", "1:501"));
  Plan();
  Apply(0, kStop);
  EXPECT_THAT(Events(), ElementsAre("1:501", "1!stop"));
  EXPECT_EQ(last_.timing.generated_tokens, 3);
}

TEST_F(SchedulerTest, AStopTokenAtTheLengthIsAStop) {
  auto request = MakeRequest(1, 1, 1);
  request->stop_token_ids = {kStop};
  scheduler_.Add(std::move(request));
  Plan();
  Apply(0, kStop);
  EXPECT_THAT(Events(), ElementsAre("1:501", "1!stop"));
}

TEST_F(SchedulerTest, ScoresThePromptBeforeTheFirstToken) {
  auto request = MakeRequest(1, 12, 1);
  request->want_prompt_logprobs = true;
  scheduler_.Add(std::move(request));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 10, 10)));
  Apply();
  EXPECT_EQ(Events().size(), 10u);
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 10, 2, 2)));  // one score, one sample
  Apply();
  EXPECT_THAT(Events(), ElementsAre("1?500", "1:500", "1!length"));
}

TEST_F(SchedulerTest, APromptOfOneTokenHasNothingToScore) {
  auto request = MakeRequest(1, 1, 1);
  request->want_prompt_logprobs = true;
  scheduler_.Add(std::move(request));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 1, 1)));
  Apply();
  EXPECT_THAT(Events(), ElementsAre("1:500", "1!length"));
}

TEST_F(SchedulerTest, DeadlineAndTimeLimitEndWaitingAndRunning) {
  auto first = MakeRequest(1, 1, 50);
  first->deadline = At(100);
  auto second = MakeRequest(2, 1, 50);
  second->time_limit = At(50);
  second->deadline = At(100);
  scheduler_.Add(std::move(first));
  scheduler_.Add(std::move(second));
  EXPECT_EQ(scheduler_.next_expiry(), At(50));
  Plan(10);
  Apply(20);
  auto third = MakeRequest(3, 60, 4);  // 16 blocks: waits
  third->deadline = At(45);
  scheduler_.Add(std::move(third));
  auto fourth = MakeRequest(4, 1, 4);
  fourth->deadline = At(40);
  fourth->time_limit = At(40);  // a tie is no error
  scheduler_.Add(std::move(fourth));
  Events();
  Plan(49);
  EXPECT_THAT(Events(), ElementsAre("3!deadline", "4!time_limit"));
  Apply(49);
  Events();
  EXPECT_THAT(Plan(50), ElementsAre(Share(1, 2, 1, 1)));
  EXPECT_THAT(Events(), ElementsAre("2!time_limit"));
  EXPECT_EQ(last_.timing.generated_tokens, 2);
  EXPECT_EQ(scheduler_.next_expiry(), At(100));
  Apply(60);
  Events();
  EXPECT_THAT(Plan(100), IsEmpty());
  EXPECT_THAT(Events(), ElementsAre("1!deadline"));
  EXPECT_EQ(scheduler_.next_expiry(), absl::InfiniteFuture());
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
}

TEST_F(SchedulerTest, BillsQueuePrefillAndDecode) {
  auto request = MakeRequest(1, 12, 3);
  request->arrival = At(5);
  scheduler_.Add(std::move(request));
  Plan(15);
  Apply(20);
  Plan(20);
  Apply(32);
  Plan(32);
  Apply(40);
  Plan(40);
  Apply(47);
  EXPECT_THAT(Events(), ElementsAre("1:500", "1:500", "1:500", "1!length"));
  EXPECT_DOUBLE_EQ(last_.timing.queue_wait_ms, 10.0);
  EXPECT_DOUBLE_EQ(last_.timing.prefill_ms, 17.0);
  EXPECT_DOUBLE_EQ(last_.timing.decode_ms, 15.0);
  EXPECT_EQ(last_.timing.prompt_tokens, 12);
  EXPECT_EQ(last_.timing.generated_tokens, 3);
  EXPECT_EQ(last_.time, At(47));
}

TEST_F(SchedulerTest, BillsARequestThatNeverRan) {
  auto request = MakeRequest(1, 12, 3);
  request->arrival = At(5);
  scheduler_.Add(std::move(request));
  EXPECT_TRUE(scheduler_.Finish(RequestId{1}, FinishReason::kCancelled, At(30), &events_));
  EXPECT_THAT(Events(), ElementsAre("1!cancelled"));
  EXPECT_DOUBLE_EQ(last_.timing.queue_wait_ms, 25.0);
  EXPECT_DOUBLE_EQ(last_.timing.prefill_ms, 0.0);
  EXPECT_DOUBLE_EQ(last_.timing.decode_ms, 0.0);
  EXPECT_EQ(last_.timing.generated_tokens, 0);
  EXPECT_FALSE(scheduler_.Finish(RequestId{1}, FinishReason::kCancelled, At(30), &events_));
  EXPECT_THAT(Events(), IsEmpty());
}

TEST_F(SchedulerTest, ARowWithoutATokenEndsItsRequestWithAnError) {
  scheduler_.Add(MakeRequest(1, 3, 3));
  Plan();
  Apply(0, kNoToken);
  EXPECT_THAT(Events(), ElementsAre("1!error"));
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
}

TEST_F(SchedulerTest, APromptRowWithoutAScoreEndsItsRequestWithAnError) {
  auto request = MakeRequest(1, 12, 3);
  request->want_prompt_logprobs = true;
  scheduler_.Add(std::move(request));
  Plan();
  Apply(0, kNoToken);
  EXPECT_THAT(Events(), ElementsAre("1!error"));
  EXPECT_THAT(Plan(), IsEmpty());
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
}

TEST_F(SchedulerTest, FinishAllIsInOrderOfArrival) {
  for (uint64_t id = 9; id > 3; --id) scheduler_.Add(MakeRequest(id, 1, 9));
  Plan();
  Apply();
  Events();
  scheduler_.FinishAll(FinishReason::kDrained, At(1), &events_);
  EXPECT_THAT(Events(), ElementsAre("9!drained", "8!drained", "7!drained", "6!drained", "5!drained",
                                    "4!drained"));
  EXPECT_EQ(scheduler_.num_live(), 0);
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
  Check();
}

TEST_F(SchedulerTest, AbandonedStepsReleaseEverything) {
  for (uint64_t id = 1; id <= 5; ++id) scheduler_.Add(MakeRequest(id, 1, 9));
  Plan();
  scheduler_.Finish(RequestId{2}, FinishReason::kCancelled, At(0), &events_);
  scheduler_.AbandonSteps(At(1), &events_);
  Check();
  EXPECT_THAT(Events(), ElementsAre("2!cancelled", "1!error", "3!error", "4!error", "5!error"));
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
  EXPECT_EQ(scheduler_.steps_in_flight(), 0);
  rows_.clear();
  scheduler_.Add(MakeRequest(2, 1, 1));
  EXPECT_THAT(Plan(), ElementsAre(Share(2, 0, 1, 1)));
}

class TwoStepsInFlightTest : public SchedulerTest {
 protected:
  static SchedulerLimits Limits() {
    SchedulerLimits limits = SmallLimits();
    limits.max_steps_in_flight = 2;
    limits.num_blocks = 8;
    return limits;
  }
  TwoStepsInFlightTest() : SchedulerTest(Limits()) {}
};

TEST_F(TwoStepsInFlightTest, ChunksOfOnePromptFollowEachOther) {
  scheduler_.Add(MakeRequest(1, 23, 2));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 10, 0)));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 10, 10, 0)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 20, 3, 1)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 23, 1, 1))) << "ahead of the first token";
  Apply();
  EXPECT_THAT(Events(), ElementsAre("1:500"));
  EXPECT_THAT(Plan(), IsEmpty()) << "the last token is being drawn";
  Apply();
  EXPECT_THAT(Events(), ElementsAre("1:500", "1!length"));
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
  EXPECT_EQ(scheduler_.stats().dropped_decode_tokens, 0u);
}

TEST_F(TwoStepsInFlightTest, DecodesOneStepAheadOfTheUnknownToken) {
  scheduler_.Add(MakeRequest(1, 3, 9));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 3, 1)));
  scheduler_.Add(MakeRequest(2, 12, 4));
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 3, 1, 1), Share(2, 0, 9, 0))) << "decodes come first";
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 4, 1, 1), Share(2, 9, 3, 1)));
  Apply();
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 5, 1, 1), Share(2, 12, 1, 1)));
  Apply();
  EXPECT_THAT(Events(), ElementsAre("1:500", "1:500", "1:500", "2:500"));
}

TEST_F(TwoStepsInFlightTest, WhatIsPlannedBehindAStopIsDropped) {
  auto request = MakeRequest(1, 3, 29);  // all 8 blocks
  request->stop_token_ids = {kStop};
  scheduler_.Add(std::move(request));
  Plan();
  Plan();
  Apply(0, kStop);
  EXPECT_THAT(Events(), ElementsAre("1:501", "1!stop"));
  EXPECT_EQ(last_.timing.generated_tokens, 1);
  EXPECT_EQ(scheduler_.num_live(), 0);
  EXPECT_EQ(scheduler_.stats().blocks_used, 8) << "the device still writes into one";
  scheduler_.Add(MakeRequest(2, 3, 29));
  EXPECT_THAT(Plan(), IsEmpty());
  Apply();
  EXPECT_THAT(Events(), IsEmpty()) << "a token of nobody";
  EXPECT_EQ(scheduler_.stats().dropped_decode_tokens, 1u);
  EXPECT_EQ(scheduler_.stats().dropped_prefill_tokens, 0u);
  EXPECT_THAT(Plan(), ElementsAre(Share(2, 0, 3, 1)));
}

TEST_F(TwoStepsInFlightTest, EveryEndDropsWhatIsPlannedBehindIt) {
  const auto start = [this](uint64_t id, absl::Time deadline) {
    auto request = MakeRequest(id, 12, 9);
    request->deadline = deadline;
    scheduler_.Add(std::move(request));
  };
  start(1, absl::InfiniteFuture());
  Plan();  // a chunk
  Plan();  // the rest, which is sampled
  EXPECT_TRUE(scheduler_.Finish(RequestId{1}, FinishReason::kCancelled, At(0), &events_));
  Apply();
  Apply();
  EXPECT_EQ(scheduler_.stats().dropped_prefill_tokens, 12u);
  start(2, absl::InfiniteFuture());
  Plan();
  Plan();
  Apply();
  Plan();
  Apply(0, kNoToken);
  Apply();
  EXPECT_EQ(scheduler_.stats().dropped_decode_tokens, 1u);
  start(3, At(50));
  Plan();
  Plan();
  Apply();
  Plan();  // ahead of its first token
  Apply(40);
  EXPECT_THAT(Plan(50), IsEmpty());
  Apply(60);
  EXPECT_THAT(Events(), ElementsAre("1!cancelled", "2!error", "3:500", "3!deadline"));
  EXPECT_EQ(scheduler_.stats().dropped_decode_tokens, 2u);
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
}

TEST_F(TwoStepsInFlightTest, AbandonedStepsReleaseWhatIsAhead) {
  scheduler_.Add(MakeRequest(1, 3, 9));
  Plan();
  Plan();
  scheduler_.AbandonSteps(At(1), &events_);
  Check();
  EXPECT_THAT(Events(), ElementsAre("1!error"));
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
  EXPECT_EQ(scheduler_.steps_in_flight(), 0);
}

TEST_F(TwoStepsInFlightTest, BlocksOfAFinishedRequestWaitForItsStepsInFlight) {
  scheduler_.Add(MakeRequest(1, 28, 4));  // all 8 blocks
  Plan();
  Plan();
  EXPECT_TRUE(scheduler_.Finish(RequestId{1}, FinishReason::kCancelled, At(0), &events_));
  Check();
  EXPECT_THAT(Events(), ElementsAre("1!cancelled")) << "the final event does not wait";
  EXPECT_EQ(scheduler_.num_live(), 0);
  scheduler_.Add(MakeRequest(1, 4, 1));  // the id is free, the blocks are not
  Apply();
  EXPECT_EQ(scheduler_.stats().blocks_used, 8);
  EXPECT_THAT(Plan(), IsEmpty());
  Apply();
  EXPECT_EQ(scheduler_.stats().blocks_used, 0);
  EXPECT_THAT(Plan(), ElementsAre(Share(1, 0, 4, 1)));
  Apply();
  EXPECT_THAT(Events(), ElementsAre("1:500", "1!length"));
}

TEST(SchedulerLimitsTest, NamesTheLimitThatIsOutOfRange) {
  EXPECT_TRUE(ValidateLimits(SmallLimits()).ok());
  SchedulerLimits limits = SmallLimits();
  limits.block_tokens = 0;
  EXPECT_EQ(ValidateLimits(limits).message(), "block_tokens = 0 must be at least 1");
  limits = SmallLimits();
  limits.step_token_budget = 3;
  EXPECT_THAT(std::string(ValidateLimits(limits).message()),
              HasSubstr("step_token_budget = 3 must be at least max_running = 4"));
}

TEST(SchedulerLimitsTest, HugeRequestsDoNotOverflow) {
  auto request = MakeRequest(1, 60, 2147483647);
  const absl::Status status = ValidateRequest(SmallLimits(), *request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("make 2147483707, more than the context"));
}

TEST(SchedulerDeathTest, ChecksItsCallers) {
  Scheduler scheduler(SmallLimits());
  std::vector<TokenEvent> events;
  EXPECT_DEATH(scheduler.ApplyStep({}, At(0), &events), "steps_in_flight_ > 0");
  EXPECT_DEATH(scheduler.Add(MakeRequest(1, 0, 1)), "prompt has no tokens");
  scheduler.Add(MakeRequest(1, 1, 1));
  EXPECT_DEATH(scheduler.Add(MakeRequest(1, 1, 1)), "request id 1 is live already");
  ASSERT_NE(scheduler.PlanStep(At(0), &events), nullptr);
  EXPECT_DEATH(scheduler.PlanStep(At(0), &events), "max_steps_in_flight");
  EXPECT_DEATH(scheduler.ApplyStep({}, At(0), &events), "0 vs 1");
}

}  // namespace
}  // namespace fewbit
