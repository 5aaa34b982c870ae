#include "server/admission.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/status_codec.h"

namespace fewbit {

void DrainRate::Departed(absl::Time now) {
  constexpr int kAveraged = 16;
  const absl::Duration interval = std::max(now - last_, absl::ZeroDuration());
  last_ = now;
  refusals_ = 0;
  departures_ = std::min(departures_ + 1, kAveraged);
  mean_interval_ += (interval - mean_interval_) / departures_;
}

absl::Duration DrainRate::NextDelay(absl::Time now) {
  constexpr absl::Duration kUnknown = absl::Seconds(1);
  ++refusals_;
  // A departure that is overdue tells more than those before it.
  const absl::Duration interval =
      departures_ == 0 ? kUnknown : std::max(mean_interval_, now - last_);
  return std::clamp(interval * refusals_, kShortest, kLongest);
}

absl::StatusOr<Admission::Ticket> Admission::AdmitStream() {
  const int64_t open = stats_->open_streams.fetch_add(1, std::memory_order_relaxed) + 1;
  Ticket ticket(this, &Admission::ReleaseStream);
  if (open <= limits_.max_streams) return ticket;
  return WithDelay(absl::ResourceExhaustedError(
      absl::StrCat(limits_.max_streams, " calls are open; the limit is ", limits_.max_streams)));
}

absl::StatusOr<Admission::Ticket> Admission::AdmitRequest(int64_t min_prompt_tokens) {
  if (draining()) return absl::UnavailableError("the server is shutting down");
  const EngineStats engine = engine_stats_();
  if (engine.failed) {
    return absl::UnavailableError("the engine has failed; the server needs a restart");
  }
  if (engine.waiting_tokens + min_prompt_tokens > limits_.max_waiting_tokens) {
    return WithDelay(absl::ResourceExhaustedError(absl::StrCat(
        "the queue holds ", engine.waiting_tokens, " prompt tokens and this prompt has at least ",
        min_prompt_tokens, "; the limit is ", limits_.max_waiting_tokens)));
  }
  {
    MutexLock lock(&mu_);
    if (requests_ < limits_.max_requests) {
      if (++requests_ == 1) rate_.Begin(absl::Now());
      return Ticket(this, &Admission::ReleaseRequest);
    }
  }
  return WithDelay(absl::ResourceExhaustedError(
      absl::StrCat(limits_.max_requests, " requests are running or waiting; the limit is ",
                   limits_.max_requests)));
}

absl::Status Admission::WithDelay(absl::Status refusal) {
  MutexLock lock(&mu_);
  return WithRetryDelay(std::move(refusal), rate_.NextDelay(absl::Now()));
}

void Admission::StartDraining() { draining_.store(true); }

void Admission::WaitForStreams(absl::Time deadline) {
  MutexLock lock(&mu_);
  while (stats_->open_streams.load() > 0) {
    if (!stream_released_.WaitUntil(&mu_, deadline)) return;
  }
}

void Admission::ReleaseStream() {
  stats_->open_streams.fetch_sub(1);
  if (!draining()) return;
  MutexLock lock(&mu_);  // a waiter has either not looked yet or is asleep
  stream_released_.NotifyAll();
}

void Admission::ReleaseRequest() {
  MutexLock lock(&mu_);
  --requests_;
  rate_.Departed(absl::Now());
}

}  // namespace fewbit
