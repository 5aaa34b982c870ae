// Whether a quantized checkpoint can have been made from an original, before hours of work show
// that it was not.
#pragma once

#include "absl/status/status.h"
#include "runtime/weights/checkpoint.h"

namespace fewbit::tune {

// FAILED_PRECONDITION when `original` is quantized or `quantized` is not; INVALID_ARGUMENT names
// the first number of their shape that differs, or says that their embeddings do.
absl::Status CheckSameModel(const CheckpointReader& original, const CheckpointReader& quantized);

}  // namespace fewbit::tune
