// Tunes the scales and norms of a quantized checkpoint against the model it was made from, and
// writes the result as a checkpoint that is served like any other. It owns no text: calibration
// comes as token ids, progress goes out as numbers.
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/tune/ops.h"
#include "runtime/tune/tune_options.h"
#include "scheduler/ids.h"

namespace fewbit::tune {

// Minimises KL(original || quantized) of the next token over `calibration` and `own_text`
// (own_text.h; may be empty) on `ops` and writes options.out_dir: the state in which the held-out
// windows were best, the input's if none was better. `progress` may be empty; called on the
// caller's thread. When *stop becomes true the run records how far it is and ends with CANCELLED.
// On any error nothing is left at out_dir; out_dir.partial stays once a step is recorded, and a run
// with the same arguments on the same device goes on there, to the same bytes. Errors: those of
// CheckpointReader::Open, QuantizedWriter and Trainer; FAILED_PRECONDITION when the model is
// quantized, the other is not, or out_dir.partial is of another run; INVALID_ARGUMENT when the two
// are not the same model or the text is too short; DATA_LOSS when what is in out_dir.partial is
// damaged.
absl::StatusOr<TuneReport> TuneCheckpoint(const TuneOptions& options,
                                          std::span<const TokenId> calibration,
                                          std::span<const TokenId> own_text, Ops* ops,
                                          const std::function<void(const TuneProgress&)>& progress,
                                          const std::atomic<bool>* stop);

// The closing table, several lines.
std::string FormatReport(const TuneOptions& options, const TuneReport& report);

}  // namespace fewbit::tune
