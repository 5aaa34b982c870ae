// A model whose layers are read one at a time: a checkpoint, or tensors that are in memory.
#pragma once

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/models/model.h"
#include "runtime/weights/checkpoint.h"

namespace fewbit::tune {

// What matrices point into outlives whoever has the source.
struct ModelSource {
  ModelSpec spec;
  Matrix embedding;  // [V, E]
  Matrix head;       // [V, E]; the embedding itself when tied
  std::vector<float> final_norm;
  std::function<absl::StatusOr<LayerWeights>(int)> layer;  // 0 <= layer < L
};

// Of a checkpoint; `reader` outlives the source. Codes of CheckpointReader.
inline absl::StatusOr<ModelSource> SourceOf(const CheckpointReader& reader) {
  absl::StatusOr<Matrix> embedding = reader.Embedding();
  if (!embedding.ok()) return embedding.status();
  absl::StatusOr<Matrix> head = reader.Head();
  if (!head.ok()) return head.status();
  absl::StatusOr<std::vector<float>> final_norm = reader.FinalNorm();
  if (!final_norm.ok()) return final_norm.status();
  return ModelSource{.spec = reader.spec(),
                     .embedding = *std::move(embedding),
                     .head = *std::move(head),
                     .final_norm = *std::move(final_norm),
                     .layer = [&reader](int layer) { return reader.Layer(layer); }};
}

}  // namespace fewbit::tune
