// Packed matrices to plain 16-bit weights, for batches so large that one pass over scratch memory
// costs less than dequantizing in every block: then cuBLAS does the product.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

// out [rows of all, cols] of `type` (kF16 or kBF16), 16-byte aligned, in the order of the
// checkpoint, the matrices of the group behind one another. Every weight is rounded once, an
// outlier's once more.
cudaError_t Dequantize(const DeviceGroup& group, DType type, void* out, cudaStream_t stream);

cudaError_t PrepareDequantize();  // by PrepareLinearKernels

inline size_t ScratchBytes(const quant::PackedShape& shape) {
  return size_t{2} * shape.rows * shape.cols;
}

}  // namespace fewbit::cuda
