// The numbered invariants of README.md as code.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "scheduler/scheduler.h"

namespace fewbit {
namespace {

absl::Status Broken(absl::string_view invariant, const Sequence& sequence) {
  const uint64_t id = sequence.request != nullptr ? ToInt(sequence.request->id) : 0;
  return absl::InternalError(
      absl::StrCat(invariant, ": request ", id, " computed ", sequence.num_computed, " scheduled ",
                   sequence.num_scheduled, " tokens ", sequence.num_tokens, " drawn ",
                   sequence.num_drawn, " slot ", sequence.slot, " blocks ", sequence.num_blocks,
                   " steps in flight ", sequence.steps_in_flight));
}

absl::Status Broken(absl::string_view invariant, int64_t is, int64_t should_be) {
  return absl::InternalError(absl::StrCat(invariant, ": is ", is, ", should be ", should_be));
}

}  // namespace

absl::Status Scheduler::CheckInvariants() const {
  absl::Status status = CheckLists();
  if (status.ok()) status = CheckHoldings();
  if (status.ok()) status = CheckPlans();
  return status;
}

absl::Status Scheduler::CheckSequence(const Sequence& s) const {
  const bool ordered = 0 <= s.num_computed && s.num_computed <= s.num_scheduled &&
                       s.num_scheduled <= s.num_ahead() && s.num_drawn >= 0 &&
                       s.num_ahead() <= s.max_tokens();
  if (!ordered) {
    return Broken("I1 computed <= scheduled <= tokens + drawn <= prompt + max_new_tokens", s);
  }
  if (s.state == SequenceState::kWaiting) {
    const bool bare = s.num_scheduled == 0 && s.slot < 0 && s.num_blocks == 0 &&
                      s.steps_in_flight == 0 && s.num_ahead() == s.num_prompt();
    return bare ? absl::OkStatus() : Broken("I2 a waiting request holds nothing", s);
  }
  if (s.num_blocks != BlocksNeeded(*s.request) || s.slot < 0 || s.slot >= limits_.max_running) {
    return Broken("I3 a running request holds a slot and all its blocks", s);
  }
  if (s.state == SequenceState::kLeaving && s.steps_in_flight == 0) {
    return Broken("I4 a leaving request is released with its last step", s);
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckLists() const {
  int64_t waiting_tokens = 0;
  size_t live = 0;
  const Sequence* older = nullptr;
  for (const SequenceList* list : {&running_, &waiting_}) {
    for (const Sequence* s = list->front(); s != nullptr; s = s->next) {
      const bool waits = s->state == SequenceState::kWaiting;
      if (waits != (list == &waiting_) || s->state == SequenceState::kFree) {
        return Broken("I5 every request is in the list of its state", *s);
      }
      if (older != nullptr && older->arrival_number >= s->arrival_number) {
        return Broken("I6 nobody overtakes: admission and lists keep the order of arrival", *s);
      }
      older = s;
      absl::Status status = CheckSequence(*s);
      if (!status.ok()) return status;
      if (waits) waiting_tokens += s->num_prompt();
      if (s->state == SequenceState::kLeaving) continue;
      ++live;
      const auto it = live_.find(ToInt(s->request->id));
      if (it == live_.end() || it->second != s) return Broken("I7 a live id leads to it", *s);
      if (s->expiry() < next_expiry_) return Broken("I8 nobody expires before next_expiry", *s);
    }
  }
  if (live != live_.size()) return Broken("I7 live ids", live_.size(), live);
  if (waiting_tokens != waiting_tokens_) {
    return Broken("I5 waiting tokens", waiting_tokens_, waiting_tokens);
  }
  const size_t held = static_cast<size_t>(running_.size()) + waiting_.size();
  if (held + free_nodes_.size() != nodes_.size()) {
    return Broken("I5 nodes in lists and free", held + free_nodes_.size(), nodes_.size());
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckHoldings() const {
  std::fill(seen_.begin(), seen_.end(), 0);
  int32_t blocks = 0;
  for (const Sequence* s = running_.front(); s != nullptr; s = s->next) {
    for (const BlockId block : s->blocks()) {
      const int32_t index = ToInt(block);
      if (index < 0 || index >= limits_.num_blocks || !blocks_.held(block) || seen_[index]) {
        return Broken(absl::StrCat("I9 block ", index, " is held exactly once"), *s);
      }
      seen_[index] = 1;
      ++blocks;
    }
  }
  if (blocks != blocks_.num_used()) return Broken("I9 blocks used", blocks_.num_used(), blocks);
  std::fill(seen_.begin(), seen_.end(), 0);
  for (const Sequence* s = running_.front(); s != nullptr; s = s->next) {
    if (seen_[s->slot]) return Broken("I10 a slot is held exactly once", *s);
    seen_[s->slot] = 1;
  }
  const int32_t slots = running_.size() + static_cast<int32_t>(free_slots_.size());
  if (slots != limits_.max_running) return Broken("I10 slots", slots, limits_.max_running);
  return absl::OkStatus();
}

absl::Status Scheduler::CheckPlans() const {
  for (const Sequence* s = running_.front(); s != nullptr; s = s->next) {
    in_flight_[s->slot] = {.steps = 0, .next_position = s->num_computed, .samples = 0};
  }
  for (int32_t age = 0; age < steps_in_flight_; ++age) {
    for (const PlannedSequence& planned : PlanInFlight(age).sequences) {
      const Sequence& s = *planned.sequence;
      if (s.slot < 0) return Broken("I4 a sequence in flight keeps what it holds", s);
      InFlight& expected = in_flight_[s.slot];
      if (planned.first_position != expected.next_position) {
        return Broken("I11 steps in flight follow on", s);
      }
      const int32_t num_prompt = s.num_prompt();
      if (limits_.whole_chunks() && planned.num_tokens == 1 && num_prompt > 1 &&
          planned.first_position < num_prompt) {
        return Broken("I14 a prompt's chunk of one token", s);
      }
      expected.next_position += planned.num_tokens;
      ++expected.steps;
      expected.samples += planned.sample ? 1 : 0;
    }
  }
  for (const Sequence* s = running_.front(); s != nullptr; s = s->next) {
    const InFlight& expected = in_flight_[s->slot];
    if (expected.steps != s->steps_in_flight || expected.next_position != s->num_scheduled) {
      return Broken("I11 scheduled minus computed is what is in flight", *s);
    }
    // Of a leaving request also those count that were drawn and dropped.
    if (s->state == SequenceState::kRunning && expected.samples != s->num_drawn) {
      return Broken("I13 drawn are the samples in flight", *s);
    }
  }
  for (int32_t age = 0; age < steps_in_flight_; ++age) {
    const int32_t tokens = PlanInFlight(age).num_tokens;
    if (tokens > limits_.step_token_budget) {
      return Broken("I12 tokens of a step", tokens, limits_.step_token_budget);
    }
  }
  return absl::OkStatus();
}

}  // namespace fewbit
