// The only translation between the protocol and the domain, and the only validation of what clients
// send. Every refusal is INVALID_ARGUMENT naming field, value and limit (NOT_FOUND for an unknown
// model). It keeps nothing; all functions are thread-safe.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fewbit/v1/generation.pb.h"
#include "runtime/engine.h"
#include "scheduler/request.h"
#include "server/served_model.h"

namespace fewbit {

// What to say about a request's tokens, apart from the text itself.
struct OutputOptions {
  std::vector<std::string> stop_strings;
  std::vector<TokenId> stop_token_ids;  // the client's own, without end-of-text
  bool include_stop_string = false;
  int32_t min_new_tokens = 0;
  bool echo = false;
  bool logprobs = false;
  int32_t num_top_logprobs = 0;
  bool prompt_logprobs = false;
};

// A validated GenerateRequest whose prompt is not tokenized yet.
struct GenerateSpec {
  bool is_text = false;
  std::string text;                // is_text
  std::vector<TokenId> token_ids;  // otherwise
  int32_t truncate_prompt_tokens = 0;
  SamplingParams sampling;
  OutputOptions output;
  int32_t max_new_tokens = 0;  // 0: the server's default
  bool ignore_eos = false;
  absl::Duration time_limit = absl::InfiniteDuration();
  std::string request_id;  // empty: the server's choice

  // A lower bound, before tokenizing.
  int64_t min_prompt_tokens() const;
};

// Fills `message` from the bytes of a call. INVALID_ARGUMENT: not such a message; a string that is
// not UTF-8 is named with the byte where it breaks. (Left to gRPC, either would be UNIMPLEMENTED
// without a word.)
absl::Status ParseMessage(const grpc::ByteBuffer& wire, google::protobuf::Message* message);

// The reverse. Messages of ours always serialize.
void SerializeMessage(const google::protobuf::Message& message, grpc::ByteBuffer* wire);

// `drawn_seed` is used if the request sets none.
absl::StatusOr<GenerateSpec> DecodeGenerateRequest(const ServedModel& model,
                                                   v1::GenerateRequest request,
                                                   uint64_t drawn_seed);

// What tokenizing a prompt gave: `tokens` are those to run, after the cut that the client asked
// for.
struct ResolvedPrompt {
  std::vector<TokenId> tokens;
  int32_t truncated_tokens = 0;
};
absl::StatusOr<ResolvedPrompt> ResolvePrompt(const ServedModel& model, const GenerateSpec& spec,
                                             std::vector<TokenId> tokens);

// The engine's part of `spec`; `deadline` is the call's. max_new_tokens ends at the context.
// INVALID_ARGUMENT: min_new_tokens does not fit there.
absl::StatusOr<std::unique_ptr<Request>> MakeRequest(const ServedModel& model,
                                                     const GenerateSpec& spec,
                                                     std::vector<TokenId> prompt, RequestId id,
                                                     absl::Time arrival, absl::Time deadline);

// Text for Tokenize: the same limit for every model.
absl::Status ValidateTokenizeText(const v1::TokenizeRequest& request);

// Ids for Detokenize. INVALID_ARGUMENT: one is outside the vocabulary.
absl::StatusOr<std::vector<TokenId>> DecodeTokenIds(const ServedModel& model,
                                                    const v1::DetokenizeRequest& request);

absl::Status ValidateAbort(const v1::AbortRequest& request);

v1::GetModelInfoResponse EncodeModelInfo(const ServedModel& model);

}  // namespace fewbit
