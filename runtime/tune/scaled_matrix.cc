#include "runtime/tune/scaled_matrix.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "scheduler/check.h"

namespace fewbit::tune {
namespace {

using quant::kStripChannels;

bool FourBits(const quant::PackedShape& shape, int position) {
  return position >= quant::ChunkStrips(2) * shape.chunks2;
}

// Among the tiles of a row, both widths.
int TileOf(const quant::PackedShape& shape, int position) {
  const int first4 = quant::ChunkStrips(2) * shape.chunks2;
  if (position < first4) return position / (quant::kTileChunks * quant::ChunkStrips(2));
  return shape.tiles(2) + (position - first4) / (quant::kTileChunks * quant::ChunkStrips(4));
}

// 2 * zero, or what stands for it without zero-points.
int Centre(const quant::UnpackedMatrix& m, size_t at, int position) {
  if (m.shape.zero_points) return 2 * m.zeros[at];
  return FourBits(m.shape, position) ? 15 : 3;
}

void TakeScales(const quant::UnpackedMatrix& m, HostScaledMatrix* out) {
  const int positions = m.shape.num_positions();
  const int strips = out->cols / kStripChannels;
  for (int p = 0; p < positions; ++p) {
    const int strip = m.strip_order[p];
    if (strip == quant::kNoStrip) continue;
    out->tile_of_strip[strip] = TileOf(m.shape, p);
    for (int row = 0; row < out->rows; ++row) {
      const size_t at = static_cast<size_t>(row) * positions + p;
      out->sub_scales[static_cast<size_t>(row) * strips + strip] = m.sub_scales[at];
      const int centre = Centre(m, at, p);
      const uint8_t* codes = &m.codes[at * kStripChannels];
      int8_t* levels =
          &out->levels[static_cast<size_t>(row) * out->cols + int64_t{strip} * kStripChannels];
      for (int k = 0; k < kStripChannels; ++k) {
        levels[k] = static_cast<int8_t>(2 * codes[k] - centre);
      }
    }
  }
  const int tiles2 = m.shape.tiles(2), tiles4 = m.shape.tiles(4);
  for (int row = 0; row < out->rows; ++row) {
    float* d = &out->second_order[static_cast<size_t>(row) * out->tiles];
    for (int t = 0; t < out->tiles; ++t) {
      const uint16_t half = t < tiles2
                                ? m.second_order[0][static_cast<size_t>(row) * tiles2 + t]
                                : m.second_order[1][static_cast<size_t>(row) * tiles4 + t - tiles2];
      d[t] = quant::HalfToFloat(half) / quant::kStoredSecondOrderFactor;
    }
  }
}

// Sorts the outliers by place. A file may list a place twice: both corrections count.
void TakeOutliers(HostScaledMatrix* out) {
  quant::UnpackedMatrix& m = out->source;
  const auto place = [&](const quant::Outlier& o) {
    const int strip = m.strip_order[o.position / kStripChannels];
    return o.row * out->cols + strip * kStripChannels + o.position % kStripChannels;
  };
  std::stable_sort(m.outliers.begin(), m.outliers.end(),
                   [&](const auto& a, const auto& b) { return place(a) < place(b); });
  std::vector<quant::Outlier> once;
  for (const quant::Outlier& o : m.outliers) {
    const float value = quant::HalfToFloat(o.value);
    if (!once.empty() && out->outlier_at.back() == place(o)) {
      out->outliers.back() += value;
      continue;
    }
    once.push_back(o);
    out->outlier_at.push_back(place(o));
    out->outliers.push_back(value);
  }
  m.outliers = std::move(once);
}

}  // namespace

HostScaledMatrix TakeApart(const quant::PackedMatrix& matrix) {
  HostScaledMatrix out;
  out.source = quant::Unpack(matrix);
  out.rows = matrix.shape.rows;
  out.cols = matrix.shape.cols;
  out.tiles = matrix.shape.tiles(2) + matrix.shape.tiles(4);
  const auto rows = static_cast<size_t>(out.rows);
  const size_t strips = out.cols / kStripChannels;
  out.levels.resize(rows * out.cols);
  out.tile_of_strip.resize(strips);
  out.sub_scales.resize(rows * strips);
  out.second_order.resize(rows * out.tiles);
  TakeScales(out.source, &out);
  TakeOutliers(&out);
  return out;
}

quant::PackedStorage PutTogether(const HostScaledMatrix& matrix) {
  quant::UnpackedMatrix m = matrix.source;
  const int positions = m.shape.num_positions();
  const int strips = matrix.cols / kStripChannels;
  FEWBIT_CHECK_EQ(matrix.sub_scales.size(), static_cast<size_t>(matrix.rows) * strips);
  FEWBIT_CHECK_EQ(matrix.second_order.size(), static_cast<size_t>(matrix.rows) * matrix.tiles);
  FEWBIT_CHECK_EQ(matrix.outliers.size(), m.outliers.size());
  for (int row = 0; row < matrix.rows; ++row) {
    for (int p = 0; p < positions; ++p) {
      if (m.strip_order[p] == quant::kNoStrip) continue;
      const float s = matrix.sub_scales[static_cast<size_t>(row) * strips + m.strip_order[p]];
      m.sub_scales[static_cast<size_t>(row) * positions + p] = static_cast<uint8_t>(
          std::nearbyint(std::clamp(s, 0.0f, static_cast<float>(quant::kMaxSubScale))));
    }
  }
  const int tiles2 = m.shape.tiles(2), tiles4 = m.shape.tiles(4);
  for (size_t row = 0; row < static_cast<size_t>(matrix.rows); ++row) {
    for (int t = 0; t < matrix.tiles; ++t) {
      const uint16_t half = quant::FloatToHalf(matrix.second_order[row * matrix.tiles + t] *
                                               quant::kStoredSecondOrderFactor);
      (t < tiles2 ? m.second_order[0][row * tiles2 + t]
                  : m.second_order[1][row * tiles4 + t - tiles2]) = half;
    }
  }
  for (size_t i = 0; i < m.outliers.size(); ++i) {
    m.outliers[i].value = quant::FloatToHalf(matrix.outliers[i]);
  }
  return quant::Pack(m);
}

}  // namespace fewbit::tune
