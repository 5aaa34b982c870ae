#include <algorithm>
#include <cstdint>

#include "kernels/cuda/device_buffer.h"
#include "tests/bench/cuda/bandwidth.h"
#include "tests/bench/cuda/timing.h"

namespace fewbit::bench {
namespace {

// Every thread sums 16-byte words, four at a time; the sum is stored so that no read can be left
// out.
__global__ void ReadKernel(const uint4* from, size_t count, uint32_t* sums) {
  const size_t threads = size_t{1} * gridDim.x * blockDim.x;
  size_t i = size_t{1} * blockIdx.x * blockDim.x + threadIdx.x;
  uint32_t sum = 0;
  for (; i + 3 * threads < count; i += 4 * threads) {
    uint4 v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = __ldcs(from + i + k * threads);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  for (; i < count; i += threads) sum += from[i].x;
  sums[size_t{1} * blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

}  // namespace

double ReadBytesPerMicro() {
  constexpr size_t kBytes = size_t{1} << 31;
  constexpr int kThreads = 512, kMostBlocks = 132 * 16;
  cuda::DeviceBuffer<uint8_t> from(kBytes);
  cuda::DeviceBuffer<uint32_t> sums(size_t{1} * kThreads * kMostBlocks);
  cuda::CheckCuda(cudaMemset(from.get(), 0x5A, kBytes), "fill");
  double best = 0;
  for (int blocks = 132 * 2; blocks <= kMostBlocks; blocks *= 2) {
    const double micros = MedianReplayMicros(
        [&](cudaStream_t stream) {
          ReadKernel<<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const uint4*>(from.get()),
                                                      kBytes / sizeof(uint4), sums.get());
        },
        9);
    best = std::max(best, kBytes / micros);
  }
  return best;
}

}  // namespace fewbit::bench
