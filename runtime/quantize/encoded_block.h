// Sixteen rows of one matrix while they are quantized. Strips are counted in compact order: the
// 2-bit ones, then the 4-bit ones, no padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/quantize/tile_fit.h"

namespace fewbit {

// Where a strip lies.
struct StripPlace {
  int bits = 2;
  int fit = 0;            // index in EncodedBlock::fits of its tile
  int strip_in_tile = 0;  // index in that fit
  int source = 0;         // first source channel
};

// Arrays are [strips][16 channels][16 rows].
struct EncodedBlock {
  EncodedBlock(int strips, int tiles)
      : codes(Index(strips, 0, 0)), values(codes.size()), is_outlier(codes.size()), fits(tiles) {}

  std::vector<uint8_t> codes;
  std::vector<float> values;  // what the code stands for; of an outlier, the weight it shall have
  std::vector<uint8_t> is_outlier;
  std::vector<TileFit> fits;  // of the 2-bit tiles, then of the 4-bit tiles

  static constexpr size_t Index(int strip, int channel, int lane) {
    return (static_cast<size_t>(strip) * kGroup + channel) * kLanes + lane;
  }
};

}  // namespace fewbit
