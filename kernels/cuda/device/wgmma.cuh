// Integer tensor-core products of a warpgroup (4 warps), sm_90a: operand A in registers, B in
// shared memory, sums in registers. They run on their own: fence, issue, commit, wait.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/async_copy.cuh"

namespace fewbit::cuda {

// Before the first product of a batch: orders the registers written so far.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending batches are under way.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of the sums across a fence or wait.
template <int kCount>
__device__ __forceinline__ void WgmmaPin(int (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(sums[i])::"memory");
}

// Operand B without swizzling, k-major: core matrices of 8 columns x 16 bytes, 128 bytes each,
// those of neighbouring columns 128 bytes apart, those of neighbouring k `slab_bytes`.
struct WgmmaOperand {
  uint32_t place, strides;

  // The same `bytes` further on, a multiple of 16.
  __device__ __forceinline__ WgmmaOperand operator+(int bytes) const {
    return {place + static_cast<uint32_t>(bytes) / 16, strides};
  }
  __device__ __forceinline__ uint64_t Descriptor() const {
    return static_cast<uint64_t>(strides) << 32 | place;
  }
};
__device__ __forceinline__ WgmmaOperand WgmmaOperandB(const void* shared, int slab_bytes) {
  constexpr uint32_t kColumnStride = 128;
  return {(SharedAddress(shared) & 0x3FFFFu) / 16 | static_cast<uint32_t>(slab_bytes / 16) << 16,
          kColumnStride / 16};
}

#define FEWBIT_SUMS8(c, i)                                                                    \
  "+r"(c[i]), "+r"(c[i + 1]), "+r"(c[i + 2]), "+r"(c[i + 3]), "+r"(c[i + 4]), "+r"(c[i + 5]), \
      "+r"(c[i + 6]), "+r"(c[i + 7])
#define FEWBIT_SUMS16(c, i) FEWBIT_SUMS8(c, i), FEWBIT_SUMS8(c, i + 8)
#define FEWBIT_SUMS32(c, i) FEWBIT_SUMS16(c, i), FEWBIT_SUMS16(c, i + 16)
#define FEWBIT_SUMS64(c, i) FEWBIT_SUMS32(c, i), FEWBIT_SUMS32(c, i + 32)

// sums (+)= a[64 x 32] b[32 x 2 kSums], a unsigned and b signed bytes; without `add` the sums start
// at zero. Warp w of the warpgroup has rows 16 w ..; in it a as in MmaU8S8 (mma.cuh) and sums 4 j
// .. 4 j + 3 are the result of columns 8 j .. 8 j + 7 there.
__device__ __forceinline__ void WgmmaU8S8(int (&c)[16], const uint32_t* a, const WgmmaOperand& b,
                                          int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %21, 0; "
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, %20, p; }"
      : FEWBIT_SUMS16(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.Descriptor()), "r"(add));
}
__device__ __forceinline__ void WgmmaU8S8(int (&c)[32], const uint32_t* a, const WgmmaOperand& b,
                                          int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p; }"
      : FEWBIT_SUMS32(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.Descriptor()), "r"(add));
}
__device__ __forceinline__ void WgmmaU8S8(int (&c)[64], const uint32_t* a, const WgmmaOperand& b,
                                          int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %69, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p; }"
      : FEWBIT_SUMS64(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.Descriptor()), "r"(add));
}

#undef FEWBIT_SUMS8
#undef FEWBIT_SUMS16
#undef FEWBIT_SUMS32
#undef FEWBIT_SUMS64

}  // namespace fewbit::cuda
