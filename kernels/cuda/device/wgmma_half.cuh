// Tensor-core products of 16-bit numbers by a warpgroup (4 warps), sm_90a: operand A in registers,
// B in shared memory in panels of 64 elements with the 128-byte swizzle, float sums in registers.
// See wgmma.cuh for how they run.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/wgmma.cuh"

namespace fewbit::cuda {

// A panel: rows of 128 bytes, 16-byte piece i of row r at place i ^ (r % 8); 1024-byte aligned.
inline constexpr int kPanelRowBytes = 128;

// Operand B whose k lies along the panel's rows (64 of them a panel): columns are rows of the
// panel.
__device__ __forceinline__ uint64_t PanelRowsOperand(uint32_t shared) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = 8 * kPanelRowBytes / 16;
  return kSwizzle128 | kEightRows << 32 | uint64_t{1} << 16 | (shared & 0x3FFFFu) / 16;
}

// Operand B of 16 k for columns of 32 bytes behind each other, 16-byte piece i of column c at place
// i ^ (c / 4 % 2); 256-byte aligned.
__device__ __forceinline__ WgmmaOperand NarrowColumnsOperand(uint32_t shared) {
  constexpr uint32_t kSwizzle32 = uint32_t{3} << 30;
  constexpr uint32_t kEightColumns = 8 * 32 / 16;
  return {uint32_t{1} << 16 | (shared & 0x3FFFFu) / 16, kSwizzle32 | kEightColumns};
}

// Operand B whose k are rows of the panels (transposed = 1), columns along them, 64 to a panel,
// panels `panel_bytes` apart.
__device__ __forceinline__ uint64_t PanelColumnsOperand(uint32_t shared, uint32_t panel_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = 8 * kPanelRowBytes / 16;
  return kSwizzle128 | kEightRows << 32 | static_cast<uint64_t>(panel_bytes / 16) << 16 |
         (shared & 0x3FFFFu) / 16;
}

template <int kCount>
__device__ __forceinline__ void WgmmaPin(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void WgmmaPin(uint32_t (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

#define FEWBIT_FLOATS8(c, i)                                                                  \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
      "+f"(c[i + 6]), "+f"(c[i + 7])
#define FEWBIT_FLOATS32(c, i)                                                \
  FEWBIT_FLOATS8(c, i), FEWBIT_FLOATS8(c, i + 8), FEWBIT_FLOATS8(c, i + 16), \
      FEWBIT_FLOATS8(c, i + 24)
#define FEWBIT_WGMMA_N64(type)                                                         \
  asm volatile(                                                                        \
      "{ .reg .pred p; setp.ne.b32 p, %37, 0; "                                        \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                      \
      " {"                                                                             \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "         \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38; }"                                  \
      : FEWBIT_FLOATS32(c, 0)                                                          \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposed))
#define FEWBIT_WGMMA_N128(type)                                                          \
  asm volatile(                                                                          \
      "{ .reg .pred p; setp.ne.b32 p, %69, 0; "                                          \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                       \
      " {"                                                                               \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"   \
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70; }"                                    \
      : FEWBIT_FLOATS32(c, 0), FEWBIT_FLOATS32(c, 32)                                    \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposed))
#define FEWBIT_WGMMA_N256(type)                                                                    \
  asm volatile(                                                                                    \
      "{ .reg .pred p; setp.ne.b32 p, %133, 0; "                                                   \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                 \
      " {"                                                                                         \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                     \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "           \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
      "%111, "                                                                                     \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
      "%127"                                                                                       \
      "}, {%128, %129, %130, %131}, %132, p, 1, 1, %134; }"                                        \
      : FEWBIT_FLOATS32(c, 0), FEWBIT_FLOATS32(c, 32), FEWBIT_FLOATS32(c, 64),                     \
        FEWBIT_FLOATS32(c, 96)                                                                     \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kTransposed))

// sums (+)= a[64 x 16] b[16 x 2 kSums], a and b f16 or bf16; without `add` the sums start at zero.
// Warp w of the warpgroup has rows 16 w ..; in it a as in MmaF16 (mma.cuh) and sums 4 j .. 4 j + 3
// are the result of columns 8 j .. 8 j + 7 there.
template <bool kBf16, int kTransposed>
__device__ __forceinline__ void WgmmaHalves(float (&c)[32], const uint32_t* a, uint64_t b,
                                            int add) {
  if constexpr (kBf16) {
    FEWBIT_WGMMA_N64("bf16");
  } else {
    FEWBIT_WGMMA_N64("f16");
  }
}
template <bool kBf16, int kTransposed>
__device__ __forceinline__ void WgmmaHalves(float (&c)[64], const uint32_t* a, uint64_t b,
                                            int add) {
  if constexpr (kBf16) {
    FEWBIT_WGMMA_N128("bf16");
  } else {
    FEWBIT_WGMMA_N128("f16");
  }
}

template <bool kBf16, int kTransposed>
__device__ __forceinline__ void WgmmaHalves(float (&c)[128], const uint32_t* a, uint64_t b,
                                            int add) {
  if constexpr (kBf16) {
    FEWBIT_WGMMA_N256("bf16");
  } else {
    FEWBIT_WGMMA_N256("f16");
  }
}

#undef FEWBIT_FLOATS8
#undef FEWBIT_FLOATS32
#undef FEWBIT_WGMMA_N64
#undef FEWBIT_WGMMA_N128
#undef FEWBIT_WGMMA_N256

}  // namespace fewbit::cuda
