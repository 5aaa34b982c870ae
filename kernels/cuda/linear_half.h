// Launch of linear_half.cu; the callers' entry point is LaunchLinear (linear_launch.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear_launch.h"

namespace fewbit::cuda {

cudaError_t PrepareHalfKernels(const DeviceProps& props);

// Clusters of the kernel that can be resident at once; 0 where there are none.
cudaError_t CountHalfClusters(const DeviceProps& props, int* clusters);

// All matrices of the group in one launch. `exchange`: see LinearWorkspace.
cudaError_t LaunchHalf(const Desc& desc, const HalfPlan& plan, const DeviceGroup& group,
                       const LinearInput& in, const LinearOutput& out, void* exchange,
                       cudaStream_t stream);

}  // namespace fewbit::cuda
