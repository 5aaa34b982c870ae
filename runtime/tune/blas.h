// The one place that sees OpenBLAS.
#pragma once

#include <cstdint>

namespace fewbit::tune {

// A matrix in row-major order; `transposed`: stored as the transpose of what is multiplied.
struct BlasOperand {
  const float* data = nullptr;
  int64_t row_stride = 0;  // elements between rows as stored
  bool transposed = false;
};

// c [m, n] = alpha * a b + beta * c on the calling thread; a [m, k], b [k, n]. Where beta is 0 the
// old content of c is not read. Thread-safe; the result depends on the arguments only, on one
// processor type.
void Sgemm(int m, int n, int k, float alpha, const BlasOperand& a, const BlasOperand& b, float beta,
           float* c, int64_t c_row_stride);

// OpenBLAS built with threads would start its own beside ours: this makes it stay on the caller's.
void UseCallingThreadOnly();

}  // namespace fewbit::tune
