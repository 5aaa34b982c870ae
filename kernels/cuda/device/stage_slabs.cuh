// Where StageTile (stage_token.cuh) leaves a token in the form of wide_tile.h.
#pragma once

#include "kernels/cuda/staging.h"
#include "kernels/cuda/wide_tile.h"

namespace fewbit::cuda {

inline constexpr int kQuadStrips = 4;

// Without a division where one group has all tokens.
__device__ __forceinline__ int GroupOfToken(const StageTarget& to, int token) {
  return token < to.group_tokens ? 0 : token / to.group_tokens;
}

// The group of a token, and its place there.
struct SlabToken {
  uint8_t* group;
  int token;

  __device__ __forceinline__ SlabToken(const StageTarget& to, int of_step) {
    const int index = GroupOfToken(to, of_step);
    group = to.staged + index * to.group_bytes;
    token = of_step - index * to.group_tokens;
  }
  // 16 high bytes, then 16 low ones.
  __device__ __forceinline__ uint8_t* Slab(const StageTarget& to, int slab) const {
    return group + WideMetaBytes(to.shape, to.group_tokens) +
           2 * kSlabBytes * (static_cast<size_t>(slab) * to.group_tokens + token);
  }
};

// Quads of a tile with what fills up its last pair.
__device__ __forceinline__ int PaddedQuads(const quant::PackedShape& s, int bits, int of_width) {
  return 2 * WidePairs(bits, s.tile_chunks(bits, of_width));
}

// The sums of v over the strips of a 4-bit tile: `sums` are this lane's quarters of the strips of
// its quad. All lanes of the warp call it.
__device__ __forceinline__ void StoreParitySlabs(const StageTarget& to, const SlabToken& at,
                                                 int tile, const int (&sums)[kQuadStrips]) {
  const quant::PackedShape& s = to.shape;
  const int lane = threadIdx.x % 32, quad = lane / 4;
  const int plane = lane % 2, slab = lane / 2 % 2;
  const int first = FirstSlab(s, tile) + kQuadSlabs * PaddedQuads(s, 4, tile - s.tiles(2));
  uint8_t* bytes = at.Slab(to, first + slab) + kSlabBytes * plane + quad;
#pragma unroll
  for (int t = 0; t < kQuadStrips; ++t) {
    int sum = sums[t];
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
    const int high = (sum + 128) >> 8, low = sum - 256 * high;
    const int value = plane == 0 ? high : low;
    if (quad < quant::kTileChunks) {
      bytes[4 * t] = static_cast<uint8_t>(slab == 0 ? value & 15 : value >> 4);
    }
  }
}

// What turns a scale into the factor of a term: a power of two.
__device__ __forceinline__ float SlabUnit(const StageTarget& to) {
  return 1.0f / (quant::kStoredSecondOrderFactor * (to.shape.zero_points ? 2.0f : 4.0f));
}

// sum: of v over the tile. A product of bytes is too large by 128 times what the slabs hold; with
// 4 bits it is half of the sum that `d` and the scales belong to.
__device__ __forceinline__ void StoreSlabMeta(const StageTarget& to, const SlabToken& at, int tile,
                                              float scale, int sum) {
  const bool two = tile < to.shape.tiles(2);
  const float factor = __fmul_rn(scale, SlabUnit(to)) * (two ? 1.0f : 2.0f);
  const uint32_t excess = two ? 128u : 256u;
  reinterpret_cast<int2*>(at.group)[tile * to.group_tokens + at.token] =
      make_int2(__float_as_int(factor), static_cast<int>(0u - excess * static_cast<uint32_t>(sum)));
}

}  // namespace fewbit::cuda
