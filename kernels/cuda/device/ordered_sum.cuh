// Sums and maxima over a warp and over a row of threads, in an order that depends on their number
// alone.
#pragma once

namespace fewbit::cuda {

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Over threadIdx.x; every thread of the row gets the result. A block is one row of whole warps, or
// several rows of one warp each. All threads of the block call it. `none`: what changes nothing.
template <typename T, typename Op>
__device__ __forceinline__ T RowReduce(T v, T none, Op op) {
  const auto over_warp = [op](T value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      value = op(value, __shfl_xor_sync(~0u, value, offset));
    }
    return value;
  };
  v = over_warp(v);
  if (blockDim.x == 32) return v;
  __shared__ T warps[32];
  __syncthreads();  // an earlier result may still be read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  return over_warp(threadIdx.x % 32 < blockDim.x / 32 ? warps[threadIdx.x % 32] : none);
}

template <typename T>
__device__ __forceinline__ T RowSum(T v) {
  return RowReduce(v, T{0}, Sum{});
}

}  // namespace fewbit::cuda
