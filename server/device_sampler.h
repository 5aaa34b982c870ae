// Looks at the GPU's sensors once a second on a thread of its own, so that neither a scrape nor a
// start waits for the driver. Whoever asks gets the last look.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "scheduler/mutex.h"
#include "server/device_sensors.h"

namespace fewbit {

struct DeviceSamplerOptions {
  absl::Duration interval = absl::Seconds(1);  // between two looks
  absl::Duration stale = absl::Seconds(10);    // older samples are not shown: the driver hangs
};

struct DeviceSample {
  DeviceIdentity identity;
  DeviceReading reading;
  std::optional<double> energy_joules;  // since the first reading; never falls
};

// Thread-safe: mu_, never held while the sensors are read.
class DeviceSampler {
 public:
  using Opener = std::function<absl::StatusOr<std::unique_ptr<DeviceSensors>>()>;

  // `open` is called on the thread, once; if it fails, the log says so and there are no samples.
  explicit DeviceSampler(Opener open, const DeviceSamplerOptions& options = {});
  ~DeviceSampler();  // waits for a look that has begun

  // None: no sensors, not yet looked, or no look has ended of late.
  std::optional<DeviceSample> Latest() const;

 private:
  void Run(const Opener& open);
  void Look(DeviceSensors* sensors);
  bool WaitForNext();  // false: stop

  const DeviceSamplerOptions options_;
  mutable Mutex mu_;
  CondVar wake_;
  bool stopping_ FEWBIT_GUARDED_BY(mu_) = false;
  std::optional<DeviceSample> latest_ FEWBIT_GUARDED_BY(mu_);
  absl::Time latest_time_ FEWBIT_GUARDED_BY(mu_);
  std::optional<double> last_energy_;  // the thread's; as the sensors say it
  double energy_ = 0.0;                // the thread's; since the first reading
  std::thread thread_;
};

}  // namespace fewbit
