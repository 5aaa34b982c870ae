#include "runtime/quantize/weight_map.h"

#include <numeric>
#include <variant>

#include "absl/strings/str_cat.h"
#include "kernels/quant_access.h"
#include "kernels/quant_layout.h"
#include "runtime/weights/quantized_tensors.h"

namespace fewbit {
namespace {

WeightMap MapOf(const quant::PackedMatrix& matrix) {
  const quant::PackedShape& shape = matrix.shape;
  const size_t strips = static_cast<size_t>(shape.cols) / quant::kStripChannels;
  WeightMap map;
  map.rows = shape.rows;
  map.weights = int64_t{shape.rows} * shape.cols;
  map.bytes = PackedBytes(matrix);
  map.four_bits.resize(strips);
  map.outliers.resize(strips);
  const int positions2 = quant::ChunkStrips(2) * shape.chunks2;
  for (int p = positions2; p < shape.num_positions(); ++p) {
    if (matrix.strip_order[p] != quant::kNoStrip) map.four_bits[matrix.strip_order[p]] = true;
  }
  if (matrix.outlier_start == nullptr) return map;
  const size_t tiles = static_cast<size_t>(shape.tiles(2));
  for (size_t list = 0; list < shape.num_outlier_lists(); ++list) {
    const size_t first = list % tiles * quant::kTileChunks * quant::ChunkStrips(2);
    for (uint32_t i = matrix.outlier_start[list]; i < matrix.outlier_start[list + 1]; ++i) {
      const int in_tile = quant::OutlierPosition(matrix.outliers[i]) / quant::kStripChannels;
      ++map.outliers[matrix.strip_order[first + static_cast<size_t>(in_tile)]];
    }
  }
  return map;
}

}  // namespace

int64_t WeightMap::total_outliers() const {
  return std::accumulate(outliers.begin(), outliers.end(), int64_t{0});
}

absl::StatusOr<std::vector<WeightMap>> ReadWeightMaps(const CheckpointReader& reader) {
  if (!reader.quantization().quantized) {
    return absl::FailedPreconditionError(
        absl::StrCat(reader.directory(), ": is not quantized by fewbit"));
  }
  std::vector<WeightMap> maps;
  for (int layer = 0; layer < reader.spec().num_layers; ++layer) {
    const absl::StatusOr<LayerWeights> weights = reader.Layer(layer);
    if (!weights.ok()) return weights.status();
    for (const Matrix& matrix : weights->linears) {
      maps.push_back(MapOf(std::get<quant::PackedMatrix>(matrix)));
    }
    reader.ReleaseLayer(layer);
  }
  return maps;
}

}  // namespace fewbit
