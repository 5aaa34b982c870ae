// config.json and generation_config.json as a ModelSpec. Knows the old and the new key styles;
// refuses, with file, key and value, every feature that the decoder does not have and every number
// outside its limits, so that nothing is silently run differently.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "runtime/models/arch_table.h"
#include "runtime/models/model.h"

namespace fewbit {

// Limits of what a config may say; far above every published model, low enough that no product of
// two of them overflows int64.
struct ConfigLimits {
  static constexpr int64_t kLayers = 1024;
  static constexpr int64_t kHidden = 1 << 18;
  static constexpr int64_t kFfn = 1 << 20;
  static constexpr int64_t kHeads = 1024;
  static constexpr int64_t kHeadDim = 1024;
  static constexpr int64_t kVocab = 1 << 22;
  static constexpr int64_t kContext = 1 << 24;
  static constexpr size_t kFileBytes = 16 << 20;
};

// `quantization_config` of a checkpoint that fewbit made.
struct QuantizedConfig {
  std::string method;
  bool zero_points = false;
  int embedding_bits = 16;
};

struct ModelConfig {
  const ArchRow* arch = nullptr;  // a row of the static table
  ModelSpec spec;
  GenerationDefaults generation;
  std::optional<QuantizedConfig> quantized;
  nlohmann::json json;  // config.json as read
};

// The texts of the two files; generation_config.json may be missing. `directory` is for messages.
// INVALID_ARGUMENT, or FAILED_PRECONDITION for a layout version that this program does not read.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_text,
                                             std::optional<std::string_view> generation_text,
                                             std::string_view directory);

// The same from a directory; generation_config.json may be missing. Adds ReadSmallFile's codes.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory);

}  // namespace fewbit
