// The command line of fewbit-client: flags in, ClientOptions out. Only main.cc and tests include
// it.
#pragma once

#include <istream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/client/client_options.h"

namespace fewbit::client {

// The text of --help.
std::string HelpText();

// Handles --help and --version (prints, exit 0) and lets Abseil parse the rest (a malformed or
// unknown flag: exit 1). Fields whose flag was not given stay unset, so that the server's defaults
// hold. The prompt is the argument, else all of `input` less one newline at the end.
// INVALID_ARGUMENT: flags that contradict each other, a list that is none, or no prompt at all
// (`input_is_terminal`).
absl::StatusOr<ClientOptions> ParseCommandLine(int argc, char** argv, std::istream& input,
                                               bool input_is_terminal);

// "a,b" -> a and b. A backslash takes the next character as it is; \n, \t and \r are newline, tab
// and return. Empty: no entry.
std::vector<std::string> SplitStops(std::string_view text);

// Abseil keeps the last of a repeated flag; this joins all --stop arguments into one.
std::vector<std::string> JoinStops(int argc, char** argv);

}  // namespace fewbit::client
