// fewbit.v1.GenerationService: the straight line from a call's bytes to Engine::Submit (codec,
// admission, tokenizer, codec, engine), and the small unary RPCs. It decides nothing itself.
// Messages arrive as bytes because gRPC answers a message that it cannot parse with a bare
// UNIMPLEMENTED; the codec says what is wrong with it.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "fewbit/v1/generation.grpc.pb.h"
#include "runtime/engine.h"
#include "server/admission.h"
#include "server/api_key_file.h"
#include "server/emitter.h"
#include "server/live_requests.h"
#include "server/metrics.h"
#include "server/request_codec.h"
#include "server/response_sink.h"
#include "server/served_model.h"
#include "server/stream_writer.h"
#include "server/tokenizer.h"

namespace fewbit {

// What the service works with; all of it outlives the service.
struct ServiceParts {
  const ServedModel* model = nullptr;
  ApiKeyFile* keys = nullptr;  // null: everybody is let in
  const Tokenizer* tokenizer = nullptr;
  Engine* engine = nullptr;
  Emitter* emitter = nullptr;
  Admission* admission = nullptr;
  LiveRequests* live = nullptr;
  ServerStats* stats = nullptr;
};

// Every method takes and gives bytes.
template <class Base>
using RawMethods = v1::GenerationService::WithRawCallbackMethod_Generate<
    v1::GenerationService::WithRawCallbackMethod_GenerateStream<
        v1::GenerationService::WithRawCallbackMethod_Tokenize<
            v1::GenerationService::WithRawCallbackMethod_Detokenize<
                v1::GenerationService::WithRawCallbackMethod_GetModelInfo<
                    v1::GenerationService::WithRawCallbackMethod_Abort<Base>>>>>>;

// Thread-safe: holds no mutable state but counters.
class GenerationService final : public RawMethods<v1::GenerationService::Service> {
 public:
  GenerationService(const ServiceParts& parts, const StreamLimits& stream_limits);

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;

 private:
  template <class Writer>
  void Begin(grpc::CallbackServerContext* context, const grpc::ByteBuffer& wire, RequestId id,
             Writer* writer);
  absl::Status Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& wire,
                     RequestId id, const std::string& tenant, ResponseSink* sink);
  // Whom the call is for: the tenant of its API key or, without keys, the one that its metadata
  // names; empty: nobody. UNAUTHENTICATED: no key of ours.
  absl::StatusOr<std::string> Caller(const grpc::CallbackServerContext& context) const;
  template <class RequestMessage, class ResponseMessage, class Handle>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer& wire, grpc::ByteBuffer* out,
                                   const Handle& handle) const;
  void Submit(std::unique_ptr<Request> request, StartedRequest started);
  absl::StatusOr<ResolvedPrompt> Prompt(GenerateSpec* spec) const;
  RequestId NextId();
  void ClientLeft(RequestId id);

  absl::Status DoTokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) const;
  absl::Status DoDetokenize(const v1::DetokenizeRequest& request,
                            v1::DetokenizeResponse* response) const;

  const ServiceParts parts_;
  const StreamLimits stream_limits_;
  const uint64_t entropy_;  // for made-up seeds and names
  std::atomic<uint64_t> next_id_{1};
};

}  // namespace fewbit
