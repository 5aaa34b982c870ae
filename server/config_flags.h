// The command line of fewbit-server: flags in, Config out. Only main.cc includes it (and its test).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/config.h"

namespace fewbit {

// The text of --help: every flag under its heading, with its default.
std::string HelpText();

// Handles --help and --version (prints, exit 0), lets Abseil parse the rest (a malformed or unknown
// flag: exit 1) and returns what was asked for, not yet validated. INVALID_ARGUMENT: an argument
// that is no flag.
absl::StatusOr<Config> ParseCommandLine(int argc, char** argv);

}  // namespace fewbit
