// Where StageTile (stage_token.cuh) leaves a token in the form of wide_tile.h.
#pragma once

#include "kernels/cuda/staging.h"
#include "kernels/cuda/wide_tile.h"

namespace fewbit::cuda {

// The group of a token, and its place there.
struct SlabToken {
  uint8_t* group;
  int token;

  __device__ __forceinline__ SlabToken(const StageTarget& to, int of_step) {
    const int index = of_step / to.group_tokens;
    group = to.staged + index * to.group_bytes;
    token = of_step - index * to.group_tokens;
  }
  __device__ __forceinline__ uint8_t* Slab(const StageTarget& to, int slab) const {
    return group + WideMetaBytes(to.shape, to.group_tokens) +
           2 * kSlabBytes * (static_cast<size_t>(slab) * to.group_tokens + token);
  }
};

// Quads of a tile with what fills up its last pair.
__device__ __forceinline__ int PaddedQuads(const quant::PackedShape& s, int bits, int of_width) {
  return 2 * WidePairs(bits, s.tile_chunks(bits, of_width));
}

// As StagedBytesAt: the 4 high bytes of a quarter of a strip. Every tile but the last of a width is
// full, so slabs follow quads.
__device__ __forceinline__ uint8_t* SlabBytesAt(const StageTarget& to, int token, int position,
                                                int quarter, int* to_low) {
  const quant::PackedShape& s = to.shape;
  const int quad = position / 4, quads2 = 2 * s.chunks2;
  const int tile = quad < quads2 ? quad / (2 * quant::kTileChunks)
                                 : s.tiles(2) + (quad - quads2) / quant::kTileChunks;
  const int slab = FirstSlab(s, tile) + kQuadSlabs * (quad - FirstQuad(s, tile)) + quarter;
  *to_low = kSlabBytes;
  return SlabToken(to, token).Slab(to, slab) + 4 * (position % 4);
}

// The sum of v over a strip of a 4-bit tile; `sum` is this lane's quarter, lanes 4 i .. 4 i + 3
// have one strip. Each stores one byte.
__device__ __forceinline__ void StoreParitySlabs(const StageTarget& to, int token, int tile,
                                                 int strip, int sum) {
  sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
  sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
  const int high = (sum + 128) >> 8, low = sum - 256 * high;
  const int plane = threadIdx.x % 2, slab = threadIdx.x / 2 % 2;
  const int value = plane == 0 ? high : low;
  const quant::PackedShape& s = to.shape;
  const int first = FirstSlab(s, tile) + kQuadSlabs * PaddedQuads(s, 4, tile - s.tiles(2));
  SlabToken(to, token).Slab(to, first + slab)[kSlabBytes * plane + 4 * (strip % 4) + strip / 4] =
      static_cast<uint8_t>(slab == 0 ? value & 15 : value >> 4);
}

__device__ __forceinline__ void StoreSlabFloat(const StageTarget& to, int token, int channel,
                                               float value) {
  const SlabToken at(to, token);
  float* floats = reinterpret_cast<float*>(at.group + WideFloatsAt(to.shape, to.group_tokens));
  floats[static_cast<size_t>(channel) * to.group_tokens + at.token] = value;
}

// sum: of v over the tile. A product of bytes is too large by 128 times what the slabs hold; with
// 4 bits it is half of the sum that `d` and the scales belong to.
__device__ __forceinline__ void StoreSlabMeta(const StageTarget& to, int token, int tile,
                                              float scale, int sum) {
  const bool two = tile < to.shape.tiles(2);
  const float unit =
      1.0f / (quant::kStoredSecondOrderFactor * (to.shape.zero_points ? 2.0f : 4.0f));
  const float factor = __fmul_rn(scale, unit) * (two ? 1.0f : 2.0f);
  const uint32_t excess = two ? 128u : 256u;
  const SlabToken at(to, token);
  reinterpret_cast<int2*>(at.group)[tile * to.group_tokens + at.token] =
      make_int2(__float_as_int(factor), static_cast<int>(0u - excess * static_cast<uint32_t>(sum)));
}

}  // namespace fewbit::cuda
