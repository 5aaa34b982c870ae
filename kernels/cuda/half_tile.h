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

}  // namespace fewbit::cuda
