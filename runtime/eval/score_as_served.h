// Perplexity through an engine and an executor, as a server would compute it: on a GPU, or with
// another KV type than the exact one of evaluate.h.
#pragma once

#include <atomic>
#include <functional>
#include <span>

#include "absl/status/statusor.h"
#include "runtime/eval/evaluate.h"
#include "runtime/executor.h"
#include "scheduler/ids.h"

namespace fewbit {

// As ScoreText without a reference; several windows run at a time. `bos` negative: none. Errors: as
// ScoreText, INVALID_ARGUMENT also if a window and one more token are over the executor's context.
// INTERNAL: the executor failed.
absl::StatusOr<TextScore> ScoreTextAsServed(Executor* executor, TokenId bos,
                                            std::span<const TokenId> text,
                                            const TextOptions& options,
                                            const std::function<void(int, int)>& progress,
                                            const std::atomic<bool>* stop);

}  // namespace fewbit
