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
