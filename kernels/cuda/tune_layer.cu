// A decoder layer's operators and their gradients, but for products and softmax.
#include <algorithm>

#include "kernels/cuda/device/for_each.cuh"
#include "kernels/cuda/device/ordered_sum.cuh"
#include "kernels/cuda/tune.h"

namespace fewbit::cuda {
namespace {

struct AddElement {
  const float* x;
  float* y;
  template <int N>
  __device__ void At(int64_t i) const {
    const auto from = Floats<N>::Load(x + i);
    auto sum = Floats<N>::Load(y + i);
#pragma unroll
    for (int j = 0; j < N; ++j) sum.v[j] += from.v[j];
    sum.Store(y + i);
  }
};

__global__ void AddBiasKernel(const float* bias, int cols, float* y) {
  for (int c = threadIdx.x; c < cols; c += blockDim.x) y[int64_t{blockIdx.x} * cols + c] += bias[c];
}

// A row of threads per row of x: whole blocks, or, for short rows (a head's), warps.
struct NormLaunch {
  dim3 grid, block;
};

NormLaunch NormLaunchOf(int rows, int cols) {
  constexpr int kShort = 1024, kWarps = 8;
  if (cols > kShort) return {dim3(rows), dim3(32 * kWarps)};
  return {dim3((rows + kWarps - 1) / kWarps), dim3(32, kWarps)};
}

template <int N>
__global__ void RmsNormKernel(const float* x, const float* weight, float eps, int rows, int cols,
                              float* y, float* inverse_rms) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;  // whole warps, of blocks that have no other rows in a warp
  x += row * cols;
  y += row * cols;
  float squares = 0.0f;
  for (int c = N * threadIdx.x; c < cols; c += N * blockDim.x) {
    const auto at = Floats<N>::Load(x + c);
#pragma unroll
    for (int j = 0; j < N; ++j) squares += at.v[j] * at.v[j];
  }
  const float inverse = 1.0f / sqrtf(RowSum(squares) / static_cast<float>(cols) + eps);
  for (int c = N * threadIdx.x; c < cols; c += N * blockDim.x) {
    auto at = Floats<N>::Load(x + c);
    const auto w = Floats<N>::Load(weight + c);
#pragma unroll
    for (int j = 0; j < N; ++j) at.v[j] = at.v[j] * inverse * w.v[j];
    at.Store(y + c);
  }
  if (threadIdx.x == 0) inverse_rms[row] = inverse;
}

// With n = x * inverse: dx = inverse * (dy * weight - n * mean(dy * weight * n)).
template <int N>
__global__ void RmsNormBackwardKernel(const float* x, const float* weight, const float* inverse_rms,
                                      const float* dy, int rows, int cols, bool add, float* dx) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  x += row * cols;
  dy += row * cols;
  dx += row * cols;
  const float inverse = inverse_rms[row];
  float dot = 0.0f;
  for (int c = N * threadIdx.x; c < cols; c += N * blockDim.x) {
    const auto g = Floats<N>::Load(dy + c), w = Floats<N>::Load(weight + c);
    const auto at = Floats<N>::Load(x + c);
#pragma unroll
    for (int j = 0; j < N; ++j) dot += g.v[j] * w.v[j] * at.v[j];
  }
  const float mean = RowSum(dot) * inverse / static_cast<float>(cols);
  for (int c = N * threadIdx.x; c < cols; c += N * blockDim.x) {
    const auto w = Floats<N>::Load(weight + c), at = Floats<N>::Load(x + c);
    auto g = Floats<N>::Load(dy + c);
#pragma unroll
    for (int j = 0; j < N; ++j) g.v[j] = inverse * (g.v[j] * w.v[j] - at.v[j] * inverse * mean);
    if (add) {
      const auto old = Floats<N>::Load(dx + c);
#pragma unroll
      for (int j = 0; j < N; ++j) g.v[j] += old.v[j];
    }
    g.Store(dx + c);
  }
}

// What ColumnSums adds up.
struct NormTerms {
  const float* x;
  const float* dy;
  const float* inverse_rms;
  int cols;
  __device__ float At(int64_t row, int c) const {
    return dy[row * cols + c] * (x[row * cols + c] * inverse_rms[row]);
  }
};

struct PartialSums {
  const float* sums;
  int cols;
  __device__ float At(int64_t row, int c) const { return sums[row * cols + c]; }
};

constexpr int kColumns = 32, kRowLanes = 8;  // of a block

// out[blockIdx.y, c] (+)= sum of rows blockIdx.y * block_rows ..: lanes take every kRowLanes-th
// row, then their sums are added in order.
template <typename Terms>
__global__ void __launch_bounds__(kColumns* kRowLanes)
    ColumnSums(Terms terms, int rows, int block_rows, int cols, bool add, float* out) {
  __shared__ float lanes[kRowLanes][kColumns];
  const int c = blockIdx.x * kColumns + threadIdx.x;
  const int64_t first = int64_t{blockIdx.y} * block_rows;
  const int64_t end = min(first + block_rows, static_cast<int64_t>(rows));
  float sum = 0.0f;
  if (c < cols) {
    for (int64_t row = first + threadIdx.y; row < end; row += kRowLanes) sum += terms.At(row, c);
  }
  lanes[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= cols) return;
  for (int lane = 1; lane < kRowLanes; ++lane) sum += lanes[lane][threadIdx.x];
  float* to = out + int64_t{blockIdx.y} * cols + c;
  *to = add ? *to + sum : sum;
}

cudaError_t NormWeightGradient(const NormTerms& terms, int rows, float* d_weight, void* scratch,
                               cudaStream_t stream) {
  constexpr int kMaxParts = 128, kMinRows = 8 * kRowLanes;
  const int cols = terms.cols;
  auto* partial = static_cast<float*>(scratch);
  const int room = static_cast<int>(kTuneScratchBytes / sizeof(float)) / cols;
  const int parts = std::min({kMaxParts, room, (rows + kMinRows - 1) / kMinRows});
  if (parts == 0) return cudaErrorInvalidValue;
  const int block_rows = (rows + parts - 1) / parts;
  const dim3 block(kColumns, kRowLanes);
  const unsigned columns = (cols + kColumns - 1) / kColumns;
  ColumnSums<<<dim3(columns, parts), block, 0, stream>>>(terms, rows, block_rows, cols, false,
                                                         partial);
  ColumnSums<<<dim3(columns, 1), block, 0, stream>>>(PartialSums{partial, cols}, parts, parts, cols,
                                                     true, d_weight);
  return cudaGetLastError();
}

// A block takes a token, its threads the pairs of all heads.
__global__ void RopeKernel(tune::RopeArgs a, float sign, float* x) {
  const int64_t row = blockIdx.x;
  const int64_t turn = row % a.context * a.pairs;
  for (int i = threadIdx.x; i < a.heads * a.pairs; i += blockDim.x) {
    const int head = i / a.pairs, pair = i % a.pairs;
    float* at = x + (row * a.heads + head) * a.head_dim + (a.interleaved ? 2 * pair : pair);
    float* other = at + (a.interleaved ? 1 : a.pairs);
    const float c = a.cosines[turn + pair], s = sign * a.sines[turn + pair];
    const float x0 = *at, x1 = *other;
    *at = x0 * c - x1 * s;
    *other = x1 * c + x0 * s;
  }
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct SiluMulElement {
  const float* gate;
  const float* up;
  float* y;
  template <int N>
  __device__ void At(int64_t i) const {
    const auto g = Floats<N>::Load(gate + i), u = Floats<N>::Load(up + i);
    Floats<N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = g.v[j] * Sigmoid(g.v[j]) * u.v[j];
    out.Store(y + i);
  }
};

struct SiluMulGradient {
  const float* dy;
  float* gate;
  float* up;
  template <int N>
  __device__ void At(int64_t i) const {
    const auto d = Floats<N>::Load(dy + i);
    auto g = Floats<N>::Load(gate + i), u = Floats<N>::Load(up + i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float x = g.v[j], s = Sigmoid(x);
      g.v[j] = d.v[j] * u.v[j] * s * (1.0f + x * (1.0f - s));
      u.v[j] = d.v[j] * x * s;
    }
    g.Store(gate + i);
    u.Store(up + i);
  }
};

}  // namespace

cudaError_t TuneAdd(const float* x, int64_t count, float* y, cudaStream_t stream) {
  return ForEach(count, AddElement{x, y}, {x, y}, stream);
}

cudaError_t TuneAddBias(const float* bias, int rows, int cols, float* y, cudaStream_t stream) {
  constexpr int kThreads = 256;
  if (rows == 0) return cudaSuccess;
  AddBiasKernel<<<rows, kThreads, 0, stream>>>(bias, cols, y);
  return cudaGetLastError();
}

cudaError_t TuneRmsNorm(const float* x, const float* weight, float eps, int rows, int cols,
                        float* y, float* inverse_rms, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const NormLaunch launch = NormLaunchOf(rows, cols);
  const bool four = cols % 4 == 0 && AlignedToFour({x, weight, y});
  const auto kernel = four ? RmsNormKernel<4> : RmsNormKernel<1>;
  kernel<<<launch.grid, launch.block, 0, stream>>>(x, weight, eps, rows, cols, y, inverse_rms);
  return cudaGetLastError();
}

cudaError_t TuneRmsNormBackward(const float* x, const float* weight, const float* inverse_rms,
                                const float* dy, int rows, int cols, bool add, float* dx,
                                float* d_weight, void* scratch, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  if (d_weight != nullptr) {  // first: dx may take the place of dy
    const cudaError_t error =
        NormWeightGradient({x, dy, inverse_rms, cols}, rows, d_weight, scratch, stream);
    if (error != cudaSuccess) return error;
  }
  const NormLaunch launch = NormLaunchOf(rows, cols);
  const bool four = cols % 4 == 0 && AlignedToFour({x, weight, dy, dx});
  const auto kernel = four ? RmsNormBackwardKernel<4> : RmsNormBackwardKernel<1>;
  kernel<<<launch.grid, launch.block, 0, stream>>>(x, weight, inverse_rms, dy, rows, cols, add, dx);
  return cudaGetLastError();
}

cudaError_t TuneRope(const tune::RopeArgs& args, bool inverse, float* x, cudaStream_t stream) {
  constexpr int kThreads = 256;
  if (args.rows == 0) return cudaSuccess;
  RopeKernel<<<args.rows, kThreads, 0, stream>>>(args, inverse ? -1.0f : 1.0f, x);
  return cudaGetLastError();
}

cudaError_t TuneSiluMul(const float* gate, const float* up, int64_t count, float* y,
                        cudaStream_t stream) {
  return ForEach(count, SiluMulElement{gate, up, y}, {gate, up, y}, stream);
}

cudaError_t TuneSiluMulBackward(const float* dy, int64_t count, float* gate, float* up,
                                cudaStream_t stream) {
  return ForEach(count, SiluMulGradient{dy, gate, up}, {dy, gate, up}, stream);
}

}  // namespace fewbit::cuda
