// Random weights for the GPU benches: valid packed matrices in device form, several copies of every
// matrix so that a replay never finds its weights in the L2 cache.
#pragma once

#include <vector>

#include "kernels/cuda/device_buffer.h"
#include "kernels/cuda/linear.h"

namespace fewbit::bench {

struct WeightMix {
  double share4 = 0.25;          // strips with 4 bits
  double outlier_share = 0.002;  // of the weights in 2-bit strips
  bool zero_points = false;
};

class RandomMatrix {
 public:
  RandomMatrix(int rows, int cols, const WeightMix& mix, int copies, uint64_t seed);

  cuda::DeviceMatrix copy(int i) const;
  const quant::PackedShape& shape() const { return shape_; }
  int copies() const { return copies_; }
  size_t bytes() const;  // of one copy: tiles, strip order and outliers

 private:
  quant::PackedShape shape_;
  int copies_;
  cuda::DeviceBuffer<uint8_t> tiles_;
  cuda::DeviceBuffer<uint16_t> strip_order_;
  cuda::DeviceBuffer<uint32_t> outlier_start_, outliers_;
  size_t outlier_count_ = 0, start_count_ = 0;
};

}  // namespace fewbit::bench
