// The quantized checkpoint on the device, with the gradients and moments of everything that is
// tuned. A layer's weights exist as float32 only while that layer runs.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/models/model.h"
#include "runtime/tune/device_array.h"
#include "runtime/tune/layer_tape.h"
#include "runtime/tune/model_source.h"
#include "runtime/tune/ops.h"
#include "runtime/tune/tuned_layer.h"
#include "runtime/tune/weight_scratch.h"

namespace fewbit::tune {

// Learning rates of one step.
struct StepRates {
  double of[kNumTunedKinds] = {};
  int step = 1;  // from 1
};

// What a checkpoint of a run keeps of one layer.
struct LayerState {
  std::vector<float> values, first_moments, second_moments;
};

// Layers 0 .. L - 1, and layer L: the final norm. Thread rule: one caller at a time.
class Student {
 public:
  // `ops` outlives the object. REQUIRES: `source` is quantized. `stream`: only one layer at a time
  // is on the device, the others are in host memory. RESOURCE_EXHAUSTED: no memory on the device;
  // codes of ReadTunedLayer.
  static absl::StatusOr<std::unique_ptr<Student>> Create(const ModelSource& source, Ops* ops,
                                                         bool stream);
  ~Student();

  int num_layers() const { return static_cast<int>(layouts_.size()); }  // the end included
  const TunedLayout& layout(int layer) const { return layouts_[layer]; }
  int64_t num_tuned(TunedKind kind) const;  // numbers, all layers

  // Fills `scratch`; the result is valid until another layer is asked for. REQUIRES: layer < L.
  LayerParams Materialize(int layer, const WeightScratch& scratch);
  HeadParams head();

  // Sets the layer's gradients to 0; then gradients are added up, and Update takes the step. In
  // between no other layer may be asked for.
  void BeginGradients(int layer);
  NormGradients norm_gradients(int layer);
  float* final_norm_gradient();
  void AddWeightGradient(int layer, LinearRole role, const float* d_weights);
  void Update(int layer, const StepRates& rates);

  // Waits for the device.
  std::vector<float> Values(int layer);
  LayerState State(int layer);
  // REQUIRES: sizes as the layout says.
  void SetValues(int layer, std::span<const float> values);
  void SetState(int layer, const LayerState& state);

 private:
  struct Slot;
  struct HostLayer;

  Student(Ops* ops, bool stream);
  absl::Status AddLayer(TunedLayer layer);
  absl::StatusOr<Slot> MakeSlot(int64_t fixed_bytes, int64_t values) const;
  absl::Status MakeSharedSlot();
  Slot& Bring(int layer);  // the slot with the layer in it
  bool shared(int layer) const { return stream_ && layer + 1 < num_layers(); }

  Ops* const ops_;
  const bool stream_;
  std::vector<TunedLayout> layouts_;  // [L + 1]
  std::vector<Slot> slots_;           // [L + 1]; where layers are streamed, empty but for the end
  std::vector<HostLayer> hosts_;      // [L] where layers are streamed
  std::unique_ptr<Slot> shared_;
  int in_shared_ = -1;
  DeviceArray<float> head_;
};

}  // namespace fewbit::tune
