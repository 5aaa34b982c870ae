// What an interrupted tuning run leaves in its partial directory: progress.json, and per layer one
// file with the numbers as they are, their moments, and the numbers as they were best.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/tune/student.h"
#include "runtime/tune/tune_options.h"
#include "runtime/weights/fingerprint.h"

namespace fewbit::tune {

struct TuningRecord {
  Fingerprint fingerprint;
  int step = 0;  // steps taken
  std::vector<TunePoint> curve;
  int best_step = 0;
  double loss_sum = 0.0;            // training KL since the last point of the curve
  std::vector<uint64_t> checksums;  // of the files of each layer, the end included
};

nlohmann::json ToJson(const TuningRecord& record);
// DATA_LOSS: not what ToJson makes; the message names the entry, not the file.
absl::StatusOr<TuningRecord> ParseTuningRecord(const nlohmann::json& json);

// Returns the checksum.
absl::StatusOr<uint64_t> WriteLayerState(const std::string& directory, int step, int layer,
                                         const LayerState& state, std::span<const float> best);
// `values`: how many the layer has. DATA_LOSS: not the file with this checksum; its path is named.
absl::StatusOr<LayerState> ReadLayerState(const std::string& directory, int step, int layer,
                                          uint64_t checksum, int64_t values,
                                          std::vector<float>* best);

// Deletes the files of all steps but `step`.
absl::Status RemoveLayerStates(const std::string& directory, int step);

}  // namespace fewbit::tune
