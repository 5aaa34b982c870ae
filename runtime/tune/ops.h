// What tuning asks of a device: memory, matrix products, and the few operators of a decoder layer
// with their gradients. The layer, the loss and the optimizer are written once above it; CpuOps and
// CudaOps are below.
//
// All tensors are float32, row-major and without gaps unless a stride is given, in memory of the
// device. Calls return before the device is done; they run in order, and Download waits. "Adds to"
// means that the old content counts. Results are the same for the same arguments on the same
// device, for any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/matrix.h"
#include "kernels/tune_args.h"

namespace fewbit::tune {

// Operand of a batch of products: `outer` x `inner` matrices, their first elements apart by these
// strides (0: the same matrix for all).
struct Operand {
  const float* data = nullptr;
  int64_t row_stride = 0;   // elements between rows as stored
  bool transposed = false;  // stored as the transpose of what is multiplied
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
};

// c = alpha * a b + beta * c; a [m, k], b [k, n], c [m, n], for each matrix of the batch. Where
// beta is 0 the old content of c is not read.
struct Product {
  int m = 0;
  int n = 0;
  int k = 0;
  Operand a, b;
  float* c = nullptr;
  int64_t c_row_stride = 0;
  int64_t c_outer_stride = 0;
  int64_t c_inner_stride = 0;
  int outer = 1;
  int inner = 1;
  float alpha = 1.0f;
  float beta = 0.0f;
};

// Of what Allocate gives, in bytes; arrays that share an allocation keep to it.
inline constexpr int64_t kAlignment = 256;
inline constexpr int64_t kAlignedFloats = kAlignment / static_cast<int64_t>(sizeof(float));

constexpr int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Thread rule: one caller at a time.
class Ops {
 public:
  virtual ~Ops() = default;

  virtual const std::string& device() const = 0;  // "cpu: 2 threads", "cuda:0 NVIDIA H200"

  // Aligned to kAlignment. RESOURCE_EXHAUSTED names the bytes asked for and what is free.
  virtual absl::StatusOr<void*> Allocate(size_t bytes) = 0;
  virtual void Free(void* data) = 0;
  virtual void Upload(const void* host, size_t bytes, void* device) = 0;  // `host` may be reused
  virtual void Download(const void* device, size_t bytes, void* host) = 0;
  virtual void Zero(void* device, size_t bytes) = 0;
  virtual void Copy(const void* from, size_t bytes, void* to) = 0;  // both on the device
  virtual int64_t PeakBytes() const = 0;                            // allocated at once, so far

  virtual void Multiply(const Product& product) = 0;

  virtual void Widen(const void* from, DType type, int64_t count, float* to) = 0;
  virtual void Weights(const ScaledMatrix& matrix, float* weights) = 0;  // [N, K]
  // Adds to `gradients` what `d_weights` [N, K] says of the scales. Rounding passes gradients on as
  // if it were not there (straight-through), but for sub-scales clamped at 0 or 15 that the step
  // would take further out.
  virtual void WeightGradients(const ScaledMatrix& matrix, const float* d_weights,
                               const ScaledMatrixGradients& gradients) = 0;

  virtual void Add(const float* x, int64_t count, float* y) = 0;  // y += x
  virtual void AddBias(const float* bias, int rows, int cols, float* y) = 0;

  // y [rows, cols] = x / sqrt(mean(x^2) + eps) * weight; inverse_rms [rows].
  virtual void RmsNorm(const float* x, const float* weight, float eps, int rows, int cols, float* y,
                       float* inverse_rms) = 0;
  // dx: replaced, or with `add` added to; may be dy when it is not added to. d_weight [cols] is
  // added to, unless null.
  virtual void RmsNormBackward(const float* x, const float* weight, const float* inverse_rms,
                               const float* dy, int rows, int cols, bool add, float* dx,
                               float* d_weight) = 0;

  // In place; `inverse` turns back, which is also the gradient.
  virtual void Rope(const RopeArgs& args, bool inverse, float* x) = 0;

  // In place over [matrices, context, context] of scores q k: row i keeps columns
  // max(0, i - window + 1) .. i (window 0: 0 .. i), the others become 0.
  virtual void CausalSoftmax(int64_t matrices, int context, int window, float* scores) = 0;
  // In place: gradient of the probabilities -> of the scores.
  virtual void CausalSoftmaxBackward(int64_t matrices, int context, int window,
                                     const float* probabilities, float* gradients) = 0;

  // y = silu(gate) * up.
  virtual void SiluMul(const float* gate, const float* up, int64_t count, float* y) = 0;
  // Replaces gate and up by their gradients.
  virtual void SiluMulBackward(const float* dy, int64_t count, float* gate, float* up) = 0;

  // KL(teacher || student) of the softmax of each row [rows, V], added to *sums (on the device).
  // Replaces `student` by the gradient of scale * KL when `gradient`, else leaves it.
  virtual void KlDivergence(const float* teacher, int rows, int vocab, float scale, bool gradient,
                            float* student, LossSums* sums) = 0;

  virtual void Adam(const AdamArgs& args) = 0;
};

}  // namespace fewbit::tune
