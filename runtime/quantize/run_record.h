// progress.json of a quantization run: enough to go on after an interruption with the same bytes,
// or to see that they would not be the same. Numbers come back exactly as they were.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/linear.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/models/model.h"
#include "runtime/quantize/bit_plan.h"
#include "runtime/quantize/checkpoint_quantizer.h"
#include "runtime/quantize/matrix_quantizer.h"
#include "runtime/weights/fingerprint.h"
#include "scheduler/ids.h"

namespace fewbit {

// Options but for threads, the calibration ids, program, layout, instruction set and library of
// products, and the files of the model by size and time. NOT_FOUND and the like when the model
// cannot be listed.
absl::StatusOr<Fingerprint> FingerprintOf(const QuantizeOptions& options,
                                          std::span<const TokenId> calibration, cpu::Isa isa);

struct LayerRecord {
  uint64_t checksum = 0;  // QuantizedWriter::LayerChecksum
  std::array<MatrixQuality, kNumLinearRoles> qualities;
};

struct RunRecord {
  Fingerprint fingerprint;
  BitPlan plan;                                    // empty without shared_bits
  std::vector<std::optional<LayerRecord>> layers;  // [L] those that are finished

  int finished() const;  // layers
};

nlohmann::json ToJson(const RunRecord& record);

// DATA_LOSS: not what ToJson makes; the message names the entry, not the file. Sizes are checked
// against `num_layers` only once the fingerprint has been, by CheckSizes.
absl::StatusOr<RunRecord> ParseRunRecord(const nlohmann::json& json);
absl::Status CheckSizes(const RunRecord& record, int num_layers, bool planned);

}  // namespace fewbit
