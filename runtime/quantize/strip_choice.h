// How many strips of a matrix become 4-bit ones, and which.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/quant_layout.h"

namespace fewbit {

// The shape with about `share4` of the strips at 4 bits. Chunks hold 8 two-bit or 4 four-bit
// strips, so some counts only buy padding: a count is considered only if no larger one costs as few
// bytes, and the nearest of those to share4 is taken. 0 and 1 mean none and all. REQUIRES: cols a
// positive multiple of 16, 0 <= share4 <= 1.
struct StripCounts {
  quant::PackedShape shape;
  int strips2 = 0;
  int strips4 = 0;
};
StripCounts ChooseStripCounts(int rows, int cols, double share4, bool zero_points);

// All counts that ChooseStripCounts considers, by rising number of 4-bit strips and so of bytes.
std::vector<StripCounts> UsefulStripCounts(int rows, int cols, bool zero_points);

// [shape.num_positions()]: source strips, the more important first within a width (of equals the
// first), kNoStrip as padding; the `strips4` most sensitive get 4 bits (likewise).
std::vector<uint16_t> OrderStrips(const StripCounts& counts, std::span<const double> sensitivity,
                                  std::span<const double> importance);

}  // namespace fewbit
