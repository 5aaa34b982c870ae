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

// A linear layer whose scales are tuned, on the device; channels and strips in the order of the
// source, K a multiple of 16.
//   weight[r, k] = level[r, k] * s[r, k / 16] * d[r, tile_of_strip[k / 16]] / 2 + outlier
// level: 2q - c of kernels/quant_layout.h. `rounded`: s is clamped to 0 .. 15 and rounded to a
// whole number and 64 d rounded to fp16, as in the file; else both are taken as they are.
struct ScaledMatrix {
  int rows = 0;                            // N
  int cols = 0;                            // K
  int tiles = 0;                           // per row, of both widths
  const int8_t* levels = nullptr;          // [N, K]
  const int32_t* tile_of_strip = nullptr;  // [K / 16]
  const float* sub_scales = nullptr;       // [N, K / 16]
  const float* second_order = nullptr;     // [N, tiles]
  int num_outliers = 0;
  const int32_t* outlier_at = nullptr;  // [num_outliers] r * K + k, ascending, each once
  const float* outliers = nullptr;      // [num_outliers] corrections
  bool rounded = true;
};

// Gradients of the same, each of the size of what it is the gradient of.
struct ScaledMatrixGradients {
  float* sub_scales = nullptr;
  float* second_order = nullptr;
  float* outliers = nullptr;
};

struct RopeArgs {
  int rows = 0;      // tokens of all windows; row r is at position r % context
  int context = 0;   // tokens per window
  int heads = 0;     // x is [rows, heads, head_dim]
  int head_dim = 0;  // rotary pairs lie in the first 2 * pairs dimensions
  int pairs = 0;
  bool interleaved = false;        // pairs (0, 1), (2, 3).. instead of (i, i + pairs)
  const float* cosines = nullptr;  // [context, pairs]
  const float* sines = nullptr;    // [context, pairs]
};

// Adam (Kingma and Ba, arXiv 1412.6980) on one array; `reference` is what a relative step of 1
// means for each element (null: 1).
struct AdamArgs {
  int64_t count = 0;
  float* values = nullptr;
  const float* gradients = nullptr;
  float* first_moments = nullptr;
  float* second_moments = nullptr;
  const float* reference = nullptr;
  float learning_rate = 0.0f;
  float beta1 = 0.9f;
  float beta2 = 0.99f;
  float epsilon = 1e-8f;
  int step = 1;  // from 1; corrects the moments' bias
  float gradient_scale = 1.0f;
  float min_value = -3.4e38f;  // values are clamped afterwards
  float max_value = 3.4e38f;
};

// Sums over rows.
struct LossSums {
  double kl = 0.0;         // nats
  double same_top = 0.0;   // rows in which both have the same most likely token
  double gradient_sq = 0;  // of whatever SumSquares was asked for
};

// Thread rule: one caller at a time.
class Ops {
 public:
  virtual ~Ops() = default;

  virtual const std::string& device() const = 0;  // "cpu: 2 threads", "cuda:0 NVIDIA H200"

  // Aligned to 256 bytes. RESOURCE_EXHAUSTED names the bytes asked for and what is free.
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

  virtual void SumSquares(const float* x, int64_t count, LossSums* sums) = 0;  // adds
  virtual void Adam(const AdamArgs& args) = 0;
};

}  // namespace fewbit::tune
