#include "server/health_port.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/without_plugins.h"

namespace fewbit {
namespace {

constexpr int kMaxMessageBytes = 4096;  // a health request is a service's name
constexpr absl::Duration kGrace = absl::Milliseconds(100);

}  // namespace

absl::StatusOr<std::unique_ptr<HealthPort>> HealthPort::Start(const std::string& host,
                                                              int32_t port) {
  auto health = std::unique_ptr<HealthPort>(new HealthPort());
  grpc::ServerBuilder builder;
  builder.SetOption(std::make_unique<WithoutPlugins>());
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  const std::string address = absl::StrCat(host, ":", port);
  int bound = 0;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &bound);
  health->queue_ = builder.AddCompletionQueue();
  health->server_ = builder.BuildAndStart();
  if (health->server_ == nullptr || bound == 0) {
    health->server_ = nullptr;
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address,
                     " for health: the port is taken or the address is not this machine's; choose "
                     "another --health_port"));
  }
  health->port_ = bound;
  return health;
}

HealthPort::~HealthPort() {
  if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::Now() + kGrace));
  queue_->Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_->Next(&tag, &ok)) {
  }
}

}  // namespace fewbit
