// The table of compiled small-m kernels, in one place for the host that selects and for the file
// that compiles them.
#pragma once

#include <array>

#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

// Up to 4 tokens: a warp keeps its activations of a tile in registers for all row blocks of the
// block. More tokens do not fit there, so a warp loads them once for two row blocks.
struct SmallForm {
  int token_tiles, row_blocks, max_warps, residency;
};
inline constexpr std::array<SmallForm, 3> kSmallForms = {
    {{1, 1, 10, 2}, {2, 2, 16, 1}, {4, 2, 16, 1}}};
inline constexpr int kSmallInstances = 2 * static_cast<int>(kSmallForms.size());

constexpr std::array<Instance, kSmallInstances> BuildSmallInstances() {
  std::array<Instance, kSmallInstances> table = {};
  int i = 0;
  for (const SmallForm& f : kSmallForms) {
    for (bool zero_points : {false, true}) {
      table[i++] = {f.token_tiles, f.row_blocks, f.max_warps, f.residency, zero_points};
    }
  }
  return table;
}
inline constexpr std::array<Instance, kSmallInstances> kSmallTable = BuildSmallInstances();

}  // namespace fewbit::cuda
