#include "runtime/executor_limits.h"

#include "absl/strings/str_cat.h"

namespace fewbit {

absl::Status InvalidOption(const char* option, int64_t value, const std::string& must) {
  return absl::InvalidArgumentError(absl::StrCat(option, " is ", value, ": must be ", must));
}

absl::Status CheckExecutorLimits(const ModelSpec& spec, int32_t max_sequences,
                                 int32_t max_step_tokens, int32_t max_context, int32_t num_blocks) {
  if (max_sequences < 1) return InvalidOption("max_sequences", max_sequences, "at least 1");
  if (max_step_tokens < max_sequences) {
    return InvalidOption("max_step_tokens", max_step_tokens,
                         absl::StrCat("at least max_sequences = ", max_sequences,
                                      ", for each sequence adds a token per step"));
  }
  if (max_context < 0 || max_context > spec.max_context) {
    return InvalidOption("max_context", max_context,
                         absl::StrCat("0 (the model's) to ", spec.max_context, ", the model's"));
  }
  if (num_blocks < 0) return InvalidOption("num_blocks", num_blocks, "0 (from kv_bytes) or more");
  return absl::OkStatus();
}

}  // namespace fewbit
