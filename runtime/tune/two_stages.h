// Quantizing and tuning as one run that goes on after an interruption, in whichever stage: OUT gets
// the tuned checkpoint, OUT.quantized the one between, which stays, and OUT.run.json says until the
// end what run OUT.quantized is of.
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/quantize/checkpoint_quantizer.h"
#include "scheduler/ids.h"

namespace fewbit::tune {

// Where the first stage writes.
std::string QuantizedStage(const std::string& out_dir);

// Before the first stage, whose options are `quantize` (out_dir: QuantizedStage). True: an
// interrupted run has finished it. With quantize.restart what that run left of the first stage is
// deleted. ALREADY_EXISTS: OUT is there, or OUT.quantized is of no interrupted run;
// FAILED_PRECONDITION: it is of another one, naming the difference; DATA_LOSS: OUT.run.json is
// damaged.
absl::StatusOr<bool> BeginTwoStages(const QuantizeOptions& quantize, const std::string& out_dir,
                                    std::span<const TokenId> calibration);

// After the second stage.
absl::Status EndTwoStages(const std::string& out_dir);

}  // namespace fewbit::tune
