// From the files of a checkpoint to device memory: every byte is read once, by several threads into
// pinned memory, and what the device wants in another form is rewritten there.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/cuda/device_model.h"
#include "runtime/models/model.h"

namespace fewbit {

// What `model` becomes on the device: packed matrices and 8-bit ones keep their kind; 16-bit ones
// become f16 (kF32 stays). lm_head_bits: 16 or 8 rounds an unpacked head, 0 keeps it.
// INVALID_ARGUMENT: lm_head_bits is something else.
absl::StatusOr<ModelPlan> PlanModel(const Model& model, int lm_head_bits);

// Allocates and fills. `model` may go once this returns. RESOURCE_EXHAUSTED: no memory, on the
// device or pinned; INTERNAL: a copy failed.
absl::StatusOr<std::unique_ptr<DeviceModel>> UploadModel(const Model& model, const ModelPlan& plan);

}  // namespace fewbit
