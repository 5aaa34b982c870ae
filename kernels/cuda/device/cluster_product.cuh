// The product warps of the wide kernel: codes to bytes in registers, products by wgmma with the
// activations in shared memory, exact sums of a tile to float terms.
#pragma once

#include "kernels/cuda/device/cluster_args.cuh"
#include "kernels/cuda/device/wgmma.cuh"

namespace fewbit::cuda {

// One warp's part of one tile. All product warps run it in step with their warpgroup.
template <int kForm, bool kZeroPoints>
class ClusteredProduct {
 public:
  static constexpr ClusteredForm kF = kClusteredForms[kForm];
  static constexpr ClusteredShared kL = ClusteredLayout(kF, kZeroPoints);
  static constexpr int kSums = kF.tokens, kSlab = 2 * kF.tokens * kSlabBytes;

  __device__ __forceinline__ ClusteredProduct(uint8_t* shared, const ClusteredBarriers& barriers)
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

  // Products of one quad while the bytes of the next are made.
  template <typename Words>
  __device__ __forceinline__ void RunByQuads(int pairs, const uint8_t* weights, uint32_t (&bits)[2],
                                             int (&sums)[kSums]) {
    Words words;
    QuadOperand<Words::kWords> first, second;
    words.Load(weights, lane_);
    words.template Expand<0>(first.a);
    const auto run = [&](auto& bytes, const WgmmaOperand& slabs, bool add, const auto& meanwhile) {
      bytes.Pin();
      WgmmaFence();
      IssueQuad(bytes, slabs, add, sums);
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

  template <int kBits>
  __device__ __forceinline__ void RunTile(int pairs, const uint8_t* weights, const uint8_t* parity,
                                          int (&sums)[kSums]) {
    using Words = PairWords<kBits, kZeroPoints>;
    uint32_t bits[2] = {};
    RunByQuads<Words>(pairs, weights, bits, sums);
    if constexpr (kBits == 4 && !kZeroPoints) {
      QuadOperand<4> bytes = {{bits[0], bits[1], bits[0] << 4, bits[1] << 4}};
      bytes.Pin();
      WgmmaFence();
      WgmmaU8S8(sums, bytes.a, WgmmaOperandB(parity, kSlab), 1);
      WgmmaCommit();
      WgmmaWait<0>();
    }
  }

  const ClusteredBarriers& barriers_;
  WgmmaOperand slices_;
  PipeCursor slice_;
  int lane_;
};

// All units of this cluster: the warp's 16 rows of one segment, handed to the block that sums them.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void RunProducts(const ClusteredArgs& a, uint8_t* shared,
                                            const ClusteredBarriers& barriers) {
  constexpr ClusteredForm kF = kClusteredForms[kForm];
  constexpr ClusteredShared kL = ClusteredLayout(kF, kZeroPoints);
  constexpr int kInboxBytes = InboxFloats(kF) * 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t owner = warp * quant::kBlockRows / kClusteredOwnRows;
  const int own_row = warp * quant::kBlockRows % kClusteredOwnRows;
  // Lane 4 g + t: row g, token t of every four.
  const uint32_t inboxes =
      ClusterAddress(shared + kL.inbox, owner) + 4 * kInboxTokens * own_row + 16 * lane;
  const uint32_t arrived = ClusterAddress(barriers.inbox.full, owner);
  ClusteredProduct<kForm, kZeroPoints> product(shared, barriers);
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
