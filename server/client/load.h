// Load on a server: closed loop (each stream sends its next request when the last has ended) or
// requests at Poisson times. Definitions of what is measured are in load_report.h.
#pragma once

#include <ostream>

#include "server/client/client_options.h"

namespace fewbit::client {

// Runs options.load and prints the report to `out`. Every request ignores end-of-text, so that
// lengths are what --max_new_tokens says. Returns the exit status of the program: 0 if at least one
// request finished and none failed but by rejection.
int RunLoad(const ClientOptions& options, std::ostream& out, std::ostream& err);

}  // namespace fewbit::client
