// One request, printed as it comes, with usage and timing at the end.
#pragma once

#include <google/protobuf/message.h>

#include <ostream>
#include <string>

#include "fewbit/v1/generation.grpc.pb.h"
#include "server/client/client_options.h"

namespace fewbit::client {

// Text (or JSON lines) to `out`, flushed per message; statistics and failures to `err`. Returns the
// exit status of the program: 0, 1, or 130 after Ctrl-C.
int RunGenerate(const ClientOptions& options, v1::GenerationService::StubInterface* stub,
                std::ostream& out, std::ostream& err);

// `message` as one line, with the field names of the .proto.
std::string ToJson(const google::protobuf::Message& message);

// "stop string \"END\"", "length".
std::string DescribeFinish(const v1::GenerateResponse& last);

}  // namespace fewbit::client
