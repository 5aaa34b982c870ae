#include "tests/server/fake_nvml.h"

#include <cstdio>
#include <cstring>

namespace fewbit::testing {

FakeGpu& TheFakeGpu() {
  static FakeGpu gpu;
  return gpu;
}

namespace {

constexpr int kSuccess = 0;
constexpr int kNotSupported = 3;
constexpr int kNotFound = 6;

template <class Value, class Source>
int Say(Value* value, const Source& source) {
  if (TheFakeGpu().only_memory) return kNotSupported;
  *value = static_cast<Value>(source);
  return kSuccess;
}

}  // namespace

// The binary interface of NVML, as far as the server calls it.
extern "C" {

int nvmlInit_v2() {
  const int result = TheFakeGpu().init_result;
  if (result == kSuccess) ++TheFakeGpu().open;
  return result;
}
int nvmlShutdown() {
  --TheFakeGpu().open;
  return kSuccess;
}
const char* nvmlErrorString(int result) {
  return result == kNotFound ? "Not Found" : "Driver Not Loaded";
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** device) {
  *device = &TheFakeGpu();
  return std::strcmp(id, kFakePciBusId) == 0 ? kSuccess : kNotFound;
}
int nvmlDeviceGetName(void*, char* text, unsigned size) {
  std::snprintf(text, size, "Imaginary GPU");
  return kSuccess;
}
int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  std::snprintf(text, size, "1.2.3");
  return kSuccess;
}
int nvmlDeviceGetMemoryInfo(void*, unsigned long long* memory) {
  FakeGpu& gpu = TheFakeGpu();
  ++gpu.waiting;
  gpu.hang.wait(true);
  --gpu.waiting;
  memory[0] = kFakeMemory;
  memory[1] = kFakeMemory - gpu.memory_used;
  memory[2] = gpu.memory_used;
  return kSuccess;
}
int nvmlDeviceGetUtilizationRates(void*, unsigned* use) {
  const unsigned percent = TheFakeGpu().utilization;
  const int result = Say(&use[0], percent);
  return result == kSuccess ? Say(&use[1], percent / 2) : result;
}
int nvmlDeviceGetPowerUsage(void*, unsigned* value) {
  return Say(value, TheFakeGpu().power.load());
}
int nvmlDeviceGetEnforcedPowerLimit(void*, unsigned* value) { return Say(value, kFakePowerLimit); }
int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* value) {
  return Say(value, TheFakeGpu().energy.load());
}
int nvmlDeviceGetTemperature(void*, int sensor, unsigned* value) {
  return sensor == 0 ? Say(value, TheFakeGpu().temperature.load()) : kNotFound;
}
int nvmlDeviceGetClockInfo(void*, int clock, unsigned* value) {
  return clock == 1 ? Say(value, TheFakeGpu().clock.load()) : kNotFound;
}
int nvmlDeviceGetTotalEccErrors(void*, int kind, int since, unsigned long long* value) {
  return kind == 1 && since == 0 ? Say(value, TheFakeGpu().ecc_errors.load()) : kNotFound;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void*, unsigned long long* value) {
  return Say(value, TheFakeGpu().throttle_reasons.load());
}

}  // extern "C"

}  // namespace fewbit::testing
