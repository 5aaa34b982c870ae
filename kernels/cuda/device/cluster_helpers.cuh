// The helper warps of the wide kernel: outliers while the products run, then the last sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/cluster_args.cuh"
#include "kernels/cuda/device/outlier_rows.cuh"
#include "kernels/cuda/device/slab_floats.cuh"

namespace fewbit::cuda {

inline constexpr int kTaskRows = 4;  // that one lane sums and stores at once, for one token

// Named barrier of the helpers.
template <int kForm>
__device__ __forceinline__ void MeetClusteredHelpers() {
  NamedBarrier(1, 32 * ClusteredHelpers(kClusteredForms[kForm]));
}

__device__ __forceinline__ void StoreRows(const ClusteredArgs& a, int64_t at,
                                          const float (&values)[kTaskRows], int count) {
  const bool whole = count >= kTaskRows && at % kTaskRows == 0;
  if (a.y_type == DType::kF32) {
    float* y = static_cast<float*>(a.y) + at;
    if (whole) {
      *reinterpret_cast<float4*>(y) = make_float4(values[0], values[1], values[2], values[3]);
      return;
    }
#pragma unroll
    for (int i = 0; i < kTaskRows; ++i) {
      if (i < count) y[i] = values[i];
    }
    return;
  }
  uint16_t bits[kTaskRows];
#pragma unroll
  for (int i = 0; i < kTaskRows; ++i) {
    bits[i] = a.y_type == DType::kF16 ? __half_as_ushort(__float2half_rn(values[i]))
                                      : __bfloat16_as_ushort(__float2bfloat16_rn(values[i]));
  }
  uint16_t* y = static_cast<uint16_t*>(a.y) + at;
  if (whole) {
    *reinterpret_cast<uint2*>(y) = make_uint2(bits[0] | static_cast<uint32_t>(bits[1]) << 16,
                                              bits[2] | static_cast<uint32_t>(bits[3]) << 16);
    return;
  }
#pragma unroll
  for (int i = 0; i < kTaskRows; ++i) {
    if (i < count) y[i] = bits[i];
  }
}

// Sums and stores what has come for this block's rows: a lane has kTaskRows rows of one token.
template <int kForm>
__device__ __forceinline__ void FinishUnit(const ClusteredArgs& a, const WideUnit& unit,
                                           int first_row, const float* inbox, const float* extras) {
  constexpr ClusteredForm kF = kClusteredForms[kForm];
  constexpr int kTasks = kClusteredOwnRows / kTaskRows * kF.tokens;
  const bool outliers = unit.part->w.outliers != nullptr;
#pragma unroll 1
  for (int i = threadIdx.x - 32 * (kClusteredProductWarps + kClusteredFetchWarps); i < kTasks;
       i += 32 * ClusteredHelpers(kF)) {
    const int token = i % kF.tokens, row = i / kF.tokens * kTaskRows;
    float sums[kTaskRows];
#pragma unroll
    for (int r = 0; r < kTaskRows; ++r) {
      const float* p = inbox + InboxIndex(row + r, token);
      sums[r] = p[0];
#pragma unroll
      for (int s = 1; s < kSegments; ++s) sums[r] = __fadd_rn(sums[r], p[s * InboxFloats(kF)]);
      if (outliers) sums[r] = __fadd_rn(sums[r], extras[(row + r) * kF.tokens + token]);
    }
    const int of_step = unit.group * kF.tokens + token, at = first_row + row;
    if (of_step < a.m) {
      StoreRows(a, of_step * a.y_stride + unit.part->column + at, sums,
                unit.part->w.shape.rows - at);
    }
  }
}

template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void RunHelpers(const ClusteredArgs& a, uint8_t* shared,
                                           const ClusteredBarriers& barriers) {
  constexpr ClusteredForm kF = kClusteredForms[kForm];
  constexpr ClusteredShared kL = ClusteredLayout(kF, kZeroPoints);
  constexpr int kInboxBytes = kSegments * kClusteredOwnRows * kF.tokens * 4;
  constexpr int kThreads = 32 * ClusteredHelpers(kF);
  const int thread = threadIdx.x - 32 * (kClusteredProductWarps + kClusteredFetchWarps);
  const int units = a.row_tiles * a.groups, clusters = gridDim.x / kClusterBlocks;
  const int own_row = static_cast<int>(ClusterRank()) * kClusteredOwnRows;
  const float* inbox = reinterpret_cast<const float*>(shared + kL.inbox);
  float* extras = reinterpret_cast<float*>(shared + kL.extras);
  OutlierRows<kF.tokens, kClusteredOwnRows, kThreads, ClusteredOutliersAhead(kF)> outliers(
      shared + kL.lists, thread);
  const auto lists_of = [&](const WideUnit& unit, int u) {
    const WidePart& part = *unit.part;
    const int first = unit.row_tile * kWideRows + own_row;
    const bool any = u < units && part.w.outliers != nullptr;
    const int left = any ? part.row_blocks * quant::kBlockRows - first : 0;
    return OutlierUnit{&part.w, first, max(0, min(kClusteredOwnRows, left))};
  };
  const int first = blockIdx.x / kClusterBlocks;
  int place = 0;
  WideUnit unit(a, first, 0, 0);
  outliers.AskStarts(lists_of(unit, first), place);
  CopyAsyncWait<0>();
  MeetClusteredHelpers<kForm>();
  outliers.AskEntries(lists_of(unit, first), place);
  WaitForPreviousKernels();
  if (a.outliers) MakeFloats<kF.tokens, kZeroPoints, kThreads / 32>(a, a.makers, thread / 32);
  CopyAsyncWait<0>();
  if (a.outliers) MeetMakers<kThreads>(a.exchange, a.makers, thread == 0);
  ClusterWait();
  PipeCursor box;
#pragma unroll 1
  for (int u = first; u < units; u += clusters) {
    outliers.Sum(
        lists_of(unit, u), place,
        reinterpret_cast<const float*>(unit.Staged() + WideFloatsAt(unit.part->w.shape, kF.tokens)),
        extras);
    if (u == first && a.outliers) LeaveMeeting(a.exchange, thread == 0);
    place ^= 1;
    const WideUnit next(a, min(u + clusters, units - 1), 0, 0);
    outliers.AskStarts(lists_of(next, u + clusters), place);
    if (thread == 0) BarrierExpect(barriers.inbox.full + box.stage, kInboxBytes);
    BarrierWaitCluster(barriers.inbox.full + box.stage, box.parity);
    CopyAsyncWait<0>();
    MeetClusteredHelpers<kForm>();
    outliers.AskEntries(lists_of(next, u + clusters), place);
    FinishUnit<kForm>(a, unit, unit.row_tile * kWideRows + own_row,
                      inbox + box.stage * kSegments * InboxFloats(kF), extras);
    CopyAsyncWait<0>();
    MeetClusteredHelpers<kForm>();
    // Nobody waits for the last ones, and a block that has ended must not be reached.
    if (u + kF.inboxes * clusters < units && thread < kClusterBlocks) {
      BarrierArriveCluster(ClusterAddress(barriers.inbox.empty + box.stage, thread));
    }
    box.Advance(kF.inboxes);
    unit = next;
  }
}

}  // namespace fewbit::cuda
