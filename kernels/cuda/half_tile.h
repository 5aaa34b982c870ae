// How the kernel for many tokens (linear_half.h) sees weights and activations: StagedForm::kHalves.
//
// Weights become fp16 in registers, operand A of a product with 16-bit activations in shared
// memory. A quad (4 strips, 64 channels) is 4 products of 16 channels: number f of them takes
// channels 4 f .. 4 f + 3 of each strip, because that is what a lane's code word has at hand.
//
// A token group of T tokens in memory: [quads, filled up to pairs][4 f][T]{32 bytes}. Those are two
// halves of 8 numbers; element 2 t + e of half h is channel 4 f + h + 2 e of strip t. Half h lies
// at place h ^ (token / 4 % 2), as wgmma reads operand B with the 32-byte swizzle, so a quad is one
// bulk copy. Channels that do not exist are zero.
//
// Outliers come in the lists of quant_layout.h, one per (row block, 2-bit tile), with entries that
// say where in operand A they belong (HalfOutlier).
#pragma once

#include "kernels/cuda/device_tile.h"

namespace fewbit::cuda {

inline constexpr int kHalfProducts = 4;  // of a quad
inline constexpr int kHalfTokenBytes = 32;

struct HalfPlan {
  int form = 0;    // row of kHalfForms
  int tokens = 0;  // of a group
  int groups = 0;  // of tokens
  int clusters = 0;
  bool early_start = true;  // of the next kernel, by programmatic dependent launch
};

constexpr int HalfPairs(const quant::PackedShape& s) { return s.chunks2 + (s.chunks4 + 1) / 2; }
constexpr int HalfQuadBytes(int tokens) { return kHalfProducts * kHalfTokenBytes * tokens; }
constexpr size_t HalfGroupBytes(const quant::PackedShape& s, int tokens) {
  return size_t{2} * HalfPairs(s) * HalfQuadBytes(tokens);
}

// Operand A of a quad and row block: [f][lane]{16 bytes}, element 2 (c % 2) + row / 8 % 2 of lane
// 4 (row % 8) + strip two of the strip's channels c, the one with c / 2 % 2 = 0 first.
inline constexpr int kHalfOperandBytes = kHalfProducts * 32 * 16;

// One entry: bits 0-10 byte offset in that operand, bits 11-14 quad of the tile, bits 16-31 the
// fp16 value. kNone is of no quad; it fills up a list.
struct HalfOutlier {
  static constexpr uint32_t kTileBytes = 8 * kHalfOperandBytes;
  static constexpr uint32_t kNone = 15 * kHalfOperandBytes;

  // From an entry of quant_layout.h.
  static constexpr uint32_t From(uint32_t entry) {
    const uint32_t c = entry % 16, strip = entry / 16 % 4, quad = entry / 64 % 8;
    const uint32_t row = entry / 512 % quant::kBlockRows;
    const uint32_t piece = 32 * (c / 4) + 4 * (row % 8) + strip;
    const uint32_t half = 4 * (c % 2) + 2 * (row / 8) + c / 2 % 2;
    return (entry & 0xFFFF0000u) | quad * kHalfOperandBytes | (16 * piece + 2 * half);
  }
  static constexpr uint32_t Offset(uint32_t entry) { return entry % kHalfOperandBytes; }
  static constexpr uint32_t Quad(uint32_t entry) { return entry / kHalfOperandBytes % 16; }
};

}  // namespace fewbit::cuda
