// The forms of the wide kernel, in one place for the host that selects and for the file that
// compiles them, and how a block's shared memory is laid out.
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
  int inboxes;                             // sets of partial sums that may wait to be summed
  int product_registers, other_registers;  // per thread
  bool whole_pairs;                        // registers suffice for the bytes of two pairs
};
inline constexpr std::array<WideForm, 3> kWideForms = {{
    {16, 2, 512, 3, 8, 2, 72, 56, false},
    {32, 2, 512, 2, 5, 1, 80, 48, false},
    {64, 1, 512, 3, 4, 2, 192, 64, true},
}};
inline constexpr int kWideProductWarps = 8, kWideFetchWarps = 2;
inline constexpr int kWideCluster = kSegments;                 // blocks that share one unit of work
inline constexpr int kWideOwnRows = kWideRows / kWideCluster;  // that a block sums and stores

// Partial sums of kWideOwnRows rows of one segment: [tokens / 16][rows][4 t][4 i] for token 4 i + t
// of 16, as product warps hold them; the first dimension is padded so that lanes of different
// tokens meet no bank conflict.
inline constexpr int kInboxTokens = 16;
inline constexpr int kInboxPitch = kWideOwnRows * kInboxTokens + kInboxTokens;
constexpr int InboxFloats(const WideForm& f) { return f.tokens / kInboxTokens * kInboxPitch; }
constexpr int InboxIndex(int row, int token) {
  return token / kInboxTokens * kInboxPitch + row * kInboxTokens + token % 4 * 4 + token / 4 % 4;
}

constexpr int WideHelpers(const WideForm& f) {
  return f.threads / 32 - kWideProductWarps - kWideFetchWarps;
}

// Lanes of a team that sums outliers, and its board in shared memory, padded so that the teams of a
// warp meet no bank conflict.
constexpr int WideTeamLanes(const WideForm& f) { return f.tokens == 16 ? 8 : 16; }
constexpr int WideBoardBytes(const WideForm& f) { return 8 * WideTeamLanes(f) + 8; }
constexpr int WideTeams(const WideForm& f) { return WideHelpers(f) * 32 / WideTeamLanes(f); }

struct WideShared {
  int tile_bytes, slice_bytes, parity_bytes, meta_bytes;                    // of one stage
  int slices, parity, meta, tiles, inbox, extras, boards, barriers, total;  // offsets and size
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
  s.inbox = s.tiles + f.tile_stages * kWideRowBlocks * s.tile_bytes;
  s.extras = s.inbox + f.inboxes * kSegments * InboxFloats(f) * 4;
  s.boards = s.extras + 2 * kWideOwnRows * f.tokens * 4;  // of two units
  s.barriers = s.boards + WideTeams(f) * WideBoardBytes(f);
  s.total = s.barriers + 8 * (2 * f.tile_stages + 2 * f.slice_stages + 2 * f.inboxes);
  return s;
}

}  // namespace fewbit::cuda
