#include "server/generation_service.h"

#include <chrono>
#include <memory>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/status_codec.h"
#include "server/unary_writer.h"

namespace fewbit {
namespace {

// Steele, Lea and Flood's SplitMix64 ("Fast splittable pseudorandom number generators", 2014): its
// output function.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t DrawEntropy() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

// The value of the metadata `key`; empty if there is none.
absl::string_view Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto found = context.client_metadata().find(key);
  if (found == context.client_metadata().end()) return {};
  return absl::string_view(found->second.data(), found->second.size());
}

// Of a call that never reached the engine, or that the engine refused.
Outcome RefusalOutcome(const absl::Status& status, bool draining) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return Outcome::kInvalid;
    case absl::StatusCode::kUnauthenticated:
      return Outcome::kUnauthenticated;
    case absl::StatusCode::kNotFound:
      return Outcome::kUnknownModel;
    case absl::StatusCode::kAlreadyExists:
      return Outcome::kDuplicateId;
    case absl::StatusCode::kResourceExhausted:
      return Outcome::kQueueFull;
    case absl::StatusCode::kUnavailable:
      return draining ? Outcome::kDraining : Outcome::kEngineFailed;
    default:
      return Outcome::kInternal;
  }
}

}  // namespace

GenerationService::GenerationService(const ServiceParts& parts, const StreamLimits& stream_limits)
    : parts_(parts), stream_limits_(stream_limits), entropy_(DrawEntropy()) {}

RequestId GenerationService::NextId() {
  return RequestId{next_id_.fetch_add(1, std::memory_order_relaxed)};
}

void GenerationService::ClientLeft(RequestId id) {
  parts_.engine->Cancel(id);
  parts_.stats->abandoned_calls.fetch_add(
      1);  // whoever sees the count knows that the engine has been told
}

absl::StatusOr<std::string> GenerationService::Caller(
    const grpc::CallbackServerContext& context) const {
  if (parts_.keys != nullptr) return parts_.keys->Tenant(Metadata(context, "authorization"));
  const absl::string_view name = Metadata(context, "x-tenant-id");
  absl::Status status = name.empty() ? absl::OkStatus() : Tenants::ValidateName(name);
  if (!status.ok()) return status;
  return std::string(name);
}

// A unary RPC that needs no engine: bytes to message, `handle`, message to bytes.
template <class RequestMessage, class ResponseMessage, class Handle>
grpc::ServerUnaryReactor* GenerationService::Answer(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer& wire,
                                                    grpc::ByteBuffer* out,
                                                    const Handle& handle) const {
  RequestMessage request;
  ResponseMessage response;
  absl::Status status = Caller(*context).status();
  if (status.ok()) status = ParseMessage(wire, &request);
  if (status.ok()) status = handle(request, &response);
  if (status.ok()) SerializeMessage(response, out);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status, context));
  return reactor;
}

grpc::ServerUnaryReactor* GenerationService::Generate(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  const RequestId id = NextId();
  auto* writer = new UnaryWriter(context, response, [this, id] { ClientLeft(id); });
  Begin(context, *request, id, writer);
  return writer;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::GenerateStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const RequestId id = NextId();
  auto* writer = new StreamWriter(context, stream_limits_, [this, id] { ClientLeft(id); });
  Begin(context, *request, id, writer);
  return writer;
}

// `writer` cannot be done before the RPC's method returns, so it is safe to use until then.
template <class Writer>
void GenerationService::Begin(grpc::CallbackServerContext* context, const grpc::ByteBuffer& wire,
                              RequestId id, Writer* writer) {
  const absl::StatusOr<std::string> tenant = Caller(*context);
  if (!tenant.ok()) {
    parts_.stats->Count(RefusalOutcome(tenant.status(), /*draining=*/false));
    writer->Reject(tenant.status());
    return;
  }
  absl::StatusOr<Admission::Ticket> place = parts_.admission->AdmitStream();
  if (!place.ok()) {
    parts_.stats->Count(Outcome::kTooManyStreams);
    writer->Reject(place.status());
    return;
  }
  writer->Hold(*std::move(place));
  const absl::Status status = Start(context, wire, id, *tenant, writer);
  if (!status.ok()) {
    parts_.stats->Count(RefusalOutcome(status, parts_.admission->draining()));
    writer->Reject(status);
    return;
  }
  // A cancellation that came before Submit found nothing to cancel.
  if (context->IsCancelled()) parts_.engine->Cancel(id);
}

// OK: the emitter finishes `sink`. Otherwise it knows nothing of it.
absl::Status GenerationService::Start(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer& wire, RequestId id,
                                      const std::string& tenant, ResponseSink* sink) {
  const absl::Time arrival = absl::Now();
  v1::GenerateRequest message;
  absl::Status status = ParseMessage(wire, &message);
  if (!status.ok()) return status;
  const uint64_t seed = Mix(entropy_ ^ ToInt(id));
  absl::StatusOr<GenerateSpec> spec =
      DecodeGenerateRequest(*parts_.model, std::move(message), seed);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<Admission::Ticket> ticket =
      parts_.admission->AdmitRequest(spec->min_prompt_tokens());
  if (!ticket.ok()) return ticket.status();
  absl::StatusOr<ResolvedPrompt> prompt = Prompt(&*spec);
  if (!prompt.ok()) return prompt.status();

  StartedRequest started;
  started.id = id;
  started.prompt_tokens = static_cast<int32_t>(prompt->tokens.size());
  started.truncated_tokens = prompt->truncated_tokens;
  started.seed = spec->sampling.seed;
  started.arrival = arrival;
  started.deadline = DeadlineOf(*context);
  started.sink = sink;
  started.ticket = *std::move(ticket);
  if (spec->output.echo) {
    started.echo = spec->is_text && prompt->truncated_tokens == 0
                       ? std::move(spec->text)
                       : parts_.tokenizer->Decode(prompt->tokens);
  }
  absl::StatusOr<std::unique_ptr<Request>> request =
      MakeRequest(*parts_.model, *spec, std::move(prompt->tokens), id, arrival, started.deadline);
  if (!request.ok()) return request.status();
  started.name = !spec->request_id.empty()
                     ? std::move(spec->request_id)
                     : absl::StrCat("fewbit-", absl::Hex(Mix(~entropy_ ^ ToInt(id))));
  started.output = std::move(spec->output);
  status = parts_.live->Add(started.name, id);
  if (!status.ok()) return status;
  started.tenant = parts_.stats->tenants.Find(tenant);  // here: refused calls take no place
  Submit(*std::move(request), std::move(started));
  return absl::OkStatus();
}

absl::StatusOr<ResolvedPrompt> GenerationService::Prompt(GenerateSpec* spec) const {
  if (!spec->is_text) return ResolvePrompt(*parts_.model, *spec, std::move(spec->token_ids));
  absl::StatusOr<std::vector<TokenId>> tokens =
      parts_.tokenizer->Encode(spec->text, parts_.tokenizer->adds_bos());
  if (!tokens.ok()) return tokens.status();
  return ResolvePrompt(*parts_.model, *spec, *std::move(tokens));
}

void GenerationService::Submit(std::unique_ptr<Request> request, StartedRequest started) {
  const RequestId id = request->id;
  parts_.emitter->Register(std::make_unique<ResponseBuilder>(
      std::move(started), request->prompt, parts_.model, parts_.tokenizer, parts_.stats));
  absl::Status status = parts_.engine->Submit(std::move(request));
  if (status.ok()) return;
  const Outcome outcome = RefusalOutcome(status, parts_.admission->draining());
  if (outcome == Outcome::kQueueFull) status = parts_.admission->WithDelay(std::move(status));
  parts_.emitter->Refuse(id, std::move(status), outcome);
}

absl::Status GenerationService::DoTokenize(const v1::TokenizeRequest& request,
                                           v1::TokenizeResponse* response) const {
  absl::Status status = ValidateTokenizeText(request);
  if (!status.ok()) return status;
  const Tokenizer& tokenizer = *parts_.tokenizer;
  const bool add_bos = request.has_add_bos() ? request.add_bos() : tokenizer.adds_bos();
  absl::StatusOr<std::vector<TokenId>> tokens = tokenizer.Encode(request.text(), add_bos);
  if (!tokens.ok()) return tokens.status();
  for (TokenId id : *tokens) {
    response->add_ids(ToInt(id));
    response->add_pieces(tokenizer.Piece(id));
  }
  return absl::OkStatus();
}

absl::Status GenerationService::DoDetokenize(const v1::DetokenizeRequest& request,
                                             v1::DetokenizeResponse* response) const {
  absl::StatusOr<std::vector<TokenId>> ids = DecodeTokenIds(*parts_.model, request);
  if (!ids.ok()) return ids.status();
  response->set_text(parts_.tokenizer->Decode(*ids));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Answer<v1::TokenizeRequest, v1::TokenizeResponse>(
      context, *request, response,
      [this](const auto& in, auto* out) { return DoTokenize(in, out); });
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return Answer<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      context, *request, response,
      [this](const auto& in, auto* out) { return DoDetokenize(in, out); });
}

grpc::ServerUnaryReactor* GenerationService::GetModelInfo(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  return Answer<v1::GetModelInfoRequest, v1::GetModelInfoResponse>(
      context, *request, response, [this](const auto&, auto* out) {
        *out = EncodeModelInfo(*parts_.model);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* GenerationService::Abort(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  return Answer<v1::AbortRequest, v1::AbortResponse>(
      context, *request, response, [this](const auto& in, auto* out) -> absl::Status {
        absl::Status status = ValidateAbort(in);
        if (!status.ok()) return status;
        RequestId id{};
        out->set_aborted(parts_.live->Abort(in.request_id(), &id));
        if (out->aborted()) parts_.engine->Cancel(id);
        return absl::OkStatus();
      });
}

}  // namespace fewbit
