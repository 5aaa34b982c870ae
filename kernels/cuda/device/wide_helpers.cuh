// The helper warps of the wide kernel: outliers while the products run, then the last sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/wide_outliers.cuh"

namespace fewbit::cuda {

// A lane adds up and stores kTaskTokens tokens of one row at once, kTokenStep from one to the next.
inline constexpr int kTaskTokens = 4, kTokenStep = kWideSumTokens / kTaskTokens;

template <int kForm>
__device__ __forceinline__ constexpr int HelperThreads() {
  return 32 * WideHelpers(kWideForms[kForm]);
}
// Named barrier of the helpers.
template <int kForm>
__device__ __forceinline__ void MeetHelpers() {
  NamedBarrier(1, HelperThreads<kForm>());
}

// Results of type `type`, `stride` elements from one to the next.
template <int kCount>
__device__ __forceinline__ void StoreResults(void* y, DType type, int64_t at, int64_t stride,
                                             const float (&values)[kCount], int count) {
  const auto store = [&](auto* to, const auto& rounded) {
#pragma unroll
    for (int i = 0; i < kCount; ++i, to += stride) {
      if (i < count) *to = rounded(values[i]);
    }
  };
  if (type == DType::kF32) {
    store(static_cast<float*>(y) + at, [](float v) { return v; });
  } else if (type == DType::kF16) {
    store(static_cast<__half*>(y) + at, [](float v) { return __float2half_rn(v); });
  } else {
    store(static_cast<__nv_bfloat16*>(y) + at, [](float v) { return __float2bfloat16_rn(v); });
  }
}

// What one lane adds up: the partial sums of one row and kTaskTokens tokens.
struct WideTask {
  uint4 sums[kSegments];

  // Until all words have come; then they are zero again in the exchange.
  __device__ __forceinline__ void Ask(const uint32_t* from, int segment_words) {
#pragma unroll
    for (int s = 0; s < kSegments; ++s) sums[s] = LoadExchange(from + s * segment_words);
  }
  __device__ __forceinline__ void Take(uint32_t* from, int segment_words) {
#pragma unroll
    for (int s = 0; s < kSegments; ++s) {
      const auto come = [&] {
        return sums[s].x != 0 && sums[s].y != 0 && sums[s].z != 0 && sums[s].w != 0;
      };
      while (!come()) {
        __nanosleep(64);  // the L2 cache has other work to do
        sums[s] = LoadExchange(from + s * segment_words);
      }
      StoreExchange(from + s * segment_words, make_uint4(0, 0, 0, 0));
    }
  }
  // out[i] = ((P0 + P1) + P2) + P3 of token i. A zero comes as -0.
  __device__ __forceinline__ void AddUp(float (&out)[kTaskTokens]) const {
#pragma unroll
    for (float& sum : out) sum = 0;
#pragma unroll
    for (int s = 0; s < kSegments; ++s) {
      const uint32_t words[kTaskTokens] = {sums[s].x, sums[s].y, sums[s].z, sums[s].w};
#pragma unroll
      for (int i = 0; i < kTaskTokens; ++i) out[i] = __fadd_rn(out[i], __uint_as_float(words[i]));
    }
  }
};

// Adds up and stores what comes for this block's rows; box: its quarter of segment 0.
template <int kForm>
__device__ __forceinline__ void FinishUnit(const WideArgs& a, const WideUnit& unit, int first_row,
                                           uint32_t* box, const float* extras) {
  constexpr WideForm kF = kWideForms[kForm];
  constexpr int kTasks = kWideOwnRows * kF.tokens / kTaskTokens;
  constexpr int kThreads = HelperThreads<kForm>();
  constexpr int kSegmentWords = kWideTeam * WideQuarterWords(kF);
  const int thread = threadIdx.x - 32 * (kWideProductWarps + kWideFetchWarps);
  const bool outliers = unit.part->w.outliers != nullptr;
  const int rows = unit.part->w.shape.rows - first_row, tokens = a.m - unit.group * kF.tokens;
  const int64_t y = unit.group * kF.tokens * a.y_stride + unit.part->column + first_row;
#pragma unroll 1
  for (int i = thread; i < kTasks; i += kThreads) {
    WideTask task;
    task.Ask(box + kTaskTokens * i, kSegmentWords);
    task.Take(box + kTaskTokens * i, kSegmentWords);
    const int row = i % kWideOwnRows;
    const int token =
        i / kWideOwnRows % kTokenStep + i / (kTokenStep * kWideOwnRows) * kWideSumTokens;
    float sums[kTaskTokens];
    task.AddUp(sums);
    if (outliers) {
#pragma unroll
      for (int j = 0; j < kTaskTokens; ++j) {
        sums[j] = __fadd_rn(sums[j], extras[(token + kTokenStep * j) * kWideExtrasPitch + row]);
      }
    }
    const int count = row < rows ? (tokens - token + kTokenStep - 1) / kTokenStep : 0;
    StoreResults(a.y, a.y_type, y + token * a.y_stride + row, kTokenStep * a.y_stride, sums, count);
  }
}

template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void RunHelpers(const WideArgs& a, uint8_t* shared) {
  constexpr WideForm kF = kWideForms[kForm];
  constexpr WideShared kL = WideLayout(kF, kZeroPoints);
  const WideTeam team(a);
  const int own_row = team.rank * kWideOwnRows;
  float* extras = reinterpret_cast<float*>(shared + kL.extras);
  float* next_extras = extras + kF.tokens * kWideExtrasPitch;
  OutlierRun<kForm> run;
  const auto find = [&](int u) {
    if (u >= team.units) return;
    const WideUnit unit(a, u, 0, 0);
    const int row = unit.row_tile * kWideRows + own_row;
    if (unit.part->w.outliers == nullptr) return;
    run.Find(unit.part->w, row, unit.part->row_blocks * quant::kBlockRows - row);
  };
  // Outliers are summed one unit ahead of what comes from the product warps.
  const auto sum = [&](int u, float* to) {
    if (u >= team.units) return;
    const WideUnit unit(a, u, 0, 0);
    if (unit.part->w.outliers == nullptr) return;
    run.Sum(
        reinterpret_cast<const float*>(unit.Staged() + WideFloatsAt(unit.part->w.shape, kF.tokens)),
        to);
  };
  int u = team.id - team.teams;
  find(team.id);
  WaitForPreviousKernels();
  if (a.outliers) {
    const int helper = threadIdx.x - 32 * (kWideProductWarps + kWideFetchWarps);
    MakeFloats<kF.tokens, kZeroPoints, WideHelpers(kF)>(a, gridDim.x, helper / 32);
    MeetMakers<HelperThreads<kForm>()>(a.exchange, gridDim.x, helper == 0);
    LeaveMeeting(a.exchange, helper == 0);
  }
#pragma unroll 1
  for (int turn = -1; u < team.units; u += team.teams, ++turn) {
    MeetHelpers<kForm>();
    // The box of the unit before is empty; those who will fill it again may know.
    const int writer = threadIdx.x - 32 * (kWideProductWarps + kWideFetchWarps);
    if (turn > 0 && writer < 2 * kWideTeam && u + (kWideBoxes - 1) * team.teams < team.units) {
      const int warp = 2 * team.rank + writer % 2;
      __threadfence();
      StoreFlag(
          team.Flags<kForm>(a, (turn - 1) % kWideBoxes) + writer / 2 * kWideProductWarps + warp,
          turn);
    }
    sum(u + team.teams, next_extras);
    find(u + 2 * team.teams);
    if (turn >= 0) {
      const WideUnit unit(a, u, 0, 0);
      FinishUnit<kForm>(a, unit, unit.row_tile * kWideRows + own_row,
                        team.Box<kForm>(a, turn % kWideBoxes) + team.rank * WideQuarterWords(kF),
                        extras);
    }
    float* done = extras;
    extras = next_extras;
    next_extras = done;
  }
}

}  // namespace fewbit::cuda
