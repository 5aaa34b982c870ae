// One Generate call on the wire: the response grows at the emitter until the end and goes out as
// one message.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "server/admission.h"
#include "server/response_sink.h"

namespace fewbit {

// Deletes itself when the call is done. Thread rule: Write and Finish on the emitter's thread;
// gRPC's reactions on its own.
class UnaryWriter final : public grpc::ServerUnaryReactor, public ResponseSink {
 public:
  // `response` is the call's; `on_cancel` is called when the client has left, perhaps after Finish.
  UnaryWriter(grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
              std::function<void()> on_cancel);

  void Hold(Admission::Ticket place) { place_ = std::move(place); }

  // The call ends without a response. Instead of Finish, on any thread.
  void Reject(const absl::Status& status);

  bool Write(v1::GenerateResponse* /*delta*/) override { return true; }  // leaves all of it
  void Finish(v1::GenerateResponse* last, const absl::Status& status) override;

  void OnCancel() override { on_cancel_(); }
  void OnDone() override { delete this; }

 private:
  ~UnaryWriter() override = default;

  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  const std::function<void()> on_cancel_;
  Admission::Ticket place_;
};

}  // namespace fewbit
