// The first tokens of a server, before anybody may call it: what is built lazily (CUDA graphs,
// threads, pages of weights) is built then, and a device or a checkpoint that computes nonsense is
// found then.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "runtime/executor.h"
#include "runtime/models/model_spec.h"
#include "runtime/weights/canary.h"

namespace fewbit {

// Runs a request of a few tokens and, where there is one that fits the context, the canary's
// through an engine of their own, which is gone when it returns. Says what came of the canary.
// INTERNAL: the executor failed the step (why), the logits are not finite, or the canary's tokens
// are not as likely as they should be.
absl::StatusOr<std::string> WarmUp(const ModelSpec& spec, const Canary* canary, Executor* executor);

}  // namespace fewbit
