#include "server/client/connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"

namespace fewbit::client {
namespace {

constexpr std::string_view kService = "fewbit.v1.GenerationService";

// grpc.health.v1 has one field each way, not worth generated code: HealthCheckRequest{string
// service = 1} and HealthCheckResponse{ServingStatus status = 1}.
enum class Health : uint8_t { kUnknown = 0, kServing = 1, kNotServing = 2, kServiceUnknown = 3 };

grpc::ByteBuffer HealthRequest() {
  std::string message = "\x0A";
  message += static_cast<char>(kService.size());
  message += kService;
  const grpc::Slice slice(message);
  return grpc::ByteBuffer(&slice, 1);
}

Health ParseHealth(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return Health::kUnknown;
  std::string message;
  for (const grpc::Slice& slice : slices) {
    message.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  const bool is_status = message.size() == 2 && message[0] == '\x08' && message[1] <= 3;
  return is_status ? static_cast<Health>(message[1]) : Health::kUnknown;
}

std::string_view Describe(Health health) {
  switch (health) {
    case Health::kServing:
      return "is ready";
    case Health::kNotServing:
      return "reports that it is not ready";
    case Health::kServiceUnknown:
      return "does not serve fewbit.v1.GenerationService";
    case Health::kUnknown:
      break;
  }
  return "reports nothing about its state";
}

}  // namespace

std::shared_ptr<grpc::Channel> Connect(const ClientOptions& options, int reconnect_ms) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, reconnect_ms);
  arguments.SetMaxReceiveMessageSize(-1);
  const TlsOptions& tls = options.tls;
  if (tls.ca.empty()) {
    return grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(),
                                     arguments);
  }
  if (!tls.server_name.empty()) arguments.SetSslTargetNameOverride(tls.server_name);
  grpc::SslCredentialsOptions credentials;
  credentials.pem_root_certs = tls.ca;
  credentials.pem_cert_chain = tls.certificate;
  credentials.pem_private_key = tls.key;
  return grpc::CreateCustomChannel(options.address, grpc::SslCredentials(credentials), arguments);
}

void PrepareCall(const ClientOptions& options, grpc::ClientContext* context) {
  SetTimeout(options.timeout_seconds, context);
  if (!options.api_key.empty()) {
    context->AddMetadata("authorization", absl::StrCat("Bearer ", options.api_key));
  }
  if (!options.tenant.empty()) context->AddMetadata("x-tenant-id", options.tenant);
}

void SetTimeout(double seconds, grpc::ClientContext* context) {
  if (seconds <= 0) return;
  context->set_deadline(std::chrono::system_clock::now() +
                        std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6)));
}

grpc::Status WaitReady(const ClientOptions& options, double seconds, grpc::ClientContext* context) {
  const std::string& address = options.address;
  SetTimeout(seconds, context);
  context->set_wait_for_ready(true);
  grpc::GenericStub stub(Connect(options, /*reconnect_ms=*/250));
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  const auto done = [&queue, &tag, &ok] { return queue.Next(&tag, &ok) && ok; };

  const auto call = stub.PrepareCall(context, "/grpc.health.v1.Health/Watch", &queue);
  call->StartCall(nullptr);
  std::string state = "did not answer";
  if (done()) {
    call->WriteLast(HealthRequest(), grpc::WriteOptions(), nullptr);
    bool more = done();
    while (more) {
      grpc::ByteBuffer message;
      call->Read(&message, nullptr);
      more = done();
      if (!more) break;
      const Health health = ParseHealth(message);
      if (health == Health::kServing) return grpc::Status::OK;
      state = Describe(health);
    }
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  done();
  if (status.ok()) {
    return {grpc::StatusCode::UNAVAILABLE, absl::StrCat("the server at ", address, " ", state)};
  }
  if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) return status;
  return {status.error_code(),
          absl::StrCat("the server at ", address, " ", state, " after ", seconds, " seconds")};
}

std::string CodeName(grpc::StatusCode code) {
  static constexpr std::array kNames = {"OK",
                                        "CANCELLED",
                                        "UNKNOWN",
                                        "INVALID_ARGUMENT",
                                        "DEADLINE_EXCEEDED",
                                        "NOT_FOUND",
                                        "ALREADY_EXISTS",
                                        "PERMISSION_DENIED",
                                        "RESOURCE_EXHAUSTED",
                                        "FAILED_PRECONDITION",
                                        "ABORTED",
                                        "OUT_OF_RANGE",
                                        "UNIMPLEMENTED",
                                        "INTERNAL",
                                        "UNAVAILABLE",
                                        "DATA_LOSS",
                                        "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < kNames.size() ? kNames[index] : absl::StrCat("code ", index);
}

std::string DescribeFailure(const grpc::Status& status, const std::string& address,
                            const grpc::ClientContext& context) {
  std::string text = absl::StrCat(CodeName(status.error_code()), ": ", status.error_message());
  const auto& trailer = context.GetServerTrailingMetadata();
  // A call that never reached a server has no peer.
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE && trailer.empty() &&
      status.error_message().find("connect") != std::string::npos) {
    return absl::StrCat("no server answers at ", address, " (", status.error_message(), ")\n",
                        "Start one:       fewbit-server --model=DIR\n",
                        "or name another: --address=HOST:PORT\n",
                        "or wait for it:  --wait_ready=SECONDS\n",
                        "or, with TLS:    --tls_ca, the CA of the server's certificate");
  }
  const auto pushback = trailer.find("grpc-retry-pushback-ms");
  if (pushback != trailer.end()) {
    absl::StrAppend(&text, "\nThe server asks to try again in ",
                    std::string(pushback->second.data(), pushback->second.size()), " ms.");
  }
  return text;
}

}  // namespace fewbit::client
