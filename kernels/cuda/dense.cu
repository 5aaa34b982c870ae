#include <algorithm>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/dense_words.cuh"
#include "kernels/cuda/device/load4.cuh"
#include "kernels/cuda/launch.h"

namespace fewbit::cuda {
namespace {

// A dot product is cut into kSplits runs of channels; a result is (((P0 + P1) + P2) + P3) * scale,
// and P_s one chain of tensor-core products in channel order. None of this depends on m.
constexpr int kSplits = 4;
constexpr int kWarps = 8;
constexpr int kStepBytes = 128;  // of each row that a warp takes at once

// One warp's step of 16 rows: rows g and g + 8, two pieces of 16 bytes each per lane.
struct Step {
  uint4 low[2], high[2];
};

// A warp's rows of weights.
template <int RT>
struct Rows {
  const uint8_t* at[RT][2];

  __device__ Rows(const DeviceDense& w, int first_row, size_t row_bytes) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2 * RT; ++i) {
      const int row = min(first_row + 8 * i + g, w.rows - 1);
      at[i / 2][i % 2] = static_cast<const uint8_t*>(w.data) + row * row_bytes + 16 * t;
    }
  }
  __device__ void Load(int step, Step (&to)[RT]) const {
#pragma unroll
    for (int i = 0; i < RT; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        to[i].low[j] = LoadStreaming(at[i][0] + step * kStepBytes + 64 * j);
        to[i].high[j] = LoadStreaming(at[i][1] + step * kStepBytes + 64 * j);
      }
    }
  }
};

template <int RT, int NT>
__device__ void StoreResult(const DenseCall& call, int first_row, int first_token, int tokens,
                            const float (&sums)[RT][NT][4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < RT * NT * 4; ++i) {
    const int row = first_row + 16 * (i / (NT * 4)) + (i % 4 / 2) * 8 + g;
    const int token = 8 * (i / 4 % NT) + 2 * t + i % 2;
    if (row >= call.w.rows || token >= tokens) continue;
    float y = sums[i / (NT * 4)][i / 4 % NT][i % 4];
    if (call.w.scales != nullptr) y *= call.w.scales[row];
    call.y[(first_token + token) * call.y_stride + row] = y;
  }
}

template <int RT, int NT>
__device__ __forceinline__ void AddAndClear(float (&total)[RT][NT][4], float (&acc)[RT][NT][4]) {
#pragma unroll
  for (int i = 0; i < RT * NT * 4; ++i) {
    total[i / (NT * 4)][i / 4 % NT][i % 4] += acc[i / (NT * 4)][i / 4 % NT][i % 4];
    acc[i / (NT * 4)][i / 4 % NT][i % 4] = 0;
  }
}

// RT tiles of 16 rows by NT tiles of 8 tokens. SW warps share the splits of a dot product: kSplits
// for few tokens, which leaves more rows in flight; 1 for many, so that the warps of a block are at
// the same channels of x and find them in the first-level cache.
template <typename Words, int RT, int NT, int SW>
__global__ void __launch_bounds__(32 * kWarps) DenseKernel(const __grid_constant__ DenseCall call) {
  constexpr int kGroups = kWarps / SW, kTokens = 8 * NT;
  __shared__ float parts[kGroups][SW > 1 ? SW - 1 : 1][SW > 1 ? RT * NT * 4 : 1][32];
  const int lane = threadIdx.x % 32;
  const int split = threadIdx.x / 32 % SW, group = threadIdx.x / 32 / SW;
  const int first_row = (blockIdx.x * kGroups + group) * RT * 16;
  const int first_token = blockIdx.y * kTokens, tokens = min(kTokens, call.m - first_token);
  const int steps = call.w.cols / Words::kStepChannels;
  const int begin = steps * split / SW, end = steps * (split + 1) / SW;
  const Rows<RT> rows(call.w, first_row, static_cast<size_t>(steps) * kStepBytes);
  Step now[RT], next[RT];
  if (begin < end) rows.Load(begin, next);
  WaitForPreviousKernels();
  LetNextKernelStart();
  const typename Words::X* x[NT];
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const int token = first_token + min(8 * n + lane / 4, tokens - 1);
    x[n] = static_cast<const typename Words::X*>(call.x) + token * call.x_stride +
           Words::kLaneChannels * (lane % 4);
  }
  float acc[RT][NT][4] = {}, total[RT][NT][4] = {};
  for (int step = begin, part = 1; step < end; ++step) {
#pragma unroll
    for (int i = 0; i < RT; ++i) now[i] = next[i];
    if (step + 1 < end) rows.Load(step + 1, next);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      typename Words::A a[RT];
#pragma unroll
      for (int i = 0; i < RT; ++i) a[i] = Words::Decode(now[i].low[j], now[i].high[j]);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const typename Words::B b =
            Words::LoadX(x[n] + step * Words::kStepChannels + j * (Words::kStepChannels / 2));
#pragma unroll
        for (int i = 0; i < RT; ++i) Words::Multiply(acc[i][n], a[i], b);
      }
    }
    if constexpr (SW == 1) {
      while (part < kSplits && steps * part / kSplits <= step) ++part;  // splits without a step
      if (steps * part / kSplits == step + 1) AddAndClear(total, acc);
    }
  }
  if (SW == 1) return StoreResult<RT, NT>(call, first_row, first_token, tokens, total);
  if (split > 0) {
#pragma unroll
    for (int i = 0; i < RT * NT * 4; ++i) {
      parts[group][split - 1][i][lane] = acc[i / (NT * 4)][i / 4 % NT][i % 4];
    }
  }
  __syncthreads();
  if (split > 0) return;
#pragma unroll
  for (int i = 0; i < RT * NT * 4; ++i) {
#pragma unroll
    for (int s = 0; s < SW - 1; ++s) {
      acc[i / (NT * 4)][i / 4 % NT][i % 4] += parts[group][s][i][lane];
    }
  }
  StoreResult<RT, NT>(call, first_row, first_token, tokens, acc);
}

template <typename Words, int RT, int NT, int SW>
cudaError_t LaunchTiles(const DenseCall& call, cudaStream_t stream) {
  const int rows_per_block = kWarps / SW * RT * 16;
  return LaunchDependent(
      DenseKernel<Words, RT, NT, SW>,
      dim3((call.w.rows + rows_per_block - 1) / rows_per_block, (call.m + 8 * NT - 1) / (8 * NT)),
      dim3(32 * kWarps), 0, stream, call);
}

template <typename Words>
cudaError_t LaunchByTokens(const DenseCall& call, cudaStream_t stream) {
  if (call.m <= 8) return LaunchTiles<Words, 1, 1, kSplits>(call, stream);
  if (call.m <= 16) return LaunchTiles<Words, 1, 2, kSplits>(call, stream);
  if (call.m <= 32) return LaunchTiles<Words, 2, 4, 1>(call, stream);
  return LaunchTiles<Words, 2, 8, 1>(call, stream);
}

constexpr int kPlainTokens = 8;  // of one warp in PlainKernel

__device__ float4 LoadX4(const void* x, DType type, int64_t at) {
  return type == DType::kF32 ? Load4(static_cast<const float*>(x) + at)
                             : Load4(static_cast<const __half*>(x) + at);
}

// For what the tensor cores cannot take: a warp per (row, 8 tokens), in float, lanes by channel.
__global__ void PlainKernel(const __grid_constant__ DenseCall call) {
  WaitForPreviousKernels();
  const int lane = threadIdx.x % 32;
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int first = blockIdx.y * kPlainTokens, tokens = min(kPlainTokens, call.m - first);
  if (row >= call.w.rows) return;
  const uint8_t* w = static_cast<const uint8_t*>(call.w.data) +
                     static_cast<size_t>(row) * call.w.cols * WeightBytes(call.w.type);
  const float scale = call.w.type == WeightType::kI8 ? call.w.scales[row] : 1.0f;
  float sums[kPlainTokens] = {};
  for (int i = 4 * lane; i < call.w.cols; i += 128) {
    const float4 weights = LoadWeights4(w, call.w.type, 1.0f, i);
#pragma unroll
    for (int n = 0; n < kPlainTokens; ++n) {
      const float4 x =
          LoadX4(call.x, call.x_type, (first + min(n, tokens - 1)) * call.x_stride + i);
      sums[n] = fmaf(weights.x, x.x, sums[n]);
      sums[n] = fmaf(weights.y, x.y, sums[n]);
      sums[n] = fmaf(weights.z, x.z, sums[n]);
      sums[n] = fmaf(weights.w, x.w, sums[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < kPlainTokens; ++n) {
    for (int offset = 16; offset > 0; offset /= 2) {
      sums[n] += __shfl_xor_sync(~0u, sums[n], offset);
    }
    if (lane != 0 || n >= tokens) continue;
    call.y[(first + n) * call.y_stride + row] = sums[n] * scale;
  }
}

cudaError_t LaunchPlain(const DenseCall& call, cudaStream_t stream) {
  constexpr int kRows = 4;
  return LaunchDependent(
      PlainKernel,
      dim3((call.w.rows + kRows - 1) / kRows, (call.m + kPlainTokens - 1) / kPlainTokens),
      dim3(32 * kRows), 0, stream, call);
}

bool Aligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0;
}

bool TensorCoresTake(const DenseCall& call) {
  const size_t x_bytes = call.x_type == DType::kF32 ? 4 : 2;
  return call.w.type != WeightType::kF32 &&
         call.w.cols * WeightBytes(call.w.type) % kStepBytes == 0 &&
         Aligned(call.w.data, kStepBytes) &&
         Aligned(call.x, call.x_stride * static_cast<int64_t>(x_bytes));
}

constexpr int kQuantizeThreads = 256;

__global__ void QuantizeRowsKernel(const DeviceDense w, uint8_t* codes, float* scales) {
  __shared__ float partial[kQuantizeThreads / 32];
  const size_t at = static_cast<size_t>(blockIdx.x) * w.cols;
  const uint8_t* row = static_cast<const uint8_t*>(w.data) + at * WeightBytes(w.type);
  float largest = 0;
  for (int i = 4 * threadIdx.x; i < w.cols; i += 4 * kQuantizeThreads) {
    const float4 v = LoadWeights4(row, w.type, 1.0f, i);
    largest = fmaxf(fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
  }
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = largest;
  __syncthreads();
  for (float other : partial) largest = fmaxf(largest, other);
  const float scale = __fdiv_rn(largest, 127.0f);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  const auto code = [&](float v) {
    // A scale that underflows to zero stands for a row of zeros.
    const float steps = scale > 0.0f ? rintf(__fdiv_rn(v, scale)) : 0.0f;
    return static_cast<uint8_t>(128 + static_cast<int>(fminf(fmaxf(steps, -127.0f), 127.0f)));
  };
  for (int i = 4 * threadIdx.x; i < w.cols; i += 4 * kQuantizeThreads) {
    const float4 v = LoadWeights4(row, w.type, 1.0f, i);
    *reinterpret_cast<uchar4*>(codes + at + i) =
        make_uchar4(code(v.x), code(v.y), code(v.z), code(v.w));
  }
}

__global__ void ConvertKernel(const DeviceDense w, __half* out, int* clamped) {
  const size_t count = static_cast<size_t>(w.rows) * w.cols;
  for (size_t i = 4 * (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x); i < count;
       i += size_t{4} * gridDim.x * blockDim.x) {
    const float4 v = LoadWeights4(static_cast<const uint8_t*>(w.data) + i * WeightBytes(w.type),
                                  w.type, 1.0f, 0);
    int beyond = 0;
    const float values[4] = {v.x, v.y, v.z, v.w};
    for (int j = 0; j < 4; ++j) {
      constexpr float kLargestHalf = 65504.0f;
      const float x = fminf(fmaxf(values[j], -kLargestHalf), kLargestHalf);
      beyond += x != values[j];
      out[i + j] = __float2half_rn(x);
    }
    if (beyond > 0 && clamped != nullptr) atomicAdd(clamped, beyond);
  }
}

}  // namespace

std::string CheckDense(const DenseCall& call) {
  if (call.w.rows <= 0 || call.w.cols <= 0 || call.w.cols % 4 != 0) {
    return "a dense matrix of " + std::to_string(call.w.rows) + " rows and " +
           std::to_string(call.w.cols) +
           " columns: both must be positive and columns a multiple of 4";
  }
  if (call.m <= 0) return "m " + std::to_string(call.m) + " must be positive";
  if (call.w.type == WeightType::kBF16 || call.x_type == DType::kBF16) {
    return "a dense matrix and its input must not be bf16";
  }
  return "";
}

cudaError_t LaunchDense(const DenseCall& call, cudaStream_t stream) {
  if (!TensorCoresTake(call)) return LaunchPlain(call, stream);
  const bool split = call.x_type == DType::kF32;
  if (call.w.type == WeightType::kF16) {
    return split ? LaunchByTokens<DenseWords<__half, float>>(call, stream)
                 : LaunchByTokens<DenseWords<__half, uint16_t>>(call, stream);
  }
  return split ? LaunchByTokens<DenseWords<uint8_t, float>>(call, stream)
               : LaunchByTokens<DenseWords<uint8_t, uint16_t>>(call, stream);
}

std::string RunDense(const DenseCall& call, Cublas* cublas, cudaStream_t stream) {
  if (call.m > kMaxDenseTokens && cublas != nullptr && call.w.type == WeightType::kF16 &&
      call.x_type == DType::kF16) {
    if (cublas->Gemm(DType::kF16, call.m, call.w.rows, call.w.cols, call.x, call.x_stride,
                     call.w.data, false, call.y, DType::kF32, call.y_stride, stream)) {
      return "";
    }
    return "cuBLAS refuses m " + std::to_string(call.m) + ", rows " + std::to_string(call.w.rows) +
           ", cols " + std::to_string(call.w.cols);
  }
  const cudaError_t error = LaunchDense(call, stream);
  return error == cudaSuccess ? "" : std::string("dense layer: ") + cudaGetErrorString(error);
}

cudaError_t QuantizeRows(const DeviceDense& w, uint8_t* codes, float* scales, cudaStream_t stream) {
  QuantizeRowsKernel<<<w.rows, kQuantizeThreads, 0, stream>>>(w, codes, scales);
  return cudaGetLastError();
}

cudaError_t ConvertToHalf(const DeviceDense& w, void* out, int* clamped, cudaStream_t stream) {
  constexpr int kThreads = 256, kBlocks = 1024;
  ConvertKernel<<<kBlocks, kThreads, 0, stream>>>(w, static_cast<__half*>(out), clamped);
  return cudaGetLastError();
}

}  // namespace fewbit::cuda
