// Outliers of the wide kernel: every helper warp has a run of the block's rows, whose lists lie
// behind each other, and all tokens of the group.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/slab_floats.cuh"
#include "kernels/cuda/device/wide_args.cuh"

namespace fewbit::cuda {

template <int kForm>
class OutlierRun {
 public:
  static constexpr WideForm kF = kWideForms[kForm];
  static constexpr int kWarps = WideHelpers(kF);
  static constexpr int kLanes = kF.tokens < 32 ? kF.tokens : 32;
  static constexpr int kLaneTokens = kF.tokens / kLanes;
  static constexpr int kAhead = 8;  // entries whose activations are fetched together
  static_assert((kWideOwnRows + kWarps - 1) / kWarps * kSegments < 32);

  __device__ __forceinline__ OutlierRun() {
    const int warp = static_cast<int>(threadIdx.x) / 32 - kWideProductWarps - kWideFetchWarps;
    lane_ = threadIdx.x % 32;
    first_row_ = kWideOwnRows * warp / kWarps;
    rows_ = kWideOwnRows * (warp + 1) / kWarps - first_row_;
  }

  // The lists of this warp's rows; the block's first one is row `row` of the matrix, `rows` are
  // left there. Reads only what is never written, so it may be called early.
  __device__ __forceinline__ void Find(const DeviceMatrix& w, int row, int rows) {
    lists_ = max(0, min(rows_, rows - first_row_)) * kSegments;
    start_ = 0;
    if (lists_ > 0) {
      start_ = __ldg(w.outlier_start + static_cast<size_t>(row + first_row_) * kSegments +
                     min(lane_, lists_));
    }
    entries_ = w.outliers;
    begin_ = __shfl_sync(0xFFFFFFFFu, start_, 0);
    end_ = __shfl_sync(0xFFFFFFFFu, start_, lists_);
    entry_ = Entry(begin_);
  }

  // extras[token][row] = ((E0 + E1) + E2) + E3 for this warp's rows; x: the activations as floats,
  // [channel][token].
  __device__ __forceinline__ void Sum(const float* x, float* extras) {
    const int token = kLaneTokens * (lane_ % kLanes);
    x += token;
    extras += token * kWideExtrasPitch + first_row_;
    for (int r = 0; r < rows_; ++r) Store(extras + r, Vector{});
    State s = {};
#pragma unroll 1
    for (uint32_t at = begin_; at < end_; at += 32) {
      const uint32_t entry = entry_;
      entry_ = Entry(at + 32);
      // Bit i: a list, or a row, begins with entry at + i.
      const bool inside = lane_ < lists_ && start_ - at < min(end_ - at, 32u);
      const uint32_t bit = inside ? 1u << (start_ - at) : 0;
      s.lists = __reduce_or_sync(0xFFFFFFFFu, bit);
      s.rows = __reduce_or_sync(0xFFFFFFFFu, lane_ % kSegments == 0 ? bit : 0);
      const int count = static_cast<int>(min(end_ - at, 32u));
#pragma unroll 1
      for (int i = 0; i < count; i += kAhead) SumSome(entry, i, count, at, x, extras, &s);
    }
    if (s.row >= 0) Store(extras + s.row, Added(s.sum, s.chain));
  }

 private:
  struct Vector {
    float v[kLaneTokens];
  };
  struct State {
    Vector chain, sum;
    uint32_t lists, rows;
    int row = -1;  // of this warp's, that the sum belongs to; -1: none yet
  };

  static __device__ __forceinline__ Vector Added(const Vector& a, const Vector& b) {
    Vector out;
#pragma unroll
    for (int t = 0; t < kLaneTokens; ++t) out.v[t] = __fadd_rn(a.v[t], b.v[t]);
    return out;
  }
  __device__ __forceinline__ void Store(float* to, const Vector& from) const {
    if (lane_ >= kLanes) return;
#pragma unroll
    for (int t = 0; t < kLaneTokens; ++t) to[t * kWideExtrasPitch] = from.v[t];
  }
  // Volatile, so that all loads of a batch stay in front of the sums.
  static __device__ __forceinline__ Vector Load(const float* from) {
    Vector out;
    if constexpr (kLaneTokens == 2) {
      asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];"
                   : "=f"(out.v[0]), "=f"(out.v[1])
                   : "l"(from));
    } else {
      asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(out.v[0]) : "l"(from));
    }
    return out;
  }
  // This lane's entry of those from `at` on; 0 behind the end.
  __device__ __forceinline__ uint32_t Entry(uint32_t at) const {
    return at + lane_ < end_ ? __ldg(entries_ + at + lane_) : 0;
  }
  // The row of an entry: as many of this warp's rows end in front of it.
  __device__ __forceinline__ int RowOf(uint32_t entry) const {
    const bool ended = lane_ % kSegments == 0 && lane_ > 0 && lane_ <= lists_ && start_ <= entry;
    return __popc(__ballot_sync(0xFFFFFFFFu, ended));
  }

  // Entries first .. first + kAhead - 1 of the 32 that the lanes hold, `count` of which exist.
  __device__ __forceinline__ void SumSome(uint32_t entry, int first, int count, uint32_t at,
                                          const float* x, float* extras, State* s) const {
    Vector values[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const uint32_t channel = __shfl_sync(0xFFFFFFFFu, entry, first + k) & 0xFFFFu;
      values[k] = Load(x + channel * kF.tokens);
    }
    const uint32_t lists = s->lists >> first, rows = s->rows >> first;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const bool begins = lists >> k & 1;
#pragma unroll
      for (int t = 0; t < kLaneTokens; ++t) {
        s->sum.v[t] = __fadd_rn(s->sum.v[t], begins ? s->chain.v[t] : 0.0f);
        if (begins) s->chain.v[t] = 0;
      }
      if (rows >> k & 1) {
        if (s->row >= 0) Store(extras + s->row, s->sum);
        s->sum = {};
        s->row = RowOf(at + first + k);
      }
      const uint32_t own = __shfl_sync(0xFFFFFFFFu, entry, first + k);
      const float weight = __half2float(__ushort_as_half(static_cast<uint16_t>(own >> 16)));
#pragma unroll
      for (int t = 0; t < kLaneTokens; ++t) {
        const float chain = __fmaf_rn(weight, values[k].v[t], s->chain.v[t]);
        if (first + k < count) s->chain.v[t] = chain;
      }
    }
  }

  int lane_, first_row_, rows_;
  int lists_ = 0;
  const uint32_t* entries_ = nullptr;
  uint32_t start_ = 0;  // of list `lane`
  uint32_t begin_ = 0, end_ = 0, entry_ = 0;
};

}  // namespace fewbit::cuda
