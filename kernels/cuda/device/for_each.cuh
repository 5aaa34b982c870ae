// One thread per element, or per four neighbours where arrays allow it: operators that read and
// write each element once.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace fewbit::cuda {

// N neighbouring elements; four of them are one access.
template <int N>
struct Floats {
  float v[N];

  __device__ static Floats Load(const float* from) {
    if constexpr (N == 4) {
      const float4 x = *reinterpret_cast<const float4*>(from);
      return {{x.x, x.y, x.z, x.w}};
    } else {
      static_assert(N == 1);
      return {{*from}};
    }
  }
  __device__ void Store(float* to) const {
    if constexpr (N == 4) {
      *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
      *to = v[0];
    }
  }
};

// Calls body.At<N>(i) for every N-th i < count, and At<1> for the rest.
template <int N, typename Body>
__global__ void ForEachKernel(int64_t count, Body body) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int64_t i = first; i < count / N; i += step) body.template At<N>(N * i);
  if (N > 1 && first < count % N) body.template At<1>(count / N * N + first);
}

inline bool AlignedToFour(std::initializer_list<const float*> arrays) {
  return std::all_of(arrays.begin(), arrays.end(), [](const float* array) {
    return reinterpret_cast<uintptr_t>(array) % sizeof(float4) == 0;
  });
}

template <int N, typename Body>
cudaError_t LaunchForEach(int64_t count, const Body& body, cudaStream_t stream) {
  constexpr int64_t kThreads = 256, kMaxBlocks = 1 << 20;
  if (count <= 0) return cudaSuccess;
  const int64_t threads = (count + N - 1) / N;
  const auto blocks =
      static_cast<unsigned>(std::min((threads + kThreads - 1) / kThreads, kMaxBlocks));
  ForEachKernel<N><<<blocks, kThreads, 0, stream>>>(count, body);
  return cudaGetLastError();
}

// Four at a time if all `arrays` that the body reads and writes are aligned to it.
template <typename Body>
cudaError_t ForEach(int64_t count, const Body& body, std::initializer_list<const float*> arrays,
                    cudaStream_t stream) {
  return AlignedToFour(arrays) ? LaunchForEach<4>(count, body, stream)
                               : LaunchForEach<1>(count, body, stream);
}

// Bodies that have At<1> only.
template <typename Body>
cudaError_t ForEachOne(int64_t count, const Body& body, cudaStream_t stream) {
  return LaunchForEach<1>(count, body, stream);
}

}  // namespace fewbit::cuda
