// Launch of linear_cluster.cu; the callers' entry point is LaunchLinear (linear_launch.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear_launch.h"

namespace fewbit::cuda {

cudaError_t PrepareClusterKernels(const DeviceProps& props);

// Clusters of the wide kernels that can be resident at once with one block per multiprocessor; 0
// where there are none.
cudaError_t CountClusters(const DeviceProps& props, int* clusters);

// All matrices of the group in one launch. `exchange`: see LinearWorkspace.
cudaError_t LaunchCluster(const Desc& desc, const WidePlan& plan, const DeviceGroup& group,
                          const LinearInput& in, const LinearOutput& out, void* exchange,
                          cudaStream_t stream);

}  // namespace fewbit::cuda
