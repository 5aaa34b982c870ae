// A linear layer's matrix quantized in floating point, in ways that fewbit has no format for. Bits
// are reckoned. For quality_simulate.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "runtime/products/team_products.h"
#include "runtime/quantize/hessian.h"

namespace fewbit {

enum class Zero { kNone, kMinMax, kSearched };  // symmetric levels, or a stored zero
enum class Order { kNearest, kNatural, kSensitiveFirst, kWideLast };  // of error feedback

struct Scheme {
  const char* name = "";
  int levels = 4;          // of a code
  bool two_widths = true;  // --share4 of the groups have 16 levels
  int group = 16;          // channels that share a scale
  Zero zero = Zero::kNone;
  Order order = Order::kNearest;
  bool along_rows = false;           // second-order scale over 16 rows of a group, not along K
  bool outliers_everywhere = false;  // not only in groups with `levels` levels
};

struct SimulationSettings {
  double share4 = 0.25;     // of the groups, for schemes with two widths
  double outliers = 0.0;    // of the weights
  float correction = 0.0f;  // as QuantizeMethod's; only with error feedback
};

struct SimulatedMatrix {
  std::vector<float> values;  // [rows, cols] what the codes stand for
  double bits = 0.0;          // of the whole matrix
};

// `weights` [rows, cols]. INVALID_ARGUMENT: cols is no multiple of the scheme's groups. Uses
// `hessian` as QuantizeMatrix does.
absl::StatusOr<SimulatedMatrix> SimulateMatrix(const Scheme& scheme,
                                               const std::vector<float>& weights, int rows,
                                               int cols, Hessian* hessian,
                                               const SimulationSettings& settings,
                                               TeamProducts* products);

}  // namespace fewbit
