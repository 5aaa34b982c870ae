// The operators of tuning on the CPU: those of a decoder layer with what backward needs of them,
// their gradients, the loss, scaled weights and Adam. Each is written once for float and double:
// float is what runs, double is what central differences check.
//
// The float loops give the same bits for every Isa: sums run in 16 fixed lanes (in double where
// they decide something), and nothing is contracted. NaN in gives NaN out. No alignment is
// required. "Adds to" means that the old content counts.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear.h"

namespace fewbit::cpu {

// KL(teacher || student) of one row in nats, and whether both have the same most likely token, the
// lowest index of equals.
struct RowDivergence {
  double kl = 0.0;
  bool same_top = false;
};

// One row of a ScaledMatrix of kernels/tune_args.h, taken apart; d already rounded where it is to
// be.
template <typename T>
struct ScaledRow {
  int cols = 0;                            // a multiple of 16
  const int8_t* levels = nullptr;          // [cols]
  const int32_t* tile_of_strip = nullptr;  // [cols / 16]
  const T* sub_scales = nullptr;           // [cols / 16]
  const T* second_order = nullptr;         // d [tiles]
  bool rounded = true;                     // sub-scales count as clamped to 0 .. 15 and rounded
};

template <typename T>
struct AdamConstants {
  T learning_rate, beta1, beta2, epsilon;
  T first_correction, second_correction;  // 1 / (1 - beta^step)
  T min_value, max_value;
};

template <typename T>
struct GradientTable {
  void (*add)(const T* x, int64_t count, T* y);  // y += x
  // y = bfloat16 nearest to factor * x, halves to even; NaN stays NaN.
  void (*to_bfloat16)(const T* x, T factor, int64_t count, uint16_t* y);

  // y [rows, cols] = x / sqrt(mean(x^2) + eps) * weight; inverse_rms [rows].
  void (*rms_norm)(const T* x, const T* weight, T eps, int rows, int cols, T* y, T* inverse_rms);
  // dx: replaced, or with `add` added to; may be dy when it is not added to. d_weight [cols] is
  // added to, unless null.
  void (*rms_norm_backward)(const T* x, const T* weight, const T* inverse_rms, const T* dy,
                            int rows, int cols, bool add, T* dx, T* d_weight);

  // One token's heads x [heads, head_dim], in place, by cosines and sines [pairs]; `inverse` turns
  // back.
  void (*rope)(const T* cosines, const T* sines, int heads, int head_dim, int pairs,
               bool interleaved, bool inverse, T* x);

  // Softmax over [begin, end) of a row [cols], in place; the others become 0.
  void (*softmax)(int begin, int end, int cols, T* row);
  // d_row [cols]: gradient of the probabilities -> of the scores; 0 outside of [begin, end).
  void (*softmax_backward)(int begin, int end, int cols, const T* probabilities, T* d_row);

  void (*silu_mul)(const T* gate, const T* up, int64_t count, T* y);  // y = silu(gate) * up
  // Replaces gate and up by their gradients.
  void (*silu_mul_backward)(const T* dy, int64_t count, T* gate, T* up);

  // Replaces `student` [vocab] by the gradient of scale * KL when `gradient`, else leaves it.
  RowDivergence (*divergence)(const T* teacher, int vocab, T scale, bool gradient, T* student);

  // weights [cols] = level * s * d / 2, without outliers.
  void (*scaled_weights)(const ScaledRow<T>& row, T* weights);
  // Adds to d_sub_scales [cols / 16] and d_second_order [tiles]. Rounding passes gradients on, but
  // for sub-scales at or beyond 0 or 15 that a step against the gradient would take further out.
  void (*scaled_gradients)(const ScaledRow<T>& row, const T* d_weights, T* d_sub_scales,
                           T* d_second_order);

  // g = gradient * reference; the moments follow; value -= learning_rate *
  // reference * m^ / (sqrt(v^) + epsilon), then clamped. `reference` null: 1.
  void (*adam)(const AdamConstants<T>& c, int64_t count, const T* gradients, const T* reference,
               T* values, T* first_moments, T* second_moments);
};

const GradientTable<float>& FloatGradients(Isa isa);
const GradientTable<double>& DoubleGradients();

// The instances, each in a file of its own that is compiled for that set.
extern const GradientTable<float> kPortableGradients;
extern const GradientTable<double> kPortableDoubleGradients;
#if defined(__x86_64__)
extern const GradientTable<float> kAvx2Gradients;
extern const GradientTable<float> kAvx512Gradients;
#endif

}  // namespace fewbit::cpu
