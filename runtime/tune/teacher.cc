#include "runtime/tune/teacher.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "kernels/cpu/linear.h"

namespace fewbit::tune {
namespace {

// Norms and biases of a layer, in this order.
struct VectorPlace {
  std::vector<float> LayerWeights::*weights;
  const float* LayerParams::*params;
};
constexpr VectorPlace kVectors[] = {
    {&LayerWeights::input_norm, &LayerParams::input_norm},
    {&LayerWeights::post_attention_norm, &LayerParams::post_attention_norm},
    {&LayerWeights::q_norm, &LayerParams::q_norm},
    {&LayerWeights::k_norm, &LayerParams::k_norm},
    {&LayerWeights::q_bias, &LayerParams::q_bias},
    {&LayerWeights::k_bias, &LayerParams::k_bias},
    {&LayerWeights::v_bias, &LayerParams::v_bias}};

int64_t BytesOf(DType type) { return type == DType::kF32 ? 4 : 2; }

}  // namespace

absl::StatusOr<DeviceArray<float>> UploadFloats(const Matrix& matrix, Ops* ops) {
  const int rows = MatrixRows(matrix);
  const int64_t cols = MatrixCols(matrix);
  absl::StatusOr<DeviceArray<float>> floats = DeviceArray<float>::Create(ops, rows * cols);
  if (!floats.ok()) return floats.status();
  constexpr int kRowsAtATime = 1024;
  std::vector<float> part(kRowsAtATime * static_cast<size_t>(cols));
  for (int begin = 0; begin < rows; begin += kRowsAtATime) {
    const int count = std::min(kRowsAtATime, rows - begin);
    for (int r = 0; r < count; ++r) cpu::DequantizeRow(matrix, begin + r, part.data() + r * cols);
    ops->Upload(part.data(), static_cast<size_t>(count * cols) * sizeof(float),
                floats->data() + begin * cols);
  }
  return floats;
}

absl::StatusOr<Teacher::Layer> Teacher::Describe(const ModelSource& source, int index) {
  absl::StatusOr<LayerWeights> weights = source.layer(index);
  if (!weights.ok()) return weights.status();
  Layer layer;
  for (int r = 0; r < kNumLinearRoles; ++r) {
    Part& part = layer.linears[r];
    const auto* dense = std::get_if<DenseMatrix>(&weights->linears[r]);
    if (dense == nullptr) return absl::InvalidArgumentError("the original is quantized");
    part.matrix = *dense;
    part.offset = layer.bytes;
    part.bytes = int64_t{part.matrix.rows} * part.matrix.cols * BytesOf(part.matrix.dtype);
    layer.bytes += RoundUp(part.bytes, kAlignment);
  }
  static_assert(std::size(kVectors) == kNumLayerVectors);
  for (int v = 0; v < kNumLayerVectors; ++v) {
    const std::vector<float>& values = (*weights).*kVectors[v].weights;
    layer.offsets[v] = values.empty() ? -1 : static_cast<int64_t>(layer.vectors.size());
    layer.vectors.insert(layer.vectors.end(), values.begin(), values.end());
    layer.vectors.resize(
        static_cast<size_t>(RoundUp(static_cast<int64_t>(layer.vectors.size()), kAlignedFloats)));
  }
  return layer;
}

absl::StatusOr<Teacher::Slot> Teacher::MakeSlot(int64_t linear_bytes, size_t floats) const {
  absl::StatusOr<DeviceArray<uint8_t>> linears = DeviceArray<uint8_t>::Create(ops_, linear_bytes);
  if (!linears.ok()) return linears.status();
  absl::StatusOr<DeviceArray<float>> vectors =
      DeviceArray<float>::Create(ops_, static_cast<int64_t>(floats));
  if (!vectors.ok()) return vectors.status();
  return Slot{*std::move(linears), *std::move(vectors)};
}

void Teacher::Fill(const Layer& layer, const Slot& slot) const {
  for (const Part& part : layer.linears) {
    ops_->Upload(part.matrix.data, static_cast<size_t>(part.bytes),
                 slot.linears.data() + part.offset);
  }
  ops_->Upload(layer.vectors.data(), layer.vectors.size() * sizeof(float), slot.vectors.data());
}

absl::StatusOr<std::unique_ptr<Teacher>> Teacher::Create(const ModelSource& source, Ops* ops,
                                                         bool stream) {
  std::unique_ptr<Teacher> teacher(new Teacher(ops, stream));
  int64_t most_bytes = 0;
  size_t most_floats = 0;
  for (int l = 0; l < source.spec.num_layers; ++l) {
    absl::StatusOr<Layer> layer = Describe(source, l);
    if (!layer.ok()) return layer.status();
    most_bytes = std::max(most_bytes, layer->bytes);
    most_floats = std::max(most_floats, layer->vectors.size());
    teacher->layers_.push_back(*std::move(layer));
  }
  for (const Layer& layer : teacher->layers_) {
    absl::StatusOr<Slot> slot = stream ? teacher->MakeSlot(most_bytes, most_floats)
                                       : teacher->MakeSlot(layer.bytes, layer.vectors.size());
    if (!slot.ok()) return slot.status();
    if (!stream) teacher->Fill(layer, *slot);
    teacher->slots_.push_back(*std::move(slot));
    if (stream) break;
  }
  absl::StatusOr<DeviceArray<float>> final_norm =
      DeviceArray<float>::Upload(ops, source.final_norm);
  if (!final_norm.ok()) return final_norm.status();
  teacher->final_norm_ = *std::move(final_norm);
  absl::StatusOr<DeviceArray<float>> floats = UploadFloats(source.head, ops);
  if (!floats.ok()) return floats.status();
  teacher->head_ = *std::move(floats);
  return teacher;
}

LayerParams Teacher::Materialize(int index, const WeightScratch& scratch) {
  const Layer& layer = layers_[index];
  const Slot& slot = slots_[stream_ ? 0 : index];
  if (stream_) Fill(layer, slot);
  LayerParams params;
  for (int r = 0; r < kNumLinearRoles; ++r) {
    const Part& part = layer.linears[r];
    ops_->Widen(slot.linears.data() + part.offset, part.matrix.dtype,
                int64_t{part.matrix.rows} * part.matrix.cols, scratch[r]);
    params.linears[r] = scratch[r];
  }
  for (int v = 0; v < kNumLayerVectors; ++v) {
    if (layer.offsets[v] < 0) continue;
    params.*kVectors[v].params = slot.vectors.data() + layer.offsets[v];
  }
  return params;
}

}  // namespace fewbit::tune
