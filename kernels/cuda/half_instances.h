// The forms of the kernel for many tokens, in one place for the host that selects and for the file
// that compiles them; how it shares out its work, how a block's shared memory is laid out, and the
// memory between the blocks.
//
// The work of a launch is a list of pairs (two quads, the step of the kernel): all pairs of a unit,
// which is HalfUnitRows() rows of one matrix for one token group, unit behind unit. Every cluster
// of two blocks takes an equal stretch of the list, each block half of the rows. Where a stretch
// ends inside a unit, the clusters that have pieces of it exchange their sums.
#pragma once

#include <array>

#include "kernels/cuda/half_tile.h"

namespace fewbit::cuda {

// With fewer, the integer kernels keep the bits of one token; with more, one pass over 16-bit
// weights in scratch memory costs less than making them again for each token group.
inline constexpr int kLeastHalfTokens = 65, kMostHalfTokens = 256;

inline constexpr int kHalfCluster = 2;  // blocks
// A block has two warpgroups that multiply, 64 rows each, a warp that fetches weights, one that
// fetches activations, and some that place outliers, in the same warpgroup or in one of their own.
struct HalfForm {
  int tokens;                              // of a group
  int quad_stages, tile_stages;            // under way; zero-points have one tile less
  int outlier_warps;                       // 2 or 4
  int product_registers, other_registers;  // per thread
};
inline constexpr std::array<HalfForm, 2> kHalfForms = {{
    {128, 8, 3, 4, 184, 72},
    {256, 4, 3, 2, 224, 56},
}};
inline constexpr int kHalfProductWarps = 8;
constexpr int HalfFirstOutlierWarp(const HalfForm& f) {
  return kHalfProductWarps + f.outlier_warps;
}
constexpr int HalfThreads(const HalfForm& f) {
  return 32 * (HalfFirstOutlierWarp(f) + f.outlier_warps);
}
inline constexpr int kHalfRows = 128;  // of a block
inline constexpr int kHalfRowBlocks = kHalfRows / quant::kBlockRows;
inline constexpr int kHalfUnitRows = kHalfCluster * kHalfRows;
constexpr int HalfTileStages(const HalfForm& f, bool zero_points) {
  return f.tile_stages - (zero_points ? 1 : 0);
}

// Sums on their way from block to block: a place for each cluster's first piece, one for its last.
// In a place [block of the cluster][product warp][tokens / 8][lane][4], as the lanes hold them. A
// word that is not zero has come (a sum of zero is sent as -0); who adds up clears it.
constexpr size_t HalfPlaceWords(const HalfForm& f) { return size_t{kHalfUnitRows} * f.tokens; }
constexpr size_t HalfExchangeBytes(int clusters) {
  return 2 * 4 * HalfPlaceWords(kHalfForms.back()) * clusters;
}

// Shared memory of a block. `deltas`: what outliers add to a quad's weights, [stage][row block][f]
// [lane][4 words] as operand A; zero where there is none.
inline constexpr int kHalfDeltaStages = 2;
inline constexpr int kHalfBlockDeltaBytes = kHalfProducts * 32 * 16;  // of a row block
inline constexpr int kHalfDeltaBytes = kHalfRowBlocks * kHalfBlockDeltaBytes;
inline constexpr int kHalfStoreBytes = 4608;  // of a warpgroup, for results on their way to y
struct HalfShared {
  int quad_bytes, tile_bytes;                                      // of one stage, of a row block
  int quads, deltas, stores, tiles, runs, flags, barriers, total;  // offsets and size
};
constexpr HalfShared HalfLayout(const HalfForm& f, bool zero_points) {
  HalfShared s = {};
  s.quad_bytes = HalfQuadBytes(f.tokens);
  s.tile_bytes = static_cast<int>(quant::TileBytes(2, quant::kTileChunks, zero_points));
  const int tile_stages = HalfTileStages(f, zero_points);
  s.quads = 0;
  s.deltas = s.quads + f.quad_stages * s.quad_bytes;
  s.stores = s.deltas + kHalfDeltaStages * kHalfDeltaBytes;
  s.tiles = s.stores + 2 * kHalfStoreBytes;
  s.runs = s.tiles + tile_stages * kHalfRowBlocks * s.tile_bytes;
  s.flags = s.runs + 16;
  s.barriers = s.flags + kHalfDeltaStages * kHalfRowBlocks;
  s.total = s.barriers + 2 * 8 * (f.quad_stages + tile_stages + kHalfDeltaStages);
  return s;
}

}  // namespace fewbit::cuda
