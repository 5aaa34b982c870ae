// fake-gpu-server: a server whose device is imaginary. Tokens come from the fake executor, at the
// pace of --step_ms; the GPU's sensors follow the load. For tests of what shows a GPU (dashboards)
// on a machine without one. Says its ports as fewbit-server does, ends with its standard input.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "tests/server/fake_nvml.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

constexpr double kIdleWatts = 75.0;
constexpr double kBusyWatts = 610.0;

// Watts, degrees and megahertz of a GPU that was busy for this share of the last `seconds`.
void Show(double busy, double seconds, FakeGpu* gpu) {
  const double watts = kIdleWatts + (kBusyWatts - kIdleWatts) * busy;
  gpu->utilization = static_cast<unsigned>(100.0 * busy);
  gpu->power = static_cast<unsigned>(1e3 * watts);
  gpu->energy += static_cast<unsigned long long>(1e3 * watts * seconds);
  gpu->temperature = static_cast<unsigned>(34.0 + 40.0 * busy);
  gpu->clock = busy > 0.05 ? 1980 : 345;
  gpu->throttle_reasons = busy > 0.95 ? 0x4 : 0x1;  // at the power limit; idle
}

int Main(int step_ms) {
  FakeGpu& gpu = TheFakeGpu();
  gpu.memory_used = 61ull << 30;
  Show(0.0, 0.0, &gpu);
  HarnessOptions options;
  options.metrics = true;
  options.pci_bus_id = kFakePciBusId;
  options.step_time = absl::Milliseconds(step_ms);
  options.config.max_running = 8;
  options.config.max_waiting = 16;
  options.config.gpu_hour_usd = 3.2;
  options.config.slo_ttft_ms = 200;
  options.config.slo_tpot_ms = 50;
  Harness harness(options);
  std::printf("gRPC on 127.0.0.1:%d\nmetrics on http://127.0.0.1:%d/metrics\n",
              harness.server().port(), harness.server().metrics_port());
  std::fflush(stdout);

  double busy_before = 0.0, time_before = DeviceMeter::SteadySeconds();
  pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  while (poll(&input, 1, /*timeout=*/200) == 0) {
    const double busy = harness.server().engine_stats().busy_seconds;
    const double now = DeviceMeter::SteadySeconds();
    Show(std::clamp((busy - busy_before) / (now - time_before), 0.0, 1.0), now - time_before, &gpu);
    busy_before = busy;
    time_before = now;
  }
  return 0;
}

}  // namespace
}  // namespace fewbit::testing

int main(int argc, char** argv) {
  return fewbit::testing::Main(argc > 1 ? std::atoi(argv[1]) : 10);
}
