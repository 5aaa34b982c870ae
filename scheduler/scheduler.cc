#include "scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "scheduler/check.h"

namespace fewbit {
namespace {

int32_t CeilDiv(int32_t a, int32_t b) { return static_cast<int32_t>((int64_t{a} + b - 1) / b); }

absl::Status CheckTokenIds(absl::string_view field, int64_t index, TokenId token,
                           int32_t vocab_size) {
  if (ToInt(token) >= 0 && ToInt(token) < vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, "[", index, "] = ", ToInt(token),
                                                 " is outside the vocabulary of ", vocab_size,
                                                 " tokens"));
}

absl::Status ValidateTokenIds(const SchedulerLimits& limits, const Request& request) {
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    absl::Status status = CheckTokenIds("prompt", i, request.prompt[i], limits.vocab_size);
    if (!status.ok()) return status;
  }
  for (size_t i = 0; i < request.stop_token_ids.size(); ++i) {
    absl::Status status =
        CheckTokenIds("stop_token_ids", i, request.stop_token_ids[i], limits.vocab_size);
    if (!status.ok()) return status;
  }
  for (size_t i = 0; i < request.sampling.logit_bias.size(); ++i) {
    absl::Status status =
        CheckTokenIds("logit_bias", i, request.sampling.logit_bias[i].first, limits.vocab_size);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

bool IsStopToken(const Request& request, TokenId token) {
  const std::vector<TokenId>& stops = request.stop_token_ids;
  return std::find(stops.begin(), stops.end(), token) != stops.end();
}

// Milliseconds from `from` to `to`; a moment that never came counts as `now`.
double MillisBetween(absl::Time from, absl::Time to, absl::Time now) {
  return absl::ToDoubleMilliseconds(std::min(to, now) - std::min(from, now));
}

RequestTiming TimingOf(const Sequence& sequence, absl::Time now) {
  RequestTiming timing;
  timing.queue_wait_ms = MillisBetween(sequence.request->arrival, sequence.first_scheduled, now);
  timing.prefill_ms = MillisBetween(sequence.first_scheduled, sequence.first_token, now);
  timing.decode_ms = MillisBetween(sequence.first_token, sequence.last_token, now);
  timing.prompt_tokens = sequence.num_prompt();
  timing.generated_tokens = sequence.num_generated();
  return timing;
}

}  // namespace

absl::Status ValidateLimits(const SchedulerLimits& limits) {
  const std::pair<const char*, int32_t> fields[] = {
      {"max_running", limits.max_running},
      {"max_waiting", limits.max_waiting},
      {"step_token_budget", limits.step_token_budget},
      {"max_context", limits.max_context},
      {"block_tokens", limits.block_tokens},
      {"num_blocks", limits.num_blocks},
      {"vocab_size", limits.vocab_size},
      {"max_steps_in_flight", limits.max_steps_in_flight}};
  for (const auto& [name, value] : fields) {
    if (value < 1) {
      return absl::InvalidArgumentError(absl::StrCat(name, " = ", value, " must be at least 1"));
    }
  }
  if (limits.step_token_budget < limits.max_running) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step_token_budget = ", limits.step_token_budget, " must be at least max_running = ",
        limits.max_running, ": every running request needs a token per step"));
  }
  return absl::OkStatus();
}

absl::Status ValidateRequest(const SchedulerLimits& limits, const Request& request) {
  if (request.prompt.empty()) return absl::InvalidArgumentError("prompt has no tokens");
  if (request.max_new_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens = ", request.max_new_tokens, " must be at least 1"));
  }
  if (request.min_new_tokens < 0 || request.min_new_tokens > request.max_new_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_new_tokens = ", request.min_new_tokens,
                     " must be between 0 and max_new_tokens = ", request.max_new_tokens));
  }
  if (request.num_top_logprobs < 0 || request.num_top_logprobs > kMaxTopLogprobs) {
    return absl::InvalidArgumentError(absl::StrCat("num_top_logprobs = ", request.num_top_logprobs,
                                                   " must be between 0 and ", kMaxTopLogprobs));
  }
  const int64_t tokens = static_cast<int64_t>(request.prompt.size()) + request.max_new_tokens;
  if (tokens > limits.max_context) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt of ", request.prompt.size(),
                     " tokens and max_new_tokens = ", request.max_new_tokens, " make ", tokens,
                     ", more than the context of ", limits.max_context, " tokens"));
  }
  const int32_t blocks = CeilDiv(static_cast<int32_t>(tokens), limits.block_tokens);
  if (blocks > limits.num_blocks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt of ", request.prompt.size(),
        " tokens and max_new_tokens = ", request.max_new_tokens, " need ", blocks, " KV blocks of ",
        limits.block_tokens, " tokens, more than the cache's ", limits.num_blocks));
  }
  return ValidateTokenIds(limits, request);
}

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits),
      blocks_per_slot_(CeilDiv(limits.max_context, limits.block_tokens)),
      blocks_(limits.num_blocks) {
  const absl::Status valid = ValidateLimits(limits);
  FEWBIT_CHECK(valid.ok()) << valid.ToString();
  const size_t num_nodes = static_cast<size_t>(limits.max_running) + limits.max_waiting;
  nodes_ = std::vector<Sequence>(num_nodes);
  free_nodes_.reserve(num_nodes);
  for (size_t i = num_nodes; i-- > 0;) free_nodes_.push_back(&nodes_[i]);
  free_slots_.reserve(limits.max_running);
  for (int32_t slot = limits.max_running - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  // Not initialized: pages of a long context that nobody uses are never touched.
  const size_t slots = static_cast<size_t>(limits.max_running);
  slot_tokens_ = std::make_unique_for_overwrite<TokenId[]>(slots * limits.max_context);
  slot_blocks_ = std::make_unique_for_overwrite<BlockId[]>(slots * blocks_per_slot_);
  // Twice the live requests: then the table drops its tombstones in place and never grows.
  live_.reserve(2 * num_nodes + 64);
  plans_.resize(limits.max_steps_in_flight);
  for (StepPlan& plan : plans_) plan.sequences.reserve(limits.max_running);
  seen_.resize(std::max(limits.num_blocks, limits.max_running));
  in_flight_.resize(slots);
}

int32_t Scheduler::BlocksNeeded(const Request& request) const {
  const int32_t tokens = static_cast<int32_t>(request.prompt.size()) + request.max_new_tokens;
  return CeilDiv(tokens, limits_.block_tokens);
}

void Scheduler::Add(std::unique_ptr<Request> request) {
  const absl::Status valid = ValidateRequest(limits_, *request);
  FEWBIT_CHECK(valid.ok()) << valid.ToString();
  FEWBIT_CHECK_LT(waiting_.size(), limits_.max_waiting);
  FEWBIT_CHECK(!free_nodes_.empty());
  Sequence* const sequence = free_nodes_.back();
  free_nodes_.pop_back();
  const bool inserted = live_.emplace(ToInt(request->id), sequence).second;
  FEWBIT_CHECK(inserted) << "request id " << ToInt(request->id) << " is live already";
  *sequence = Sequence{};
  sequence->request = std::move(request);
  sequence->state = SequenceState::kWaiting;
  sequence->arrival_number = next_arrival_number_++;
  sequence->num_tokens = sequence->num_prompt();
  waiting_.PushBack(sequence);
  waiting_tokens_ += sequence->num_prompt();
  next_expiry_ = std::min(next_expiry_, sequence->expiry());
}

bool Scheduler::Finish(RequestId id, FinishReason reason, absl::Time now,
                       std::vector<TokenEvent>* events) {
  const auto it = live_.find(ToInt(id));
  if (it == live_.end()) return false;
  FinishSequence(it->second, reason, now, events);
  return true;
}

void Scheduler::FinishAll(FinishReason reason, absl::Time now, std::vector<TokenEvent>* events) {
  for (SequenceList* list : {&running_, &waiting_}) {
    Sequence* next = nullptr;
    for (Sequence* sequence = list->front(); sequence != nullptr; sequence = next) {
      next = sequence->next;
      if (sequence->state != SequenceState::kLeaving) {
        FinishSequence(sequence, reason, now, events);
      }
    }
  }
}

void Scheduler::Expire(absl::Time now, std::vector<TokenEvent>* events) {
  next_expiry_ = absl::InfiniteFuture();
  for (SequenceList* list : {&running_, &waiting_}) {
    Sequence* next = nullptr;
    for (Sequence* sequence = list->front(); sequence != nullptr; sequence = next) {
      next = sequence->next;
      if (sequence->state == SequenceState::kLeaving) continue;
      if (sequence->expiry() > now) {
        next_expiry_ = std::min(next_expiry_, sequence->expiry());
        continue;
      }
      const Request& request = *sequence->request;
      const bool is_error = request.deadline < request.time_limit;
      FinishSequence(sequence, is_error ? FinishReason::kDeadline : FinishReason::kTimeLimit, now,
                     events);
    }
  }
}

void Scheduler::FinishSequence(Sequence* sequence, FinishReason reason, absl::Time now,
                               std::vector<TokenEvent>* events) {
  TokenEvent& event = events->emplace_back();
  event.kind = TokenEvent::Kind::kFinished;
  event.request = sequence->request->id;
  event.finish_reason = reason;
  event.timing = TimingOf(*sequence, now);
  event.time = now;

  live_.erase(ToInt(sequence->request->id));
  if (sequence->state == SequenceState::kWaiting) {
    waiting_.Remove(sequence);
    waiting_tokens_ -= sequence->num_prompt();
    sequence->request.reset();
    sequence->state = SequenceState::kFree;
    free_nodes_.push_back(sequence);
    return;
  }
  sequence->state = SequenceState::kLeaving;
  if (sequence->steps_in_flight == 0) Release(sequence);
}

// Gives back everything a leaving sequence holds.
void Scheduler::Release(Sequence* sequence) {
  FEWBIT_CHECK(sequence->state == SequenceState::kLeaving);
  FEWBIT_CHECK_EQ(sequence->steps_in_flight, 0);
  blocks_.Free(sequence->blocks());
  free_slots_.push_back(sequence->slot);
  running_.Remove(sequence);
  *sequence = Sequence{};
  free_nodes_.push_back(sequence);
}

// REQUIRES: a slot and all its blocks are free.
void Scheduler::Admit(Sequence* sequence, absl::Time now) {
  waiting_.Remove(sequence);
  waiting_tokens_ -= sequence->num_prompt();
  running_.PushBack(sequence);
  sequence->state = SequenceState::kRunning;
  sequence->first_scheduled = now;
  const int32_t slot = free_slots_.back();
  free_slots_.pop_back();
  sequence->slot = slot;
  sequence->slot_tokens = &slot_tokens_[static_cast<size_t>(slot) * limits_.max_context];
  sequence->slot_blocks = &slot_blocks_[static_cast<size_t>(slot) * blocks_per_slot_];
  sequence->num_blocks = BlocksNeeded(*sequence->request);
  blocks_.Allocate({sequence->slot_blocks, static_cast<size_t>(sequence->num_blocks)});
  std::copy(sequence->request->prompt.begin(), sequence->request->prompt.end(),
            sequence->slot_tokens);
}

void Scheduler::PlanTokens(Sequence* sequence, int32_t num_tokens, StepPlan* plan) {
  const int32_t first = sequence->num_scheduled;
  const int32_t end = first + num_tokens;
  const int32_t num_prompt = sequence->num_prompt();
  PlannedSequence& planned = plan->sequences.emplace_back();
  planned.sequence = sequence;
  planned.first_position = first;
  planned.num_tokens = num_tokens;
  planned.sample = end == sequence->num_ahead();
  if (sequence->request->want_prompt_logprobs) {
    planned.score_tokens = std::max(0, std::min(end, num_prompt - 1) - first);
  }
  plan->num_tokens += num_tokens;
  plan->num_prefill_tokens += std::max(0, std::min(end, num_prompt) - first);
  plan->num_rows += planned.score_tokens + (planned.sample ? 1 : 0);
  sequence->num_scheduled = end;
  if (planned.sample) ++sequence->num_drawn;
  ++sequence->steps_in_flight;
}

// An executor may take a single token for decoding and sum in another order than in a longer chunk,
// so a prompt is not cut into a single token, and its results do not depend on the batch. With two
// tokens of budget beyond max_running the oldest prompt always has room for three.
int32_t Scheduler::ChunkOf(int32_t rest, int32_t budget) const {
  if (rest <= budget || !limits_.whole_chunks()) return std::min(rest, budget);
  const int32_t chunk = rest - budget == 1 ? budget - 1 : budget;
  return chunk < 2 ? 0 : chunk;
}

bool Scheduler::PlanRunning(StepPlan* plan) {
  // Those that decode come first: a long prompt must not hold up the streams that are being read.
  for (Sequence* s = running_.front(); s != nullptr; s = s->next) {
    if (s->state != SequenceState::kRunning || s->num_scheduled < s->num_prompt()) continue;
    if (s->num_ahead() < s->max_tokens()) PlanTokens(s, s->num_ahead() - s->num_scheduled, plan);
  }
  FEWBIT_CHECK_LE(plan->num_tokens, limits_.step_token_budget);
  for (Sequence* s = running_.front(); s != nullptr; s = s->next) {
    const int32_t budget = limits_.step_token_budget - plan->num_tokens;
    if (budget == 0) return false;
    const int32_t unscheduled = s->num_prompt() - s->num_scheduled;
    if (s->state != SequenceState::kRunning || unscheduled <= 0) continue;
    const int32_t chunk = ChunkOf(unscheduled, budget);
    if (chunk > 0) PlanTokens(s, chunk, plan);
    if (chunk < unscheduled) return false;
  }
  return true;
}

const StepPlan* Scheduler::PlanStep(absl::Time now, std::vector<TokenEvent>* events) {
  FEWBIT_CHECK_LT(steps_in_flight_, limits_.max_steps_in_flight);
  if (now >= next_expiry_) Expire(now, events);
  StepPlan& plan = PlanInFlight(steps_in_flight_);
  plan.sequences.clear();
  plan.num_tokens = 0;
  plan.num_prefill_tokens = 0;
  plan.num_rows = 0;
  bool room = PlanRunning(&plan);
  while (room && !waiting_.empty() && !free_slots_.empty()) {
    const int32_t budget = limits_.step_token_budget - plan.num_tokens;
    Sequence* const oldest = waiting_.front();
    const int32_t chunk = ChunkOf(oldest->num_prompt(), budget);
    if (chunk == 0 || BlocksNeeded(*oldest->request) > blocks_.num_free()) break;
    Admit(oldest, now);
    PlanTokens(oldest, chunk, &plan);
    room = chunk == oldest->num_prompt();
  }
  if (plan.sequences.empty()) return nullptr;
  ++steps_in_flight_;
  return &plan;
}

void Scheduler::ApplyStep(std::span<const SampledToken> rows, absl::Time now,
                          std::vector<TokenEvent>* events) {
  FEWBIT_CHECK_GT(steps_in_flight_, 0);
  const StepPlan& plan = PlanInFlight(0);
  FEWBIT_CHECK_EQ(rows.size(), static_cast<size_t>(plan.num_rows));
  const SampledToken* row = rows.data();
  for (const PlannedSequence& planned : plan.sequences) {
    ApplySequence(planned, row, now, events);
    row += planned.score_tokens + (planned.sample ? 1 : 0);
  }
  ++counters_.steps;
  counters_.prefill_tokens += plan.num_prefill_tokens;
  counters_.decode_tokens += plan.num_tokens - plan.num_prefill_tokens;
  oldest_plan_ = (oldest_plan_ + 1) % limits_.max_steps_in_flight;
  --steps_in_flight_;
}

void Scheduler::ApplySequence(const PlannedSequence& planned, const SampledToken* rows,
                              absl::Time now, std::vector<TokenEvent>* events) {
  Sequence* const sequence = MutableSequence(planned);
  --sequence->steps_in_flight;
  FEWBIT_CHECK_EQ(sequence->num_computed, planned.first_position);
  sequence->num_computed += planned.num_tokens;
  if (sequence->state == SequenceState::kLeaving) {
    CountDropped(planned);
    if (sequence->steps_in_flight == 0) Release(sequence);
    return;
  }
  for (int32_t i = 0; i < planned.score_tokens; ++i) {
    if (rows[i].token == kNoToken) {
      FinishSequence(sequence, FinishReason::kError, now, events);
      return;
    }
    TokenEvent& event = events->emplace_back();
    event.kind = TokenEvent::Kind::kPromptLogprob;
    event.request = sequence->request->id;
    event.token = rows[i];
    event.time = now;
  }
  if (planned.sample) ApplySample(sequence, rows[planned.score_tokens], now, events);
}

void Scheduler::CountDropped(const PlannedSequence& planned) {
  const int32_t end = planned.first_position + planned.num_tokens;
  const int32_t num_prompt = planned.sequence->num_prompt();
  const int32_t prefill = std::max(0, std::min(end, num_prompt) - planned.first_position);
  counters_.dropped_prefill_tokens += prefill;
  counters_.dropped_decode_tokens += planned.num_tokens - prefill;
}

void Scheduler::ApplySample(Sequence* sequence, const SampledToken& token, absl::Time now,
                            std::vector<TokenEvent>* events) {
  if (token.token == kNoToken) {
    FinishSequence(sequence, FinishReason::kError, now, events);
    return;
  }
  FEWBIT_CHECK_LT(sequence->num_tokens, sequence->max_tokens());
  const Request& request = *sequence->request;
  const bool may_stop = sequence->num_generated() >= request.min_new_tokens;
  if (sequence->num_generated() == 0) sequence->first_token = now;
  sequence->last_token = now;
  sequence->slot_tokens[sequence->num_tokens] = token.token;
  ++sequence->num_tokens;
  --sequence->num_drawn;

  TokenEvent& event = events->emplace_back();
  event.kind = TokenEvent::Kind::kToken;
  event.request = request.id;
  event.token = token;
  event.time = now;
  if (may_stop && IsStopToken(request, token.token)) {
    FinishSequence(sequence, FinishReason::kStopToken, now, events);
  } else if (sequence->num_tokens == sequence->max_tokens()) {
    FinishSequence(sequence, FinishReason::kLength, now, events);
  }
}

void Scheduler::AbandonSteps(absl::Time now, std::vector<TokenEvent>* events) {
  FinishAll(FinishReason::kError, now, events);
  while (steps_in_flight_ > 0) {
    for (const PlannedSequence& planned : PlanInFlight(0).sequences) {
      Sequence* const sequence = MutableSequence(planned);
      if (--sequence->steps_in_flight == 0) Release(sequence);
    }
    oldest_plan_ = (oldest_plan_ + 1) % limits_.max_steps_in_flight;
    --steps_in_flight_;
  }
}

Sequence* Scheduler::MutableSequence(const PlannedSequence& planned) {
  return &nodes_[static_cast<size_t>(planned.sequence - nodes_.data())];
}

StepPlan& Scheduler::PlanInFlight(int32_t age) {
  return plans_[static_cast<size_t>((oldest_plan_ + age) % limits_.max_steps_in_flight)];
}

const StepPlan& Scheduler::PlanInFlight(int32_t age) const {
  return plans_[static_cast<size_t>((oldest_plan_ + age) % limits_.max_steps_in_flight)];
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = counters_;
  stats.requests_running = running_.size();
  stats.requests_waiting = waiting_.size();
  stats.waiting_tokens = waiting_tokens_;
  stats.blocks_total = blocks_.num_total();
  stats.blocks_used = blocks_.num_used();
  return stats;
}

}  // namespace fewbit
