#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/launch.h"

namespace fewbit::cuda {
namespace {

constexpr int kWarps = 8;  // of a block; a warp has one chunk

// The weights of one (row, strip): (2 q - zero2) * (sub_scale / 128) * d, d as stored. The first
// product is exact, so that a weight is rounded once.
template <typename T>
class StripScale;

template <>
class StripScale<__half> {
 public:
  __device__ StripScale(uint32_t sub_scale, __half d, uint32_t zero2)
      : sub_(__hfma2(Halves(0x64006400u | sub_scale * 0x10001u), __float2half2_rn(1.0f / 128.0f),
                     __float2half2_rn(-8.0f))),
        d_(__half2half2(d)),
        raise_(Halves(0x64006400u | zero2 * 0x10001u)) {}

  // Two weights from 2 q in bytes 0 and 1 (2 and 3) of `doubled`.
  __device__ uint32_t Low(uint32_t doubled) const { return Two(doubled, 0x4140); }
  __device__ uint32_t High(uint32_t doubled) const { return Two(doubled, 0x4342); }

 private:
  static __device__ __half2 Halves(uint32_t bits) { return reinterpret_cast<__half2&>(bits); }
  // 1024 + 2 q, less 1024 + zero2.
  __device__ uint32_t Two(uint32_t doubled, uint32_t select) const {
    const __half2 q = Halves(__byte_perm(doubled, 0x64646464u, select));
    const __half2 v = __hmul2(__hmul2(__hsub2(q, raise_), sub_), d_);
    return reinterpret_cast<const uint32_t&>(v);
  }
  const __half2 sub_, d_, raise_;
};

template <>
class StripScale<__nv_bfloat16> {
 public:
  __device__ StripScale(uint32_t sub_scale, __half d, uint32_t zero2)
      : scale_(static_cast<float>(sub_scale) / (2 * quant::kStoredSecondOrderFactor) *
               __half2float(d)),
        zero2_(static_cast<float>(zero2)) {}

  __device__ uint32_t Low(uint32_t doubled) const { return Two(doubled); }
  __device__ uint32_t High(uint32_t doubled) const { return Two(doubled >> 16); }

 private:
  __device__ uint32_t Two(uint32_t doubled) const {
    const __nv_bfloat162 v = __floats2bfloat162_rn(One(doubled), One(doubled >> 8));
    return reinterpret_cast<const uint32_t&>(v);
  }
  __device__ float One(uint32_t doubled) const {
    return (static_cast<float>(doubled & 0xFF) - zero2_) * scale_;
  }
  const float scale_, zero2_;
};
static_assert(quant::kStoredSecondOrderFactor == 64.0f);

template <typename T>
__device__ T AddTo(T weight, __half outlier);
template <>
__device__ __half AddTo(__half weight, __half outlier) {
  return __float2half_rn(__half2float(weight) + __half2float(outlier));
}
template <>
__device__ __nv_bfloat16 AddTo(__nv_bfloat16 weight, __half outlier) {
  return __float2bfloat16_rn(__bfloat162float(weight) + __half2float(outlier));
}

// A chunk of one row block, as device_tile.h lays it out.
template <int kBits>
struct ChunkView {
  const uint8_t* record;
  const __half* d;  // of its tile
  bool zero_points;

  __device__ const uint8_t* meta() const { return record + quant::kChunkCodeBytes; }
  __device__ uint4 Codes(int lane) const {
    return __ldg(reinterpret_cast<const uint4*>(record) + lane);
  }
  // Nibbles by field: 2 u + hi at 2 bits, hi at 4.
  __device__ uint32_t Scales(int lane) const {
    return kBits == 2 ? reinterpret_cast<const uint16_t*>(meta())[lane] : meta()[lane];
  }
  // Twice the zero of `field`.
  __device__ uint32_t Zeros(int lane) const {
    return zero_points ? meta()[quant::ChunkScaleBytes(kBits) + lane] : 0;
  }
  __device__ uint32_t Zero2(uint32_t zeros, int field) const {
    constexpr uint32_t kMask = (1u << kBits) - 1;
    return zero_points ? (zeros >> (kBits * field) & kMask) * 2 : kMask;
  }
};

// Eight weights of a 2-bit strip: channels 8 * half .. 8 * half + 7. There are only four values:
// code c is bytes 2 c and 2 c + 1 of `low` and `high`, picked two at once.
template <typename T>
__device__ __forceinline__ uint4 HalfStrip2(const StripScale<T>& scale, uint32_t word, int half) {
  const uint32_t low = scale.Low(0x0200u), high = scale.Low(0x0604u);
  const uint32_t first = word >> (4 * half), second = first >> 2;
  const uint32_t a = (first & 0x03030303u) * 0x22u + 0x10101010u;
  const uint32_t b = (second & 0x03030303u) * 0x22u + 0x10101010u;
  return make_uint4(__byte_perm(low, high, a), __byte_perm(low, high, a >> 16),
                    __byte_perm(low, high, b), __byte_perm(low, high, b >> 16));
}

// The same of a 4-bit strip from its two planes.
template <typename T>
__device__ __forceinline__ uint4 HalfStrip4(const StripScale<T>& scale, uint32_t high, uint32_t low,
                                            int half) {
  const auto doubled = [&](int f) {
    const int shift = 4 * half + 2 * f;
    return (high >> shift & 0x03030303u) * 8u + (low >> shift & 0x03030303u) * 2u;
  };
  const uint32_t a = doubled(0), b = doubled(1);
  return make_uint4(scale.Low(a), scale.High(a), scale.Low(b), scale.High(b));
}

// Where a warp's chunk goes: `to` is channel 0 of its row block's first row.
template <typename T>
struct Target {
  T* to;
  int cols;
  int rows;  // that exist, of 16

  __device__ __forceinline__ T* At(int row, uint32_t strip) const {
    return to + static_cast<size_t>(row) * cols + strip * quant::kStripChannels;
  }
};

// Two lanes write the 32 bytes of a (row, strip): lanes 4 g .. 4 g + 3 the strips 2 i and 2 i + 1,
// neighbours where the checkpoint has them so.
template <int kBits, typename T>
__device__ __forceinline__ void DequantizeChunk(const ChunkView<kBits>& chunk,
                                                const uint16_t* order, const Target<T>& target) {
  constexpr int kUnits = kBits == 2 ? 2 : 1;
  const int lane = threadIdx.x % 32, g = lane / 4, half = lane % 2;
  const __half2 d = *reinterpret_cast<const __half2*>(chunk.d + 2 * g);
  uint4 codes[2];
  uint32_t scales[2], zeros[2], strips[2][kUnits];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int owner = 4 * g + 2 * i + lane / 2 % 2;
    codes[i] = chunk.Codes(owner);
    scales[i] = chunk.Scales(owner);
    zeros[i] = chunk.Zeros(owner);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) strips[i][u] = order[4 * u + owner % 4];
  }
  WaitForPreviousKernels();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t words[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
#pragma unroll
    for (int field = 0; field < 2 * kUnits; ++field) {
      const int hi = field % 2, row = g + 8 * hi;
      const uint32_t strip = strips[i][field / 2];
      if (strip == quant::kNoStrip || row >= target.rows) continue;
      const StripScale<T> scale(scales[i] >> (4 * field) & 15, hi == 0 ? d.x : d.y,
                                chunk.Zero2(zeros[i], field));
      const uint4 out = kBits == 2 ? HalfStrip2(scale, words[field], half)
                                   : HalfStrip4(scale, words[hi], words[2 + hi], half);
      // By name, because the compiler cuts a plain assignment into four stores.
      __stcg(reinterpret_cast<uint4*>(target.At(row, strip) + 8 * half), out);
    }
  }
}

// Lane r has row r: makes those of its weights again that are outliers. `first`: position of the
// chunk's first channel.
template <typename T>
__device__ __forceinline__ void DequantizeOutliers(const DeviceMatrix& w, const ChunkView<2>& chunk,
                                                   int first, uint2 list, const Target<T>& target) {
  const int row = threadIdx.x % 32;
  for (uint32_t i = list.x; i < list.y; ++i) {
    const uint32_t entry = w.outliers[i];
    const int channel = static_cast<int>(entry & 0xFFFF) - first;
    if (channel < 0) continue;
    if (channel >= quant::ChunkChannels(2)) break;
    const int strip = channel / quant::kStripChannels, c = channel % quant::kStripChannels;
    const int lane = 4 * (row % 8) + strip % 4, field = 2 * (strip / 4) + row / 8;
    const uint32_t word = reinterpret_cast<const uint32_t*>(chunk.record)[4 * lane + field];
    const StripScale<T> scale(chunk.Scales(lane) >> (4 * field) & 15,
                              chunk.d[2 * (row % 8) + row / 8],
                              chunk.Zero2(chunk.Zeros(lane), field));
    const uint32_t weight = scale.Low((word >> (8 * (c % 4) + 2 * (c / 4)) & 3) * 2);
    const uint32_t source = w.strip_order[first / quant::kStripChannels + strip];
    target.At(row, source)[c] =
        AddTo<T>(reinterpret_cast<const T&>(weight), __ushort_as_half(entry >> 16));
  }
}

// The outliers of a row among which those of a tile are.
__device__ __forceinline__ uint2 OutlierList(const DeviceMatrix& w, int row, int tile) {
  int segment = 0;
  while (tile >= SegmentBegin(NumTiles(w.shape), segment + 1)) ++segment;
  const uint32_t* start = w.outlier_start + row * kSegments + segment;
  return make_uint2(start[0], start[1]);
}

// One warp per chunk, a block's chunks all of one row block (grid: runs of chunks, row blocks of
// all matrices).
template <typename T>
__global__ void __launch_bounds__(32 * kWarps)
    DequantizeKernel(const __grid_constant__ DeviceGroup group, T* out) {
  LetNextKernelStart();
  int part = 0, row_block = blockIdx.y;
  for (; row_block >= group.parts[part].shape.row_blocks(); ++part) {
    const quant::PackedShape& before = group.parts[part].shape;
    row_block -= before.row_blocks();
    out += static_cast<size_t>(before.rows) * before.cols;
  }
  const DeviceMatrix& w = group.parts[part];
  const quant::PackedShape& s = w.shape;
  const int index = blockIdx.x * kWarps + threadIdx.x / 32;
  if (index >= s.chunks2 + s.chunks4) return;
  const int bits = index < s.chunks2 ? 2 : 4;
  const int chunk = bits == 2 ? index : index - s.chunks2, tile = chunk / quant::kTileChunks;
  const int record_bytes = RecordBytes(bits, s.zero_points);
  const uint8_t* data = w.tiles + row_block * s.row_block_bytes() + s.tile_offset(bits, tile);
  const uint8_t* record = data + chunk % quant::kTileChunks * record_bytes;
  const __half* d =
      reinterpret_cast<const __half*>(data + s.tile_chunks(bits, tile) * record_bytes);
  const int first_row = row_block * quant::kBlockRows;
  const Target<T> target = {out + static_cast<size_t>(first_row) * s.cols, s.cols,
                            min(quant::kBlockRows, s.rows - first_row)};
  if (bits == 4) {
    const uint16_t* order = w.strip_order + 8 * s.chunks2 + 4 * chunk;
    DequantizeChunk(ChunkView<4>{record, d, s.zero_points}, order, target);
    return;
  }
  const ChunkView<2> view = {record, d, s.zero_points};
  const int row = threadIdx.x % 32;
  uint2 list = make_uint2(0, 0);
  if (w.outliers != nullptr && row < target.rows) list = OutlierList(w, first_row + row, tile);
  DequantizeChunk(view, w.strip_order + 8 * chunk, target);
  __syncwarp();  // outliers overwrite what other lanes wrote
  DequantizeOutliers(w, view, chunk * quant::ChunkChannels(2), list, target);
}

template <typename T>
cudaError_t Launch(const DeviceGroup& group, void* out, cudaStream_t stream) {
  int chunks = 0, row_blocks = 0;
  for (int p = 0; p < group.count; ++p) {
    const quant::PackedShape& s = group.parts[p].shape;
    chunks = std::max(chunks, s.chunks2 + s.chunks4);
    row_blocks += s.row_blocks();
  }
  const dim3 grid((chunks + kWarps - 1) / kWarps, row_blocks);
  return LaunchDependent(DequantizeKernel<T>, grid, dim3(32 * kWarps), 0, stream, group,
                         static_cast<T*>(out));
}

}  // namespace

cudaError_t PrepareDequantize() {
  const cudaError_t error = PreferShared(DequantizeKernel<__half>);
  return error != cudaSuccess ? error : PreferShared(DequantizeKernel<__nv_bfloat16>);
}

cudaError_t Dequantize(const DeviceGroup& group, DType type, void* out, cudaStream_t stream) {
  return type == DType::kF16 ? Launch<__half>(group, out, stream)
                             : Launch<__nv_bfloat16>(group, out, stream);
}

}  // namespace fewbit::cuda
