// canary.json of a checkpoint: a few tokens and how likely they are under it, as computed where it
// was made. A server that computes something else has broken weights or a device that computes
// wrongly, and says so before it serves.
//   {"token_ids": [1, 306, ...], "mean_logprob": -3.25, "tolerance": 0.1}
// mean_logprob: nats, over every token but the first, each given those before it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/ids.h"

namespace fewbit {

struct Canary {
  // Rounding of another device, of an 8-bit KV cache or of a 4-bit head stays well below it; a
  // model that is broken is off by whole nats.
  static constexpr double kTolerance = 0.1;

  std::vector<TokenId> token_ids;  // 2 to 1024
  double mean_logprob = 0.0;
  double tolerance = kTolerance;  // nats
};

// Empty: the directory has no canary.json. INVALID_ARGUMENT names the file and what is wrong in it.
absl::StatusOr<std::optional<Canary>> LoadCanary(const std::string& model_dir, int32_t vocab_size);

// Errors name the file and the reason.
absl::Status WriteCanary(const std::string& model_dir, const Canary& canary);

}  // namespace fewbit
