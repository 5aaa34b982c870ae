// The mutable half of a request: three counters, the slot and the blocks it holds. A step hands out
// a token budget so that num_computed catches up with num_ahead(); "prefill" and "decode" are only
// names for how far behind it is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/time/time.h"
#include "scheduler/check.h"
#include "scheduler/ids.h"
#include "scheduler/request.h"
#include "scheduler/step.h"

namespace fewbit {

enum class SequenceState : uint8_t {
  kFree,     // an unused node of the scheduler
  kWaiting,  // holds its request and nothing else
  kRunning,  // holds a slot and all the blocks it can ever need
  kLeaving,  // its final event is out; holds everything until no step in flight names it
};

// Invariant: 0 <= num_computed <= num_scheduled <= num_ahead() <= prompt + max_new_tokens.
// Thread rule: engine thread only.
struct Sequence {
  std::unique_ptr<Request> request;
  SequenceState state = SequenceState::kFree;
  uint64_t arrival_number = 0;  // order of Scheduler::Add

  int32_t num_computed = 0;   // tokens whose keys and values are in the cache
  int32_t num_scheduled = 0;  // tokens handed to steps, those in flight included
  int32_t num_tokens = 0;     // tokens known: prompt and output
  int32_t num_drawn = 0;  // tokens behind those that steps in flight draw: the device knows them
                          // before the scheduler does

  TokenId* slot_tokens =
      nullptr;  // running: [max_context] of the slot, the first num_tokens are set
  BlockId* slot_blocks =
      nullptr;  // running: [blocks per sequence] of the slot, the first num_blocks are held
  int32_t slot = -1;
  int32_t num_blocks = 0;
  int32_t steps_in_flight = 0;

  absl::Time first_scheduled = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();

  Sequence* previous = nullptr;  // neighbours in the list of its state
  Sequence* next = nullptr;

  int32_t num_prompt() const { return static_cast<int32_t>(request->prompt.size()); }
  int32_t num_generated() const { return num_tokens - num_prompt(); }
  int32_t num_ahead() const { return num_tokens + num_drawn; }
  int32_t max_tokens() const { return num_prompt() + request->max_new_tokens; }
  absl::Time expiry() const { return std::min(request->deadline, request->time_limit); }

  // Every token known, prompt first. REQUIRES: running or leaving.
  std::span<const TokenId> tokens() const { return {slot_tokens, static_cast<size_t>(num_tokens)}; }
  std::span<const BlockId> blocks() const { return {slot_blocks, static_cast<size_t>(num_blocks)}; }
};

// Doubly linked through the nodes themselves: order kept, removal in O(1), no allocation. Engine
// thread only.
class SequenceList {
 public:
  Sequence* front() const { return front_; }
  bool empty() const { return front_ == nullptr; }
  int32_t size() const { return size_; }

  void PushBack(Sequence* sequence) {
    sequence->previous = back_;
    sequence->next = nullptr;
    (back_ != nullptr ? back_->next : front_) = sequence;
    back_ = sequence;
    ++size_;
  }

  // REQUIRES: `sequence` is in this list.
  void Remove(Sequence* sequence) {
    FEWBIT_CHECK_GT(size_, 0);
    (sequence->previous != nullptr ? sequence->previous->next : front_) = sequence->next;
    (sequence->next != nullptr ? sequence->next->previous : back_) = sequence->previous;
    sequence->previous = nullptr;
    sequence->next = nullptr;
    --size_;
  }

 private:
  Sequence* front_ = nullptr;
  Sequence* back_ = nullptr;
  int32_t size_ = 0;
};

}  // namespace fewbit
