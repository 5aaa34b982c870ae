// Geometry of the persistent small-batch kernel of sm_90 (linear_stream.cu). Host code.
#pragma once

#include <array>
#include <cstddef>

#include "kernels/cuda/device_tile.h"
#include "kernels/cuda/staging.h"

namespace fewbit::cuda {

inline constexpr int kMaxStreamTokens = 8;

// The warps of a block by role, beside the one that asks for copies.
struct StreamForm {
  int token_tiles;  // of 4 tokens each
  int consumers;    // warps that multiply tiles
  int finishers;    // warps that sum outliers, add up terms and store
  int stage_tiles;  // that one copy brings; divides consumers
  constexpr int warps() const { return 1 + finishers + consumers; }
};
inline constexpr std::array<StreamForm, 2> kStreamForms = {{{1, 10, 2, 5}, {2, 8, 4, 4}}};
inline constexpr int kMostStages = 16;
inline constexpr int kMostTermSlots = 8;

// Byte offsets in a block's shared memory.
struct StreamLayout {
  int stage_bytes = 0;
  int x = 0, terms = 0, bounds = 0, entries = 0, barriers = 0, total = 0;
  int entry_capacity = 0;  // outliers; longer lists are read from global memory
};

// One grid for all matrices of a group. Every block belongs to one matrix and owns a run of its row
// blocks.
struct StreamPlan {
  int form = 0;  // row of kStreamForms
  int stages = 0;
  int stage_tiles = 0;
  int term_slots = 0;  // row blocks whose terms have room at the same time
  int first_block[kMostParts + 1] = {};
  int blocks = 0;
  bool early = true;  // may start while the kernel before still runs
  StreamLayout layout;
};

}  // namespace fewbit::cuda
