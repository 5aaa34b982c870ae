#include <algorithm>

#include "kernels/cuda/half_instances.h"
#include "kernels/cuda/linear.h"
#include "kernels/quant_pack.h"

namespace fewbit::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// A cluster with fewer would spend more time on exchanging sums than on products.
constexpr int64_t kLeastPairs = 4;
// The device counts clusters times pairs in 32 bits.
constexpr int64_t kMostProduct = int64_t{1} << 31;

// Time goes by whole groups, that of the way through scratch memory and cuBLAS by tokens: two
// groups are always faster, three and four if the last one is at least half full.
bool FasterThanScratch(int m) {
  constexpr int kGroup = kHalfForms.back().tokens;
  return m <= 2 * kGroup || (m <= kMostHalfTokens && (m - 1) % kGroup + 1 >= kGroup / 2);
}

}  // namespace

OutlierLists RepackOutliersByTile(const quant::PackedMatrix& m) {
  OutlierLists out;
  const size_t lists = m.shape.num_outlier_lists();
  if (m.outlier_start == nullptr || m.outlier_start[lists] == 0) return out;
  out.start.assign(m.outlier_start, m.outlier_start + lists + 1);
  out.entries.assign(TileOutlierEntries(out.start[lists]), HalfOutlier::kNone);
  for (size_t list = 0; list < lists; ++list) {
    for (uint32_t i = out.start[list]; i < out.start[list + 1]; ++i) {
      const uint32_t entry = HalfOutlier::From(m.outliers[i]);
      out.entries[i] = entry;
      if (i == out.start[list] || (entry ^ out.entries[i - 1]) % HalfOutlier::kTileBytes != 0)
        continue;
      const float sum = quant::HalfToFloat(static_cast<uint16_t>(entry >> 16)) +
                        quant::HalfToFloat(static_cast<uint16_t>(out.entries[i - 1] >> 16));
      out.entries[i] = (entry & 0xFFFF) | uint32_t{quant::FloatToHalf(sum)} << 16;
      out.entries[i - 1] = HalfOutlier::kNone;
    }
  }
  return out;
}

bool SelectHalf(const Desc& desc, const DeviceProps& device, const Tuning& tuning, HalfPlan* plan) {
  if (device.half_clusters == 0 || tuning.use_cp_async) return false;
  if (desc.m < kLeastHalfTokens || !FasterThanScratch(desc.m) || desc.x_type != DType::kF16)
    return false;
  const bool zero_points = desc.shapes[0].zero_points;
  // Two groups of 128 tokens take longer than one of 256.
  plan->form = desc.m <= kHalfForms[0].tokens ? 0 : 1;
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
