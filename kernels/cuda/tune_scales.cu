// Tuning's weights: codes and scales to floats, the gradient of the weights to the gradients of the
// scales, and the optimizer.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>

#include "kernels/cuda/device/for_each.cuh"
#include "kernels/cuda/device/load4.cuh"
#include "kernels/cuda/tune.h"
#include "kernels/quant_layout.h"

namespace fewbit::cuda {
namespace {

using tune::ScaledMatrix;
using tune::ScaledMatrixGradients;

constexpr int kThreads = 256;
constexpr int kLanes = 4;  // per strip, 4 channels each
constexpr float kMaxScale = quant::kMaxSubScale;

__device__ __forceinline__ float UsedSubScale(float s, bool rounded) {
  return rounded ? rintf(fminf(fmaxf(s, 0.0f), kMaxScale)) : s;
}

__device__ __forceinline__ float UsedSecondOrder(float d, bool rounded) {
  constexpr float kFactor = quant::kStoredSecondOrderFactor;
  return rounded ? __half2float(__float2half_rn(kFactor * d)) / kFactor : d;
}

// A block takes a row; a thread 4 channels at a time.
__global__ void __launch_bounds__(kThreads) WeightsKernel(ScaledMatrix m, float4* weights) {
  const int64_t row = blockIdx.x;
  const int strips = m.cols / quant::kStripChannels, quads = m.cols / kLanes;
  const char4* levels = reinterpret_cast<const char4*>(m.levels) + row * quads;
  for (int i = threadIdx.x; i < quads; i += kThreads) {
    const int strip = i / kLanes;
    const float s = UsedSubScale(m.sub_scales[row * strips + strip], m.rounded);
    const float d =
        UsedSecondOrder(m.second_order[row * m.tiles + m.tile_of_strip[strip]], m.rounded);
    const char4 level = levels[i];
    const float scale = s * d * 0.5f;
    weights[row * quads + i] =
        make_float4(level.x * scale, level.y * scale, level.z * scale, level.w * scale);
  }
}

struct AddOutlier {
  const int32_t* at;
  const float* outliers;
  float* weights;
  template <int N>
  __device__ void At(int64_t i) const {
    weights[at[i]] += outliers[i];
  }
};

struct TakeOutlierGradient {
  const int32_t* at;
  const float* d_weights;
  float* gradients;
  template <int N>
  __device__ void At(int64_t i) const {
    gradients[i] += d_weights[at[i]];
  }
};

// Straight-through: nothing for a sub-scale at an end of its range that would be pushed beyond.
__device__ __forceinline__ bool PushedOut(float s, float gradient) {
  return (s <= 0.0f && gradient > 0.0f) || (s >= kMaxScale && gradient < 0.0f);
}

// A block takes `block_rows` rows. First each strip's sum of level * d_weight, four lanes to a
// strip, which gives the gradient of its sub-scale; what it says of d stays in shared memory
// [block_rows, strips]. Then each thread sums the strips of a (row, tile), in their order.
__global__ void __launch_bounds__(kThreads)
    WeightGradientsKernel(ScaledMatrix m, const float4* d_weights, int block_rows,
                          ScaledMatrixGradients gradients) {
  extern __shared__ float of_d[];
  const int strips = m.cols / quant::kStripChannels, quads = m.cols / kLanes;
  const int64_t first_row = int64_t{blockIdx.x} * block_rows;
  const int rows = static_cast<int>(min(static_cast<int64_t>(block_rows), m.rows - first_row));
  const char4* levels = reinterpret_cast<const char4*>(m.levels);
  for (int r = 0; r < rows; ++r) {
    const int64_t row = first_row + r;
    for (int base = 0; base < quads; base += kThreads) {
      const int i = base + static_cast<int>(threadIdx.x);
      float sum = 0.0f;
      if (i < quads) {
        const float4 g = d_weights[row * quads + i];
        const char4 level = levels[row * quads + i];
        sum = level.x * g.x + level.y * g.y + level.z * g.z + level.w * g.w;
      }
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (i >= quads || i % kLanes != 0) continue;
      const int strip = i / kLanes;
      const float s = m.sub_scales[row * strips + strip];
      const float d =
          UsedSecondOrder(m.second_order[row * m.tiles + m.tile_of_strip[strip]], m.rounded);
      const float of_s = sum * d * 0.5f;
      if (!m.rounded || !PushedOut(s, of_s)) gradients.sub_scales[row * strips + strip] += of_s;
      of_d[r * strips + strip] = sum * UsedSubScale(s, m.rounded) * 0.5f;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * m.tiles; i += kThreads) {
    const int r = i / m.tiles, tile = i % m.tiles;
    float sum = 0.0f;
    for (int strip = 0; strip < strips; ++strip) {
      if (m.tile_of_strip[strip] == tile) sum += of_d[r * strips + strip];
    }
    gradients.second_order[(first_row + r) * m.tiles + tile] += sum;
  }
}

template <typename T>
struct WidenElement {
  const T* from;
  float* to;
  template <int N>
  __device__ void At(int64_t i) const {
    if constexpr (N == 4) {
      *reinterpret_cast<float4*>(to + i) = Load4(from + i);
    } else {
      to[i] = static_cast<float>(from[i]);
    }
  }
};

template <typename T>
cudaError_t WidenFrom(const void* from, int64_t count, float* to, cudaStream_t stream) {
  return ForEach(count, WidenElement<T>{static_cast<const T*>(from), to},
                 {static_cast<const float*>(from), to}, stream);
}

// 8 elements of a row.
struct RoundEight {
  const float* from;
  int64_t row_stride;
  int eights;  // per row
  uint4* to;
  template <int N>
  __device__ void At(int64_t i) const {
    const int64_t row = i / eights;
    const auto* x = reinterpret_cast<const float4*>(from + row * row_stride + 8 * (i % eights));
    const float4 a = x[0], b = x[1];
    union {
      __nv_bfloat162 pairs[4];
      uint4 all;
    } rounded = {{__floats2bfloat162_rn(a.x, a.y), __floats2bfloat162_rn(a.z, a.w),
                  __floats2bfloat162_rn(b.x, b.y), __floats2bfloat162_rn(b.z, b.w)}};
    to[i] = rounded.all;
  }
};

struct AdamElement {
  tune::AdamArgs a;
  float correction1, correction2;  // 1 / (1 - beta^step)
  template <int N>
  __device__ void At(int64_t i) const {
    const float reference = a.reference == nullptr ? 1.0f : a.reference[i];
    const float g = a.gradients[i] * reference;
    const float m = a.beta1 * a.first_moments[i] + (1.0f - a.beta1) * g;
    const float v = a.beta2 * a.second_moments[i] + (1.0f - a.beta2) * g * g;
    a.first_moments[i] = m;
    a.second_moments[i] = v;
    const float step = m * correction1 / (sqrtf(v * correction2) + a.epsilon);
    const float value = a.values[i] - a.learning_rate * reference * step;
    a.values[i] = fminf(fmaxf(value, a.min_value), a.max_value);
  }
};

struct FillAddress {
  const float* data;
  int64_t outer_stride, inner_stride;
  int inner;
  const void** addresses;
  template <int N>
  __device__ void At(int64_t i) const {
    addresses[i] = data + (i / inner) * outer_stride + (i % inner) * inner_stride;
  }
};

}  // namespace

cudaError_t TuneWiden(const void* from, DType type, int64_t count, float* to, cudaStream_t stream) {
  switch (type) {
    case DType::kF32:
      return WidenFrom<float>(from, count, to, stream);
    case DType::kF16:
      return WidenFrom<__half>(from, count, to, stream);
    case DType::kBF16:
      return WidenFrom<__nv_bfloat16>(from, count, to, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t TuneWeights(const ScaledMatrix& matrix, float* weights, cudaStream_t stream) {
  if (matrix.rows == 0) return cudaSuccess;
  WeightsKernel<<<matrix.rows, kThreads, 0, stream>>>(matrix, reinterpret_cast<float4*>(weights));
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return ForEachOne(matrix.num_outliers, AddOutlier{matrix.outlier_at, matrix.outliers, weights},
                    stream);
}

cudaError_t TuneWeightGradients(const ScaledMatrix& matrix, const float* d_weights,
                                const ScaledMatrixGradients& gradients, cudaStream_t stream) {
  // 32 KB of shared memory per block where rows are short enough, never more than one row's share.
  constexpr int kSharedFloats = 8192, kMaxBlockRows = 8;
  static_assert(kMaxTuneInputs / quant::kStripChannels <= kSharedFloats);
  if (matrix.rows == 0) return cudaSuccess;
  if (matrix.cols > kMaxTuneInputs) return cudaErrorInvalidValue;
  const int strips = matrix.cols / quant::kStripChannels;
  const int block_rows = std::min(kMaxBlockRows, kSharedFloats / strips);
  const int blocks = (matrix.rows + block_rows - 1) / block_rows;
  WeightGradientsKernel<<<blocks, kThreads, sizeof(float) * block_rows * strips, stream>>>(
      matrix, reinterpret_cast<const float4*>(d_weights), block_rows, gradients);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return ForEachOne(matrix.num_outliers,
                    TakeOutlierGradient{matrix.outlier_at, d_weights, gradients.outliers}, stream);
}

cudaError_t TuneAdam(const tune::AdamArgs& args, cudaStream_t stream) {
  const auto correction = [&args](float beta) {
    return static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(beta), args.step)));
  };
  return ForEachOne(args.count, AdamElement{args, correction(args.beta1), correction(args.beta2)},
                    stream);
}

cudaError_t TuneRoundToBf16(const float* from, int64_t row_stride, int rows, int cols, void* to,
                            cudaStream_t stream) {
  const int eights = cols / 8;
  return ForEachOne(int64_t{rows} * eights,
                    RoundEight{from, row_stride, eights, static_cast<uint4*>(to)}, stream);
}

cudaError_t TuneAddresses(const float* data, int64_t outer_stride, int64_t inner_stride, int outer,
                          int inner, const void** addresses, cudaStream_t stream) {
  return ForEachOne(int64_t{outer} * inner,
                    FillAddress{data, outer_stride, inner_stride, inner, addresses}, stream);
}

}  // namespace fewbit::cuda
