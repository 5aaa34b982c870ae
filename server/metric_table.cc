#include "server/metric_table.h"

#include <string_view>

#include "absl/strings/str_cat.h"

namespace fewbit {
namespace {

using prometheus::MetricType;

constexpr MetricRow kTable[] = {
    {Metric::kRequestsTotal, "fewbit_requests_total", MetricType::Counter, "requests",
     "code, reason", "Generate and GenerateStream calls that ended, by code and reason",
     "response_builder"},
    {Metric::kRequestsRunning, "fewbit_requests_running", MetricType::Gauge, "requests", "",
     "Requests in the running batch", "engine"},
    {Metric::kRequestsWaiting, "fewbit_requests_waiting", MetricType::Gauge, "requests", "",
     "Requests waiting for a place in the batch", "engine"},
    {Metric::kWaitingTokens, "fewbit_waiting_tokens", MetricType::Gauge, "tokens", "",
     "Prompt tokens of waiting requests", "engine"},
    {Metric::kOpenStreams, "fewbit_open_streams", MetricType::Gauge, "calls", "",
     "Open Generate and GenerateStream calls", "admission"},
    {Metric::kAbandonedCallsTotal, "fewbit_abandoned_calls_total", MetricType::Counter, "calls", "",
     "Calls that ended for the client before it had all of it, whatever was generated",
     "stream_writer, unary_writer"},
    {Metric::kQueueSeconds, "fewbit_queue_seconds", MetricType::Histogram, "seconds", "",
     "From arrival to the first step", "response_builder"},
    {Metric::kTimeToFirstTokenSeconds, "fewbit_time_to_first_token_seconds", MetricType::Histogram,
     "seconds", "", "From arrival to the first token", "response_builder"},
    {Metric::kInterTokenSeconds, "fewbit_inter_token_seconds", MetricType::Histogram, "seconds", "",
     "Between two tokens of a request", "response_builder"},
    {Metric::kTimePerOutputTokenSeconds, "fewbit_time_per_output_token_seconds",
     MetricType::Histogram, "seconds", "",
     "Mean over a request's tokens but the first; requests that ended well", "response_builder"},
    {Metric::kRequestSeconds, "fewbit_request_seconds", MetricType::Histogram, "seconds", "",
     "From arrival to the last token; requests that ended well", "response_builder"},
    {Metric::kRequestPromptTokens, "fewbit_request_prompt_tokens", MetricType::Histogram, "tokens",
     "", "Prompt length of requests that ran", "response_builder"},
    {Metric::kRequestGeneratedTokens, "fewbit_request_generated_tokens", MetricType::Histogram,
     "tokens", "", "Generated tokens of requests that ran", "response_builder"},
    {Metric::kTokensTotal, "fewbit_tokens_total", MetricType::Counter, "tokens", "kind, outcome",
     "Tokens of requests that ended, by kind and what became of them", "response_builder"},
    {Metric::kWastedTokensTotal, "fewbit_wasted_tokens_total", MetricType::Counter, "tokens",
     "kind, reason",
     "The aborted ones of tokens_total by why nobody got them; after_stop: made before the engine "
     "heard of a stop string",
     "response_builder"},
    {Metric::kStepsTotal, "fewbit_steps_total", MetricType::Counter, "steps", "", "Steps run",
     "engine"},
    {Metric::kStepTokensTotal, "fewbit_step_tokens_total", MetricType::Counter, "tokens", "phase",
     "Tokens run in steps, by phase", "engine"},
    {Metric::kDroppedStepTokensTotal, "fewbit_dropped_step_tokens_total", MetricType::Counter,
     "tokens", "phase",
     "Of step_tokens_total, tokens run ahead for requests that had ended when the step was "
     "collected",
     "engine"},
    {Metric::kBusySecondsTotal, "fewbit_busy_seconds_total", MetricType::Counter, "seconds", "",
     "Time spent inside steps", "engine"},
    {Metric::kStepBatchSize, "fewbit_step_batch_size", MetricType::Histogram, "sequences", "",
     "Sequences in a step", "emitter"},
    {Metric::kStepTokens, "fewbit_step_tokens", MetricType::Histogram, "tokens", "",
     "Tokens in a step", "emitter"},
    {Metric::kStepSeconds, "fewbit_step_seconds", MetricType::Histogram, "seconds", "",
     "Duration of a step", "emitter"},
    {Metric::kGpuSecondsTotal, "fewbit_gpu_seconds_total", MetricType::Counter, "seconds", "phase",
     "Seconds of the replica's device (GPU, or CPUs) by what it did; they sum up to the time since "
     "the start, a running step apart",
     "device_meter"},
    {Metric::kCostUsdTotal, "fewbit_cost_usd_total", MetricType::Counter, "dollars", "basis, phase",
     "Dollars at --gpu_hour_usd; reserved: while the replica is up, used: while it works",
     "device_meter"},
    {Metric::kGpuHourUsd, "fewbit_gpu_hour_usd", MetricType::Gauge, "dollars per hour", "",
     "Price of an hour of the device in dollars (a flag); 0: not stated", "config"},
    {Metric::kUsdPerMillionGeneratedTokens, "fewbit_usd_per_million_generated_tokens",
     MetricType::Gauge, "dollars per million tokens", "basis",
     "Over the last five minutes, by basis of the cost; absent while nothing is generated",
     "device_meter"},
    {Metric::kSloRequestsTotal, "fewbit_slo_requests_total", MetricType::Counter, "requests",
     "met, slo",
     "Requests by whether they met --slo_ttft_ms and --slo_tpot_ms; empty without targets",
     "response_builder"},
    {Metric::kTenantTokensTotal, "fewbit_tenant_tokens_total", MetricType::Counter, "tokens",
     "kind, outcome, tenant",
     "tokens_total by tenant; none: requests that name none, other: tenants behind the first "
     "--max_tenants",
     "tenants"},
    {Metric::kTenantCostUsdTotal, "fewbit_tenant_cost_usd_total", MetricType::Counter, "dollars",
     "tenant", "Dollars at --gpu_hour_usd for the device time of a tenant's requests that ended",
     "tenants, device_meter"},
    {Metric::kKvBlocks, "fewbit_kv_blocks", MetricType::Gauge, "blocks", "",
     "Blocks of the KV cache", "engine"},
    {Metric::kKvBlocksUsed, "fewbit_kv_blocks_used", MetricType::Gauge, "blocks", "",
     "Blocks of the KV cache in use", "engine"},
    {Metric::kKvBlockTokens, "fewbit_kv_block_tokens", MetricType::Gauge, "tokens", "",
     "Tokens that a block holds", "executor"},
    {Metric::kKvUsageRatio, "fewbit_kv_usage_ratio", MetricType::Gauge, "0 to 1", "",
     "Share of the KV cache in use, 0 to 1", "engine"},
    {Metric::kEngineFailed, "fewbit_engine_failed", MetricType::Gauge, "1", "",
     "1 after an error that the engine could not survive", "engine"},
    {Metric::kStartTimeSeconds, "fewbit_start_time_seconds", MetricType::Gauge, "seconds", "",
     "When the server started, seconds since 1970", "metrics"},
    {Metric::kStartupSeconds, "fewbit_startup_seconds", MetricType::Gauge, "seconds", "phase",
     "Time that the start took, by phase", "startup"},
    {Metric::kBuildInfo, "fewbit_build_info", MetricType::Gauge, "1",
     "commit, compiler, cuda, device, version", "What runs here; always 1", "build_info, executor"},
    {Metric::kQuantizationInfo, "fewbit_quantization_info", MetricType::Gauge, "1", "method",
     "How the weights are stored; always 1", "model"},
    {Metric::kWeightBits, "fewbit_weight_bits", MetricType::Gauge, "bits", "part",
     "Average bits per weight, from the bytes in the file", "model"},
    {Metric::kCanaryKlNats, "fewbit_canary_kl_nats", MetricType::Gauge, "nats", "pair",
     "KL divergence on the canary's prompts at the start: served_from_original, "
     "quantizer_from_original (what quantizing did) and served_from_quantizer (what computing "
     "here did); absent without a canary",
     "warm_up"},
    {Metric::kDeviceInfo, "fewbit_device_info", MetricType::Gauge, "1", "driver, gpu, pci",
     "The GPU of the replica; always 1", "NVML"},
    {Metric::kDeviceMemoryBytes, "fewbit_device_memory_bytes", MetricType::Gauge, "bytes", "",
     "Memory of the GPU", "NVML"},
    {Metric::kDeviceMemoryUsedBytes, "fewbit_device_memory_used_bytes", MetricType::Gauge, "bytes",
     "", "Memory of the GPU in use, by whomever", "NVML"},
    {Metric::kDeviceUtilizationRatio, "fewbit_device_utilization_ratio", MetricType::Gauge,
     "0 to 1", "",
     "Share of the time with a kernel on the GPU, 0 to 1, over the driver's last sample", "NVML"},
    {Metric::kDeviceMemoryUtilizationRatio, "fewbit_device_memory_utilization_ratio",
     MetricType::Gauge, "0 to 1", "",
     "Share of the time in which the GPU's memory was read or written, 0 to 1", "NVML"},
    {Metric::kDevicePowerWatts, "fewbit_device_power_watts", MetricType::Gauge, "watts", "",
     "What the whole GPU draws", "NVML"},
    {Metric::kDevicePowerLimitWatts, "fewbit_device_power_limit_watts", MetricType::Gauge, "watts",
     "", "What it may draw", "NVML"},
    {Metric::kDeviceTemperatureCelsius, "fewbit_device_temperature_celsius", MetricType::Gauge,
     "degrees Celsius", "", "Temperature of the GPU", "NVML"},
    {Metric::kDeviceSmClockHertz, "fewbit_device_sm_clock_hertz", MetricType::Gauge, "hertz", "",
     "Clock of the GPU's processors", "NVML"},
    {Metric::kDeviceThrottled, "fewbit_device_throttled", MetricType::Gauge, "1", "reason",
     "1 while the GPU runs slower than it could: power (limit or brake), thermal (too hot), "
     "hardware (slowdown by the board)",
     "NVML"},
    {Metric::kDeviceEccErrors, "fewbit_device_ecc_errors", MetricType::Gauge, "errors", "",
     "Memory errors that could not be corrected, since the driver was loaded", "NVML"},
    {Metric::kEnergyJoulesTotal, "fewbit_energy_joules_total", MetricType::Counter, "joules", "",
     "Energy that the whole GPU took since the server started", "NVML"},
    {Metric::kVllmNumRequestsRunning, "vllm:num_requests_running", MetricType::Gauge, "requests",
     "", "fewbit_requests_running", "engine"},
    {Metric::kVllmNumRequestsWaiting, "vllm:num_requests_waiting", MetricType::Gauge, "requests",
     "", "fewbit_requests_waiting", "engine"},
    {Metric::kVllmKvCacheUsagePerc, "vllm:kv_cache_usage_perc", MetricType::Gauge, "0 to 1", "",
     "fewbit_kv_usage_ratio", "engine"},
    {Metric::kVllmCacheConfigInfo, "vllm:cache_config_info", MetricType::Gauge, "1",
     "block_size, num_gpu_blocks", "fewbit_kv_block_tokens and fewbit_kv_blocks; always 1",
     "executor"},
};

constexpr bool InOrder() {
  for (int i = 0; i < kNumMetrics; ++i) {
    if (kTable[i].metric != static_cast<Metric>(i)) return false;
  }
  return true;
}
static_assert(std::size(kTable) == kNumMetrics && InOrder(), "the table is indexed by Metric");

const char* NameOf(MetricType type) {
  if (type == MetricType::Counter) return "counter";
  return type == MetricType::Gauge ? "gauge" : "histogram";
}

}  // namespace

std::span<const MetricRow, kNumMetrics> MetricTable() {
  return std::span<const MetricRow, kNumMetrics>(kTable);
}

const MetricRow& RowOf(Metric metric) { return kTable[static_cast<size_t>(metric)]; }

bool IsAlias(const MetricRow& row) { return std::string_view(row.name).starts_with("vllm:"); }

std::string MetricsReference() {
  std::string text =
      "| name | type | unit | labels | meaning | from |\n|---|---|---|---|---|---|\n";
  for (const MetricRow& row : kTable) {
    absl::StrAppend(&text, "| `", row.name, "` | ", NameOf(row.type), " | ", row.unit, " | ",
                    row.labels, " | ", row.help, " | ", row.source, " |\n");
  }
  return text;
}

}  // namespace fewbit
