// The first tokens of a server, before anybody may call it: what is built lazily (CUDA graphs,
// threads, pages of weights) is built then, and a device or a checkpoint that computes nonsense is
// found then.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/executor.h"
#include "runtime/models/model_spec.h"
#include "runtime/weights/canary.h"

namespace fewbit {

struct WarmUpResult {
  std::string about_canary;               // what came of it, for people
  std::optional<CanaryDistances> canary;  // absent: there was none, or it does not fit
};

// Runs a request of a few tokens and, where there is one (canary not null) that fits the context,
// the canary's prompts through an engine of their own, which is gone when it returns. INTERNAL: the
// executor failed the step (why), the logits are not finite, or the canary's answers are more than
// `kl_limit` nats from those of the machine that made it, or so much further from the original's
// than they were there.
absl::StatusOr<WarmUpResult> WarmUp(const ModelSpec& spec, const Canary* canary, double kl_limit,
                                    Executor* executor);

}  // namespace fewbit
