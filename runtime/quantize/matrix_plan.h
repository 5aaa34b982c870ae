// What is settled about a matrix before its codes are chosen: which strips get how many bits, in
// which order, which weights are outliers. Strips are counted in compact order here: the 2-bit
// ones, then the 4-bit ones, no padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/quant_layout.h"
#include "runtime/quantize/lane_kernels.h"
#include "runtime/quantize/methods.h"
#include "runtime/quantize/strip_choice.h"

namespace fewbit {

// A tile of every row: some strips of one width that share a d.
struct TileRange {
  int bits = 2;
  int index = 0;  // among the tiles of its width
  int first_strip = 0;
  int strips = 0;
  int channels() const { return strips * kGroup; }
  int first_channel() const { return first_strip * kGroup; }
};

// Thread rule: plain data.
struct MatrixPlan {
  const QuantizeMethod* method = nullptr;
  int rows = 0;
  int cols = 0;
  StripCounts counts;
  std::vector<uint16_t> order;   // [num_positions] source strips, OrderStrips'
  std::vector<TileRange> tiles;  // the 2-bit ones, then the 4-bit ones
  std::vector<uint16_t> masks;   // [16 * row_blocks, strips2] bit k: channel k is an outlier

  int strips() const { return counts.strips2 + counts.strips4; }
  int row_blocks() const { return counts.shape.row_blocks(); }
  int position(int strip) const {
    return strip < counts.strips2
               ? strip
               : quant::ChunkStrips(2) * counts.shape.chunks2 + strip - counts.strips2;
  }
  int source_channel(int strip) const { return order[position(strip)] * kGroup; }
  bool IsOutlier(int row, int strip, int channel) const {
    return !masks.empty() && strip < counts.strips2 &&
           ((masks[static_cast<size_t>(row) * counts.strips2 + strip] >> channel) & 1) != 0;
  }

  // `tiles` from `counts`.
  void CutTiles();
};

}  // namespace fewbit
