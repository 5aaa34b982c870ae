// The operators of tuning on a GPU. Products are cuBLAS's, opened at run time; the others are the
// kernels of kernels/cuda/tune*.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// `device` as CUDA counts. Products take float32, round their factors to TF32 (10 bits of mantissa)
// and sum in float32; with `factors` kBF16 those of 2048 or more in all three dimensions round to
// bf16 (7 bits), which is faster. Everything else is float32. The same bits for the same calls on
// the same kind of GPU. UNAVAILABLE says why not: this build has no CUDA, no such GPU, one below
// compute capability 8.0, cuBLAS cannot be opened. RESOURCE_EXHAUSTED: no memory for the workspace.
// A CUDA error after that ends the process and says in which operator.
absl::StatusOr<std::unique_ptr<Ops>> CreateCudaOps(int device, DType factors = DType::kF32);

}  // namespace fewbit::tune
