// A packed matrix to plain 16-bit weights, for batches so large that one pass over scratch memory
// costs less than dequantizing in every block: then cuBLAS does the product.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

// out [rows, cols] of `type` (kF16 or kBF16), 16-byte aligned, in the order of the checkpoint.
// Every weight is rounded once, an outlier's once more.
cudaError_t Dequantize(const DeviceMatrix& w, DType type, void* out, cudaStream_t stream);

inline size_t ScratchBytes(const quant::PackedShape& shape) {
  return size_t{2} * shape.rows * shape.cols;
}

}  // namespace fewbit::cuda
