// A running server: builds everything between an executor and the two ports from a Config, and
// takes it down in order. main.cc uses it with the CPU runtime, tests and benches with the fake
// executor.
#pragma once

#include <grpcpp/server.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/engine.h"
#include "runtime/executor.h"
#include "server/admission.h"
#include "server/api_key_file.h"
#include "server/config.h"
#include "server/device_sampler.h"
#include "server/emitter.h"
#include "server/generation_service.h"
#include "server/health_port.h"
#include "server/live_requests.h"
#include "server/metrics.h"
#include "server/readiness.h"
#include "server/served_model.h"
#include "server/tokenizer.h"

namespace fewbit {

// Thread-safe after Start, apart from destruction.
class Server {
 public:
  // What Start would say about the files of TLS and API keys.
  static absl::Status CheckFiles(const Config& config);
  // What Start would say about the numbers of --max_running and the like with this executor.
  static absl::Status CheckNumbers(const Config& config, const ExecutorInfo& device);

  // Listens when it returns. `tokenizer` and `executor` outlive the server. UNAVAILABLE: a port is
  // taken; INVALID_ARGUMENT: CheckNumbers or CheckFiles.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Config& config, ServedModel model,
                                                       const Tokenizer* tokenizer,
                                                       Executor* executor);
  ~Server();  // as Drain(absl::Now())

  // Unready and refusing at once; running and waiting requests go on until `deadline`, then end
  // with what there is; then the ports close. Returns when all is over. Idempotent, one caller at a
  // time.
  void Drain(absl::Time deadline);

  int32_t port() const { return port_; }
  int32_t metrics_port() const { return metrics_ == nullptr ? -1 : metrics_->port(); }
  int32_t health_port() const { return health_ == nullptr ? -1 : health_->port(); }
  EngineStats engine_stats() const { return engine_.stats(); }
  const ServerStats& stats() const { return stats_; }

 private:
  Server(const Config& config, ServedModel model, const Tokenizer* tokenizer, Executor* executor,
         std::unique_ptr<ApiKeyFile> keys);
  absl::Status Listen(const Config& config);

  // In the order of the line, so that destruction runs against it.
  const ServedModel model_;
  const std::unique_ptr<ApiKeyFile> keys_;  // null: everybody is let in
  ServerStats stats_;
  LiveRequests live_;
  Emitter emitter_;
  Engine engine_;
  Admission admission_;
  GenerationService service_;
  std::unique_ptr<DeviceSampler> device_;  // null without a GPU
  std::unique_ptr<MetricsServer> metrics_;
  std::unique_ptr<HealthPort> health_;
  std::unique_ptr<grpc::Server> grpc_;
  Readiness readiness_;  // its thread talks to the health services above
  int32_t port_ = 0;
  bool drained_ = false;
};

}  // namespace fewbit
