// The GPU's sensors through a libnvidia-ml.so.1 that this program brings along, from the library's
// functions to /metrics.
#include "server/device_sensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "server/device_sampler.h"
#include "tests/server/fake_nvml.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class DeviceSensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    gpu_.utilization = 64;
    gpu_.power = 431'500;
    gpu_.temperature = 61;
    gpu_.clock = 1980;
    gpu_.energy = 5'000'000;
    gpu_.memory_used = 20ull << 30;
    gpu_.ecc_errors = 2;
    gpu_.throttle_reasons = 0x40;
  }
  void TearDown() override {
    gpu_.init_result = 0;
    gpu_.only_memory = false;
    EXPECT_EQ(gpu_.open, 0) << "NVML is shut down as often as it was opened";
  }
  static DeviceSampler::Opener Opener() {
    return [] { return OpenNvml(kFakePciBusId); };
  }

  FakeGpu& gpu_ = TheFakeGpu();
};

TEST_F(DeviceSensorsTest, ReadsInSiUnits) {
  const auto nvml = OpenNvml(kFakePciBusId);
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  EXPECT_EQ((*nvml)->identity().name, "Imaginary GPU");
  EXPECT_EQ((*nvml)->identity().driver, "1.2.3");
  EXPECT_EQ((*nvml)->identity().pci, kFakePciBusId);
  const DeviceReading reading = (*nvml)->Read();
  EXPECT_EQ(reading.memory_bytes, static_cast<double>(kFakeMemory));
  EXPECT_EQ(reading.memory_used_bytes, static_cast<double>(20ull << 30));
  EXPECT_EQ(reading.utilization, 0.64);
  EXPECT_EQ(reading.memory_utilization, 0.32);
  EXPECT_EQ(reading.power_watts, 431.5);
  EXPECT_EQ(reading.power_limit_watts, 700.0);
  EXPECT_EQ(reading.energy_joules, 5000.0);
  EXPECT_EQ(reading.temperature_celsius, 61.0);
  EXPECT_EQ(reading.sm_clock_hertz, 1.98e9);
  EXPECT_EQ(reading.ecc_errors, 2.0);
}

TEST_F(DeviceSensorsTest, TellsWhySlow) {
  const auto nvml = OpenNvml(kFakePciBusId);
  ASSERT_TRUE(nvml.ok());
  const struct {
    unsigned long long reasons;
    bool power, thermal, hardware;
  } cases[] = {{0x1, false, false, false}, {0x4, true, false, false},  {0x80, true, false, false},
               {0x20, false, true, false}, {0x40, false, true, false}, {0x8, false, false, true},
               {0x6C, true, true, true}};
  for (const auto& row : cases) {
    gpu_.throttle_reasons = row.reasons;
    const auto throttled = (*nvml)->Read().throttled;
    ASSERT_TRUE(throttled.has_value());
    EXPECT_EQ(throttled->power, row.power) << row.reasons;
    EXPECT_EQ(throttled->thermal, row.thermal) << row.reasons;
    EXPECT_EQ(throttled->hardware, row.hardware) << row.reasons;
  }
}

TEST_F(DeviceSensorsTest, WhatTheGpuDoesNotTellIsLeftOut) {
  gpu_.only_memory = true;
  const auto nvml = OpenNvml(kFakePciBusId);
  ASSERT_TRUE(nvml.ok());
  const DeviceReading reading = (*nvml)->Read();
  EXPECT_TRUE(reading.memory_bytes.has_value());
  for (const std::optional<double>& value :
       {reading.utilization, reading.memory_utilization, reading.power_watts,
        reading.power_limit_watts, reading.energy_joules, reading.temperature_celsius,
        reading.sm_clock_hertz, reading.ecc_errors}) {
    EXPECT_FALSE(value.has_value());
  }
  EXPECT_FALSE(reading.throttled.has_value());
}

TEST_F(DeviceSensorsTest, SaysWhatIsMissing) {
  const auto message = [](const std::string& id, const std::string& library) {
    const absl::Status status = OpenNvml(id, library).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    return std::string(status.message());
  };
  EXPECT_THAT(message(kFakePciBusId, "libno-such-thing.so.1"), HasSubstr("libno-such-thing.so.1"));
  EXPECT_THAT(message(kFakePciBusId, "libm.so.6"), HasSubstr("lacks nvmlInit_v2"));
  EXPECT_THAT(message("0000:FF:00.0", kNvmlLibrary),
              HasSubstr("no GPU at PCI bus id 0000:FF:00.0: Not Found"));
  gpu_.init_result = 9;
  EXPECT_THAT(message(kFakePciBusId, kNvmlLibrary), HasSubstr("nvmlInit: Driver Not Loaded"));
}

TEST_F(DeviceSensorsTest, EnergyCountsFromTheStartAndNeverFalls) {
  DeviceSampler sampler(Opener(), {.interval = absl::Milliseconds(1)});
  const auto energy = [&] {
    const auto sample = sampler.Latest();
    return sample.has_value() ? sample->energy_joules.value_or(-1) : -1;
  };
  WaitFor([&] { return energy() == 0.0; }, "the first look");
  gpu_.energy = 5'250'000;
  WaitFor([&] { return energy() == 250.0; }, "a quarter of a kilojoule");
  gpu_.energy = 1'000;  // the driver was loaded anew
  WaitFor([&] { return sampler.Latest()->reading.energy_joules == 1.0; }, "the new count");
  EXPECT_EQ(energy(), 250.0);
  gpu_.energy = 3'000;
  WaitFor([&] { return energy() == 252.0; }, "two more joules");
}

TEST_F(DeviceSensorsTest, WithoutSensorsThereAreNoSamples) {
  DeviceSampler sampler([] { return OpenNvml(kFakePciBusId, "libno-such-thing.so.1"); });
  EXPECT_FALSE(sampler.Latest().has_value());
}

TEST_F(DeviceSensorsTest, ADriverThatHangsHoldsUpNobodyAndItsSampleGoesStale) {
  DeviceSampler sampler(Opener(),
                        {.interval = absl::Milliseconds(1), .stale = absl::Milliseconds(50)});
  WaitFor([&] { return sampler.Latest().has_value(); }, "the first look");
  gpu_.hang = true;
  WaitFor([&] { return gpu_.waiting == 1 && !sampler.Latest().has_value(); }, "a stale sample");
  gpu_.hang = false;
  gpu_.hang.notify_all();
  WaitFor([&] { return sampler.Latest().has_value(); }, "the next look");
}

TEST_F(DeviceSensorsTest, MetricsShowTheGpuOfTheReplica) {
  Harness harness({.metrics = true, .pci_bus_id = kFakePciBusId});
  std::string text;
  WaitFor(
      [&] {
        text = Scrape(harness.server().metrics_port());
        return text.find("fewbit_device_info{") != text.npos;
      },
      "the first look");
  EXPECT_EQ(MetricValue(text,
                        "fewbit_device_info{gpu=\"Imaginary GPU\",pci=\"0000:18:00.0\","
                        "driver=\"1.2.3\",model=\"demo\"}"),
            1);
  EXPECT_EQ(MetricValue(text, "fewbit_device_power_watts{model=\"demo\"}"), 431.5);
  EXPECT_EQ(MetricValue(text, "fewbit_device_throttled{reason=\"thermal\",model=\"demo\"}"), 1);
  EXPECT_EQ(MetricValue(text, "fewbit_device_throttled{reason=\"power\",model=\"demo\"}"), 0);
  EXPECT_EQ(MetricValue(text, "fewbit_energy_joules_total{model=\"demo\"}"), 0);
}

TEST_F(DeviceSensorsTest, AScrapeWaitsForNoGpuAndNoStep) {
  Harness harness({.metrics = true, .gate_closed = true, .pci_bus_id = kFakePciBusId});
  gpu_.hang = true;
  grpc::ClientContext context;
  const auto stream = harness.stub().GenerateStream(&context, harness.Saying(" one"));
  harness.executor().WaitUntilHeld();
  WaitFor([&] { return gpu_.waiting == 1; }, "a look that hangs");
  const std::string text = Scrape(harness.server().metrics_port());
  EXPECT_EQ(MetricValue(text, "fewbit_open_streams{model=\"demo\"}"), 1);
  gpu_.hang = false;
  gpu_.hang.notify_all();
  harness.executor().OpenGate();
  EXPECT_TRUE(Collect(stream.get()).status.ok());
}

TEST_F(DeviceSensorsTest, WithoutAGpuTheFamiliesAreAbsent) {
  Harness harness({.metrics = true});
  const std::string text = Scrape(harness.server().metrics_port());
  EXPECT_THAT(text, HasSubstr("fewbit_gpu_seconds_total"));
  EXPECT_THAT(text, Not(HasSubstr("fewbit_device_")));
  EXPECT_THAT(text, Not(HasSubstr("fewbit_energy_")));
}

}  // namespace
}  // namespace fewbit::testing
