#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/dequantize.h"

namespace fewbit::cuda {
namespace {

template <typename T>
__device__ T Round(float v);
template <>
__device__ __half Round<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __nv_bfloat16 Round<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
// Two values rounded, the first one in the low half.
template <typename T>
__device__ uint32_t RoundPair(float low, float high) {
  const T values[2] = {Round<T>(low), Round<T>(high)};
  return reinterpret_cast<const uint32_t&>(values);
}
__device__ float Widen(__half v) { return __half2float(v); }
__device__ float Widen(__nv_bfloat16 v) { return __bfloat162float(v); }

// Where one (row, strip) lies in the tiles.
struct StripPlace {
  int bits;
  uint32_t first, second;  // codes or their high bits; low bits of 4-bit codes
  float zero, scale;
};

// The strip at `position` of row `row` of the row block at `block`; see device_tile.h.
__device__ StripPlace Find(const quant::PackedShape& s, const uint8_t* block, int position,
                           int row) {
  StripPlace p;
  const int positions2 = s.chunks2 * quant::ChunkStrips(2);
  p.bits = position < positions2 ? 2 : 4;
  const int in_width = p.bits == 2 ? position : position - positions2;
  const int per_chunk = quant::ChunkStrips(p.bits), chunk = in_width / per_chunk;
  const int strip = in_width % per_chunk, tile = chunk / quant::kTileChunks;
  const int g = row % 8, hi = row / 8, lane = 4 * g + strip % 4, field = 2 * (strip / 4) + hi;
  const int record_bytes = RecordBytes(p.bits, s.zero_points);
  const uint8_t* data = block + s.tile_offset(p.bits, tile);
  const uint8_t* record = data + chunk % quant::kTileChunks * record_bytes;
  const uint32_t* codes = reinterpret_cast<const uint32_t*>(record + 16 * lane);
  const uint8_t* meta = record + quant::kChunkCodeBytes;
  p.first = codes[field];
  p.second = p.bits == 4 ? codes[2 + hi] : 0;
  const uint32_t scales = p.bits == 2 ? reinterpret_cast<const uint16_t*>(meta)[lane] : meta[lane];
  const uint32_t zeros = s.zero_points ? meta[quant::ChunkScaleBytes(p.bits) + lane] : 0;
  const __half* d =
      reinterpret_cast<const __half*>(data + s.tile_chunks(p.bits, tile) * record_bytes);
  p.scale = static_cast<float>((scales >> (4 * field)) & 15) *
            (__half2float(d[2 * g + hi]) / quant::kStoredSecondOrderFactor);
  const uint32_t mask = (1u << p.bits) - 1;
  p.zero = s.zero_points ? static_cast<float>((zeros >> (p.bits * field)) & mask)
                         : 0.5f * static_cast<float>(mask);
  return p;
}

// Half of a strip: channels 8 * half .. 8 * half + 7. A 2-bit strip has four values in all, so its
// weights are picked, two at once, by their codes: code c is bytes 2 c and 2 c + 1.
template <typename T>
__device__ uint4 HalfStrip(const StripPlace& p, int half) {
  const auto value = [&p](int code) { return (static_cast<float>(code) - p.zero) * p.scale; };
  uint32_t out[4];
  if (p.bits == 2) {
    const uint32_t low = RoundPair<T>(value(0), value(1)), high = RoundPair<T>(value(2), value(3));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t codes = p.first >> (16 * (i % 2) + 2 * (i / 2) + 4 * half) & 0x0303;
      out[i] = __byte_perm(low, high, codes * 0x22 + 0x1010);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto code = [&](int channel) {
        const int shift = 8 * (channel % 4) + 2 * (channel / 4) + 4 * half;
        return static_cast<int>(4 * (p.first >> shift & 3) + (p.second >> shift & 3));
      };
      out[i] = RoundPair<T>(value(code(2 * i)), value(code(2 * i + 1)));
    }
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}

constexpr int kDequantizeThreads = 512;

// One block per row block. Threads go along the channels of the checkpoint, so that rows are
// written in whole lines; the scattered reads stay within the row block's few kilobytes.
template <typename T>
__global__ void DequantizeKernel(DeviceMatrix w, T* out) {
  extern __shared__ uint16_t position_of[];  // [cols / 16]
  const quant::PackedShape& s = w.shape;
  const int strips = s.cols / quant::kStripChannels;
  for (int i = threadIdx.x; i < s.num_positions(); i += blockDim.x) {
    const uint16_t strip = w.strip_order[i];
    if (strip != quant::kNoStrip) position_of[strip] = static_cast<uint16_t>(i);
  }
  __syncthreads();
  const uint8_t* block = w.tiles + blockIdx.x * s.row_block_bytes();
  const int rows =
      min(quant::kBlockRows, s.rows - static_cast<int>(blockIdx.x) * quant::kBlockRows);
  uint4* to =
      reinterpret_cast<uint4*>(out + static_cast<size_t>(blockIdx.x) * quant::kBlockRows * s.cols);
  for (int i = threadIdx.x; i < 2 * strips; i += blockDim.x) {
    const int position = position_of[i / 2];
#pragma unroll 4
    for (int row = 0; row < rows; ++row) {
      to[static_cast<size_t>(row) * 2 * strips + i] =
          HalfStrip<T>(Find(s, block, position, row), i % 2);
    }
  }
}

// One thread per (row, segment); positions of a list are all different.
template <typename T>
__global__ void AddOutliersKernel(DeviceMatrix w, T* out) {
  const int list = blockIdx.x * blockDim.x + threadIdx.x, row = list / kSegments;
  if (row >= w.shape.rows) return;
  for (uint32_t i = w.outlier_start[list]; i < w.outlier_start[list + 1]; ++i) {
    const uint32_t entry = w.outliers[i];
    const int position = entry & 0xFFFF;
    const int strip = w.strip_order[position / quant::kStripChannels];
    T* at = out + static_cast<size_t>(row) * w.shape.cols + strip * quant::kStripChannels +
            position % quant::kStripChannels;
    *at = Round<T>(Widen(*at) + __half2float(__ushort_as_half(entry >> 16)));
  }
}

template <typename T>
cudaError_t Launch(const DeviceMatrix& w, void* out, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int strips = w.shape.cols / quant::kStripChannels;  // at most 65535: 128 KB
  const size_t shared = strips * sizeof(uint16_t);
  const cudaError_t error = cudaFuncSetAttribute(
      DequantizeKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error != cudaSuccess) return error;
  DequantizeKernel<T>
      <<<w.shape.row_blocks(), kDequantizeThreads, shared, stream>>>(w, static_cast<T*>(out));
  if (w.outliers != nullptr) {
    AddOutliersKernel<T>
        <<<(w.shape.rows * kSegments + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
            w, static_cast<T*>(out));
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t Dequantize(const DeviceMatrix& w, DType type, void* out, cudaStream_t stream) {
  return type == DType::kF16 ? Launch<__half>(w, out, stream)
                             : Launch<__nv_bfloat16>(w, out, stream);
}

}  // namespace fewbit::cuda
