#include <cuda_fp16.h>

#include "kernels/cuda/half_tile.h"
#include "tests/bench/cuda/random_fill.h"

namespace fewbit::bench {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2048;

// splitmix64: one well mixed word per counter.
__device__ uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
__device__ float Uniform(uint64_t x) { return static_cast<float>(Mix(x) >> 40) * 0x1p-24f; }

__device__ size_t First() { return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ size_t Stride() { return static_cast<size_t>(gridDim.x) * blockDim.x; }

__global__ void BitsKernel(uint32_t* to, size_t words, uint64_t seed) {
  for (size_t i = First(); i < words; i += Stride()) {
    to[i] = static_cast<uint32_t>(Mix(seed + i));
  }
}

// One block per row block, one thread per row.
__global__ void SecondOrderKernel(quant::PackedShape shape, uint8_t* tiles, float rms,
                                  uint64_t seed) {
  uint8_t* block = tiles + blockIdx.x * shape.row_block_bytes();
  for (int bits = 2; bits <= 4; bits += 2) {
    // Root mean square of (2q - c) / 2 and of a uniform 4-bit sub-scale.
    const float unit = (bits == 2 ? 1.118f : 4.610f) * 8.803f;
    for (int tile = 0; tile < shape.tiles(bits); ++tile) {
      const size_t bytes = quant::TileBytes(bits, shape.tile_chunks(bits, tile), shape.zero_points);
      auto* d = reinterpret_cast<__half*>(block + shape.tile_offset(bits, tile) + bytes -
                                          quant::kSecondOrderBytes);
      const float spread =
          0.5f + Uniform(seed +
                         (static_cast<uint64_t>(blockIdx.x) * 1024 + tile * 2 + bits / 4) *
                             quant::kBlockRows +
                         threadIdx.x);
      d[threadIdx.x] = __float2half_rn(quant::kStoredSecondOrderFactor * rms * spread / unit);
    }
  }
}

__device__ uint32_t OutlierValue(float rms, uint64_t seed) {
  const float value = rms * (8.0f * Uniform(seed) - 4.0f);
  return static_cast<uint32_t>(__half_as_ushort(__float2half_rn(value))) << 16;
}

__global__ void OutliersKernel(const uint32_t* start, size_t lists, OutlierRanges ranges, float rms,
                               uint32_t* entries, uint64_t seed) {
  for (size_t i = First(); i < lists; i += Stride()) {
    const uint32_t begin = start[i], count = start[i + 1] - begin;
    const int segment = static_cast<int>(i % ranges.segments);
    const float step =
        static_cast<float>(ranges.last[segment] - ranges.first[segment]) / max(count, 1u);
    for (uint32_t k = 0; k < count; ++k) {
      const uint32_t position =
          ranges.first[segment] +
          static_cast<uint32_t>((k + 0.99f * Uniform(seed + begin + k)) * step);
      entries[begin + k] = position | OutlierValue(rms, seed + (1ull << 40) + begin + k);
    }
  }
}

__global__ void TileOutliersKernel(size_t count, float rms, uint32_t* entries, uint64_t seed) {
  constexpr uint32_t kPlaces = cuda::HalfOutlier::kTileBytes - 2;  // of 2 bytes
  for (size_t i = First(); i < count; i += Stride()) {
    entries[i] = (static_cast<uint32_t>(Mix(seed + i)) & kPlaces) |
                 OutlierValue(rms, seed + (1ull << 40) + i);
  }
}

__global__ void HalvesKernel(__half* to, size_t count, float rms, uint64_t seed) {
  for (size_t i = First(); i < count; i += Stride()) {
    to[i] = __float2half_rn(rms * 1.732f * (2.0f * Uniform(seed + i) - 1.0f));
  }
}

__global__ void FloatsKernel(float* to, size_t count, float value) {
  for (size_t i = First(); i < count; i += Stride()) to[i] = value;
}

}  // namespace

cudaError_t FillBits(void* to, size_t bytes, uint64_t seed) {
  BitsKernel<<<kBlocks, kThreads>>>(static_cast<uint32_t*>(to), bytes / 4, seed);
  return cudaGetLastError();
}

cudaError_t FillSecondOrder(const quant::PackedShape& shape, uint8_t* tiles, float rms,
                            uint64_t seed) {
  SecondOrderKernel<<<shape.row_blocks(), quant::kBlockRows>>>(shape, tiles, rms, seed);
  return cudaGetLastError();
}

cudaError_t FillOutliers(const uint32_t* start, size_t lists, const OutlierRanges& ranges,
                         float rms, uint32_t* entries, uint64_t seed) {
  OutliersKernel<<<kBlocks, kThreads>>>(start, lists, ranges, rms, entries, seed);
  return cudaGetLastError();
}

cudaError_t FillTileOutliers(size_t count, float rms, uint32_t* entries, uint64_t seed) {
  TileOutliersKernel<<<kBlocks, kThreads>>>(count, rms, entries, seed);
  return cudaGetLastError();
}

cudaError_t FillHalves(void* to, size_t count, float rms, uint64_t seed) {
  HalvesKernel<<<kBlocks, kThreads>>>(static_cast<__half*>(to), count, rms, seed);
  return cudaGetLastError();
}

cudaError_t FillFloats(float* to, size_t count, float value) {
  FloatsKernel<<<kBlocks, kThreads>>>(to, count, value);
  return cudaGetLastError();
}

}  // namespace fewbit::bench
