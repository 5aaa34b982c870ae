// The portable row of the instance table: plain C++, the reading reference for the vector files.
// Same integers, same order of float operations, so packed and 8-bit results are the same bits.
//
// Staged int8 values keep the natural order: channel c of a chunk is byte c. The sums are not used.
#include <cmath>
#include <cstring>

#include "kernels/cpu/linear_kernels.h"
#include "kernels/quant_access.h"
#include "kernels/quant_pack.h"

namespace fewbit::cpu {
namespace {

using quant::kBlockRows;
using quant::kStripChannels;

uint32_t MagnitudeBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits & 0x7FFFFFFFu;
}

// values [count] -> codes and the chunk's max|x| / 127. All instruction sets do exactly this.
float QuantizeChunk(const float* values, int count, int8_t* codes) {
  uint32_t max_bits = 0;
  for (int i = 0; i < count; ++i) {
    const uint32_t bits = MagnitudeBits(values[i]);
    max_bits = bits > max_bits ? bits : max_bits;
  }
  if (max_bits < kMinMagnitudeBits || max_bits >= kInfBits) {
    for (int i = 0; i < count; ++i) codes[i] = 0;
    return max_bits >= kInfBits ? NAN : 0.0f;
  }
  float max;
  std::memcpy(&max, &max_bits, sizeof(max));
  const float inverse = kMaxCode / max;
  for (int i = 0; i < count; ++i) {
    codes[i] = static_cast<int8_t>(std::nearbyintf(values[i] * inverse));
  }
  return max / kMaxCode;
}

void StagePacked(const PackedView& w, const StageCall& call) {
  for (int t = call.token_begin; t < call.token_end; ++t) {
    const float* x = call.x + t * call.x_stride;
    uint8_t* record = call.activations + t * call.layout.token_stride;
    float* scales = reinterpret_cast<float*>(record + call.layout.scale_offset);
    const uint16_t* strips = w.strip_order;
    for (int chunk = 0; chunk < w.chunks2 + w.chunks4; ++chunk) {
      const bool two = chunk < w.chunks2;
      const int channels = two ? kChunk2Codes : kChunk4Codes;
      float values[kChunk2Codes];
      for (int s = 0; s < channels / kStripChannels; ++s, ++strips) {
        if (*strips == quant::kNoStrip) {
          std::memset(values + s * kStripChannels, 0, kStripChannels * sizeof(float));
        } else {
          std::memcpy(values + s * kStripChannels, x + *strips * kStripChannels,
                      kStripChannels * sizeof(float));
        }
      }
      uint8_t* codes = two ? record + chunk * kChunk2Stride
                           : record + call.layout.chunk4_offset +
                                 static_cast<size_t>(chunk - w.chunks2) * kChunk4Stride;
      scales[chunk] = QuantizeChunk(values, channels, reinterpret_cast<int8_t*>(codes)) * kHalfStep;
    }
  }
}

void StageInt8(const Int8View& w, const StageCall& call) {
  for (int t = call.token_begin; t < call.token_end; ++t) {
    const float* x = call.x + t * call.x_stride;
    uint8_t* record = call.activations + t * call.layout.token_stride;
    float* scales = reinterpret_cast<float*>(record + call.layout.scale_offset);
    for (int b = 0; b < w.blocks; ++b) {
      const int begin = b * kInt8Block;
      const int count = w.cols - begin < kInt8Block ? w.cols - begin : kInt8Block;
      int8_t* codes = reinterpret_cast<int8_t*>(record + begin);
      std::memset(codes, 0, kInt8Block);
      scales[b] = QuantizeChunk(x + begin, count, codes);
    }
  }
}

// One chunk of 16 rows as integers (2q - c) * sub_scale, [16, channels] in strip order.
template <int kBits>
void DecodeChunk(const quant::ChunkView& view, int16_t* out) {
  constexpr int kStrips = quant::ChunkStrips(kBits);
  constexpr int kMask = (1 << kBits) - 1;
  int16_t sub[kBlockRows][kStrips], c[kBlockRows][kStrips];
  for (int row = 0; row < kBlockRows; ++row) {
    for (int s = 0; s < kStrips; ++s) {
      sub[row][s] = quant::ReadField(view.sub_scales, quant::PlaceOfSubScale(kBits, row, s), 4);
      c[row][s] = view.zeros == nullptr
                      ? kMask
                      : 2 * quant::ReadField(view.zeros, quant::PlaceOfZero(kBits, row, s), kBits);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int unit = 0; unit < 2; ++unit) {
      for (int hi = 0; hi < 2; ++hi) {
        const uint32_t word = quant::LoadWord(view.codes + 16 * lane + 4 * (2 * unit + hi));
        const int row = lane / 4 + 8 * hi, t = lane % 4;
        for (int i = 0; i < kStrips / 2; ++i) {
          const int s = unit * (kStrips / 2) + i;
          int16_t* strip = out + (row * kStrips + s) * kStripChannels;
          for (const int k : {2 * t, 2 * t + 1, 8 + 2 * t, 9 + 2 * t}) {
            const int shift = quant::PlaceOfCode(kBits, row, s, k).shift;
            const int q = static_cast<int>(word >> shift) & kMask;
            strip[k] = static_cast<int16_t>((2 * q - c[row][s]) * sub[row][s]);
          }
        }
      }
    }
  }
}

// acc[t, row] += chunk: an exact integer sum, then one fused multiply-add.
template <int kBits>
void AddChunk(const quant::ChunkView& view, const LinearCall& call, size_t codes_offset,
              int chunk_index, int row_begin, int rows) {
  constexpr int kChannels = quant::ChunkChannels(kBits);
  int16_t weights[kBlockRows * kChannels];
  DecodeChunk<kBits>(view, weights);
  for (int t = 0; t < call.tokens; ++t) {
    const uint8_t* record = call.activations + t * call.layout.token_stride;
    const int8_t* codes = reinterpret_cast<const int8_t*>(record + codes_offset);
    const float scale =
        reinterpret_cast<const float*>(record + call.layout.scale_offset)[chunk_index];
    int16_t x[kChannels];
    for (int k = 0; k < kChannels; ++k) x[k] = codes[k];
    float* y = call.y + t * call.y_stride + row_begin;
    for (int row = 0; row < rows; ++row) {
      const int16_t* weight = weights + row * kChannels;
      int32_t sum = 0;
      for (int k = 0; k < kChannels; ++k) sum += weight[k] * x[k];
      const float d =
          quant::HalfToFloat(quant::LoadHalf(view.second_order + quant::PlaceOfSecondOrder(row)));
      y[row] = std::fmaf(static_cast<float>(sum), d * scale, y[row]);
    }
  }
}

void AddOutliers(const PackedView& w, const LinearCall& call, int block) {
  for (int tile = 0; tile < w.tiles2; ++tile) {
    const size_t list = static_cast<size_t>(block) * w.tiles2 + tile;
    for (uint32_t i = w.outlier_start[list]; i < w.outlier_start[list + 1]; ++i) {
      const uint32_t entry = w.outliers[i];
      const int position = tile * quant::kTileChunks * kChunk2Codes + quant::OutlierPosition(entry);
      const size_t source =
          w.strip_order[position / kStripChannels] * kStripChannels + position % kStripChannels;
      const int row = block * kBlockRows + quant::OutlierRow(entry);
      const float value = quant::HalfToFloat(quant::OutlierValue(entry));
      for (int t = 0; t < call.tokens; ++t) {
        float* y = call.y + t * call.y_stride + row;
        *y = std::fmaf(value, call.x[t * call.x_stride + source], *y);
      }
    }
  }
}

quant::PackedShape ShapeOf(const PackedView& w) {
  return {w.rows, w.cols, w.chunks2, w.chunks4, w.zero_points};
}

void PackedLinear(const PackedView& w, const LinearCall& call) {
  const quant::PackedShape shape = ShapeOf(w);
  for (int row = call.row_begin; row < call.row_end; row += kBlockRows) {
    const int block = row / kBlockRows;
    const int rows = call.row_end - row < kBlockRows ? call.row_end - row : kBlockRows;
    const uint8_t* base = w.tiles + block * w.row_block_bytes;
    for (int t = 0; t < call.tokens; ++t) {
      std::memset(call.y + t * call.y_stride + row, 0, rows * sizeof(float));
    }
    for (int chunk = 0; chunk < w.chunks2; ++chunk) {
      AddChunk<2>(quant::ViewChunk(shape, base, 2, chunk), call,
                  static_cast<size_t>(chunk) * kChunk2Stride, chunk, row, rows);
    }
    for (int chunk = 0; chunk < w.chunks4; ++chunk) {
      AddChunk<4>(quant::ViewChunk(shape, base, 4, chunk), call,
                  call.layout.chunk4_offset + static_cast<size_t>(chunk) * kChunk4Stride,
                  w.chunks2 + chunk, row, rows);
    }
    if (w.outlier_start != nullptr) AddOutliers(w, call, block);
  }
}

void Int8Linear(const Int8View& w, const LinearCall& call) {
  for (int row = call.row_begin; row < call.row_end; ++row) {
    const uint8_t* codes = w.codes + static_cast<size_t>(row) * w.cols;
    for (int t = 0; t < call.tokens; ++t) {
      const uint8_t* record = call.activations + t * call.layout.token_stride;
      const int8_t* x = reinterpret_cast<const int8_t*>(record);
      const float* scales = reinterpret_cast<const float*>(record + call.layout.scale_offset);
      float acc = 0.0f;
      for (int b = 0; b < w.blocks; ++b) {
        const int begin = b * kInt8Block;
        const int end = w.cols - begin < kInt8Block ? w.cols : begin + kInt8Block;
        int32_t sum = 0;
        for (int c = begin; c < end; ++c) sum += (codes[c] - 128) * x[c];
        acc = std::fmaf(static_cast<float>(sum), scales[b], acc);
      }
      call.y[t * call.y_stride + row] = acc * w.scales[row];
    }
  }
}

constexpr int kDenseLanes = 16;

template <DenseType kType>
float LoadDense(const void* data, size_t at) {
  if constexpr (kType == DenseType::kF32) {
    return static_cast<const float*>(data)[at];
  } else if constexpr (kType == DenseType::kF16) {
    return quant::HalfToFloat(static_cast<const uint16_t*>(data)[at]);
  } else {
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[at]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
}

// 16 partial sums by channel mod 16, added by halving. Without fused multiply-add, unlike the
// vector files: a library call for every weight would be the whole cost.
template <DenseType kType>
void DenseLinear(const DenseView& w, const LinearCall& call) {
  for (int row = call.row_begin; row < call.row_end; ++row) {
    const size_t begin = static_cast<size_t>(row) * w.cols;
    for (int t = 0; t < call.tokens; ++t) {
      const float* x = call.x + t * call.x_stride;
      float lanes[kDenseLanes] = {};
      int c = 0;
      for (; c + kDenseLanes <= w.cols; c += kDenseLanes) {
        for (int i = 0; i < kDenseLanes; ++i) {
          lanes[i] += LoadDense<kType>(w.data, begin + c + i) * x[c + i];
        }
      }
      for (int i = 0; c + i < w.cols; ++i) {
        lanes[i] += LoadDense<kType>(w.data, begin + c + i) * x[c + i];
      }
      for (int width = kDenseLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
      }
      call.y[t * call.y_stride + row] = lanes[0];
    }
  }
}

void Dense(const DenseView& w, const LinearCall& call) {
  switch (w.type) {
    case DenseType::kF32:
      return DenseLinear<DenseType::kF32>(w, call);
    case DenseType::kF16:
      return DenseLinear<DenseType::kF16>(w, call);
    case DenseType::kBF16:
      return DenseLinear<DenseType::kBF16>(w, call);
  }
}

}  // namespace

const LinearKernels kPortableLinear = {StagePacked, StageInt8, PackedLinear, Int8Linear, Dense};

}  // namespace fewbit::cpu
