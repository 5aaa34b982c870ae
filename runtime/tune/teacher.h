// The original checkpoint on the device: its layers as they are stored, widened to float32 one at a
// time, and its ends.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/models/model.h"
#include "runtime/tune/device_array.h"
#include "runtime/tune/layer_tape.h"
#include "runtime/tune/model_source.h"
#include "runtime/tune/ops.h"
#include "runtime/tune/weight_scratch.h"

namespace fewbit::tune {

inline constexpr int kNumLayerVectors = 7;  // norms and biases

// `matrix` [V, E], dense or 8-bit, as float32 on the device.
absl::StatusOr<DeviceArray<float>> UploadFloats(const Matrix& matrix, Ops* ops);

// Thread rule: one caller at a time.
class Teacher {
 public:
  // `ops` outlives the object. `stream`: only one layer at a time is on the device.
  // RESOURCE_EXHAUSTED: no memory there; INVALID_ARGUMENT: a matrix that is not dense; codes of
  // source.layer.
  static absl::StatusOr<std::unique_ptr<Teacher>> Create(const ModelSource& source, Ops* ops,
                                                         bool stream);

  // Fills `scratch`; the result is valid until the next call.
  LayerParams Materialize(int layer, const WeightScratch& scratch);

  HeadParams head() const { return {final_norm_.data(), head_.data()}; }

 private:
  // Where a layer's parts lie among its bytes.
  struct Part {
    DenseMatrix matrix;  // of the file
    int64_t offset = 0;
    int64_t bytes = 0;
  };
  struct Layer {
    Part linears[kNumLinearRoles];
    std::vector<float> vectors;  // norms and biases one after the other, each from a multiple of 64
    int64_t offsets[kNumLayerVectors] = {};  // into `vectors`; -1: none
    int64_t bytes = 0;                       // of the linears
  };
  struct Slot {
    DeviceArray<uint8_t> linears;
    DeviceArray<float> vectors;
  };

  Teacher(Ops* ops, bool stream) : ops_(ops), stream_(stream) {}
  static absl::StatusOr<Layer> Describe(const ModelSource& source, int layer);
  absl::StatusOr<Slot> MakeSlot(int64_t linear_bytes, size_t floats) const;
  void Fill(const Layer& layer, const Slot& slot) const;

  Ops* const ops_;
  const bool stream_;
  std::vector<Layer> layers_;
  std::vector<Slot> slots_;  // one per layer, or one for all
  DeviceArray<float> head_, final_norm_;
};

}  // namespace fewbit::tune
