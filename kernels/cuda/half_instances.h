// The forms of the kernel for many tokens, in one place for the host that selects and for the file
// that compiles them; how it shares out its work, how a block's shared memory is laid out, and the
// memory between the blocks.
//
// The work of a launch is a list of pairs (two quads, the step of the kernel): all pairs of a unit,
// which is kHalfUnitRows rows of one matrix for one token group, unit behind unit, all groups of
// the same rows one after the other. Every cluster of two blocks takes an equal stretch of the
// list, each block half of the rows. Where a stretch ends inside a unit, the clusters that have
// pieces of it exchange their sums.
#pragma once

#include <array>

#include "kernels/cuda/half_tile.h"

namespace fewbit::cuda {

// With fewer, the integer kernels keep the bits of one token; with more, nothing was measured that
// is clearly faster than one pass over 16-bit weights in scratch memory and cuBLAS.
inline constexpr int kLeastHalfTokens = 65, kMostHalfTokens = 1024;

inline constexpr int kHalfCluster = 2;  // blocks
struct HalfForm {
  int tokens;                    // of a group
  int quad_stages, tile_stages;  // under way
};
inline constexpr std::array<HalfForm, 2> kHalfForms = {{{128, 8, 3}, {256, 4, 3}}};
// A block has two warpgroups that multiply, 64 rows each, and one for a warp that fetches weights
// and one that fetches activations.
inline constexpr int kHalfProductWarps = 8;
inline constexpr int kHalfThreads = 32 * kHalfProductWarps + 128;
inline constexpr int kHalfProductRegisters = 240, kHalfFetchRegisters = 24;  // per thread
inline constexpr int kHalfRows = 128;                                        // of a block
inline constexpr int kHalfRowBlocks = kHalfRows / quant::kBlockRows;
inline constexpr int kHalfUnitRows = kHalfCluster * kHalfRows;

// Sums on their way from block to block: a place for each cluster's first piece, one for its last.
// In a place [block of the cluster][product warp][tokens / 8][lane][4], as the lanes hold them. A
// word that is not zero has come (a sum of zero is sent as -0); who adds up clears it.
constexpr size_t HalfPlaceWords(const HalfForm& f) { return size_t{kHalfUnitRows} * f.tokens; }
constexpr size_t HalfExchangeBytes(int clusters) {
  return 2 * 4 * HalfPlaceWords(kHalfForms.back()) * clusters;
}

// Shared memory of a block. `deltas`: what outliers add to a quad's weights, operand A of each row
// block; zero where there is none.
inline constexpr int kHalfDeltaBytes = kHalfRowBlocks * kHalfOperandBytes;
inline constexpr int kHalfStoreBytes = 4608;  // of a warpgroup, for results on their way to y
inline constexpr int kHalfListEntries = 128;  // of a row block; longer lists are read from memory
inline constexpr int kHalfRunBytes = 16;      // what is said of a tile and row block (HalfRun)
struct HalfShared {
  int quad_bytes, tile_bytes, list_bytes;                          // of one stage, of a row block
  int quads, deltas, stores, tiles, lists, runs, barriers, total;  // offsets and size
};
constexpr HalfShared HalfLayout(const HalfForm& f, bool zero_points) {
  HalfShared s = {};
  s.quad_bytes = HalfQuadBytes(f.tokens);
  s.tile_bytes = static_cast<int>(quant::TileBytes(2, quant::kTileChunks, zero_points));
  s.list_bytes = 4 * kHalfListEntries;
  const int tiles = f.tile_stages * kHalfRowBlocks;
  s.quads = 0;
  s.deltas = s.quads + f.quad_stages * s.quad_bytes;
  s.stores = s.deltas + kHalfDeltaBytes;
  s.tiles = s.stores + 2 * kHalfStoreBytes;
  s.lists = s.tiles + tiles * s.tile_bytes;
  s.runs = s.lists + tiles * s.list_bytes;
  s.barriers = s.runs + tiles * kHalfRunBytes;
  s.total = s.barriers + 2 * 8 * (f.quad_stages + f.tile_stages);
  return s;
}

}  // namespace fewbit::cuda
