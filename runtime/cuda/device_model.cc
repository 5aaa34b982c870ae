#include "runtime/cuda/device_model.h"

#include <string>

#include "runtime/models/rope.h"

namespace fewbit {
namespace {

void PlaceMatrix(const MatrixPlan& plan, Carver* carver, PlacedMatrix* m) {
  m->plan = plan;
  if (!plan.packed) {
    const size_t count = static_cast<size_t>(plan.rows) * plan.cols;
    m->data = carver->Take<uint8_t>(count * cuda::WeightBytes(plan.type));
    if (plan.type == cuda::WeightType::kI8) m->scales = carver->Take<float>(plan.rows);
    return;
  }
  m->tiles = carver->Take<uint8_t>(plan.shape.total_bytes());
  m->strip_order = carver->Take<uint16_t>(plan.shape.num_positions());
  if (plan.outliers == 0) return;
  const size_t lists =
      static_cast<size_t>(plan.shape.row_blocks()) * quant::kBlockRows * cuda::kSegments;
  m->outlier_start = carver->Take<uint32_t>(lists + 1);
  m->outliers = carver->Take<uint32_t>(plan.outliers);
  if (!plan.tile_outliers) return;
  m->tile_outlier_start = carver->Take<uint32_t>(plan.shape.num_outlier_lists() + 1);
  m->tile_outliers = carver->Take<uint32_t>(cuda::TileOutlierEntries(plan.outliers));
}

void PlaceLayer(const ModelSpec& spec, const std::array<MatrixPlan, kNumLinearRoles>& plan,
                Carver* carver, DeviceLayer* layer) {
  for (int role = 0; role < kNumLinearRoles; ++role) {
    PlaceMatrix(plan[role], carver, &layer->linears[role]);
  }
  layer->input_norm = carver->Take<float>(spec.hidden_size);
  layer->post_attention_norm = carver->Take<float>(spec.hidden_size);
  if (spec.qk_norm) {
    layer->q_norm = carver->Take<float>(spec.head_dim);
    layer->k_norm = carver->Take<float>(spec.head_dim);
  }
  if (spec.qkv_bias) {
    layer->q_bias = carver->Take<float>(spec.q_size());
    layer->k_bias = carver->Take<float>(spec.kv_size());
    layer->v_bias = carver->Take<float>(spec.kv_size());
  }
}

}  // namespace

void PlaceModel(const ModelPlan& plan, Carver* carver, DeviceModel* model) {
  model->spec = plan.spec;
  model->layers.resize(plan.layers.size());
  PlaceMatrix(plan.embedding, carver, &model->embedding);
  if (plan.share_head) {
    model->head = model->embedding;
  } else {
    PlaceMatrix(plan.head, carver, &model->head);
  }
  model->final_norm = carver->Take<float>(plan.spec.hidden_size);
  model->frequencies = carver->Take<double>(plan.spec.rope.rotary_dim / 2);
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    PlaceLayer(plan.spec, plan.layers[l], carver, &model->layers[l]);
  }
}

int64_t ModelBytes(const ModelPlan& plan) {
  Carver count(nullptr);
  DeviceModel nowhere;
  PlaceModel(plan, &count, &nowhere);
  return static_cast<int64_t>(count.used());
}

absl::StatusOr<std::unique_ptr<DeviceModel>> AllocateModel(const ModelPlan& plan) {
  auto model = std::make_unique<DeviceModel>();
  model->bytes = ModelBytes(plan);
  auto memory = DeviceMemory::Allocate(model->bytes, "the model's weights");
  if (!memory.ok()) return memory.status();
  model->memory = *std::move(memory);
  Carver place(model->memory.get());
  PlaceModel(plan, &place, model.get());
  const std::vector<double> frequencies = RopeFrequencies(plan.spec.rope);
  const cudaError_t error = cudaMemcpy(model->frequencies, frequencies.data(),
                                       frequencies.size() * sizeof(double), cudaMemcpyHostToDevice);
  if (absl::Status status = FromCuda(error, "copying rope frequencies"); !status.ok()) {
    return status;
  }
  return model;
}

}  // namespace fewbit
