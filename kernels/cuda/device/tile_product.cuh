// The product of one weight tile in shared memory, of one or more row blocks, with the staged
// activations of up to 4 * kTiles tokens, by one warp, in exact int32 arithmetic.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/dequant.cuh"
#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/device_tile.h"

namespace fewbit::cuda {

// Where a lane finds its column of the activations: column 2 * token + plane, byte planes. Columns
// beyond the tokens repeat the last one; their sums are not used.
template <int kTiles>
struct ActivationView {
  const uint8_t* first;  // this lane's 16 bytes in the first quad, column tile 0
  int last;              // from there to this lane's bytes in the last column tile
  int quad_bytes;

  __device__ ActivationView(const uint8_t* planes, int bytes_per_quad, int tokens, int lane)
      : quad_bytes(bytes_per_quad) {
    const int g = lane / 4, t = lane % 4, columns = 2 * tokens;
    const int offset = min(g, columns - 1) * kColumnBytes + 16 * t;
    first = planes + offset;
    last = min(8 * (kTiles - 1) + g, columns - 1) * kColumnBytes + 16 * t - offset;
  }
  // `quad` = first + quad * quad_bytes.
  __device__ __forceinline__ void Load(const uint8_t* quad, uint4 (&x)[kTiles]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      x[j] = *reinterpret_cast<const uint4*>(quad + (j + 1 < kTiles ? 8 * kColumnBytes * j : last));
    }
  }
};

// The activations of a full tile of width kBits in registers.
template <int kBits, int kTiles>
struct TileActivations {
  uint4 x[quant::kTileChunks][ChunkQuads(kBits)][kTiles];

  __device__ __forceinline__ void Load(const uint8_t* quad, const ActivationView<kTiles>& view) {
#pragma unroll
    for (int c = 0; c < quant::kTileChunks; ++c) {
#pragma unroll
      for (int q = 0; q < ChunkQuads(kBits); ++q, quad += view.quad_bytes) view.Load(quad, x[c][q]);
    }
  }
};

// Sums of one tile per row block: rows g, g + 8 and columns 2t, 2t + 1 of each column tile.
template <int kBlocks, int kTiles>
using TileSums = int[kBlocks][kTiles][4];

// The sub-scale is what else a scale needs is made of: without that the compiler takes each anew
// from the packed word, an instruction more.
template <bool kZeroPoints>
__device__ __forceinline__ RowScale MakeScale(uint32_t sub_scale, uint32_t zero) {
  asm("" : "+r"(sub_scale));
  return kZeroPoints ? ZeroPointScale(sub_scale, zero) : SymmetricScale(sub_scale);
}

// The 16 channels of a quad that one code word per lane covers: rows g in `w0`, g + 8 in `w1`.
// `even` and `odd` may be the same sums.
template <int kTiles, bool kZeroPoints>
__device__ __forceinline__ void QuadProduct(uint32_t w0, uint32_t w1, const RowScale& s0,
                                            const RowScale& s1, const uint4 (&x)[kTiles],
                                            int (&even)[kTiles][4], int (&odd)[kTiles][4]) {
  uint32_t a0[4], a1[4];
  ExpandCodes<kZeroPoints>(w0, s0, a0);
  ExpandCodes<kZeroPoints>(w1, s1, a1);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) MmaU8S8(even[j], a0[0], a1[0], a0[1], a1[1], x[j].x, x[j].y);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) MmaU8S8(odd[j], a0[2], a1[2], a0[3], a1[3], x[j].z, x[j].w);
}

// This lane's part of one chunk record.
template <int kBits, bool kZeroPoints>
struct ChunkWords {
  uint4 codes;
  uint32_t scales, zeros;

  __device__ __forceinline__ void Load(const uint8_t* record, int lane) {
    const uint8_t* meta = record + quant::kChunkCodeBytes;
    codes = *reinterpret_cast<const uint4*>(record + 16 * lane);
    scales = kBits == 2 ? *reinterpret_cast<const uint16_t*>(meta + 2 * lane) : meta[lane];
    zeros = kZeroPoints ? meta[quant::ChunkScaleBytes(kBits) + lane] : 0;
  }
};

// Quad kQuad (0 or 1) of a chunk of 2 bits; two sets of sums, because one would be a dependent
// chain.
template <int kQuad, int kTiles, bool kZeroPoints>
__device__ __forceinline__ void Quad2Product(const ChunkWords<2, kZeroPoints>& w,
                                             const uint4 (&x)[kTiles], int (&even)[kTiles][4],
                                             int (&odd)[kTiles][4]) {
  const uint32_t scales = kQuad == 0 ? w.scales & 0xFF : w.scales >> 8;
  const uint32_t zeros = kQuad == 0 ? w.zeros & 0xF : w.zeros >> 4;
  QuadProduct<kTiles, kZeroPoints>(kQuad == 0 ? w.codes.x : w.codes.z,
                                   kQuad == 0 ? w.codes.y : w.codes.w,
                                   MakeScale<kZeroPoints>(scales & 15, zeros & 3),
                                   MakeScale<kZeroPoints>(scales >> 4, zeros >> 2), x, even, odd);
}

// One plane of a chunk of 4 bits, a 2-bit code itself. A zero-point splits into planes like a
// code: z = 4 * (z >> 2) + (z & 3). Plane 0 is the high one.
template <int kPlane, int kTiles, bool kZeroPoints>
__device__ __forceinline__ void PlaneProduct(const ChunkWords<4, kZeroPoints>& w,
                                             const uint4 (&x)[kTiles], int (&sums)[kTiles][4]) {
  const uint32_t s0 = w.scales & 15, s1 = w.scales >> 4;
  if constexpr (kPlane == 0) {
    QuadProduct<kTiles, kZeroPoints>(w.codes.x, w.codes.y,
                                     MakeScale<kZeroPoints>(s0, (w.zeros >> 2) & 3),
                                     MakeScale<kZeroPoints>(s1, (w.zeros >> 6) & 3), x, sums, sums);
  } else {
    QuadProduct<kTiles, kZeroPoints>(w.codes.z, w.codes.w, MakeScale<kZeroPoints>(s0, w.zeros & 3),
                                     MakeScale<kZeroPoints>(s1, (w.zeros >> 4) & 3), x, sums, sums);
  }
}

// Runs product.template operator()<quad in chunk>(words, x) for every quad of a tile, with the
// words of all row blocks; the activations of the next quad are under way meanwhile. Full tiles,
// nearly all, run without a branch.
template <int kBlocks, int kTiles, int kBits, bool kZeroPoints, typename Product>
__device__ __forceinline__ void ForEachQuad(const uint8_t* tile, int pitch, int chunks, int lane,
                                            const uint8_t* quad, const ActivationView<kTiles>& view,
                                            const Product& product) {
  constexpr int kRecord = RecordBytes(kBits, kZeroPoints), kQuads = ChunkQuads(kBits);
  uint4 x[kTiles];
  view.Load(quad, x);
  const auto chunk = [&](const uint8_t* record, bool last) {
    ChunkWords<kBits, kZeroPoints> w[kBlocks];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) w[b].Load(record + b * pitch, lane);
    const auto step = [&]<int kQuad>() {
      uint4 next[kTiles] = {};
      quad += view.quad_bytes;
      if (!last || kQuad + 1 < kQuads) view.Load(quad, next);
      product.template operator()<kQuad>(w, x);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) x[j] = next[j];
    };
    step.template operator()<0>();
    if constexpr (kQuads == 2) step.template operator()<1>();
  };
  if (chunks == quant::kTileChunks) {
#pragma unroll
    for (int c = 0; c < quant::kTileChunks; ++c) {
      chunk(tile + c * kRecord, c + 1 == quant::kTileChunks);
    }
    return;
  }
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) chunk(tile + c * kRecord, c + 1 == chunks);
}

template <int kBlocks, int kTiles, typename Visit>
__device__ __forceinline__ void ForEachSum(const Visit& visit) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) visit(b, j, i);
    }
  }
}

// sums = the whole tile: high and low byte planes of x are still separate columns. Row blocks lie
// `pitch` bytes apart. `quad` points at this lane's activations of the tile's first quad. With many
// sums there are no registers for a second set: the planes of 4-bit codes then go one after the
// other through the same sums.
template <int kBlocks, int kTiles, bool kZeroPoints>
__device__ __forceinline__ void TileProduct(const uint8_t* tile, int pitch, int bits, int chunks,
                                            int lane, const uint8_t* quad,
                                            const ActivationView<kTiles>& view,
                                            TileSums<kBlocks, kTiles>& sums) {
  constexpr bool kTwoSets = kBlocks * kTiles < 8;
  using Sums = TileSums<kBlocks, kTiles>;
  Sums spare;
  Sums& other = kTwoSets ? spare : sums;
  ForEachSum<kBlocks, kTiles>([&](int b, int j, int i) { sums[b][j][i] = other[b][j][i] = 0; });
  if (bits == 2) {
    ForEachQuad<kBlocks, kTiles, 2, kZeroPoints>(
        tile, pitch, chunks, lane, quad, view, [&]<int kQuad>(const auto& w, const auto& x) {
#pragma unroll
          for (int b = 0; b < kBlocks; ++b) {
            Quad2Product<kQuad, kTiles, kZeroPoints>(w[b], x, other[b], sums[b]);
          }
        });
    if constexpr (kTwoSets) {
      ForEachSum<kBlocks, kTiles>([&](int b, int j, int i) { sums[b][j][i] += other[b][j][i]; });
    }
    return;
  }
  ForEachQuad<kBlocks, kTiles, 4, kZeroPoints>(
      tile, pitch, chunks, lane, quad, view, [&]<int kQuad>(const auto& w, const auto& x) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          PlaneProduct<0, kTiles, kZeroPoints>(w[b], x, other[b]);
          if constexpr (kTwoSets) PlaneProduct<1, kTiles, kZeroPoints>(w[b], x, sums[b]);
        }
      });
  if constexpr (kTwoSets) {
    ForEachSum<kBlocks, kTiles>([&](int b, int j, int i) { sums[b][j][i] += 4 * other[b][j][i]; });
  } else {
    ForEachSum<kBlocks, kTiles>([&](int b, int j, int i) { sums[b][j][i] *= 4; });
    ForEachQuad<kBlocks, kTiles, 4, kZeroPoints>(
        tile, pitch, chunks, lane, quad, view, [&]<int kQuad>(const auto& w, const auto& x) {
#pragma unroll
          for (int b = 0; b < kBlocks; ++b) PlaneProduct<1, kTiles, kZeroPoints>(w[b], x, sums[b]);
        });
  }
}

// The same for one full tile of one row block whose activations are in registers.
template <int kBits, bool kZeroPoints>
__device__ __forceinline__ void FullTileProduct(const uint8_t* tile, int lane,
                                                const TileActivations<kBits, 1>& x,
                                                int (&sums)[1][4]) {
  constexpr int kRecord = RecordBytes(kBits, kZeroPoints);
  int other[1][4] = {};
  ForEachSum<1, 1>([&](int, int j, int i) { sums[j][i] = 0; });
  ChunkWords<kBits, kZeroPoints> w[quant::kTileChunks];
#pragma unroll
  for (int c = 0; c < quant::kTileChunks; ++c) w[c].Load(tile + c * kRecord, lane);
#pragma unroll
  for (int c = 0; c < quant::kTileChunks; ++c) {
    if constexpr (kBits == 2) {
      Quad2Product<0, 1, kZeroPoints>(w[c], x.x[c][0], other, sums);
      Quad2Product<1, 1, kZeroPoints>(w[c], x.x[c][1], other, sums);
    } else {
      PlaneProduct<0, 1, kZeroPoints>(w[c], x.x[c][0], other);
      PlaneProduct<1, 1, kZeroPoints>(w[c], x.x[c][0], sums);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[0][i] += (kBits == 2 ? 1 : 4) * other[0][i];
}

// This lane's place in a quad of the staged activations of kTokens tokens, a power of two.
template <int kTokens>
__device__ __forceinline__ int ColumnOffset(int lane) {
  return min(lane / 4, 2 * kTokens - 1) * kColumnBytes + 16 * (lane % 4);
}

// sums = the whole tile of one row block, `chunks` of 4 or fewer, for kTokens tokens. `x` is this
// lane's place in the tile's first quad; `d` are those of rows g and g + 8. When all has been
// asked for, loaded(a word that has come when all has) is called: then the tile's memory is needed
// no more.
template <int kTokens, int kBits, bool kZeroPoints, typename Loaded>
__device__ __forceinline__ void WholeTileProduct(const uint8_t* tile, int chunks, int lane,
                                                 const uint8_t* x,
                                                 int (&sums)[(kTokens + 3) / 4][4], __half2* d,
                                                 const Loaded& loaded) {
  constexpr int kTiles = (kTokens + 3) / 4, kRecord = RecordBytes(kBits, kZeroPoints);
  int other[kTiles][4] = {};
  ForEachSum<1, kTiles>([&](int, int j, int i) { sums[j][i] = 0; });
  const auto load = [](const uint8_t* quad, uint4(&to)[kTiles]) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      to[j] = *reinterpret_cast<const uint4*>(quad + 8 * kColumnBytes * j);
    }
  };
  const auto product = [&](const ChunkWords<kBits, kZeroPoints>& w, const uint8_t* quad) {
    uint4 column[kTiles];
    load(quad, column);
    if constexpr (kBits == 2) {
      Quad2Product<0, kTiles, kZeroPoints>(w, column, other, sums);
      load(quad + QuadBytes(kTokens), column);
      Quad2Product<1, kTiles, kZeroPoints>(w, column, other, sums);
    } else {
      PlaneProduct<0, kTiles, kZeroPoints>(w, column, other);
      PlaneProduct<1, kTiles, kZeroPoints>(w, column, sums);
    }
  };
  constexpr int kChunkBytes = ChunkQuads(kBits) * QuadBytes(kTokens);
  *d = reinterpret_cast<const __half2*>(tile + chunks * kRecord)[lane / 4];
  const auto chunk = [&](int c, bool last) {
    ChunkWords<kBits, kZeroPoints> w;
    w.Load(tile + c * kRecord, lane);
    // All words: where registers are short, the compiler loads them apart and in any order.
    if (last) {
      loaded(w.codes.x | w.codes.y | w.codes.z | w.codes.w | (w.scales ^ w.zeros) |
             reinterpret_cast<const uint32_t&>(*d));
    }
    product(w, x + c * kChunkBytes);
  };
  if (chunks == quant::kTileChunks) {  // nearly every tile
#pragma unroll
    for (int c = 0; c < quant::kTileChunks; ++c) chunk(c, c + 1 == quant::kTileChunks);
  } else {
#pragma unroll 1
    for (int c = 0; c < chunks; ++c) chunk(c, c + 1 == chunks);
  }
  ForEachSum<1, kTiles>(
      [&](int, int j, int i) { sums[j][i] += (kBits == 2 ? 1 : 4) * other[j][i]; });
}

}  // namespace fewbit::cuda
