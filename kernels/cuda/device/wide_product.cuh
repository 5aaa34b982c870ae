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

  __device__ __forceinline__ void Load(const uint8_t* tile, int pair, int lane) {
    chunk.Load(tile + pair * RecordBytes(2, kZeroPoints), lane);
  }
  static constexpr int kWords = 8;
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

  __device__ __forceinline__ void Load(const uint8_t* tile, int pair, int lane) {
    constexpr int kRecord = RecordBytes(4, kZeroPoints);
#pragma unroll
    for (int q = 0; q < 2; ++q) chunk[q].Load(tile + (2 * pair + q) * kRecord, lane);
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
  // The parity bits of the sub-scales of rows g and g + 8 as bytes, by chunk of the tile.
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
  static constexpr bool kQuadSlices = kF.slice_quads == 1;

  __device__ __forceinline__ WideProduct(uint8_t* shared, const WideBarriers& barriers)
      : shared_(shared), barriers_(barriers), lane_(threadIdx.x % 32) {}

  // sums = the bytes of the weights times the slabs, columns of high and low bytes apart.
  __device__ __forceinline__ void Run(const WideTile& tile, const uint8_t* weights,
                                      const uint8_t* parity, int (&sums)[kSums]) {
    WgmmaPin(sums);
    if (tile.two) {
      RunPairs<2>(tile.pairs, weights, parity, sums);
    } else {
      RunPairs<4>(tile.pairs, weights, parity, sums);
    }
    WgmmaPin(sums);
  }

 private:
  // The slice of activations that holds quad kQuad of the next pair.
  template <int kQuad>
  __device__ __forceinline__ const uint8_t* Slice() {
    if constexpr (kQuad == 0 || kQuadSlices) {
      BarrierWait(barriers_.slices.full + next_.stage, next_.parity);
      slice_ = shared_ + kL.slices + next_.stage * kL.slice_bytes;
      next_.Advance(kF.slice_stages);
      return slice_;
    } else {
      return slice_ + kQuadSlabs * kSlab;
    }
  }
  // The oldest slice has been read.
  __device__ __forceinline__ void Release() {
    if (lane_ == 0) BarrierArrive(barriers_.slices.empty + done_.stage);
    done_.Advance(kF.slice_stages);
  }
  // Operand A in registers has to be complete before the fence.
  template <int kCount>
  static __device__ __forceinline__ void Pin(uint32_t (&a)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
  }

  // Issues the products of quad kQuad, whose bytes are in `a`; runs `meanwhile` while they are
  // under way.
  template <int kQuad, int kWords, typename Meanwhile>
  __device__ __forceinline__ void RunQuad(uint32_t (&a)[kWords], bool add, int (&sums)[kSums],
                                          const Meanwhile& meanwhile) {
    const uint8_t* slabs = Slice<kQuad>();
    Pin(a);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kWords; i += 8) {
      WgmmaU8S8(sums, a + i, WgmmaOperandB(slabs, kSlab), i > 0 || add);
      WgmmaU8S8(sums, a + i + 4, WgmmaOperandB(slabs + 2 * kSlab, kSlab), 1);
    }
    WgmmaCommit();
    meanwhile();
    WgmmaWait<0>();
    if constexpr (kQuad == 1 || kQuadSlices) Release();
  }

  template <int kBits>
  __device__ __forceinline__ void RunPairs(int pairs, const uint8_t* weights, const uint8_t* parity,
                                           int (&sums)[kSums]) {
    uint32_t bits[2] = {};
    PairWords<kBits, kZeroPoints> words;
    words.Load(weights, 0, lane_);
    uint32_t a[words.kWords], b[words.kWords];
    words.template Expand<0>(a);
#pragma unroll 1
    for (int pair = 0; pair < pairs; ++pair) {
      RunQuad<0>(a, pair > 0, sums, [&] { words.template Expand<1>(b); });
      if constexpr (kBits == 4 && !kZeroPoints) words.AddParity(pair, bits);
      if (pair + 1 < pairs) words.Load(weights, pair + 1, lane_);
      RunQuad<1>(b, true, sums, [&] { words.template Expand<0>(a); });
    }
    if constexpr (kBits == 4 && !kZeroPoints) {
      uint32_t a[4] = {bits[0], bits[1], bits[0] << 4, bits[1] << 4};
      Pin(a);
      WgmmaFence();
      WgmmaU8S8(sums, a, WgmmaOperandB(parity, kSlab), 1);
      WgmmaCommit();
      WgmmaWait<0>();
    }
  }

  uint8_t* shared_;
  const WideBarriers& barriers_;
  const uint8_t* slice_ = nullptr;
  PipeCursor next_, done_;
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
  ForEachUnit(a, [&](const WideUnit& unit, int) {
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
      if (lane == 0) BarrierArrive(barriers.tiles.empty + at.stage);
    }
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
