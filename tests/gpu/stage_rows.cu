#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_launch.h"
#include "tests/gpu/stage_rows.h"

namespace fewbit::testing {
namespace {

__global__ void StageRowsKernel(const float* x, int64_t x_stride, int cols, float factor,
                                const __grid_constant__ cuda::LinearInput to) {
  extern __shared__ __align__(16) float row[];
  cuda::LetNextKernelStart();
  cuda::WaitForPreviousKernels();
  for (int i = threadIdx.x; i < cols; i += blockDim.x) {
    row[i] = __fmul_rn(x[blockIdx.x * x_stride + i], factor);
  }
  __syncthreads();
  cuda::StageToken(to, row, cols, blockIdx.x);
}

__global__ void CountDifferencesKernel(const float* a, const float* b, int64_t count,
                                       unsigned long long* differences) {
  const int64_t step = int64_t{1} * gridDim.x * blockDim.x;
  for (int64_t i = int64_t{1} * blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint32_t other = b == nullptr ? 0 : __float_as_uint(b[i]);
    if (__float_as_uint(a[i]) != other) atomicAdd(differences, 1ull);
  }
}

}  // namespace

cudaError_t StageRows(const float* x, int64_t x_stride, int m, int cols, float factor,
                      const cuda::LinearInput& to, cudaStream_t stream) {
  constexpr int kThreads = 160;
  return cuda::LaunchDependent(StageRowsKernel, dim3(m), dim3(kThreads), cols * sizeof(float),
                               stream, x, x_stride, cols, factor, to);
}

cudaError_t CountDifferences(const float* a, const float* b, int64_t count,
                             unsigned long long* differences, cudaStream_t stream) {
  constexpr int kBlocks = 256, kThreads = 256;
  CountDifferencesKernel<<<kBlocks, kThreads, 0, stream>>>(a, b, count, differences);
  return cudaGetLastError();
}

}  // namespace fewbit::testing
