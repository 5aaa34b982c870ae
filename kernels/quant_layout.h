// The only text of the packed 2/4/16-bit weight layout (version 1), shared by the quantizer, the
// CPU kernels and the CUDA kernels.
//
// A matrix W [N rows, K channels] is cut along K into strips: 16 neighbouring channels over all
// rows. A strip has 2-bit or 4-bit codes. Strips are reordered so that all 2-bit strips come first
// and all 4-bit strips follow: `strip_order[p]` is the source strip at position p, or kNoStrip for
// padding. The activations are permuted once, when they are staged.
//
//   weight = (q - zero) * sub_scale * d
//   sub_scale: 4-bit integer per (row, strip);  d: fp16 per (row, tile)
//   zero without zero-points: (2^bits - 1) / 2, symmetric levels, e.g. {-3,-1,1,3}/2 for 2 bits
//   zero with zero-points: a stored `bits`-bit integer per (row, strip); a checkpoint-wide choice
//
// so in integers, as every CPU kernel computes it:
//   weight = (2q - c) * sub_scale * (d / 2),  c = 2^bits - 1 or 2 * zero
// `d` is stored as fp16(64 * d): real weights would otherwise fall into fp16's subnormal range.
//
// Rows are cut into blocks of 16 (the last padded with sub_scale 0). A row block is one contiguous
// run of bytes: its 2-bit tiles, then its 4-bit tiles, all row blocks of a matrix alike. A tile is
// up to 4 chunks of one width (only the last tile of a width may be shorter); a chunk is 512 bytes
// of codes: 16 rows x 8 strips (128 channels) at 2 bits, 16 rows x 4 strips (64 channels) at 4.
//
//   tile := chunks x 512 B codes | chunks x 64 B (2-bit) or 32 B (4-bit) sub-scales
//           | with zero-points chunks x 32 B zeros | 32 B d
//
// Codes are pre-shuffled for mma.m16n8k16 fragments (weights are operand A). In a chunk,
// lane = 4*g + t (g < 8, t < 4) owns the 4 words at byte 16*lane; word 2*u + hi belongs to row
// g + 8*hi and unit u (u < 2). A channel of a strip is k = 8*khi + 2*t + e:
//   2 bits: unit u holds strips 4u..4u+3;  strip 4u + i at bit 16*e + 4*i + (khi ? 0 : 2)
//   4 bits: unit u holds strips 2u, 2u+1;  strip 2u + j at bit 16*e + 8*j + 4*khi
// Sub-scales (nibbles) of a chunk, in 32-bit words whose low half is row g and high half row g + 8:
//   2 bits: word 2*g + u, nibble i = strip 4u + i          4 bits: word g, nibble s = strip s
// Zeros of a chunk, one word per g, same halves:
//   2 bits: 2-bit field s = strip s (s < 8)                4 bits: nibble s = strip s
// d of a tile: halves at index 2*g + hi for row g + 8*hi.
//
// Sparse outliers exist only in 2-bit strips. An outlier is an fp16 correction, added to the
// dequantized weight. They are listed per (row block, 2-bit tile): entries outlier_start[i] ..
// outlier_start[i+1] of `outliers`, i = row_block * tiles(2) + tile. One entry:
//   bits 0-8    channel position within the tile (16 * strip + channel)
//   bits 9-12   row within the block
//   bits 16-31  the fp16 value
// Within a list entries ascend by position, then by row.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fewbit::quant {

inline constexpr int kLayoutVersion = 1;
inline constexpr int kStripChannels = 16;
inline constexpr int kBlockRows = 16;
inline constexpr int kChunkCodeBytes = 512;
inline constexpr int kTileChunks = 4;
inline constexpr int kMaxSubScale = 15;
inline constexpr float kStoredSecondOrderFactor = 64.0f;
inline constexpr uint16_t kNoStrip = 0xFFFF;
inline constexpr int kSecondOrderBytes = 2 * kBlockRows;

constexpr int ChunkStrips(int bits) { return bits == 2 ? 8 : 4; }
constexpr int ChunkChannels(int bits) { return ChunkStrips(bits) * kStripChannels; }
constexpr int ChunkScaleBytes(int bits) { return bits == 2 ? 64 : 32; }
constexpr int ChunkZeroBytes(bool zero_points) { return zero_points ? 32 : 0; }
constexpr size_t TileBytes(int bits, int chunks, bool zero_points) {
  return static_cast<size_t>(chunks) *
             (kChunkCodeBytes + ChunkScaleBytes(bits) + ChunkZeroBytes(zero_points)) +
         kSecondOrderBytes;
}

// The numbers that fix every offset of one packed matrix.
struct PackedShape {
  int32_t rows = 0;     // N, output channels
  int32_t cols = 0;     // K, input channels, a multiple of 16
  int32_t chunks2 = 0;  // 2-bit chunks per row block
  int32_t chunks4 = 0;  // 4-bit chunks per row block
  bool zero_points = false;

  constexpr int row_blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  constexpr int chunks(int bits) const { return bits == 2 ? chunks2 : chunks4; }
  constexpr int tiles(int bits) const { return (chunks(bits) + kTileChunks - 1) / kTileChunks; }
  // Chunks of tile `tile` of width `bits`: 4, or what is left for the last.
  constexpr int tile_chunks(int bits, int tile) const {
    const int left = chunks(bits) - tile * kTileChunks;
    return left < kTileChunks ? left : kTileChunks;
  }
  // Positions in strip order: 2-bit strips with their padding, then 4-bit strips with theirs.
  constexpr int num_positions() const { return 8 * chunks2 + 4 * chunks4; }
  constexpr size_t section_bytes(int bits) const {
    return static_cast<size_t>(chunks(bits)) *
               (TileBytes(bits, 1, zero_points) - kSecondOrderBytes) +
           static_cast<size_t>(tiles(bits)) * kSecondOrderBytes;
  }
  constexpr size_t row_block_bytes() const { return section_bytes(2) + section_bytes(4); }
  // Byte offset of a tile within its row block.
  constexpr size_t tile_offset(int bits, int tile) const {
    return (bits == 4 ? section_bytes(2) : 0) + tile * TileBytes(bits, kTileChunks, zero_points);
  }
  constexpr size_t total_bytes() const { return row_blocks() * row_block_bytes(); }
  constexpr size_t num_outlier_lists() const {
    return static_cast<size_t>(row_blocks()) * tiles(2);
  }
};

// A packed matrix where it lies (mapped file, host or device memory). `tiles` is 16-byte aligned.
struct PackedMatrix {
  PackedShape shape;
  const uint8_t* tiles = nullptr;           // [row_blocks, row_block_bytes]
  const uint16_t* strip_order = nullptr;    // [num_positions]
  const uint32_t* outlier_start = nullptr;  // [num_outlier_lists + 1], or null: no outliers
  const uint32_t* outliers = nullptr;       // [outlier_start[num_outlier_lists]]
};

}  // namespace fewbit::quant
