#include <algorithm>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/wide_instances.h"

namespace fewbit::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

}  // namespace

bool SelectWide(const Desc& desc, const DeviceProps& device, const Tuning& tuning, WidePlan* plan) {
  if (device.wide_clusters == 0 || tuning.use_cp_async) return false;
  if (desc.m > kMaxWideTokens && desc.x_type != DType::kF32) return false;
  const int forms = static_cast<int>(kWideForms.size());
  plan->form = 0;
  while (plan->form + 1 < forms && kWideForms[plan->form].tokens < desc.m) ++plan->form;
  const WideForm& form = kWideForms[plan->form];
  if (WideLayout(form, desc.shapes[0].zero_points).total > device.shared_per_block) return false;
  plan->groups = CeilDiv(desc.m, form.tokens);
  int row_tiles = 0;
  for (int p = 0; p < desc.count; ++p) {
    row_tiles += CeilDiv(desc.shapes[p].row_blocks(), kWideRowBlocks);
  }
  const int units = row_tiles * plan->groups;
  const int resident = tuning.blocks_per_multiprocessor > 0
                           ? std::min(tuning.blocks_per_multiprocessor, form.residency)
                           : form.residency;
  plan->clusters = std::min(units, device.wide_clusters * resident);
  plan->early_start = !tuning.no_early_start;
  return true;
}

}  // namespace fewbit::cuda
