#include "runtime/tune/create_ops.h"

#include <string>

#include "absl/strings/numbers.h"
#include "runtime/cuda/tune_ops.h"
#include "runtime/device.h"
#include "runtime/tune/cpu_ops.h"

namespace fewbit::tune {

absl::StatusOr<std::unique_ptr<Ops>> CreateOps(std::string_view device, int threads) {
  const absl::StatusOr<std::string> resolved = ResolveDevice(device);
  if (!resolved.ok()) return resolved.status();
  const size_t colon = resolved->find(':');
  int index = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(resolved->substr(colon + 1), &index)) {
    return CreateCpuOps(threads, cpu::BestIsa(),
                        HasBFloat16Products() ? TileType::kBFloat16 : TileType::kFloat32);
  }
  return CreateCudaOps(index, DType::kBF16);
}

}  // namespace fewbit::tune
