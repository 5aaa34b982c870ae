// The product warps of the wide kernel: codes to bytes in registers, products by wgmma with the
// activations in shared memory, exact sums of a tile to float terms.
#pragma once

#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/device/wide_args.cuh"

namespace fewbit::cuda {

// The activations of a block in shared memory, pair by pair, in a ring of slices.
template <int kForm, bool kZeroPoints>
class SliceReader {
 public:
  static constexpr WideForm kF = kWideForms[kForm];
  static constexpr WideShared kL = WideLayout(kF, kZeroPoints);
  static constexpr int kSlab = 2 * kF.tokens * kSlabBytes;

  __device__ __forceinline__ SliceReader(const uint8_t* shared, const PipeBarriers& barriers)
      : barriers_(barriers), base_(WgmmaOperandB(shared + kL.slices, kSlab)) {
    asm volatile("" : "+r"(base_.place));  // or it would be worked out anew for every product
  }

  // Until the slice is there.
  __device__ __forceinline__ void Wait() const {
    BarrierWait(barriers_.full + at_.stage, at_.parity);
  }
  __device__ __forceinline__ WgmmaOperand Slice() const {
    return base_ + at_.stage * kL.slice_bytes;
  }
  // Goes on to the next slice; the place of the one before, for Release.
  __device__ __forceinline__ int Advance() {
    const int left = at_.stage;
    at_.Advance(kF.slice_stages);
    return left;
  }
  // That slice has been read.
  __device__ __forceinline__ void Release(int stage) const {
    if (threadIdx.x % 32 == 0) BarrierArrive(barriers_.empty + stage);
  }

 private:
  PipeBarriers barriers_;
  WgmmaOperand base_;
  PipeCursor at_;
};

// One warp's part of one tile. All product warps run it in step with their warpgroup.
//
// The bytes of the next products are made while those before run. ptxas would make them in front of
// the products or behind the wait for them, but for two things: a branch (a barrier, nearly always
// one that has been passed) between the products and the bytes, and a fence for the bytes in front
// of the wait.
template <int kForm, bool kZeroPoints>
class WideProduct {
 public:
  static constexpr WideForm kF = kWideForms[kForm];
  static constexpr int kSums = kF.tokens, kSlab = 2 * kF.tokens * kSlabBytes;

  __device__ __forceinline__ WideProduct(const uint8_t* shared, const WideBarriers& barriers)
      : slices_(shared, barriers.slices), lane_(threadIdx.x % 32) {}

  // sums = the bytes of the weights times the slabs, columns of high and low bytes apart.
  __device__ __forceinline__ void Run(const WideWork& work, const uint8_t* weights,
                                      const uint8_t* parity, int (&sums)[kSums]) {
    WgmmaPin(sums);
    if (work.two) {
      RunTile<2>(work.pairs, weights, parity, sums);
    } else {
      RunTile<4>(work.pairs, weights, parity, sums);
    }
    WgmmaPin(sums);
  }

 private:
  // Products of one quad while the bytes of the next are made.
  template <typename Words>
  __device__ __forceinline__ void RunByQuads(int pairs, const uint8_t* weights,
                                             int (&sums)[kSums]) {
    Words words;
    QuadOperand<Words::kWords> first, second;
    const auto start = [&](auto& bytes, const WgmmaOperand& slabs, bool add) {
      WgmmaFence();
      IssueQuad(bytes, slabs, add, sums);
      WgmmaCommit();
    };
    words.Load(weights, lane_);
    words.template Expand<0>(first.a);
    first.Pin();
    slices_.Wait();
#pragma unroll 1
    for (int pair = 0; pair < pairs; ++pair) {
      const WgmmaOperand slice = slices_.Slice();
      start(first, slice, Words::kParity || pair > 0);
      slices_.Wait();
      words.template Expand<1>(second.a);
      second.Pin();
      WgmmaFence();
      weights += Words::kPairBytes;
      const bool more = pair + 1 < pairs;
      if (more) words.Load(weights, lane_);
      WgmmaWait<0>();
      start(second, slice + kQuadSlabs * kSlab, true);
      const int left = slices_.Advance();
      if (more) {
        slices_.Wait();
        words.template Expand<0>(first.a);
        first.Pin();
        WgmmaFence();
      }
      WgmmaWait<0>();
      slices_.Release(left);
    }
  }

  template <int kBits>
  __device__ __forceinline__ void RunTile(int pairs, const uint8_t* weights, const uint8_t* parity,
                                          int (&sums)[kSums]) {
    using Words = PairWords<kBits, kZeroPoints>;
    QuadOperand<4> strips;
    if constexpr (Words::kParity) {
      uint32_t bits[2];
      Words::Parity(weights, lane_, bits);
      strips = {{bits[0], bits[1], bits[0] << 4, bits[1] << 4}};
      strips.Pin();
      WgmmaFence();
      WgmmaU8S8(sums, strips.a, WgmmaOperandB(parity, kSlab), 0);
      WgmmaCommit();
    }
    RunByQuads<Words>(pairs, weights, sums);
  }

  SliceReader<kForm, kZeroPoints> slices_;
  int lane_;
};

// This warp's 16 rows of one segment to the block that adds them up; lane 4 g + t has rows g and
// g + 8 and token t of every four. box: the segment's, all owners.
template <int kForm>
__device__ __forceinline__ void HandOver(uint32_t* box,
                                         const float (&parts)[kWideForms[kForm].tokens / 2]) {
  constexpr WideForm kF = kWideForms[kForm];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int row = warp * quant::kBlockRows % kWideOwnRows + g;
  uint32_t* to = box + warp * quant::kBlockRows / kWideOwnRows * WideQuarterWords(kF) +
                 4 * (t * kWideOwnRows + row);
  const auto word = [](float sum) { return sum == 0.0f ? 0x80000000u : __float_as_uint(sum); };
#pragma unroll
  for (int j = 0; j < kF.tokens / kWideSumTokens; ++j) {
#pragma unroll
    for (int hi = 0; hi < 2; ++hi) {
      const float* p = parts + 8 * j + hi;
      StoreExchange(to + kWideSumTokens * kWideOwnRows * j + 4 * 8 * hi,
                    make_uint4(word(p[0]), word(p[2]), word(p[4]), word(p[6])));
    }
  }
}

// All units of this block.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void RunProducts(const WideArgs& a, const uint8_t* shared,
                                            const WideBarriers& barriers) {
  constexpr WideForm kF = kWideForms[kForm];
  constexpr WideShared kL = WideLayout(kF, kZeroPoints);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const WideTeam team(a);
  const int turns = team.Turns();
  const uint8_t* tiles = shared + kL.tiles + warp * kL.tile_bytes;
  const WideWork* works = reinterpret_cast<const WideWork*>(shared + kL.works);
  WideProduct<kForm, kZeroPoints> product(shared, barriers);
  PipeCursor at;
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    const int box = turn % kWideBoxes;
    uint32_t* flag = team.Flags<kForm>(a, box) + team.rank * kWideProductWarps + warp;
    // Asked for long before it is needed.
    const uint32_t seen = LoadFlag(flag);
    float parts[kF.tokens / 2] = {};
    int last;
#pragma unroll 1
    do {
      BarrierWait(barriers.tiles.full + at.stage, at.parity);
      const WideWork work = works[at.stage];
      if (work.pairs > 0) {
        const uint8_t* weights = tiles + at.stage * kWideRowBlocks * kL.tile_bytes;
        int sums[kF.tokens];
        product.Run(work, weights, shared + kL.parity + at.stage * kL.parity_bytes, sums);
        AddTerms<kF.tokens>(sums, weights + work.d_at, shared + kL.meta + at.stage * kL.meta_bytes,
                            parts);
      }
      last = work.last;
      __syncwarp();
      const uint32_t loaded = __float_as_uint(parts[kF.tokens / 2 - 1]);
      if (lane == 0) BarrierArriveAfter(barriers.tiles.empty + at.stage, loaded);
      at.Advance(kF.tile_stages);
    } while (last == 0);
    if (turn >= kWideBoxes) {
      const uint32_t emptied = turn - kWideBoxes + 1;
      if (seen != emptied) {
        while (LoadFlag(flag) != emptied) {
        }
      }
      // Nobody writes it any more in this launch.
      __syncwarp();
      if (lane == 0 && turn + kWideBoxes >= turns) StoreFlag(flag, 0);
    }
    HandOver<kForm>(team.Box<kForm>(a, box) + (last - 1) * kWideTeam * WideQuarterWords(kF), parts);
  }
}

}  // namespace fewbit::cuda
