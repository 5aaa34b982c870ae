// Geometry of the persistent small-batch kernel of sm_90 (linear_stream.cu). Host code.
#pragma once

#include <array>
#include <cstddef>

#include "kernels/cuda/device_tile.h"
#include "kernels/cuda/staging.h"

namespace fewbit::cuda {

// One compiled form: tokens, a power of two, and the warps of a block by role, beside the one that
// asks for copies and the one that adds up and stores. Up to half of the registers of a
// multiprocessor.
struct StreamForm {
  int tokens;
  int consumers;    // warps that multiply tiles
  int outliers;     // warps that sum outliers: pairs, as two of them take a row block
  int stage_tiles;  // that one copy brings; divides consumers

  constexpr int token_tiles() const { return (tokens + 3) / 4; }
  constexpr int warps() const { return 2 + consumers + outliers; }
};
inline constexpr std::array<StreamForm, 4> kStreamForms = {
    {{1, 12, 4, 6}, {2, 12, 4, 6}, {4, 12, 4, 6}, {8, 10, 4, 5}}};
inline constexpr int kMaxStreamTokens = kStreamForms.back().tokens;
inline constexpr int kMostStages = 16;
// A block that makes its input itself reads rows of at most so many tokens and bytes.
inline constexpr int kMostMadeTokens = 2;
inline constexpr int kMostMadeBytes = 128 << 10;
// The sum of squares of a row is one tree per segment of so many elements, and one over segments.
inline constexpr int kNormSegment = 128;
inline constexpr int kMostTermSlots = 8;

// In shared memory, of the tokens of a block that norms its input: the sums of squares of their
// segments, and 1 / RMS.
struct alignas(16) NormBoard {
  static constexpr int kMostSegments = kMostMadeBytes / (2 * sizeof(float)) / kNormSegment;
  float squares[kMostMadeTokens][kMostSegments];
  float factors[kMostMadeTokens];
};

// Floats of a row block's terms: [tiles, and one for the outliers][16 rows][tokens of the form].
constexpr int StreamTermFloats(int tiles, int tokens) {
  return (tiles + 1) * quant::kBlockRows * tokens;
}

// Byte offsets in a block's shared memory.
struct StreamLayout {
  int stage_bytes = 0;
  int x = 0, terms = 0, bounds = 0, entries = 0, works = 0, barriers = 0, total = 0;
  int norm = 0;            // kNorm: NormBoard, then the norm's weights in strip order
  int entry_capacity = 0;  // outliers; longer lists are read from global memory
};

// One grid for all matrices of a group. Every block belongs to one matrix and owns a run of its row
// blocks.
struct StreamPlan {
  int form = 0;  // row of kStreamForms
  int stages = 0;
  int stage_tiles = 0;
  int term_slots = 0;  // row blocks whose terms have room at the same time
  RowKind input = RowKind::kStaged;
  int first_block[kMostParts + 1] = {};
  int blocks = 0;
  bool early = true;  // may start while the kernel before still runs
  // Lets the next kernel start early: with more than half of a multiprocessor per block, the next
  // kernel's blocks would find room only where a block has ended, two at a time, and be packed onto
  // the multiprocessors that end first.
  bool lets_next = true;
  StreamLayout layout;

  int tokens() const { return kStreamForms[form].tokens; }
};

}  // namespace fewbit::cuda
