// What the two wide kernels have in common: places in rings, codes to bytes in registers, exact
// sums of a tile to float terms.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/dequant.cuh"
#include "kernels/cuda/device/tile_product.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/wide_tile.h"

namespace fewbit::cuda {

// One tile of a row block.
struct WideTile {
  uint32_t offset;  // in the row block
  int bytes, pairs, first_slab;
  bool two;

  __device__ __forceinline__ WideTile(const quant::PackedShape& s, int tile) {
    two = tile < s.tiles(2);
    const int bits = two ? 2 : 4, of_width = two ? tile : tile - s.tiles(2);
    const int chunks = s.tile_chunks(bits, of_width);
    offset = static_cast<uint32_t>(s.tile_offset(bits, of_width));
    bytes = static_cast<int>(quant::TileBytes(bits, chunks, s.zero_points));
    pairs = WidePairs(bits, chunks);
    first_slab = FirstSlab(s, tile);
  }
};

// A place in a ring of stages, and the parity of the round it is in.
struct PipeCursor {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Barriers of one ring: `full` when data has come, `empty` when all readers are done with it.
struct PipeBarriers {
  uint64_t* full;
  uint64_t* empty;
};

// One matrix of the group.
struct WidePart {
  DeviceMatrix w;
  uint8_t* staged;
  size_t group_bytes, row_block_bytes;
  size_t floats_at;  // of the activations as floats, in a group
  int tiles, row_blocks;
  int first_row_tile;  // in the numbering over all matrices
  int64_t column;      // of y
};

// A unit of work: one segment of kWideRows rows of one matrix for one token group. Which block of
// the team has which segment changes from unit to unit, because segments differ in length.
struct WideUnit {
  const WidePart* part;
  int row_tile, group, segment, first_tile, end_tile;

  template <typename Args>
  __device__ __forceinline__ WideUnit(const Args& a, int unit, int turn, int rank) {
    group = 0;
    row_tile = unit;
    if (a.groups > 1) {
      group = unit % a.groups;
      row_tile = unit / a.groups;
    }
    int p = 0;
    while (p + 1 < a.parts && row_tile >= a.part[p + 1].first_row_tile) ++p;
    part = &a.part[p];
    row_tile -= part->first_row_tile;
    segment = (rank + turn) % kSegments;
    first_tile = SegmentBegin(part->tiles, segment);
    end_tile = SegmentBegin(part->tiles, segment + 1);
  }
  __device__ __forceinline__ int FirstRowBlock() const { return row_tile * kWideRowBlocks; }
  __device__ __forceinline__ const uint8_t* Staged() const {
    return part->staged + group * part->group_bytes;
  }
};

// The arguments that both kernels have.
template <typename Args>
void FillArgs(const Desc& desc, const WidePlan& plan, const DeviceGroup& group,
              const LinearInput& in, const LinearOutput& out, void* exchange, Args* args) {
  args->exchange = static_cast<uint32_t*>(exchange);
  args->parts = desc.count;
  for (int p = 0; p < desc.count; ++p) {
    const DeviceMatrix& w = group.parts[p];
    args->part[p] = {w,
                     in.parts[p].staged,
                     in.parts[p].group_bytes,
                     w.shape.row_block_bytes(),
                     WideFloatsAt(w.shape, plan.tokens),
                     NumTiles(w.shape),
                     w.shape.row_blocks(),
                     args->row_tiles,
                     out.column[p]};
    args->outliers |= w.outliers != nullptr;
    args->row_tiles += (w.shape.row_blocks() + kWideRowBlocks - 1) / kWideRowBlocks;
  }
  args->groups = plan.groups;
  args->m = desc.m;
  args->y = out.y;
  args->y_stride = out.stride;
  args->y_type = desc.y_type;
}

// By a whole warpgroup: takes registers from the block's pool, or gives them back to it.
template <int kRegisters>
__device__ __forceinline__ void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Operand A of one quad; complete before a fence.
template <int kWords>
struct QuadOperand {
  uint32_t a[kWords];

  __device__ __forceinline__ void Pin() {
#pragma unroll
    for (uint32_t& word : a) asm volatile("" : "+r"(word)::"memory");
  }
};
// Its products with the slabs of kTokens tokens; without `add` the sums start at zero.
template <int kWords, int kTokens>
__device__ __forceinline__ void IssueQuad(const QuadOperand<kWords>& bytes,
                                          const WgmmaOperand& slabs, bool add,
                                          int (&sums)[kTokens]) {
  constexpr int kSlab = 2 * kTokens * kSlabBytes;
#pragma unroll
  for (int i = 0; i < kWords; i += 8) {
    WgmmaU8S8(sums, bytes.a + i, slabs, i > 0 || add);
    WgmmaU8S8(sums, bytes.a + i + 4, slabs + 2 * kSlab, 1);
  }
}

// This lane's words of a pair of quads.
template <int kBits, bool kZeroPoints>
struct PairWords;

template <bool kZeroPoints>
struct PairWords<2, kZeroPoints> {
  ChunkWords<2, kZeroPoints> chunk;

  static constexpr int kPairBytes = RecordBytes(2, kZeroPoints);

  __device__ __forceinline__ void Load(const uint8_t* record, int lane) {
    chunk.Load(record, lane);
  }
  static constexpr int kWords = 8;
  static constexpr bool kParity = false;
  __device__ __forceinline__ void AddParity(int, uint32_t (&)[2]) const {}
  // a[0..3] and a[4..7]: operand A of both halves of quad kQuad.
  template <int kQuad>
  __device__ __forceinline__ void Expand(uint32_t (&a)[kWords]) const {
    const uint32_t scales = kQuad == 0 ? chunk.scales : chunk.scales >> 8;
    const uint32_t zeros = kQuad == 0 ? chunk.zeros : chunk.zeros >> 4;
    uint32_t upper[4], lower[4];
    ExpandCodes<kZeroPoints>(kQuad == 0 ? chunk.codes.x : chunk.codes.z,
                             MakeScale<kZeroPoints>(scales & 15, zeros & 3), upper);
    ExpandCodes<kZeroPoints>(kQuad == 0 ? chunk.codes.y : chunk.codes.w,
                             MakeScale<kZeroPoints>((scales >> 4) & 15, (zeros >> 2) & 3), lower);
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      a[2 * f] = upper[f];
      a[2 * f + 1] = lower[f];
    }
  }
};

template <bool kZeroPoints>
struct PairWords<4, kZeroPoints> {
  ChunkWords<4, kZeroPoints> chunk[2];

  static constexpr int kPairBytes = 2 * RecordBytes(4, kZeroPoints);

  __device__ __forceinline__ void Load(const uint8_t* record, int lane) {
#pragma unroll
    for (int q = 0; q < 2; ++q) chunk[q].Load(record + q * (kPairBytes / 2), lane);
  }
  // With zero-points the weights are the sum of a[0..7] and a[8..15].
  static constexpr int kWords = kZeroPoints ? 16 : 8;
  static constexpr bool kParity = !kZeroPoints;
  template <int kQuad>
  __device__ __forceinline__ void Expand(uint32_t (&a)[kWords]) const {
    const ChunkWords<4, kZeroPoints>& c = chunk[kQuad];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t high = row == 0 ? c.codes.x : c.codes.y,
                     low = row == 0 ? c.codes.z : c.codes.w;
      const uint32_t scale = (c.scales >> (4 * row)) & 15;
      uint32_t bytes[4];
      if constexpr (kZeroPoints) {
        uint32_t up[4];
        ExpandZeroPoint4(high, low, scale, (c.zeros >> (4 * row)) & 15, bytes, up);
#pragma unroll
        for (int f = 0; f < 4; ++f) a[8 + 2 * f + row] = up[f];
      } else {
        ExpandSymmetric4(high, low, scale, bytes);
      }
#pragma unroll
      for (int f = 0; f < 4; ++f) a[2 * f + row] = bytes[f];
    }
  }
  // The parity bits of the sub-scales of rows g and g + 8, a byte per chunk of the tile. Those of
  // chunks that it does not have may be anything: their sums of activations are zero.
  static __device__ __forceinline__ void Parity(const uint8_t* tile, int lane,
                                                uint32_t (&bits)[2]) {
    const uint8_t* scales = tile + quant::kChunkCodeBytes + lane;
    bits[0] = bits[1] = 0;
#pragma unroll
    for (int q = 0; q < quant::kTileChunks; ++q) {
      const uint32_t both = scales[q * (kPairBytes / 2)];
      bits[0] |= (both & 1u) << (8 * q);
      bits[1] |= ((both >> 4) & 1u) << (8 * q);
    }
  }
  // The same, pair by pair.
  __device__ __forceinline__ void AddParity(int pair, uint32_t (&bits)[2]) const {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      bits[0] |= (chunk[q].scales & 1u) << (8 * (2 * pair + q));
      bits[1] |= ((chunk[q].scales >> 4) & 1u) << (8 * (2 * pair + q));
    }
  }
};

// parts[2 * j + hi] += the term of row g + 8 * hi and token 4 * j + t.
template <int kTokens>
__device__ __forceinline__ void AddTerms(const int (&sums)[kTokens], const uint8_t* d_bytes,
                                         const uint8_t* meta_bytes, float (&parts)[kTokens / 2]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float2 d = __half22float2(reinterpret_cast<const __half2*>(d_bytes)[g]);
  const int2* meta = reinterpret_cast<const int2*>(meta_bytes) + t;
#pragma unroll
  for (int j = 0; j < kTokens / 4; ++j) {
    const int2 m = meta[4 * j];
    const float factor = __int_as_float(m.x);
    const auto term = [&](int high, int low, float scale) {
      const uint32_t sum = 256u * high + low + static_cast<uint32_t>(m.y);
      return __fmul_rn(__fmul_rn(__int2float_rn(static_cast<int>(sum)), scale), factor);
    };
    parts[2 * j] = __fadd_rn(parts[2 * j], term(sums[4 * j], sums[4 * j + 1], d.x));
    parts[2 * j + 1] = __fadd_rn(parts[2 * j + 1], term(sums[4 * j + 2], sums[4 * j + 3], d.y));
  }
}

}  // namespace fewbit::cuda
