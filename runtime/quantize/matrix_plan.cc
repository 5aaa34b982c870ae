#include "runtime/quantize/matrix_plan.h"

#include <algorithm>

namespace fewbit {

void MatrixPlan::CutTiles() {
  tiles.clear();
  for (const int bits : {2, 4}) {
    const int strips_of_tile = quant::kTileChunks * quant::ChunkStrips(bits);
    const int first = bits == 2 ? 0 : counts.strips2;
    const int count = bits == 2 ? counts.strips2 : counts.strips4;
    for (int begin = 0; begin < count; begin += strips_of_tile) {
      tiles.push_back({.bits = bits,
                       .index = begin / strips_of_tile,
                       .first_strip = first + begin,
                       .strips = std::min(strips_of_tile, count - begin)});
    }
  }
}

}  // namespace fewbit
