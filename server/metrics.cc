#include "server/metrics.h"

#include <prometheus/exposer.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "scheduler/check.h"
#include "server/build_info.h"

namespace fewbit {
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

// Seconds. From half a millisecond: a small model's token takes less than the usual first bucket.
constexpr double kLatencyBounds[] = {0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02,
                                     0.03,   0.05,  0.075, 0.1,   0.2,   0.3,    0.5,  0.75,
                                     1,      2,     5,     10,    20,    30,     60,   120};
constexpr double kTokenBounds[] = {1,   2,    4,    8,    16,   32,    64,    128,   256,
                                   512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// What vLLM calls its metrics, for routers that know these.
constexpr absl::string_view kAliasPrefix = "vllm:";

// Builds the families of one scrape; every metric gets the label `model` (an alias `model_name`, as
// vLLM has it).
class Families {
 public:
  explicit Families(const std::string& model_name) : model_name_(model_name) {}

  // Starts a family; the metrics added next belong to it.
  Families& Family(absl::string_view name, absl::string_view help, MetricType type) {
    MetricFamily family;
    family.name = std::string(name);
    if (!IsAlias(name)) family.name = absl::StrCat("fewbit_", name);
    family.help = std::string(help);
    family.type = type;
    out_.push_back(std::move(family));
    return *this;
  }

  Families& Add(ClientMetric metric, std::vector<ClientMetric::Label> labels = {}) {
    metric.label = std::move(labels);
    metric.label.push_back({IsAlias(out_.back().name) ? "model_name" : "model", model_name_});
    out_.back().metric.push_back(std::move(metric));
    return *this;
  }

  // A counter or gauge, by the family's type.
  Families& Add(double value, std::vector<ClientMetric::Label> labels = {}) {
    ClientMetric metric;
    if (out_.back().type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    return Add(std::move(metric), std::move(labels));
  }

  void Gauge(absl::string_view name, absl::string_view help, double value) {
    Family(name, help, MetricType::Gauge).Add(value);
  }
  void Counter(absl::string_view name, absl::string_view help, double value) {
    Family(name, help, MetricType::Counter).Add(value);
  }
  void Distribution(absl::string_view name, absl::string_view help, const Histogram& histogram) {
    Family(name, help, MetricType::Histogram).Add(histogram.Collect());
  }

  std::vector<MetricFamily> Take() { return std::move(out_); }

 private:
  static bool IsAlias(absl::string_view name) { return absl::StartsWith(name, kAliasPrefix); }

  const std::string& model_name_;
  std::vector<MetricFamily> out_;
};

void AddRequests(const ServerStats& stats, const EngineStats& engine, Families* out) {
  out->Family("requests_total", "Generate and GenerateStream calls that ended, by code and reason",
              MetricType::Counter);
  for (int i = 0; i < kNumOutcomes; ++i) {
    const OutcomeLabels labels = LabelsOf(static_cast<Outcome>(i));
    out->Add(static_cast<double>(stats.requests[i].load(std::memory_order_relaxed)),
             {{"code", labels.code}, {"reason", labels.reason}});
  }
  out->Gauge("requests_running", "Requests in the running batch", engine.requests_running);
  out->Gauge("requests_waiting", "Requests waiting for a place in the batch",
             engine.requests_waiting);
  out->Gauge("waiting_tokens", "Prompt tokens of waiting requests",
             static_cast<double>(engine.waiting_tokens));
  out->Gauge("open_streams", "Open Generate and GenerateStream calls",
             static_cast<double>(stats.open_streams.load(std::memory_order_relaxed)));
  out->Counter("abandoned_calls_total",
               "Calls that ended for the client before it had all of it, whatever was generated",
               static_cast<double>(stats.abandoned_calls.load(std::memory_order_relaxed)));
  out->Distribution("queue_seconds", "From arrival to the first step", stats.queue_seconds);
  out->Distribution("time_to_first_token_seconds", "From arrival to the first token",
                    stats.time_to_first_token_seconds);
  out->Distribution("inter_token_seconds", "Between two tokens of a request",
                    stats.inter_token_seconds);
  out->Distribution("time_per_output_token_seconds",
                    "Mean over a request's tokens but the first; requests that ended well",
                    stats.time_per_output_token_seconds);
  out->Distribution("request_seconds", "From arrival to the last token; requests that ended well",
                    stats.request_seconds);
  out->Distribution("request_prompt_tokens", "Prompt length of requests that ran",
                    stats.prompt_tokens);
  out->Distribution("request_generated_tokens", "Generated tokens of requests that ran",
                    stats.generated_tokens);
}

void AddTokensAndSteps(const ServerStats& stats, const EngineStats& engine, Families* out) {
  const struct {
    const char* kind;
    const char* outcome;
    const std::atomic<uint64_t>& count;
  } tokens[] = {
      {"prompt", "delivered", stats.prompt_tokens_delivered},
      {"prompt", "aborted", stats.prompt_tokens_aborted},
      {"generated", "delivered", stats.generated_tokens_delivered},
      {"generated", "aborted", stats.generated_tokens_aborted},
  };
  out->Family("tokens_total", "Tokens of requests that ended, by kind and what became of them",
              MetricType::Counter);
  for (const auto& row : tokens) {
    out->Add(static_cast<double>(row.count.load(std::memory_order_relaxed)),
             {{"kind", row.kind}, {"outcome", row.outcome}});
  }
  out->Counter("steps_total", "Steps run", static_cast<double>(engine.steps));
  out->Family("step_tokens_total", "Tokens run in steps, by phase", MetricType::Counter)
      .Add(static_cast<double>(engine.prefill_tokens), {{"phase", "prefill"}})
      .Add(static_cast<double>(engine.decode_tokens), {{"phase", "decode"}});
  out->Counter("busy_seconds_total", "Time spent inside steps", engine.busy_seconds);
  out->Distribution("step_batch_size", "Sequences in a step", stats.step_sequences);
  out->Distribution("step_tokens", "Tokens in a step", stats.step_tokens);
  out->Distribution("step_seconds", "Duration of a step", stats.step_seconds);
}

// Device time up to the end of the last step or, with none running, to the present.
double AccountedUntil(const EngineStats& engine) {
  const absl::Duration lag = absl::Now() - absl::FromUnixNanos(engine.last_progress_unix_ns);
  return DeviceMeter::SteadySeconds() - std::max(0.0, absl::ToDoubleSeconds(lag));
}

void AddCost(ServerStats* stats, const EngineStats& engine, Families* out) {
  const PhaseSeconds seconds = stats->device.Phases(AccountedUntil(engine));
  const RecentUse recent = stats->device.Recent(DeviceMeter::SteadySeconds());
  const double price = stats->accounting.gpu_hour_usd / 3600.0;  // dollars per second
  out->Family("gpu_seconds_total",
              "Seconds of the replica's device (GPU, or CPUs) by what it did; they sum up to the "
              "time since the start, a running step apart",
              MetricType::Counter)
      .Add(seconds.prefill, {{"phase", "prefill"}})
      .Add(seconds.decode, {{"phase", "decode"}})
      .Add(seconds.idle, {{"phase", "idle"}});
  out->Family("cost_usd_total",
              "Dollars at --gpu_hour_usd; reserved: while the replica is up, used: while it works",
              MetricType::Counter)
      .Add(seconds.prefill * price, {{"basis", "reserved"}, {"phase", "prefill"}})
      .Add(seconds.decode * price, {{"basis", "reserved"}, {"phase", "decode"}})
      .Add(seconds.idle * price, {{"basis", "reserved"}, {"phase", "idle"}})
      .Add(seconds.prefill * price, {{"basis", "used"}, {"phase", "prefill"}})
      .Add(seconds.decode * price, {{"basis", "used"}, {"phase", "decode"}});
  out->Gauge("gpu_hour_usd", "Price of an hour of the device in dollars (a flag); 0: not stated",
             stats->accounting.gpu_hour_usd);
  out->Family("usd_per_million_generated_tokens",
              "Over the last five minutes, by basis of the cost; absent while nothing is generated",
              MetricType::Gauge);
  if (recent.generated_tokens == 0) return;
  const double per_million = price * 1e6 / static_cast<double>(recent.generated_tokens);
  out->Add(recent.seconds * per_million, {{"basis", "reserved"}})
      .Add(recent.busy_seconds * per_million, {{"basis", "used"}});
}

void AddSlo(const ServerStats& stats, Families* out) {
  out->Family("slo_requests_total",
              "Requests by whether they met --slo_ttft_ms and --slo_tpot_ms; empty without targets",
              MetricType::Counter);
  const struct {
    const char* slo;
    double target;
    const SloCount& count;
  } rows[] = {{"ttft", stats.accounting.slo_ttft_ms, stats.slo_ttft},
              {"tpot", stats.accounting.slo_tpot_ms, stats.slo_tpot}};
  for (const auto& row : rows) {
    if (row.target <= 0.0) continue;
    out->Add(static_cast<double>(row.count.met.load(std::memory_order_relaxed)),
             {{"slo", row.slo}, {"met", "true"}});
    out->Add(static_cast<double>(row.count.missed.load(std::memory_order_relaxed)),
             {{"slo", row.slo}, {"met", "false"}});
  }
}

void AddTenants(const ServerStats& stats, Families* out) {
  const std::vector<TenantUsage> tenants = stats.tenants.Read();
  out->Family("tenant_tokens_total",
              "tokens_total by tenant; none: requests that name none, other: tenants behind the "
              "first --max_tenants",
              MetricType::Counter);
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
  out->Family("tenant_cost_usd_total",
              "Dollars at --gpu_hour_usd for the device time of a tenant's requests that ended",
              MetricType::Counter);
  for (const TenantUsage& tenant : tenants) {
    out->Add(tenant.device_seconds * stats.accounting.gpu_hour_usd / 3600.0,
             {{"tenant", tenant.name}});
  }
}

double KvUsage(const EngineStats& engine) {
  if (engine.blocks_total == 0) return 0.0;
  return static_cast<double>(engine.blocks_used) / engine.blocks_total;
}

// The names under which the Kubernetes Gateway API inference extension looks for load.
void AddAliases(const EngineStats& engine, int32_t block_tokens, Families* out) {
  out->Gauge("vllm:num_requests_running", "fewbit_requests_running", engine.requests_running);
  out->Gauge("vllm:num_requests_waiting", "fewbit_requests_waiting", engine.requests_waiting);
  out->Gauge("vllm:kv_cache_usage_perc", "fewbit_kv_usage_ratio", KvUsage(engine));
  out->Family("vllm:cache_config_info", "fewbit_kv_block_tokens and fewbit_kv_blocks; always 1",
              MetricType::Gauge)
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
                                   const ServedModel& model)
    : stats_(stats),
      engine_(engine),
      model_name_(model.name),
      device_(model.device.device),
      quantization_method_(model.quantization_method.empty() ? "none" : model.quantization_method),
      average_bits_(model.average_bits),
      embedding_bits_(model.embedding_bits),
      block_tokens_(model.device.block_tokens),
      startup_phases_(model.startup_phases),
      start_unix_seconds_(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch())) {}

std::vector<MetricFamily> MetricsCollector::Collect() const {
  const EngineStats engine = engine_->stats();
  Families out(model_name_);
  AddRequests(*stats_, engine, &out);
  AddTokensAndSteps(*stats_, engine, &out);
  AddCost(stats_, engine, &out);
  AddSlo(*stats_, &out);
  AddTenants(*stats_, &out);
  out.Gauge("kv_blocks", "Blocks of the KV cache", engine.blocks_total);
  out.Gauge("kv_blocks_used", "Blocks of the KV cache in use", engine.blocks_used);
  out.Gauge("kv_block_tokens", "Tokens that a block holds", block_tokens_);
  out.Gauge("kv_usage_ratio", "Share of the KV cache in use, 0 to 1", KvUsage(engine));
  out.Gauge("engine_failed", "1 after an error that the engine could not survive",
            engine.failed ? 1 : 0);
  out.Gauge("start_time_seconds", "When the server started, seconds since 1970",
            start_unix_seconds_);
  out.Family("startup_seconds", "Time that the start took, by phase", MetricType::Gauge);
  for (const StartupPhase& phase : startup_phases_) out.Add(phase.seconds, {{"phase", phase.name}});
  const BuildInfo& build = ThisBuild();
  out.Family("build_info", "What runs here; always 1", MetricType::Gauge)
      .Add(1, {{"version", build.version},
               {"commit", build.commit},
               {"compiler", build.compiler},
               {"cuda", build.cuda},
               {"device", device_}});
  out.Family("quantization_info", "How the weights are stored; always 1", MetricType::Gauge)
      .Add(1, {{"method", quantization_method_}});
  out.Family("weight_bits", "Average bits per weight, from the bytes in the file",
             MetricType::Gauge)
      .Add(average_bits_, {{"part", "linears"}})
      .Add(embedding_bits_, {{"part", "embeddings"}});
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
