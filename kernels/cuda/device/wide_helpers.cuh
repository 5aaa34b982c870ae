// The helper warps of the wide kernel: outliers while the products run, then the last sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/slab_floats.cuh"
#include "kernels/cuda/device/wide_outliers.cuh"

namespace fewbit::cuda {

// A lane adds up and stores kTaskTokens tokens of one row at once, kTokenStep from one to the next.
inline constexpr int kTaskTokens = 4, kTokenStep = kWideSumTokens / kTaskTokens;

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

  __device__ __forceinline__ void Ask(const uint32_t* from, int segment_words) {
#pragma unroll
    for (int s = 0; s < kSegments; ++s) sums[s] = LoadExchange(from + s * segment_words);
  }
  // Until all words have come; all are asked for again at once, because an answer takes long.
  __device__ __forceinline__ void Wait(const uint32_t* from, int segment_words) {
    while (!Come()) {
      __nanosleep(64);  // the L2 cache has other work to do
      Ask(from, segment_words);
    }
  }
  __device__ __forceinline__ bool Come() const {
    bool come = true;
#pragma unroll
    for (int s = 0; s < kSegments; ++s) {
      come = come && sums[s].x != 0 && sums[s].y != 0 && sums[s].z != 0 && sums[s].w != 0;
    }
    return come;
  }
  // What has come is zero again in the exchange.
  static __device__ __forceinline__ void Clear(uint32_t* from, int segment_words) {
#pragma unroll
    for (int s = 0; s < kSegments; ++s) {
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

// Adds up and stores what comes for this block's rows, one of 32 kWideWorkers threads; box: its
// quarter of segment 0.
template <int kForm>
__device__ __forceinline__ void FinishUnit(const WideArgs& a, const WideUnit& unit, uint32_t* box,
                                           const float* extras, int worker) {
  constexpr WideForm kF = kWideForms[kForm];
  constexpr int kTasks = kF.tokens / kTaskTokens;  // of warps
  constexpr int kSegmentWords = kWideTeam * WideQuarterWords(kF);
  constexpr int kTaskWords = 32 * kTaskTokens, kRounds = kTasks / kWideWorkers;
  constexpr int kRoundTokens = kWideWorkers / kTokenStep * kWideSumTokens;
  static_assert(kWideOwnRows == 32 && kTasks % kWideWorkers == 0);
  const int row = threadIdx.x % 32;
  const int first_row = unit.row_tile * kWideRows + blockIdx.x % kWideTeam * kWideOwnRows;
  const int token = worker % kTokenStep + worker / kTokenStep * kWideSumTokens;
  // Tokens of this lane's: token + kTokenStep i, if they are below this.
  int left = a.m - unit.group * kF.tokens - token;
  if (first_row + row >= unit.part->w.shape.rows) left = 0;
  int64_t y = (unit.group * kF.tokens + token) * a.y_stride + unit.part->column + first_row + row;
  const bool outliers = unit.part->w.outliers != nullptr;
  extras += token * kWideExtrasPitch + row;
  box += kTaskWords * worker + kTaskTokens * row;
  WideTask next;
  next.Ask(box, kSegmentWords);
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    next.Wait(box, kSegmentWords);
    const WideTask task = next;
    // Asked for when the ones before have come: before that they would be asked for in vain.
    if (round + 1 < kRounds) next.Ask(box + kTaskWords * kWideWorkers, kSegmentWords);
    WideTask::Clear(box, kSegmentWords);
    float sums[kTaskTokens];
    task.AddUp(sums);
    if (outliers) {
#pragma unroll
      for (int j = 0; j < kTaskTokens; ++j) {
        sums[j] = __fadd_rn(sums[j], extras[kTokenStep * j * kWideExtrasPitch]);
      }
    }
    StoreResults(a.y, a.y_type, y, kTokenStep * a.y_stride, sums,
                 (left + kTokenStep - 1) / kTokenStep);
    left -= kRoundTokens;
    y += kRoundTokens * a.y_stride;
    extras += kRoundTokens * kWideExtrasPitch;
    box += kTaskWords * kWideWorkers;
  }
}

// Unit after unit: the outliers of the next one, which need nobody, then what has come for this
// one.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void RunWorker(const WideArgs& a, OutlierSums<kForm>* outliers,
                                          uint8_t* shared, const WideBarriers& barriers,
                                          int worker) {
  constexpr WideForm kF = kWideForms[kForm];
  const WideTeam team(a);
  const bool first_lane = threadIdx.x % 32 == 0;
  float* extras = reinterpret_cast<float*>(shared + WideLayout(kF, kZeroPoints).extras);
  PipeCursor next, at, box;
  int ahead = team.id;
#pragma unroll 1
  for (int u = team.id; u < team.units; u += team.teams) {
#pragma unroll 1
    for (; a.outliers && ahead <= u + team.teams && ahead < team.units;
         ahead += team.teams, next.Advance(kWideSums)) {
      BarrierWait(barriers.sums.empty + next.stage, next.parity ^ 1);
      outliers->Sum(WideUnit(a, ahead, 0, 0), ahead + team.teams,
                    extras + next.stage * WideExtrasFloats(kF));
      __syncwarp();
      if (first_lane) BarrierArrive(barriers.sums.full + next.stage);
    }
    if (a.outliers) BarrierWait(barriers.sums.full + at.stage, at.parity);
    FinishUnit<kForm>(a, WideUnit(a, u, 0, 0),
                      team.Box<kForm>(a, box.stage) + team.rank * WideQuarterWords(kF),
                      extras + at.stage * WideExtrasFloats(kF), worker);
    __syncwarp();
    if (first_lane) {
      BarrierArrive(barriers.sums.empty + at.stage);
      BarrierArrive(barriers.emptied + box.stage);
    }
    at.Advance(kWideSums);
    box.Advance(kWideBoxes);
  }
}

// The warp that tells those who will fill a box again that it is empty. Nobody waits for its fence.
template <int kForm>
__device__ __forceinline__ void RunPublisher(const WideArgs& a, const WideBarriers& barriers) {
  const WideTeam team(a);
  const int lane = threadIdx.x % 32, last = team.Turns() - kWideBoxes;
  PipeCursor box;
#pragma unroll 1
  for (int turn = 0; turn < last; ++turn, box.Advance(kWideBoxes)) {
    BarrierWait(barriers.emptied + box.stage, box.parity);
    __threadfence();
    if (lane < 2 * kWideTeam) {
      const int warp = 2 * team.rank + lane % 2;
      StoreFlag(team.Flags<kForm>(a, box.stage) + lane / 2 * kWideProductWarps + warp, turn + 1);
    }
  }
}

template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void RunHelpers(const WideArgs& a, uint8_t* shared,
                                           const WideBarriers& barriers, int helper) {
  constexpr int kHelpers = WideHelpers(kWideForms[kForm]);
  OutlierSums<kForm> outliers(a, helper);
  if (a.outliers && helper < kWideWorkers) {
    outliers.Prefetch();
    outliers.Ask(blockIdx.x / kWideTeam);
  }
  WaitForPreviousKernels();
  if (a.outliers) {
    const bool first = helper == kWideWorkers && threadIdx.x % 32 == 0;
    MakeFloats<kWideForms[kForm].tokens, kZeroPoints, kHelpers>(a, gridDim.x, helper);
    MeetMakers<32 * kHelpers>(a.exchange, gridDim.x, first);
    LeaveMeeting(a.exchange, first);
  }
  if (helper < kWideWorkers) {
    RunWorker<kForm, kZeroPoints>(a, &outliers, shared, barriers, helper);
  } else if (helper == kWideWorkers) {
    RunPublisher<kForm>(a, barriers);
  }
}

}  // namespace fewbit::cuda
