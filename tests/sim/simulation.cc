#include "tests/sim/simulation.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fewbit {
namespace {

int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }

bool IsStop(const Request& request, TokenId token) {
  return std::count(request.stop_token_ids.begin(), request.stop_token_ids.end(), token) > 0;
}

}  // namespace

Simulation::Simulation(const SimulationShape& shape)
    : shape_(shape),
      random_(shape.seed),
      requests_random_(shape.seed + 1000000),
      scheduler_(shape.limits) {
  const SchedulerLimits& limits = shape.limits;
  cache_.assign(static_cast<size_t>(limits.num_blocks) * limits.block_tokens, TokenId{-1});
  flights_.resize(limits.max_steps_in_flight);
  for (Flight& flight : flights_) ReserveBatch(limits, &flight.batch);
  events_.reserve(scheduler_.max_events());
}

void Simulation::Fail(const std::string& what) {
  if (!failure_.empty()) return;
  failure_ = absl::StrCat(shape_.name, " seed ", shape_.seed, " step ", steps_, ": ", what);
}

std::string Simulation::Run() {
  while (failure_.empty()) {
    Arrive();
    MaybeCancel();
    const bool may_plan = scheduler_.steps_in_flight() < shape_.limits.max_steps_in_flight;
    bool planned = false;
    if (may_plan && (scheduler_.steps_in_flight() == 0 || Chance(0.7))) planned = Plan();
    MaybeFail();
    const bool full = scheduler_.steps_in_flight() == shape_.limits.max_steps_in_flight;
    if (scheduler_.steps_in_flight() > 0 && (full || !planned || Chance(0.3))) {
      Collect();
    } else if (!planned && live_ > 0) {
      Fail("requests are live, nothing is in flight, and nothing is planned");
    } else if (!planned && static_cast<int32_t>(shadows_.size()) == shape_.requests) {
      break;
    } else if (!planned) {
      now_ = std::max(now_, next_arrival_);
    }
  }
  return failure_;
}

void Simulation::Arrive() {
  while (next_arrival_ <= now_ && static_cast<int32_t>(shadows_.size()) < shape_.requests) {
    const int32_t burst = Chance(shape_.burst) ? Uniform(2, 50) : 1;
    for (int32_t i = 0; i < burst; ++i) {
      if (scheduler_.num_waiting() == shape_.limits.max_waiting) return;  // tries again later
      if (static_cast<int32_t>(shadows_.size()) == shape_.requests) return;
      AddRequest();
    }
    const double gap = std::exponential_distribution<double>(1.0 / shape_.mean_gap_ms)(random_);
    next_arrival_ += absl::Milliseconds(gap);
  }
}

void Simulation::AddRequest() {
  const SchedulerLimits& limits = shape_.limits;
  Shadow& shadow = shadows_.emplace_back();
  Request& spec = shadow.spec;
  spec.id = RequestId{shadows_.size()};
  const int32_t room = std::min(limits.max_context, limits.num_blocks * limits.block_tokens);
  const auto any = [this](int32_t low, int32_t high) {
    return Uniform(low, high, &requests_random_);
  };
  const int32_t prompt = any(1, std::min(shape_.max_prompt, room - 1));
  for (int32_t i = 0; i < prompt; ++i) {
    spec.prompt.push_back(TokenId{any(0, limits.vocab_size - 1)});
  }
  spec.max_new_tokens = any(1, std::min(shape_.max_new, room - prompt));
  spec.min_new_tokens = any(0, 9) < 3 ? any(0, spec.max_new_tokens) : 0;
  for (int32_t i = any(0, 2); i > 0; --i) {
    spec.stop_token_ids.push_back(TokenId{any(0, limits.vocab_size - 1)});
  }
  spec.want_prompt_logprobs = Chance(shape_.prompt_logprobs);
  spec.arrival = now_;
  if (Chance(shape_.deadline)) spec.deadline = now_ + absl::Milliseconds(Uniform(0, 200));
  if (Chance(shape_.time_limit)) spec.time_limit = now_ + absl::Milliseconds(Uniform(0, 200));
  shadow.blocks = CeilDiv(shadow.max_tokens(), limits.block_tokens);
  scheduler_.Add(std::make_unique<Request>(spec));
  queue_.push_back(static_cast<int32_t>(shadows_.size()) - 1);
  ++live_;
  CheckAfterCall();
}

void Simulation::MaybeCancel() {
  if (shadows_.empty() || !Chance(shape_.cancel)) return;
  const int32_t recent = std::min<int32_t>(shadows_.size(), 2 * shape_.limits.max_waiting);
  const RequestId id{shadows_.size() - Uniform(0, recent - 1)};
  Shadow& shadow = ShadowOf(id);
  shadow.cancelled = true;
  const bool was_live = !shadow.finished;
  if (scheduler_.Finish(id, FinishReason::kCancelled, now_, &events_) != was_live) {
    Fail(absl::StrCat("cancel of request ", ToInt(id), " found it live: ", !was_live));
  }
  TakeEvents();
}

void Simulation::MaybeFail() {
  if (!Chance(shape_.failure)) return;
  if (Chance(0.5)) {
    scheduler_.FinishAll(FinishReason::kDrained, now_, &events_);
  } else {
    for (const int32_t index : held_) {
      shadows_[index].steps_in_flight = 0;
      shadows_[index].samples_in_flight = 0;
    }
    oldest_flight_ = (oldest_flight_ + scheduler_.steps_in_flight()) % flights_.size();
    scheduler_.AbandonSteps(now_, &events_);
  }
  TakeEvents();
  if (live_ != 0) Fail("requests survive the end of all");
}

bool Simulation::Plan() {
  const size_t newest = (oldest_flight_ + scheduler_.steps_in_flight()) % flights_.size();
  const StepPlan* const plan = scheduler_.PlanStep(now_, &events_);
  ReadEvents();
  if (plan == nullptr) {
    CheckNothingWasted(nullptr);
    CheckAfterCall();
    return false;
  }
  CheckPlan(*plan);
  Launch(*plan, &flights_[newest]);
  CheckNothingWasted(plan);
  CheckAfterCall();
  return true;
}

void Simulation::CheckPlan(const StepPlan& plan) {
  int32_t tokens = 0;
  size_t num_decodes = 0;
  for (const PlannedSequence& planned : plan.sequences) {
    const Shadow& shadow = ShadowOf(planned.sequence->request->id);
    const uint64_t id = ToInt(shadow.spec.id);
    if (shadow.finished) Fail(absl::StrCat("finished request ", id, " is planned"));
    if (planned.first_position != shadow.scheduled || planned.num_tokens < 1 ||
        planned.first_position + planned.num_tokens > shadow.ahead()) {
      Fail(absl::StrCat("request ", id, " is planned at ", planned.first_position, " for ",
                        planned.num_tokens, " tokens, known or drawn ", shadow.ahead()));
    }
    if (shadow.ahead() >= shadow.max_tokens()) {
      Fail(absl::StrCat("request ", id, " is planned beyond its last token"));
    }
    tokens += planned.num_tokens;
    if (shadow.decodes()) ++num_decodes;
  }
  if (tokens != plan.num_tokens || tokens > shape_.limits.step_token_budget) {
    Fail(absl::StrCat("a plan of ", tokens, " tokens says ", plan.num_tokens));
  }
  if (static_cast<int32_t>(plan.sequences.size()) > shape_.limits.max_running) {
    Fail("a plan with more sequences than slots");
  }
  CheckPlanOrder(plan, num_decodes);
}

void Simulation::CheckPlanOrder(const StepPlan& plan, size_t num_decodes) {
  size_t decodable = 0;
  for (const int32_t index : held_) {
    const Shadow& shadow = shadows_[index];
    decodable += shadow.decodes() && shadow.has_work();
  }
  if (num_decodes != decodable) {
    Fail(absl::StrCat(num_decodes, " sequences decode, ", decodable, " could"));
  }
  uint64_t previous = 0;
  bool previous_is_whole = true;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const PlannedSequence& planned = plan.sequences[i];
    const Shadow& shadow = ShadowOf(planned.sequence->request->id);
    if (i == num_decodes) previous = 0;
    if ((i < num_decodes) != shadow.decodes()) Fail("a prompt before a decode");
    if (ToInt(shadow.spec.id) <= previous) Fail("a plan against the order of arrival");
    if (!previous_is_whole) Fail("a chunk before the last place of the plan");
    previous = ToInt(shadow.spec.id);
    previous_is_whole = planned.first_position + planned.num_tokens == shadow.ahead();
  }
  if (!previous_is_whole && plan.num_tokens < FullStep()) {
    Fail("a chunk although budget is left");
  }
}

// Up to two tokens stay unused where they would cut a prompt into a single token.
int32_t Simulation::FullStep() const {
  return shape_.limits.step_token_budget - (shape_.limits.whole_chunks() ? 2 : 0);
}

void Simulation::CheckNothingWasted(const StepPlan* plan) {
  if (plan != nullptr && plan->num_tokens >= FullStep()) return;
  std::set<uint64_t> sampled;  // by this plan: they have no more for it
  if (plan != nullptr) {
    for (const PlannedSequence& planned : plan->sequences) {
      if (planned.sample) sampled.insert(ToInt(planned.sequence->request->id));
    }
  }
  for (const int32_t index : held_) {
    if (shadows_[index].has_work() && !sampled.contains(index + 1)) {
      Fail(absl::StrCat("budget left while request ", index + 1, " has tokens to run"));
    }
  }
  while (!queue_.empty() && shadows_[queue_.front()].finished) queue_.pop_front();
  if (queue_.empty() || static_cast<int32_t>(held_.size()) == shape_.limits.max_running) return;
  if (shadows_[queue_.front()].blocks <= shape_.limits.num_blocks - HeldBlocks()) {
    Fail(absl::StrCat("request ", queue_.front() + 1, " fits and waits"));
  }
}

int32_t Simulation::HeldBlocks() const {
  int32_t blocks = 0;
  for (const int32_t index : held_) blocks += shadows_[index].blocks;
  return blocks;
}

BlockId Simulation::BlockAt(const ForwardBatch& batch, size_t s, int32_t position) const {
  return batch.block_table[s * batch.block_table_stride + position / shape_.limits.block_tokens];
}

void Simulation::Launch(const StepPlan& plan, Flight* flight) {
  BuildBatch(plan, shape_.limits.block_tokens, &flight->batch);
  flight->requests.clear();
  flight->tokens.clear();
  flight->samples.clear();
  for (const PlannedSequence& planned : plan.sequences) {
    Shadow& shadow = ShadowOf(planned.sequence->request->id);
    const int32_t index = static_cast<int32_t>(ToInt(shadow.spec.id)) - 1;
    if (shadow.scheduled == 0) Admitted(index);
    const bool sample = planned.first_position + planned.num_tokens == shadow.ahead();
    if (planned.sample != sample) Fail("the last token known or drawn is sampled, no other");
    shadow.scheduled += planned.num_tokens;
    ++shadow.steps_in_flight;
    shadow.samples_in_flight += sample;
    flight->requests.push_back(index);
    flight->tokens.push_back(planned.num_tokens);
    flight->samples.push_back(sample);
  }
  WriteTokens(*flight, /*known=*/true);
}

void Simulation::Admitted(int32_t index) {
  while (!queue_.empty() && shadows_[queue_.front()].finished) queue_.pop_front();
  if (queue_.empty() || queue_.front() != index) {
    Fail(absl::StrCat("request ", index + 1, " overtakes"));
    return;
  }
  queue_.pop_front();
  held_.push_back(index);
}

// Plays the device's part: a step's tokens go to the cache, where the block table says. Those that
// the host knows as early as may be, at launch; the others when the step is collected, as late as
// may be.
void Simulation::WriteTokens(const Flight& flight, bool known) {
  const ForwardBatch& batch = flight.batch;
  const int32_t block_tokens = shape_.limits.block_tokens;
  for (size_t s = 0; s < flight.requests.size(); ++s) {
    const Shadow& shadow = shadows_[flight.requests[s]];
    for (int32_t row = batch.q_start[s]; row < batch.q_start[s + 1]; ++row) {
      const bool is_known = batch.token_ids[row] != kLastSampled;
      if (is_known != known) continue;
      const int32_t position = batch.positions[row];
      if (is_known != (position < shadow.known()) && known) {
        Fail(absl::StrCat("request ", flight.requests[s] + 1, " knows its token ", position));
      }
      const size_t block = static_cast<size_t>(ToInt(BlockAt(batch, s, position)));
      cache_[block * block_tokens + position % block_tokens] =
          known ? batch.token_ids[row] : shadow.drawn_on_device.back();
    }
  }
}

// A block freed and given away while the step was in flight would show here.
void Simulation::CheckReads(const Flight& flight) {
  const ForwardBatch& batch = flight.batch;
  const int32_t block_tokens = shape_.limits.block_tokens;
  for (size_t s = 0; s < flight.requests.size(); ++s) {
    const Shadow& shadow = shadows_[flight.requests[s]];
    for (int32_t position = 0; position < batch.kv_len[s]; ++position) {
      const size_t block = static_cast<size_t>(ToInt(BlockAt(batch, s, position)));
      const TokenId read = cache_[block * block_tokens + position % block_tokens];
      if (read != shadow.at(position)) {
        Fail(absl::StrCat("request ", flight.requests[s] + 1, " reads a foreign token at ",
                          position));
        return;
      }
    }
  }
}

SampledToken Simulation::Draw(const SampleRow& row) {
  SampledToken drawn;
  if (Chance(shape_.bad_row)) {
    drawn.token = kNoToken;
    ShadowOf(row.request->id).got_bad_row = true;
    return drawn;
  }
  if (row.kind == SampleRow::Kind::kScorePrompt) {
    drawn.token = row.context[row.position];
    return drawn;
  }
  drawn.token = DrawToken(row);
  return drawn;
}

// A function of request and position, as with a seeded sampler.
TokenId Simulation::DrawToken(const SampleRow& row) const {
  std::mt19937_64 random(ToInt(row.request->id) * 100003 + static_cast<uint64_t>(row.position));
  while (true) {
    const TokenId token{Uniform(0, shape_.limits.vocab_size - 1, &random)};
    if (!row.forbid_stop || !IsStop(*row.request, token)) return token;
  }
}

void Simulation::Collect() {
  const Flight& flight = flights_[oldest_flight_];
  oldest_flight_ = (oldest_flight_ + 1) % flights_.size();
  now_ += absl::Milliseconds(Uniform(1, 3));
  WriteTokens(flight, /*known=*/false);
  CheckReads(flight);
  rows_.clear();
  for (const SampleRow& row : flight.batch.samples) {
    Shadow& shadow = ShadowOf(row.request->id);
    rows_.push_back(Draw(row));
    if (row.kind != SampleRow::Kind::kSample) continue;
    const int32_t output = static_cast<int32_t>(shadow.drawn_on_device.size());
    if (row.position != shadow.num_prompt() + output || row.starts_request() != (output == 0)) {
      Fail("rows of a request do not follow on");
    }
    if (row.forbid_stop != (output < shadow.spec.min_new_tokens)) {
      Fail("forbid_stop is not generated < min_new_tokens");
    }
    shadow.drawn_on_device.push_back(rows_.back().token);
  }
  for (size_t s = 0; s < flight.requests.size(); ++s) {
    Shadow& shadow = shadows_[flight.requests[s]];
    shadow.computed += flight.tokens[s];
    shadow.samples_in_flight -= flight.samples[s];
    --shadow.steps_in_flight;
    if (shadow.finished) dropped_ += flight.tokens[s];
  }
  scheduler_.ApplyStep(rows_, now_, &events_);
  ++steps_;
  TakeEvents();
  TrackHead(/*step_applied=*/true);
}

void Simulation::TakeEvents() {
  ReadEvents();
  CheckAfterCall();
}

void Simulation::ReadEvents() {
  if (static_cast<int32_t>(events_.size()) > scheduler_.max_events()) {
    Fail("more events than max_events");
  }
  for (const TokenEvent& event : events_) {
    Shadow& shadow = ShadowOf(event.request);
    if (shadow.finished) {
      Fail(absl::StrCat("an event after the final one of request ", ToInt(event.request)));
    } else if (event.kind == TokenEvent::Kind::kFinished) {
      TakeFinal(event, &shadow);
    } else {
      TakeToken(event, &shadow);
    }
  }
  events_.clear();
  ForgetReleased();
}

void Simulation::TakeToken(const TokenEvent& event, Shadow* shadow) {
  const std::vector<TokenId>& prompt = shadow->spec.prompt;
  if (ToInt(event.token.token) < 0) Fail("a row without a token is handed on");
  if (event.kind == TokenEvent::Kind::kToken) {
    if (shadow->computed != shadow->known()) Fail("a token before its context was run");
    const size_t scores = shadow->spec.want_prompt_logprobs ? prompt.size() - 1 : 0;
    if (static_cast<size_t>(shadow->scored) != scores) Fail("a token before the prompt's scores");
    shadow->drawn.push_back(event.token.token);
    if (event.token.token != shadow->at(shadow->known() - 1))
      Fail("a token the device did not draw");
    return;
  }
  const size_t position = static_cast<size_t>(++shadow->scored);
  if (position >= prompt.size() || event.token.token != prompt[position]) {
    Fail(absl::StrCat("prompt score of request ", ToInt(event.request), " out of order"));
  }
}

void Simulation::TakeFinal(const TokenEvent& event, Shadow* shadow) {
  const Request& spec = shadow->spec;
  const int32_t generated = static_cast<int32_t>(shadow->drawn.size());
  const bool at_length = generated == spec.max_new_tokens;
  const bool at_stop =
      generated > spec.min_new_tokens && generated > 0 && IsStop(spec, shadow->drawn.back());
  bool is_true = true;
  switch (event.finish_reason) {
    case FinishReason::kLength:
      is_true = at_length && !at_stop;
      break;
    case FinishReason::kStopToken:
      is_true = at_stop;
      break;
    case FinishReason::kCancelled:
      is_true = shadow->cancelled;
      break;
    case FinishReason::kDeadline:
      is_true = spec.deadline <= now_;
      break;
    case FinishReason::kTimeLimit:
      is_true = spec.time_limit <= now_;
      break;
    case FinishReason::kDrained:
      is_true = shape_.failure > 0.0;
      break;
    case FinishReason::kError:
      is_true = shape_.failure > 0.0 || shadow->got_bad_row;
      break;
    case FinishReason::kNone:
      is_true = false;
      break;
  }
  const bool ends_itself = event.finish_reason == FinishReason::kLength ||
                           event.finish_reason == FinishReason::kStopToken;
  if (!is_true || (!ends_itself && (at_length || at_stop))) {
    Fail(absl::StrCat("request ", ToInt(spec.id), " finished for reason ",
                      static_cast<int>(event.finish_reason), " after ", generated, " tokens"));
  }
  if (event.timing.generated_tokens != generated ||
      event.timing.prompt_tokens != static_cast<int32_t>(spec.prompt.size()) ||
      event.timing.queue_wait_ms < 0 || event.timing.prefill_ms < 0 || event.timing.decode_ms < 0) {
    Fail(absl::StrCat("the bill of request ", ToInt(spec.id), " is wrong"));
  }
  shadow->finished = true;
  shadow->reason = event.finish_reason;
  --live_;
  ++finished_[static_cast<size_t>(event.finish_reason)];
}

void Simulation::ForgetReleased() {
  std::erase_if(held_, [this](int32_t index) {
    return shadows_[index].finished && shadows_[index].steps_in_flight == 0;
  });
}

void Simulation::TrackHead(bool step_applied) {
  while (!queue_.empty() && shadows_[queue_.front()].finished) queue_.pop_front();
  const int32_t head = queue_.empty() ? -1 : queue_.front();
  if (head != head_) {
    head_ = head;
    head_steps_left_ = 1;
    for (const int32_t index : held_) {
      head_steps_left_ += shadows_[index].max_tokens() - shadows_[index].computed;
    }
  } else if (head >= 0 && step_applied && --head_steps_left_ < 0) {
    Fail(absl::StrCat("request ", head + 1, " starves at the head of the queue"));
  }
}

void Simulation::CheckAfterCall() {
  const absl::Status status = scheduler_.CheckInvariants();
  if (!status.ok()) Fail(std::string(status.message()));
  const SchedulerStats stats = scheduler_.stats();
  if (scheduler_.num_live() != live_) Fail("the number of live requests is wrong");
  if (stats.blocks_used != HeldBlocks()) {
    Fail(absl::StrCat(stats.blocks_used, " blocks are used, ", HeldBlocks(), " are accounted for"));
  }
  const uint64_t dropped = stats.dropped_prefill_tokens + stats.dropped_decode_tokens;
  if (dropped != static_cast<uint64_t>(dropped_)) {
    Fail(absl::StrCat(dropped, " tokens were dropped, ", dropped_, " are accounted for"));
  }
  if (stats.requests_running != static_cast<int32_t>(held_.size())) {
    Fail(absl::StrCat(stats.requests_running, " run, ", held_.size(), " are accounted for"));
  }
}

}  // namespace fewbit
