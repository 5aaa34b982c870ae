// body(i) for each i < count, one thread each; neighbouring threads take neighbours.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

namespace fewbit::cuda {

template <typename Body>
__global__ void ForEachKernel(int64_t count, Body body) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) body(i);
}

template <typename Body>
cudaError_t ForEach(int64_t count, const Body& body, cudaStream_t stream) {
  constexpr int kThreads = 256;
  constexpr int64_t kMaxBlocks = 1 << 20;
  if (count <= 0) return cudaSuccess;
  const auto blocks =
      static_cast<unsigned>(std::min((count + kThreads - 1) / kThreads, kMaxBlocks));
  ForEachKernel<<<blocks, kThreads, 0, stream>>>(count, body);
  return cudaGetLastError();
}

}  // namespace fewbit::cuda
