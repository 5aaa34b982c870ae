#include "runtime/models/model.h"

#include <utility>

#include "runtime/weights/checkpoint.h"
#include "scheduler/check.h"

namespace fewbit {

const char* LinearRoleName(LinearRole role) {
  constexpr const char* kNames[kNumLinearRoles] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                   "gate_proj", "up_proj", "down_proj"};
  return kNames[static_cast<int>(role)];
}

LinearShape ShapeOf(const ModelSpec& spec, LinearRole role) {
  switch (role) {
    case LinearRole::kQ:
      return {spec.q_size(), spec.hidden_size};
    case LinearRole::kK:
    case LinearRole::kV:
      return {spec.kv_size(), spec.hidden_size};
    case LinearRole::kO:
      return {spec.hidden_size, spec.q_size()};
    case LinearRole::kGate:
    case LinearRole::kUp:
      return {spec.ffn_size, spec.hidden_size};
    case LinearRole::kDown:
      return {spec.hidden_size, spec.ffn_size};
  }
  FEWBIT_CHECK(false) << "no such role";
  return {};
}

absl::StatusOr<std::unique_ptr<Model>> LoadModel(const std::string& directory) {
  const auto reader = CheckpointReader::Open(directory);
  if (!reader.ok()) return reader.status();
  auto model = std::make_unique<Model>();
  model->spec = (*reader)->spec();
  model->quantization = (*reader)->quantization();
  model->generation = (*reader)->generation();
  model->weight_bytes = (*reader)->weight_bytes();
  model->mappings = (*reader)->mappings();

  auto embedding = (*reader)->Embedding();
  if (!embedding.ok()) return embedding.status();
  model->embedding = *std::move(embedding);
  auto head = (*reader)->Head();
  if (!head.ok()) return head.status();
  model->head = *std::move(head);
  auto norm = (*reader)->FinalNorm();
  if (!norm.ok()) return norm.status();
  model->final_norm = *std::move(norm);
  for (int layer = 0; layer < model->spec.num_layers; ++layer) {
    auto weights = (*reader)->Layer(layer);
    if (!weights.ok()) return weights.status();
    model->layers.push_back(*std::move(weights));
  }
  return model;
}

}  // namespace fewbit
