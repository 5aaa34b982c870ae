#include "server/readiness.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "scheduler/check.h"

namespace fewbit {

Readiness::Readiness(std::function<EngineStats()> engine_stats, absl::Duration stall_limit)
    : engine_stats_(std::move(engine_stats)), stall_limit_(stall_limit) {}

void Readiness::Start(std::vector<grpc::HealthCheckServiceInterface*> health) {
  FEWBIT_CHECK(health_.empty() && !health.empty());
  health_ = std::move(health);
  for (grpc::HealthCheckServiceInterface* service : health_) {
    service->SetServingStatus("", true);
    service->SetServingStatus(kGenerationServiceName, true);
  }
  thread_ = std::thread([this] { Run(); });
}

Readiness::~Readiness() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  wake_.NotifyOne();
  if (thread_.joinable()) thread_.join();
}

void Readiness::StartDraining() {
  MutexLock lock(&mu_);
  draining_ = true;
  Publish(live_, false);
}

void Readiness::Look() {
  {
    MutexLock lock(&mu_);
    look_ = true;
  }
  wake_.NotifyOne();
}

void Readiness::Publish(bool live, bool ready) {
  for (grpc::HealthCheckServiceInterface* service : health_) {
    if (live != live_) service->SetServingStatus("", live);
    if (ready != ready_) service->SetServingStatus(kGenerationServiceName, ready);
  }
  live_ = live;
  ready_ = ready;
}

void Readiness::Run() {
  while (true) {
    const EngineStats stats = engine_stats_();
    const absl::Time now = absl::Now();
    const bool idle = stats.requests_running == 0 && stats.requests_waiting == 0;
    const absl::Time progress = idle ? now : absl::FromUnixNanos(stats.last_progress_unix_ns);
    const bool stalled = now - progress > stall_limit_;
    const bool live = !stats.failed && !stalled;

    MutexLock lock(&mu_);
    if (live != live_) {
      if (live) {
        spdlog::info("the engine makes progress again");
      } else if (stats.failed) {
        spdlog::error("the engine has failed: not serving");
      } else {
        spdlog::error("no step has ended for {:.1f} s: not serving",
                      absl::ToDoubleSeconds(now - progress));
      }
    }
    Publish(live, live && !draining_);
    // Next when the present step would be too long; once stalled, soon, to notice the end of it.
    const absl::Time next = stalled ? now + std::min(stall_limit_, absl::Seconds(1))
                                    : progress + stall_limit_ + absl::Milliseconds(1);
    while (!stopping_ && !look_) {
      if (!wake_.WaitUntil(&mu_, next)) break;
    }
    if (stopping_) return;
    look_ = false;
  }
}

}  // namespace fewbit
