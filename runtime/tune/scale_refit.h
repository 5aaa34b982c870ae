// Free scales put on the grid of the file: for each row and tile the second-order scale and whole
// sub-scales that come nearest.
#pragma once

#include <span>

#include "runtime/tune/tuned_layer.h"

namespace fewbit::tune {

// Replaces sub-scales and second-order scales of every linear layer in `values`, where their
// products are what counts, by whole numbers 0 to 15 and fp16 values with the least sum of squared
// differences of the weights. `layer` gives levels and tiles.
void RefitScales(const TunedLayer& layer, std::span<float> values);

}  // namespace fewbit::tune
