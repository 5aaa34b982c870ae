// The inner loops of the quantizer. Sixteen rows run side by side, one per lane, so that no sum
// ever crosses lanes: every instance gives the same bits on every processor, and GCC vectorizes the
// loops without relaxed arithmetic.
#pragma once

#include "kernels/cpu/linear.h"

namespace fewbit {

inline constexpr int kLanes = 16;  // rows of a block
inline constexpr int kGroup = 16;  // channels of a strip

// Arrays are [..][16 lanes] floats. `w` and `h` are [16 channels][16 lanes]; h is the Hessian
// diagonal, 0 for an outlier.
struct LaneKernels {
  // errors[c][l] = sum over k of h (w - Q(w))^2 with symmetric levels of step scales[c][l]:
  // Q(w) = the nearest of {+-1/2, +-3/2, ...} * step, 2^bits levels. Step 0 stands for Q = 0.
  void (*symmetric_errors)(int bits, const float* w, const float* h, const float* scales,
                           int candidates, float* errors);

  // gains[k][l]: by how much the error of the group falls, at its best of the candidate steps each
  // time, when channel k is taken out. 2-bit levels. `candidates` <= 16.
  void (*symmetric_gains)(const float* w, const float* h, const float* scales, int candidates,
                          float* gains);

  // w[k][l] -= e[l] * u[k] for `channels` channels: one step of error feedback.
  void (*subtract_outer)(float* w, const float* e, const float* u, int channels);

  // The same for `count` channels in one pass: for i < count in ascending order, w[k][l] -=
  // e[i][l] * u[i][k].
  void (*subtract_outers)(float* w, const float* e, const float* const* u, int count, int channels);

  // sums[j] += x[i * stride + j]^2 for j < cols, for `tokens` rows i in ascending order.
  void (*add_squares)(const float* x, int tokens, int cols, int stride, double* sums);
};

const LaneKernels& LaneKernelsFor(cpu::Isa isa);

}  // namespace fewbit
