// Random bits straight into device memory, for weights that never were on a host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/quant_layout.h"

namespace fewbit::bench {

// Any bits are codes, sub-scales and zeros.
cudaError_t FillBits(void* to, size_t bytes, uint64_t seed);

// The fp16 scale d of every (row, tile) of a packed matrix in device form: the weights' root mean
// square becomes about `rms`.
cudaError_t FillSecondOrder(const quant::PackedShape& shape, uint8_t* tiles, float rms,
                            uint64_t seed);

// Entries of outlier lists start[0 .. lists] (device memory): ascending positions within
// [first[i % segments], last[i % segments]) and values of a few times `rms`.
struct OutlierRanges {
  int segments = 0;
  int first[8] = {}, last[8] = {};
};
cudaError_t FillOutliers(const uint32_t* start, size_t lists, const OutlierRanges& ranges,
                         float rms, uint32_t* entries, uint64_t seed);

// The same number of entries in the form of cuda::HalfOutlier, anywhere in their tile.
cudaError_t FillTileOutliers(size_t count, float rms, uint32_t* entries, uint64_t seed);

// fp16 numbers, uniform with root mean square `rms`.
cudaError_t FillHalves(void* to, size_t count, float rms, uint64_t seed);
cudaError_t FillFloats(float* to, size_t count, float value);

}  // namespace fewbit::bench
