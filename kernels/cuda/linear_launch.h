// Launches for linear.h. Every function only enqueues work on `stream` (and may be captured into a
// graph); errors are those of the launch. All pointers are device memory.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

cudaError_t ReadDeviceProps(int device, DeviceProps* props);

// Once per process and device, before the first launch: raises the kernels' shared-memory limits.
cudaError_t PrepareSmallKernels(const DeviceProps& props);

// x [m, cols] of desc.x_type with row stride x_stride elements (a multiple of 8, 16-byte aligned)
// into the staged form of linear.h, StagedBytes() long and 16-byte aligned.
cudaError_t StageActivations(const Desc& desc, const Plan& plan, const uint16_t* strip_order,
                             const void* x, int64_t x_stride, void* staged, cudaStream_t stream);

// y[i, r], i < m, r < rows, row stride y_stride elements of desc.y_type. REQUIRES: plan ==
// Select(desc, ...) without error, path kSmall; `staged` filled by StageActivations for the same
// desc.
cudaError_t LaunchSmall(const Desc& desc, const Plan& plan, const DeviceMatrix& w,
                        const void* staged, void* y, int64_t y_stride, cudaStream_t stream);

}  // namespace fewbit::cuda
