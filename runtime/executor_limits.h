// What every executor asks of the limits it is created with.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "runtime/models/model_spec.h"

namespace fewbit {

// INVALID_ARGUMENT: "OPTION is VALUE: must be MUST".
absl::Status InvalidOption(const char* option, int64_t value, const std::string& must);

// INVALID_ARGUMENT naming the first of these that is out of range.
absl::Status CheckExecutorLimits(const ModelSpec& spec, int32_t max_sequences,
                                 int32_t max_step_tokens, int32_t max_context, int32_t num_blocks);

}  // namespace fewbit
