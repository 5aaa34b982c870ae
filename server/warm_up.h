// The first tokens of a server, before anybody may call it: what is built lazily (CUDA graphs,
// threads, pages of weights) is built then, and a device or a checkpoint that cannot compute is
// found then.
#pragma once

#include "absl/status/status.h"
#include "runtime/executor.h"
#include "runtime/models/model_spec.h"

namespace fewbit {

// Runs a request of a few tokens through an engine of its own, which is gone when it returns.
// INTERNAL: the executor failed the step (why), or the logits are not finite.
absl::Status WarmUp(const ModelSpec& spec, Executor* executor);

}  // namespace fewbit
