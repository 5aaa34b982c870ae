// Room on the device for the seven matrices of one layer as float32: teacher and student take
// turns.
#pragma once

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "runtime/models/model.h"
#include "runtime/tune/device_array.h"
#include "runtime/tune/ops.h"

namespace fewbit::tune {

class WeightScratch {
 public:
  // RESOURCE_EXHAUSTED as Ops::Allocate.
  static absl::StatusOr<WeightScratch> Create(const ModelSpec& spec, Ops* ops) {
    WeightScratch scratch;
    int64_t count = 0;
    for (int r = 0; r < kNumLinearRoles; ++r) {
      const LinearShape shape = ShapeOf(spec, static_cast<LinearRole>(r));
      scratch.offsets_[r] = count;
      count += (int64_t{shape.rows} * shape.cols + 63) / 64 * 64;
    }
    absl::StatusOr<DeviceArray<float>> memory = DeviceArray<float>::Create(ops, count);
    if (!memory.ok()) return memory.status();
    scratch.memory_ = *std::move(memory);
    return scratch;
  }

  float* operator[](int role) const { return memory_.data() + offsets_[role]; }

 private:
  DeviceArray<float> memory_;
  int64_t offsets_[kNumLinearRoles] = {};
};

}  // namespace fewbit::tune
