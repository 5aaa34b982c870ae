#include "runtime/cuda/memory_plan.h"

#include <algorithm>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fewbit {
namespace {

std::string NeedOf(const MemoryRequest& r) {
  return absl::StrCat("one sequence needs ", r.blocks_per_sequence, " blocks of ", r.block,
                      " bytes = ", r.blocks_per_sequence * r.block, " bytes");
}

}  // namespace

absl::StatusOr<int32_t> PlanKvBlocks(const MemoryRequest& r) {
  const int64_t wanted = int64_t{r.blocks_per_sequence} * r.max_sequences;
  const bool fixed = r.num_blocks > 0 || r.kv > 0;
  const int64_t asked = r.num_blocks > 0 ? r.num_blocks : std::min(r.kv / r.block, wanted);
  if (fixed && asked < r.blocks_per_sequence) {
    return absl::InvalidArgumentError(
        r.num_blocks > 0
            ? absl::StrCat("num_blocks is ", r.num_blocks, ": too few, ", NeedOf(r))
            : absl::StrCat("a KV cache of ", r.kv, " bytes is too small: ", NeedOf(r)));
  }
  // What is asked for may take all but the driver's share; what is left to us keeps to the share.
  const int64_t taken = r.total - r.free;
  const int64_t share = static_cast<int64_t>(r.utilization * static_cast<double>(r.total)) - taken;
  const int64_t budget = std::min(fixed ? r.free : share, r.free - kDriverReserveBytes);
  const int64_t left = budget - r.weights - r.buffers;
  const int64_t least = fixed ? asked : r.blocks_per_sequence;
  if (left < least * r.block) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the GPU's memory is too small: weights ", r.weights, ", buffers ", r.buffers,
        " and a KV cache of ", least, " blocks of ", r.block, " = ", least * r.block,
        " bytes make ", r.weights + r.buffers + least * r.block, " bytes, and of ", r.total,
        " bytes ", std::max<int64_t>(budget, 0), " may be used (", r.free, " are free, ",
        fixed ? absl::StrCat(kDriverReserveBytes, " are kept for the driver")
              : absl::StrCat("memory_utilization is ", r.utilization),
        ")"));
  }
  const int64_t blocks = fixed ? asked : std::min(left / r.block, wanted);
  return static_cast<int32_t>(std::min<int64_t>(blocks, INT32_MAX));
}

std::vector<int32_t> MemorySampleCounts(int32_t most) {
  constexpr int32_t kStep = 128;
  std::vector<int32_t> counts;
  for (int32_t m = 1; m < most; m += m < kStep - 1 ? 1 : kStep) counts.push_back(m);
  counts.push_back(most);
  return counts;
}

}  // namespace fewbit
