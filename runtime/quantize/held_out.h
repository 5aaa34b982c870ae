// What became of a model's answers: text that calibration did not see runs through a checkpoint
// and, beside it, through the one it was made from, one layer of each in memory at a time. From the
// same run comes the checkpoint's canary.
#pragma once

#include <atomic>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/eval/evaluate.h"
#include "runtime/quantize/calibration.h"
#include "runtime/thread_team.h"
#include "runtime/weights/canary.h"
#include "runtime/weights/checkpoint.h"

namespace fewbit {

struct HeldOut {
  TextScore score;  // with the reference's numbers if there was an original; its stride is 0
  Canary canary;    // of the first tokens of the first windows
};

// `original` may be null. `step` (may be empty) is told what layer comes next and may end the run
// with its error; *stop set (may be null): CANCELLED. INVALID_ARGUMENT: models that differ in
// layers, hidden size or vocabulary, no window, a window of one token; DATA_LOSS: logits that are
// not finite; the errors of reading a layer.
absl::StatusOr<HeldOut> MeasureHeldOut(const CheckpointReader& model,
                                       const CheckpointReader* original,
                                       const CalibrationWindows& windows, ThreadTeam* team,
                                       const std::function<absl::Status(int layer)>& step,
                                       const std::atomic<bool>* stop);

}  // namespace fewbit
