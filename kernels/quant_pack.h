// Between plain arrays and the packed layout of quant_layout.h: used by the quantizer to write, by
// tests and tools to read. Not on any serving path.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/quant_layout.h"

namespace fewbit::quant {

// One outlier correction: added to the dequantized weight.
struct Outlier {
  int32_t row = 0;
  int32_t position =
      0;  // channel in strip order: 16 * strip position + channel in the strip; below 128 * chunks2
  uint16_t value = 0;  // fp16 bits
};

// A quantized matrix in strip order, one entry per thing that the layout stores. P =
// shape.num_positions() strips, R = shape.rows. Padding strips have strip_order kNoStrip; their
// codes and scales are ignored.
struct UnpackedMatrix {
  PackedShape shape;
  std::vector<uint16_t> strip_order;  // [P]
  std::vector<uint8_t>
      codes;  // [R, 16 * P] in strip order; 0-3 for 2-bit positions, 0-15 for 4-bit ones
  std::vector<uint8_t> sub_scales;  // [R, P] 0-15
  std::vector<uint8_t> zeros;       // [R, P] with zero_points, else empty
  std::vector<uint16_t>
      second_order[2];            // fp16 bits of 64*d: [0] = [R, tiles(2)], [1] = [R, tiles(4)]
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

// REQUIRES: arrays have the stated sizes and ranges (CHECKed).
PackedStorage Pack(const UnpackedMatrix& m);
UnpackedMatrix Unpack(const PackedMatrix& m);

// Empty if the tables that index memory are in range (strip order, outlier starts ascending,
// outlier rows and positions), else what is wrong; a reader of files calls it before any kernel
// sees the matrix. `outlier_count` is the number of entries in m.outliers.
const char* ValidatePacked(const PackedMatrix& m, size_t tile_bytes, size_t num_positions,
                           size_t num_starts, size_t outlier_count);

uint16_t FloatToHalf(float value);  // round to nearest even, saturates to +-65504
float HalfToFloat(uint16_t bits);

}  // namespace fewbit::quant
