// Everything that the bytes of a long run's output depend on, as names and values: an interrupted
// run is gone on with only by a run that has the same.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json_fwd.hpp"
#include "scheduler/ids.h"

namespace fewbit {

using Fingerprint = std::vector<std::pair<std::string, std::string>>;

// "17 tokens, hash 0123456789abcdef".
std::string DescribeIds(std::span<const TokenId> ids);

// One entry per file that a reader looks at or a writer copies, by size and time; `what` begins its
// name ("model file"). NOT_FOUND and the like when the directory cannot be listed.
absl::Status AddModelFiles(const std::string& directory, std::string_view what,
                           Fingerprint* fingerprint);

// FAILED_PRECONDITION names the first entry that differs, both values, and how to get on.
// `directory` is where the interrupted run worked.
absl::Status CheckSameRun(const Fingerprint& interrupted, const Fingerprint& now,
                          const std::string& directory);

nlohmann::json FingerprintToJson(const Fingerprint& fingerprint);
// False: not what FingerprintToJson makes.
bool ParseFingerprint(const nlohmann::json& value, Fingerprint* fingerprint);

}  // namespace fewbit
