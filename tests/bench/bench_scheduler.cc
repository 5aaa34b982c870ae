// What the scheduler costs per step: plan, build the batch, apply, for 256 running sequences (the
// budget is 100 microseconds), beside smaller and larger steps, a step that is all prompt chunks,
// and the hand-over of a request. Allocations are counted per step.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/batch.h"
#include "scheduler/check.h"
#include "scheduler/inbox.h"
#include "scheduler/scheduler.h"
#include "tests/scheduler/counting_new.h"

namespace fewbit {
namespace {

SchedulerLimits Limits(int32_t running, int32_t steps_in_flight) {
  return {.max_running = running,
          .max_waiting = 256,
          .step_token_budget = 16384,  // so that Fill takes few steps
          .max_context = 4096,
          .block_tokens = 16,
          .num_blocks = running * 256,
          .vocab_size = 32000,
          .max_steps_in_flight = steps_in_flight};
}

std::unique_ptr<Request> MakeRequest(uint64_t id, int32_t prompt_tokens, int32_t max_new_tokens) {
  auto request = std::make_unique<Request>();
  request->id = RequestId{id};
  request->prompt.assign(prompt_tokens, TokenId{7});
  request->max_new_tokens = max_new_tokens;
  request->stop_token_ids = {TokenId{1}, TokenId{2}};
  return request;
}

class Line {
 public:
  explicit Line(int32_t running, int32_t steps_in_flight = 1)
      : limits_(Limits(running, steps_in_flight)), scheduler_(limits_) {
    ReserveBatch(limits_, &batch_);
    plans_.reserve(steps_in_flight);
    events_.reserve(scheduler_.max_events());
    SampledToken token;
    token.token = TokenId{5};
    rows_.resize(limits_.step_token_budget, token);
  }

  Scheduler& scheduler() { return scheduler_; }

  // Adds requests until all slots run, and steps until all of them decode.
  void Fill(int32_t prompt_tokens) {
    for (int32_t i = 0; i < limits_.max_running; ++i) {
      if (scheduler_.num_waiting() == limits_.max_waiting) Step();
      scheduler_.Add(MakeRequest(++last_id_, prompt_tokens, 4096 - prompt_tokens));
    }
    while (Step().num_prefill_tokens > 0) {
    }
  }

  // Plans until all steps are in flight, applies the oldest.
  const StepPlan& Step() {
    events_.clear();
    while (static_cast<int32_t>(plans_.size()) < limits_.max_steps_in_flight) {
      plans_.push_back(scheduler_.PlanStep(now_, &events_));
      FEWBIT_CHECK(plans_.back() != nullptr);
      BuildBatch(*plans_.back(), limits_.block_tokens, &batch_);
      benchmark::DoNotOptimize(batch_.token_ids.data());
    }
    now_ += absl::Milliseconds(1);
    const StepPlan& oldest = *plans_.front();
    plans_.erase(plans_.begin());
    scheduler_.ApplyStep({rows_.data(), static_cast<size_t>(oldest.num_rows)}, now_, &events_);
    benchmark::DoNotOptimize(events_.data());
    return oldest;
  }

 private:
  const SchedulerLimits limits_;
  Scheduler scheduler_;
  ForwardBatch batch_;
  std::vector<TokenEvent> events_;
  std::vector<SampledToken> rows_;
  std::vector<const StepPlan*> plans_;  // in flight, the oldest first
  absl::Time now_ = absl::UnixEpoch();
  uint64_t last_id_ = 0;
};

void Report(benchmark::State& state, int64_t allocations) {
  state.counters["allocations_per_step"] =
      benchmark::Counter(static_cast<double>(allocations), benchmark::Counter::kAvgIterations);
}

// Arguments: running sequences, prompt tokens of each (which decides how long the block tables
// are), steps in flight.
void BM_DecodeStep(benchmark::State& state) {
  const int32_t running = static_cast<int32_t>(state.range(0));
  const int32_t steps_in_flight = static_cast<int32_t>(state.range(2));
  auto line = std::make_unique<Line>(running, steps_in_flight);
  line->Fill(static_cast<int32_t>(state.range(1)));
  int64_t steps = 0;
  int64_t allocations = 0;
  for (auto _ : state) {
    const int64_t before = AllocationsOnThisThread();
    FEWBIT_CHECK_EQ(line->Step().num_tokens, running);
    allocations += AllocationsOnThisThread() - before;
    if (++steps % 1000 == 0) {  // before anybody reaches the context's end
      state.PauseTiming();
      line = std::make_unique<Line>(running, steps_in_flight);
      line->Fill(static_cast<int32_t>(state.range(1)));
      state.ResumeTiming();
    }
  }
  Report(state, allocations);
}
BENCHMARK(BM_DecodeStep)
    ->ArgNames({"running", "prompt", "in_flight"})
    ->Args({16, 100, 1})
    ->Args({64, 100, 1})
    ->Args({256, 100, 1})
    ->Args({256, 3000, 1})
    ->Args({1024, 100, 1})
    ->Args({64, 100, 2})
    ->Args({256, 100, 2})
    ->Unit(benchmark::kMicrosecond);

// Every step admits 256 requests, runs their whole prompts and ends them: the most work per
// sequence that the scheduler has.
void BM_ShortRequests(benchmark::State& state) {
  auto line = std::make_unique<Line>(256);
  std::vector<std::unique_ptr<Request>> requests;
  uint64_t id = 1'000'000;
  int64_t allocations = 0;
  for (auto _ : state) {
    state.PauseTiming();
    requests.clear();
    for (int i = 0; i < 256; ++i) requests.push_back(MakeRequest(++id, 2, 1));
    state.ResumeTiming();
    const int64_t before = AllocationsOnThisThread();
    for (std::unique_ptr<Request>& request : requests) line->scheduler().Add(std::move(request));
    line->Step();
    allocations += AllocationsOnThisThread() - before;
  }
  Report(state, allocations);
}
BENCHMARK(BM_ShortRequests)->Unit(benchmark::kMicrosecond);

// Submit, Take and Settle of one request, without contention.
void BM_Inbox(benchmark::State& state) {
  Inbox inbox({.max_waiting = 256, .max_waiting_tokens = 1 << 20, .max_running = 64});
  InboxContents contents;
  auto request = MakeRequest(1, 100, 1);
  std::vector<TokenEvent> events(1);
  events[0].kind = TokenEvent::Kind::kFinished;
  events[0].request = request->id;
  for (auto _ : state) {
    FEWBIT_CHECK(inbox.Submit(std::move(request), absl::UnixEpoch()).ok());
    inbox.Take(&contents);
    request = std::move(contents.requests.front());
    contents.requests.clear();
    inbox.Settle(events, 0, 0);
  }
}
BENCHMARK(BM_Inbox)->Unit(benchmark::kNanosecond);

void BM_CheckInvariants(benchmark::State& state) {
  auto line = std::make_unique<Line>(256);
  line->Fill(100);
  for (auto _ : state) FEWBIT_CHECK(line->scheduler().CheckInvariants().ok());
}
BENCHMARK(BM_CheckInvariants)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace fewbit

BENCHMARK_MAIN();
