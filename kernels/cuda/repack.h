// Tiles of the file (quant_layout.h) into tiles of the device (device_tile.h), once per matrix at
// load. Same sizes and offsets; strip order, outliers and d stay as they are.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/quant_layout.h"

namespace fewbit::cuda {

// from, to: device memory, shape.total_bytes() each, not overlapping, 16-byte aligned.
cudaError_t Repack(const quant::PackedShape& shape, const uint8_t* from, uint8_t* to,
                   cudaStream_t stream);

}  // namespace fewbit::cuda
