// An executor without a model: tokens are a function of the request's seed and the position, so a
// test can predict every stream. It emulates the KV cache by remembering which token was written
// where, and CHECKs the whole contract of executor.h in every step: limits, positions, slots, block
// tables, and that what a row's sequence reads through its blocks is its own context.
#pragma once

#include <cstdint>
#include <functional>
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
  std::function<TokenId(const SampleRow&)> script;  // replaces the function of seed and position
  absl::Duration step_time = absl::ZeroDuration();  // a step takes at least so long
  bool gate_closed = false;                         // how the gate starts
  bool verify_kv = true;  // compare contexts through the emulated cache; O(context) per row
};

// Executor's methods: engine thread only. Gate, failures and counters: thread-safe (mu_).
class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(FakeExecutorOptions options = {});

  // A scheduler's limits as options: an executor that exactly bears them.
  static FakeExecutorOptions OptionsFor(const SchedulerLimits& limits);

  // The token drawn at `position` (0 is the first of the prompt) by a request with this seed,
  // unless stop ids are forbidden or a script is set.
  TokenId TokenAt(uint64_t seed, int32_t position) const;

  // The gate holds Collect. While it is closed, only steps let through by AllowSteps complete. A
  // test opens it before its engine is destroyed.
  void CloseGate();
  void OpenGate();
  void AllowSteps(int32_t steps);
  // Returns once a step stands before the closed gate.
  void WaitUntilHeld();

  void FailNextStep(absl::Status error);  // the next Collect returns it
  void FailRowsOf(RequestId id);          // its rows come back without a usable token
  uint64_t steps() const;                 // collected
  int32_t max_sequences_seen() const;     // in one step
  int32_t max_tokens_seen() const;        // in one step

  const ExecutorInfo& info() const override { return options_.info; }
  StepHandle Launch(const ForwardBatch& batch) override;
  absl::Status Collect(StepHandle handle, StepResult* result) override;

 private:
  void VerifyShapes(const ForwardBatch& batch) const;
  void VerifySequence(const ForwardBatch& batch, int32_t s);
  void VerifySamples(const ForwardBatch& batch) const;
  void VerifyContext(const ForwardBatch& batch, int32_t s, const SampleRow& row) const;
  size_t CacheIndex(const ForwardBatch& batch, int32_t s, int32_t position) const;
  SampledToken Draw(const SampleRow& row) const;
  absl::Status PassGate();

  const FakeExecutorOptions options_;
  std::vector<TokenId> cache_;  // [num_blocks, block_tokens]
  const ForwardBatch* launched_ = nullptr;
  uint64_t next_handle_ = 0;
  absl::Time launched_at_;

  mutable Mutex mu_;
  CondVar changed_;
  bool closed_ FEWBIT_GUARDED_BY(mu_);
  bool held_ FEWBIT_GUARDED_BY(mu_) = false;
  int32_t allowed_ FEWBIT_GUARDED_BY(mu_) = 0;
  absl::Status next_error_ FEWBIT_GUARDED_BY(mu_);
  absl::flat_hash_set<uint64_t> failing_ FEWBIT_GUARDED_BY(mu_);
  uint64_t steps_ FEWBIT_GUARDED_BY(mu_) = 0;
  int32_t max_sequences_seen_ FEWBIT_GUARDED_BY(mu_) = 0;
  int32_t max_tokens_seen_ FEWBIT_GUARDED_BY(mu_) = 0;
};

}  // namespace fewbit
