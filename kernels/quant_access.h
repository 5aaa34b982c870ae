// One element of the packed layout at a time, straight from the text of quant_layout.h: for
// packing, unpacking, single rows and the portable kernels. The vector kernels do not include this
// file.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/quant_layout.h"

namespace fewbit::quant {

// Where the code of (row, strip, channel) of a chunk lies: a 32-bit word at byte `offset`, at bit
// `shift`.
struct CodePlace {
  int offset;
  int shift;
};

constexpr CodePlace PlaceOfCode(int bits, int row, int strip, int channel) {
  const int g = row & 7, hi = row >> 3;
  const int khi = channel >> 3, t = (channel >> 1) & 3, e = channel & 1;
  const int unit = bits == 2 ? strip >> 2 : strip >> 1;
  const int shift =
      bits == 2 ? 16 * e + 4 * (strip & 3) + (khi ? 0 : 2) : 16 * e + 8 * (strip & 1) + 4 * khi;
  return {16 * (4 * g + t) + 4 * (2 * unit + hi), shift};
}

// The same for a sub-scale among the sub-scales of its chunk and for a zero among the zeros of its
// chunk.
constexpr CodePlace PlaceOfSubScale(int bits, int row, int strip) {
  const int g = row & 7, hi = row >> 3;
  if (bits == 2) return {4 * (2 * g + (strip >> 2)), 16 * hi + 4 * (strip & 3)};
  return {4 * g, 16 * hi + 4 * strip};
}

constexpr CodePlace PlaceOfZero(int bits, int row, int strip) {
  return {4 * (row & 7), 16 * (row >> 3) + (bits == 2 ? 2 : 4) * strip};
}

constexpr int PlaceOfSecondOrder(int row) { return 2 * (2 * (row & 7) + (row >> 3)); }

inline uint32_t LoadWord(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

inline int ReadField(const uint8_t* base, CodePlace place, int bits) {
  return static_cast<int>((LoadWord(base + place.offset) >> place.shift) & ((1u << bits) - 1u));
}

inline void OrField(uint8_t* base, CodePlace place, uint32_t value) {
  const uint32_t word = LoadWord(base + place.offset) | (value << place.shift);
  std::memcpy(base + place.offset, &word, sizeof(word));
}

inline uint16_t LoadHalf(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof(half));
  return half;
}

// The parts of one chunk within its tile.
struct ChunkView {
  const uint8_t* codes;
  const uint8_t* sub_scales;
  const uint8_t* zeros;  // null without zero-points
  const uint8_t* second_order;
};

inline ChunkView ViewChunk(const PackedShape& shape, const uint8_t* row_block, int bits,
                           int chunk) {
  const int tile = chunk / kTileChunks, in_tile = chunk % kTileChunks;
  const int count = shape.tile_chunks(bits, tile);
  const uint8_t* base = row_block + shape.tile_offset(bits, tile);
  const uint8_t* scales = base + count * kChunkCodeBytes;
  const uint8_t* zeros = scales + count * ChunkScaleBytes(bits);
  const int zero_bytes = ChunkZeroBytes(shape.zero_points);
  return {base + in_tile * kChunkCodeBytes, scales + in_tile * ChunkScaleBytes(bits),
          shape.zero_points ? zeros + in_tile * zero_bytes : nullptr, zeros + count * zero_bytes};
}

// Fields of an outlier entry.
inline int OutlierPosition(uint32_t entry) { return static_cast<int>(entry & 0x1FF); }
inline int OutlierRow(uint32_t entry) { return static_cast<int>((entry >> 9) & 0xF); }
inline uint16_t OutlierValue(uint32_t entry) { return static_cast<uint16_t>(entry >> 16); }

}  // namespace fewbit::quant
