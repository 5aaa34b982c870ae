#include <algorithm>

#include "kernels/cuda/cluster_instances.h"
#include "kernels/cuda/half_instances.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/wide_instances.h"

namespace fewbit::cuda {
namespace {

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

}  // namespace

size_t ExchangeBytes(const DeviceProps& device) {
  size_t bytes = 0;
  for (const WideForm& form : kWideForms) {
    bytes = std::max(bytes, WideExchangeBytes(form, device.wide_teams * form.residency));
  }
  return std::max(bytes, HalfExchangeBytes(device.half_clusters));
}

bool SelectWide(const Desc& desc, const DeviceProps& device, const Tuning& tuning, WidePlan* plan) {
  if (device.wide_teams == 0 || tuning.use_cp_async) return false;
  if (desc.m > kMaxWideTokens && desc.x_type != DType::kF32) return false;
  const bool zero_points = desc.shapes[0].zero_points;
  int row_tiles = 0, resident = 0, shared = 0;
  for (int p = 0; p < desc.count; ++p) {
    row_tiles += CeilDiv(desc.shapes[p].row_blocks(), kWideRowBlocks);
  }
  const auto take = [&](const auto& forms, const auto& layout) {
    const int last = static_cast<int>(forms.size()) - 1;
    plan->form = 0;
    while (plan->form < last && forms[plan->form].tokens < desc.m) ++plan->form;
    plan->tokens = forms[plan->form].tokens;
    resident = forms[plan->form].residency;
    shared = layout(forms[plan->form], zero_points).total;
  };
  plan->clustered = desc.m <= kClusteredForms.back().tokens;
  if (plan->clustered) {
    take(kClusteredForms, ClusteredLayout);
  } else {
    take(kWideForms, WideLayout);
  }
  if (shared > device.shared_per_block) return false;
  if (tuning.blocks_per_multiprocessor > 0) {
    resident = std::min(tuning.blocks_per_multiprocessor, resident);
  }
  plan->groups = CeilDiv(desc.m, plan->tokens);
  const int teams = plan->clustered ? device.wide_clusters : device.wide_teams;
  plan->teams = std::min(row_tiles * plan->groups, teams * resident);
  plan->makers = std::min(plan->teams, teams);
  plan->early_start = !tuning.no_early_start;
  return true;
}

}  // namespace fewbit::cuda
