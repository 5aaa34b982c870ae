#include "server/unary_writer.h"

#include "server/request_codec.h"
#include "server/status_codec.h"

namespace fewbit {

UnaryWriter::UnaryWriter(grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
                         std::function<void()> on_cancel)
    : context_(context), response_(response), on_cancel_(std::move(on_cancel)) {}

void UnaryWriter::Reject(const absl::Status& status) {
  grpc::ServerUnaryReactor::Finish(ToGrpcStatus(status, context_));
}

void UnaryWriter::Finish(v1::GenerateResponse* last, const absl::Status& status) {
  if (status.ok()) SerializeMessage(*last, response_);
  grpc::ServerUnaryReactor::Finish(ToGrpcStatus(status, context_));
}

}  // namespace fewbit
