// Health on a plain port of its own, and nothing else: the gRPC probes of Kubernetes speak neither
// TLS nor API keys, which the main port may ask for.
#pragma once

#include <grpcpp/completion_queue.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace fewbit {

// Thread-safe after Start, apart from destruction, which ends open watches.
class HealthPort {
 public:
  // Listens when it returns; port 0: any free one. UNAVAILABLE: the port is taken. Needs gRPC's
  // default health service to be enabled.
  static absl::StatusOr<std::unique_ptr<HealthPort>> Start(const std::string& host, int32_t port);
  ~HealthPort();

  int32_t port() const { return port_; }
  grpc::HealthCheckServiceInterface* service() { return server_->GetHealthCheckService(); }

 private:
  HealthPort() = default;

  // A server without services of its own does not start without a queue. Nothing is ever in it.
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  int32_t port_ = 0;
};

}  // namespace fewbit
