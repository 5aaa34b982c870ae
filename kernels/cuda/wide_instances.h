// The forms of the wide kernel, in one place for the host that selects and for the file that
// compiles them; how a block's shared memory is laid out, and the memory between the blocks.
#pragma once

#include <array>

#include "kernels/cuda/wide_tile.h"

namespace fewbit::cuda {

// A block has 8 product warps (two warpgroups), one warp that fetches weights, one that fetches
// activations, and helpers, which sum outliers and store results.
struct WideForm {
  int tokens;                              // of a group
  int residency;                           // blocks per multiprocessor
  int threads;                             // of a block
  int tile_stages;                         // weight tiles under way
  int slice_stages;                        // slices of activations, one per pair, under way
  int product_registers, other_registers;  // per thread
};
inline constexpr std::array<WideForm, 1> kWideForms = {{
    {64, 1, 640, 3, 8, 152, 56},
}};
inline constexpr int kWideProductWarps = 8, kWideFetchWarps = 2;
inline constexpr int kWideTeam = kSegments;                 // blocks that share one unit of work
inline constexpr int kWideOwnRows = kWideRows / kWideTeam;  // that a block adds up and stores

constexpr int WideHelpers(const WideForm& f) {
  return f.threads / 32 - kWideProductWarps - kWideFetchWarps;
}
// Helpers: workers, which sum the outliers of the next unit, then add up and store this one; one
// that says which boxes are empty. The rest only helps to make floats.
inline constexpr int kWideWorkers = 8, kWideSums = 3;  // of outliers, in turn

// Partial sums go from the product warps of a team's blocks to the block that adds them up through
// global memory: [team][box][segment][owner][tokens / 16][4 t][kWideOwnRows][4 i] words, for token
// 4 i + t of 16. A word that is not zero has come; who adds up clears it. The units of a team take
// the boxes in turn. Behind all boxes, one flag for each product warp of a team and box: turn + 1
// when the owner of its rows has emptied the box in that turn, for the warps that wait for it
// (three boxes, because it takes them a unit's time to know). In front of all, for both wide
// kernels, where helpers meet (device/slab_floats.cuh).
inline constexpr int kWideMeetingWords = 32;
inline constexpr int kWideBoxes = 3;
inline constexpr int kWideSumTokens = 16;
constexpr int WideQuarterWords(const WideForm& f) { return kWideOwnRows * f.tokens; }
constexpr int WideBoxWords(const WideForm& f) {
  return kSegments * kWideTeam * WideQuarterWords(f);
}
inline constexpr int kWideBoxFlags = kWideTeam * kWideProductWarps;
constexpr size_t WideExchangeBytes(const WideForm& f, int teams) {
  return size_t{4} *
         (kWideMeetingWords + size_t{1} * teams * kWideBoxes * (WideBoxWords(f) + kWideBoxFlags));
}

// The outliers' part of a block's rows: [tokens][kWideExtrasPitch], padded against bank conflicts.
inline constexpr int kWideExtrasPitch = kWideOwnRows + 1;
constexpr int WideExtrasFloats(const WideForm& f) { return f.tokens * kWideExtrasPitch; }

struct WideShared {
  int tile_bytes, slice_bytes, parity_bytes, meta_bytes;            // of one stage
  int slices, parity, meta, tiles, extras, works, barriers, total;  // offsets and size
};
constexpr WideShared WideLayout(const WideForm& f, bool zero_points) {
  WideShared s = {};
  const int column_bytes = 2 * f.tokens * kSlabBytes;
  s.tile_bytes = static_cast<int>(quant::TileBytes(2, quant::kTileChunks, zero_points));
  s.slice_bytes = kPairSlabs * column_bytes;
  s.parity_bytes = zero_points ? 0 : kParitySlabs * column_bytes;
  s.meta_bytes = 8 * f.tokens;
  s.slices = 0;
  s.parity = s.slices + f.slice_stages * s.slice_bytes;
  s.meta = s.parity + f.tile_stages * s.parity_bytes;
  s.tiles = s.meta + f.tile_stages * s.meta_bytes;
  s.extras = s.tiles + f.tile_stages * kWideRowBlocks * s.tile_bytes;
  s.works = s.extras + kWideSums * WideExtrasFloats(f) * 4;
  s.barriers = s.works + f.tile_stages * 16;
  s.total = s.barriers + 8 * (2 * f.tile_stages + 2 * f.slice_stages + 2 * kWideSums + kWideBoxes);
  return s;
}

}  // namespace fewbit::cuda
