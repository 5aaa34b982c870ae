#include "runtime/cuda/head_rounding.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/linear.h"
#include "kernels/quant_access.h"
#include "kernels/quant_pack.h"

namespace fewbit {
namespace {

constexpr int kBits = 4;
constexpr float kMostLevel = 7.5f;  // levels are -7.5, -6.5, ... 7.5 times the scale

float Largest(const float* x, int n) {
  float largest = 0.0f;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

// One row's share of a tile: its d, sub-scales and codes.
void RoundTileRow(const quant::PackedShape& shape, int tile, int row, const float* x,
                  uint8_t* row_block) {
  const int first = tile * quant::kTileChunks * quant::ChunkStrips(kBits);
  const int strips = std::min(shape.tile_chunks(kBits, tile) * quant::ChunkStrips(kBits),
                              shape.cols / quant::kStripChannels - first);
  const float* const from = x + first * quant::kStripChannels;
  const float largest = Largest(from, strips * quant::kStripChannels);
  const uint16_t half = quant::FloatToHalf(quant::kStoredSecondOrderFactor * largest /
                                           (kMostLevel * quant::kMaxSubScale));
  const float d = quant::HalfToFloat(half) / quant::kStoredSecondOrderFactor;
  const quant::ChunkView first_chunk =
      quant::ViewChunk(shape, row_block, kBits, tile * quant::kTileChunks);
  std::memcpy(row_block + (first_chunk.second_order - row_block) + quant::PlaceOfSecondOrder(row),
              &half, sizeof(half));
  if (d == 0.0f) return;
  for (int s = 0; s < strips; ++s) {
    const float* const strip = from + s * quant::kStripChannels;
    const float wanted = Largest(strip, quant::kStripChannels) / (kMostLevel * d);
    const int scale = std::clamp(static_cast<int>(std::ceil(wanted)), 1, quant::kMaxSubScale);
    const int chunk = tile * quant::kTileChunks + s / quant::ChunkStrips(kBits);
    const int in_chunk = s % quant::ChunkStrips(kBits);
    const quant::ChunkView view = quant::ViewChunk(shape, row_block, kBits, chunk);
    quant::OrField(row_block + (view.sub_scales - row_block),
                   quant::PlaceOfSubScale(kBits, row, in_chunk), static_cast<uint32_t>(scale));
    const float inverse = 1.0f / (static_cast<float>(scale) * d);
    for (int c = 0; c < quant::kStripChannels; ++c) {
      const int q = std::clamp(static_cast<int>(std::lround(strip[c] * inverse + kMostLevel)), 0,
                               (1 << kBits) - 1);
      quant::OrField(row_block + (view.codes - row_block),
                     quant::PlaceOfCode(kBits, row, in_chunk, c), static_cast<uint32_t>(q));
    }
  }
}

}  // namespace

quant::PackedShape RoundedHeadShape(int32_t rows, int32_t cols) {
  quant::PackedShape shape;
  shape.rows = rows;
  shape.cols = cols;
  const int strips = cols / quant::kStripChannels;
  shape.chunks4 = (strips + quant::ChunkStrips(kBits) - 1) / quant::ChunkStrips(kBits);
  return shape;
}

std::vector<uint16_t> HeadStripOrder(const quant::PackedShape& shape) {
  std::vector<uint16_t> order(shape.num_positions(), quant::kNoStrip);
  for (int s = 0; s < shape.cols / quant::kStripChannels; ++s) order[s] = static_cast<uint16_t>(s);
  return order;
}

void RoundRowBlock(const Matrix& head, const quant::PackedShape& shape, int block, uint8_t* out) {
  std::memset(out, 0, shape.row_block_bytes());
  std::vector<float> row(shape.cols);
  for (int r = 0; r < quant::kBlockRows; ++r) {
    const int source = block * quant::kBlockRows + r;
    if (source >= shape.rows) break;
    cpu::DequantizeRow(head, source, row.data());
    for (int tile = 0; tile < shape.tiles(kBits); ++tile) {
      RoundTileRow(shape, tile, r, row.data(), out);
    }
  }
}

}  // namespace fewbit
