// Reading a checkpoint directory piece by piece: any Hugging Face decoder of the arch table,
// quantized by fewbit or not. Shards are mapped, matrices point into them; LoadModel is this, all
// layers at once. A streaming user holds one layer at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/models/model.h"
#include "runtime/weights/safetensors.h"

namespace fewbit {

// A norm or bias as it is stored, under the name that a quantized checkpoint gives it (Llama's,
// whatever the family).
struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// Thread rule: immutable after Open; what releases changes no content and may run at any time.
class CheckpointReader {
 public:
  // Reads config.json, generation_config.json and every shard's header; checks that each tensor the
  // family needs is there with the right shape. Error codes as LoadModel.
  static absl::StatusOr<std::unique_ptr<CheckpointReader>> Open(const std::string& directory);
  ~CheckpointReader();

  const ModelSpec& spec() const;
  const QuantizationInfo& quantization() const;
  const GenerationDefaults& generation() const;
  const std::string& directory() const;
  const nlohmann::json& config() const;  // config.json as read

  absl::StatusOr<Matrix> Embedding() const;
  absl::StatusOr<Matrix> Head() const;  // the embedding when tied
  absl::StatusOr<std::vector<float>> FinalNorm() const;
  // Norms and biases are refused with NaN or infinities, packed matrices with tables out of range.
  // REQUIRES: 0 <= layer < L.
  absl::StatusOr<LayerWeights> Layer(int layer) const;

  // For writers: the layer's norms and biases (layer -1: the final norm), as stored.
  absl::StatusOr<std::vector<NamedTensor>> StoredVectors(int layer) const;

  // Tells the system that the pages of a layer are not needed any more.
  void ReleaseLayer(int layer) const;
  // Likewise those of embedding and head.
  void ReleaseEnds() const;

  int64_t weight_bytes() const;
  std::vector<std::shared_ptr<const void>> mappings() const;

 private:
  CheckpointReader();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
