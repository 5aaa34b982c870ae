// Activations as floats, [channel][token], which the outliers of the wide kernels read. The helper
// warps of some blocks of a launch make them from the slabs (wide_tile.h); those of all wait.
#pragma once

#include "kernels/cuda/device/wide_words.cuh"

namespace fewbit::cuda {

inline constexpr int kFloatTokens = 8;  // that a warp makes at once, of one slab

// Those of the 16 channels of a slab of a 2-bit tile, for tokens `first` .. of a group, by one
// warp: a lane has the 4 channels of one strip, so that a store instruction fills whole sectors.
template <int kTokens, bool kZeroPoints>
__device__ __forceinline__ void SlabToFloats(const WidePart& part, int group, int slab, int first) {
  // The factor of the terms (wide_tile.h) is so much less than the scale of the activations.
  constexpr float kToScale = quant::kStoredSecondOrderFactor * (kZeroPoints ? 2.0f : 4.0f);
  const int lane = threadIdx.x % 32, strip = lane % 4, token = first + lane / 4;
  const int quad = slab / kQuadSlabs, quarter = slab % kQuadSlabs;
  uint8_t* from = part.staged + group * part.group_bytes;
  const int2* meta =
      reinterpret_cast<const int2*>(from) + quad / (2 * quant::kTileChunks) * kTokens;
  const uint32_t* words =
      reinterpret_cast<const uint32_t*>(from + WideMetaBytes(part.w.shape, kTokens) +
                                        2 * kSlabBytes * (size_t{1} * kTokens * slab + token)) +
      strip;
  float* floats = reinterpret_cast<float*>(from + WideFloatsAt(part.w.shape, kTokens)) +
                  static_cast<size_t>(64 * quad + 16 * strip + 4 * quarter) * kTokens + token;
  const uint32_t high = __ldcg(words), low = __ldcg(words + kSlabBytes / 4);
  const float scale = __fmul_rn(__int_as_float(__ldcg(meta + token).x), kToScale);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int v = 256 * static_cast<int8_t>(high >> (8 * i)) + static_cast<int8_t>(low >> (8 * i));
    floats[i * kTokens] = __fmul_rn(__int2float_rn(v), scale);
  }
}

// All that matrices with outliers need, by kWarps warps of each of the first `makers` blocks, of
// which this is `warp`.
template <int kTokens, bool kZeroPoints, int kWarps, typename Args>
__device__ __forceinline__ void MakeFloats(const Args& a, int makers, int warp) {
  constexpr int kSlabItems = kTokens / kFloatTokens;
  if (static_cast<int>(blockIdx.x) >= makers) return;
  int item = blockIdx.x + warp * makers;
#pragma unroll 1
  for (int p = 0; p < a.parts; ++p) {
    const WidePart& part = a.part[p];
    if (part.w.outliers == nullptr) continue;
    const int of_group = kPairSlabs * part.w.shape.chunks2 * kSlabItems;
    const int items = of_group * a.groups;
#pragma unroll 1
    for (; item < items; item += kWarps * makers) {
      const int slab = item % of_group / kSlabItems;
      SlabToFloats<kTokens, kZeroPoints>(part, item / of_group, slab,
                                         item % kSlabItems * kFloatTokens);
    }
    item -= items;
  }
}

// The helpers of all blocks, kThreads of each (named barrier 1), wait for those of the makers: what
// these wrote before is read behind it, past the L1 cache. One thread of each block is the `first`.
// Needs all makers resident at once. meeting: how many makers have come, how many blocks have gone.
template <int kThreads>
__device__ __forceinline__ void MeetMakers(uint32_t* meeting, int makers, bool first) {
  NamedBarrier(1, kThreads);
  if (first) {
    if (static_cast<int>(blockIdx.x) < makers) {
      asm volatile("fence.acq_rel.gpu; red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(meeting)
                   : "memory");
    }
    const auto come = [&] {
      int v;
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(meeting) : "memory");
      return v;
    };
    while (come() != makers) __nanosleep(32);
  }
  NamedBarrier(1, kThreads);
}
// Later, once: launches leave the words as they found them, zero.
__device__ __forceinline__ void LeaveMeeting(uint32_t* meeting, bool first) {
  if (!first || atomicAdd(meeting + 1, 1) != gridDim.x - 1) return;
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %1};" ::"l"(meeting), "r"(0) : "memory");
}

}  // namespace fewbit::cuda
