// The persistent small-batch kernel of sm_90 (linear_stream.cu): its compiled forms, its geometry
// and its launch. The callers' entry point is LaunchLinear (linear_launch.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear_launch.h"

namespace fewbit::cuda {

cudaError_t PrepareStreamKernels(const DeviceProps& props);

// All matrices of the group in one launch.
cudaError_t LaunchStream(const Desc& desc, const StreamPlan& plan, const DeviceGroup& group,
                         const LinearInput& in, const LinearOutput& out, cudaStream_t stream);

}  // namespace fewbit::cuda
