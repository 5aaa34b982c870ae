// Packed weights to fp16 in registers, as operand A of the kernel for many tokens (half_tile.h): a
// code is put into the mantissa of a large number, one multiply-add leaves q - zero exactly, one
// more scales it. So a weight is (q - zero) * round(sub_scale / 64 * d) + outlier, rounded once.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/tile_product.cuh"
#include "kernels/cuda/half_tile.h"

namespace fewbit::cuda {

__device__ __forceinline__ __half2 HalvesOf(uint32_t bits) {
  return reinterpret_cast<const __half2&>(bits);
}
__device__ __forceinline__ uint32_t BitsOf(__half2 halves) {
  return reinterpret_cast<const uint32_t&>(halves);
}

// 1024 in both halves: below it, a mantissa's lowest bit is 1.
inline constexpr uint32_t kThousand = 0x64006400u;

// The codes at bit kAt of both halves of `word`, kBits wide, less `zero`, times `scale`; with kAdd
// that is added to `a`. The zero of symmetric levels is compiled in. `thousand` is kThousand in a
// register, so that mask and base are one instruction.
template <int kBits, int kAt, bool kZeroPoints, bool kAdd>
__device__ __forceinline__ void TwoWeights(uint32_t word, uint32_t thousand, __half2 zero,
                                           __half2 scale, uint32_t& a) {
  constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x10001u << kAt;
  uint32_t based;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(based) : "r"(word), "n"(kMask), "r"(thousand));
  constexpr float kUnit = 1 << kAt, kBase = -1024.0f / kUnit;
  const __half2 shift = kZeroPoints
                            ? __hsub2(__float2half2_rn(kBase), zero)
                            : __float2half2_rn(kBase - static_cast<float>((1 << kBits) - 1) / 2);
  const __half2 code = __hfma2(HalvesOf(based), __float2half2_rn(1.0f / kUnit), shift);
  a = BitsOf(kAdd ? __hfma2(code, scale, HalvesOf(a)) : __hmul2(code, scale));
}

// The weights of one row's strip, channels as half_tile.h orders them: of product f, a[4 f] has the
// first half and a[4 f + 2] the second.
template <bool kZeroPoints, bool kAdd>
__device__ __forceinline__ void ExpandStrip2(uint32_t codes, uint32_t thousand, __half2 zero,
                                             __half2 scale, uint32_t* a) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    // One bit further up: q - 1.5 is a multiple of half a code.
    const uint32_t word = h == 0 ? codes << 1 : codes >> 7;
    TwoWeights<2, 1, kZeroPoints, kAdd>(word, thousand, zero, scale, a[2 * h]);
    TwoWeights<2, 3, kZeroPoints, kAdd>(word, thousand, zero, scale, a[4 + 2 * h]);
    TwoWeights<2, 5, kZeroPoints, kAdd>(word, thousand, zero, scale, a[8 + 2 * h]);
    TwoWeights<2, 7, kZeroPoints, kAdd>(word, thousand, zero, scale, a[12 + 2 * h]);
  }
}
template <bool kZeroPoints>
__device__ __forceinline__ void ExpandStrip4(uint32_t high, uint32_t low, uint32_t thousand,
                                             __half2 zero, __half2 scale, uint32_t* a) {
  constexpr uint32_t kPairs = 0x33333333u;
  const uint32_t even = (low & kPairs) | ((high << 2) & ~kPairs);
  const uint32_t odd = ((low >> 2) & kPairs) | (high & ~kPairs);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint32_t first = h == 0 ? even << 1 : even >> 7, second = h == 0 ? odd << 1 : odd >> 7;
    TwoWeights<4, 1, kZeroPoints, false>(first, thousand, zero, scale, a[2 * h]);
    TwoWeights<4, 1, kZeroPoints, false>(second, thousand, zero, scale, a[4 + 2 * h]);
    TwoWeights<4, 5, kZeroPoints, false>(first, thousand, zero, scale, a[8 + 2 * h]);
    TwoWeights<4, 5, kZeroPoints, false>(second, thousand, zero, scale, a[12 + 2 * h]);
  }
}

// This lane's words of a pair of quads.
template <int kBits, bool kZeroPoints>
struct HalfWords;

// Of rows g and g + 8, from two nibbles and the second-order scales.
__device__ __forceinline__ __half2 RowScales(uint32_t nibbles, __half2 d) {
  const uint32_t both = ((nibbles * 0x1001u) & 0x000F000Fu) | kThousand;
  const __half2 sub =
      __hfma2(HalvesOf(both), __float2half2_rn(1.0f / 64.0f), __float2half2_rn(-16.0f));
  return __hmul2(sub, d);
}
static_assert(quant::kStoredSecondOrderFactor == 64.0f);
__device__ __forceinline__ __half2 ZeroOf(uint32_t zero) {
  return __hsub2(HalvesOf(kThousand | zero * 0x10001u), HalvesOf(kThousand));
}

template <bool kZeroPoints>
struct HalfWords<2, kZeroPoints> {
  ChunkWords<2, kZeroPoints> chunk;
  static constexpr int kPairBytes = RecordBytes(2, kZeroPoints);

  __device__ __forceinline__ void Load(const uint8_t* record, int lane) {
    chunk.Load(record, lane);
  }
  // kAdd: added to what is in `a`.
  template <int kQuad, bool kAdd>
  __device__ __forceinline__ void Expand(__half2 d, uint32_t thousand, uint32_t (&a)[16]) const {
    const __half2 scales = RowScales(chunk.scales >> (8 * kQuad) & 0xFFu, d);
    const uint32_t zeros = chunk.zeros >> (4 * kQuad);
    ExpandStrip2<kZeroPoints, kAdd>(kQuad == 0 ? chunk.codes.x : chunk.codes.z, thousand,
                                    ZeroOf(zeros & 3), __low2half2(scales), a);
    ExpandStrip2<kZeroPoints, kAdd>(kQuad == 0 ? chunk.codes.y : chunk.codes.w, thousand,
                                    ZeroOf(zeros >> 2 & 3), __high2half2(scales), a + 1);
  }
};

template <bool kZeroPoints>
struct HalfWords<4, kZeroPoints> {
  ChunkWords<4, kZeroPoints> chunk[2];
  static constexpr int kPairBytes = 2 * RecordBytes(4, kZeroPoints);

  __device__ __forceinline__ void Load(const uint8_t* record, int lane) {
#pragma unroll
    for (int q = 0; q < 2; ++q) chunk[q].Load(record + q * (kPairBytes / 2), lane);
  }
  template <int kQuad, bool kAdd>
  __device__ __forceinline__ void Expand(__half2 d, uint32_t thousand, uint32_t (&a)[16]) const {
    static_assert(!kAdd, "4-bit strips have no outliers");
    const ChunkWords<4, kZeroPoints>& c = chunk[kQuad];
    const __half2 scales = RowScales(c.scales, d);
    ExpandStrip4<kZeroPoints>(c.codes.x, c.codes.z, thousand, ZeroOf(c.zeros & 15),
                              __low2half2(scales), a);
    ExpandStrip4<kZeroPoints>(c.codes.y, c.codes.w, thousand, ZeroOf(c.zeros >> 4),
                              __high2half2(scales), a + 1);
  }
};

}  // namespace fewbit::cuda
