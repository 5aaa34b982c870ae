// Whole models of published shapes with random packed weights, made on the device: what speed and
// memory are measured on without a download.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/cuda/device_model.h"
#include "tests/bench/cuda/random_layers.h"

namespace fewbit::bench {

// Empty if there is no such name; KnownModels() lists them all.
std::optional<ModelSpec> FindModel(const std::string& name);
std::string KnownModels();

// Linear layers packed as `mix` says, embedding at 8 bits, the head at 16, 8 or 4.
absl::StatusOr<std::unique_ptr<DeviceModel>> MakeRandomModel(const ModelSpec& spec,
                                                             const WeightMix& mix,
                                                             int lm_head_bits);

}  // namespace fewbit::bench
