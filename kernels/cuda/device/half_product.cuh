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

  __device__ __forceinline__ HalfProduct(uint8_t* shared, const HalfBarriers<kForm>& barriers)
      : shared_(shared),
        barriers_(barriers),
        lane_(threadIdx.x % 32),
        block_(Uniform(threadIdx.x / 32)),
        deltas_(SharedAddress(shared + kL.deltas) + block_ * kHalfOperandBytes),
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
      if ((run_ & HalfRun::kOutliers) != 0) {
        RunPairs<2, true>(sums);
      } else if ((run_ & HalfRun::kTwo) != 0) {
        RunPairs<2, false>(sums);
      } else {
        RunPairs<4, false>(sums);
      }
    } while ((run_ & HalfRun::kOtherWidth) != 0);
    WgmmaPin(sums);
  }

 private:
  // The same in all lanes, and the compiler knows: then branches and descriptors are cheap.
  static __device__ __forceinline__ uint32_t Uniform(uint32_t value) {
    return __shfl_sync(0xFFFFFFFFu, value, 0);
  }
  // Waits for the next run of pairs.
  __device__ __forceinline__ void OpenTile() {
    BarrierWait(barriers_.tiles.Full(tile_.stage()), tile_.parity());
    run_ = Uniform(Run().word);
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

  // Outliers. A lane has entries of the tile, and puts each into the deltas of the quad to which it
  // belongs: when the quad before has read its own, which are then cleared.
  static __device__ __forceinline__ void StoreIf(uint32_t quad, uint32_t wanted, uint32_t at,
                                                 uint32_t value) {
    asm volatile(
        "{ .reg .pred p; .reg .b16 v; setp.eq.u32 p, %0, %1; cvt.u16.u32 v, %3; "
        "@p st.shared.u16 [%2], v; }" ::"r"(quad),
        "r"(wanted), "r"(at), "r"(value)
        : "memory");
  }
  template <bool kClear>
  __device__ __forceinline__ void StoreOf(uint32_t entry, uint32_t wanted) const {
    StoreIf(HalfOutlier::Quad(entry), wanted, deltas_ + HalfOutlier::Offset(entry),
            kClear ? 0 : entry >> 16);
  }
  __device__ __forceinline__ const HalfRun& Run() const {
    return reinterpret_cast<const HalfRun*>(shared_ +
                                            kL.runs)[tile_.stage() * kHalfRowBlocks + block_];
  }
  // What is copied of the tile's list.
  __device__ __forceinline__ const uint32_t* List() const {
    return reinterpret_cast<const uint32_t*>(
        shared_ + kL.lists + (tile_.stage() * kHalfRowBlocks + block_) * kL.list_bytes);
  }
  // Number `i` of the list; kNone if there are not so many or its quad is not of the run.
  static __device__ __forceinline__ uint32_t OfRun(const HalfRun& run, uint32_t i, uint32_t entry) {
    const uint32_t quad = HalfOutlier::Quad(entry) - (run.word >> HalfRun::kFirstQuad);
    const bool of_run =
        i < run.outliers / HalfRun::kSkip && quad < 2 * (run.word & HalfRun::kPairs);
    return of_run ? entry : HalfOutlier::kNone;
  }
  // The run's first quad may be read after this.
  __device__ __forceinline__ void OpenOutliers() {
    const HalfRun& run = Run();
    const uint32_t* list = List() + run.outliers % HalfRun::kSkip + lane_;
    const uint32_t entry = OfRun(run, lane_, list[0]);
    tile_quad_ = run_ >> HalfRun::kFirstQuad;
    entry_quad_ = HalfOutlier::Quad(entry);
    entry_at_ = deltas_ + HalfOutlier::Offset(entry);
    entry_value_ = entry >> 16;
    StoreIf(entry_quad_, tile_quad_, entry_at_, entry_value_);
    if ((run_ & HalfRun::kLong) != 0) [[unlikely]] {
      second_entry_ = OfRun(run, 32 + lane_, list[32]);
      StoreLong<false>(tile_quad_);
    }
    __syncwarp();
  }
  // All entries but the first of each lane.
  template <bool kClear>
  __device__ __forceinline__ void StoreLong(uint32_t quad) const {
    StoreOf<kClear>(second_entry_, quad);
    const HalfRun& run = Run();
#pragma unroll 1
    for (uint32_t i = 64 + lane_; i < run.outliers / HalfRun::kSkip; i += 32) {
      const uint32_t at = run.outliers % HalfRun::kSkip + i;
      const uint32_t entry = at < kHalfListEntries ? List()[at] : __ldg(run.entries + i);
      StoreOf<kClear>(OfRun(run, i, entry), quad);
    }
  }
  // Those of a quad to `a`; then the next quad's are placed. kQuad: of the pair.
  template <int kQuad>
  __device__ __forceinline__ void LoadOutliers(uint32_t* a) const {
    const uint4* from = reinterpret_cast<const uint4*>(shared_ + kL.deltas) +
                        block_ * (kHalfOperandBytes / 16) + lane_;
    const uint32_t quad = tile_quad_ + kQuad;
#pragma unroll
    for (int f = 0; f < kHalfProducts; ++f) {
      const uint4 words = from[32 * f];
      a[4 * f] = words.x;
      a[4 * f + 1] = words.y;
      a[4 * f + 2] = words.z;
      a[4 * f + 3] = words.w;
    }
    __syncwarp();
    StoreIf(entry_quad_, quad, entry_at_, 0);
    if ((run_ & HalfRun::kLong) != 0) [[unlikely]] {
      StoreLong<true>(quad);
      __syncwarp();
      StoreLong<false>(quad + 1);
    }
    __syncwarp();
    StoreIf(entry_quad_, quad + 1, entry_at_, entry_value_);
    __syncwarp();
  }

  // The weights of a quad.
  template <int kQuad, int kBits, bool kOutliers>
  __device__ __forceinline__ void Make(const HalfWords<kBits, kZeroPoints>& words,
                                       HalfOperand& weights) {
    if constexpr (kOutliers) LoadOutliers<kQuad>(weights.a);
    words.template Expand<kQuad, kOutliers>(d_, thousand_, weights.a);
    weights.Pin();
    WgmmaFence();
  }

  // All runs of one width; the first one is open. The products of a quad begin while those of the
  // one before run.
  template <int kBits, bool kOutliers>
  __device__ __forceinline__ void RunPairs(float (&sums)[kSums]) {
    HalfWords<kBits, kZeroPoints> words;
    HalfOperand first, second;
    words.Load(record_, lane_);
    if (kOutliers) OpenOutliers();
    Make<0, kBits, kOutliers>(words, first);
    WaitForQuad();
#pragma unroll 1
    for (;;) {
      Start(first, sums);
      int done = NextQuad();
      WaitForQuad();
      Make<1, kBits, kOutliers>(words, second);
      const bool more = NextPair<kBits, kOutliers>(words);
      WgmmaWait<0>();
      Start(second, sums);
      ReleaseQuad(done);
      done = NextQuad();
      if (more) {
        WaitForQuad();
        Make<0, kBits, kOutliers>(words, first);
      }
      WgmmaWait<0>();
      ReleaseQuad(done);
      if (!more) break;
    }
  }

  // The words of the next pair of this width; false: there is none.
  template <int kBits, bool kOutliers>
  __device__ __forceinline__ bool NextPair(HalfWords<kBits, kZeroPoints>& words) {
    bool more = true;
    if ((--run_ & HalfRun::kPairs) == 0) {
      CloseTile();
      more = (run_ & HalfRun::kMore) != 0;
      if (more) {
        OpenTile();
        if (kOutliers) OpenOutliers();
      }
    } else {
      record_ += words.kPairBytes;
      tile_quad_ += 2;
    }
    if (more) words.Load(record_, lane_);
    return more;
  }

  uint8_t* shared_;
  const HalfBarriers<kForm> barriers_;
  const int lane_, block_;
  const uint32_t deltas_;  // of the row block
  WgmmaOperand quads_;
  const uint32_t empty_quads_;
  uint32_t thousand_ = kThousand;
  HalfCursor<kF.quad_stages> quad_;
  HalfCursor<kF.tile_stages> tile_;
  uint32_t run_ = 0;  // the open one, with the pairs that are left
  __half2 d_;
  const uint8_t* record_ = nullptr;
  uint32_t tile_quad_ = 0;  // the open pair's first quad in the tile
  uint32_t entry_quad_ = 0, entry_at_ = 0, entry_value_ = 0;  // of this lane's first outlier
  uint32_t second_entry_ = 0;                                 // where the list is long
};

}  // namespace fewbit::cuda
