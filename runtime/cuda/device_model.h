// A model's weights in device memory. PlaceModel decides where everything lies, from shapes alone;
// whoever fills it (upload.h from a Model, fewbit-bench with random bits) writes there.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/linear.h"
#include "runtime/cuda/device_memory.h"
#include "runtime/cuda/memory_plan.h"
#include "runtime/models/model.h"

namespace fewbit {

// What one matrix takes on the device.
struct MatrixPlan {
  bool packed = false;
  quant::PackedShape shape;                        // packed
  int64_t outliers = 0;                            // packed: entries
  bool tile_outliers = false;                      // packed: once more, by tile
  cuda::WeightType type = cuda::WeightType::kF16;  // else
  int32_t rows = 0;
  int32_t cols = 0;
};

struct ModelPlan {
  ModelSpec spec;
  MatrixPlan embedding, head;
  bool share_head = false;  // the head is the embedding's memory
  std::vector<std::array<MatrixPlan, kNumLinearRoles>> layers;
};

// A matrix with its place. Only the pointers of its kind are set.
struct PlacedMatrix {
  MatrixPlan plan;
  uint8_t* tiles = nullptr;
  uint16_t* strip_order = nullptr;
  uint32_t* outlier_start = nullptr;
  uint32_t* outliers = nullptr;
  uint32_t* tile_outlier_start = nullptr;
  uint32_t* tile_outliers = nullptr;
  uint8_t* data = nullptr;  // dense
  float* scales = nullptr;  // dense, kI8

  cuda::DeviceMatrix packed() const {
    return {plan.shape,         tiles,        strip_order, outlier_start, outliers,
            tile_outlier_start, tile_outliers};
  }
  cuda::DeviceDense dense() const { return {data, scales, plan.type, plan.rows, plan.cols}; }
};

// Norms and biases are floats; null where the model has none.
struct DeviceLayer {
  PlacedMatrix linears[kNumLinearRoles];
  float *input_norm = nullptr, *post_attention_norm = nullptr;    // [E]
  float *q_norm = nullptr, *k_norm = nullptr;                     // [D]
  float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;  // [H*D], [K*D], [K*D]

  const PlacedMatrix& operator[](LinearRole role) const { return linears[static_cast<int>(role)]; }
};

// Thread rule: immutable once filled.
struct DeviceModel {
  ModelSpec spec;
  PlacedMatrix embedding, head;
  float* final_norm = nullptr;    // [E]
  double* frequencies = nullptr;  // [rotary_dim / 2] of RopeFrequencies()
  std::vector<DeviceLayer> layers;
  DeviceMemory memory;
  int64_t bytes = 0;  // of `memory` that is in use
};

// Sets every pointer of `model`, or only counts if `carver` has no base.
void PlaceModel(const ModelPlan& plan, Carver* carver, DeviceModel* model);

int64_t ModelBytes(const ModelPlan& plan);

// Allocates and places; nothing is written but the rope frequencies. RESOURCE_EXHAUSTED if there is
// no room.
absl::StatusOr<std::unique_ptr<DeviceModel>> AllocateModel(const ModelPlan& plan);

}  // namespace fewbit
