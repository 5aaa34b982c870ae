// Operands of dense.cu's tensor-core products, straight from memory to fragments. The order of the
// channels inside a product is free as long as weights and x agree, so a lane takes 16 neighbouring
// bytes of a weight row, and the same channels of x, whatever the manual's fragment order says.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device/mma.cuh"

namespace fewbit::cuda {

// Weights are read once: do not let them push x out of the first-level cache.
__device__ __forceinline__ uint4 LoadStreaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// W: __half or uint8_t (codes; the product is with code - 128). XElement: uint16_t (f16), or float,
// split into a high and a low part.
template <typename W, typename XElement>
struct DenseWords {
  using X = XElement;
  static constexpr bool kBytes = std::is_same_v<W, uint8_t>;
  static constexpr bool kSplit = std::is_same_v<XElement, float>;
  static constexpr int kStepChannels = kBytes ? 128 : 64;  // in 128 bytes of a row
  static constexpr int kLaneChannels = kBytes ? 16 : 8;    // in 16 bytes
  static constexpr int kPairs = kLaneChannels / 2;

  struct A {
    uint32_t low[kPairs], high[kPairs];  // pairs of channels of rows g and g + 8
  };
  struct B {
    uint32_t x[kPairs], rest[kSplit ? kPairs : 1];
  };

  __device__ static A Decode(const uint4& low, const uint4& high) {
    A a;
    const uint32_t l[4] = {low.x, low.y, low.z, low.w}, h[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if constexpr (kBytes) {
        a.low[i] = CodesToHalves(l[i / 2], i % 2);
        a.high[i] = CodesToHalves(h[i / 2], i % 2);
      } else {
        a.low[i] = l[i];
        a.high[i] = h[i];
      }
    }
    return a;
  }

  // Bytes 2 * pair and 2 * pair + 1, minus 128: 1024 + code is a half with the code in its low
  // byte.
  __device__ static uint32_t CodesToHalves(uint32_t codes, int pair) {
    const uint32_t biased = __byte_perm(codes, 0x64646464u, pair == 0 ? 0x4140 : 0x4342);
    const __half2 offset = __float2half2_rn(1024.0f + 128.0f);
    const __half2 v = __hsub2(*reinterpret_cast<const __half2*>(&biased), offset);
    return *reinterpret_cast<const uint32_t*>(&v);
  }

  __device__ static B LoadX(const X* x) {
    B b;
    if constexpr (kSplit) {
#pragma unroll
      for (int i = 0; i < kPairs / 2; ++i) {
        const float4 v = reinterpret_cast<const float4*>(x)[i];
        Split(v.x, v.y, &b.x[2 * i], &b.rest[2 * i]);
        Split(v.z, v.w, &b.x[2 * i + 1], &b.rest[2 * i + 1]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPairs / 4; ++i) {
        const uint4 v = reinterpret_cast<const uint4*>(x)[i];
        b.x[4 * i] = v.x;
        b.x[4 * i + 1] = v.y;
        b.x[4 * i + 2] = v.z;
        b.x[4 * i + 3] = v.w;
      }
    }
    return b;
  }

  __device__ static void Split(float first, float second, uint32_t* high, uint32_t* low) {
    const __half2 h = __floats2half2_rn(first, second);
    const __half2 l = __floats2half2_rn(first - __low2float(h), second - __high2float(h));
    *high = *reinterpret_cast<const uint32_t*>(&h);
    *low = *reinterpret_cast<const uint32_t*>(&l);
  }

  __device__ static void Multiply(float (&c)[4], const A& a, const B& b) {
#pragma unroll
    for (int i = 0; i < kPairs; i += 2) {
      MmaF16(c, a.low[i], a.high[i], a.low[i + 1], a.high[i + 1], b.x[i], b.x[i + 1]);
      if constexpr (kSplit) {
        MmaF16(c, a.low[i], a.high[i], a.low[i + 1], a.high[i + 1], b.rest[i], b.rest[i + 1]);
      }
    }
  }
};

}  // namespace fewbit::cuda
