// Words around 16-bit matrix fragments of one warp: matrix loads from shared memory, transposition,
// products in f16 or bf16, and i8 cache elements as f16. lane = 4 * g + t.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace fewbit::cuda {

// Four 8 x 8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i and
// gets of each matrix the elements (g, 2t), (g, 2t + 1).
__device__ __forceinline__ void LoadMatrices4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same, transposed: elements (2t, g), (2t + 1, g).
__device__ __forceinline__ void LoadMatrices4Transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// Two matrices; addresses of lanes 16 and up are not used. r[2] and r[3] stay.
__device__ __forceinline__ void LoadMatrices2(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatrices2Transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

// Transposes an 8 x 8 matrix of 16-bit elements that lies in a register of each lane.
__device__ __forceinline__ uint32_t TransposeMatrix(uint32_t v) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
  return out;
}

// The 16-bit type that a cache's elements are multiplied in.
struct HalfMath {
  static __device__ __forceinline__ uint32_t Pack(float low, float high) {
    const __half2 v = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(v);
  }
  // c[16 x 8] += a[16 x 16] b[16 x 8], fragments as in MmaF16.
  static __device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    MmaF16(c, a[0], a[1], a[2], a[3], b0, b1);
  }
};
struct BfloatMath {
  static __device__ __forceinline__ uint32_t Pack(float low, float high) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(v);
  }
  static __device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    MmaBf16(c, a[0], a[1], a[2], a[3], b0, b1);
  }
};

// Bytes kFirst and kSecond of `bytes` as f16 numbers byte - 128, exactly.
template <int kFirst, int kSecond>
__device__ __forceinline__ uint32_t WidenBytes(uint32_t bytes) {
  constexpr uint32_t kSelect = 0x4040u | kFirst | kSecond << 8;
  const uint32_t raised = __byte_perm(bytes, 0x64646464u, kSelect);  // 1024 + byte
  constexpr uint32_t kRaise = 0x64806480u;                           // 1152, twice
  const __half2 v =
      __hsub2(reinterpret_cast<const __half2&>(raised), reinterpret_cast<const __half2&>(kRaise));
  return reinterpret_cast<const uint32_t&>(v);
}
__device__ __forceinline__ uint32_t MultiplyHalves(uint32_t a, uint32_t b) {
  const __half2 v =
      __hmul2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
  return reinterpret_cast<const uint32_t&>(v);
}

// 16 bytes of i8 cache elements as f16 numbers times `scale` (an f16 number's bits).
__device__ __forceinline__ void WidenPiece(const uint4& bytes, uint32_t scale, uint4 (&out)[2]) {
  const uint32_t twice = scale | scale << 16;
  const auto low = [&](uint32_t b) { return MultiplyHalves(WidenBytes<0, 1>(b), twice); };
  const auto high = [&](uint32_t b) { return MultiplyHalves(WidenBytes<2, 3>(b), twice); };
  out[0] = make_uint4(low(bytes.x), high(bytes.x), low(bytes.y), high(bytes.y));
  out[1] = make_uint4(low(bytes.z), high(bytes.z), low(bytes.w), high(bytes.w));
}

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Makes this thread's stores to shared memory come before bulk copies into it that are asked for
// after a later barrier.
__device__ __forceinline__ void FenceBeforeBulkCopies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace fewbit::cuda
