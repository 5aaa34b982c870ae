// Sharing bits out among the matrices of a model: each gets the share of 4-bit strips that lowers
// the model's loss most per byte, within a budget of bytes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fewbit {

// One way to store a matrix.
struct StorageChoice {
  int strips4 = 0;  // 4-bit strips
  int64_t bytes = 0;
  double loss = 0.0;  // what it costs the model; any unit, the same for all matrices
};

// choices[m]: the ways to store matrix m, at least one, by rising bytes. Returns one index per
// matrix so that the bytes stay within `budget_bytes` and the sum of losses is low: every matrix
// starts at its smallest choice, then the step with the largest fall of loss per byte is taken
// until none fits (steps run along the lower convex hull of a matrix' choices). The smallest
// choices are returned even if they are over the budget.
std::vector<int> ShareBytes(std::span<const std::vector<StorageChoice>> choices,
                            int64_t budget_bytes);

}  // namespace fewbit
