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

// What Expand<kQuad> needs of a pair.
template <int kQuad, bool kZeroPoints>
__device__ __forceinline__ void LoadQuad(const uint8_t* record, int lane,
                                         PairWords<2, kZeroPoints>* words) {
  auto& chunk = words->chunk;
  const uint2 codes = *reinterpret_cast<const uint2*>(record + 16 * lane + 8 * kQuad);
  if constexpr (kQuad == 0) {
    const uint8_t* meta = record + quant::kChunkCodeBytes;
    chunk.codes.x = codes.x;
    chunk.codes.y = codes.y;
    chunk.scales = *reinterpret_cast<const uint16_t*>(meta + 2 * lane);
    chunk.zeros = kZeroPoints ? meta[quant::ChunkScaleBytes(2) + lane] : 0;
  } else {
    chunk.codes.z = codes.x;
    chunk.codes.w = codes.y;
  }
}
template <int kQuad, bool kZeroPoints>
__device__ __forceinline__ void LoadQuad(const uint8_t* record, int lane,
                                         PairWords<4, kZeroPoints>* words) {
  words->chunk[kQuad].Load(record + kQuad * RecordBytes(4, kZeroPoints), lane);
}

// One warp's part of a row of tiles. All product warps run it in step with their warpgroup.
//
// The bytes of the next products, of the next tile as well, are made while those before run. ptxas
// would make them in front of the products, between them or behind the wait for them, but for three
// things: a branch between the products and the bytes, codes that are loaded behind it, and a fence
// for the bytes in front of the wait.
template <int kForm, bool kZeroPoints>
class WideProduct {
 public:
  static constexpr WideForm kF = kWideForms[kForm];
  static constexpr int kSums = kF.tokens, kSlab = 2 * kF.tokens * kSlabBytes;

  __device__ __forceinline__ WideProduct(const uint8_t* shared, const WideBarriers& barriers)
      : slices_(shared, barriers.slices), lane_(threadIdx.x % 32) {
    asm volatile("" : "+r"(lane_));  // or it would be worked out anew for every load
  }

  // The first bytes of a tile that has any; `weights`: this warp's.
  __device__ __forceinline__ void Prepare(const WideWork& work, const uint8_t* weights) {
    if (work.two) {
      PrepareTile<2>(weights);
    } else {
      PrepareTile<4>(weights);
    }
  }
  // Of the tile prepared: sums = the bytes of the weights times the slabs, columns of high and low
  // bytes apart. `prepare_next` runs while the last products do.
  template <typename Next>
  __device__ __forceinline__ void Run(const WideWork& work, const uint8_t* weights,
                                      const uint8_t* parity, int (&sums)[kSums],
                                      const Next& prepare_next) {
    WgmmaPin(sums);
    slices_.Wait();
    if (work.two) {
      RunTile<2>(work.quads, weights, parity, sums, prepare_next);
    } else {
      RunTile<4>(work.quads, weights, parity, sums, prepare_next);
    }
    WgmmaPin(sums);
  }

 private:
  template <int kBits>
  using Words = PairWords<kBits, kZeroPoints>;

  template <int kBits>
  __device__ __forceinline__ void PrepareTile(const uint8_t* weights) {
    MakeFirst<kBits>(weights);
    if constexpr (Words<kBits>::kParity) Words<kBits>::Parity(weights, lane_, parity_);
  }
  template <int kBits>
  __device__ __forceinline__ void MakeFirst(const uint8_t* weights) {
    constexpr int kWords = Words<kBits>::kWords;
    Words<kBits> words;
    LoadQuad<0>(weights, lane_, &words);
    words.template Expand<0>(reinterpret_cast<uint32_t(&)[kWords]>(first_.a));
    first_.Pin();
  }
  template <int kBits>
  __device__ __forceinline__ void Start(const uint32_t (&bytes)[Words<4>::kWords],
                                        const WgmmaOperand& slabs, bool add, int (&sums)[kSums]) {
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < Words<kBits>::kWords; i += 8) {
      WgmmaU8S8(sums, bytes + i, slabs, i > 0 || add);
      WgmmaU8S8(sums, bytes + i + 4, slabs + 2 * kSlab, 1);
    }
    WgmmaCommit();
  }

  // Products of one quad while the bytes of the next are made.
  template <int kBits, typename Next>
  __device__ __forceinline__ void RunTile(int quads, const uint8_t* weights, const uint8_t* parity,
                                          int (&sums)[kSums], const Next& prepare_next) {
    constexpr int kWords = Words<kBits>::kWords;
    Words<kBits> words;
    QuadOperand<Words<4>::kWords> second;
    QuadOperand<4> strips;
    if constexpr (Words<kBits>::kParity) {
      strips = {{parity_[0], parity_[1], parity_[0] << 4, parity_[1] << 4}};
      strips.Pin();
      WgmmaFence();
      WgmmaU8S8(sums, strips.a, WgmmaOperandB(parity, kSlab), 0);
      WgmmaCommit();
    }
#pragma unroll 1
    for (int quad = 0; quad < quads; quad += 2) {
      const WgmmaOperand slice = slices_.Slice();
      Start<kBits>(first_.a, slice, Words<kBits>::kParity || quad > 0, sums);
      if (quad + 1 < quads) {  // always, but the compilers do not know it
        LoadQuad<0>(weights, lane_, &words);
        LoadQuad<1>(weights, lane_, &words);
        words.template Expand<1>(reinterpret_cast<uint32_t(&)[kWords]>(second.a));
        second.Pin();
        WgmmaFence();
      }
      WgmmaWait<0>();
      Start<kBits>(second.a, slice + kQuadSlabs * kSlab, true, sums);
      const int left = slices_.Advance();
      weights += Words<kBits>::kPairBytes;
      if (quad + 2 < quads) {
        slices_.Wait();
        MakeFirst<kBits>(weights);
        WgmmaFence();
      } else {
        prepare_next();
        WgmmaFence();
      }
      WgmmaWait<0>();
      slices_.Release(left);
    }
  }

  SliceReader<kForm, kZeroPoints> slices_;
  int lane_;
  QuadOperand<Words<4>::kWords> first_;
  uint32_t parity_[2];
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
  const WideWork* works = reinterpret_cast<const WideWork*>(shared + kL.works);
  WideProduct<kForm, kZeroPoints> product(shared, barriers);
  PipeCursor at;
  WideWork work;
  const auto weights_at = [&](int stage) {
    return shared + kL.tiles + (stage * kWideRowBlocks + warp) * kL.tile_bytes;
  };
  const auto prepare = [&](const PipeCursor& next) {
    BarrierWait(barriers.tiles.full + next.stage, next.parity);
    work = works[next.stage];
    if (work.quads > 0) product.Prepare(work, weights_at(next.stage));
  };
  prepare(at);
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
      const int stage = at.stage;
      at.Advance(kF.tile_stages);
      const WideWork now = work;
      last = now.last;
      const auto prepare_next = [&] {
        if (now.last == 0 || turn + 1 < turns) prepare(at);
      };
      if (now.quads > 0) {
        const uint8_t* weights = weights_at(stage);
        int sums[kF.tokens];
        product.Run(now, weights, shared + kL.parity + stage * kL.parity_bytes, sums, prepare_next);
        AddTerms<kF.tokens>(sums, weights + now.d_at, shared + kL.meta + stage * kL.meta_bytes,
                            parts);
      } else {
        prepare_next();
      }
      __syncwarp();
      const uint32_t loaded = __float_as_uint(parts[kF.tokens / 2 - 1]);
      if (lane == 0) BarrierArriveAfter(barriers.tiles.empty + stage, loaded);
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
