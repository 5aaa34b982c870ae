// What the operators of tuning (runtime/tune/ops.h) take beside plain pointers; shared by the
// operators' implementations and their kernels. All arrays are in the memory of one device.
#pragma once

#include <cstdint>

namespace fewbit::tune {

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
  int step = 1;                // from 1; corrects the moments' bias
  float min_value = -3.4e38f;  // values are clamped afterwards
  float max_value = 3.4e38f;
};

// Sums over rows.
struct LossSums {
  double kl = 0.0;        // nats
  double same_top = 0.0;  // rows in which both have the same most likely token
};

}  // namespace fewbit::tune
