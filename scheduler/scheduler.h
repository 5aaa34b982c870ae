// All policy in one place: who is admitted, what the next step runs, when a request ends. It owns
// every Sequence, the slots and the KV blocks. It refuses clocks (time is an argument), threads,
// tensors and text. README.md states the invariants.
//
// Policy: first come, first served. A request is admitted when a slot is free and the pool can give
// it every block it can ever need (prompt + max_new_tokens), so that a running request always
// finishes and nothing is ever preempted; while the oldest waiting request does not fit, nobody
// overtakes it. A step runs one token of every sequence that decodes, then chunks of prompts in
// order of arrival until the token budget is spent. Because the budget is at least max_running,
// every running sequence that decodes advances in every step, and so does the oldest prompt. With
// more than one step in flight a decoding sequence is planned ahead of tokens that are still being
// drawn; when one of them ends the request, what was planned behind it is dropped.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "scheduler/block_pool.h"
#include "scheduler/request.h"
#include "scheduler/sequence.h"
#include "scheduler/stats.h"
#include "scheduler/step.h"

namespace fewbit {

// Everything that bounds the scheduler's memory and its steps. All at least 1.
struct SchedulerLimits {
  int32_t max_running = 64;         // sequences holding a slot; at most step_token_budget
  int32_t max_waiting = 256;        // sequences waiting for a slot
  int32_t step_token_budget = 512;  // tokens per step
  int32_t max_context = 2048;       // tokens of one sequence, prompt and output together
  int32_t block_tokens = 16;        // tokens per KV block
  int32_t num_blocks = 1024;        // KV blocks in all
  int32_t vocab_size = 1;           // ids are below this
  int32_t max_steps_in_flight = 1;  // steps planned and not yet applied; ExecutorInfo has the same

  // A prompt is never cut so that a chunk of one token arises.
  bool whole_chunks() const { return step_token_budget >= max_running + 2; }
};

// INVALID_ARGUMENT names the limit that is out of range.
absl::Status ValidateLimits(const SchedulerLimits& limits);

// INVALID_ARGUMENT names the field, its value and the limit when this request could never run.
// Pure.
absl::Status ValidateRequest(const SchedulerLimits& limits, const Request& request);

// Allocates everything in the constructor; Add, Cancel, PlanStep and ApplyStep allocate nothing as
// long as `events` has room for max_events(). Thread rule: engine thread only.
class Scheduler {
 public:
  // REQUIRES: ValidateLimits(limits) is ok.
  explicit Scheduler(const SchedulerLimits& limits);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Appends the request to the queue. REQUIRES: ValidateRequest is ok, its id is not live, fewer
  // than max_waiting wait.
  void Add(std::unique_ptr<Request> request);

  // Ends the request with `reason` and appends its final event; false for an id that is not live.
  // What it holds is freed at once, or with the last step in flight that names it.
  bool Finish(RequestId id, FinishReason reason, absl::Time now, std::vector<TokenEvent>* events);

  // Ends every live request, oldest first.
  void FinishAll(FinishReason reason, absl::Time now, std::vector<TokenEvent>* events);

  // Ends what expired (kDeadline, kTimeLimit; the earlier of the two counts), admits, and plans the
  // next step. Null when nothing can run now. The plan is valid until ApplyStep or AbandonSteps has
  // consumed it. REQUIRES: steps_in_flight() < max_steps_in_flight.
  const StepPlan* PlanStep(absl::Time now, std::vector<TokenEvent>* events);

  // Applies the oldest step in flight: `rows` are its results in the plan's row order. REQUIRES: a
  // step is in flight and rows.size() is the plan's num_rows.
  void ApplyStep(std::span<const SampledToken> rows, absl::Time now,
                 std::vector<TokenEvent>* events);

  // The executor failed: forgets all steps in flight and ends every live request with kError.
  void AbandonSteps(absl::Time now, std::vector<TokenEvent>* events);

  const SchedulerLimits& limits() const { return limits_; }
  SchedulerStats stats() const;
  int32_t num_live() const { return static_cast<int32_t>(live_.size()); }  // without those leaving
  int32_t num_waiting() const { return waiting_.size(); }
  int64_t waiting_tokens() const { return waiting_tokens_; }
  int32_t steps_in_flight() const { return steps_in_flight_; }

  // The earliest moment at which a live request may expire: no later than the true one.
  // InfiniteFuture: none can.
  absl::Time next_expiry() const { return next_expiry_; }

  // The most events that one call appends.
  int32_t max_events() const {
    return limits_.step_token_budget + limits_.max_running + limits_.max_waiting;
  }

  // INTERNAL names the broken invariant (numbered in README.md) and the sequence. O(requests +
  // blocks); allocates nothing while all hold. Callable between any two calls.
  absl::Status CheckInvariants() const;

 private:
  int32_t BlocksNeeded(const Request& request) const;
  void Admit(Sequence* sequence, absl::Time now);
  void Expire(absl::Time now, std::vector<TokenEvent>* events);
  void FinishSequence(Sequence* sequence, FinishReason reason, absl::Time now,
                      std::vector<TokenEvent>* events);
  void Release(Sequence* sequence);
  void PlanTokens(Sequence* sequence, int32_t num_tokens, StepPlan* plan);
  // Tokens of a prompt with `rest` to go that the next `budget` tokens of a step take, 0 if none.
  int32_t ChunkOf(int32_t rest, int32_t budget) const;
  // False once a prompt had to be cut or left out: nobody overtakes it then.
  bool PlanRunning(StepPlan* plan);
  void ApplySequence(const PlannedSequence& planned, const SampledToken* rows, absl::Time now,
                     std::vector<TokenEvent>* events);
  void CountDropped(const PlannedSequence& planned);
  void ApplySample(Sequence* sequence, const SampledToken& token, absl::Time now,
                   std::vector<TokenEvent>* events);
  Sequence* MutableSequence(const PlannedSequence& planned);
  StepPlan& PlanInFlight(int32_t age);  // 0 is the oldest
  const StepPlan& PlanInFlight(int32_t age) const;

  absl::Status CheckLists() const;
  absl::Status CheckSequence(const Sequence& sequence) const;
  absl::Status CheckHoldings() const;
  absl::Status CheckPlans() const;

  const SchedulerLimits limits_;
  const int32_t blocks_per_slot_;  // blocks of a sequence of max_context tokens
  BlockPool blocks_;
  std::vector<Sequence> nodes_;  // never resized: lists, plans and live_ point into it
  std::vector<Sequence*> free_nodes_;
  std::vector<int32_t> free_slots_;
  std::unique_ptr<TokenId[]> slot_tokens_;  // [max_running, max_context]
  std::unique_ptr<BlockId[]> slot_blocks_;  // [max_running, blocks_per_slot_]
  SequenceList waiting_;                    // in order of arrival
  SequenceList running_;                    // in order of arrival, those leaving included
  absl::flat_hash_map<uint64_t, Sequence*> live_;
  std::vector<StepPlan> plans_;  // ring of max_steps_in_flight
  int32_t oldest_plan_ = 0;
  int32_t steps_in_flight_ = 0;
  int64_t waiting_tokens_ = 0;
  uint64_t next_arrival_number_ = 0;
  absl::Time next_expiry_ = absl::InfiniteFuture();
  SchedulerStats counters_;  // only its counters are kept here

  // Scratch of CheckInvariants.
  struct InFlight {
    int32_t steps = 0;
    int32_t next_position = 0;
    int32_t samples = 0;
  };
  mutable std::vector<uint8_t> seen_;        // per block and per slot
  mutable std::vector<InFlight> in_flight_;  // per slot
};

}  // namespace fewbit
