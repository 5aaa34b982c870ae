// Outliers of the wide kernel. Half a warp sums a row at a time, for all tokens of the group.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/wide_args.cuh"

namespace fewbit::cuda {

template <int kForm>
class OutlierSums {
 public:
  static constexpr WideForm kF = kWideForms[kForm];
  static constexpr int kLanes = 16, kLaneTokens = kF.tokens / kLanes;
  static constexpr int kRows = kWideOwnRows / (2 * kWideWorkers);  // of half a warp
  static constexpr int kAhead = 8;  // entries whose activations are fetched together
  static constexpr int kStarts = kRows * kSegments + 1;
  static_assert(kLaneTokens == 4 && kRows == 2 && kStarts <= kLanes);

  __device__ __forceinline__ OutlierSums(const WideArgs& a, int worker)
      : a_(a), lane_(threadIdx.x % kLanes) {
    first_row_ = kRows * (2 * worker + threadIdx.x % 32 / kLanes);
  }

  // Lists and entries of all units into the L2 cache, a unit a lane. They are never written, so
  // this may be called early.
  __device__ __forceinline__ void Prefetch() const {
    const WideTeam team(a_);
#pragma unroll 1
    for (int u = team.id + team.teams * lane_; u < team.units; u += team.teams * kLanes) {
      const WideUnit unit(a_, u, 0, 0);
      const uint32_t* starts = Starts(unit);
      if (starts == nullptr) continue;
      const uint32_t end = __ldg(starts + kStarts - 1);
#pragma unroll 1
      for (uint32_t e = __ldg(starts); e < end; e += kSectorWords) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(unit.part->w.outliers + e));
      }
    }
  }

  // Asks where the lists of unit `u` are, the next one to be summed.
  __device__ __forceinline__ void Ask(int u) {
    start_ = 0;
    if (u >= a_.row_tiles * a_.groups) return;
    const uint32_t* starts = Starts(WideUnit(a_, u, 0, 0));
    if (starts != nullptr && lane_ < kStarts) start_ = __ldg(starts + lane_);
  }

  // extras[token][row] = ((E0 + E1) + E2) + E3 for this half warp's rows of the unit asked for;
  // asks for the next one.
  __device__ __forceinline__ void Sum(const WideUnit& unit, int next_unit, float* extras) {
    const float* x =
        reinterpret_cast<const float*>(unit.Staged() + unit.part->floats_at) + kLaneTokens * lane_;
    const uint32_t* entries = unit.part->w.outliers;
    extras += kLaneTokens * lane_ * kWideExtrasPitch + first_row_;
    const uint32_t start = start_;
    uint32_t first[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint32_t own = Start(start, kSegments * r) + lane_;
      const uint32_t end = Start(start, kSegments * (r + 1));
      first[r] = lane_ < kAhead && own < end ? __ldg(entries + own) : 0;
    }
    Ask(next_unit);
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      const Vector sum = SumRow(entries, first[0], start, r, x);
      first[0] = first[kRows - 1];
#pragma unroll
      for (int t = 0; t < kLaneTokens; ++t) extras[t * kWideExtrasPitch + r] = sum.v[t];
    }
  }

 private:
  static constexpr int kSectorWords = 8;
  struct Vector {
    float v[kLaneTokens];
  };

  // Of this half warp's lists; null: none.
  __device__ __forceinline__ const uint32_t* Starts(const WideUnit& unit) const {
    const DeviceMatrix& w = unit.part->w;
    const int row = unit.row_tile * kWideRows + blockIdx.x % kWideTeam * kWideOwnRows + first_row_;
    if (w.outliers == nullptr || row >= unit.part->row_blocks * quant::kBlockRows) return nullptr;
    return w.outlier_start + static_cast<size_t>(row) * kSegments;
  }
  // Volatile, so that all loads of a batch stay in front of the sums.
  static __device__ __forceinline__ Vector Load(const float* from) {
    Vector out;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out.v[0]), "=f"(out.v[1]), "=f"(out.v[2]), "=f"(out.v[3])
                 : "l"(from));
    return out;
  }

  static __device__ __forceinline__ uint32_t Start(uint32_t start, int list) {
    return __shfl_sync(~0u, start, list, kLanes);
  }
  // `start`: of list `lane_`; `entry`: this lane's of the first kAhead. Both halves of a warp go as
  // far as the longer row needs: an entry behind the end is 0, which adds nothing.
  __device__ __forceinline__ Vector SumRow(const uint32_t* entries, uint32_t entry, uint32_t start,
                                           int r, const float* x) const {
    const int list = kSegments * r;
    const uint32_t at = Start(start, list), count = Start(start, list + kSegments) - at;
    // Where lists 1 to 3 begin; the first one begins with the row.
    const uint32_t second = Start(start, list + 1) - at, third = Start(start, list + 2) - at,
                   fourth = Start(start, list + 3) - at;
    const int most = __reduce_max_sync(~0u, count);
    Vector chain = {}, sum = {};
#pragma unroll 1
    for (int first = 0; first < most; first += kAhead) {
      const auto begins = [&](uint32_t list) {
        return list - first < kAhead ? 1u << (list - first) : 0u;
      };
      const uint32_t lists = begins(second) | begins(third) | begins(fourth);
      Vector values[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const uint32_t channel = __shfl_sync(~0u, entry, k, kLanes) & 0xFFFFu;
        values[k] = Load(x + channel * kF.tokens);
      }
      const float weight = __half2float(__ushort_as_half(static_cast<uint16_t>(entry >> 16)));
      const uint32_t own = first + kAhead + lane_;
      entry = lane_ < kAhead && own < count ? __ldg(entries + at + own) : 0;
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const float w = __shfl_sync(~0u, weight, k, kLanes);
        const bool next_list = lists >> k & 1;
#pragma unroll
        for (int t = 0; t < kLaneTokens; ++t) {
          if (next_list) {
            sum.v[t] = __fadd_rn(sum.v[t], chain.v[t]);
            chain.v[t] = 0;
          }
          chain.v[t] = __fmaf_rn(w, values[k].v[t], chain.v[t]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kLaneTokens; ++t) sum.v[t] = __fadd_rn(sum.v[t], chain.v[t]);
    return sum;
  }

  const WideArgs& a_;
  int lane_, first_row_;
  uint32_t start_ = 0;
};

}  // namespace fewbit::cuda
