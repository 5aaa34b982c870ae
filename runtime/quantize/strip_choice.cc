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

StripCounts ChooseStripCounts(int rows, int cols, double share4, bool zero_points) {
  const int strips = cols / quant::kStripChannels;
  if (share4 <= 0.0) return CountsFor(rows, cols, 0, zero_points);
  if (share4 >= 1.0) return CountsFor(rows, cols, strips, zero_points);
  const double target = share4 * strips;
  StripCounts best;
  double best_distance = std::numeric_limits<double>::infinity();
  size_t fewest_bytes = std::numeric_limits<size_t>::max();
  // Downwards, so that `fewest_bytes` is what the cheapest larger count costs.
  for (int strips4 = strips; strips4 >= 0; --strips4) {
    const StripCounts counts = CountsFor(rows, cols, strips4, zero_points);
    const size_t bytes = counts.shape.row_block_bytes();
    if (bytes >= fewest_bytes) continue;
    fewest_bytes = bytes;
    const double distance = std::abs(strips4 - target);
    if (distance <= best_distance) {
      best_distance = distance;
      best = counts;
    }
  }
  return best;
}

std::vector<uint16_t> OrderStrips(const StripCounts& counts, std::span<const double> sensitivity) {
  const int strips = counts.strips2 + counts.strips4;
  std::vector<uint16_t> ranked(strips);
  std::iota(ranked.begin(), ranked.end(), uint16_t{0});
  if (counts.strips2 > 0 && counts.strips4 > 0) {
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](uint16_t a, uint16_t b) { return sensitivity[a] > sensitivity[b]; });
  }
  const auto split = ranked.begin() + counts.strips4;
  std::sort(ranked.begin(), split);
  std::sort(split, ranked.end());
  std::vector<uint16_t> order(counts.shape.num_positions(), quant::kNoStrip);
  std::copy(split, ranked.end(), order.begin());
  std::copy(ranked.begin(), split, order.begin() + quant::ChunkStrips(2) * counts.shape.chunks2);
  return order;
}

}  // namespace fewbit
