// What the GPU says of itself: memory, load, power, energy, temperature. Read through NVML, which
// is opened at run time: a machine without NVIDIA's driver has none, and nothing links against it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace fewbit {

// One look at the sensors. What a GPU does not have, or does not tell (some of it under MIG), is
// left out.
struct DeviceReading {
  std::optional<double> memory_bytes, memory_used_bytes;
  std::optional<double> utilization, memory_utilization;  // 0 to 1
  std::optional<double> power_watts, power_limit_watts;
  std::optional<double> temperature_celsius;
  std::optional<double> sm_clock_hertz;
  std::optional<double> ecc_errors;     // uncorrected, since the driver was loaded
  std::optional<double> energy_joules;  // of the whole GPU, since some time in the past
  struct Throttled {
    bool power = false, thermal = false, hardware = false;
  };
  std::optional<Throttled> throttled;
};

// Who it is.
struct DeviceIdentity {
  std::string name, pci, driver;  // "NVIDIA H200", "0000:18:00.0", "580.95.05"
};

class DeviceSensors {
 public:
  virtual ~DeviceSensors() = default;
  virtual const DeviceIdentity& identity() const = 0;
  // May take milliseconds. A GPU that is lost gives an empty reading.
  virtual DeviceReading Read() = 0;
};

inline constexpr char kNvmlLibrary[] = "libnvidia-ml.so.1";

// The GPU at `pci_bus_id`, as CUDA names it. UNAVAILABLE says what is missing: the library, one of
// its functions, the driver or this GPU. May take a second, while the driver wakes up.
absl::StatusOr<std::unique_ptr<DeviceSensors>> OpenNvml(const std::string& pci_bus_id,
                                                        const std::string& library = kNvmlLibrary);

}  // namespace fewbit
