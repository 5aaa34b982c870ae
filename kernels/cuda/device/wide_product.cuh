// The product warps of the wide kernel: codes to bytes in registers, products by wgmma with the
// activations in shared memory, exact sums of a tile to float terms.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/dequant.cuh"
#include "kernels/cuda/device/tile_product.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/device/wide_args.cuh"

namespace fewbit::cuda {

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
  // The parity bits of the sub-scales of rows g and g + 8 as bytes, by chunk of the tile; without
  // zero-points.
  __device__ __forceinline__ void AddParity(int pair, uint32_t (&bits)[2]) const {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      bits[0] |= (chunk[q].scales & 1u) << (8 * (2 * pair + q));
      bits[1] |= ((chunk[q].scales >> 4) & 1u) << (8 * (2 * pair + q));
    }
  }
};

// One warp's part of one tile. All product warps run it in step with their warpgroup.
template <int kForm, bool kZeroPoints>
class WideProduct {
 public:
  static constexpr WideForm kF = kWideForms[kForm];
  static constexpr WideShared kL = WideLayout(kF, kZeroPoints);
  static constexpr int kSums = kF.tokens, kSlab = 2 * kF.tokens * kSlabBytes;

  __device__ __forceinline__ WideProduct(uint8_t* shared, const WideBarriers& barriers)
      : barriers_(barriers),
        slices_(WgmmaOperandB(shared + kL.slices, kSlab)),
        lane_(threadIdx.x % 32) {}

  // sums = the bytes of the weights times the slabs, columns of high and low bytes apart.
  __device__ __forceinline__ void Run(const WideTile& tile, const uint8_t* weights,
                                      const uint8_t* parity, int (&sums)[kSums]) {
    WgmmaPin(sums);
    if (tile.two) {
      RunTile<2>(tile.pairs, weights, parity, sums);
    } else {
      RunTile<4>(tile.pairs, weights, parity, sums);
    }
    WgmmaPin(sums);
  }

 private:
  // The next slice of activations, those of a pair.
  __device__ __forceinline__ WgmmaOperand TakeSlice() {
    BarrierWait(barriers_.slices.full + slice_.stage, slice_.parity);
    return slices_ + slice_.stage * kL.slice_bytes;
  }
  // That slice has been read.
  __device__ __forceinline__ void Release() {
    if (lane_ == 0) BarrierArrive(barriers_.slices.empty + slice_.stage);
    slice_.Advance(kF.slice_stages);
  }

  // Operand A of one quad; complete before a fence.
  template <int kWords>
  struct QuadBytes {
    uint32_t a[kWords];

    __device__ __forceinline__ void Pin() {
#pragma unroll
      for (uint32_t& word : a) asm volatile("" : "+r"(word)::"memory");
    }
  };
  template <int kWords>
  static __device__ __forceinline__ void Issue(const QuadBytes<kWords>& bytes,
                                               const WgmmaOperand& slabs, bool add,
                                               int (&sums)[kSums]) {
#pragma unroll
    for (int i = 0; i < kWords; i += 8) {
      WgmmaU8S8(sums, bytes.a + i, slabs, i > 0 || add);
      WgmmaU8S8(sums, bytes.a + i + 4, slabs + 2 * kSlab, 1);
    }
  }

  // Products of one quad while the bytes of the next are made: fewest registers.
  template <typename Words>
  __device__ __forceinline__ void RunByQuads(int pairs, const uint8_t* weights, uint32_t (&bits)[2],
                                             int (&sums)[kSums]) {
    Words words;
    QuadBytes<Words::kWords> first, second;
    words.Load(weights, lane_);
    words.template Expand<0>(first.a);
    const auto run = [&](auto& bytes, const WgmmaOperand& slabs, bool add, const auto& meanwhile) {
      bytes.Pin();
      WgmmaFence();
      Issue(bytes, slabs, add, sums);
      WgmmaCommit();
      meanwhile();
      WgmmaWait<0>();
    };
#pragma unroll 1
    for (int pair = 0; pair < pairs; ++pair) {
      const WgmmaOperand slice = TakeSlice();
      run(first, slice, pair > 0, [&] { words.template Expand<1>(second.a); });
      words.AddParity(pair, bits);
      weights += Words::kPairBytes;
      if (pair + 1 < pairs) words.Load(weights, lane_);
      run(second, slice + kQuadSlabs * kSlab, true, [&] { words.template Expand<0>(first.a); });
      Release();
    }
  }

  // Products of one pair while the bytes of the next are made: fewest waits.
  template <typename Words>
  __device__ __forceinline__ void RunByPairs(int pairs, const uint8_t* weights, uint32_t (&bits)[2],
                                             int (&sums)[kSums]) {
    struct PairBytes {
      QuadBytes<Words::kWords> first, second;
    };
    Words words;
    PairBytes even, odd;
    int ahead = 0;
    const auto expand = [&](PairBytes* to) {
      if (ahead >= pairs) return;
      words.template Expand<0>(to->first.a);
      words.template Expand<1>(to->second.a);
      words.AddParity(ahead, bits);
      weights += Words::kPairBytes;
      if (++ahead < pairs) words.Load(weights, lane_);
    };
    const auto run = [&](PairBytes& bytes, bool add, PairBytes* next) {
      const WgmmaOperand slice = TakeSlice();
      bytes.first.Pin();
      bytes.second.Pin();
      WgmmaFence();
      Issue(bytes.first, slice, add, sums);
      Issue(bytes.second, slice + kQuadSlabs * kSlab, true, sums);
      WgmmaCommit();
      expand(next);
      WgmmaWait<0>();
      Release();
    };
    words.Load(weights, lane_);
    expand(&even);
#pragma unroll 1
    for (int pair = 0;; pair += 2) {
      run(even, pair > 0, &odd);
      if (pair + 1 >= pairs) break;
      run(odd, true, &even);
      if (pair + 2 >= pairs) break;
    }
  }

  template <int kBits>
  __device__ __forceinline__ void RunTile(int pairs, const uint8_t* weights, const uint8_t* parity,
                                          int (&sums)[kSums]) {
    using Words = PairWords<kBits, kZeroPoints>;
    uint32_t bits[2] = {};
    if constexpr (kF.whole_pairs && Words::kWords == 8) {
      RunByPairs<Words>(pairs, weights, bits, sums);
    } else {
      RunByQuads<Words>(pairs, weights, bits, sums);
    }
    if constexpr (kBits == 4 && !kZeroPoints) {
      QuadBytes<4> bytes = {{bits[0], bits[1], bits[0] << 4, bits[1] << 4}};
      bytes.Pin();
      WgmmaFence();
      WgmmaU8S8(sums, bytes.a, WgmmaOperandB(parity, kSlab), 1);
      WgmmaCommit();
      WgmmaWait<0>();
    }
  }

  const WideBarriers& barriers_;
  WgmmaOperand slices_;
  PipeCursor slice_;
  int lane_;
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

// All units of this cluster: the warp's 16 rows of one segment, handed to the block that sums them.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void RunProducts(const WideArgs& a, uint8_t* shared,
                                            const WideBarriers& barriers) {
  constexpr WideForm kF = kWideForms[kForm];
  constexpr WideShared kL = WideLayout(kF, kZeroPoints);
  constexpr int kInboxBytes = InboxFloats(kF) * 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t owner = warp * quant::kBlockRows / kWideOwnRows;
  const int own_row = warp * quant::kBlockRows % kWideOwnRows;
  // Lane 4 g + t: row g, token t of every four.
  const uint32_t inboxes =
      ClusterAddress(shared + kL.inbox, owner) + 4 * kInboxTokens * own_row + 16 * lane;
  const uint32_t arrived = ClusterAddress(barriers.inbox.full, owner);
  WideProduct<kForm, kZeroPoints> product(shared, barriers);
  PipeCursor at, box;
  ForEachUnit(a, [&](const WideUnit& unit, int turn) {
    float parts[kF.tokens / 2] = {};
#pragma unroll 1
    for (int t = unit.first_tile; t < unit.end_tile; ++t, at.Advance(kF.tile_stages)) {
      const WideTile tile(unit.part->w.shape, t);
      const uint8_t* weights =
          shared + kL.tiles + (at.stage * kWideRowBlocks + warp) * kL.tile_bytes;
      BarrierWait(barriers.tiles.full + at.stage, at.parity);
      int sums[kF.tokens];
      product.Run(tile, weights, shared + kL.parity + at.stage * kL.parity_bytes, sums);
      AddTerms<kF.tokens>(sums, weights + tile.bytes - quant::kSecondOrderBytes,
                          shared + kL.meta + at.stage * kL.meta_bytes, parts);
      __syncwarp();
      const uint32_t last = __float_as_uint(parts[kF.tokens / 2 - 1]);
      if (lane == 0) BarrierArriveAfter(barriers.tiles.empty + at.stage, last);
    }
    if (turn == 0) ClusterWait();
    BarrierWaitCluster(barriers.inbox.empty + box.stage, box.parity ^ 1);
    const uint32_t to = inboxes + (box.stage * kSegments + unit.segment) * kInboxBytes;
#pragma unroll
    for (int j = 0; j < kF.tokens / kInboxTokens; ++j) {
#pragma unroll
      for (int hi = 0; hi < 2; ++hi) {
        const float* p = parts + 8 * j + hi;
        ClusterStore(to + 4 * kInboxPitch * j + 4 * kInboxTokens * 8 * hi, p[0], p[2], p[4], p[6],
                     arrived + 8 * box.stage);
      }
    }
    box.Advance(kF.inboxes);
  });
}

}  // namespace fewbit::cuda
