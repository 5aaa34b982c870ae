// The arithmetic of decoding on one warp with 16-bit keys and values: scores of 32 keys, the online
// softmax, values times weights. Keys are the rows of the tensor-core products, query heads their
// columns. (decode_bytes.cuh has the same for bytes.)
#pragma once

#include "kernels/cuda/attention_args.h"
#include "kernels/cuda/device/block_view.cuh"
#include "kernels/cuda/device/fragment.cuh"
#include "kernels/cuda/device/head_row.cuh"
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

// The sum of `x` over the lanes with the same t, in every one of them.
__device__ __forceinline__ float SumOfColumn(float x) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, mask);
  return x;
}
__device__ __forceinline__ float MaxOfColumn(float x) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, mask));
  }
  return x;
}

// A warp's part of a run: online softmax (Milakov and Gimelshein 2018) over stripes of two KV
// blocks. Columns are query heads; a lane has 2t and 2t + 1.
template <kv::KvType kType, int kDim>
class HalfAttention {
 public:
  // Of one set of queries in shared memory, [8][kDim + kQueryPad] elements.
  static constexpr int kQueryStride = 2 * (kDim + kQueryPad);

  // By one warp: query head `head`, `row` [kDim] floats in shared memory, times `scale`.
  static __device__ __forceinline__ void PutQuery(const float* row, float scale, int head,
                                                  uint8_t* queries) {
    uint32_t* to = reinterpret_cast<uint32_t*>(queries + head * kQueryStride);
    for (int i = threadIdx.x % 32; i < kDim / 2; i += 32) {
      to[i] = PackPair<kType>(row[2 * i] * scale, row[2 * i + 1] * scale);
    }
  }

  __device__ __forceinline__ void LoadQueries(const uint8_t* queries, int) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint8_t* row = queries + g * kQueryStride;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      q_[k][0] = *reinterpret_cast<const uint32_t*>(row + 2 * (16 * k + 2 * t));
      q_[k][1] = *reinterpret_cast<const uint32_t*>(row + 2 * (16 * k + 8 + 2 * t));
    }
  }

  __device__ __forceinline__ void Start() {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      top_[c] = kNoMaximum;
      sum_[c] = 0;
    }
#pragma unroll
    for (int m = 0; m < kSteps; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[m][i] = 0;
    }
  }

  // A stripe of which, if `edge`, only keys begin .. end - 1 are seen. Slots are released, the
  // second one if it is one of its own (`both`).
  template <typename Stream>
  __device__ __forceinline__ void AddStripe(uint8_t* const (&slots)[2], bool edge, int begin,
                                            int end, bool both, Stream* stream) {
    float s[2][4];
#pragma unroll
    for (int b = 0; b < 2; ++b) ScoreKeys(slots[b], s[b]);
    if (edge) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at =
            kv::kBlockTokens * (i / 4) + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * (i % 4 / 2);
        if (at < begin || at >= end) s[i / 4][i % 4] = __int_as_float(0xFF800000);
      }
    }
    Weigh(s);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      AddValues(slots[b], TransposeMatrix(Math::Pack(s[b][0], s[b][1])),
                TransposeMatrix(Math::Pack(s[b][2], s[b][3])));
      if (b == 1 || both) stream->Release();
    }
  }

  // sums [heads] {maximum, sum}, out [heads][kDim].
  __device__ __forceinline__ void Store(int heads, float2* sums, float* out) const {
    const int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float sum = SumOfColumn(sum_[c]);
      const int head = 2 * (lane % 4) + c;
      if (head >= heads) continue;
      if (lane < 4) sums[head] = make_float2(top_[c], sum);
#pragma unroll
      for (int m = 0; m < kSteps; ++m) {
        out[head * kDim + 16 * m + g] = out_[m][c];
        out[head * kDim + 16 * m + g + 8] = out_[m][c + 2];
      }
    }
  }

 private:
  using View = BlockView<kType, kDim>;
  using Math = typename MathOf<kType>::Type;
  static constexpr int kSteps = kDim / 16;

  // Scores of 16 keys: s[0], s[1] key g, query heads 2t, 2t + 1; s[2], s[3] key g + 8.
  __device__ __forceinline__ void ScoreKeys(const uint8_t* slot, float (&s)[4]) const {
    const typename View::Lane lane = View::TokensFirst();
    const uint32_t keys = SharedAddress(slot);
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t a[4];
      LoadMatrices4(a, keys + lane.At(2 * k));
      Math::Mma(sums[k % 2], a, q_[k][0], q_[k][1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) s[i] = sums[0][i] + sums[1][i];
  }

  // out += values^T weights: weights b0 keys 2t, 2t + 1, b1 keys 2t + 8, 2t + 9 of query head g.
  // out_[m]: rows are dimensions 16 m + g and 8 more.
  __device__ __forceinline__ void AddValues(const uint8_t* slot, uint32_t b0, uint32_t b1) {
    const uint32_t values = SharedAddress(slot) + View::kHalf;
    const typename View::Lane lane = View::PiecesFirst();
    uint32_t a[4];
#pragma unroll
    for (int m = 0; m < kSteps; ++m) {
      LoadMatrices4Transposed(a, values + lane.At(2 * m));
      Math::Mma(out_[m], a, b0, b1);
    }
  }

  // Scores of two KV blocks become weights.
  __device__ __forceinline__ void Weigh(float (&s)[2][4]) {
    float most[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      most[c] = fmaxf(fmaxf(s[0][c], s[0][c + 2]), fmaxf(s[1][c], s[1][c + 2]));
      most[c] = fmaxf(MaxOfColumn(most[c]), top_[c]);
    }
    if (__any_sync(0xFFFFFFFFu, most[0] != top_[0] || most[1] != top_[1])) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float factor = Exp2(top_[c] - most[c]);
        top_[c] = most[c];
        sum_[c] = __fmul_rn(sum_[c], factor);
#pragma unroll
        for (int m = 0; m < kSteps; ++m) {
          out_[m][c] *= factor;
          out_[m][c + 2] *= factor;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) s[i / 4][i % 4] = Exp2(s[i / 4][i % 4] - top_[i % 2]);
#pragma unroll
    for (int c = 0; c < 2; ++c) sum_[c] += (s[0][c] + s[0][c + 2]) + (s[1][c] + s[1][c + 2]);
  }

  uint32_t q_[kSteps][2];  // column g is query head g
  float top_[2], sum_[2];  // sums of this lane's keys alone
  float out_[kSteps][4];
};

}  // namespace fewbit::cuda
