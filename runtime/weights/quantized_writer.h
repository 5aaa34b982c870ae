// Writes a quantized checkpoint: a Hugging Face-style directory with one safetensors shard per
// layer, so that peak memory is one layer and an interrupted run can resume. Every file is written
// under a temporary name, fsynced and renamed; the directory appears under its final name only in
// Finish.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/quant_pack.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/models/model.h"

namespace fewbit {

struct QuantizedLayer {
  quant::PackedStorage linears[kNumLinearRoles];
};

// Bytes on disk, for the average-bits table.
struct QuantizedBytes {
  int64_t linear_bytes = 0;    // tiles, strip orders, outliers and their starts
  int64_t linear_weights = 0;  // rows * cols of the originals
  int64_t embedding_bytes = 0;
  int64_t embedding_weights = 0;  // head included when untied
};

class QuantizedWriter {
 public:
  // `source` gives config.json, norms, biases and tokenizer files. ALREADY_EXISTS when `directory`
  // exists and is not empty.
  static absl::StatusOr<std::unique_ptr<QuantizedWriter>> Create(
      const std::string& directory, const class CheckpointReader& source,
      int embedding_bits /* 8 or 16 */);
  ~QuantizedWriter();  // without Finish: removes what it wrote

  absl::Status
  WriteEmbeddings();  // embedding, final norm, untied head; 8-bit rows are rounded here
  absl::Status WriteLayer(int layer, const QuantizedLayer& linears);
  // Writes config.json (with `quantization_config`: method, layout_version, zero_points,
  // average_bits, settings), index and copies, then renames the directory.
  absl::Status Finish(const nlohmann::json& settings);

  const QuantizedBytes& bytes() const;

 private:
  QuantizedWriter();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
