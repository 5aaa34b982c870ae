// Launch of linear_wide.cu; the callers' entry point is LaunchLinear (linear_launch.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear_launch.h"

namespace fewbit::cuda {

cudaError_t PrepareWideKernels(const DeviceProps& props);

// All matrices of the group in one launch. `exchange`: see LinearWorkspace.
cudaError_t LaunchWide(const Desc& desc, const WidePlan& plan, const DeviceGroup& group,
                       const LinearInput& in, const LinearOutput& out, void* exchange,
                       cudaStream_t stream);

}  // namespace fewbit::cuda
