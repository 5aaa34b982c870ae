// Sums and maxima over a row of threads, in an order that depends on their number alone.
#pragma once

#include "kernels/cuda/device/warp_reduce.cuh"

namespace fewbit::cuda {

// Over threadIdx.x; every thread of the row gets the result. A block is one row of whole warps, or
// several rows of one warp each. All threads of the block call it. `none`: what changes nothing.
template <typename T, typename Op>
__device__ __forceinline__ T RowReduce(T v, T none, Op op) {
  v = WarpReduce(v, op);
  if (blockDim.x == 32) return v;
  __shared__ T warps[32];
  __syncthreads();  // an earlier result may still be read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  return WarpReduce(threadIdx.x % 32 < blockDim.x / 32 ? warps[threadIdx.x % 32] : none, op);
}

template <typename T>
__device__ __forceinline__ T RowSum(T v) {
  return RowReduce(v, T{0}, TakeSum{});
}

}  // namespace fewbit::cuda
