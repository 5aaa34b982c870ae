// DeviceSensors over NVML. The few functions and types are declared here after NVIDIA's API
// reference (their binary interface is stable), so that building needs no CUDA.
#include <dlfcn.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/device_sensors.h"

namespace fewbit {
namespace {

using Result = int;  // 0: success
using Device = void*;

struct Memory {
  unsigned long long total, free, used;  // bytes
};
struct Utilization {
  unsigned int gpu, memory;  // percent
};

constexpr int kTemperatureOfGpu = 0;
constexpr int kClockOfSm = 1;
constexpr int kUncorrected = 1;
constexpr int kSinceDriverLoad = 0;

// Bits of the reasons for a lower clock.
constexpr unsigned long long kSoftwarePowerCap = 0x4;
constexpr unsigned long long kHardwareSlowdown = 0x8;
constexpr unsigned long long kSoftwareThermal = 0x20;
constexpr unsigned long long kHardwareThermal = 0x40;
constexpr unsigned long long kPowerBrake = 0x80;

// The library, open, and its functions. What is not in it stays null.
struct Library {
  void* handle = nullptr;
  Result (*init)() = nullptr;
  Result (*shutdown)() = nullptr;
  const char* (*error_string)(Result) = nullptr;
  Result (*by_pci_bus_id)(const char*, Device*) = nullptr;
  Result (*name)(Device, char*, unsigned int) = nullptr;
  Result (*driver_version)(char*, unsigned int) = nullptr;
  Result (*memory)(Device, Memory*) = nullptr;
  Result (*utilization)(Device, Utilization*) = nullptr;
  Result (*power)(Device, unsigned int*) = nullptr;                       // mW
  Result (*power_limit)(Device, unsigned int*) = nullptr;                 // mW
  Result (*energy)(Device, unsigned long long*) = nullptr;                // mJ
  Result (*temperature)(Device, int, unsigned int*) = nullptr;            // degrees Celsius
  Result (*clock)(Device, int, unsigned int*) = nullptr;                  // MHz
  Result (*ecc_errors)(Device, int, int, unsigned long long*) = nullptr;  // count
  Result (*throttle_reasons)(Device, unsigned long long*) = nullptr;      // bits

  ~Library() {
    if (handle != nullptr) dlclose(handle);
  }
};

template <class Function>
void Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
}

void FindAll(Library* nvml) {
  void* const handle = nvml->handle;
  Find(handle, "nvmlInit_v2", &nvml->init);
  Find(handle, "nvmlShutdown", &nvml->shutdown);
  Find(handle, "nvmlErrorString", &nvml->error_string);
  Find(handle, "nvmlDeviceGetHandleByPciBusId_v2", &nvml->by_pci_bus_id);
  Find(handle, "nvmlDeviceGetName", &nvml->name);
  Find(handle, "nvmlSystemGetDriverVersion", &nvml->driver_version);
  Find(handle, "nvmlDeviceGetMemoryInfo", &nvml->memory);
  Find(handle, "nvmlDeviceGetUtilizationRates", &nvml->utilization);
  Find(handle, "nvmlDeviceGetPowerUsage", &nvml->power);
  Find(handle, "nvmlDeviceGetEnforcedPowerLimit", &nvml->power_limit);
  Find(handle, "nvmlDeviceGetTotalEnergyConsumption", &nvml->energy);
  Find(handle, "nvmlDeviceGetTemperature", &nvml->temperature);
  Find(handle, "nvmlDeviceGetClockInfo", &nvml->clock);
  Find(handle, "nvmlDeviceGetTotalEccErrors", &nvml->ecc_errors);
  Find(handle, "nvmlDeviceGetCurrentClocksThrottleReasons", &nvml->throttle_reasons);
}

// The value that `function` gives, times `scale`; none if it is missing or fails.
template <class Value, class Function, class... Arguments>
std::optional<double> Ask(double scale, Function function, Arguments... arguments) {
  Value value{};
  if (function == nullptr || function(arguments..., &value) != 0) return std::nullopt;
  return static_cast<double>(value) * scale;
}

class Nvml : public DeviceSensors {
 public:
  // `library` is initialized.
  Nvml(std::unique_ptr<Library> library, Device device, const std::string& pci_bus_id)
      : nvml_(std::move(library)), device_(device) {
    char text[96] = "";
    identity_.pci = pci_bus_id;
    const bool named = nvml_->name != nullptr && nvml_->name(device_, text, sizeof(text)) == 0;
    identity_.name = named ? text : "unknown";
    const bool versioned =
        nvml_->driver_version != nullptr && nvml_->driver_version(text, sizeof(text)) == 0;
    identity_.driver = versioned ? text : "unknown";
  }
  ~Nvml() override { nvml_->shutdown(); }

  const DeviceIdentity& identity() const override { return identity_; }

  DeviceReading Read() override {
    DeviceReading out;
    Memory memory{};
    if (nvml_->memory != nullptr && nvml_->memory(device_, &memory) == 0) {
      out.memory_bytes = static_cast<double>(memory.total);
      out.memory_used_bytes = static_cast<double>(memory.used);
    }
    Utilization use{};
    if (nvml_->utilization != nullptr && nvml_->utilization(device_, &use) == 0) {
      out.utilization = use.gpu / 100.0;
      out.memory_utilization = use.memory / 100.0;
    }
    out.power_watts = Ask<unsigned int>(1e-3, nvml_->power, device_);
    out.power_limit_watts = Ask<unsigned int>(1e-3, nvml_->power_limit, device_);
    out.energy_joules = Ask<unsigned long long>(1e-3, nvml_->energy, device_);
    out.temperature_celsius =
        Ask<unsigned int>(1.0, nvml_->temperature, device_, kTemperatureOfGpu);
    out.sm_clock_hertz = Ask<unsigned int>(1e6, nvml_->clock, device_, kClockOfSm);
    out.ecc_errors =
        Ask<unsigned long long>(1.0, nvml_->ecc_errors, device_, kUncorrected, kSinceDriverLoad);
    unsigned long long reasons = 0;
    if (nvml_->throttle_reasons != nullptr && nvml_->throttle_reasons(device_, &reasons) == 0) {
      out.throttled = {.power = (reasons & (kSoftwarePowerCap | kPowerBrake)) != 0,
                       .thermal = (reasons & (kSoftwareThermal | kHardwareThermal)) != 0,
                       .hardware = (reasons & kHardwareSlowdown) != 0};
    }
    return out;
  }

 private:
  const std::unique_ptr<Library> nvml_;
  const Device device_;
  DeviceIdentity identity_;
};

std::string Describe(const Library& nvml, Result result) {
  const char* const text = nvml.error_string != nullptr ? nvml.error_string(result) : nullptr;
  return text != nullptr ? text : absl::StrCat("NVML error ", result);
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSensors>> OpenNvml(const std::string& pci_bus_id,
                                                        const std::string& library) {
  auto nvml = std::make_unique<Library>();
  nvml->handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (nvml->handle == nullptr) {
    const char* const reason = dlerror();
    return absl::UnavailableError(reason != nullptr ? reason : "cannot open NVML");
  }
  FindAll(nvml.get());
  if (nvml->init == nullptr || nvml->shutdown == nullptr || nvml->by_pci_bus_id == nullptr) {
    return absl::UnavailableError(
        absl::StrCat(library, " lacks nvmlInit_v2, nvmlShutdown or nvmlDeviceGetHandleByPciBusId"));
  }
  Result result = nvml->init();
  if (result != 0) {
    return absl::UnavailableError(absl::StrCat("nvmlInit: ", Describe(*nvml, result)));
  }
  Device device = nullptr;
  result = nvml->by_pci_bus_id(pci_bus_id.c_str(), &device);
  if (result != 0) {
    absl::Status status = absl::UnavailableError(
        absl::StrCat("no GPU at PCI bus id ", pci_bus_id, ": ", Describe(*nvml, result)));
    nvml->shutdown();
    return status;
  }
  return std::make_unique<Nvml>(std::move(nvml), device, pci_bus_id);
}

}  // namespace fewbit
