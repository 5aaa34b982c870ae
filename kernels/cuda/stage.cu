// Activations from memory into the staged form, for tests and benches: on the token path the
// producers write it.
#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/load4.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_launch.h"

namespace fewbit::cuda {
namespace {

constexpr int kStageThreads = 128;

// 4 channels of x as floats.
__device__ float4 LoadChannels(const void* x, DType type, size_t at) {
  if (type == DType::kF32) return Load4(static_cast<const float*>(x) + at);
  if (type == DType::kF16) return Load4(static_cast<const __half*>(x) + at);
  return Load4(static_cast<const __nv_bfloat16*>(x) + at);
}

// Grid: (tokens, shares of a token's tiles).
__global__ void __launch_bounds__(kStageThreads)
    StageKernel(const __grid_constant__ LinearInput to, const void* x, DType x_type,
                int64_t x_stride, int cols) {
  const int token = blockIdx.x;
  const size_t row = static_cast<size_t>(token) * x_stride;
  LetNextKernelStart();
  WaitForPreviousKernels();
  StageTiles(
      to, [&](int channel) { return LoadChannels(x, x_type, row + channel); }, token,
      blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, gridDim.y * (blockDim.x / 32));
  if (to.plain == nullptr) return;
  for (int i = 4 * (blockIdx.y * blockDim.x + threadIdx.x); i < cols;
       i += 4 * gridDim.y * blockDim.x) {
    StorePlain4(to.plain, to.plain_type, static_cast<size_t>(token) * cols + i,
                LoadChannels(x, x_type, row + i));
  }
}

}  // namespace

cudaError_t PrepareStaging() { return PreferShared(StageKernel); }

cudaError_t StageActivations(const Desc& desc, const void* x, int64_t x_stride,
                             const LinearInput& to, cudaStream_t stream) {
  int tiles = 1;
  for (int p = 0; p < to.count; ++p) tiles += NumTiles(to.parts[p].shape);
  const dim3 grid(desc.m, (tiles + kStageThreads / 32 - 1) / (kStageThreads / 32));
  return LaunchDependent(StageKernel, grid, dim3(kStageThreads), 0, stream, to, x, desc.x_type,
                         x_stride, desc.shapes[0].cols);
}

}  // namespace fewbit::cuda
