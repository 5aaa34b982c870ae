// The product warps of the kernel for many tokens: weights to fp16 in registers, products by wgmma
// with the activations in shared memory.
#pragma once

#include "kernels/cuda/device/half_args.cuh"
#include "kernels/cuda/device/half_words.cuh"
#include "kernels/cuda/device/wgmma_half.cuh"

namespace fewbit::cuda {

// Operand A of a quad; complete before a fence.
struct HalfOperand {
  uint32_t a[4 * kHalfProducts];

  __device__ __forceinline__ void Pin() { WgmmaPin(a); }
};

// The sums of one warp: 16 rows and all tokens of a group. All product warps run it in step with
// their warpgroup, and the weights of the next quad are made while the products of the one before
// run. See WideProduct (wide_product.cuh) for what keeps ptxas from moving them.
template <int kForm, bool kZeroPoints>
class HalfProduct {
 public:
  static constexpr HalfForm kF = kHalfForms[kForm];
  static constexpr HalfShared kL = HalfLayout(kF, kZeroPoints);
  static constexpr int kSums = kF.tokens / 2;

  __device__ __forceinline__ HalfProduct(uint8_t* shared,
                                         const HalfBarriers<kForm, kZeroPoints>& barriers)
      : shared_(shared),
        barriers_(barriers),
        lane_(threadIdx.x % 32),
        block_(threadIdx.x / 32),
        quads_(NarrowColumnsOperand(SharedAddress(shared + kL.quads))),
        empty_quads_(ClusterAddress(barriers.quads.Empty(0), lane_ % kHalfCluster)) {
    asm volatile(""
                 : "+r"(thousand_), "+r"(quads_.place));  // or they would be made again and again
  }

  // One piece. sums: 4 j .. 4 j + 3 are rows g, g, g + 8, g + 8 and tokens 8 j + 2 t, + 1.
  __device__ __forceinline__ void Run(float (&sums)[kSums]) {
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
    WgmmaPin(sums);
    do {
      OpenTile();
      if ((run_ & HalfRun::kTwo) != 0) {
        RunPairs<2>(sums);
      } else {
        RunPairs<4>(sums);
      }
    } while ((run_ & HalfRun::kOtherWidth) != 0);
    WgmmaPin(sums);
  }

 private:
  // Waits for the next run of pairs.
  __device__ __forceinline__ void OpenTile() {
    BarrierWait(barriers_.tiles.Full(tile_.stage()), tile_.parity());
    run_ = reinterpret_cast<const uint32_t*>(shared_ + kL.runs)[tile_.stage()];
    const uint8_t* place =
        shared_ + kL.tiles + (tile_.stage() * kHalfRowBlocks + block_) * kL.tile_bytes;
    d_ = reinterpret_cast<const __half2*>(place)[lane_ / 4];
    record_ = place + quant::kSecondOrderBytes;
  }
  // All that was read from it has been used.
  __device__ __forceinline__ void CloseTile() {
    __syncwarp();
    if (lane_ == 0) BarrierArrive(barriers_.tiles.Empty(tile_.stage()));
    tile_.Advance();
  }

  __device__ __forceinline__ void WaitForQuad() const {
    BarrierWait(barriers_.quads.Full(quad_.stage()), quad_.parity());
  }
  __device__ __forceinline__ void Start(const HalfOperand& weights, float (&sums)[kSums]) {
    const WgmmaOperand quad = quads_ + quad_.stage() * kL.quad_bytes;
    WgmmaFence();
#pragma unroll
    for (int f = 0; f < kHalfProducts; ++f) {
      WgmmaHalves<false, 0>(sums, weights.a + 4 * f,
                            (quad + f * kF.tokens * kHalfTokenBytes).Descriptor(), 1);
    }
    WgmmaCommit();
  }
  // The quad that was started last has been read: every block of the cluster may fill its place.
  __device__ __forceinline__ void ReleaseQuad(int stage) const {
    if (lane_ < kHalfCluster) BarrierArriveCluster(empty_quads_ + 8 * stage);
  }
  __device__ __forceinline__ int NextQuad() {
    const int left = quad_.stage();
    quad_.Advance();
    return left;
  }

  // What outliers add to two products of a quad, on its way.
  struct Deltas {
    uint4 words[2];

    __device__ __forceinline__ void Load(uint4* from, uint32_t flags) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        words[k] = make_uint4(0, 0, 0, 0);
        if ((flags >> k & 1u) != 0) words[k] = from[32 * k];
      }
    }
    __device__ __forceinline__ void AddTo(uint32_t* a, uint4* from, uint32_t flags) const {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if ((flags >> k & 1u) != 0) from[32 * k] = make_uint4(0, 0, 0, 0);
        const uint32_t w[4] = {words[k].x, words[k].y, words[k].z, words[k].w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[4 * k + i] = BitsOf(__hadd2(HalvesOf(a[4 * k + i]), HalvesOf(w[i])));
        }
      }
    }
  };

  // The weights of a quad.
  template <int kQuad, int kBits>
  __device__ __forceinline__ void Make(const HalfWords<kBits, kZeroPoints>& words,
                                       HalfOperand& weights) {
    constexpr bool kEarly = kF.tokens <= 128;  // as registers permit
    const bool outliers = kBits == 2 && (run_ & HalfRun::kOutliers) != 0;
    uint4* from = nullptr;
    uint32_t flags = 0;
    Deltas deltas;
    if (outliers) {
      BarrierWait(barriers_.deltas.Full(delta_.stage()), delta_.parity());
      flags = shared_[kL.flags + delta_.stage() * kHalfRowBlocks + block_];
      from = reinterpret_cast<uint4*>(shared_ + kL.deltas + delta_.stage() * kHalfDeltaBytes) +
             block_ * kHalfProducts * 32 + lane_;
      if (kEarly) deltas.Load(from, flags);
    }
    words.template Expand<kQuad>(d_, thousand_, weights.a);
    weights.Pin();
    if (outliers) {
      if (!kEarly) deltas.Load(from, flags);
      deltas.AddTo(weights.a, from, flags);
      deltas.Load(from + 64, flags >> 2);
      deltas.AddTo(weights.a + 8, from + 64, flags >> 2);
      weights.Pin();
      __syncwarp();
      // The last weight has what was loaded last added to it.
      if (lane_ == 0) {
        BarrierArriveAfter(barriers_.deltas.Empty(delta_.stage()),
                           weights.a[4 * kHalfProducts - 1]);
      }
      delta_.Advance();
    }
    WgmmaFence();
  }

  // All runs of one width; the first one is open. The products of a quad begin while those of the
  // one before run.
  template <int kBits>
  __device__ __forceinline__ void RunPairs(float (&sums)[kSums]) {
    HalfWords<kBits, kZeroPoints> words;
    HalfOperand first, second;
    words.Load(record_, lane_);
    Make<0, kBits>(words, first);
    WaitForQuad();
#pragma unroll 1
    for (;;) {
      Start(first, sums);
      int done = NextQuad();
      WaitForQuad();
      Make<1, kBits>(words, second);
      const bool more = NextPair(words);
      WgmmaWait<0>();
      Start(second, sums);
      ReleaseQuad(done);
      done = NextQuad();
      if (more) {
        WaitForQuad();
        Make<0, kBits>(words, first);
      }
      WgmmaWait<0>();
      ReleaseQuad(done);
      if (!more) break;
    }
  }

  // The words of the next pair of this width; false: there is none.
  template <int kBits>
  __device__ __forceinline__ bool NextPair(HalfWords<kBits, kZeroPoints>& words) {
    bool more = true;
    if ((--run_ & HalfRun::kPairs) == 0) {
      CloseTile();
      more = (run_ & HalfRun::kMore) != 0;
      if (more) OpenTile();
    } else {
      record_ += words.kPairBytes;
    }
    if (more) words.Load(record_, lane_);
    return more;
  }

  uint8_t* shared_;
  const HalfBarriers<kForm, kZeroPoints> barriers_;
  const int lane_, block_;
  WgmmaOperand quads_;
  const uint32_t empty_quads_;
  uint32_t thousand_ = kThousand;
  HalfCursor<kF.quad_stages> quad_;
  HalfCursor<HalfTileStages(kF, kZeroPoints)> tile_;
  HalfCursor<kHalfDeltaStages> delta_;
  uint32_t run_ = 0;  // the open one, with the pairs that are left
  __half2 d_;
  const uint8_t* record_ = nullptr;
};

}  // namespace fewbit::cuda
