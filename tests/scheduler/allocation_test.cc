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

SchedulerLimits Limits() {
  return {.max_running = kRunning,
          .max_waiting = 256,
          .step_token_budget = 512,
          .max_context = 2048,
          .block_tokens = 16,
          .num_blocks = 16384,
          .vocab_size = 1000,
          .max_steps_in_flight = 1};
}

// A scheduler with everything an engine keeps beside it.
struct Line {
  Line() {
    ReserveBatch(Limits(), &batch);
    events.reserve(scheduler.max_events());
    rows.reserve(Limits().step_token_budget);
    SampledToken token;
    token.token = TokenId{5};
    rows.resize(Limits().step_token_budget, token);
  }

  // One step; false when there was nothing to run.
  bool Step() {
    const StepPlan* plan = scheduler.PlanStep(now, &events);
    if (plan == nullptr) return false;
    BuildBatch(*plan, Limits().block_tokens, &batch);
    now += absl::Milliseconds(1);
    scheduler.ApplyStep({rows.data(), static_cast<size_t>(plan->num_rows)}, now, &events);
    num_events += events.size();
    events.clear();
    return true;
  }

  Scheduler scheduler{Limits()};
  ForwardBatch batch;
  std::vector<TokenEvent> events;
  std::vector<SampledToken> rows;
  absl::Time now = absl::UnixEpoch();
  size_t num_events = 0;
};

TEST(AllocationTest, TheCounterCounts) {
  const int64_t before = AllocationsOnThisThread();
  auto request = MakeRequest(1, 1, 1);
  EXPECT_GE(AllocationsOnThisThread() - before, 2);
}

TEST(AllocationTest, SteadyStateOf256SequencesAllocatesNothing) {
  Line line;
  for (uint64_t id = 1; id <= kRunning; ++id) line.scheduler.Add(MakeRequest(id, 8, 1000));
  while (line.scheduler.num_waiting() > 0) ASSERT_TRUE(line.Step());
  line.Step();
  line.num_events = 0;
  const int64_t before = AllocationsOnThisThread();
  for (int i = 0; i < 500; ++i) line.Step();
  EXPECT_EQ(AllocationsOnThisThread() - before, 0);
  EXPECT_EQ(line.num_events, 500u * kRunning) << "all 256 ran in every step";
}

TEST(AllocationTest, AWholeLifeAllocatesNothing) {
  Line line;
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
    const StepPlan* plan = line.scheduler.PlanStep(line.now, &line.events);
    if (plan != nullptr) {
      BuildBatch(*plan, Limits().block_tokens, &line.batch);
      line.now += absl::Milliseconds(1);
      line.scheduler.ApplyStep({line.rows.data(), static_cast<size_t>(plan->num_rows)}, line.now,
                               &line.events);
    }
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
