#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/launch.h"
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

}  // namespace

cudaError_t StageRows(const float* x, int64_t x_stride, int m, int cols, float factor,
                      const cuda::LinearInput& to, cudaStream_t stream) {
  constexpr int kThreads = 160;
  return cuda::LaunchDependent(StageRowsKernel, dim3(m), dim3(kThreads), cols * sizeof(float),
                               stream, x, x_stride, cols, factor, to);
}

}  // namespace fewbit::testing
