// Outliers of the persistent small-batch kernel: warps of their own sum them from the activations
// in shared memory, ahead of the tiles. Every lane has one list, for all tokens.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/stream_input.cuh"

namespace fewbit::cuda {

inline constexpr int kOutlierLists = quant::kBlockRows * kSegments;  // of a row block

// The entries of a block's share: the first one, and whether they have room in shared memory.
struct OutlierShare {
  uint32_t first = 0;
  bool fits = true;

  // Asks for the lists of the share, which lie behind each other; they are weights and need no wait
  // for earlier kernels. The `threads` threads then wait for their copies and pass a barrier.
  __device__ __forceinline__ void Fetch(const StreamArgs& a, const StreamPart& p,
                                        const StreamShare& s, uint8_t* shared, int id,
                                        int threads) {
    uint32_t* bounds = reinterpret_cast<uint32_t*>(shared + a.layout.bounds);
    uint32_t* entries = reinterpret_cast<uint32_t*>(shared + a.layout.entries);
    const int lists = s.row_blocks * kOutlierLists;
    const uint32_t* start =
        p.outlier_start + static_cast<size_t>(s.first_row_block) * kOutlierLists;
#pragma unroll 1
    for (int i = id; i <= lists; i += threads) CopyAsync4(bounds + i, start + i);
    first = __ldg(start);
    const uint32_t count = __ldg(start + lists) - first;
    fits = count <= static_cast<uint32_t>(a.layout.entry_capacity);
    if (fits) {
#pragma unroll 1
      for (uint32_t i = id; i < count; i += threads) {
        CopyAsync4(entries + i, p.outliers + first + i);
      }
    }
    CopyAsyncCommit();
  }
};

template <int kTokens>
class StreamOutliers {
 public:
  __device__ __forceinline__ StreamOutliers(const StreamArgs& a, const StreamPart& p,
                                            const StreamBlock& b, const OutlierShare& share)
      : bounds_(reinterpret_cast<uint32_t*>(b.shared + a.layout.bounds)),
        global_(p.outliers),
        shifted_(reinterpret_cast<uint32_t*>(b.shared + a.layout.entries) - share.first),
        fits_(share.fits),
        meta_(reinterpret_cast<const int2*>(b.shared + a.layout.x)),
        planes_(b.shared + a.layout.x + p.num_tiles * EvenTokens(kTokens) * sizeof(int2)) {}

  // sums[token] = one list times the activations, in list order.
  __device__ __forceinline__ void Sum(int list, const float (&factors)[kTokens],
                                      float (&sums)[kTokens]) const {
    if (fits_) {
      Walk(list, factors, sums, [&](uint32_t at) { return shifted_[at]; });
    } else {
      Walk(list, factors, sums, [&](uint32_t at) { return __ldg(global_ + at); });
    }
  }

 private:
  template <typename Entry>
  __device__ __forceinline__ void Walk(int list, const float (&factors)[kTokens],
                                       float (&sums)[kTokens], const Entry& entry) const {
    constexpr int kTileChannels = quant::kTileChunks * quant::ChunkChannels(2);
    const uint32_t end = bounds_[list + 1];
#pragma unroll 1
    for (uint32_t at = bounds_[list]; at < end; ++at) {
      const uint32_t e = entry(at), position = e & 0xFFFF;
      const float value = __half2float(__ushort_as_half(static_cast<uint16_t>(e >> 16)));
      const int8_t* x = reinterpret_cast<const int8_t*>(planes_) +
                        position / kColumnBytes * QuadBytes(kTokens) + position % kColumnBytes;
      const int2* meta = meta_ + position / kTileChannels * EvenTokens(kTokens);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const int v = 256 * x[2 * kColumnBytes * i] + x[2 * kColumnBytes * i + kColumnBytes];
        float scale = __int_as_float(meta[i].x);
        if constexpr (kTokens <= kMostMadeTokens) scale = __fmul_rn(scale, factors[i]);
        const float scaled = __fmul_rn(__int2float_rn(v), scale);
        sums[i] = __fmaf_rn(value, scaled, sums[i]);
      }
    }
  }

  const uint32_t* bounds_;
  const uint32_t* global_;
  const uint32_t* shifted_;
  bool fits_;
  const int2* meta_;
  const uint8_t* planes_;
};

// Two warps take a row block, 8 rows each; lanes are its lists. Sums go behind the row block's
// terms.
template <int kTokens>
__device__ __forceinline__ void SumOutliers(const StreamArgs& a, const StreamPart& p,
                                            const StreamShare& s, const StreamBlock& b,
                                            const StreamOutliers<kTokens>& outliers, int warp,
                                            int warps) {
  const int lane = threadIdx.x % 32, half = warp % 2;
  float factors[kTokens];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) factors[i] = InputFactor<kTokens>(a, b, i);
  RingPlace slot;
  for (int i = 0; i < warp / 2; ++i) slot.Advance(1, a.term_slots);
#pragma unroll 1
  for (int row_block = warp / 2; row_block < s.row_blocks; row_block += warps / 2) {
    float sums[kTokens] = {};
    outliers.Sum(row_block * kOutlierLists + 32 * half + lane, factors, sums);
    // ((E0 + E1) + E2) + E3 in the lanes of segment 0.
#pragma unroll
    for (float& sum : sums) {
      float all = sum;
#pragma unroll
      for (int i = 1; i < kSegments; ++i) {
        all = __fadd_rn(all, __shfl_down_sync(0xFFFFFFFFu, sum, i));
      }
      sum = all;
    }
    if (row_block >= a.term_slots) BarrierWait(b.free[slot.slot], slot.parity ^ 1);
    float* to = reinterpret_cast<float*>(b.shared + a.layout.terms) +
                slot.slot * StreamTermFloats(p.num_tiles, kTokens) +
                (p.num_tiles * quant::kBlockRows + 8 * half + lane / kSegments) * kTokens;
    if (lane % kSegments == 0) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) to[i] = sums[i];
    }
    __syncwarp();
    if (lane == 0) BarrierArrive(b.ready[slot.slot]);
    for (int i = 0; i < warps / 2; ++i) slot.Advance(1, a.term_slots);
  }
}

}  // namespace fewbit::cuda
