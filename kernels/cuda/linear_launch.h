// Launches for linear.h. Every function only enqueues work on `stream` (and may be captured into a
// graph); errors are those of the launch. All pointers are device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

cudaError_t ReadDeviceProps(int device, DeviceProps* props);

// Once per process and device, before the first launch: raises the kernels' shared-memory limits.
cudaError_t PrepareLinearKernels(const DeviceProps& props);

// x [m, cols] of desc.x_type with row stride x_stride elements (a multiple of 8, 16-byte aligned)
// into everything that `to` asks for. On the token path producers do this themselves.
cudaError_t StageActivations(const Desc& desc, const void* x, int64_t x_stride,
                             const LinearInput& to, cudaStream_t stream);
cudaError_t PrepareStaging();  // by PrepareLinearKernels

// Result r of part p and token i goes to y[i * stride + column[p] + r], of desc.y_type.
struct LinearOutput {
  void* y = nullptr;
  int64_t stride = 0;
  int64_t column[kMostParts] = {};
  // If not null: rows like those of y, which is of kF32, that are added to the result. REQUIRES:
  // Plan::adds(), and not y; or Plan::adds_in_place(), and y.
  const float* add = nullptr;
};

// What some plans need beside their arguments. One per stream: launches that may run at the same
// time must not share it.
struct LinearWorkspace {
  // For plans that go through 16-bit weights: ScratchBytes() of all matrices of a group
  // (dequantize.h).
  void* scratch = nullptr;
  Cublas* cublas = nullptr;
  // For the wide kernels and that for many tokens: ExchangeBytes(), 16-byte aligned, zeroed before
  // the first launch; all zero again after every launch.
  void* exchange = nullptr;
};

// All matrices of the group, whatever path the plan takes. Empty, or what failed. REQUIRES: plan ==
// Select(desc, ...) without error, `in` == InputOf(...) and filled by earlier work of the stream.
std::string LaunchLinear(const Desc& desc, const Plan& plan, const DeviceGroup& group,
                         const LinearInput& in, const LinearOutput& out,
                         const LinearWorkspace& workspace, cudaStream_t stream);

}  // namespace fewbit::cuda
