// What an operator makes of one value per lane, in an order that is always the same.
#pragma once

namespace fewbit::cuda {

struct TakeSum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct TakeMax {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// By all lanes of the warp, which all get the result.
template <typename T, typename Op>
__device__ __forceinline__ T WarpReduce(T v, Op op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(~0u, v, offset));
  return v;
}

}  // namespace fewbit::cuda
