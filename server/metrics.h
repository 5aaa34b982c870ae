// The numbers behind /metrics and their names. ServerStats is what the request path counts, without
// locks; MetricsCollector turns it and the engine's counters into prometheus families when scraped;
// MetricsServer listens. A scrape waits for no step and no request.
#pragma once

#include <prometheus/client_metric.h>
#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/engine.h"
#include "server/device_meter.h"
#include "server/device_sampler.h"
#include "server/served_model.h"
#include "server/tenants.h"

namespace prometheus {
class Exposer;
}

namespace fewbit {

class MetricFamilies;

// How a Generate or GenerateStream call ended: each counts exactly once.
enum class Outcome : uint8_t {
  kLength,
  kEos,
  kStopToken,
  kStopString,
  kTimeLimit,
  kAborted,
  kDrained,
  kInvalid,
  kUnauthenticated,
  kUnknownModel,
  kDuplicateId,
  kQueueFull,
  kTooManyStreams,
  kDraining,
  kEngineFailed,
  kDeadline,
  kClientLeft,
  kSlowReader,
  kInternal,
};
inline constexpr int kNumOutcomes = static_cast<int>(Outcome::kInternal) + 1;

// Labels of requests_total.
struct OutcomeLabels {
  const char* code;  // the gRPC status code's name
  const char* reason;
};
OutcomeLabels LabelsOf(Outcome outcome);

// Counts per bucket and a sum. Observe is wait-free but for the sum's compare-and-swap; a reader
// may see an observation in its bucket and not yet in the sum. Thread-safe.
class Histogram {
 public:
  static constexpr size_t kMaxBounds = 28;

  // `bounds`: ascending upper bounds, at most kMaxBounds, of static lifetime.
  explicit Histogram(std::span<const double> bounds);

  void Observe(double value);
  prometheus::ClientMetric Collect() const;

 private:
  const std::span<const double> bounds_;
  std::array<std::atomic<uint64_t>, kMaxBounds + 1> counts_{};
  std::atomic<double> sum_{0.0};
};

// What is counted, and at what price it is shown.
struct AccountingOptions {
  double gpu_hour_usd = 0.0;  // price of the replica's device, be it a GPU or CPUs; 0: not stated
  double slo_ttft_ms = 0.0;   // target of the time to the first token; 0: none
  double slo_tpot_ms = 0.0;   // target of the mean time per further token; 0: none
  int32_t max_tenants = 32;   // with series of their own
};

// Why nobody got a token.
enum class Waste : uint8_t { kClientLeft, kDeadline, kSlowReader, kInternal, kAfterStop };
inline constexpr int kNumWastes = static_cast<int>(Waste::kAfterStop) + 1;

// Tokens of requests that ran and ended without delivering them.
struct WastedTokens {
  std::array<std::atomic<uint64_t>, kNumWastes> prompt{}, generated{};

  void Add(Waste reason, int64_t prompt_tokens, int64_t generated_tokens);
};
uint64_t Sum(const std::array<std::atomic<uint64_t>, kNumWastes>& counts);

// Requests that met a target and that did not.
struct SloCount {
  std::atomic<uint64_t> met{0}, missed{0};

  void Add(bool is_met) { (is_met ? met : missed).fetch_add(1, std::memory_order_relaxed); }
};

// Thread-safe: atomics, and locks of a few instructions in `device` and `tenants`.
struct ServerStats {
  explicit ServerStats(const AccountingOptions& accounting = {});

  const AccountingOptions accounting;

  std::array<std::atomic<uint64_t>, kNumOutcomes> requests{};
  // Of requests that ran. Delivered: their response was OK and carried them. Wasted, in the metrics
  // also called aborted: the rest, text behind a stop string included.
  std::atomic<uint64_t> prompt_tokens_delivered{0}, generated_tokens_delivered{0};
  WastedTokens wasted;
  std::atomic<int64_t> open_streams{0};      // Generate and GenerateStream calls
  std::atomic<uint64_t> abandoned_calls{0};  // those whose client left, even behind the last token
  Histogram queue_seconds, time_to_first_token_seconds, inter_token_seconds, request_seconds;
  Histogram time_per_output_token_seconds;
  Histogram prompt_tokens, generated_tokens;
  Histogram step_sequences, step_tokens, step_seconds;
  SloCount slo_ttft, slo_tpot;
  DeviceMeter device;
  Tenants tenants;

  void Count(Outcome outcome) {
    requests[static_cast<size_t>(outcome)].fetch_add(1, std::memory_order_relaxed);
  }
};

// Thread-safe. `stats`, `engine` and `device` outlive it.
class MetricsCollector : public prometheus::Collectable {
 public:
  // `device`: null without a GPU.
  MetricsCollector(ServerStats* stats, const Engine* engine, const DeviceSampler* device,
                   const ServedModel& model);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  void AddAbout(MetricFamilies* out) const;

  ServerStats* const stats_;
  const Engine* const engine_;
  const DeviceSampler* const device_;
  const std::string model_name_, device_name_, quantization_method_;
  const double average_bits_, embedding_bits_;
  const int32_t block_tokens_;
  const std::vector<StartupPhase> startup_phases_;
  const std::optional<CanaryDistances> canary_;
  const double start_unix_seconds_;
};

// Serves /metrics from threads of its own. Its end takes one to four seconds (civetweb's).
class MetricsServer {
 public:
  // `port` 0: any free one. UNAVAILABLE: the address is taken or not ours.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      const std::string& host, int32_t port, std::shared_ptr<prometheus::Collectable> collector);
  ~MetricsServer();

  int32_t port() const { return port_; }

 private:
  MetricsServer(std::unique_ptr<prometheus::Exposer> exposer,
                std::shared_ptr<prometheus::Collectable> collector);

  std::shared_ptr<prometheus::Collectable> collector_;  // the exposer keeps a weak reference
  std::unique_ptr<prometheus::Exposer> exposer_;
  int32_t port_ = 0;
};

}  // namespace fewbit
