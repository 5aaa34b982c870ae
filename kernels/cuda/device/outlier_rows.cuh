// Sums of outliers for the rows that a block of a wide kernel owns. A team of lanes takes a row at
// a time, a lane four tokens of it. Lists and entries are fetched into shared memory ahead.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/outlier_window.h"

namespace fewbit::cuda {

// The rows of one unit: `rows` (perhaps none) from row `first` of matrix `w` on.
struct OutlierUnit {
  const DeviceMatrix* w;
  int first, rows;
};

// By kThreads threads of the block, of which this is `thread`; kAhead: entries of a row whose
// activations are asked for together.
template <int kTokens, int kRows, int kThreads, int kAhead>
class OutlierRows {
 public:
  static constexpr int kLanes = kTokens / 4, kTeams = kThreads / kLanes;

  __device__ __forceinline__ OutlierRows(uint8_t* shared, int thread)
      : starts_(reinterpret_cast<uint32_t*>(shared)),
        window_(starts_ + 2 * OutlierStartWords(kRows)),
        thread_(thread) {
    asm("mov.u32 %0, %%ctaid.y;" : "=r"(zero_));  // grids have one dimension
  }

  // Asks for where the lists of a unit begin, into one of two places. Reads only what is never
  // written, as AskEntries(), so both may be called early.
  __device__ __forceinline__ void AskStarts(const OutlierUnit& unit, int place) {
    if (unit.rows == 0) return;
    const uint32_t* from = unit.w->outlier_start + static_cast<size_t>(unit.first) * kSegments;
    for (int i = thread_; i <= unit.rows * kSegments; i += kThreads) {
      CopyAsync4(Starts(place) + i, from + i);
    }
    CopyAsyncCommit();
  }
  // Asks for as many entries as there is room for; the starts must have come, and the sums of the
  // unit before be made.
  __device__ __forceinline__ void AskEntries(const OutlierUnit& unit, int place) {
    if (unit.rows == 0) return;
    const uint32_t* start = Starts(place);
    const uint32_t* from = unit.w->outliers + start[0];
    const int count = min(kOutlierWindow, static_cast<int>(start[unit.rows * kSegments] - *start));
    for (int i = thread_; i < count; i += kThreads) CopyAsync4(window_ + i, from + i);
    CopyAsyncCommit();
  }

  // extras[row][token] = ((E0 + E1) + E2) + E3 of the unit's rows; x: the activations as floats,
  // [channel][token]. Starts and entries must have come.
  __device__ __forceinline__ void Sum(const OutlierUnit& unit, int place, const float* x,
                                      float* extras) const {
    if (unit.rows == 0) return;
    const uint32_t* start = Starts(place);
    const bool fetched = start[unit.rows * kSegments] - *start <= kOutlierWindow;
    const int token = 4 * (thread_ % kLanes);
#pragma unroll 1
    for (int row = thread_ / kLanes; row - thread_ / kLanes < unit.rows; row += kTeams) {
      // Where the lists of the row begin and end; none behind the last row.
      const uint32_t* lists = start + kSegments * min(row, unit.rows - 1);
      const uint4 begin = *reinterpret_cast<const uint4*>(lists);
      const uint32_t end = row < unit.rows ? lists[kSegments] : begin.x;
      float4 sum;
      if (fetched) {
        sum = SumFetched(SharedAddress(window_ + (begin.x - *start)), begin, end, x + token);
      } else {
        sum = SumStored(unit.w->outliers, begin, end, x + token);
      }
      if (row < unit.rows) *reinterpret_cast<float4*>(extras + row * kTokens + token) = sum;
    }
  }

 private:
  __device__ __forceinline__ uint32_t* Starts(int place) const {
    return starts_ + place * OutlierStartWords(kRows);
  }
  static __device__ __forceinline__ float4 Load(const float* x, uint32_t channel) {
    float4 v;
    asm volatile(
        "{ .reg .b64 a; mad.wide.u32 a, %5, %6, %4; "
        "ld.global.cg.v4.f32 {%0, %1, %2, %3}, [a]; }"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
        : "l"(x), "r"(channel), "n"(4 * kTokens));
    return v;
  }
  // 1 << at, 0 outside of 0 .. 31.
  static __device__ __forceinline__ uint32_t Bit(uint32_t at) {
    uint32_t bit;
    asm("shl.b32 %0, 1, %1;" : "=r"(bit) : "r"(at));
    return bit;
  }
  static __device__ __forceinline__ float4 Added(const float4& a, const float4& b) {
    return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
  }

  // sum and chain with one more entry: a list begins with it, or not.
  static __device__ __forceinline__ void Add(uint32_t weight_bits, const float4& x, bool begins,
                                             bool valid, float4* chain, float4* sum) {
    if (begins) {
      *sum = Added(*sum, *chain);
      *chain = {};
    }
    if (!valid) return;
    const float weight = __half2float(__ushort_as_half(static_cast<uint16_t>(weight_bits)));
    *chain = {__fmaf_rn(weight, x.x, chain->x), __fmaf_rn(weight, x.y, chain->y),
              __fmaf_rn(weight, x.z, chain->z), __fmaf_rn(weight, x.w, chain->w)};
  }

  // One row, whose lists begin at `begin`, by a whole warp; its first entry lies at `at`.
  __device__ __forceinline__ float4 SumFetched(uint32_t at, const uint4& begin, uint32_t end,
                                               const float* x) const {
    const auto half = [&](int k, int which) {
      uint16_t v;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at + 4 * k + 2 * which));
      return v;
    };
    float4 chain = {}, sum = {};
#pragma unroll 1
    for (uint32_t i = begin.x; __any_sync(0xFFFFFFFFu, i < end); i += kAhead, at += 4 * kAhead) {
      const uint32_t left = i < end ? end - i : 0;
      float4 values[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) values[k] = Load(x, k < left ? half(k, 0) : 0);
      // ptxas would sum each entry as soon as its activations have come, and ask for the next only
      // then. So all sums depend on all of them; `zero_` is 0, which the compiler cannot know.
      uint32_t come = 0;
#pragma unroll
      for (const float4& v : values) come |= __float_as_uint(v.w);
      const uint32_t begins =
          Bit(begin.y - i) | Bit(begin.z - i) | Bit(begin.w - i) | (come & zero_);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        Add(half(k, 1), values[k], begins >> k & 1, k < left, &chain, &sum);
      }
    }
    return Added(sum, chain);
  }
  __device__ __forceinline__ float4 SumStored(const uint32_t* entries, const uint4& begin,
                                              uint32_t end, const float* x) const {
    float4 chain = {}, sum = {};
#pragma unroll 1
    for (uint32_t i = begin.x; i < end; ++i) {
      const uint32_t entry = __ldg(entries + i);
      const bool begins = i == begin.y || i == begin.z || i == begin.w;
      Add(entry >> 16, Load(x, entry & 0xFFFFu), begins, true, &chain, &sum);
    }
    return Added(sum, chain);
  }

  uint32_t *starts_, *window_;
  int thread_;
  uint32_t zero_;
};

}  // namespace fewbit::cuda
