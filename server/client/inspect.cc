#include "server/client/inspect.h"

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "server/client/connection.h"
#include "server/client/generate.h"

namespace fewbit::client {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

std::string InfoText(const v1::GetModelInfoResponse& info) {
  std::string text;
  const auto line = [&text](const char* name, const std::string& value) {
    absl::StrAppendFormat(&text, "%-14s %s\n", name, value);
  };
  line("model", info.name());
  line("family", info.family());
  line("size",
       absl::StrFormat("%d layers, hidden %d, vocabulary %d, context %d tokens", info.num_layers(),
                       info.hidden_size(), info.vocab_size(), info.max_context()));
  line("weights",
       absl::StrFormat(
           "%.1f MiB, %.3f bits per weight of the linear layers, %g of the embedding%s",
           info.weight_bytes() / kMiB, info.average_bits(), info.embedding_bits(),
           info.quantization_method().empty() ? "" : ", quantized: " + info.quantization_method()));
  line("KV cache", absl::StrFormat("%.1f MiB: %d blocks of %d tokens", info.kv_bytes() / kMiB,
                                   info.kv_blocks(), info.kv_block_tokens()));
  line("device", info.device());
  line("server", info.server_version());
  return text;
}

grpc::Status Info(const ClientOptions& options, v1::GenerationService::StubInterface* stub,
                  grpc::ClientContext* context, std::ostream& out) {
  v1::GetModelInfoResponse info;
  const grpc::Status status = stub->GetModelInfo(context, {}, &info);
  if (status.ok()) out << (options.json ? ToJson(info) + "\n" : InfoText(info)) << std::flush;
  return status;
}

grpc::Status Tokenize(const ClientOptions& options, v1::GenerationService::StubInterface* stub,
                      grpc::ClientContext* context, std::ostream& out) {
  v1::TokenizeRequest request;
  request.set_text(options.request.text());
  v1::TokenizeResponse response;
  const grpc::Status status = stub->Tokenize(context, request, &response);
  if (!status.ok()) return status;
  if (options.json) {
    out << ToJson(response) << std::endl;
    return status;
  }
  for (int i = 0; i < response.ids_size() && i < response.pieces_size(); ++i) {
    out << absl::StrFormat("%6d  %s\n", response.ids(i), absl::Utf8SafeCEscape(response.pieces(i)));
  }
  out << std::flush;
  return status;
}

grpc::Status Detokenize(const ClientOptions& options, v1::GenerationService::StubInterface* stub,
                        grpc::ClientContext* context, std::ostream& out) {
  v1::DetokenizeRequest request;
  *request.mutable_ids() = options.request.token_ids().ids();
  v1::DetokenizeResponse response;
  const grpc::Status status = stub->Detokenize(context, request, &response);
  if (status.ok()) out << (options.json ? ToJson(response) : response.text()) << std::endl;
  return status;
}

grpc::Status Abort(const ClientOptions& options, v1::GenerationService::StubInterface* stub,
                   grpc::ClientContext* context, std::ostream& out) {
  v1::AbortRequest request;
  request.set_request_id(options.abort_id);
  v1::AbortResponse response;
  const grpc::Status status = stub->Abort(context, request, &response);
  if (!status.ok()) return status;
  if (options.json) {
    out << ToJson(response) << std::endl;
  } else {
    out << (response.aborted() ? "aborted " : "no running request is called ") << options.abort_id
        << std::endl;
  }
  return status;
}

}  // namespace

int RunInspect(const ClientOptions& options, v1::GenerationService::StubInterface* stub,
               std::ostream& out, std::ostream& err) {
  using Mode = ClientOptions::Mode;
  grpc::ClientContext context;
  PrepareCall(options, &context);
  const auto run = options.mode == Mode::kInfo         ? Info
                   : options.mode == Mode::kTokenize   ? Tokenize
                   : options.mode == Mode::kDetokenize ? Detokenize
                                                       : Abort;
  const grpc::Status status = run(options, stub, &context, out);
  if (status.ok()) return 0;
  err << "fewbit-client: " << DescribeFailure(status, options.address, context) << std::endl;
  return 1;
}

}  // namespace fewbit::client
