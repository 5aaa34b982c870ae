// Kernels of the tests. A producer of activations as the token path has them: rows of floats,
// staged for the next linear layer inside the kernel. A comparison of outputs that stay on the
// device.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear.h"

namespace fewbit::testing {

// Leaves factor * x [m, cols] (f32, row stride x_stride) as `to` asks for, one block per token,
// with programmatic dependent launch.
cudaError_t StageRows(const float* x, int64_t x_stride, int m, int cols, float factor,
                      const cuda::LinearInput& to, cudaStream_t stream);

// Adds to *differences in how many of `count` words `a` and `b` (null: zeros) differ. All on the
// device.
cudaError_t CountDifferences(const float* a, const float* b, int64_t count,
                             unsigned long long* differences, cudaStream_t stream);

}  // namespace fewbit::testing
