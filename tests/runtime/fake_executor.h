// An executor without a model: tokens are a function of the request's seed and the position, so a
// test can predict every stream. It emulates the KV cache by remembering which token was written
// where, and CHECKs the whole contract of executor.h in every step: limits, positions, slots, block
// tables, and that what a row's sequence reads through its blocks is its own context. With
// max_steps_in_flight > 1 it is a device: a thread of its own runs the launched steps in order,
// knows what it drew last for every slot and puts that in where the host does not know it yet.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/executor.h"
#include "scheduler/ids.h"
#include "scheduler/mutex.h"
#include "scheduler/scheduler.h"

namespace fewbit {

struct FakeExecutorOptions {
  ExecutorInfo info = {.device = "fake",
                       .vocab_size = 1000,
                       .max_context = 4096,
                       .max_step_tokens = 512,
                       .max_sequences = 64,
                       .block_tokens = 16,
                       .num_blocks = 4096,
                       .kv_bytes = 0,
                       .weight_bytes = 0};
  std::vector<TokenId> alphabet;  // sampled tokens are among these; empty: the whole vocabulary
  // Replaces the function of seed and position; called by whoever runs the step.
  std::function<TokenId(const SampleRow&)> script;
  absl::Duration step_time = absl::ZeroDuration();  // a step takes at least so long
  bool gate_closed = false;                         // how the gate starts
  bool verify_kv = true;  // compare contexts through the emulated cache; O(context) per row
};

// Executor's methods: engine thread only. Gate, failures and counters: thread-safe (mu_).
class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(FakeExecutorOptions options = {});
  ~FakeExecutor() override;

  // A scheduler's limits as options: an executor that exactly bears them.
  static FakeExecutorOptions OptionsFor(const SchedulerLimits& limits);

  // The token drawn at `position` (0 is the first of the prompt) by a request with this seed,
  // unless stop ids are forbidden or a script is set.
  TokenId TokenAt(uint64_t seed, int32_t position) const;

  // The gate holds the running of steps. While it is closed, only steps let through by AllowSteps
  // complete. A test opens it before its engine is destroyed.
  void CloseGate();
  void OpenGate();
  void AllowSteps(int32_t steps);
  // Returns once a step stands before the closed gate.
  void WaitUntilHeld();
  // Returns once so many steps are launched and not collected.
  void WaitUntilInFlight(int32_t steps);

  void FailNextStep(absl::Status error);  // of the next step that runs
  void FailRowsOf(RequestId id);          // its rows come back without a usable token
  uint64_t steps() const;                 // run
  int32_t max_steps_in_flight_seen() const;
  int32_t max_sequences_seen() const;  // in one step
  int32_t max_tokens_seen() const;     // in one step

  const ExecutorInfo& info() const override { return options_.info; }
  StepHandle Launch(const ForwardBatch& batch) override;
  absl::Status Collect(StepHandle handle, StepResult* result) override;

 private:
  struct Step {
    const ForwardBatch* batch = nullptr;
    StepHandle handle{};
    absl::Time launched_at;
    bool done = false;
    absl::Status status;
    StepResult result;
  };

  void RunSteps();
  void RunStep(Step* step);
  void VerifyShapes(const ForwardBatch& batch) const;
  void VerifySequence(const ForwardBatch& batch, int32_t s);
  void VerifySample(const ForwardBatch& batch, int32_t s, const SampleRow& row) const;
  void VerifyContext(const ForwardBatch& batch, int32_t s, const SampleRow& row) const;
  size_t CacheIndex(const ForwardBatch& batch, int32_t s, int32_t position) const;
  SampledToken Draw(const SampleRow& row);
  absl::Status PassGate(const Step& step);

  const FakeExecutorOptions options_;
  // Whoever runs the steps: the engine thread in Collect, or device_.
  std::vector<TokenId> cache_;                 // [num_blocks, block_tokens]
  std::vector<std::vector<TokenId>> outputs_;  // [max_sequences] drawn for the slot's request

  uint64_t next_handle_ = 0;  // engine thread

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Step> launched_ FEWBIT_GUARDED_BY(mu_);  // not collected, the oldest first
  bool stopping_ FEWBIT_GUARDED_BY(mu_) = false;
  absl::Time last_end_ FEWBIT_GUARDED_BY(mu_) = absl::InfinitePast();  // of a step with a step_time
  int32_t max_steps_in_flight_seen_ FEWBIT_GUARDED_BY(mu_) = 0;
  bool closed_ FEWBIT_GUARDED_BY(mu_);
  bool held_ FEWBIT_GUARDED_BY(mu_) = false;
  int32_t allowed_ FEWBIT_GUARDED_BY(mu_) = 0;
  absl::Status next_error_ FEWBIT_GUARDED_BY(mu_);
  absl::flat_hash_set<uint64_t> failing_ FEWBIT_GUARDED_BY(mu_);
  uint64_t steps_ FEWBIT_GUARDED_BY(mu_) = 0;
  int32_t max_sequences_seen_ FEWBIT_GUARDED_BY(mu_) = 0;
  int32_t max_tokens_seen_ FEWBIT_GUARDED_BY(mu_) = 0;

  std::thread device_;  // with max_steps_in_flight > 1
};

}  // namespace fewbit
