// Between plain arrays and the packed layout of quant_layout.h: used by the quantizer to write, by
// tests and tools to read. Not on any serving path.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/quant_layout.h"

namespace fewbit::quant {

// One outlier correction: added to the dequantized weight.
struct Outlier {
  int32_t row = 0;
  // Channel in strip order: 16 * strip position + channel in the strip; below 128 * chunks2.
  int32_t position = 0;
  uint16_t value = 0;  // fp16 bits
};

// A quantized matrix in strip order, one entry per thing that the layout stores; P is
// shape.num_positions() strips, R is shape.rows. Padding strips have strip_order kNoStrip; their
// codes and scales are ignored.
struct UnpackedMatrix {
  PackedShape shape;
  std::vector<uint16_t> strip_order;  // [P]
  // [R, 16 * P] in strip order; 0-3 for 2-bit positions, 0-15 for 4-bit ones.
  std::vector<uint8_t> codes;
  std::vector<uint8_t> sub_scales;  // [R, P] 0-15
  std::vector<uint8_t> zeros;       // [R, P] with zero_points, else empty
  // fp16 bits of 64 * d: [0] is [R, tiles(2)], [1] is [R, tiles(4)].
  std::vector<uint16_t> second_order[2];
  std::vector<Outlier> outliers;  // any order
};

// The owned bytes of a PackedMatrix.
struct PackedStorage {
  PackedShape shape;
  std::vector<uint8_t> tiles;
  std::vector<uint16_t> strip_order;
  std::vector<uint32_t> outlier_start;  // empty: no outliers
  std::vector<uint32_t> outliers;

  PackedMatrix view() const;
};

// How who packs shares rows out: calls pack(begin, end) for ranges that make up [0, rows) and begin
// at multiples of kBlockRows, in any order and from any thread.
using RowRanges =
    std::function<void(int rows, const std::function<void(int begin, int end)>& pack)>;

// REQUIRES: arrays have the stated sizes and ranges (CHECKed).
PackedStorage Pack(const UnpackedMatrix& m);
PackedStorage Pack(const UnpackedMatrix& m, const RowRanges& ranges);
UnpackedMatrix Unpack(const PackedMatrix& m);

// What is wrong with `m`, or null. A reader of files calls it before any kernel sees the matrix:
// sizes and alignment, every input strip exactly once in strip_order, outlier starts ascending,
// outlier rows and positions in range. Kernels trust what it checked. `outlier_count` is the number
// of entries in m.outliers.
const char* ValidatePacked(const PackedMatrix& m, size_t tile_bytes, size_t num_positions,
                           size_t num_starts, size_t outlier_count);

uint16_t FloatToHalf(float value);  // round to nearest even, saturates to +-65504
float HalfToFloat(uint16_t bits);

}  // namespace fewbit::quant
