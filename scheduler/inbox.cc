#include "scheduler/inbox.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "scheduler/check.h"

namespace fewbit {

Inbox::Inbox(const InboxLimits& limits) : limits_(limits) {
  MutexLock lock(&mu_);
  const size_t max_live = static_cast<size_t>(limits.max_waiting) + limits.max_running;
  pending_.requests.reserve(limits.max_waiting);
  pending_.cancelled.reserve(max_live);
  live_.reserve(2 * max_live + 64);
}

absl::Status Inbox::CheckRoom(int64_t prompt_tokens) const {
  const int64_t waiting = static_cast<int64_t>(pending_.requests.size()) + queued_;
  if (waiting >= limits_.max_waiting) {
    return absl::ResourceExhaustedError(absl::StrCat("request queue is full: ", waiting,
                                                     " requests wait, max_waiting is ",
                                                     limits_.max_waiting));
  }
  const int64_t waiting_tokens = pending_tokens_ + queued_tokens_;
  if (waiting_tokens + prompt_tokens > limits_.max_waiting_tokens) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "token queue is full: ", waiting_tokens, " prompt tokens wait, this request has ",
        prompt_tokens, ", max_waiting_tokens is ", limits_.max_waiting_tokens));
  }
  return absl::OkStatus();
}

absl::Status Inbox::Submit(std::unique_ptr<Request> request, absl::Time now) {
  const int64_t prompt_tokens = static_cast<int64_t>(request->prompt.size());
  MutexLock lock(&mu_);
  if (!closed_.ok()) return closed_;
  if (pending_.draining) {
    return absl::UnavailableError("the engine is draining and takes no new requests");
  }
  if (prompt_tokens > limits_.max_waiting_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt of ", prompt_tokens,
                     " tokens is over max_waiting_tokens = ", limits_.max_waiting_tokens));
  }
  absl::Status room = CheckRoom(prompt_tokens);
  if (!room.ok()) return room;
  if (!live_.emplace(ToInt(request->id), false).second) {
    return absl::InvalidArgumentError(
        absl::StrCat("request id ", ToInt(request->id), " is live already"));
  }
  pending_tokens_ += prompt_tokens;
  pending_.requests.push_back(std::move(request));
  Announce(now);
  return absl::OkStatus();
}

void Inbox::Cancel(RequestId id, absl::Time now) {
  MutexLock lock(&mu_);
  const auto it = live_.find(ToInt(id));
  if (it == live_.end() || it->second) return;
  it->second = true;
  pending_.cancelled.push_back(id);
  Announce(now);
}

void Inbox::Drain(absl::Time deadline, absl::Time now) {
  MutexLock lock(&mu_);
  pending_.draining = true;
  pending_.drain_deadline = std::min(pending_.drain_deadline, deadline);
  Announce(now);
}

void Inbox::Close(absl::Status reason) {
  FEWBIT_CHECK(!reason.ok());
  MutexLock lock(&mu_);
  closed_ = std::move(reason);
}

void Inbox::Announce(absl::Time now) {
  if (sleeping_ && !has_news_.load(std::memory_order_relaxed)) {
    idle_until_ = now;
    news_arrived_.NotifyOne();
  }
  has_news_.store(true, std::memory_order_release);
}

void Inbox::Take(InboxContents* contents) {
  FEWBIT_CHECK(contents->requests.empty() && contents->cancelled.empty());
  if (!has_news_.load(std::memory_order_acquire)) return;
  MutexLock lock(&mu_);
  has_news_.store(false, std::memory_order_relaxed);
  contents->requests.swap(pending_.requests);
  contents->cancelled.swap(pending_.cancelled);
  contents->draining = pending_.draining;
  contents->drain_deadline = pending_.drain_deadline;
  queued_ += static_cast<int32_t>(contents->requests.size());
  queued_tokens_ += pending_tokens_;
  pending_tokens_ = 0;
  reported_queued_ = queued_;
  reported_queued_tokens_ = queued_tokens_;
}

void Inbox::Wait() {
  MutexLock lock(&mu_);
  sleeping_ = true;
  while (!has_news_.load(std::memory_order_relaxed)) news_arrived_.Wait(&mu_);
  sleeping_ = false;
}

void Inbox::Settle(std::span<const TokenEvent> events, int32_t queued, int64_t queued_tokens) {
  const auto is_final = [](const TokenEvent& event) {
    return event.kind == TokenEvent::Kind::kFinished;
  };
  const bool same_queue = queued == reported_queued_ && queued_tokens == reported_queued_tokens_;
  if (same_queue && std::none_of(events.begin(), events.end(), is_final)) return;
  MutexLock lock(&mu_);
  for (const TokenEvent& event : events) {
    if (is_final(event)) live_.erase(ToInt(event.request));
  }
  queued_ = reported_queued_ = queued;
  queued_tokens_ = reported_queued_tokens_ = queued_tokens;
}

Inbox::Counts Inbox::counts() const {
  MutexLock lock(&mu_);
  Counts counts;
  counts.waiting = static_cast<int32_t>(pending_.requests.size()) + queued_;
  counts.waiting_tokens = pending_tokens_ + queued_tokens_;
  const bool idle = sleeping_ && !has_news_.load(std::memory_order_relaxed);
  counts.idle_until = idle ? absl::InfiniteFuture() : idle_until_;
  return counts;
}

}  // namespace fewbit
