// What the standard health service says. "" is liveness, "fewbit.v1.GenerationService" readiness:
// both SERVING from the start; a drain ends readiness; an engine that failed, or whose step takes
// longer than the limit, ends both, so that the process gets no new requests and is restarted by
// whoever watches liveness. A stall that passes makes it ready again.
#pragma once

#include <grpcpp/health_check_service_interface.h>

#include <functional>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "runtime/engine.h"
#include "scheduler/mutex.h"

namespace fewbit {

inline constexpr char kGenerationServiceName[] = "fewbit.v1.GenerationService";

// Thread-safe: mu_. Its thread sleeps until the engine could have been stuck for too long, or
// somebody calls.
class Readiness {
 public:
  // `engine_stats` is called on its thread.
  Readiness(std::function<EngineStats()> engine_stats, absl::Duration stall_limit);
  ~Readiness();

  // Publishes to all of `health` from now on; they outlive this object. Once.
  void Start(std::vector<grpc::HealthCheckServiceInterface*> health);

  // Unready from now on.
  void StartDraining();

  // Something suggests that the engine has failed: look now.
  void Look();

 private:
  void Run();
  void Publish(bool live, bool ready) FEWBIT_REQUIRES(mu_);

  const std::function<EngineStats()> engine_stats_;
  const absl::Duration stall_limit_;

  std::vector<grpc::HealthCheckServiceInterface*> health_;  // set before the thread starts
  Mutex mu_;
  CondVar wake_;
  bool stopping_ FEWBIT_GUARDED_BY(mu_) = false;
  bool draining_ FEWBIT_GUARDED_BY(mu_) = false;
  bool look_ FEWBIT_GUARDED_BY(mu_) = false;
  bool live_ FEWBIT_GUARDED_BY(mu_) = true;
  bool ready_ FEWBIT_GUARDED_BY(mu_) = true;
  std::thread thread_;
};

}  // namespace fewbit
