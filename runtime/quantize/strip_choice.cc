#include "runtime/quantize/strip_choice.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace fewbit {
namespace {

constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

StripCounts CountsFor(int rows, int cols, int strips4, bool zero_points) {
  StripCounts counts;
  counts.strips4 = strips4;
  counts.strips2 = cols / quant::kStripChannels - strips4;
  counts.shape = {.rows = rows,
                  .cols = cols,
                  .chunks2 = CeilDiv(counts.strips2, quant::ChunkStrips(2)),
                  .chunks4 = CeilDiv(counts.strips4, quant::ChunkStrips(4)),
                  .zero_points = zero_points};
  return counts;
}

}  // namespace

std::vector<StripCounts> UsefulStripCounts(int rows, int cols, bool zero_points) {
  const int strips = cols / quant::kStripChannels;
  std::vector<StripCounts> useful;
  size_t fewest_bytes = std::numeric_limits<size_t>::max();
  // Downwards, so that `fewest_bytes` is what the cheapest larger count costs.
  for (int strips4 = strips; strips4 >= 0; --strips4) {
    const StripCounts counts = CountsFor(rows, cols, strips4, zero_points);
    const size_t bytes = counts.shape.row_block_bytes();
    if (bytes >= fewest_bytes) continue;
    fewest_bytes = bytes;
    useful.push_back(counts);
  }
  std::reverse(useful.begin(), useful.end());
  return useful;
}

StripCounts ChooseStripCounts(int rows, int cols, double share4, bool zero_points) {
  const int strips = cols / quant::kStripChannels;
  if (share4 <= 0.0) return CountsFor(rows, cols, 0, zero_points);
  if (share4 >= 1.0) return CountsFor(rows, cols, strips, zero_points);
  const std::vector<StripCounts> useful = UsefulStripCounts(rows, cols, zero_points);
  const auto distance = [&](const StripCounts& counts) {
    return std::abs(counts.strips4 - share4 * strips);
  };
  return *std::min_element(
      useful.begin(), useful.end(),
      [&](const StripCounts& a, const StripCounts& b) { return distance(a) < distance(b); });
}

std::vector<uint16_t> OrderStrips(const StripCounts& counts, std::span<const double> sensitivity,
                                  std::span<const double> importance) {
  const int strips = counts.strips2 + counts.strips4;
  std::vector<uint16_t> ranked(strips);
  std::iota(ranked.begin(), ranked.end(), uint16_t{0});
  if (counts.strips2 > 0 && counts.strips4 > 0) {
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](uint16_t a, uint16_t b) { return sensitivity[a] > sensitivity[b]; });
  }
  const auto split = ranked.begin() + counts.strips4;
  const auto first = [&](uint16_t a, uint16_t b) {
    return importance[a] != importance[b] ? importance[a] > importance[b] : a < b;
  };
  std::sort(ranked.begin(), split, first);
  std::sort(split, ranked.end(), first);
  std::vector<uint16_t> order(counts.shape.num_positions(), quant::kNoStrip);
  std::copy(split, ranked.end(), order.begin());
  std::copy(ranked.begin(), split, order.begin() + quant::ChunkStrips(2) * counts.shape.chunks2);
  return order;
}

}  // namespace fewbit
