// How fewbit-client reaches a server: channels, the wait until it is ready, and failures in words a
// user can act on.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <memory>
#include <string>

#include "server/client/client_options.h"

namespace fewbit::client {

// A connection of its own to options.address, without hidden retries: what fails is shown.
// `reconnect_ms` bounds the pause between attempts to connect.
std::shared_ptr<grpc::Channel> Connect(const ClientOptions& options, int reconnect_ms = 1000);

// Follows the health service's Watch until the server says that it generates, at most `seconds`. A
// server that is not there yet is waited for, too. DEADLINE_EXCEEDED says what was the matter last;
// other codes mean that waiting is useless.
grpc::Status WaitReady(const ClientOptions& options, double seconds, grpc::ClientContext* context);

// Sets a deadline; 0: none.
void SetTimeout(double seconds, grpc::ClientContext* context);

// Before a call of the service: its deadline, and the API key.
void PrepareCall(const ClientOptions& options, grpc::ClientContext* context);

// "RESOURCE_EXHAUSTED" for the number.
std::string CodeName(grpc::StatusCode code);

// What went wrong and, where there is something, what to try. One or more lines without a newline
// at the end.
std::string DescribeFailure(const grpc::Status& status, const std::string& address,
                            const grpc::ClientContext& context);

}  // namespace fewbit::client
