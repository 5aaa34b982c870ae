// Weight matrices that are not packed, on the GPU: y[m, rows] = x[m, cols] W^T for 32-, 16- and
// 8-bit weights. The kernel for small m gives a row of x the same bits in any batch; beyond
// kMaxDenseTokens cuBLAS takes over where it can. The LM head is such a matrix, and so is the
// embedding (ops.h).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/linear.h"
#include "kernels/matrix.h"

namespace fewbit::cuda {

enum class WeightType : uint8_t { kF32, kF16, kBF16, kI8 };  // kBF16: only to convert from
constexpr size_t WeightBytes(WeightType type) {
  return type == WeightType::kF32 ? 4 : type == WeightType::kI8 ? 1 : 2;
}
constexpr WeightType WeightTypeOf(DType type) {
  return type == DType::kF32   ? WeightType::kF32
         : type == DType::kF16 ? WeightType::kF16
                               : WeightType::kBF16;
}

// In device memory. kI8: weight[r, c] = (code - 128) * scales[r], as Int8Matrix.
struct DeviceDense {
  const void* data = nullptr;     // [rows, cols], 16-byte aligned
  const float* scales = nullptr;  // [rows], kI8 only
  WeightType type = WeightType::kF16;
  int32_t rows = 0;
  int32_t cols = 0;
};

// One linear layer call. All pointers are device memory.
struct DenseCall {
  DeviceDense w;               // kF16 and kI8 are fast; kF32 is computed in float, slowly
  int m = 0;                   // tokens
  const void* x = nullptr;     // [m, cols], row stride x_stride elements
  DType x_type = DType::kF16;  // or kF32, rounded to 22 bits where weights are fast
  int64_t x_stride = 0;
  float* y = nullptr;  // [m, rows], row stride y_stride elements
  int64_t y_stride = 0;
};

// The same bits for a token whatever m up to here.
inline constexpr int kMaxDenseTokens = 64;

// Empty, or which field of the call cannot be served and why. For load time; looks at no pointer.
std::string CheckDense(const DenseCall& call);

// Any m, by our own kernels. REQUIRES CheckDense(call) empty; w, x and their rows 8-byte aligned.
// Fast if they are 16-byte aligned and cols is a multiple of 64 (8-bit weights: 128).
cudaError_t LaunchDense(const DenseCall& call, cudaStream_t stream);

// The choice by m: LaunchDense up to kMaxDenseTokens, and where cuBLAS does not serve (weights or x
// that are not kF16, `cublas` null). Returns an error text or "".
std::string RunDense(const DenseCall& call, Cublas* cublas, cudaStream_t stream);

// Rounds each row of a 16- or 32-bit matrix in device memory to 8 bits: codes [rows, cols] and
// scales [rows] such that scale = max|w| / 127 and code = 128 + round(w / scale).
cudaError_t QuantizeRows(const DeviceDense& w, uint8_t* codes, float* scales, cudaStream_t stream);

// Converts a 16- or 32-bit matrix to kF16, out [rows, cols]. Values beyond +-65504 are clamped, and
// `*clamped` (device memory, counts up; may be null) tells.
cudaError_t ConvertToHalf(const DeviceDense& w, void* out, int* clamped, cudaStream_t stream);

}  // namespace fewbit::cuda
