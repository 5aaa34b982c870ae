#include "server/request_codec.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "scheduler/check.h"
#include "server/build_info.h"
#include "server/status_codec.h"
#include "server/utf8.h"

namespace fewbit {
namespace {

constexpr int64_t kMaxTextBytes = 4 << 20;
constexpr int64_t kMaxBytesPerToken =
    32;  // of a text prompt; more is over the context whatever the tokenizer
constexpr int kMaxLogitBias = 300;
constexpr int kMaxStopStrings = 16;
constexpr size_t kMaxStopStringBytes = 256;
constexpr int kMaxStopTokenIds = 64;
constexpr size_t kMaxRequestIdBytes = 128;

struct Range {
  double low, high;
  bool low_open = false;
  bool high_open = false;
};

absl::Status CheckRange(absl::string_view field, double value, const Range& range) {
  const bool above = range.low_open ? value > range.low : value >= range.low;
  const bool below = range.high_open ? value < range.high : value <= range.high;
  if (above && below) return absl::OkStatus();  // false for NaN
  return InvalidField(
      field, absl::StrCat("is ", value, "; allowed: ", range.low_open ? "(" : "[", range.low, ", ",
                          range.high, range.high_open ? ")" : "]"));
}

absl::Status CheckId(absl::string_view field, int32_t id, const ServedModel& model) {
  if (id >= 0 && id < model.spec.vocab_size) return absl::OkStatus();
  return InvalidField(
      field, absl::StrCat("is ", id, "; the vocabulary is [0, ", model.spec.vocab_size, ")"));
}

absl::Status CheckIds(absl::string_view field, const google::protobuf::RepeatedField<int32_t>& ids,
                      const ServedModel& model, std::vector<TokenId>* out) {
  out->reserve(ids.size());
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= model.spec.vocab_size) {
      return CheckId(absl::StrCat(field, "[", i, "]"), ids[i], model);
    }
    out->push_back(TokenId{ids[i]});
  }
  return absl::OkStatus();
}

absl::Status TooMany(absl::string_view field, size_t count, size_t limit) {
  return InvalidField(field, absl::StrCat("has ", count, " entries; the limit is ", limit));
}

absl::Status CheckTextBytes(absl::string_view field, absl::string_view text, int64_t limit) {
  if (static_cast<int64_t>(text.size()) <= limit) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("has ", text.size(), " bytes; the limit is ", limit));
}

absl::Status DecodePrompt(const ServedModel& model, v1::GenerateRequest* request,
                          GenerateSpec* spec) {
  switch (request->prompt_case()) {
    case v1::GenerateRequest::kText: {
      const int64_t limit = std::min(kMaxTextBytes, kMaxBytesPerToken * model.device.max_context);
      absl::Status status = CheckTextBytes("text", request->text(), limit);
      if (!status.ok()) return status;
      spec->is_text = true;
      spec->text = std::move(*request->mutable_text());
      return absl::OkStatus();
    }
    case v1::GenerateRequest::kTokenIds:
      return CheckIds("token_ids.ids", request->token_ids().ids(), model, &spec->token_ids);
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return InvalidField("prompt", "is missing: set text or token_ids");
}

absl::Status DecodeSampling(const ServedModel& model, const v1::SamplingParameters& in,
                            SamplingParams* out) {
  const struct {
    const char* field;
    bool set;
    double value;
    Range range;
    float* out;
  } numbers[] = {
      {"temperature", in.has_temperature(), in.temperature(), {0, 10}, &out->temperature},
      {"top_p", in.has_top_p(), in.top_p(), {0, 1, true}, &out->top_p},
      {"min_p", in.has_min_p(), in.min_p(), {0, 1, false, true}, &out->min_p},
      {"repetition_penalty",
       in.has_repetition_penalty(),
       in.repetition_penalty(),
       {0, 10, true},
       &out->repetition_penalty},
      {"presence_penalty",
       in.has_presence_penalty(),
       in.presence_penalty(),
       {-2, 2},
       &out->presence_penalty},
      {"frequency_penalty",
       in.has_frequency_penalty(),
       in.frequency_penalty(),
       {-2, 2},
       &out->frequency_penalty},
  };
  for (const auto& number : numbers) {
    if (!number.set) continue;
    absl::Status status =
        CheckRange(absl::StrCat("sampling.", number.field), number.value, number.range);
    if (!status.ok()) return status;
    *number.out = static_cast<float>(number.value);
  }
  if (in.has_top_k()) {  // more than the vocabulary keeps all of it
    out->top_k =
        static_cast<int32_t>(std::min<int64_t>(in.top_k(), std::max(model.spec.vocab_size, 1)));
  }
  if (in.logit_bias_size() > kMaxLogitBias) {
    return TooMany("sampling.logit_bias", in.logit_bias_size(), kMaxLogitBias);
  }
  for (const auto& [id, bias] : in.logit_bias()) {
    absl::Status status = CheckId("sampling.logit_bias key", id, model);
    if (status.ok()) {
      status = CheckRange(absl::StrCat("sampling.logit_bias[", id, "]"), bias, {-100, 100});
    }
    if (!status.ok()) return status;
    out->logit_bias.emplace_back(TokenId{id}, bias);
  }
  // A map has no order; results must have one.
  std::sort(out->logit_bias.begin(), out->logit_bias.end());
  return absl::OkStatus();
}

absl::Status DecodeStopStrings(v1::StoppingParameters* in, std::vector<std::string>* out) {
  if (in->stop_strings_size() > kMaxStopStrings) {
    return TooMany("stopping.stop_strings", in->stop_strings_size(), kMaxStopStrings);
  }
  for (int i = 0; i < in->stop_strings_size(); ++i) {
    const size_t bytes = in->stop_strings(i).size();
    if (bytes == 0 || bytes > kMaxStopStringBytes) {
      return InvalidField(
          absl::StrCat("stopping.stop_strings[", i, "]"),
          absl::StrCat("has ", bytes, " bytes; allowed: 1 to ", kMaxStopStringBytes));
    }
    out->push_back(std::move(*in->mutable_stop_strings(i)));
  }
  return absl::OkStatus();
}

absl::Status DecodeStopping(const ServedModel& model, v1::StoppingParameters* in,
                            GenerateSpec* spec) {
  // Beyond the context a limit means the context.
  const uint32_t context = static_cast<uint32_t>(model.device.max_context);
  spec->max_new_tokens = static_cast<int32_t>(std::min(in->max_new_tokens(), context));
  if (in->min_new_tokens() > context) {
    return InvalidField(
        "stopping.min_new_tokens",
        absl::StrCat("is ", in->min_new_tokens(), "; the context has ", context, " tokens"));
  }
  spec->output.min_new_tokens = static_cast<int32_t>(in->min_new_tokens());
  if (in->max_new_tokens() != 0 && in->min_new_tokens() > in->max_new_tokens()) {
    return InvalidField(
        "stopping.min_new_tokens",
        absl::StrCat("is ", in->min_new_tokens(), "; max_new_tokens is ", in->max_new_tokens()));
  }
  absl::Status status = DecodeStopStrings(in, &spec->output.stop_strings);
  if (!status.ok()) return status;
  if (in->stop_token_ids_size() > kMaxStopTokenIds) {
    return TooMany("stopping.stop_token_ids", in->stop_token_ids_size(), kMaxStopTokenIds);
  }
  status = CheckIds("stopping.stop_token_ids", in->stop_token_ids(), model,
                    &spec->output.stop_token_ids);
  if (!status.ok()) return status;
  spec->output.include_stop_string = in->include_stop_string();
  spec->ignore_eos = in->ignore_eos();
  if (in->time_limit_ms() != 0) spec->time_limit = absl::Milliseconds(in->time_limit_ms());
  return absl::OkStatus();
}

absl::Status DecodeResponseOptions(const v1::ResponseOptions& in, OutputOptions* out) {
  if (in.top_logprobs() > static_cast<uint32_t>(kMaxTopLogprobs)) {
    return InvalidField("response.top_logprobs",
                        absl::StrCat("is ", in.top_logprobs(), "; the limit is ", kMaxTopLogprobs));
  }
  out->echo = in.echo();
  out->num_top_logprobs = static_cast<int32_t>(in.top_logprobs());
  out->logprobs = in.logprobs() || in.top_logprobs() > 0;
  out->prompt_logprobs = in.prompt_logprobs();
  return absl::OkStatus();
}

absl::Status CheckRequestId(absl::string_view id) {
  if (id.size() > kMaxRequestIdBytes) {
    return InvalidField(
        "request_id", absl::StrCat("has ", id.size(), " bytes; the limit is ", kMaxRequestIdBytes));
  }
  for (size_t i = 0; i < id.size(); ++i) {
    if (id[i] < 0x20 || id[i] > 0x7e) {
      return InvalidField("request_id",
                          absl::StrCat("is ", Quote(id), ": byte ", i, " is not printable ASCII"));
    }
  }
  return absl::OkStatus();
}

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// Where the first string that is not UTF-8 lies: "field: byte N"; OK if there is none.
absl::Status FindInvalidUtf8(const UnknownFieldSet& fields, const Descriptor& type,
                             const std::string& prefix) {
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& value = fields.field(i);
    const FieldDescriptor* field = type.FindFieldByNumber(value.number());
    if (field == nullptr || value.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    const std::string path = absl::StrCat(prefix, field->name());
    const std::string& bytes = value.length_delimited();
    if (field->type() == FieldDescriptor::TYPE_STRING && !IsValidUtf8(bytes)) {
      size_t good = 0;
      while (true) {
        const Utf8Char next = FirstUtf8Char(std::string_view(bytes).substr(good));
        if (next.kind != Utf8Kind::kValid) break;
        good += next.length;
      }
      return InvalidField(path,
                          absl::StrCat("is not valid UTF-8 at byte ", good, " of ", bytes.size()));
    }
    if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
      UnknownFieldSet nested;
      if (!nested.ParseFromString(bytes)) continue;
      absl::Status status =
          FindInvalidUtf8(nested, *field->message_type(), absl::StrCat(path, "."));
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t GenerateSpec::min_prompt_tokens() const {
  constexpr int64_t kLongestPiece = 64;  // bytes: 16 characters, SentencePiece's default
  return is_text ? static_cast<int64_t>(text.size()) / kLongestPiece
                 : static_cast<int64_t>(token_ids.size());
}

absl::Status ParseMessage(const grpc::ByteBuffer& wire, google::protobuf::Message* message) {
  grpc::ByteBuffer copy = wire;  // reading consumes; the copy shares the bytes
  if (grpc::SerializationTraits<google::protobuf::Message>::Deserialize(&copy, message).ok()) {
    return absl::OkStatus();
  }
  const std::string& name = message->GetDescriptor()->name();
  grpc::Slice slice;
  if (!wire.DumpToSingleSlice(&slice).ok()) {
    return absl::InvalidArgumentError(absl::StrCat("the message is not readable as a ", name));
  }
  UnknownFieldSet fields;
  if (fields.ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) {
    absl::Status status = FindInvalidUtf8(fields, *message->GetDescriptor(), "");
    if (!status.ok()) return status;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the message of ", slice.size(), " bytes is not a ", name));
}

void SerializeMessage(const google::protobuf::Message& message, grpc::ByteBuffer* wire) {
  bool own = false;
  wire->Clear();
  const grpc::Status status =
      grpc::SerializationTraits<google::protobuf::Message>::Serialize(message, wire, &own);
  FEWBIT_CHECK(status.ok()) << status.error_message();
}

absl::StatusOr<GenerateSpec> DecodeGenerateRequest(const ServedModel& model,
                                                   v1::GenerateRequest request,
                                                   uint64_t drawn_seed) {
  if (!request.model().empty() && request.model() != model.name) {
    return absl::NotFoundError(absl::StrCat("model ", Quote(request.model()),
                                            " is not served here; \"", model.name, "\" is"));
  }
  GenerateSpec spec;
  absl::Status status = CheckRequestId(request.request_id());
  if (!status.ok()) return status;
  status = DecodePrompt(model, &request, &spec);
  if (!status.ok()) return status;
  spec.sampling = model.default_sampling;
  status = DecodeSampling(model, request.sampling(), &spec.sampling);
  if (!status.ok()) return status;
  spec.sampling.seed = request.sampling().has_seed() ? request.sampling().seed() : drawn_seed;
  status = DecodeStopping(model, request.mutable_stopping(), &spec);
  if (!status.ok()) return status;
  status = DecodeResponseOptions(request.response(), &spec.output);
  if (!status.ok()) return status;
  if (request.truncate_prompt_tokens() >= static_cast<uint32_t>(model.device.max_context)) {
    return InvalidField("truncate_prompt_tokens",
                        absl::StrCat("is ", request.truncate_prompt_tokens(), "; allowed: 0 to ",
                                     model.device.max_context - 1));
  }
  spec.truncate_prompt_tokens = static_cast<int32_t>(request.truncate_prompt_tokens());
  spec.request_id = std::move(*request.mutable_request_id());
  return spec;
}

absl::StatusOr<ResolvedPrompt> ResolvePrompt(const ServedModel& model, const GenerateSpec& spec,
                                             std::vector<TokenId> tokens) {
  const absl::string_view field = spec.is_text ? "text" : "token_ids";
  if (tokens.empty()) return InvalidField(field, "is a prompt of 0 tokens; at least 1 is needed");
  ResolvedPrompt prompt;
  const size_t keep = static_cast<size_t>(spec.truncate_prompt_tokens);
  if (keep > 0 && tokens.size() > keep) {
    prompt.truncated_tokens = static_cast<int32_t>(tokens.size() - keep);
    tokens.erase(tokens.begin(), tokens.end() - static_cast<std::ptrdiff_t>(keep));
  }
  if (tokens.size() >= static_cast<size_t>(model.device.max_context)) {
    return InvalidField(field,
                        absl::StrCat("is a prompt of ", tokens.size(), " tokens; the context has ",
                                     model.device.max_context, " for prompt and output"));
  }
  prompt.tokens = std::move(tokens);
  return prompt;
}

absl::StatusOr<std::unique_ptr<Request>> MakeRequest(const ServedModel& model,
                                                     const GenerateSpec& spec,
                                                     std::vector<TokenId> prompt, RequestId id,
                                                     absl::Time arrival, absl::Time deadline) {
  auto request = std::make_unique<Request>();
  const int32_t room = model.device.max_context - static_cast<int32_t>(prompt.size());
  const int32_t wanted = spec.max_new_tokens > 0
                             ? spec.max_new_tokens
                             : std::max(model.default_max_new_tokens, spec.output.min_new_tokens);
  if (spec.output.min_new_tokens > room) {
    return InvalidField(
        "stopping.min_new_tokens",
        absl::StrCat("is ", spec.output.min_new_tokens, "; the prompt of ", prompt.size(),
                     " tokens leaves ", room, " of the context of ", model.device.max_context));
  }
  request->id = id;
  request->prompt = std::move(prompt);
  request->max_new_tokens = std::min(wanted, room);
  request->min_new_tokens = spec.output.min_new_tokens;
  request->sampling = spec.sampling;
  request->stop_token_ids = spec.output.stop_token_ids;
  if (!spec.ignore_eos) {
    request->stop_token_ids.insert(request->stop_token_ids.end(), model.spec.eos.begin(),
                                   model.spec.eos.end());
  }
  request->want_logprobs = spec.output.logprobs;
  request->num_top_logprobs = spec.output.num_top_logprobs;
  request->want_prompt_logprobs = spec.output.prompt_logprobs;
  request->arrival = arrival;
  request->deadline = deadline;
  request->time_limit = arrival + spec.time_limit;
  return request;
}

absl::Status ValidateTokenizeText(const v1::TokenizeRequest& request) {
  return CheckTextBytes("text", request.text(), kMaxTextBytes);
}

absl::StatusOr<std::vector<TokenId>> DecodeTokenIds(const ServedModel& model,
                                                    const v1::DetokenizeRequest& request) {
  std::vector<TokenId> ids;
  absl::Status status = CheckIds("ids", request.ids(), model, &ids);
  if (!status.ok()) return status;
  return ids;
}

absl::Status ValidateAbort(const v1::AbortRequest& request) {
  if (request.request_id().empty()) return InvalidField("request_id", "is empty");
  return CheckRequestId(request.request_id());
}

v1::GetModelInfoResponse EncodeModelInfo(const ServedModel& model) {
  v1::GetModelInfoResponse info;
  info.set_name(model.name);
  info.set_family(model.spec.family);
  info.set_num_layers(model.spec.num_layers);
  info.set_hidden_size(model.spec.hidden_size);
  info.set_vocab_size(model.spec.vocab_size);
  info.set_max_context(model.device.max_context);
  info.set_quantization_method(model.quantization_method);
  info.set_average_bits(model.average_bits);
  info.set_embedding_bits(model.embedding_bits);
  info.set_weight_bytes(model.device.weight_bytes);
  info.set_kv_bytes(model.device.kv_bytes);
  info.set_kv_blocks(model.device.num_blocks);
  info.set_kv_block_tokens(model.device.block_tokens);
  info.set_device(model.device.device);
  info.set_server_version(ThisBuild().version);
  return info;
}

}  // namespace fewbit
