// The arithmetic of decoding on one warp with an i8 cache, on integers: bytes of keys and values
// are operands as they lie in the cache, queries and weights are pairs of signed bytes (256 high +
// low), which take two columns of the products. Scales of keys multiply the scores, those of values
// the weights; what a byte is too large by (128) is taken back as a multiple of the sum of the
// other operand. Sums are exact, so only the rounding of queries (16 bits) and weights (14 bits of
// the stripe's largest) is felt.
#pragma once

#include "kernels/cuda/device/decode_products.cuh"

namespace fewbit::cuda {

inline constexpr float kLargestPair = 32639;  // 127 * 256 + 127

// Round-to-nearest by addition: the lowest 16 bits of the result are `x` + 128 for |x| up to
// kLargestPair, so the upper of the two bytes is `high` and the lower one `low` + 128.
__device__ __forceinline__ uint32_t PairBits(float x, float factor) {
  return __float_as_uint(__fmaf_rn(x, factor, 12582912.0f + 128.0f));
}

// A warp's part of a run, of at most kHeads (4 or 8) query heads; a lane has heads t and t + 4, in
// columns 2t and 2t + 1 of the first and the second products.
template <int kDim, int kHeads>
class ByteAttention {
 public:
  // Of one set of queries in shared memory: [heads][2][kDim + padding] bytes, then a scale for
  // each.
  static constexpr int kQueryStride = PairQueryStride(kDim), kQueryBytes = kQueryStride / 2;

  // By one warp: query head `head`, `row` [kDim] floats in shared memory, times `scale`.
  static __device__ __forceinline__ void PutQuery(const float* row, float scale, int head,
                                                  uint8_t* queries) {
    const int lane = threadIdx.x % 32;
    uint32_t largest = 0;
    for (int i = lane; i < kDim; i += 32) {
      largest = max(largest, __float_as_uint(row[i]) & 0x7FFFFFFFu);
    }
    const float top = __uint_as_float(__reduce_max_sync(0xFFFFFFFFu, largest));
    const float inverse = top > 1e-30f ? __fdiv_rn(kLargestPair, top) : 0.0f;
    uint8_t* to = queries + head * kQueryStride;
    for (int i = lane; i < kDim / 4; i += 32) {
      const float4 x = *reinterpret_cast<const float4*>(row + 4 * i);
      const uint32_t first = __byte_perm(PairBits(x.x, inverse), PairBits(x.y, inverse), 0x5410);
      const uint32_t second = __byte_perm(PairBits(x.z, inverse), PairBits(x.w, inverse), 0x5410);
      *reinterpret_cast<uint32_t*>(to + 4 * i) = __byte_perm(first, second, 0x7531);
      *reinterpret_cast<uint32_t*>(to + kQueryBytes + 4 * i) =
          __byte_perm(first, second, 0x6420) ^ 0x80808080u;
    }
    if (lane == 0) {
      // NaN and infinity stay what they are.
      reinterpret_cast<float*>(queries + kMostGroupHeads * kQueryStride)[head] =
          __fmul_rn(__fdiv_rn(top, kLargestPair), scale);
    }
  }

  __device__ __forceinline__ void LoadQueries(const uint8_t* queries, int heads) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    tiles_ = (heads + 3) / 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int head = 4 * n + t;
      alive_[n] = head < heads;
      if (n >= tiles_) continue;
      const uint8_t* row = queries + (4 * n) * kQueryStride + g * kQueryBytes + 4 * t;
      int sums[4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        q_[n][k][0] = *reinterpret_cast<const uint32_t*>(row + 32 * k);
        q_[n][k][1] = *reinterpret_cast<const uint32_t*>(row + 32 * k + 16);
        MmaU8S8(sums, kZeroes, kZeroes, kZeroes, kZeroes, q_[n][k][0], q_[n][k][1]);
      }
      excess_[n] = 256 * sums[0] + sums[1];
      scale_[n] = reinterpret_cast<const float*>(queries + kMostGroupHeads * kQueryStride)[head];
    }
  }

  __device__ __forceinline__ void Start() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      top_[n] = kNoMaximum;
      sum_[n] = 0;
#pragma unroll
      for (int m = 0; m < kPieces; ++m) out_[n][m] = make_float2(0, 0);
    }
  }

  // A stripe of which, if `edge`, only keys begin .. end - 1 are seen. Slots are released, the
  // second one if it is one of its own (`both`).
  template <typename Stream>
  __device__ __forceinline__ void AddStripe(uint8_t* const (&slots)[2], bool edge, int begin,
                                            int end, bool both, Stream* stream) {
    const int g = threadIdx.x % 32 / 4;
    float key_scale[4], value_scale[4];  // of keys g, g + 8 of each block
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half* scales =
          reinterpret_cast<const __half*>(slots[i / 2] + 2 * View::kHalf) + g + 8 * (i % 2);
      key_scale[i] = __half2float(scales[0]);
      value_scale[i] = __half2float(scales[kv::kBlockTokens]);
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (n >= tiles_) break;
      int sums[2][4] = {};
      ScoreKeys(slots, q_[n], sums);
      float s[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int(&c)[4] = sums[i / 2];
        s[i] = static_cast<float>(256 * c[i % 2 * 2] + c[i % 2 * 2 + 1] - excess_[n]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[i] = __fmul_rn(s[i], __fmul_rn(key_scale[i], scale_[n]));
        const int at = kv::kBlockTokens * (i / 2) + g + 8 * (i % 2);
        if (edge && (at < begin || at >= end)) s[i] = __int_as_float(0xFF800000);
      }
      Weigh(n, s);
#pragma unroll
      for (int i = 0; i < 4; ++i) s[i] *= value_scale[i];
      AddValues(slots, n, s);
    }
    stream->Release();
    if (both) stream->Release();
  }

  // sums [heads] {maximum, sum}, out [heads][kDim].
  __device__ __forceinline__ void Store(int heads, float2* sums, float* out) const {
    const int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (n >= tiles_) break;
      const float sum = SumOfColumn(sum_[n]);
      const int head = 4 * n + lane % 4;
      if (head >= heads) continue;
      if (lane < 4) sums[head] = make_float2(top_[n], sum);
#pragma unroll
      for (int m = 0; m < kPieces; ++m) {
        *reinterpret_cast<float2*>(out + head * kDim + 16 * m + 2 * g) = out_[n][m];
      }
    }
  }

 private:
  using View = BlockView<kv::KvType::kI8, kDim>;
  static constexpr int kTiles = kHeads / 4;
  static constexpr int kPieces = kDim / 16;
  static constexpr int kSteps = (kDim + 31) / 32;
  static constexpr uint32_t kZeroes = 0x80808080;  // bytes that stand for 0

  // sums += products of 16 keys of either slot: rows g and g + 8, columns 2t and 2t + 1.
  static __device__ __forceinline__ void ScoreKeys(uint8_t* const (&slots)[2],
                                                   const uint32_t (&q)[kSteps][2],
                                                   int (&sums)[2][4]) {
    const typename View::Lane lane = View::TokensFirst();
    const uint32_t keys[2] = {SharedAddress(slots[0]), SharedAddress(slots[1])};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t a[2][4];
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if (2 * k + 1 < kPieces) {
          LoadMatrices4(a[b], keys[b] + lane.At(2 * k));
        } else {
          LoadMatrices2(a[b], keys[b] + lane.At(2 * k));
          a[b][2] = a[b][3] = kZeroes;
        }
      }
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        MmaU8S8(sums[b], a[b][0], a[b][1], a[b][2], a[b][3], q[k][0], q[k][1]);
      }
    }
  }

  // Scores of the stripe become weights.
  __device__ __forceinline__ void Weigh(int n, float (&s)[4]) {
    const float most = fmaxf(MaxOfColumn(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[2], s[3]))), top_[n]);
    if (__any_sync(0xFFFFFFFFu, most != top_[n])) {
      const float factor = Exp2(top_[n] - most);
      top_[n] = most;
      sum_[n] = __fmul_rn(sum_[n], factor);
#pragma unroll
      for (int m = 0; m < kPieces; ++m) {
        out_[n][m].x *= factor;
        out_[n][m].y *= factor;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = Exp2(s[i] - top_[n]);
    sum_[n] += (s[0] + s[1]) + (s[2] + s[3]);
  }

  // out += values^T w, w [4] the weights of keys g, g + 8, g + 16, g + 24, scales included.
  __device__ __forceinline__ void AddValues(uint8_t* const (&slots)[2], int n,
                                            const float (&w)[4]) {
    const int lane = threadIdx.x % 32;
    // The power of two that brings the stripe's largest weight to 2^13 .. 2^14. Infinity, which is
    // what NaN becomes, stays.
    const uint32_t own = max(max(__float_as_uint(w[0]), __float_as_uint(w[1])),
                             max(__float_as_uint(w[2]), __float_as_uint(w[3])));
    const uint32_t largest = __reduce_max_sync(0xFFFFFFFFu, alive_[n] ? own : 0);
    const uint32_t exponent = max(largest & 0x7F800000u, 0x0A000000u);
    const float raise = __uint_as_float(0x85800000u - exponent);
    const float lower = __uint_as_float(exponent) * 0x1p-13f;
    // Columns 2h and 2h + 1 have the keys of either half of a block; after an exchange the former
    // has the high bytes of all and the latter the low ones. b0: keys 2t, 2t + 1 of both blocks;
    // b1: those at 8 more.
    const uint32_t first =
        TransposeMatrix(__byte_perm(PairBits(w[0], raise), PairBits(w[1], raise), 0x5410));
    const uint32_t second =
        TransposeMatrix(__byte_perm(PairBits(w[2], raise), PairBits(w[3], raise), 0x5410));
    const uint32_t high = __byte_perm(first, second, 0x7531);
    const uint32_t low = __byte_perm(first, second, 0x6420) ^ 0x80808080u;
    const bool odd = lane / 4 % 2;
    const uint32_t kept = odd ? low : high;
    const uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, odd ? high : low, 4);
    const uint32_t b0 = odd ? got : kept, b1 = odd ? kept : got;
    int sums[4] = {};
    MmaU8S8(sums, kZeroes, kZeroes, kZeroes, kZeroes, b0, b1);
    const int excess = 256 * sums[0] + sums[1];
    // Matrices: tokens 0-7 of both blocks, then tokens 8-15.
    const typename View::Lane place = View::LaneOf(lane % 8 + 8 * (lane / 16), 0);
    const uint32_t values = SharedAddress(lane / 8 % 2 ? slots[1] : slots[0]) + View::kHalf;
    uint32_t r[4];
#pragma unroll
    for (int m = 0; m < kPieces; ++m) {
      LoadMatrices4Transposed(r, values + place.At(m));
      // Rows g: dimension 16 m + 2g; rows g + 8: the next.
      int c[4] = {};
      MmaU8S8(c, __byte_perm(r[0], r[1], 0x6420), __byte_perm(r[0], r[1], 0x7531),
              __byte_perm(r[2], r[3], 0x6420), __byte_perm(r[2], r[3], 0x7531), b0, b1);
      float2& out = out_[n][m];
      out.x = __fmaf_rn(static_cast<float>(256 * c[0] + c[1] - excess), lower, out.x);
      out.y = __fmaf_rn(static_cast<float>(256 * c[2] + c[3] - excess), lower, out.y);
    }
  }

  uint32_t q_[kTiles][kSteps][2];
  int excess_[kTiles];  // 128 times the sum of a query
  float scale_[kTiles];
  bool alive_[kTiles];
  int tiles_;
  float top_[kTiles], sum_[kTiles];  // sums of this lane's keys alone
  float2 out_[kTiles][kPieces];
};

}  // namespace fewbit::cuda
