#include "server/config.h"

#include <cmath>
#include <filesystem>
#include <initializer_list>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace fewbit {
namespace {

absl::Status InRange(absl::string_view flag, double value, double low, double high) {
  if (std::isfinite(value) && value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, "=", value, " is outside [", low, ", ", high, "]"));
}

absl::Status OneOf(absl::string_view flag, absl::string_view value,
                   std::initializer_list<absl::string_view> choices) {
  for (absl::string_view choice : choices) {
    if (value == choice) return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, "=", value, " is none of: ", absl::StrJoin(choices, ", ")));
}

// Whether this build and machine have it, and what goes with it, is the runtime's business.
absl::Status ValidateDevice(const Config& config) {
  int32_t number = 0;
  const bool numbered = absl::StartsWith(config.device, "cuda:") &&
                        absl::SimpleAtoi(config.device.substr(5), &number) && number >= 0;
  absl::Status status;
  if (!numbered) status = OneOf("device", config.device, {"auto", "cpu", "cuda", "cuda:N"});
  if (status.ok()) status = OneOf("kv_type", config.kv_type, {"f16", "f32", "bf16", "i8"});
  if (!status.ok()) return status;
  return OneOf("lm_head_bits", absl::StrCat(config.lm_head_bits), {"0", "4", "8", "16"});
}

absl::Status ValidateNumbers(const Config& c) {
  constexpr double kPort = 65535;
  constexpr double kDay = 86400;
  const struct {
    absl::string_view flag;
    double value, low, high;
  } ranges[] = {
      {"threads", static_cast<double>(c.threads), 0, 1024},
      {"port", static_cast<double>(c.port), 0, kPort},
      {"metrics_port", static_cast<double>(c.metrics_port), -1, kPort},
      {"health_port", static_cast<double>(c.health_port), -1, kPort},
      {"tls_refresh_seconds", static_cast<double>(c.tls_refresh_seconds), 1, kDay},
      {"max_running", static_cast<double>(c.max_running), 1, 4096},
      {"max_waiting", static_cast<double>(c.max_waiting), 1, 1 << 20},
      {"max_waiting_tokens", static_cast<double>(c.max_waiting_tokens), 1, 1e12},
      {"step_tokens", static_cast<double>(c.step_tokens), 0, 1 << 16},
      {"max_context", static_cast<double>(c.max_context), 0, 1 << 24},
      {"canary_kl_limit", c.canary_kl_limit, 1e-6, 100},
      {"gpu_memory_utilization", c.gpu_memory_utilization, 0.05, 0.98},
      {"max_new_tokens", static_cast<double>(c.max_new_tokens), 1, 1 << 24},
      {"max_streams", static_cast<double>(c.max_streams), 1, 1 << 20},
      {"max_message_mb", static_cast<double>(c.max_message_mb), 1, 1024},
      {"max_metadata_kb", static_cast<double>(c.max_metadata_kb), 1, 1024},
      {"stream_buffer_kb", static_cast<double>(c.stream_buffer_kb), 1, 1 << 20},
      {"write_timeout_seconds", c.write_timeout_seconds, 0.01, kDay},
      {"keepalive_seconds", c.keepalive_seconds, 1, kDay},
      {"gpu_hour_usd", c.gpu_hour_usd, 0, 1e6},
      {"slo_ttft_ms", c.slo_ttft_ms, 0, kDay * 1e3},
      {"slo_tpot_ms", c.slo_tpot_ms, 0, kDay * 1e3},
      {"max_tenants", static_cast<double>(c.max_tenants), 0, 1000},
      {"drain_seconds", c.drain_seconds, 0, kDay},
      {"stall_seconds", c.stall_seconds, 0.1, kDay},
  };
  for (const auto& range : ranges) {
    absl::Status status = InRange(range.flag, range.value, range.low, range.high);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

bool IsLoopback(absl::string_view host) {
  return host == "localhost" || host == "::1" || host == "[::1]" ||
         (absl::StartsWith(host, "127.") &&
          host.find_first_not_of("0123456789.") == absl::string_view::npos);
}

// The files themselves are CheckTlsFiles' business (tls.h).
absl::Status ValidateSecurity(const Config& config) {
  if (config.tls_cert.empty() != config.tls_key.empty()) {
    return absl::InvalidArgumentError(config.tls_cert.empty()
                                          ? "--tls_key is given without --tls_cert"
                                          : "--tls_cert is given without --tls_key");
  }
  if (config.tls_cert.empty() && !config.tls_client_ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls_client_ca is given without --tls_cert and --tls_key: there is no TLS to ask for "
        "client certificates");
  }
  if (config.tls_cert.empty() && !config.insecure_bind && !IsLoopback(config.host)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--host=", config.host,
        " is not a loopback address, and without TLS prompts and answers would cross the network "
        "in plain text: give --tls_cert and --tls_key, or allow it with --insecure_bind"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const Config& config) {
  if (config.model.empty()) {
    return absl::InvalidArgumentError("--model is missing: the directory of a checkpoint");
  }
  if (config.host.empty()) return absl::InvalidArgumentError("--host is empty");
  absl::Status status = ValidateNumbers(config);
  if (!status.ok()) return status;
  if (config.step_tokens > 0 && config.step_tokens < config.max_running) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--step_tokens=", config.step_tokens, " is below --max_running=", config.max_running,
        ": a step needs a token for every running sequence"));
  }
  if (config.kv_memory < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--kv_memory=", config.kv_memory, " is negative"));
  }
  if (config.port != 0 && config.port == config.metrics_port) {
    return absl::InvalidArgumentError(
        absl::StrCat("--port and --metrics_port are both ", config.port));
  }
  if (config.health_port > 0 &&
      (config.health_port == config.port || config.health_port == config.metrics_port)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--health_port=", config.health_port, " is the port of something else"));
  }
  status = ValidateSecurity(config);
  if (!status.ok()) return status;
  status = ValidateDevice(config);
  if (!status.ok()) return status;
  return OneOf("log_level", config.log_level, {"debug", "info", "warning", "error"});
}

std::string ServedName(const Config& config) {
  if (!config.model_name.empty()) return config.model_name;
  std::filesystem::path path(config.model);
  if (!path.has_filename()) path = path.parent_path();  // "models/demo/" names demo
  const std::string name = path.filename().string();
  return name.empty() || name == "." || name == ".." ? "model" : name;
}

}  // namespace fewbit
