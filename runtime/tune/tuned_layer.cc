#include "runtime/tune/tuned_layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/models/arch_table.h"
#include "runtime/tune/scaled_matrix.h"
#include "scheduler/check.h"

namespace fewbit::tune {
namespace {

// Fills a TunedLayer array by array.
class Builder {
 public:
  explicit Builder(TunedLayer* layer) : layer_(*layer) {}

  template <typename T>
  int64_t AddFixed(const std::vector<T>& items) {
    std::vector<uint8_t>& fixed = layer_.fixed;
    const auto offset = static_cast<int64_t>(fixed.size());
    const size_t bytes = items.size() * sizeof(T);
    fixed.resize(static_cast<size_t>(RoundUp(offset + static_cast<int64_t>(bytes), kAlignment)));
    if (bytes > 0) std::memcpy(fixed.data() + offset, items.data(), bytes);
    layer_.layout.fixed_bytes = static_cast<int64_t>(fixed.size());
    return offset;
  }

  // Sub-scales step in units of their grid, everything else relative to what it was; an element
  // that was 0 takes the array's mean size.
  TunedArray AddValues(TunedKind kind, const std::vector<float>& items) {
    if (items.empty()) return {.kind = kind};
    const auto offset = static_cast<int64_t>(layer_.values.size());
    const auto count = static_cast<int64_t>(items.size());
    const size_t end = static_cast<size_t>(RoundUp(offset + count, kAlignedFloats));
    layer_.values.resize(end);
    layer_.references.resize(end, 1.0f);
    std::copy(items.begin(), items.end(), layer_.values.begin() + offset);
    if (kind != TunedKind::kSubScales) AddReferences(items, layer_.references.data() + offset);
    layer_.layout.num_values = static_cast<int64_t>(end);
    layer_.layout.arrays.push_back({kind, offset, count});
    return layer_.layout.arrays.back();
  }

 private:
  static void AddReferences(const std::vector<float>& items, float* references) {
    double sum = 0.0;
    for (const float item : items) sum += std::abs(item);
    const auto mean = static_cast<float>(sum / static_cast<double>(items.size()));
    for (size_t i = 0; i < items.size(); ++i) {
      references[i] = items[i] == 0.0f ? mean : std::abs(items[i]);
    }
  }

  TunedLayer& layer_;
};

struct NormPlace {
  TunedArray TunedLayout::*array;
  std::vector<float> LayerWeights::*weights;
  const char* TensorNames::*name;
};
constexpr NormPlace kNorms[] = {
    {&TunedLayout::input_norm, &LayerWeights::input_norm, &TensorNames::input_norm},
    {&TunedLayout::post_attention_norm, &LayerWeights::post_attention_norm,
     &TensorNames::post_attention_norm},
    {&TunedLayout::q_norm, &LayerWeights::q_norm, &TensorNames::q_norm},
    {&TunedLayout::k_norm, &LayerWeights::k_norm, &TensorNames::k_norm}};

TunedLayout::Linear AddLinear(const quant::PackedMatrix& packed, Builder* builder) {
  const HostScaledMatrix host = TakeApart(packed);
  TunedLayout::Linear linear;
  linear.rows = host.rows;
  linear.cols = host.cols;
  linear.tiles = host.tiles;
  linear.num_outliers = static_cast<int>(host.outliers.size());
  linear.levels = builder->AddFixed(host.levels);
  linear.tile_of_strip = builder->AddFixed(host.tile_of_strip);
  linear.outlier_at = builder->AddFixed(host.outlier_at);
  linear.sub_scales = builder->AddValues(TunedKind::kSubScales, host.sub_scales).offset;
  linear.second_order = builder->AddValues(TunedKind::kSecondOrder, host.second_order).offset;
  linear.outliers = builder->AddValues(TunedKind::kOutliers, host.outliers).offset;
  return linear;
}

std::vector<float> Part(std::span<const float> values, int64_t offset, size_t count) {
  const auto part = values.subspan(static_cast<size_t>(offset), count);
  return {part.begin(), part.end()};
}

}  // namespace

const char* TunedKindName(TunedKind kind) {
  constexpr const char* kNames[kNumTunedKinds] = {"sub-scales", "second-order scales", "outliers",
                                                  "norms"};
  return kNames[static_cast<int>(kind)];
}

absl::StatusOr<TunedLayer> ReadTunedLayer(const ModelSource& source, int layer) {
  absl::StatusOr<LayerWeights> weights = source.layer(layer);
  if (!weights.ok()) return weights.status();
  TunedLayer result;
  Builder builder(&result);
  for (int r = 0; r < kNumLinearRoles; ++r) {
    const auto* packed = std::get_if<quant::PackedMatrix>(&weights->linears[r]);
    FEWBIT_CHECK(packed != nullptr) << "the checkpoint is not quantized";
    if (int64_t{packed->shape.rows} * packed->shape.cols > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(
          absl::StrCat("layers.", layer, ".", LinearRoleName(static_cast<LinearRole>(r)), " has ",
                       packed->shape.rows, " x ", packed->shape.cols,
                       " weights; tuning takes at most 2^31 - 1 in a matrix"));
    }
    result.layout.linears[r] = AddLinear(*packed, &builder);
  }
  for (const NormPlace& norm : kNorms) {
    result.layout.*norm.array = builder.AddValues(TunedKind::kNorms, (*weights).*norm.weights);
  }
  if (source.spec.qkv_bias) {
    result.layout.q_bias = builder.AddFixed(weights->q_bias);
    result.layout.k_bias = builder.AddFixed(weights->k_bias);
    result.layout.v_bias = builder.AddFixed(weights->v_bias);
  }
  return result;
}

TunedLayer TunedEnd(const ModelSource& source) {
  TunedLayer result;
  result.layout.input_norm = Builder(&result).AddValues(TunedKind::kNorms, source.final_norm);
  return result;
}

ScaledMatrix ScaledMatrixAt(const TunedLayout::Linear& linear, const uint8_t* fixed,
                            const float* values) {
  ScaledMatrix matrix;
  matrix.rows = linear.rows;
  matrix.cols = linear.cols;
  matrix.tiles = linear.tiles;
  matrix.levels = reinterpret_cast<const int8_t*>(fixed + linear.levels);
  matrix.tile_of_strip = reinterpret_cast<const int32_t*>(fixed + linear.tile_of_strip);
  matrix.sub_scales = values + linear.sub_scales;
  matrix.second_order = values + linear.second_order;
  matrix.num_outliers = linear.num_outliers;
  matrix.outlier_at = reinterpret_cast<const int32_t*>(fixed + linear.outlier_at);
  matrix.outliers = values + linear.outliers;
  matrix.rounded = true;
  return matrix;
}

absl::Status ToQuantizedLayer(const ModelSource& source, int layer, const TunedLayout& layout,
                              std::span<const float> values, QuantizedLayer* linears,
                              ReplacedVectors* norms) {
  if (layer < 0) {
    (*norms)[CanonicalNames().final_norm] =
        Part(values, layout.input_norm.offset, static_cast<size_t>(layout.input_norm.count));
    return absl::OkStatus();
  }
  absl::StatusOr<LayerWeights> weights = source.layer(layer);
  if (!weights.ok()) return weights.status();
  for (int r = 0; r < kNumLinearRoles; ++r) {
    const TunedLayout::Linear& linear = layout.linears[r];
    HostScaledMatrix host = TakeApart(std::get<quant::PackedMatrix>(weights->linears[r]));
    host.sub_scales = Part(values, linear.sub_scales, host.sub_scales.size());
    host.second_order = Part(values, linear.second_order, host.second_order.size());
    host.outliers = Part(values, linear.outliers, host.outliers.size());
    linears->linears[r] = PutTogether(host);
  }
  for (const NormPlace& norm : kNorms) {
    const TunedArray& array = layout.*norm.array;
    if (array.count == 0) continue;
    (*norms)[CanonicalNames().InLayer(layer, CanonicalNames().*norm.name)] =
        Part(values, array.offset, static_cast<size_t>(array.count));
  }
  return absl::OkStatus();
}

}  // namespace fewbit::tune
