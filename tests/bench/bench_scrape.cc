// bench_scrape: what a scrape of /metrics costs with every series that there can be: all outcomes,
// a GPU, --max_tenants names. Over HTTP as Prometheus asks, a connection per scrape; idle, and
// while requests stream as fast as they can. Usage: bench_scrape [scrapes per row, default 500]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/device_meter.h"
#include "tests/server/fake_nvml.h"
#include "tests/server/server_harness.h"

namespace fewbit::testing {
namespace {

// The default of --max_tenants, and the most that it allows.
constexpr int kTenants[] = {32, 1000};

void Report(const char* what, int scrapes, const std::function<void()>& scrape) {
  std::vector<double> milliseconds;
  for (int i = 0; i < scrapes; ++i) {
    const double start = DeviceMeter::SteadySeconds();
    scrape();
    milliseconds.push_back(1e3 * (DeviceMeter::SteadySeconds() - start));
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  std::printf("%-14s %8.3f %8.3f %8.3f\n", what, milliseconds[milliseconds.size() / 2],
              milliseconds[milliseconds.size() * 99 / 100], milliseconds.back());
  std::fflush(stdout);
}

void Call(Harness* harness, const std::string& tenant) {
  grpc::ClientContext context;
  if (!tenant.empty()) context.AddMetadata("x-tenant-id", tenant);
  v1::GenerateRequest request = harness->Saying(" x");
  Stream(harness->stub(), request, &context);
}

// Requests without end until `stop`.
void StreamUntil(Harness* harness, const std::atomic<bool>* stop) {
  while (!*stop) {
    v1::GenerateRequest request;
    request.set_text("Once upon a time");
    request.mutable_stopping()->set_ignore_eos(true);
    request.mutable_stopping()->set_max_new_tokens(256);
    Stream(harness->stub(), request);
  }
}

void Rows(int tenants, int scrapes) {
  HarnessOptions options;
  options.metrics = true;
  options.pci_bus_id = kFakePciBusId;
  options.config.gpu_hour_usd = 2.5;
  options.config.slo_ttft_ms = 200;
  options.config.slo_tpot_ms = 50;
  options.config.max_tenants = tenants;
  Harness harness(options);
  for (int i = 0; i < tenants; ++i) Call(&harness, absl::StrCat("tenant-", i));
  harness.ExpectIdle();
  const std::string text = Scrape(harness.server().metrics_port());
  std::printf("%d tenants: %d lines, %.0f KB\n", tenants,
              static_cast<int>(std::count(text.begin(), text.end(), '\n')), text.size() / 1e3);
  std::printf("%-14s %8s %8s %8s\n", "milliseconds", "p50", "p99", "most");
  const auto scrape = [&] { Scrape(harness.server().metrics_port()); };
  Report("idle", scrapes, scrape);
  std::atomic<bool> stop{false};
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) clients.emplace_back([&] { StreamUntil(&harness, &stop); });
  Report("8 streams", scrapes, scrape);
  stop = true;
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace fewbit::testing

int main(int argc, char** argv) {
  const int scrapes = argc > 1 ? std::atoi(argv[1]) : 500;
  if (scrapes <= 0) {
    std::fprintf(stderr, "usage: bench_scrape [scrapes per row]\n");
    return 1;
  }
  for (const int tenants : fewbit::testing::kTenants) fewbit::testing::Rows(tenants, scrapes);
  return 0;
}
