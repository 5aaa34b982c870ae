// Every family of /metrics, once: its name, type, labels and words. MetricsCollector takes them
// from here, and so does the reference in server/README.md (metrics_reference prints it; a test
// compares).
#pragma once

#include <prometheus/metric_type.h>

#include <cstdint>
#include <span>
#include <string>

namespace fewbit {

enum class Metric : uint8_t {
  kRequestsTotal,
  kRequestsRunning,
  kRequestsWaiting,
  kWaitingTokens,
  kOpenStreams,
  kAbandonedCallsTotal,
  kQueueSeconds,
  kTimeToFirstTokenSeconds,
  kInterTokenSeconds,
  kTimePerOutputTokenSeconds,
  kRequestSeconds,
  kRequestPromptTokens,
  kRequestGeneratedTokens,
  kTokensTotal,
  kWastedTokensTotal,
  kStepsTotal,
  kStepTokensTotal,
  kDroppedStepTokensTotal,
  kBusySecondsTotal,
  kStepBatchSize,
  kStepTokens,
  kStepSeconds,
  kGpuSecondsTotal,
  kCostUsdTotal,
  kGpuHourUsd,
  kUsdPerMillionGeneratedTokens,
  kSloRequestsTotal,
  kTenantTokensTotal,
  kTenantCostUsdTotal,
  kKvBlocks,
  kKvBlocksUsed,
  kKvBlockTokens,
  kKvUsageRatio,
  kEngineFailed,
  kStartTimeSeconds,
  kStartupSeconds,
  kBuildInfo,
  kQuantizationInfo,
  kWeightBits,
  kCanaryKlNats,
  kDeviceInfo,
  kDeviceMemoryBytes,
  kDeviceMemoryUsedBytes,
  kDeviceUtilizationRatio,
  kDeviceMemoryUtilizationRatio,
  kDevicePowerWatts,
  kDevicePowerLimitWatts,
  kDeviceTemperatureCelsius,
  kDeviceSmClockHertz,
  kDeviceThrottled,
  kDeviceEccErrors,
  kEnergyJoulesTotal,
  kVllmNumRequestsRunning,
  kVllmNumRequestsWaiting,
  kVllmKvCacheUsagePerc,
  kVllmCacheConfigInfo,
};
inline constexpr int kNumMetrics = static_cast<int>(Metric::kVllmCacheConfigInfo) + 1;

struct MetricRow {
  Metric metric;
  const char* name;  // as scraped
  prometheus::MetricType type;
  const char* unit;
  const char* labels;  // in the order of the alphabet, besides the model's, which all have
  const char* help;
  const char* source;  // the file of server/ that counts it, or who else knows it
};

// By Metric.
std::span<const MetricRow, kNumMetrics> MetricTable();

const MetricRow& RowOf(Metric metric);

// What vLLM calls its metrics, for routers that know these: an alias, with the label `model_name`
// instead of `model`, as vLLM has it.
bool IsAlias(const MetricRow& row);

// The table as Markdown: a header, then one line per metric.
std::string MetricsReference();

}  // namespace fewbit
