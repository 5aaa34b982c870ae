#include "server/device_meter.h"

#include <algorithm>
#include <chrono>

namespace fewbit {

DeviceMeter::DeviceMeter(double now) : start_(now) {}

double DeviceMeter::SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void DeviceMeter::AddStep(const StepReport& report, double now) {
  const double share =
      report.tokens > 0 ? static_cast<double>(report.prefill_tokens) / report.tokens : 0.0;
  MutexLock lock(&mu_);
  while (!checkpoints_.empty() && checkpoints_.front().time < now - kWindowSeconds) {
    checkpoints_.pop_front();
  }
  if (checkpoints_.empty() || now - checkpoints_.back().time >= kCheckpointSeconds) {
    checkpoints_.push_back(
        {now, total_.prefill + total_.decode, generated_.load(std::memory_order_relaxed)});
  }
  total_.prefill += report.seconds * share;
  total_.decode += report.seconds * (1.0 - share);
  // Seconds that went into dropped tokens are borne by the tokens that were not dropped.
  const int32_t decode_tokens = report.tokens - report.prefill_tokens;
  prefill_.Add(report.seconds * share, report.prefill_tokens - report.dropped_prefill_tokens);
  decode_.Add(report.seconds * (1.0 - share), decode_tokens - report.dropped_decode_tokens);
}

void DeviceMeter::Pool::Add(double more_seconds, int64_t more_tokens) {
  seconds += more_seconds;
  tokens += more_tokens;
}

double DeviceMeter::Pool::Take(int64_t some_tokens) {
  if (some_tokens <= 0 || tokens == 0) return 0.0;
  const int64_t taken = std::min(some_tokens, tokens);
  const double part = seconds * static_cast<double>(taken) / static_cast<double>(tokens);
  tokens -= taken;
  seconds = tokens == 0 ? 0.0 : seconds - part;
  return part;
}

double DeviceMeter::TakeShare(int64_t prefill_tokens, int64_t decode_tokens) {
  MutexLock lock(&mu_);
  return prefill_.Take(prefill_tokens) + decode_.Take(decode_tokens);
}

PhaseSeconds DeviceMeter::Phases(double until) {
  MutexLock lock(&mu_);
  total_.idle = std::max(total_.idle, until - start_ - total_.prefill - total_.decode);
  return total_;
}

// Between a checkpoint and the next one there are kCheckpointSeconds of steps and nothing else, so
// the oldest checkpoint inside the window says how things stood when the window began.
RecentUse DeviceMeter::Recent(double now) {
  MutexLock lock(&mu_);
  RecentUse recent;
  recent.seconds = std::min(kWindowSeconds, now - start_);
  const double begin = now - kWindowSeconds;
  const auto oldest = std::find_if(checkpoints_.begin(), checkpoints_.end(),
                                   [begin](const Checkpoint& c) { return c.time >= begin; });
  if (oldest == checkpoints_.end()) return recent;
  recent.busy_seconds = total_.prefill + total_.decode - oldest->busy_seconds;
  recent.generated_tokens = generated_.load(std::memory_order_relaxed) - oldest->generated_tokens;
  return recent;
}

}  // namespace fewbit
