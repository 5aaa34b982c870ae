// How the wide kernel (linear_wide.h) sees a tile and its activations: StagedForm::kSlabs.
//
// Token groups of T tokens are 2 T columns of an integer product: column 2 i has the high bytes of
// token i, 2 i + 1 the low ones. A slab is 16 bytes of k for all columns, [2 T][16], which is just
// how wgmma reads operand B without swizzling. A quad (4 strips) is 4 slabs: byte 4 t + c of slab f
// is channel 4 f + c of strip t, so that a lane's code word of device_tile.h, expanded, is
// operand A. Two quads are a pair, the step of the kernel.
//
// A 4-bit weight without zero-points is one byte: (2 q - 15) s = 2 A + (s & 1) with |A| <= 113. The
// slabs of such a tile hold 2 v instead of v, and two more follow: X, the sum of v over a strip, in
// units of 16 and 1, against the parity bits of the sub-scales:
//   sum = 2 (sum of A 2v + sum over strips of (s & 1) X)
// Byte 4 t + c of the first is X mod 16 of strip 4 c + t of the tile, of the second X div 16, for
// high and low bytes of X apart. With zero-points a 4-bit weight is the sum of two bytes.
//
// A group in memory: {float factor, int32 bias} [tiles][T]; slabs; room for the activations as
// floats, [channels in 2-bit strips][T], which the kernel makes from the slabs for matrices with
// outliers. A term is float(256 high + low + bias) * d * factor.
#pragma once

#include "kernels/cuda/device_tile.h"

namespace fewbit::cuda {

inline constexpr int kWideRows = 128;  // of the weights, that a block computes at once
inline constexpr int kWideRowBlocks = kWideRows / quant::kBlockRows;
inline constexpr int kSlabBytes = 16;  // per column
inline constexpr int kQuadSlabs = 4;
inline constexpr int kPairSlabs = 2 * kQuadSlabs;
inline constexpr int kParitySlabs = 2;
// More go through 16-bit weights and cuBLAS, which is faster, if the activations are 16-bit.
inline constexpr int kMaxWideTokens = 256;

// The geometry of the wide kernels for a group of matrices.
struct WidePlan {
  int form = 0;    // row of kWideForms, or of kClusteredForms
  int tokens = 0;  // of a group
  int groups = 0;  // of tokens
  int teams = 0;   // of kSegments blocks
  // Teams that are surely resident together, though their blocks start while others end: clusters
  // find room for fewer then than the occupancy says.
  int makers = 0;
  bool clustered = false;   // the teams are clusters
  bool early_start = true;  // of the next kernel, by programmatic dependent launch
};

constexpr int WidePairs(int bits, int chunks) { return bits == 2 ? chunks : (chunks + 1) / 2; }
constexpr int TileSlabs(int bits, int chunks, bool zero_points) {
  return kPairSlabs * WidePairs(bits, chunks) +
         (bits == 4 && !zero_points && chunks > 0 ? kParitySlabs : 0);
}
// Slabs in front of a tile; only the last tile of a width may be short.
constexpr int FirstSlab(const quant::PackedShape& s, int tile) {
  const int two = tile < s.tiles(2) ? tile : s.tiles(2);
  const int slabs2 = tile < s.tiles(2) ? two * TileSlabs(2, quant::kTileChunks, s.zero_points)
                                       : TileSlabs(2, s.chunks2, s.zero_points);
  return slabs2 + (tile - two) * TileSlabs(4, quant::kTileChunks, s.zero_points);
}
constexpr int NumSlabs(const quant::PackedShape& s) {
  const int tiles4 = s.tiles(4);
  return TileSlabs(2, s.chunks2, s.zero_points) +
         (tiles4 == 0 ? 0
                      : (tiles4 - 1) * TileSlabs(4, quant::kTileChunks, s.zero_points) +
                            TileSlabs(4, s.tile_chunks(4, tiles4 - 1), s.zero_points));
}

constexpr size_t WideMetaBytes(const quant::PackedShape& s, int tokens) {
  return size_t{8} * NumTiles(s) * tokens;
}
constexpr size_t WideSlabsBytes(const quant::PackedShape& s, int tokens) {
  return size_t{2} * kSlabBytes * NumSlabs(s) * tokens;
}
// Offset of the float activations in a group.
constexpr size_t WideFloatsAt(const quant::PackedShape& s, int tokens) {
  return WideMetaBytes(s, tokens) + WideSlabsBytes(s, tokens);
}
constexpr size_t WideGroupBytes(const quant::PackedShape& s, int tokens) {
  return WideFloatsAt(s, tokens) + size_t{4} * s.chunks2 * quant::ChunkChannels(2) * tokens;
}

}  // namespace fewbit::cuda
