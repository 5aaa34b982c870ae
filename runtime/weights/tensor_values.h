// Values of stored tensors as floats: for norms, biases and scales, which are small; weight
// matrices are used where they lie.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/weights/safetensors.h"

namespace fewbit {

// Rows [begin, begin + count) of the first dimension, without a copy. REQUIRES: within the tensor's
// shape.
Tensor SliceRows(const Tensor& tensor, int64_t begin, int64_t count);

// Writes all elements. REQUIRES: BF16, F16 or F32, aligned for it.
void ToFloats(const Tensor& tensor, float* out);
std::vector<float> ToFloats(const Tensor& tensor);

// Index of the first NaN or infinity, or -1.
int64_t FindNonFinite(const std::vector<float>& values);

}  // namespace fewbit
