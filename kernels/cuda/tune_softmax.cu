// Softmax of attention scores with its gradient, and the divergence between two models' logits.
#include <algorithm>
#include <cfloat>

#include "kernels/cuda/device/ordered_sum.cuh"
#include "kernels/cuda/tune.h"

namespace fewbit::cuda {
namespace {

// A softmax's sum of exponentials as it grows, relative to its largest element so far.
struct RunningSoftmax {
  float max = -FLT_MAX;
  float sum = 0.0f;
  uint32_t at = 0;  // of the first largest element

  __device__ void Take(float x, uint32_t index) {
    if (x > max) {
      sum = sum * expf(max - x) + 1.0f;
      max = x;
      at = index;
    } else {
      sum += expf(x - max);
    }
  }
};

constexpr int kWarps = 8;

// Columns of row `row` of a causal matrix that count: first .. end - 1.
struct Kept {
  int first, end;
  __device__ Kept(int64_t row, int context, int window) {
    const int i = static_cast<int>(row % context);
    first = window > 0 ? max(0, i - window + 1) : 0;
    end = i + 1;
  }
};

// A warp takes a row; its second pass finds the row in a cache.
__global__ void __launch_bounds__(32 * kWarps)
    CausalSoftmaxKernel(int64_t rows, int context, int window, float* scores) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (row >= rows) return;
  const Kept kept(row, context, window);
  float* x = scores + row * context;
  RunningSoftmax mine;
  for (int c = kept.first + threadIdx.x; c < kept.end; c += 32) mine.Take(x[c], c);
  const float max = RowReduce(mine.max, -FLT_MAX, TakeMax{});
  const float inverse = 1.0f / RowSum(mine.sum * expf(mine.max - max));
  for (int c = threadIdx.x; c < context; c += 32) {
    x[c] = c >= kept.first && c < kept.end ? expf(x[c] - max) * inverse : 0.0f;
  }
}

__global__ void __launch_bounds__(32 * kWarps)
    CausalSoftmaxBackwardKernel(int64_t rows, int context, int window, const float* probabilities,
                                float* gradients) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.y;
  if (row >= rows) return;
  const Kept kept(row, context, window);
  const float* p = probabilities + row * context;
  float* g = gradients + row * context;
  float dot = 0.0f;
  for (int c = kept.first + threadIdx.x; c < kept.end; c += 32) dot += p[c] * g[c];
  dot = RowSum(dot);
  for (int c = threadIdx.x; c < context; c += 32) {
    g[c] = c >= kept.first && c < kept.end ? p[c] * (g[c] - dot) : 0.0f;
  }
}

struct RowLoss {
  double kl;
  double same_top;
};

// Floats as integers of the same order.
__device__ __forceinline__ uint32_t Ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float FromOrdered(uint32_t ordered) {
  return __uint_as_float(ordered >> 31 != 0 ? ordered & 0x7FFFFFFFu : ~ordered);
}

// What a row of threads knows of a row of logits.
struct LogSoftmax {
  float log_sum;  // log of the sum of exponentials
  uint32_t top;   // the first largest element

  __device__ explicit LogSoftmax(const RunningSoftmax& mine) {
    const uint64_t key = uint64_t{Ordered(mine.max)} << 32 | static_cast<uint32_t>(~mine.at);
    const uint64_t best = RowReduce(key, uint64_t{0}, TakeMax{});
    const float max = FromOrdered(static_cast<uint32_t>(best >> 32));
    top = ~static_cast<uint32_t>(best);
    log_sum = max + logf(RowSum(mine.sum * expf(mine.max - max)));
  }
};

constexpr int kKlThreads = 512;

// A block takes a row.
__global__ void __launch_bounds__(kKlThreads)
    KlKernel(const float* teacher, int vocab, float scale, bool gradient, float* student,
             RowLoss* losses) {
  const int64_t row = blockIdx.x;
  const float* t = teacher + row * vocab;
  float* s = student + row * vocab;
  RunningSoftmax of_t, of_s;
  for (int v = threadIdx.x; v < vocab; v += kKlThreads) {
    of_t.Take(t[v], v);
    of_s.Take(s[v], v);
  }
  const LogSoftmax p(of_t), q(of_s);
  float kl = 0.0f;
  for (int v = threadIdx.x; v < vocab; v += kKlThreads) {
    const float log_p = t[v] - p.log_sum, log_q = s[v] - q.log_sum;
    const float pv = expf(log_p);
    kl += pv * (log_p - log_q);
    if (gradient) s[v] = scale * (expf(log_q) - pv);
  }
  const double total = RowSum(static_cast<double>(kl));
  if (threadIdx.x == 0) losses[row] = {total, p.top == q.top ? 1.0 : 0.0};
}

constexpr int kAddThreads = 512;

__global__ void __launch_bounds__(kAddThreads)
    AddLosses(const RowLoss* losses, int rows, tune::LossSums* sums) {
  RowLoss mine = {0.0, 0.0};
  for (int row = threadIdx.x; row < rows; row += kAddThreads) {
    mine.kl += losses[row].kl;
    mine.same_top += losses[row].same_top;
  }
  mine = {RowSum(mine.kl), RowSum(mine.same_top)};
  if (threadIdx.x != 0) return;
  sums->kl += mine.kl;
  sums->same_top += mine.same_top;
}

unsigned WarpRowBlocks(int64_t rows) { return static_cast<unsigned>((rows + kWarps - 1) / kWarps); }

}  // namespace

cudaError_t TuneCausalSoftmax(int64_t matrices, int context, int window, float* scores,
                              cudaStream_t stream) {
  const int64_t rows = matrices * context;
  if (rows == 0) return cudaSuccess;
  CausalSoftmaxKernel<<<WarpRowBlocks(rows), dim3(32, kWarps), 0, stream>>>(rows, context, window,
                                                                            scores);
  return cudaGetLastError();
}

cudaError_t TuneCausalSoftmaxBackward(int64_t matrices, int context, int window,
                                      const float* probabilities, float* gradients,
                                      cudaStream_t stream) {
  const int64_t rows = matrices * context;
  if (rows == 0) return cudaSuccess;
  CausalSoftmaxBackwardKernel<<<WarpRowBlocks(rows), dim3(32, kWarps), 0, stream>>>(
      rows, context, window, probabilities, gradients);
  return cudaGetLastError();
}

cudaError_t TuneKlDivergence(const float* teacher, int rows, int vocab, float scale, bool gradient,
                             float* student, tune::LossSums* sums, void* scratch,
                             cudaStream_t stream) {
  constexpr int kRoom = kTuneScratchBytes / sizeof(RowLoss);
  auto* losses = static_cast<RowLoss*>(scratch);
  for (int first = 0; first < rows; first += kRoom) {
    const int count = std::min(kRoom, rows - first);
    const int64_t offset = int64_t{first} * vocab;
    KlKernel<<<count, kKlThreads, 0, stream>>>(teacher + offset, vocab, scale, gradient,
                                               student + offset, losses);
    AddLosses<<<1, kAddThreads, 0, stream>>>(losses, count, sums);
  }
  return cudaGetLastError();
}

}  // namespace fewbit::cuda
