// How an absl::Status leaves the server: code and message, the machine-readable details of
// google.rpc (BadRequest, RetryInfo) in grpc-status-details-bin, and a retry delay as
// grpc-retry-pushback-ms, which gRPC clients with a retry policy obey.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"

namespace fewbit {

// INVALID_ARGUMENT "<field> <description>", with a BadRequest detail. `field` is the path in the
// request: "sampling.temperature".
absl::Status InvalidField(absl::string_view field, absl::string_view description);

// `status` with a RetryInfo detail.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);
absl::optional<absl::Duration> RetryDelay(const absl::Status& status);

// The status to finish a call with; sets the call's trailers, so call it before Finish and while
// `context` lives.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context);

// `text` fit for an error message: printable, and cut where it is long.
std::string Quote(absl::string_view text);

}  // namespace fewbit
