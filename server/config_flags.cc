#include "server/config_flags.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/build_info.h"
#include "server/flag_help.h"

namespace fewbit {

// A number of bytes as people write it: 512M, 1.5G, 0.
struct ByteSize {
  int64_t bytes = 0;
};

bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error) {
  absl::string_view number = text;
  double unit = 1;
  absl::ConsumeSuffix(&number, "B");
  absl::ConsumeSuffix(&number, "i");
  if (absl::ConsumeSuffix(&number, "K") || absl::ConsumeSuffix(&number, "k")) {
    unit = 1024.0;
  } else if (absl::ConsumeSuffix(&number, "M")) {
    unit = 1024.0 * 1024.0;
  } else if (absl::ConsumeSuffix(&number, "G")) {
    unit = 1024.0 * 1024.0 * 1024.0;
  }
  double value = 0.0;
  if (!absl::SimpleAtod(number, &value) || !(value >= 0.0) || value * unit > 1e15) {
    *error = "expected a number of bytes such as 512M or 1.5G";
    return false;
  }
  size->bytes = static_cast<int64_t>(value * unit);
  return true;
}

std::string AbslUnparseFlag(const ByteSize& size) {
  constexpr int64_t kMiB = 1024 * 1024;
  if (size.bytes != 0 && size.bytes % kMiB == 0) return absl::StrCat(size.bytes / kMiB, "M");
  return absl::StrCat(size.bytes);
}

}  // namespace fewbit

ABSL_FLAG(std::string, model, fewbit::Config().model,
          "directory of the checkpoint: a Hugging Face one or one made by fewbit-quantize");
ABSL_FLAG(std::string, model_name, fewbit::Config().model_name,
          "name clients call it by; default: the last component of --model");
ABSL_FLAG(std::string, device, fewbit::Config().device,
          "cpu, cuda (the first GPU) or cuda:N; auto: the first GPU if this build and this machine "
          "have one, else the CPU");
ABSL_FLAG(int32_t, threads, fewbit::Config().threads,
          "threads of the CPU runtime; 0: one per processor");
ABSL_FLAG(
    fewbit::ByteSize, kv_memory, fewbit::ByteSize{fewbit::Config().kv_memory},
    "bytes of KV cache, e.g. 512M or 2G; 0: enough for --max_running full contexts, at most a "
    "quarter of the machine's memory or what --gpu_memory_utilization leaves");
ABSL_FLAG(
    int32_t, max_context, fewbit::Config().max_context,
    "tokens that a request may have, prompt and answer together; 0: as many as the model can");
ABSL_FLAG(std::string, kv_type, fewbit::Config().kv_type,
          "numbers in the KV cache: f16 or f32 on the CPU; f16, bf16 or i8 (half the memory) on a "
          "GPU");
ABSL_FLAG(double, gpu_memory_utilization, fewbit::Config().gpu_memory_utilization,
          "share of the GPU's memory to use, for weights, buffers and KV cache");
ABSL_FLAG(int32_t, lm_head_bits, fewbit::Config().lm_head_bits,
          "on a GPU: 16, 8 or 4 rounds the output layer to so many bits when it is loaded; 0: as "
          "the checkpoint has it");
ABSL_FLAG(double, canary_kl_limit, fewbit::Config().canary_kl_limit,
          "nats (KL divergence) that the answers to the checkpoint's canary.json may be from those "
          "stored there, and further from the original model's than those are; beyond it the "
          "server ends before it is ready");
ABSL_FLAG(std::string, host, fewbit::Config().host,
          "address of both ports; 0.0.0.0 or [::] for every interface");
ABSL_FLAG(int32_t, port, fewbit::Config().port, "gRPC port; 0: any free one");
ABSL_FLAG(int32_t, metrics_port, fewbit::Config().metrics_port,
          "port of /metrics; 0: any free one, -1: none");
ABSL_FLAG(int32_t, health_port, fewbit::Config().health_port,
          "plain-text port with the health service only, for probes that cannot speak TLS; 0: any "
          "free one, -1: none");
ABSL_FLAG(std::string, tls_cert, fewbit::Config().tls_cert,
          "PEM file with the server's certificate and what leads to its CA; the gRPC port then "
          "speaks TLS");
ABSL_FLAG(std::string, tls_key, fewbit::Config().tls_key, "PEM file with the key of --tls_cert");
ABSL_FLAG(std::string, tls_client_ca, fewbit::Config().tls_client_ca,
          "PEM file with a CA; clients must show a certificate that it signed");
ABSL_FLAG(int32_t, tls_refresh_seconds, fewbit::Config().tls_refresh_seconds,
          "how often the three files are read again: new ones hold for new connections");
ABSL_FLAG(bool, insecure_bind, fewbit::Config().insecure_bind,
          "allow plain text on a --host that is not loopback; --metrics_port and --health_port are "
          "plain text always");
ABSL_FLAG(std::string, api_keys_file, fewbit::Config().api_keys_file,
          "file of TENANT:SHA256 lines; calls must then carry a key whose hash is there, and its "
          "tenant pays");
ABSL_FLAG(bool, reflection, fewbit::Config().reflection,
          "tell clients the API (server reflection), for grpcurl and the like; needs no key");
ABSL_FLAG(int32_t, max_running, fewbit::Config().max_running, "sequences generated at a time");
ABSL_FLAG(int32_t, max_waiting, fewbit::Config().max_waiting,
          "requests that may wait; beyond: RESOURCE_EXHAUSTED");
ABSL_FLAG(int64_t, max_waiting_tokens, fewbit::Config().max_waiting_tokens,
          "prompt tokens that may wait; beyond: RESOURCE_EXHAUSTED");
ABSL_FLAG(int32_t, step_tokens, fewbit::Config().step_tokens,
          "tokens per step; long prompts are cut into chunks of what is left of it; 0: 512 on the "
          "CPU, 2048 on a GPU. On a GPU a seed gives the same tokens beside any other requests up "
          "to 64, if max_running is at most 62");
ABSL_FLAG(int32_t, max_new_tokens, fewbit::Config().max_new_tokens,
          "tokens generated for a request that sets no limit");
ABSL_FLAG(int32_t, max_streams, fewbit::Config().max_streams,
          "open Generate and GenerateStream calls; beyond: RESOURCE_EXHAUSTED");
ABSL_FLAG(int32_t, max_message_mb, fewbit::Config().max_message_mb, "largest request message, MiB");
ABSL_FLAG(int32_t, max_metadata_kb, fewbit::Config().max_metadata_kb,
          "largest metadata of a call, KiB; beyond: RESOURCE_EXHAUSTED");
ABSL_FLAG(int32_t, stream_buffer_kb, fewbit::Config().stream_buffer_kb,
          "unread output a slow reader may pile up before its call is cancelled, KiB");
ABSL_FLAG(double, write_timeout_seconds, fewbit::Config().write_timeout_seconds,
          "time a reader has for the rest once the generation has ended");
ABSL_FLAG(double, keepalive_seconds, fewbit::Config().keepalive_seconds,
          "silence after which a connection is pinged; no answer ends its requests");
ABSL_FLAG(
    double, gpu_hour_usd, fewbit::Config().gpu_hour_usd,
    "price in dollars of an hour of the replica's device, for the cost metrics: of its GPU or, "
    "with the CPU runtime, of the machine's share it runs on; 0: not stated");
ABSL_FLAG(double, slo_ttft_ms, fewbit::Config().slo_ttft_ms,
          "target for the time to the first token, counted in slo_requests_total; 0: none");
ABSL_FLAG(double, slo_tpot_ms, fewbit::Config().slo_tpot_ms,
          "target for the mean time per further token of a request, likewise; 0: none");
ABSL_FLAG(int32_t, max_tenants, fewbit::Config().max_tenants,
          "names in the metadata x-tenant-id that get series of their own; the rest is \"other\"");
ABSL_FLAG(double, drain_seconds, fewbit::Config().drain_seconds,
          "after SIGTERM or Ctrl-C running requests have this long to end; a second signal ends at "
          "once");
ABSL_FLAG(double, stall_seconds, fewbit::Config().stall_seconds,
          "a step that takes longer turns the health service to NOT_SERVING");
ABSL_FLAG(std::string, log_level, fewbit::Config().log_level, "debug, info, warning or error");
ABSL_FLAG(bool, check, fewbit::Config().check,
          "check the flags, their files and the model, run a token, say what would be served, and "
          "exit: 0, or 1 with the error");

namespace fewbit {
namespace {

std::vector<FlagGroup> Groups() {
  return {
      {"Model",
       {"model", "model_name", "device", "threads", "max_context", "kv_memory", "kv_type",
        "gpu_memory_utilization", "lm_head_bits", "canary_kl_limit"}},
      {"Addresses", {"host", "port", "metrics_port", "health_port"}},
      {"Security",
       {"tls_cert", "tls_key", "tls_client_ca", "tls_refresh_seconds", "insecure_bind",
        "api_keys_file", "reflection"}},
      {"Batching", {"max_running", "max_waiting", "max_waiting_tokens", "step_tokens"}},
      {"Clients",
       {"max_new_tokens", "max_streams", "max_message_mb", "max_metadata_kb", "stream_buffer_kb",
        "write_timeout_seconds", "keepalive_seconds"}},
      {"Accounting", {"gpu_hour_usd", "slo_ttft_ms", "slo_tpot_ms", "max_tenants"}},
      {"Life cycle", {"drain_seconds", "stall_seconds", "log_level", "check"}},
  };
}

}  // namespace

std::string HelpText() {
  return absl::StrCat(
      "fewbit-server: serves a language model with 2-, 4- and 16-bit weights over gRPC.\n\n"
      "  fewbit-server --model=DIR [--port=8033] [--metrics_port=8034] ...\n"
      "  fewbit-server --model=DIR ... --check\n",
      FlagHelp(Groups()),
      "\nAlso\n"
      "  --version                 what this is\n"
      "  --flagfile=FILE           reads flags from a file, one per line\n"
      "\nDefaults are in parentheses. SIGTERM or Ctrl-C drains and exits 0.\n");
}

absl::StatusOr<Config> ParseCommandLine(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const absl::string_view argument = argv[i];
    if (argument == "--") break;
    if (argument == "--help" || argument == "-help" || argument == "-h") {
      std::fputs(HelpText().c_str(), stdout);
      std::exit(0);
    }
  }
  absl::FlagsUsageConfig usage;
  usage.version_string = [] { return VersionText("fewbit-server"); };
  absl::SetFlagsUsageConfig(usage);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("unexpected argument '", rest[1], "'; see --help"));
  }
  Config config;
  config.model = absl::GetFlag(FLAGS_model);
  config.model_name = absl::GetFlag(FLAGS_model_name);
  config.device = absl::GetFlag(FLAGS_device);
  config.threads = absl::GetFlag(FLAGS_threads);
  config.max_context = absl::GetFlag(FLAGS_max_context);
  config.kv_memory = absl::GetFlag(FLAGS_kv_memory).bytes;
  config.kv_type = absl::GetFlag(FLAGS_kv_type);
  config.gpu_memory_utilization = absl::GetFlag(FLAGS_gpu_memory_utilization);
  config.canary_kl_limit = absl::GetFlag(FLAGS_canary_kl_limit);
  config.lm_head_bits = absl::GetFlag(FLAGS_lm_head_bits);
  config.host = absl::GetFlag(FLAGS_host);
  config.port = absl::GetFlag(FLAGS_port);
  config.metrics_port = absl::GetFlag(FLAGS_metrics_port);
  config.health_port = absl::GetFlag(FLAGS_health_port);
  config.tls_cert = absl::GetFlag(FLAGS_tls_cert);
  config.tls_key = absl::GetFlag(FLAGS_tls_key);
  config.tls_client_ca = absl::GetFlag(FLAGS_tls_client_ca);
  config.tls_refresh_seconds = absl::GetFlag(FLAGS_tls_refresh_seconds);
  config.insecure_bind = absl::GetFlag(FLAGS_insecure_bind);
  config.api_keys_file = absl::GetFlag(FLAGS_api_keys_file);
  config.reflection = absl::GetFlag(FLAGS_reflection);
  config.max_running = absl::GetFlag(FLAGS_max_running);
  config.max_waiting = absl::GetFlag(FLAGS_max_waiting);
  config.max_waiting_tokens = absl::GetFlag(FLAGS_max_waiting_tokens);
  config.step_tokens = absl::GetFlag(FLAGS_step_tokens);
  config.max_new_tokens = absl::GetFlag(FLAGS_max_new_tokens);
  config.max_streams = absl::GetFlag(FLAGS_max_streams);
  config.max_message_mb = absl::GetFlag(FLAGS_max_message_mb);
  config.max_metadata_kb = absl::GetFlag(FLAGS_max_metadata_kb);
  config.stream_buffer_kb = absl::GetFlag(FLAGS_stream_buffer_kb);
  config.write_timeout_seconds = absl::GetFlag(FLAGS_write_timeout_seconds);
  config.keepalive_seconds = absl::GetFlag(FLAGS_keepalive_seconds);
  config.gpu_hour_usd = absl::GetFlag(FLAGS_gpu_hour_usd);
  config.slo_ttft_ms = absl::GetFlag(FLAGS_slo_ttft_ms);
  config.slo_tpot_ms = absl::GetFlag(FLAGS_slo_tpot_ms);
  config.max_tenants = absl::GetFlag(FLAGS_max_tenants);
  config.drain_seconds = absl::GetFlag(FLAGS_drain_seconds);
  config.stall_seconds = absl::GetFlag(FLAGS_stall_seconds);
  config.log_level = absl::GetFlag(FLAGS_log_level);
  config.check = absl::GetFlag(FLAGS_check);
  return config;
}

}  // namespace fewbit
