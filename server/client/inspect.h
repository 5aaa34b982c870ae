// The short calls: what is served, tokens of a text and back, abort.
#pragma once

#include <ostream>

#include "fewbit/v1/generation.grpc.pb.h"
#include "server/client/client_options.h"

namespace fewbit::client {

// Runs options.mode, which is kInfo, kTokenize, kDetokenize or kAbort. Returns the exit status of
// the program.
int RunInspect(const ClientOptions& options, v1::GenerationService::StubInterface* stub,
               std::ostream& out, std::ostream& err);

}  // namespace fewbit::client
