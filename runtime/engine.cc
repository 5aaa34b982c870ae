#include "runtime/engine.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/batch.h"
#include "runtime/published.h"
#include "scheduler/check.h"
#include "scheduler/inbox.h"
#include "scheduler/scheduler.h"

namespace fewbit {
namespace {

SchedulerLimits LimitsOf(const EngineOptions& options, const ExecutorInfo& info) {
  SchedulerLimits limits;
  limits.max_running = options.max_running;
  limits.max_waiting = options.max_waiting;
  limits.step_token_budget = options.step_token_budget;
  limits.max_context = info.max_context;
  limits.block_tokens = info.block_tokens;
  limits.num_blocks = info.num_blocks;
  limits.vocab_size = info.vocab_size;
  limits.max_steps_in_flight = info.max_steps_in_flight;
  return limits;
}

}  // namespace

absl::Status ValidateEngineOptions(const EngineOptions& options, const ExecutorInfo& info) {
  absl::Status status = ValidateLimits(LimitsOf(options, info));
  if (!status.ok()) return status;
  if (options.max_waiting_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_waiting_tokens = ", options.max_waiting_tokens, " must be at least 1"));
  }
  if (options.max_running > info.max_sequences) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_running = ", options.max_running,
                     " is over the executor's max_sequences = ", info.max_sequences));
  }
  if (options.step_token_budget > info.max_step_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("step_token_budget = ", options.step_token_budget,
                     " is over the executor's max_step_tokens = ", info.max_step_tokens));
  }
  return absl::OkStatus();
}

// Everything below "engine thread" is touched by Loop alone; inbox_ and published_ are the two
// seams to other threads.
class Engine::Impl {
 public:
  Impl(const EngineOptions& options, Executor* executor, EventSink* sink);
  ~Impl() { Drain(absl::Now()); }

  absl::Status Submit(std::unique_ptr<Request> request);
  void Cancel(RequestId id) { inbox_.Cancel(id, absl::Now()); }
  void Drain(absl::Time deadline);
  EngineStats stats() const;

 private:
  void Loop();
  void TakeInbox(absl::Time now);
  void LaunchStep(const StepPlan& plan);
  void CollectStep();
  void CountDropped(StepReport* report);
  void FailEverything(const absl::Status& error, absl::Time now);
  void HandOnEvents();
  void Publish();

  // A step that is launched and not collected.
  struct Flight {
    ForwardBatch batch;
    StepReport report;
    StepHandle handle{};
    std::chrono::steady_clock::time_point launched;
  };
  Flight& FlightOf(int32_t age) {  // 0 is the oldest
    return flights_[(oldest_flight_ + static_cast<size_t>(age)) % flights_.size()];
  }
  bool full() const { return scheduler_.steps_in_flight() == limits_.max_steps_in_flight; }

  const SchedulerLimits limits_;
  Inbox inbox_;
  Published<EngineStats> published_;

  // Engine thread.
  Executor* const executor_;
  EventSink* const sink_;
  Scheduler scheduler_;
  InboxContents taken_;
  std::vector<Flight> flights_;  // ring of max_steps_in_flight
  size_t oldest_flight_ = 0;
  std::chrono::steady_clock::time_point last_end_;  // of the step collected last
  StepResult result_;
  std::vector<TokenEvent> events_;
  EngineStats stats_;  // the fields that the scheduler does not count

  Mutex join_mu_;
  std::thread thread_ FEWBIT_GUARDED_BY(join_mu_);
};

Engine::Impl::Impl(const EngineOptions& options, Executor* executor, EventSink* sink)
    : limits_(LimitsOf(options, executor->info())),
      inbox_({.max_waiting = options.max_waiting,
              .max_waiting_tokens = options.max_waiting_tokens,
              .max_running = options.max_running}),
      published_(EngineStats{}),
      executor_(executor),
      sink_(sink),
      scheduler_(limits_) {
  const absl::Status valid = ValidateEngineOptions(options, executor->info());
  FEWBIT_CHECK(valid.ok()) << valid.ToString();
  taken_.requests.reserve(limits_.max_waiting);
  taken_.cancelled.reserve(static_cast<size_t>(limits_.max_waiting) + limits_.max_running);
  flights_.resize(limits_.max_steps_in_flight);
  for (Flight& flight : flights_) ReserveBatch(limits_, &flight.batch);
  result_.tokens.reserve(limits_.step_token_budget);
  events_.reserve(scheduler_.max_events());
  stats_.last_progress_unix_ns = absl::ToUnixNanos(absl::Now());
  Publish();
  MutexLock lock(&join_mu_);
  thread_ = std::thread([this] { Loop(); });
}

absl::Status Engine::Impl::Submit(std::unique_ptr<Request> request) {
  absl::Status valid = ValidateRequest(limits_, *request);
  if (!valid.ok()) return valid;
  return inbox_.Submit(std::move(request), absl::Now());
}

void Engine::Impl::Drain(absl::Time deadline) {
  inbox_.Drain(deadline, absl::Now());
  MutexLock lock(&join_mu_);
  if (!thread_.joinable()) return;
  FEWBIT_CHECK(thread_.get_id() != std::this_thread::get_id()) << "Drain called by the sink";
  thread_.join();
}

EngineStats Engine::Impl::stats() const {
  EngineStats stats = published_.Read();
  const Inbox::Counts counts = inbox_.counts();
  stats.requests_waiting = counts.waiting;
  stats.waiting_tokens = counts.waiting_tokens;
  const absl::Time idle_until = std::min(counts.idle_until, absl::Now());
  stats.last_progress_unix_ns =
      std::max(stats.last_progress_unix_ns, absl::ToUnixNanos(idle_until));
  return stats;
}

void Engine::Impl::Loop() {
  while (true) {
    const absl::Time now = absl::Now();
    TakeInbox(now);
    const StepPlan* const plan = scheduler_.PlanStep(now, &events_);
    HandOnEvents();
    if (plan != nullptr) {
      LaunchStep(*plan);
      if (!full()) continue;
    }
    if (scheduler_.steps_in_flight() > 0) {
      CollectStep();
      continue;
    }
    // Nothing runs, so nothing holds a block and the oldest waiting request would have been
    // admitted: nothing waits either.
    FEWBIT_CHECK_EQ(scheduler_.num_live(), 0);
    const absl::Status sound = scheduler_.CheckInvariants();
    FEWBIT_CHECK(sound.ok()) << sound.ToString();
    if (taken_.draining) return;
    inbox_.Wait();
  }
}

void Engine::Impl::TakeInbox(absl::Time now) {
  inbox_.Take(&taken_);
  for (std::unique_ptr<Request>& request : taken_.requests) scheduler_.Add(std::move(request));
  for (const RequestId id : taken_.cancelled) {
    scheduler_.Finish(id, FinishReason::kCancelled, now, &events_);
  }
  taken_.requests.clear();
  taken_.cancelled.clear();
  if (stats_.failed) scheduler_.FinishAll(FinishReason::kError, now, &events_);
  if (now >= taken_.drain_deadline) scheduler_.FinishAll(FinishReason::kDrained, now, &events_);
}

// REQUIRES: not full(). The plan is the one just made.
void Engine::Impl::LaunchStep(const StepPlan& plan) {
  Flight& flight = FlightOf(scheduler_.steps_in_flight() - 1);
  BuildBatch(plan, limits_.block_tokens, &flight.batch);
  flight.report = StepReport();
  flight.report.sequences = static_cast<int32_t>(plan.sequences.size());
  flight.report.tokens = plan.num_tokens;
  flight.report.prefill_tokens = plan.num_prefill_tokens;
  flight.report.sampled_rows = plan.num_rows;
  flight.launched = std::chrono::steady_clock::now();
  flight.handle = executor_->Launch(flight.batch);
}

void Engine::Impl::CollectStep() {
  Flight& flight = FlightOf(0);
  const absl::Status status = executor_->Collect(flight.handle, &result_);
  const auto end = std::chrono::steady_clock::now();
  const auto begin = std::max(flight.launched, last_end_);
  last_end_ = end;
  StepReport& report = flight.report;
  report.seconds = std::chrono::duration<double>(end - begin).count();

  const absl::Time now = absl::Now();
  stats_.busy_seconds += report.seconds;
  stats_.last_progress_unix_ns = absl::ToUnixNanos(now);
  if (!status.ok()) {
    FailEverything(status, now);
    return;
  }
  scheduler_.ApplyStep(result_.tokens, now, &events_);
  oldest_flight_ = (oldest_flight_ + 1) % flights_.size();
  CountDropped(&report);
  sink_->OnStep(report);
  HandOnEvents();
}

// After ApplyStep: what it added to the scheduler's counts is this step's.
void Engine::Impl::CountDropped(StepReport* report) {
  const SchedulerStats counted = scheduler_.stats();
  report->dropped_prefill_tokens =
      static_cast<int32_t>(counted.dropped_prefill_tokens - stats_.dropped_prefill_tokens);
  report->dropped_decode_tokens =
      static_cast<int32_t>(counted.dropped_decode_tokens - stats_.dropped_decode_tokens);
}

void Engine::Impl::FailEverything(const absl::Status& error, absl::Time now) {
  stats_.failed = true;
  inbox_.Close(absl::UnavailableError(absl::StrCat("the engine has failed: ", error.message())));
  // The device may still read the batches of the other steps in flight.
  for (int32_t age = 1; age < scheduler_.steps_in_flight(); ++age) {
    const absl::Status ignored = executor_->Collect(FlightOf(age).handle, &result_);
    (void)ignored;
  }
  scheduler_.AbandonSteps(now, &events_);
  HandOnEvents();
}

// Counts first, events second: whoever has seen a final event finds its request gone from the
// counters.
void Engine::Impl::HandOnEvents() {
  inbox_.Settle(events_, scheduler_.num_waiting(), scheduler_.waiting_tokens());
  Publish();
  if (events_.empty()) return;
  sink_->OnEvents(events_);
  events_.clear();
}

void Engine::Impl::Publish() {
  const SchedulerStats counted = scheduler_.stats();
  stats_.requests_running = counted.requests_running;
  stats_.blocks_total = counted.blocks_total;
  stats_.blocks_used = counted.blocks_used;
  stats_.steps = counted.steps;
  stats_.prefill_tokens = counted.prefill_tokens;
  stats_.decode_tokens = counted.decode_tokens;
  stats_.dropped_prefill_tokens = counted.dropped_prefill_tokens;
  stats_.dropped_decode_tokens = counted.dropped_decode_tokens;
  stats_.step_tokens = counted.prefill_tokens + counted.decode_tokens;
  published_.Write(stats_);
}

Engine::Engine(const EngineOptions& options, Executor* executor, EventSink* sink)
    : impl_(std::make_unique<Impl>(options, executor, sink)) {}

Engine::~Engine() = default;

absl::Status Engine::Submit(std::unique_ptr<Request> request) {
  return impl_->Submit(std::move(request));
}

void Engine::Cancel(RequestId id) { impl_->Cancel(id); }

void Engine::Drain(absl::Time deadline) { impl_->Drain(deadline); }

EngineStats Engine::stats() const { return impl_->stats(); }

}  // namespace fewbit
