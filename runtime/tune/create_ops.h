// From a --device text to the operators of that device. The only place that knows both.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

// `device` as in ResolveDevice of runtime/device.h: "auto", "cpu", "cuda", "cuda:N". `threads` is
// for the CPU; 0: one per processor; its products are of bfloat16 numbers where
// HasBFloat16Products(). On a GPU products that are large in all dimensions are of bfloat16
// numbers. Errors: those of ResolveDevice and of CreateCudaOps.
absl::StatusOr<std::unique_ptr<Ops>> CreateOps(std::string_view device, int threads);

}  // namespace fewbit::tune
