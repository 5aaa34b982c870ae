// Launch of linear_small.cu; the callers' entry point is LaunchLinear (linear_launch.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

cudaError_t PrepareSmallKernels(const DeviceProps& props);

// y[i * y_stride + r] of y_type, i < m.
cudaError_t LaunchSmall(const SmallPlan& plan, int m, const DeviceMatrix& w, const StageTarget& x,
                        void* y, DType y_type, int64_t y_stride, cudaStream_t stream);

}  // namespace fewbit::cuda
