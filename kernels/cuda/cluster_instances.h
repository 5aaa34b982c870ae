// The forms of the wide kernel whose teams are clusters (linear_cluster.cu), in one place for the
// host that selects and for the file that compiles them, and how a block's shared memory is laid
// out.
#pragma once

#include <array>

#include "kernels/cuda/outlier_window.h"
#include "kernels/cuda/wide_tile.h"

namespace fewbit::cuda {

// A block has 8 product warps (two warpgroups), one warp that fetches weights, one that fetches
// activations, and helpers, which sum outliers and store results.
struct ClusteredForm {
  int tokens;                              // of a group
  int residency;                           // blocks per multiprocessor
  int threads;                             // of a block
  int tile_stages;                         // weight tiles under way
  int slice_stages;                        // slices of activations, one per pair, under way
  int inboxes;                             // sets of partial sums that may wait to be summed
  int product_registers, other_registers;  // per thread
};
inline constexpr std::array<ClusteredForm, 2> kClusteredForms = {{
    {16, 2, 512, 3, 8, 2, 72, 56},
    {32, 2, 512, 2, 5, 1, 80, 48},
}};
inline constexpr int kClusteredProductWarps = 8, kClusteredFetchWarps = 2;
inline constexpr int kClusterBlocks = kSegments;  // blocks that share one unit of work
inline constexpr int kClusteredOwnRows =
    kWideRows / kClusterBlocks;  // that a block sums and stores

// Partial sums of kClusteredOwnRows rows of one segment: [tokens / 16][rows][4 t][4 i] for token 4
// i + t of 16, as product warps hold them; the first dimension is padded so that lanes of different
// tokens meet no bank conflict.
inline constexpr int kInboxTokens = 16;
inline constexpr int kInboxPitch = kClusteredOwnRows * kInboxTokens + kInboxTokens;
constexpr int InboxFloats(const ClusteredForm& f) { return f.tokens / kInboxTokens * kInboxPitch; }
constexpr int InboxIndex(int row, int token) {
  return token / kInboxTokens * kInboxPitch + row * kInboxTokens + token % 4 * 4 + token / 4 % 4;
}

constexpr int ClusteredHelpers(const ClusteredForm& f) {
  return f.threads / 32 - kClusteredProductWarps - kClusteredFetchWarps;
}

// Entries of a row of outliers whose activations are asked for together.
constexpr int ClusteredOutliersAhead(const ClusteredForm& f) { return f.tokens == 16 ? 6 : 4; }

struct ClusteredShared {
  int tile_bytes, slice_bytes, parity_bytes, meta_bytes;                   // of one stage
  int slices, parity, meta, tiles, inbox, extras, lists, barriers, total;  // offsets and size
};
constexpr ClusteredShared ClusteredLayout(const ClusteredForm& f, bool zero_points) {
  ClusteredShared s = {};
  const int column_bytes = 2 * f.tokens * kSlabBytes;
  s.tile_bytes = static_cast<int>(quant::TileBytes(2, quant::kTileChunks, zero_points));
  s.slice_bytes = kPairSlabs * column_bytes;
  s.parity_bytes = zero_points ? 0 : kParitySlabs * column_bytes;
  s.meta_bytes = 8 * f.tokens;
  s.slices = 0;
  s.parity = s.slices + f.slice_stages * s.slice_bytes;
  s.meta = s.parity + f.tile_stages * s.parity_bytes;
  s.tiles = s.meta + f.tile_stages * s.meta_bytes;
  s.inbox = s.tiles + f.tile_stages * kWideRowBlocks * s.tile_bytes;
  s.extras = s.inbox + f.inboxes * kSegments * InboxFloats(f) * 4;
  s.lists = s.extras + kClusteredOwnRows * f.tokens * 4;
  s.barriers = s.lists + OutlierListBytes(kClusteredOwnRows);
  s.total = s.barriers + 8 * (2 * f.tile_stages + 2 * f.slice_stages + 2 * f.inboxes);
  return s;
}

}  // namespace fewbit::cuda
