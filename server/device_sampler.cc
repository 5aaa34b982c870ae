#include "server/device_sampler.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/time/clock.h"

namespace fewbit {

DeviceSampler::DeviceSampler(Opener open, const DeviceSamplerOptions& options)
    : options_(options), thread_([this, open = std::move(open)] { Run(open); }) {}

DeviceSampler::~DeviceSampler() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  wake_.NotifyOne();
  thread_.join();
}

std::optional<DeviceSample> DeviceSampler::Latest() const {
  MutexLock lock(&mu_);
  if (!latest_.has_value() || absl::Now() - latest_time_ > options_.stale) return std::nullopt;
  return latest_;
}

void DeviceSampler::Run(const Opener& open) {
  absl::StatusOr<std::unique_ptr<DeviceSensors>> sensors = open();
  if (!sensors.ok()) {
    spdlog::warn("no metrics of the GPU itself: {}", std::string(sensors.status().message()));
    return;
  }
  do {
    Look(sensors->get());
  } while (WaitForNext());
}

void DeviceSampler::Look(DeviceSensors* sensors) {
  DeviceSample sample;
  sample.identity = sensors->identity();
  sample.reading = sensors->Read();
  if (const std::optional<double> energy = sample.reading.energy_joules) {
    // A driver that was loaded anew counts from zero again.
    if (last_energy_.has_value()) energy_ += std::max(0.0, *energy - *last_energy_);
    last_energy_ = energy;
    sample.energy_joules = energy_;
  }
  MutexLock lock(&mu_);
  latest_ = std::move(sample);
  latest_time_ = absl::Now();
}

bool DeviceSampler::WaitForNext() {
  const absl::Time next = absl::Now() + options_.interval;
  MutexLock lock(&mu_);
  while (!stopping_ && absl::Now() < next) wake_.WaitUntil(&mu_, next);
  return !stopping_;
}

}  // namespace fewbit
