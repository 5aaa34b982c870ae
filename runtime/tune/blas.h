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
// old content of c is not read. The result depends on the arguments only, on one processor type.
void Sgemm(int m, int n, int k, float alpha, const BlasOperand& a, const BlasOperand& b, float beta,
           float* c, int64_t c_row_stride);

// Makes every call stay on the thread that calls. Returns whether several threads may call at once:
// only OpenBLAS built with POSIX threads guards its scratch; its serial and OpenMP variants hand
// one buffer to two callers, and the sums of one end up in the other's.
bool PrepareBlas();

}  // namespace fewbit::tune
