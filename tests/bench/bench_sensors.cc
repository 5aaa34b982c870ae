// bench_sensors: what the GPU says of itself through NVML, and how long a look at its sensors
// takes. Usage: bench_sensors PCI_BUS_ID [looks, default 100]
//   bench_sensors "$(nvidia-smi --query-gpu=pci.bus_id --format=csv,noheader | head -1)"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "server/device_sensors.h"

namespace fewbit {
namespace {

double Milliseconds() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Print(const char* name, const std::optional<double>& value) {
  if (value.has_value()) {
    std::printf("%-24s %.6g\n", name, *value);
  } else {
    std::printf("%-24s not told\n", name);
  }
}

void PrintReading(const DeviceReading& reading) {
  Print("memory, bytes", reading.memory_bytes);
  Print("memory in use, bytes", reading.memory_used_bytes);
  Print("utilization", reading.utilization);
  Print("memory utilization", reading.memory_utilization);
  Print("power, watts", reading.power_watts);
  Print("power limit, watts", reading.power_limit_watts);
  Print("temperature, Celsius", reading.temperature_celsius);
  Print("SM clock, hertz", reading.sm_clock_hertz);
  Print("uncorrected ECC errors", reading.ecc_errors);
  Print("energy, joules", reading.energy_joules);
  if (reading.throttled.has_value()) {
    std::printf("%-24s power %d thermal %d hardware %d\n", "slowed down", reading.throttled->power,
                reading.throttled->thermal, reading.throttled->hardware);
  } else {
    std::printf("%-24s not told\n", "slowed down");
  }
}

int Main(const std::string& pci_bus_id, int looks) {
  const double begin = Milliseconds();
  const auto sensors = OpenNvml(pci_bus_id);
  if (!sensors.ok()) {
    std::fprintf(stderr, "bench_sensors: %s\n", std::string(sensors.status().message()).c_str());
    return 1;
  }
  std::printf("%s at %s, driver %s; opened in %.1f ms\n", (*sensors)->identity().name.c_str(),
              (*sensors)->identity().pci.c_str(), (*sensors)->identity().driver.c_str(),
              Milliseconds() - begin);
  PrintReading((*sensors)->Read());
  std::vector<double> times;
  for (int i = 0; i < looks; ++i) {
    const double start = Milliseconds();
    (*sensors)->Read();
    times.push_back(Milliseconds() - start);
  }
  std::sort(times.begin(), times.end());
  std::printf("a look: median %.3f ms, p99 %.3f ms, longest %.3f ms (%d looks)\n",
              times[times.size() / 2], times[times.size() * 99 / 100], times.back(), looks);
  return 0;
}

}  // namespace
}  // namespace fewbit

int main(int argc, char** argv) {
  const int looks = argc > 2 ? std::atoi(argv[2]) : 100;
  if (argc < 2 || looks <= 0) {
    std::fprintf(stderr, "usage: bench_sensors PCI_BUS_ID [looks]\n");
    return 1;
  }
  return fewbit::Main(argv[1], looks);
}
