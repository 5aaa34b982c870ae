// Runs one linear layer the way a caller does, in guarded and poisoned memory.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/linear.h"

namespace fewbit::testing {

std::vector<cpu::Isa> SupportedIsas();

// How the caller cuts the work up; results must not depend on it.
struct Cut {
  int stage_parts = 1;  // PrepareActivations calls over token ranges
  int row_parts = 1;    // Linear calls over row ranges
};

// y [tokens, rows], contiguous. Fails the test if a kernel writes outside its rows, leaves an
// output unwritten (poison survives) or writes behind its scratch.
std::vector<float> RunLinear(cpu::Isa isa, const Matrix& w, const float* x, size_t x_stride,
                             int tokens, const Cut& cut = {});

}  // namespace fewbit::testing
