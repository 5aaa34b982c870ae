// The arithmetic of decoding on one warp: scores of 16 keys, the online softmax over 32, values
// times weights. Keys are the rows of the tensor-core products, query heads their columns.
#pragma once

#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/device/fragment.cuh"
#include "kernels/kv_layout.h"

namespace fewbit::cuda {

inline constexpr float kNoMaximum = -1e30f;  // finite: a run in which nothing is seen weighs 0

template <kv::KvType kType>
struct MathOf {
  using Type = HalfMath;
};
template <>
struct MathOf<kv::KvType::kBF16> {
  using Type = BfloatMath;
};

// A head of a KV block as it lies in shared memory.
template <kv::KvType kType, int kDim>
struct BlockView {
  static constexpr bool kBytes = kType == kv::KvType::kI8;
  static constexpr int kPieces = kDim * kv::KvTypeBytes(kType) / 16;
  static constexpr int kRow = 16 * kPieces;
  static constexpr int kHalf = kv::kBlockTokens * kRow;
  static constexpr int kSteps = kDim / 16;

  // Where a lane's addresses for matrix loads start: its token's row, and what is XORed with the
  // number of an even piece.
  static constexpr int kPanel = kv::DeviceBlockShape::panel_pieces(kPieces);
  struct Lane {
    int row, low;
    __device__ int At(int even_piece) const {
      return row + even_piece / kPanel * (256 * kPanel) + ((even_piece % kPanel ^ low) << 4);
    }
  };
  static __device__ Lane LaneOf(int token, int odd) {
    return {token * 16 * kPanel, odd ^ kv::DeviceBlockShape::piece_slot(kPieces, token, 0)};
  }
  // Matrices (tokens 0-7, 8-15) of a piece, then of the next piece.
  static __device__ Lane TokensFirst() {
    const int lane = threadIdx.x % 32;
    return LaneOf(lane % 16, kPieces > 1 ? lane / 16 : 0);
  }
  // Matrices (piece, next piece) of tokens 0-7, then of tokens 8-15.
  static __device__ Lane PiecesFirst() {
    const int lane = threadIdx.x % 32;
    return LaneOf(lane % 8 + 8 * (lane / 16), lane / 8 % 2);
  }
};

// Query fragments of a warp: column g is query head g.
template <int kSteps>
using QueryFragments = uint32_t[kSteps][2];

// Scores of 16 keys: s[0], s[1] key g, query heads 2t, 2t + 1; s[2], s[3] key g + 8.
template <kv::KvType kType, int kDim>
__device__ __forceinline__ void ScoreKeys(const uint8_t* slot, const QueryFragments<kDim / 16>& q,
                                          float (&s)[4]) {
  using View = BlockView<kType, kDim>;
  using Math = typename MathOf<kType>::Type;
  const typename View::Lane lane = View::TokensFirst();
  const uint32_t keys = SharedAddress(slot);
  float sums[2][4] = {};
  if constexpr (!View::kBytes) {
#pragma unroll
    for (int k = 0; k < View::kSteps; ++k) {
      uint32_t a[4];
      LoadMatrices4(a, keys + lane.At(2 * k));
      Math::Mma(sums[k % 2], a, q[k][0], q[k][1]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < View::kSteps; k += 2) {
      uint32_t r[4];
      const bool both = k + 1 < View::kSteps;
      if (both) {
        LoadMatrices4(r, keys + lane.At(k));
      } else {
        LoadMatrices2(r, keys + lane.At(k));
      }
#pragma unroll
      for (int i = 0; i < (both ? 2 : 1); ++i) {
        // A lane's 4 neighbouring bytes of a token stand for k = 2t, 2t + 1, 2t + 8, 2t + 9.
        const uint32_t a[4] = {WidenBytes<0, 1>(r[2 * i]), WidenBytes<0, 1>(r[2 * i + 1]),
                               WidenBytes<2, 3>(r[2 * i]), WidenBytes<2, 3>(r[2 * i + 1])};
        Math::Mma(sums[i], a, q[k + i][0], q[k + i][1]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = sums[0][i] + sums[1][i];
  if constexpr (View::kBytes) {
    const __half* scales = reinterpret_cast<const __half*>(slot + 2 * View::kHalf);
    const int g = threadIdx.x % 32 / 4;
    const float low = __half2float(scales[g]), high = __half2float(scales[g + 8]);
    s[0] *= low, s[1] *= low, s[2] *= high, s[3] *= high;
  }
}

// out += values^T weights: weights b0 keys 2t, 2t + 1, b1 keys 2t + 8, 2t + 9 of query head g.
// out[m]: columns query heads 2t, 2t + 1; its two rows are the dimensions of OutputDim.
template <kv::KvType kType, int kDim>
__device__ __forceinline__ void AddValues(const uint8_t* slot, uint32_t b0, uint32_t b1,
                                          float (&out)[kDim / 16][4]) {
  using View = BlockView<kType, kDim>;
  using Math = typename MathOf<kType>::Type;
  const uint32_t values = SharedAddress(slot) + View::kHalf;
  if constexpr (!View::kBytes) {
    const typename View::Lane lane = View::PiecesFirst();
#pragma unroll
    for (int m = 0; m < View::kSteps; ++m) {
      uint32_t a[4];
      LoadMatrices4Transposed(a, values + lane.At(2 * m));
      Math::Mma(out[m], a, b0, b1);
    }
  } else {
    const typename View::Lane lane = View::TokensFirst();
#pragma unroll
    for (int m = 0; m < View::kSteps; m += 2) {
      uint32_t r[4];
      const bool both = m + 1 < View::kSteps;
      if (both) {
        LoadMatrices4Transposed(r, values + lane.At(m));
      } else {
        LoadMatrices2Transposed(r, values + lane.At(m));
      }
#pragma unroll
      for (int i = 0; i < (both ? 2 : 1); ++i) {
        // Bytes: dimensions 2g, 2g + 1 of key 2t, then of key 2t + 1.
        const uint32_t a[4] = {WidenBytes<0, 2>(r[2 * i]), WidenBytes<1, 3>(r[2 * i]),
                               WidenBytes<0, 2>(r[2 * i + 1]), WidenBytes<1, 3>(r[2 * i + 1])};
        Math::Mma(out[m + i], a, b0, b1);
      }
    }
  }
}

// Weights of i8 values take their scales, and a factor that keeps the products of small scales and
// small weights within what f16 resolves; it is taken back with the output. It leaves room for
// scales up to 1000, where no value that f16 could hold goes.
inline constexpr float kWeightRaise = 64.0f;

template <int kDim>
__device__ __forceinline__ void ScaleWeights(const uint8_t* slot, float (&s)[4]) {
  using View = BlockView<kv::KvType::kI8, kDim>;
  const __half* scales = reinterpret_cast<const __half*>(slot + 2 * View::kHalf) + 16;
  const int g = threadIdx.x % 32 / 4;
  const float low = __half2float(scales[g]) * kWeightRaise;
  const float high = __half2float(scales[g + 8]) * kWeightRaise;
  s[0] *= low, s[1] *= low, s[2] *= high, s[3] *= high;
}

// The dimension of row g (second: row g + 8) of out[m].
template <kv::KvType kType>
__device__ __forceinline__ int OutputDim(int m, bool second) {
  const int g = threadIdx.x % 32 / 4;
  return kType == kv::KvType::kI8 ? 16 * m + 2 * g + second : 16 * m + g + 8 * second;
}

// Online softmax (Milakov and Gimelshein 2018) of the warp's part of a run, for columns (query
// heads) 2t and 2t + 1; sums are of this lane's keys alone.
template <int kSteps>
struct RunningSoftmax {
  float top[2] = {kNoMaximum, kNoMaximum};
  float sum[2] = {0, 0};
  float out[kSteps][4] = {};

  // Scores of two KV blocks become weights.
  __device__ __forceinline__ void Weigh(float (&s)[2][4]) {
    float most[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      most[c] = fmaxf(fmaxf(s[0][c], s[0][c + 2]), fmaxf(s[1][c], s[1][c + 2]));
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        most[c] = fmaxf(most[c], __shfl_xor_sync(0xFFFFFFFFu, most[c], mask));
      }
      most[c] = fmaxf(most[c], top[c]);
    }
    if (__any_sync(0xFFFFFFFFu, most[0] != top[0] || most[1] != top[1])) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float factor = Exp2(top[c] - most[c]);
        top[c] = most[c];
        sum[c] *= factor;
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          out[m][c] *= factor;
          out[m][c + 2] *= factor;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) s[i / 4][i % 4] = Exp2(s[i / 4][i % 4] - top[i % 2]);
#pragma unroll
    for (int c = 0; c < 2; ++c) sum[c] += (s[0][c] + s[0][c + 2]) + (s[1][c] + s[1][c + 2]);
  }
};

}  // namespace fewbit::cuda
