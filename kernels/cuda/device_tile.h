// How a packed matrix lies in device memory: the tiles of quant_layout.h with the same offsets and
// sizes, permuted inside each tile (repack.h does it once, at load), so that one lane of a warp
// owns all 16 channels of a (row, strip) and dequantizes four codes with one integer multiply-add.
//
//   tile := chunk records | 32 B d (unchanged);  record := 512 B codes | sub-scales | zeros
//
// In a chunk, lane = 4*g + t (g < 8, t < 4) owns the 4 words at byte 16*lane:
//   2 bits: word 2*u + hi = row g + 8*hi, strip 4*u + t (u < 2)
//   4 bits: strip t; word 2*p + hi = row g + 8*hi, plane p: 0 holds bits 2-3 of each code, 1 bits
//   0-1
// A word holds the 16 channels of its strip: channel c = 4*f + b at bit 8*b + 2*f.
// Sub-scales: 2 bits: 2 bytes per lane, nibble 2*u + hi;      4 bits: 1 byte per lane, nibble hi.
// Zeros:      2 bits: 1 byte per lane, 2-bit field 2*u + hi;  4 bits: 1 byte per lane, nibble hi.
//
// A 4-bit code is two 2-bit codes: q - 7.5 = 4 (h - 1.5) + (l - 1.5), so both widths run through
// the same instructions.
#pragma once

#include "kernels/quant_layout.h"

namespace fewbit::cuda {

constexpr int RecordBytes(int bits, bool zero_points) {
  return quant::kChunkCodeBytes + quant::ChunkScaleBytes(bits) + quant::ChunkZeroBytes(zero_points);
}

// A quad is 4 strips: what one code word of each lane of a warp covers.
constexpr int ChunkQuads(int bits) { return quant::ChunkStrips(bits) / 4; }

// Tiles of a row block in order: first the 2-bit ones, then the 4-bit ones.
constexpr int NumTiles(const quant::PackedShape& s) { return s.tiles(2) + s.tiles(4); }
constexpr int NumQuads(const quant::PackedShape& s) { return 2 * s.chunks2 + s.chunks4; }
constexpr int FirstQuad(const quant::PackedShape& s, int tile) {
  return tile < s.tiles(2)
             ? tile * quant::kTileChunks * ChunkQuads(2)
             : 2 * s.chunks2 + (tile - s.tiles(2)) * quant::kTileChunks * ChunkQuads(4);
}

// The result of a row is defined as ((P0 + P1) + P2) + P3 in float, where P_s is the sum, in tile
// order, of the terms of the tiles [SegmentBegin(s), SegmentBegin(s + 1)); a term is the exact
// int32 dot product of one tile, times its scales. A matrix with outliers then adds
// ((E0 + E1) + E2) + E3, where E_s is a chain of float multiply-adds over the outliers of (row,
// segment s) in list order, from +0. So a result depends neither on the batch nor on how a kernel
// shares tiles and outliers out among warps, blocks and clusters.
inline constexpr int kSegments = 4;
constexpr int SegmentBegin(int tiles, int segment) { return tiles * segment / kSegments; }

// Activations are 15-bit fixed point per (token, tile): x = v * scale, |v| <= kMaxActivation,
// v = 256 * high + low with two signed bytes. The limit leaves room for 2 v in two signed bytes,
// which wide_tile.h makes use of.
inline constexpr int kMaxActivation = 16319;

// A quad of one token is two columns of the integer product: 4 strips of high bytes, 4 of low ones.
inline constexpr int kColumnBytes = 64;
constexpr int QuadBytes(int tokens) { return 2 * kColumnBytes * tokens; }
constexpr int EvenTokens(int tokens) { return (tokens + 1) / 2 * 2; }

// Terms of one (row block, tile) in shared memory: [16 rows][tokens], rows padded so that neither
// writing nor summing them meets a bank conflict.
constexpr int TermStride(int token_tiles) { return token_tiles == 1 ? 4 : 4 * token_tiles + 4; }
constexpr int TermFloats(int token_tiles) { return quant::kBlockRows * TermStride(token_tiles); }

}  // namespace fewbit::cuda
