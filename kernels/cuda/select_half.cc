#include <algorithm>

#include "kernels/cuda/half_instances.h"
#include "kernels/cuda/linear.h"

namespace fewbit::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// A cluster with fewer would spend more time on exchanging sums than on products.
constexpr int64_t kLeastPairs = 4;
// The device counts clusters times pairs in 32 bits.
constexpr int64_t kMostProduct = int64_t{1} << 31;

}  // namespace

bool SelectHalf(const Desc& desc, const DeviceProps& device, const Tuning& tuning, HalfPlan* plan) {
  if (device.half_clusters == 0 || tuning.use_cp_async) return false;
  if (desc.m < kLeastHalfTokens || desc.m > kMostHalfTokens || desc.x_type != DType::kF16)
    return false;
  const bool zero_points = desc.shapes[0].zero_points;
  const int last = static_cast<int>(kHalfForms.size()) - 1;
  plan->form = 0;
  while (plan->form < last && kHalfForms[plan->form].tokens < desc.m) ++plan->form;
  const HalfForm& form = kHalfForms[plan->form];
  if (HalfLayout(form, zero_points).total > device.shared_per_block) return false;
  plan->tokens = form.tokens;
  plan->groups = CeilDiv(desc.m, form.tokens);
  int64_t pairs = 0, units = 0;
  for (int p = 0; p < desc.count; ++p) {
    const quant::PackedShape& s = desc.shapes[p];
    const int64_t of_part = int64_t{1} * CeilDiv(s.rows, kHalfUnitRows) * plan->groups;
    units += of_part;
    pairs += of_part * HalfPairs(s);
  }
  int64_t clusters = std::clamp<int64_t>(pairs / kLeastPairs, 1, device.half_clusters);
  // A few clusters less, if then every unit is cut alike: fewer sums to exchange.
  const int64_t even = clusters / units * units;
  if (10 * even >= 9 * clusters) clusters = even;
  plan->clusters = static_cast<int>(clusters);
  plan->early_start = !tuning.no_early_start;
  return pairs * (plan->clusters + 1) < kMostProduct;
}

}  // namespace fewbit::cuda
