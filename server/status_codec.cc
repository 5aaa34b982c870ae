#include "server/status_codec.h"

#include <cstdint>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "fewbit/internal/status_details.pb.h"

namespace fewbit {
namespace {

constexpr char kTypePrefix[] = "type.googleapis.com/";
constexpr char kBadRequest[] = "type.googleapis.com/google.rpc.BadRequest";
constexpr char kRetryInfo[] = "type.googleapis.com/google.rpc.RetryInfo";

}  // namespace

std::string Quote(absl::string_view text) {
  constexpr size_t kLongest = 64;
  std::string out = absl::StrCat("\"", absl::CHexEscape(text.substr(0, kLongest)));
  absl::StrAppend(&out, text.size() > kLongest ? "...\"" : "\"");
  return out;
}

absl::Status InvalidField(absl::string_view field, absl::string_view description) {
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(field, " ", description));
  internal::BadRequest detail;
  internal::BadRequest::FieldViolation* violation = detail.add_field_violations();
  violation->set_field(std::string(field));
  violation->set_description(std::string(description));
  status.SetPayload(kBadRequest, absl::Cord(detail.SerializeAsString()));
  return status;
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  const int64_t nanoseconds = absl::ToInt64Nanoseconds(delay);
  constexpr int64_t kBillion = 1'000'000'000;
  internal::RetryInfo detail;
  detail.mutable_retry_delay()->set_seconds(nanoseconds / kBillion);
  detail.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanoseconds % kBillion));
  status.SetPayload(kRetryInfo, absl::Cord(detail.SerializeAsString()));
  return status;
}

absl::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryInfo);
  internal::RetryInfo detail;
  if (!payload.has_value() || !detail.ParseFromString(std::string(*payload))) return absl::nullopt;
  return absl::Seconds(detail.retry_delay().seconds()) +
         absl::Nanoseconds(detail.retry_delay().nanos());
}

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context) {
  if (status.ok()) return grpc::Status::OK;
  internal::StatusDetails details;
  status.ForEachPayload([&](absl::string_view type, const absl::Cord& value) {
    if (!absl::StartsWith(type, kTypePrefix)) return;
    google::protobuf::Any* any = details.add_details();
    any->set_type_url(std::string(type));
    any->set_value(std::string(value));
  });
  if (const absl::optional<absl::Duration> delay = RetryDelay(status)) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms",
                                 absl::StrCat(absl::ToInt64Milliseconds(*delay)));
  }
  std::string bytes;
  if (details.details_size() > 0) {
    details.set_code(status.raw_code());
    details.set_message(std::string(status.message()));
    bytes = details.SerializeAsString();
  }
  // absl's codes are gRPC's.
  return grpc::Status(static_cast<grpc::StatusCode>(status.raw_code()),
                      std::string(status.message()), bytes);
}

}  // namespace fewbit
