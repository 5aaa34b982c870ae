// Decides, before a prompt is tokenized, whether a request may come in: a place for its call, a
// place in the batch or the queue, and room for its tokens. What it hands out is RAII. It knows
// nothing of the request itself; the engine has the last word on exact tokens.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "scheduler/mutex.h"
#include "server/metrics.h"

namespace fewbit {

// When a refused client should come again: requests leave one after the other at some rate, so the
// k-th client refused since the last one left is told to wait for k departures. One thread at a
// time.
class DrainRate {
 public:
  static constexpr absl::Duration kShortest = absl::Milliseconds(10);
  static constexpr absl::Duration kLongest = absl::Seconds(30);

  // The first request after an idle time has come: that time says nothing about the rate.
  void Begin(absl::Time now) { last_ = now; }
  void Departed(absl::Time now);
  absl::Duration NextDelay(absl::Time now);

 private:
  absl::Time last_ = absl::InfinitePast();
  absl::Duration mean_interval_ = absl::ZeroDuration();
  int departures_ = 0;  // counted up to the length of the moving average
  int refusals_ = 0;    // since the last departure
};

struct AdmissionLimits {
  int32_t max_requests = 0;        // running and waiting
  int32_t max_streams = 0;         // open calls; more than max_requests, since readers may be slow
  int64_t max_waiting_tokens = 0;  // prompt tokens in the queue
};

// Thread-safe: mu_. `engine_stats` is called on the caller's thread; `stats` outlives it.
class Admission {
 public:
  // A place, given back when destroyed. Movable; one thread at a time. The admission outlives it.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept
        : admission_(std::exchange(other.admission_, nullptr)), release_(other.release_) {}
    Ticket& operator=(Ticket&& other) noexcept {
      if (this != &other) {
        Release();
        admission_ = std::exchange(other.admission_, nullptr);
        release_ = other.release_;
      }
      return *this;
    }
    ~Ticket() { Release(); }
    void Release() {
      if (admission_ != nullptr) (std::exchange(admission_, nullptr)->*release_)();
    }

   private:
    friend class Admission;
    using ReleaseMethod = void (Admission::*)();
    Ticket(Admission* admission, ReleaseMethod release)
        : admission_(admission), release_(release) {}

    Admission* admission_ = nullptr;
    ReleaseMethod release_ = nullptr;
  };

  Admission(const AdmissionLimits& limits, std::function<EngineStats()> engine_stats,
            ServerStats* stats)
      : limits_(limits), engine_stats_(std::move(engine_stats)), stats_(stats) {}

  // For as long as the call is open. RESOURCE_EXHAUSTED names the limit.
  absl::StatusOr<Ticket> AdmitStream();

  // From before tokenizing to the final event. `min_prompt_tokens` is a lower bound.
  // RESOURCE_EXHAUSTED names the limit that is reached, with a retry delay; UNAVAILABLE: draining,
  // or the engine has failed.
  absl::StatusOr<Ticket> AdmitRequest(int64_t min_prompt_tokens);

  // Adds the delay to a refusal that the engine made.
  absl::Status WithDelay(absl::Status refusal);

  // From now on every request is refused. For good.
  void StartDraining();
  bool draining() const { return draining_.load(); }

  // REQUIRES: draining. Returns when no call is open, or at `deadline`.
  void WaitForStreams(absl::Time deadline);

 private:
  void ReleaseStream();
  void ReleaseRequest();

  const AdmissionLimits limits_;
  const std::function<EngineStats()> engine_stats_;
  ServerStats* const stats_;
  std::atomic<bool> draining_{false};
  Mutex mu_;
  CondVar stream_released_;  // signalled while draining
  int32_t requests_ FEWBIT_GUARDED_BY(mu_) = 0;
  DrainRate rate_ FEWBIT_GUARDED_BY(mu_);
};

}  // namespace fewbit
