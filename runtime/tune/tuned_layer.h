// What tuning has of one decoder layer: floats that it changes (scales, outlier corrections, norms)
// and bytes that it only reads (levels, places, biases), each in one run of memory so that a layer
// travels between host and device in a few copies. The final norm is a layer of its own, without
// linear layers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/models/model.h"
#include "runtime/tune/layer_tape.h"
#include "runtime/tune/model_source.h"
#include "runtime/tune/ops.h"
#include "runtime/weights/quantized_writer.h"

namespace fewbit::tune {

// What has a learning rate of its own.
enum class TunedKind : uint8_t { kSubScales, kSecondOrder, kOutliers, kNorms };
inline constexpr int kNumTunedKinds = 4;
const char* TunedKindName(TunedKind kind);  // "sub-scales", ...

struct TunedArray {
  TunedKind kind = TunedKind::kNorms;
  int64_t offset = 0;  // floats
  int64_t count = 0;
};

// Offsets of everything in a layer; arrays begin at multiples of 256 bytes.
struct TunedLayout {
  struct Linear {
    int rows = 0, cols = 0, tiles = 0, num_outliers = 0;
    int64_t levels = 0, tile_of_strip = 0, outlier_at = 0;   // bytes
    int64_t sub_scales = 0, second_order = 0, outliers = 0;  // floats
  };
  Linear linears[kNumLinearRoles];                             // rows 0: none
  TunedArray input_norm, post_attention_norm, q_norm, k_norm;  // count 0: none
  int64_t q_bias = -1, k_bias = -1, v_bias = -1;               // bytes; -1: none
  std::vector<TunedArray> arrays;                              // all that is tuned
  int64_t fixed_bytes = 0;
  int64_t num_values = 0;  // floats, gaps included
};

struct TunedLayer {
  TunedLayout layout;
  std::vector<uint8_t> fixed;     // [fixed_bytes]
  std::vector<float> values;      // [num_values]; gaps are 0
  std::vector<float> references;  // [num_values] what a relative step of 1 means
};

// REQUIRES: 0 <= layer < L of a quantized model. INVALID_ARGUMENT: a matrix of more than 2^31
// weights, and what source.layer says.
absl::StatusOr<TunedLayer> ReadTunedLayer(const ModelSource& source, int layer);
// The final norm.
TunedLayer TunedEnd(const ModelSource& source);

// A linear layer of a tuned layer where it lies on a device, its scales as the file would have
// them.
ScaledMatrix ScaledMatrixAt(const TunedLayout::Linear& linear, const uint8_t* fixed,
                            const float* values);

// `values` as a layer of the output, everything else as in `source`. layer -1: the final norm;
// `linears` is then left alone.
absl::Status ToQuantizedLayer(const ModelSource& source, int layer, const TunedLayout& layout,
                              std::span<const float> values, QuantizedLayer* linears,
                              ReplacedVectors* norms);

}  // namespace fewbit::tune
