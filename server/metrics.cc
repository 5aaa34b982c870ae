#include "server/metrics.h"

#include <prometheus/exposer.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "scheduler/check.h"
#include "server/build_info.h"
#include "server/metric_table.h"

namespace fewbit {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Builds the families of one scrape from the rows of the table; every metric gets the label `model`
// (an alias `model_name`).
class MetricFamilies {
 public:
  explicit MetricFamilies(const std::string& model_name) : model_name_(model_name) {
    out_.reserve(kNumMetrics);
  }

  // Starts a family; the metrics added next belong to it.
  MetricFamilies& Family(Metric metric) {
    row_ = &RowOf(metric);
    MetricFamily family;
    family.name = row_->name;
    family.help = row_->help;
    family.type = row_->type;
    out_.push_back(std::move(family));
    return *this;
  }

  MetricFamilies& Add(ClientMetric metric, std::vector<ClientMetric::Label> labels = {}) {
    metric.label = std::move(labels);
    metric.label.push_back({IsAlias(*row_) ? "model_name" : "model", model_name_});
    out_.back().metric.push_back(std::move(metric));
    return *this;
  }

  // A counter or gauge, by the family's type.
  MetricFamilies& Add(double value, std::vector<ClientMetric::Label> labels = {}) {
    ClientMetric metric;
    if (row_->type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    return Add(std::move(metric), std::move(labels));
  }

  // A family of one metric.
  void One(Metric metric, double value) { Family(metric).Add(value); }
  void One(Metric metric, const Histogram& histogram) { Family(metric).Add(histogram.Collect()); }
  // Absent without a value.
  void Optional(Metric metric, const std::optional<double>& value) {
    if (value.has_value()) One(metric, *value);
  }

  std::vector<MetricFamily> Take() { return std::move(out_); }

 private:
  const std::string& model_name_;
  const MetricRow* row_ = nullptr;
  std::vector<MetricFamily> out_;
};

namespace {

constexpr OutcomeLabels kOutcomeLabels[kNumOutcomes] = {
    {"OK", "length"},
    {"OK", "eos"},
    {"OK", "stop_token"},
    {"OK", "stop_string"},
    {"OK", "time_limit"},
    {"OK", "aborted"},
    {"OK", "drained"},
    {"INVALID_ARGUMENT", "invalid"},
    {"UNAUTHENTICATED", "api_key"},
    {"NOT_FOUND", "unknown_model"},
    {"ALREADY_EXISTS", "duplicate_id"},
    {"RESOURCE_EXHAUSTED", "queue_full"},
    {"RESOURCE_EXHAUSTED", "too_many_streams"},
    {"UNAVAILABLE", "draining"},
    {"UNAVAILABLE", "engine_failed"},
    {"DEADLINE_EXCEEDED", "deadline"},
    {"CANCELLED", "client_left"},
    {"CANCELLED", "slow_reader"},
    {"INTERNAL", "internal"},
};

constexpr const char* kWasteLabels[kNumWastes] = {"client_left", "deadline", "slow_reader",
                                                  "internal", "after_stop"};

// Seconds. From half a millisecond: a small model's token takes less than the usual first bucket.
constexpr double kLatencyBounds[] = {
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3,    0.5,   0.75,  1,     1.5,   2,      3,    5,    7.5,  10,   20,    30,  60,   120};
constexpr double kTokenBounds[] = {1,   2,    4,    8,    16,   32,    64,    128,   256,
                                   512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};

double Load(const std::atomic<uint64_t>& count) {
  return static_cast<double>(count.load(std::memory_order_relaxed));
}

void AddRequests(const ServerStats& stats, const EngineStats& engine, MetricFamilies* out) {
  out->Family(Metric::kRequestsTotal);
  for (int i = 0; i < kNumOutcomes; ++i) {
    const OutcomeLabels labels = LabelsOf(static_cast<Outcome>(i));
    out->Add(Load(stats.requests[i]), {{"code", labels.code}, {"reason", labels.reason}});
  }
  out->One(Metric::kRequestsRunning, engine.requests_running);
  out->One(Metric::kRequestsWaiting, engine.requests_waiting);
  out->One(Metric::kWaitingTokens, static_cast<double>(engine.waiting_tokens));
  out->One(Metric::kOpenStreams,
           static_cast<double>(stats.open_streams.load(std::memory_order_relaxed)));
  out->One(Metric::kAbandonedCallsTotal, Load(stats.abandoned_calls));
  out->One(Metric::kQueueSeconds, stats.queue_seconds);
  out->One(Metric::kTimeToFirstTokenSeconds, stats.time_to_first_token_seconds);
  out->One(Metric::kInterTokenSeconds, stats.inter_token_seconds);
  out->One(Metric::kTimePerOutputTokenSeconds, stats.time_per_output_token_seconds);
  out->One(Metric::kRequestSeconds, stats.request_seconds);
  out->One(Metric::kRequestPromptTokens, stats.prompt_tokens);
  out->One(Metric::kRequestGeneratedTokens, stats.generated_tokens);
}

void AddTokens(const ServerStats& stats, MetricFamilies* out) {
  out->Family(Metric::kTokensTotal);
  const auto add = [out](const char* kind, double delivered, double aborted) {
    out->Add(delivered, {{"kind", kind}, {"outcome", "delivered"}});
    out->Add(aborted, {{"kind", kind}, {"outcome", "aborted"}});
  };
  add("prompt", Load(stats.prompt_tokens_delivered), static_cast<double>(Sum(stats.wasted.prompt)));
  add("generated", Load(stats.generated_tokens_delivered),
      static_cast<double>(Sum(stats.wasted.generated)));
  out->Family(Metric::kWastedTokensTotal);
  for (int i = 0; i < kNumWastes; ++i) {
    const char* const reason = kWasteLabels[i];
    out->Add(Load(stats.wasted.prompt[i]), {{"kind", "prompt"}, {"reason", reason}});
    out->Add(Load(stats.wasted.generated[i]), {{"kind", "generated"}, {"reason", reason}});
  }
}

void AddSteps(const ServerStats& stats, const EngineStats& engine, MetricFamilies* out) {
  out->One(Metric::kStepsTotal, static_cast<double>(engine.steps));
  out->Family(Metric::kStepTokensTotal)
      .Add(static_cast<double>(engine.prefill_tokens), {{"phase", "prefill"}})
      .Add(static_cast<double>(engine.decode_tokens), {{"phase", "decode"}});
  out->Family(Metric::kDroppedStepTokensTotal)
      .Add(static_cast<double>(engine.dropped_prefill_tokens), {{"phase", "prefill"}})
      .Add(static_cast<double>(engine.dropped_decode_tokens), {{"phase", "decode"}});
  out->One(Metric::kBusySecondsTotal, engine.busy_seconds);
  out->One(Metric::kStepBatchSize, stats.step_sequences);
  out->One(Metric::kStepTokens, stats.step_tokens);
  out->One(Metric::kStepSeconds, stats.step_seconds);
}

// Device time up to the end of the last step or, with none running, to the present.
double AccountedUntil(const EngineStats& engine) {
  const absl::Duration lag = absl::Now() - absl::FromUnixNanos(engine.last_progress_unix_ns);
  return DeviceMeter::SteadySeconds() - std::max(0.0, absl::ToDoubleSeconds(lag));
}

void AddCost(ServerStats* stats, const EngineStats& engine, MetricFamilies* out) {
  const PhaseSeconds seconds = stats->device.Phases(AccountedUntil(engine));
  const RecentUse recent = stats->device.Recent(DeviceMeter::SteadySeconds());
  const double price = stats->accounting.gpu_hour_usd / 3600.0;  // dollars per second
  out->Family(Metric::kGpuSecondsTotal)
      .Add(seconds.prefill, {{"phase", "prefill"}})
      .Add(seconds.decode, {{"phase", "decode"}})
      .Add(seconds.idle, {{"phase", "idle"}});
  out->Family(Metric::kCostUsdTotal)
      .Add(seconds.prefill * price, {{"basis", "reserved"}, {"phase", "prefill"}})
      .Add(seconds.decode * price, {{"basis", "reserved"}, {"phase", "decode"}})
      .Add(seconds.idle * price, {{"basis", "reserved"}, {"phase", "idle"}})
      .Add(seconds.prefill * price, {{"basis", "used"}, {"phase", "prefill"}})
      .Add(seconds.decode * price, {{"basis", "used"}, {"phase", "decode"}});
  out->One(Metric::kGpuHourUsd, stats->accounting.gpu_hour_usd);
  out->Family(Metric::kUsdPerMillionGeneratedTokens);
  if (recent.generated_tokens == 0) return;
  const double per_million = price * 1e6 / static_cast<double>(recent.generated_tokens);
  out->Add(recent.seconds * per_million, {{"basis", "reserved"}})
      .Add(recent.busy_seconds * per_million, {{"basis", "used"}});
}

void AddSlo(const ServerStats& stats, MetricFamilies* out) {
  out->Family(Metric::kSloRequestsTotal);
  const struct {
    const char* slo;
    double target;
    const SloCount& count;
  } rows[] = {{"ttft", stats.accounting.slo_ttft_ms, stats.slo_ttft},
              {"tpot", stats.accounting.slo_tpot_ms, stats.slo_tpot}};
  for (const auto& row : rows) {
    if (row.target <= 0.0) continue;
    out->Add(Load(row.count.met), {{"slo", row.slo}, {"met", "true"}});
    out->Add(Load(row.count.missed), {{"slo", row.slo}, {"met", "false"}});
  }
}

void AddTenants(const ServerStats& stats, MetricFamilies* out) {
  const std::vector<TenantUsage> tenants = stats.tenants.Read();
  out->Family(Metric::kTenantTokensTotal);
  for (const TenantUsage& tenant : tenants) {
    const struct {
      const char* kind;
      const char* outcome;
      uint64_t count;
    } rows[] = {{"prompt", "delivered", tenant.prompt_delivered},
                {"prompt", "aborted", tenant.prompt_aborted},
                {"generated", "delivered", tenant.generated_delivered},
                {"generated", "aborted", tenant.generated_aborted}};
    for (const auto& row : rows) {
      out->Add(static_cast<double>(row.count),
               {{"tenant", tenant.name}, {"kind", row.kind}, {"outcome", row.outcome}});
    }
  }
  out->Family(Metric::kTenantCostUsdTotal);
  for (const TenantUsage& tenant : tenants) {
    out->Add(tenant.device_seconds * stats.accounting.gpu_hour_usd / 3600.0,
             {{"tenant", tenant.name}});
  }
}

double KvUsage(const EngineStats& engine) {
  if (engine.blocks_total == 0) return 0.0;
  return static_cast<double>(engine.blocks_used) / engine.blocks_total;
}

void AddKv(const EngineStats& engine, int32_t block_tokens, MetricFamilies* out) {
  out->One(Metric::kKvBlocks, engine.blocks_total);
  out->One(Metric::kKvBlocksUsed, engine.blocks_used);
  out->One(Metric::kKvBlockTokens, block_tokens);
  out->One(Metric::kKvUsageRatio, KvUsage(engine));
}

// What the GPU says of itself; nothing where there is none, or it says nothing.
void AddDevice(const DeviceSample& sample, MetricFamilies* out) {
  const DeviceReading& reading = sample.reading;
  out->Family(Metric::kDeviceInfo)
      .Add(1, {{"gpu", sample.identity.name},
               {"pci", sample.identity.pci},
               {"driver", sample.identity.driver}});
  out->Optional(Metric::kDeviceMemoryBytes, reading.memory_bytes);
  out->Optional(Metric::kDeviceMemoryUsedBytes, reading.memory_used_bytes);
  out->Optional(Metric::kDeviceUtilizationRatio, reading.utilization);
  out->Optional(Metric::kDeviceMemoryUtilizationRatio, reading.memory_utilization);
  out->Optional(Metric::kDevicePowerWatts, reading.power_watts);
  out->Optional(Metric::kDevicePowerLimitWatts, reading.power_limit_watts);
  out->Optional(Metric::kDeviceTemperatureCelsius, reading.temperature_celsius);
  out->Optional(Metric::kDeviceSmClockHertz, reading.sm_clock_hertz);
  if (reading.throttled.has_value()) {
    out->Family(Metric::kDeviceThrottled)
        .Add(reading.throttled->power ? 1 : 0, {{"reason", "power"}})
        .Add(reading.throttled->thermal ? 1 : 0, {{"reason", "thermal"}})
        .Add(reading.throttled->hardware ? 1 : 0, {{"reason", "hardware"}});
  }
  out->Optional(Metric::kDeviceEccErrors, reading.ecc_errors);
  out->Optional(Metric::kEnergyJoulesTotal, sample.energy_joules);
}

// The names under which the Kubernetes Gateway API inference extension looks for load.
void AddAliases(const EngineStats& engine, int32_t block_tokens, MetricFamilies* out) {
  out->One(Metric::kVllmNumRequestsRunning, engine.requests_running);
  out->One(Metric::kVllmNumRequestsWaiting, engine.requests_waiting);
  out->One(Metric::kVllmKvCacheUsagePerc, KvUsage(engine));
  out->Family(Metric::kVllmCacheConfigInfo)
      .Add(1, {{"block_size", absl::StrCat(block_tokens)},
               {"num_gpu_blocks", absl::StrCat(engine.blocks_total)}});
}

// A bare IPv6 address needs brackets in civetweb's and gRPC's notation.
std::string Bracketed(const std::string& host) {
  return absl::StrContains(host, ":") && !absl::StartsWith(host, "[") ? absl::StrCat("[", host, "]")
                                                                      : host;
}

}  // namespace

OutcomeLabels LabelsOf(Outcome outcome) { return kOutcomeLabels[static_cast<size_t>(outcome)]; }

Histogram::Histogram(std::span<const double> bounds) : bounds_(bounds) {
  FEWBIT_CHECK_LE(bounds.size(), kMaxBounds);
}

void Histogram::Observe(double value) {
  size_t bucket = 0;
  while (bucket < bounds_.size() && value > bounds_[bucket]) ++bucket;
  counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

ClientMetric Histogram::Collect() const {
  ClientMetric metric;
  uint64_t total = 0;
  for (size_t i = 0; i <= bounds_.size(); ++i) {
    total += counts_[i].load(std::memory_order_relaxed);
    const double bound = i < bounds_.size() ? bounds_[i] : std::numeric_limits<double>::infinity();
    metric.histogram.bucket.push_back({total, bound});
  }
  metric.histogram.sample_count = total;
  metric.histogram.sample_sum = sum_.load(std::memory_order_relaxed);
  return metric;
}

void WastedTokens::Add(Waste reason, int64_t prompt_tokens, int64_t generated_tokens) {
  const auto add = [reason](std::array<std::atomic<uint64_t>, kNumWastes>& counts, int64_t tokens) {
    counts[static_cast<size_t>(reason)].fetch_add(static_cast<uint64_t>(tokens),
                                                  std::memory_order_relaxed);
  };
  add(prompt, prompt_tokens);
  add(generated, generated_tokens);
}

uint64_t Sum(const std::array<std::atomic<uint64_t>, kNumWastes>& counts) {
  uint64_t sum = 0;
  for (const std::atomic<uint64_t>& count : counts) sum += count.load(std::memory_order_relaxed);
  return sum;
}

ServerStats::ServerStats(const AccountingOptions& options)
    : accounting(options),
      queue_seconds(kLatencyBounds),
      time_to_first_token_seconds(kLatencyBounds),
      inter_token_seconds(kLatencyBounds),
      request_seconds(kLatencyBounds),
      time_per_output_token_seconds(kLatencyBounds),
      prompt_tokens(kTokenBounds),
      generated_tokens(kTokenBounds),
      step_sequences(kTokenBounds),
      step_tokens(kTokenBounds),
      step_seconds(kLatencyBounds),
      device(DeviceMeter::SteadySeconds()),
      tenants(options.max_tenants) {}

MetricsCollector::MetricsCollector(ServerStats* stats, const Engine* engine,
                                   const DeviceSampler* device, const ServedModel& model)
    : stats_(stats),
      engine_(engine),
      device_(device),
      model_name_(model.name),
      device_name_(model.device.device),
      quantization_method_(model.quantization_method.empty() ? "none" : model.quantization_method),
      average_bits_(model.average_bits),
      embedding_bits_(model.embedding_bits),
      block_tokens_(model.device.block_tokens),
      startup_phases_(model.startup_phases),
      canary_(model.canary),
      start_unix_seconds_(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch())) {}

void MetricsCollector::AddAbout(MetricFamilies* out) const {
  out->One(Metric::kStartTimeSeconds, start_unix_seconds_);
  out->Family(Metric::kStartupSeconds);
  for (const StartupPhase& phase : startup_phases_) {
    out->Add(phase.seconds, {{"phase", phase.name}});
  }
  const BuildInfo& build = ThisBuild();
  out->Family(Metric::kBuildInfo)
      .Add(1, {{"version", build.version},
               {"commit", build.commit},
               {"compiler", build.compiler},
               {"cuda", build.cuda},
               {"device", device_name_}});
  out->Family(Metric::kQuantizationInfo).Add(1, {{"method", quantization_method_}});
  out->Family(Metric::kWeightBits)
      .Add(average_bits_, {{"part", "linears"}})
      .Add(embedding_bits_, {{"part", "embeddings"}});
  if (!canary_) return;
  out->Family(Metric::kCanaryKlNats)
      .Add(canary_->expected_served, {{"pair", "served_from_quantizer"}});
  if (!canary_->original_served) return;
  out->Add(*canary_->original_served, {{"pair", "served_from_original"}})
      .Add(*canary_->original_expected, {{"pair", "quantizer_from_original"}});
}

std::vector<MetricFamily> MetricsCollector::Collect() const {
  const EngineStats engine = engine_->stats();
  MetricFamilies out(model_name_);
  AddRequests(*stats_, engine, &out);
  AddTokens(*stats_, &out);
  AddSteps(*stats_, engine, &out);
  AddCost(stats_, engine, &out);
  AddSlo(*stats_, &out);
  AddTenants(*stats_, &out);
  AddKv(engine, block_tokens_, &out);
  out.One(Metric::kEngineFailed, engine.failed ? 1 : 0);
  AddAbout(&out);
  if (device_ != nullptr) {
    if (const std::optional<DeviceSample> sample = device_->Latest()) AddDevice(*sample, &out);
  }
  AddAliases(engine, block_tokens_, &out);
  return out.Take();
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const std::string& host, int32_t port, std::shared_ptr<prometheus::Collectable> collector) {
  const std::string address = absl::StrCat(Bracketed(host), ":", port);
  try {  // civetweb throws
    auto exposer = std::make_unique<prometheus::Exposer>(address);
    return std::unique_ptr<MetricsServer>(
        new MetricsServer(std::move(exposer), std::move(collector)));
  } catch (const std::exception&) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address,
                     " for /metrics: the port is taken or the address is not "
                     "this machine's; choose another --metrics_port, or -1 for none"));
  }
}

MetricsServer::MetricsServer(std::unique_ptr<prometheus::Exposer> exposer,
                             std::shared_ptr<prometheus::Collectable> collector)
    : collector_(std::move(collector)), exposer_(std::move(exposer)) {
  exposer_->RegisterCollectable(collector_);
  const std::vector<int> ports = exposer_->GetListeningPorts();
  if (!ports.empty()) port_ = ports.front();
}

MetricsServer::~MetricsServer() = default;

}  // namespace fewbit
