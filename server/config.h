// Everything about a server that can be chosen, as one struct: each field is a flag of the same
// name (config_flags.cc), with its unit and default here. Nothing else reads flags or the
// environment.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace fewbit {

struct Config {
  // Model.
  std::string model;            // directory of the checkpoint
  std::string model_name;       // empty: the last component of `model`
  std::string device = "auto";  // cpu, cuda, cuda:N; auto: cuda if build and machine have it
  int32_t threads = 0;          // of the CPU runtime; 0: one per processor
  int32_t max_context = 0;      // tokens of a request, prompt and output; 0: the model's
  int64_t kv_memory = 0;  // bytes of KV cache; 0: max_running full contexts, at most 1/4 of RAM
                          // or what gpu_memory_utilization leaves
  std::string kv_type = "f16";          // cpu: f16, f32; cuda: f16, bf16, i8
  double gpu_memory_utilization = 0.9;  // of the GPU's memory: weights, buffers and KV cache
  double canary_kl_limit = 0.05;        // nats that the canary's answers may be off (warm_up.h)
  int32_t lm_head_bits = 0;  // cuda: rounds the output layer to 16, 8 or 4 bits; 0: as it is

  // Addresses.
  std::string host = "127.0.0.1";  // both ports listen here; 0.0.0.0 and [::]: every interface
  int32_t port = 8033;             // gRPC; 0: any free one
  int32_t metrics_port = 8034;     // /metrics; 0: any free one, -1: none
  int32_t health_port = -1;        // health alone, in plain text; 0: any free one, -1: none

  // Security.
  std::string tls_cert;              // PEM chain, the server's own first; empty: plain text
  std::string tls_key;               // PEM, of tls_cert
  std::string tls_client_ca;         // PEM; clients must show a certificate signed by it
  int32_t tls_refresh_seconds = 10;  // how often the three files are looked at
  bool insecure_bind = false;        // plain text beyond loopback
  std::string api_keys_file;  // keys and their tenants (api_keys.h); empty: no keys asked for
  bool reflection = true;     // on the gRPC port

  // Batching.
  int32_t max_running = 64;              // sequences in a step
  int32_t max_waiting = 256;             // requests waiting for a place in the step
  int64_t max_waiting_tokens = 1 << 20;  // prompt tokens of these requests
  int32_t step_tokens = 0;               // tokens per step, prompt chunks included; 0: by device

  // What one client can ask for or cost.
  int32_t max_new_tokens = 1024;      // for a request that does not say
  int32_t max_streams = 4096;         // open Generate and GenerateStream calls
  int32_t max_message_mb = 8;         // MiB of a request message
  int32_t max_metadata_kb = 8;        // KiB of a call's metadata
  int32_t stream_buffer_kb = 1024;    // KiB of unread output before a reader is cut off
  double write_timeout_seconds = 60;  // for the last unread output after the generation has ended
  double keepalive_seconds = 60;      // silence after which a peer must answer a ping

  // Accounting.
  double gpu_hour_usd = 0;  // dollars per hour of the replica's device (GPU or CPUs); 0: not stated
  double slo_ttft_ms = 0;   // target: arrival to first token; 0: none
  double slo_tpot_ms = 0;   // target: mean time per further token of a request; 0: none
  int32_t max_tenants = 32;  // names in x-tenant-id with series of their own

  // Life cycle.
  double drain_seconds = 30;  // SIGTERM: running requests may go on for this long
  double stall_seconds = 60;  // a step that takes longer makes the server unready

  std::string log_level = "info";  // debug, info, warning, error
  bool check = false;              // start up to the open ports, say what would be served, exit
};

// INVALID_ARGUMENT names the flag, its value and the limit.
absl::Status Validate(const Config& config);

// model_name, or what stands for it.
std::string ServedName(const Config& config);

}  // namespace fewbit
