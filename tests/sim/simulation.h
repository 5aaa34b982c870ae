// A seeded simulation of a scheduler under random load, with a second, simpler bookkeeping of its
// own beside it. After every call it checks the scheduler's numbered invariants and, independently
// of them:
//   - budget, slots and one place per sequence in every plan; positions follow on; decodes first,
//   prompts in order of arrival; no sequence is planned beyond its last token
//   - no waste: budget is left over only when no running request has work and the oldest waiting
//   one does not fit
//   - no starvation: the oldest waiting request is admitted after at most as many steps as the
//   running ones have tokens to go
//   - what a sequence reads through its block table is its own context, also at the moment a step
//   in flight is collected, and also where the device alone knew its last tokens
//   - tokens arrive in order, exactly one final event, with a reason that is true and with the
//   right counts
//   - nothing is held when nothing is live
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/batch.h"
#include "scheduler/scheduler.h"

namespace fewbit {

struct SimulationShape {
  std::string name;
  SchedulerLimits limits;
  int32_t requests = 0;
  int32_t max_prompt = 0;
  int32_t max_new = 0;
  double mean_gap_ms = 1.0;  // between arrivals; a step takes 1 to 3
  double burst = 0.0;        // probability that an arrival brings up to 50 others
  double cancel = 0.0;       // per call of PlanStep
  double deadline = 0.0;     // share of requests with one; likewise below
  double time_limit = 0.0;
  double prompt_logprobs = 0.0;
  double failure = 0.0;  // probability per step that the executor fails, or that all is drained
  double bad_row = 0.0;  // probability per row of logits that it yields no token
  uint64_t seed = 1;
};
inline void PrintTo(const SimulationShape& shape, std::ostream* out) { *out << shape.name; }

class Simulation {
 public:
  explicit Simulation(const SimulationShape& shape);

  // Runs all requests to their end. Empty, or the first violated property with time, step and
  // request.
  std::string Run();

  int64_t steps() const { return steps_; }
  int64_t count(FinishReason reason) const { return finished_[static_cast<size_t>(reason)]; }
  int64_t dropped_tokens() const { return dropped_; }

  // What became of a request (ids from 1): its tokens and why it ended.
  const std::vector<TokenId>& tokens(uint64_t id) const { return shadows_[id - 1].drawn; }
  FinishReason reason(uint64_t id) const { return shadows_[id - 1].reason; }

 private:
  // What the simulation knows of a request without asking the scheduler.
  struct Shadow {
    Request spec;
    std::vector<TokenId> drawn;            // by the events
    std::vector<TokenId> drawn_on_device;  // in steps run; what follows an end is dropped
    int32_t scored = 0;
    int32_t scheduled = 0;
    int32_t computed = 0;
    int32_t steps_in_flight = 0;
    int32_t samples_in_flight = 0;
    int32_t blocks = 0;
    bool cancelled = false;
    bool got_bad_row = false;
    bool finished = false;
    FinishReason reason = FinishReason::kNone;
    int32_t num_prompt() const { return static_cast<int32_t>(spec.prompt.size()); }
    int32_t known() const { return num_prompt() + static_cast<int32_t>(drawn.size()); }
    int32_t ahead() const { return known() + samples_in_flight; }
    int32_t max_tokens() const { return num_prompt() + spec.max_new_tokens; }
    bool decodes() const { return scheduled >= num_prompt(); }
    bool has_work() const { return !finished && (!decodes() || ahead() < max_tokens()); }
    // The token at a position that some step has drawn or the prompt has.
    TokenId at(int32_t position) const {
      return position < num_prompt() ? spec.prompt[position]
                                     : drawn_on_device[position - num_prompt()];
    }
  };
  struct Flight {
    ForwardBatch batch;
    std::vector<int32_t> requests;  // per sequence
    std::vector<int32_t> tokens;    // per sequence
    std::vector<bool> samples;      // per sequence
  };

  void Arrive();
  void AddRequest();
  void MaybeCancel();
  void MaybeFail();
  bool Plan();     // false: nothing to run
  void Collect();  // the oldest step in flight
  void CheckPlan(const StepPlan& plan);
  void CheckPlanOrder(const StepPlan& plan, size_t num_decodes);
  int32_t FullStep() const;
  void CheckNothingWasted(const StepPlan* plan);  // null: nothing was planned
  void Launch(const StepPlan& plan, Flight* flight);
  void Admitted(int32_t index);
  void WriteTokens(const Flight& flight, bool known);
  void CheckReads(const Flight& flight);
  void TakeEvents();  // ReadEvents and CheckAfterCall
  void ReadEvents();
  void TakeToken(const TokenEvent& event, Shadow* shadow);
  void TakeFinal(const TokenEvent& event, Shadow* shadow);
  void CheckAfterCall();
  void TrackHead(bool step_applied);
  void ForgetReleased();
  SampledToken Draw(const SampleRow& row);
  TokenId DrawToken(const SampleRow& row) const;
  BlockId BlockAt(const ForwardBatch& batch, size_t s, int32_t position) const;
  Shadow& ShadowOf(RequestId id) { return shadows_[ToInt(id) - 1]; }
  int32_t HeldBlocks() const;
  bool Chance(double probability) { return std::bernoulli_distribution(probability)(random_); }
  static int32_t Uniform(int32_t low, int32_t high, std::mt19937_64* random) {
    return std::uniform_int_distribution<int32_t>(low, high)(*random);
  }
  int32_t Uniform(int32_t low, int32_t high) { return Uniform(low, high, &random_); }
  void Fail(const std::string& what);

  const SimulationShape shape_;
  std::mt19937_64 random_;           // when what happens
  std::mt19937_64 requests_random_;  // what is asked for: the same whatever happens when
  Scheduler scheduler_;
  absl::Time now_ = absl::UnixEpoch();
  absl::Time next_arrival_ = absl::UnixEpoch();
  std::deque<Shadow> shadows_;   // by id - 1
  std::deque<int32_t> queue_;    // not yet admitted, in order of arrival; finished ones are skipped
  std::vector<int32_t> held_;    // admitted and not yet released, in order of arrival
  std::vector<TokenId> cache_;   // [num_blocks, block_tokens]
  std::vector<Flight> flights_;  // ring
  size_t oldest_flight_ = 0;
  std::vector<TokenEvent> events_;
  std::vector<SampledToken> rows_;
  int32_t live_ = 0;
  int32_t head_ = -1;  // the oldest waiting request, and how long it may still be so
  int64_t head_steps_left_ = 0;
  int64_t steps_ = 0;
  int64_t dropped_ = 0;  // tokens run for requests that had ended
  int64_t finished_[16] = {};
  std::string failure_;
};

}  // namespace fewbit
