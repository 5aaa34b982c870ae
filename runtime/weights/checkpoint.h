// Reading a checkpoint directory piece by piece: any Hugging Face decoder of the arch table, quantized by fewbit or not. Shards are
// mapped, matrices point into them; LoadModel is this, all layers at once. A streaming user holds one layer at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/models/model.h"

namespace fewbit {

// Thread rule: immutable after Open, except Release (one thread).
class CheckpointReader {
 public:
  // Reads config.json, generation_config.json and every shard's header; checks that each tensor the family needs is there with the
  // right shape. Error codes as LoadModel.
  static absl::StatusOr<std::unique_ptr<CheckpointReader>> Open(const std::string& directory);
  ~CheckpointReader();

  const ModelSpec& spec() const;
  const QuantizationInfo& quantization() const;
  const std::string& directory() const;

  absl::StatusOr<Matrix> Embedding() const;
  absl::StatusOr<Matrix> Head() const;  // the embedding when tied
  absl::StatusOr<std::vector<float>> FinalNorm() const;
  absl::StatusOr<LayerWeights> Layer(int layer) const;

  // Tells the system that the pages of a layer are not needed any more.
  void ReleaseLayer(int layer) const;

  int64_t weight_bytes() const;
  std::vector<std::shared_ptr<const void>> mappings() const;

 private:
  CheckpointReader();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fewbit
