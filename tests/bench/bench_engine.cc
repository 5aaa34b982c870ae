// What the engine thread does for a step beside the device: inbox, plan, batch, apply, counters,
// events to a sink that only counts. An executor that takes no time and two steps in flight stands
// for the device, so the rate of steps is the host's; a device is never kept waiting whose steps
// take longer than this and its own Launch and Collect.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/engine.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

constexpr int32_t kPrompt = 100;
constexpr int32_t kNewTokens = 4000;

class NoTimeExecutor : public Executor {
 public:
  explicit NoTimeExecutor(int32_t sequences) {
    info_.device = "none";
    info_.vocab_size = 32000;
    info_.max_context = kPrompt + kNewTokens;
    info_.max_step_tokens = 2048;
    info_.max_sequences = sequences;
    info_.block_tokens = 16;
    info_.num_blocks = sequences * ((info_.max_context + 15) / 16);
    info_.max_steps_in_flight = 2;
    token_.token = TokenId{5};
  }
  const ExecutorInfo& info() const override { return info_; }
  StepHandle Launch(const ForwardBatch& batch) override {
    rows_.push_back(batch.samples.size());
    return StepHandle{++steps_};
  }
  absl::Status Collect(StepHandle, StepResult* result) override {
    result->tokens.assign(rows_.front(), token_);
    rows_.pop_front();
    return absl::OkStatus();
  }

 private:
  ExecutorInfo info_;
  SampledToken token_;
  std::deque<size_t> rows_;
  uint64_t steps_ = 0;
};

class CountingSink : public EventSink {
 public:
  void OnEvents(std::span<const TokenEvent> events) override { events_ += events.size(); }
  uint64_t events() const { return events_; }

 private:
  uint64_t events_ = 0;
};

void BM_EngineStep(benchmark::State& state) {
  const int32_t running = static_cast<int32_t>(state.range(0));
  uint64_t steps = 0;
  double seconds = 0.0;
  for (auto _ : state) {
    NoTimeExecutor executor(running);
    CountingSink sink;
    EngineOptions options;
    options.max_running = running;
    options.max_waiting = running;
    options.step_token_budget = executor.info().max_step_tokens;
    Engine engine(options, &executor, &sink);
    const absl::Time begin = absl::Now();
    for (int32_t id = 1; id <= running; ++id) {
      auto request = std::make_unique<Request>();
      request->id = RequestId{static_cast<uint64_t>(id)};
      request->prompt.assign(kPrompt, TokenId{7});
      request->max_new_tokens = kNewTokens;
      FEWBIT_CHECK(engine.Submit(std::move(request)).ok());
    }
    engine.Drain(absl::InfiniteFuture());
    seconds += absl::ToDoubleSeconds(absl::Now() - begin);
    steps += engine.stats().steps;
    FEWBIT_CHECK_EQ(sink.events(), static_cast<uint64_t>(running) * (kNewTokens + 1));
  }
  state.counters["us_per_step"] = 1e6 * seconds / static_cast<double>(steps);
}
BENCHMARK(BM_EngineStep)->ArgName("running")->Arg(1)->Arg(16)->Arg(64)->Arg(256);

}  // namespace
}  // namespace fewbit

BENCHMARK_MAIN();
