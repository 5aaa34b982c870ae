// THE engine thread: takes the inbox, plans a step, launches it, collects it, applies it, hands the
// events on. With an executor that takes several steps in flight it launches the next ones before
// it collects, so that this work is done while the device runs. It is the only thread that touches
// a Request after Submit. It refuses text, protocol and policy: the scheduler plans, the sink
// speaks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/executor.h"
#include "scheduler/request.h"
#include "scheduler/step.h"

namespace fewbit {

// One collected step, for histograms.
struct StepReport {
  int32_t sequences = 0;  // in the step
  int32_t tokens = 0;     // run, prefill and decode
  // Wall time from Launch, or from the end of the step before where that came later, to the end of
  // Collect: no second counts in two steps.
  double seconds = 0.0;
  int32_t prefill_tokens = 0;  // those of `tokens` that belong to prompts
  int32_t sampled_rows = 0;    // rows of logits that were wanted, as tokens or prompt scores
  // Tokens of requests that ended while the step was in flight: run for nobody.
  int32_t dropped_prefill_tokens = 0;
  int32_t dropped_decode_tokens = 0;
};

// Where a step's events go. Called on the engine thread; must neither block, nor do string work,
// nor call Drain. Implemented by the server's emitter and by the tests' collector.
class EventSink {
 public:
  virtual ~EventSink() = default;
  // Never empty, valid only during the call. Once per step with what the step made, and before a
  // step with the requests that ended without one (cancelled, expired, drained).
  virtual void OnEvents(std::span<const TokenEvent> events) = 0;
  // Called on the engine thread for every collected step, before its OnEvents, also when it made no
  // event.
  virtual void OnStep(const StepReport& /*report*/) {}
};

struct EngineOptions {
  int32_t max_running = 64;              // sequences in a step, at most step_token_budget
  int32_t max_waiting = 256;             // requests in inbox and queue; beyond: RESOURCE_EXHAUSTED
  int64_t max_waiting_tokens = 1 << 20;  // prompt tokens in inbox and queue; likewise
  int32_t step_token_budget = 512;       // tokens per step, prefill chunks included
};

// INVALID_ARGUMENT names the option that is out of range or that the executor cannot serve
// (max_running <= max_sequences, step_token_budget <= max_step_tokens, max_running <=
// step_token_budget).
absl::Status ValidateEngineOptions(const EngineOptions& options, const ExecutorInfo& info);

// A consistent copy of the engine's counters; reading it never waits for a step.
struct EngineStats {
  // Finished requests that a step in flight still names included; likewise blocks_used.
  int32_t requests_running = 0;
  int32_t requests_waiting = 0;
  int64_t waiting_tokens = 0;
  int32_t blocks_total = 0;
  int32_t blocks_used = 0;
  uint64_t steps = 0;
  uint64_t step_tokens = 0;  // tokens run, prefill and decode
  uint64_t prefill_tokens = 0;
  uint64_t decode_tokens = 0;
  uint64_t dropped_prefill_tokens = 0;  // of these, run for requests that had ended
  uint64_t dropped_decode_tokens = 0;
  double busy_seconds = 0.0;  // wall time during which a step was in flight
  // Readiness: when the last step was collected or the engine was last seen asleep with nothing to
  // do, whichever is later.
  int64_t last_progress_unix_ns = 0;
  bool failed = false;  // an executor error: every request has been failed
};

class Engine {
 public:
  // `executor` and `sink` outlive the engine. Starts the thread. REQUIRES: ValidateEngineOptions is
  // ok.
  Engine(const EngineOptions& options, Executor* executor, EventSink* sink);
  ~Engine();  // as Drain(absl::Now())
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Hands a request over. RESOURCE_EXHAUSTED names the full limit, UNAVAILABLE says draining or
  // failed, INVALID_ARGUMENT a request that the KV cache could never hold. On success exactly one
  // kFinished event follows. Thread-safe.
  absl::Status Submit(std::unique_ptr<Request> request);

  // Asks for the final event; a no-op for an unknown or finished id. Thread-safe.
  void Cancel(RequestId id);

  // Refuses new requests, lets running and waiting ones finish until `deadline`, then ends them
  // with kDrained. Returns when all events have been handed on and the thread has ended.
  // Thread-safe, idempotent.
  void Drain(absl::Time deadline);

  EngineStats stats() const;  // thread-safe

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
