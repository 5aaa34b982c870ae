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
  size_t bytes() const;  // of one copy, as one kernel reads it: tiles, strip order and outliers

 private:
  quant::PackedShape shape_;
  int copies_;
  cuda::DeviceBuffer<uint8_t> tiles_;
  cuda::DeviceBuffer<uint16_t> strip_order_;
  // Outlier lists of all copies, each `start_count` and `count` words.
  struct Lists {
    cuda::DeviceBuffer<uint32_t> start, entries;
    size_t start_count = 0, count = 0;

    Lists() = default;
    Lists(const cuda::OutlierLists& one, int copies);
    const uint32_t* Start(int i) const;
    const uint32_t* Entries(int i) const;
    size_t bytes() const { return 4 * (start_count + count); }
  };
  Lists by_row_, by_tile_;
};

}  // namespace fewbit::bench
