#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/tls.h"
#include "server/without_plugins.h"

namespace fewbit {
namespace {

// After the deadline of a drain: for clients to read the ends of their streams, and for short calls
// to end.
constexpr absl::Duration kLastReads = absl::Seconds(2);
constexpr absl::Duration kGrace = absl::Milliseconds(200);

EngineOptions EngineOptionsOf(const Config& config, const ExecutorInfo& device) {
  EngineOptions options;
  options.max_running = config.max_running;
  // Admission bounds running and waiting together. For the engine a request waits until a step has
  // taken it, so a burst that the running places can hold must fit its queue, too.
  options.max_waiting = config.max_running + config.max_waiting;
  options.max_waiting_tokens = config.max_waiting_tokens;
  options.step_token_budget = config.step_tokens > 0 ? config.step_tokens : device.max_step_tokens;
  return options;
}

AdmissionLimits AdmissionLimitsOf(const Config& config) {
  AdmissionLimits limits;
  limits.max_requests = config.max_running + config.max_waiting;
  limits.max_streams = config.max_streams;
  limits.max_waiting_tokens = config.max_waiting_tokens;
  return limits;
}

AccountingOptions AccountingOptionsOf(const Config& config) {
  AccountingOptions options;
  options.gpu_hour_usd = config.gpu_hour_usd;
  options.slo_ttft_ms = config.slo_ttft_ms;
  options.slo_tpot_ms = config.slo_tpot_ms;
  options.max_tenants = config.max_tenants;
  return options;
}

StreamLimits StreamLimitsOf(const Config& config) {
  StreamLimits limits;
  limits.buffer_bytes = static_cast<size_t>(config.stream_buffer_kb) * 1024;
  limits.write_timeout = absl::Seconds(config.write_timeout_seconds);
  return limits;
}

void SetChannelArguments(const Config& config, grpc::ServerBuilder* builder) {
  const int keepalive_ms = static_cast<int>(config.keepalive_seconds * 1000);
  builder->SetMaxReceiveMessageSize(config.max_message_mb << 20);
  builder->SetMaxSendMessageSize(-1);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, config.max_metadata_kb * 1024);
  // Otherwise a second server on the port would start and take half of the connections.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, keepalive_ms);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, std::min(keepalive_ms, 20'000));
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // A client that pings more often than that is disconnected at the third one.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
}

}  // namespace

absl::Status Server::CheckFiles(const Config& config) {
  absl::Status status = CheckTlsFiles(config);
  if (status.ok() && !config.api_keys_file.empty()) {
    status = ApiKeyFile::Open(config.api_keys_file).status();
  }
  return status;
}

absl::Status Server::CheckNumbers(const Config& config, const ExecutorInfo& device) {
  return ValidateEngineOptions(EngineOptionsOf(config, device), device);
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Config& config, ServedModel model,
                                                      const Tokenizer* tokenizer,
                                                      Executor* executor) {
  absl::Status status = CheckNumbers(config, executor->info());
  if (!status.ok()) return status;
  std::unique_ptr<ApiKeyFile> keys;
  if (!config.api_keys_file.empty()) {
    absl::StatusOr<std::unique_ptr<ApiKeyFile>> opened = ApiKeyFile::Open(config.api_keys_file);
    if (!opened.ok()) return opened.status();
    keys = *std::move(opened);
  }
  auto server = std::unique_ptr<Server>(
      new Server(config, std::move(model), tokenizer, executor, std::move(keys)));
  status = server->Listen(config);
  if (!status.ok()) return status;
  return server;
}

Server::Server(const Config& config, ServedModel model, const Tokenizer* tokenizer,
               Executor* executor, std::unique_ptr<ApiKeyFile> keys)
    : model_(std::move(model)),
      keys_(std::move(keys)),
      stats_(AccountingOptionsOf(config)),
      emitter_(&live_, &stats_),
      engine_(EngineOptionsOf(config, executor->info()), executor, &emitter_),
      admission_(
          AdmissionLimitsOf(config), [this] { return engine_.stats(); }, &stats_),
      service_(ServiceParts{.model = &model_,
                            .keys = keys_.get(),
                            .tokenizer = tokenizer,
                            .engine = &engine_,
                            .emitter = &emitter_,
                            .admission = &admission_,
                            .live = &live_,
                            .stats = &stats_},
               StreamLimitsOf(config)),
      readiness_([this] { return engine_.stats(); }, absl::Seconds(config.stall_seconds)) {
  emitter_.Start(&engine_, [this] { readiness_.Look(); });
}

absl::Status Server::Listen(const Config& config) {
  const absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> credentials =
      MakeServerCredentials(config);
  if (!credentials.ok()) return credentials.status();
  if (config.metrics_port >= 0) {
    if (!model_.device.pci_bus_id.empty()) {
      device_ = std::make_unique<DeviceSampler>(
          [pci_bus_id = model_.device.pci_bus_id] { return OpenNvml(pci_bus_id); });
    }
    absl::StatusOr<std::unique_ptr<MetricsServer>> metrics = MetricsServer::Start(
        config.host, config.metrics_port,
        std::make_shared<MetricsCollector>(&stats_, &engine_, device_.get(), model_));
    if (!metrics.ok()) return metrics.status();
    metrics_ = *std::move(metrics);
  }
  grpc::EnableDefaultHealthCheckService(true);
  if (config.health_port >= 0) {
    absl::StatusOr<std::unique_ptr<HealthPort>> health =
        HealthPort::Start(config.host, config.health_port);
    if (!health.ok()) return health.status();
    health_ = *std::move(health);
  }
  const std::string address = absl::StrCat(config.host, ":", config.port);
  grpc::ServerBuilder builder;
  if (config.reflection) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  } else {
    builder.SetOption(std::make_unique<WithoutPlugins>());
  }
  SetChannelArguments(config, &builder);
  int port = 0;
  builder.AddListeningPort(address, *credentials, &port);
  builder.RegisterService(&service_);
  grpc_ = builder.BuildAndStart();
  if (grpc_ == nullptr || port == 0) {
    grpc_ = nullptr;
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address,
                     " for gRPC: the port is taken or the address is not this "
                     "machine's; choose another --port"));
  }
  port_ = port;
  std::vector<grpc::HealthCheckServiceInterface*> health = {grpc_->GetHealthCheckService()};
  if (health_ != nullptr) health.push_back(health_->service());
  readiness_.Start(std::move(health));
  return absl::OkStatus();
}

Server::~Server() { Drain(absl::Now()); }

void Server::Drain(absl::Time deadline) {
  if (drained_) return;
  drained_ = true;
  admission_.StartDraining();
  if (grpc_ != nullptr) readiness_.StartDraining();
  engine_.Drain(deadline);  // its last events are with the emitter now
  if (grpc_ != nullptr) {
    admission_.WaitForStreams(std::max(deadline, absl::Now() + kLastReads));
    // What is open now are health watches, other unary calls and readers that had their time.
    grpc_->Shutdown(absl::ToChronoTime(absl::Now() + kGrace));
    grpc_->Wait();
  }
  // Last: a call that was on its way to the engine when the drain began is refused through the
  // emitter.
  emitter_.Stop();
}

}  // namespace fewbit
