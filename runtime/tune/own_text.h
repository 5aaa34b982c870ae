// Text that the original writes itself, for tuning: calibration texts are short against the number
// of scales that learn from them, and what the original finds likely is what the quantized model is
// to find likely.
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tune/tune_options.h"
#include "scheduler/ids.h"

namespace fewbit::tune {

// options.own_windows windows of options.context tokens: the first tokens of a training window of
// `calibration` (with its noise, if any) and what options.model_dir, drawing from its distribution
// (temperature 1), makes of them on options.device. Runs on the engine that serves. `progress`
// (windows done; may be empty) comes from its thread. The same options give the same windows on the
// same device. Errors: those of LoadModel, TuningText and CreateExecutor; *stop set: CANCELLED.
absl::StatusOr<std::vector<TokenId>> WriteOwnText(const TuneOptions& options,
                                                  std::span<const TokenId> calibration,
                                                  const std::function<void(int)>& progress,
                                                  const std::atomic<bool>* stop);

}  // namespace fewbit::tune
