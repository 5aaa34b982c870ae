// From the files of a checkpoint to device memory: every byte is read once, by several threads into
// pinned memory, and what the device wants in another form is rewritten there.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/cuda/device_model.h"
#include "runtime/models/model.h"

namespace fewbit {

// What `model` becomes on the device: packed matrices and 8-bit ones keep their kind; 16-bit ones
// become f16, float ones stay. lm_head_bits: 8 or 4 rounds a head that has more, 16 and 0 keep it.
// What only some kernels read is there where `device` has them. INVALID_ARGUMENT: lm_head_bits is
// something else.
absl::StatusOr<ModelPlan> PlanModel(const Model& model, int lm_head_bits,
                                    const cuda::DeviceProps& device);

// Allocates and fills. `model` may go once this returns. RESOURCE_EXHAUSTED: no memory, on the
// device or pinned; UNIMPLEMENTED: 16-bit weights that f16 cannot hold; INTERNAL: a copy failed.
absl::StatusOr<std::unique_ptr<DeviceModel>> UploadModel(const Model& model, const ModelPlan& plan);

}  // namespace fewbit
