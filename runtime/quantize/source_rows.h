// The weights that are quantized, sixteen rows at a time: a float copy of a whole matrix would be
// twice what the matrix itself takes.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/linear.h"
#include "runtime/quantize/lane_kernels.h"
#include "runtime/thread_team.h"

namespace fewbit {

// Rows 16 * row_block and following of `matrix`, of any dtype, as floats [K source channels][16
// rows]; rows that the matrix does not have are 0.
void LoadRowBlock(const Matrix& matrix, int row_block, std::vector<float>* rows);

// INVALID_ARGUMENT naming `name` and the place of the first weight that is NaN, infinite or larger
// than the format's scales can stand for.
absl::Status CheckWeights(const std::string& name, const Matrix& matrix, ThreadTeam* team);

}  // namespace fewbit
