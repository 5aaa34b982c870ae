// Activations from memory into the staged form, for tests and benches: on the token path the
// producers write it.
#include <algorithm>

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

constexpr int kFloatThreads = 256;

// The slabs of a part's 2-bit strips, [slab][token] in a group; a thread has one of one token, 16
// channels.
__global__ void __launch_bounds__(kFloatThreads)
    SlabFloatsKernel(const __grid_constant__ LinearInput out, int tokens) {
  const StageTarget& to = out.parts[blockIdx.y];
  const int item = blockIdx.x * kFloatThreads + threadIdx.x, token = item % tokens;
  const int slab = item / tokens;
  LetNextKernelStart();
  if (!to.floats || slab >= TileSlabs(2, to.shape.chunks2, false)) return;
  const SlabToken at(to, token);
  const uint4* bytes = reinterpret_cast<const uint4*>(at.Slab(to, slab));
  constexpr int kTileSlabs = TileSlabs(2, quant::kTileChunks, false);
  const float* factor = reinterpret_cast<const float*>(
      at.group + size_t{8} * (slab / kTileSlabs * to.group_tokens + at.token));
  float* floats =
      at.Floats(to, 4 * kQuadSlabs * kQuadStrips * (slab / kQuadSlabs) + 4 * (slab % kQuadSlabs));
  WaitForPreviousKernels();
  const uint4 high = __ldcg(bytes), low = __ldcg(bytes + 1);
  const float scale = __fmul_rn(__ldcg(factor), 1.0f / SlabUnit(to));
  const uint32_t highs[4] = {high.x, high.y, high.z, high.w};
  const uint32_t lows[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int strip = i / 4, byte = 8 * (i % 4);
    const int v =
        256 * static_cast<int8_t>(highs[strip] >> byte) + static_cast<int8_t>(lows[strip] >> byte);
    floats[(quant::kStripChannels * strip + i % 4) * to.group_tokens] =
        __fmul_rn(__int2float_rn(v), scale);
  }
}

}  // namespace

cudaError_t PrepareStaging() {
  const cudaError_t error = PreferShared(StageKernel);
  return error != cudaSuccess ? error : PreferShared(SlabFloatsKernel);
}

cudaError_t LaunchSlabFloats(const LinearInput& to, int tokens, cudaStream_t stream) {
  int slabs = 0;
  for (int p = 0; p < to.count; ++p) {
    const StageTarget& part = to.parts[p];
    if (part.form != StagedForm::kSlabs || !part.floats) continue;
    slabs = std::max(slabs, TileSlabs(2, part.shape.chunks2, false));
  }
  if (slabs == 0) return cudaSuccess;
  const dim3 grid((slabs * tokens + kFloatThreads - 1) / kFloatThreads, to.count);
  return LaunchDependent(SlabFloatsKernel, grid, dim3(kFloatThreads), 0, stream, to, tokens);
}

cudaError_t StageActivations(const Desc& desc, const void* x, int64_t x_stride,
                             const LinearInput& to, cudaStream_t stream) {
  int tiles = 1;
  for (int p = 0; p < to.count; ++p) tiles += NumTiles(to.parts[p].shape);
  const dim3 grid(desc.m, (tiles + kStageThreads / 32 - 1) / (kStageThreads / 32));
  const cudaError_t error = LaunchDependent(StageKernel, grid, dim3(kStageThreads), 0, stream, to,
                                            x, desc.x_type, x_stride, desc.shapes[0].cols);
  return error != cudaSuccess ? error : LaunchSlabFloats(to, desc.m, stream);
}

}  // namespace fewbit::cuda
