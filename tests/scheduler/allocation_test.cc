// The step path allocates nothing.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/batch.h"
#include "scheduler/inbox.h"
#include "scheduler/scheduler.h"
#include "tests/scheduler/counting_new.h"
#include "tests/scheduler/request_maker.h"

namespace fewbit {
namespace {

constexpr int32_t kRunning = 256;

SchedulerLimits Limits(int32_t steps_in_flight = 1) {
  return {.max_running = kRunning,
          .max_waiting = 256,
          .step_token_budget = 512,
          .max_context = 2048,
          .block_tokens = 16,
          .num_blocks = 16384,
          .vocab_size = 1000,
          .max_steps_in_flight = steps_in_flight};
}

// A scheduler with everything an engine keeps beside it.
struct Line {
  explicit Line(int32_t steps_in_flight = 1) : scheduler(Limits(steps_in_flight)) {
    ReserveBatch(Limits(), &batch);
    plans.reserve(steps_in_flight);
    events.reserve(scheduler.max_events());
    rows.reserve(Limits().step_token_budget);
    SampledToken token;
    token.token = TokenId{5};
    rows.resize(Limits().step_token_budget, token);
  }

  // Plans as far ahead as may be and applies the oldest step; false when there was nothing to run.
  bool Step() {
    while (scheduler.steps_in_flight() < scheduler.limits().max_steps_in_flight) {
      const StepPlan* plan = scheduler.PlanStep(now, &events);
      if (plan == nullptr) break;
      BuildBatch(*plan, Limits().block_tokens, &batch);
      plans.push_back(plan);
    }
    if (plans.empty()) return false;
    now += absl::Milliseconds(1);
    const size_t num_rows = plans.front()->num_rows;
    plans.erase(plans.begin());
    scheduler.ApplyStep({rows.data(), num_rows}, now, &events);
    num_events += events.size();
    return true;
  }

  Scheduler scheduler;
  std::vector<const StepPlan*> plans;  // in flight, the oldest first
  ForwardBatch batch;
  std::vector<TokenEvent> events;
  std::vector<SampledToken> rows;
  absl::Time now = absl::UnixEpoch();
  size_t num_events = 0;
};

TEST(AllocationCounterTest, ItCounts) {
  const int64_t before = AllocationsOnThisThread();
  auto request = MakeRequest(1, 1, 1);
  EXPECT_GE(AllocationsOnThisThread() - before, 2);
}

class AllocationTest : public ::testing::TestWithParam<int32_t> {};  // steps in flight

INSTANTIATE_TEST_SUITE_P(StepsInFlight, AllocationTest, ::testing::Values(1, 2));

TEST_P(AllocationTest, SteadyStateOf256SequencesAllocatesNothing) {
  Line line(GetParam());
  for (uint64_t id = 1; id <= kRunning; ++id) line.scheduler.Add(MakeRequest(id, 8, 1000));
  const auto step = [&line] {
    line.events.clear();
    return line.Step();
  };
  while (line.scheduler.num_waiting() > 0) ASSERT_TRUE(step());
  step();
  line.num_events = 0;
  const int64_t before = AllocationsOnThisThread();
  for (int i = 0; i < 500; ++i) step();
  EXPECT_EQ(AllocationsOnThisThread() - before, 0);
  EXPECT_EQ(line.num_events, 500u * kRunning) << "all 256 ran in every step";
}

TEST_P(AllocationTest, AWholeLifeAllocatesNothing) {
  Line line(GetParam());
  Inbox inbox({.max_waiting = 256, .max_waiting_tokens = 1 << 20, .max_running = kRunning});
  InboxContents taken;
  taken.requests.reserve(256);
  taken.cancelled.reserve(512);
  // Requests are made before the counting starts: they belong to the caller.
  std::vector<std::unique_ptr<Request>> requests;
  for (uint64_t id = 1; id <= 5000; ++id) {
    auto request = MakeRequest(id, 1 + id % 40, 1 + id % 9);
    request->want_prompt_logprobs = id % 3 == 0;
    if (id % 5 == 0) request->deadline = absl::UnixEpoch() + absl::Milliseconds(id / 20);
    requests.push_back(std::move(request));
  }
  size_t next = 0;
  uint64_t finished = 0;
  const int64_t before = AllocationsOnThisThread();
  while (next < requests.size() || line.scheduler.num_live() > 0) {
    for (int i = 0; i < 20 && next < requests.size() && inbox.counts().waiting < 256; ++i) {
      const RequestId id = requests[next]->id;
      if (!inbox.Submit(std::move(requests[next++]), line.now).ok()) std::abort();
      if (ToInt(id) % 7 == 0) inbox.Cancel(id, line.now);
    }
    inbox.Take(&taken);
    for (std::unique_ptr<Request>& request : taken.requests) {
      line.scheduler.Add(std::move(request));
    }
    for (const RequestId id : taken.cancelled) {
      line.scheduler.Finish(id, FinishReason::kCancelled, line.now, &line.events);
    }
    taken.requests.clear();
    taken.cancelled.clear();
    line.Step();
    inbox.Settle(line.events, line.scheduler.num_waiting(), line.scheduler.waiting_tokens());
    for (const TokenEvent& event : line.events) {
      finished += event.kind == TokenEvent::Kind::kFinished;
    }
    line.events.clear();
    if (!line.scheduler.CheckInvariants().ok()) std::abort();
  }
  EXPECT_EQ(AllocationsOnThisThread() - before, 0);
  EXPECT_EQ(finished, requests.size());
}

}  // namespace
}  // namespace fewbit
