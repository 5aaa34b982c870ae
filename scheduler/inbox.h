// Hand-off 1 of a request's line: any thread puts requests and cancellations in, the engine thread
// takes all of them at once. It enforces the limits of what may wait, in the inbox and in the
// scheduler's queue together, and it knows which ids are live, so that pending cancellations are
// bounded by live requests and an id cannot be used twice at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "scheduler/mutex.h"
#include "scheduler/request.h"
#include "scheduler/step.h"

namespace fewbit {

struct InboxLimits {
  int32_t max_waiting = 256;             // requests
  int64_t max_waiting_tokens = 1 << 20;  // prompt tokens of the waiting requests
  int32_t max_running = 64;              // requests beyond the waiting ones whose ids are live
};

// What Take hands over. Its buffers trade places with the inbox's, so nothing is allocated once
// both have grown.
struct InboxContents {
  std::vector<std::unique_ptr<Request>> requests;  // in order of arrival
  std::vector<RequestId> cancelled;                // may name requests of the same batch
  absl::Time drain_deadline = absl::InfiniteFuture();
  bool draining = false;
};

// Submit, Cancel, Drain and the readers: thread-safe (mu_). Take, Wait, Settle and Close: engine
// thread only.
class Inbox {
 public:
  explicit Inbox(const InboxLimits& limits);
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  // RESOURCE_EXHAUSTED names the limit, what is used of it and what was asked for; UNAVAILABLE says
  // draining, or what Close said; INVALID_ARGUMENT: the id is live, or the prompt alone is over
  // max_waiting_tokens.
  absl::Status Submit(std::unique_ptr<Request> request, absl::Time now);

  // Remembers the id for the next Take; a no-op for one that is not live.
  void Cancel(RequestId id, absl::Time now);

  // From now on Submit is refused. The earliest deadline of all calls counts.
  void Drain(absl::Time deadline, absl::Time now);

  // Refuses every later Submit with `reason`.
  void Close(absl::Status reason);

  // Empties the inbox into `contents`, whose own vectors must be empty. Takes no lock when there is
  // no news.
  void Take(InboxContents* contents);

  // Blocks until there is something to take.
  void Wait();

  // Reports what became of taken requests: the finished ones among `events` are no longer live, and
  // so many requests with so many prompt tokens still wait in the scheduler. Takes no lock when
  // nothing changed.
  void Settle(std::span<const TokenEvent> events, int32_t queued, int64_t queued_tokens);

  struct Counts {
    int32_t waiting = 0;  // in the inbox and in the scheduler's queue
    int64_t waiting_tokens = 0;
    // Until when the engine thread was last seen asleep with no news for it; InfiniteFuture: it is
    // now.
    absl::Time idle_until = absl::InfinitePast();
  };
  Counts counts() const;

 private:
  absl::Status CheckRoom(int64_t prompt_tokens) const FEWBIT_REQUIRES(mu_);
  void Announce(absl::Time now) FEWBIT_REQUIRES(mu_);

  const InboxLimits limits_;
  mutable Mutex mu_;
  CondVar news_arrived_;
  std::atomic<bool> has_news_{false};  // written under mu_; read without it by Take
  InboxContents pending_ FEWBIT_GUARDED_BY(mu_);
  int64_t pending_tokens_ FEWBIT_GUARDED_BY(mu_) = 0;
  int32_t queued_ FEWBIT_GUARDED_BY(mu_) = 0;  // taken, not yet admitted or finished
  int64_t queued_tokens_ FEWBIT_GUARDED_BY(mu_) = 0;
  absl::Status closed_ FEWBIT_GUARDED_BY(mu_);
  bool sleeping_ FEWBIT_GUARDED_BY(mu_) = false;
  absl::Time idle_until_ FEWBIT_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::flat_hash_map<uint64_t, bool> live_ FEWBIT_GUARDED_BY(mu_);  // id -> cancelled
  // Copies of queued_ and queued_tokens_ that the engine thread compares without the lock.
  int32_t reported_queued_ = 0;
  int64_t reported_queued_tokens_ = 0;
};

}  // namespace fewbit
