// Launch of linear_wide.cu; the callers' entry point is LaunchLinear (linear_launch.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear_launch.h"

namespace fewbit::cuda {

cudaError_t PrepareWideKernels(const DeviceProps& props);

// Clusters of the wide kernels that can be resident at once with one block per multiprocessor; 0
// where there are none.
cudaError_t CountWideClusters(const DeviceProps& props, int* clusters);

// All matrices of the group in one launch.
cudaError_t LaunchWide(const Desc& desc, const WidePlan& plan, const DeviceGroup& group,
                       const LinearInput& in, const LinearOutput& out, cudaStream_t stream);

}  // namespace fewbit::cuda
