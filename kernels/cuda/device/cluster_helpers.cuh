// The helper warps of the wide kernel: outliers while the products run, then the last sums.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/cluster_args.cuh"

namespace fewbit::cuda {

inline constexpr int kTaskRows = 4;  // that one lane sums and stores at once, for one token

// Named barrier of the helpers.
template <int kForm>
__device__ __forceinline__ void MeetClusteredHelpers() {
  constexpr int kThreads = 32 * ClusteredHelpers(kClusteredForms[kForm]);
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// Outliers are summed by teams of lanes: a team has all tokens of the group and a run of the
// block's rows, whose lists lie behind each other. A lane fetches one entry of every kLanes, finds
// its list (lanes know the starts of two lists each) and leaves it on the team's board for all
// lanes.
template <int kForm>
class OutlierTeam {
 public:
  static constexpr int kTokens = kClusteredForms[kForm].tokens;
  static constexpr int kLanes = ClusteredTeamLanes(kClusteredForms[kForm]),
                       kLaneTokens = kTokens / kLanes;
  static constexpr int kTeams = ClusteredTeams(kClusteredForms[kForm]);
  static constexpr int kMostRows = (kClusteredOwnRows + kTeams - 1) / kTeams;
  static constexpr int kMostLists = kMostRows * kSegments;
  static_assert(kMostLists < 2 * kLanes);
  static constexpr int kAhead = 8;  // entries whose activations are fetched together

  __device__ __forceinline__ explicit OutlierTeam(uint8_t* boards) {
    const int team = (threadIdx.x - 32 * (kClusteredProductWarps + kClusteredFetchWarps)) / kLanes;
    board_ = reinterpret_cast<uint2*>(boards + team * ClusteredBoardBytes(kClusteredForms[kForm]));
    lane_ = threadIdx.x % kLanes;
    first_row_ = kClusteredOwnRows * team / kTeams;
    rows_ = kClusteredOwnRows * (team + 1) / kTeams - first_row_;
  }

  // The lists of this team's rows, the first of which is row `row` of the matrix; `rows` are left
  // there. Reads only what is never written, so it may be called early.
  __device__ __forceinline__ void Find(const DeviceMatrix& w, int row, int rows) {
    lists_ = max(0, min(rows_, rows - first_row_)) * kSegments;
    bounds_[0] = bounds_[1] = 0;
    if (lists_ > 0) {
      const uint32_t* starts = w.outlier_start + static_cast<size_t>(row + first_row_) * kSegments;
      bounds_[0] = __ldg(starts + min(lane_, lists_));
      bounds_[1] = __ldg(starts + min(lane_ + kLanes, lists_));
    }
    entries_ = w.outliers;
    at_ = Bound(0);
    end_ = Bound(lists_);
    entry_ = Entry(at_);
    next_entry_ = Entry(at_ + kLanes);
  }

  // extras[row][token] = ((E0 + E1) + E2) + E3 for all tokens and the team's rows; x: the
  // activations as floats, [channel][token].
  __device__ __forceinline__ void Sum(const float* x, float* extras) {
    x += kLaneTokens * lane_;
    extras += first_row_ * kTokens + kLaneTokens * lane_;
    for (int r = 0; r < rows_; ++r) Store(extras + r * kTokens, Vector{});
    Vector chain = {}, sum = {};
#pragma unroll 1
    while (__any_sync(0xFFFFFFFFu, at_ < end_)) {
      const uint32_t after = Entry(at_ + 2 * kLanes);
      Post();
      __syncwarp();
#pragma unroll 1
      for (int i = 0; i < kLanes; i += kAhead) {
        if (!__any_sync(0xFFFFFFFFu, at_ + i < end_)) break;
        SumSome(board_ + i, x, extras, &chain, &sum);
      }
      __syncwarp();
      at_ += kLanes;
      entry_ = next_entry_;
      next_entry_ = after;
    }
  }

 private:
  // A note on the board: x = channel, row, and what begins or ends with the entry; y = the weight.
  static constexpr uint32_t kRowShift = 16, kBegin = 1u << 20, kEnd = 1u << 21, kRowEnd = 1u << 22;

  struct alignas(4 * kLaneTokens) Vector {
    float v[kLaneTokens];
  };

  static __device__ __forceinline__ void Store(float* to, const Vector& from) {
    *reinterpret_cast<Vector*>(to) = from;
  }
  // Volatile, so that all loads of a batch stay in front of the sums.
  static __device__ __forceinline__ Vector Load(const float* from) {
    Vector out;
    if constexpr (kLaneTokens == 4) {
      asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(out.v[0]), "=f"(out.v[1]), "=f"(out.v[2]), "=f"(out.v[3])
                   : "l"(from));
    } else if constexpr (kLaneTokens == 2) {
      asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];"
                   : "=f"(out.v[0]), "=f"(out.v[1])
                   : "l"(from));
    } else {
      asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(out.v[0]) : "l"(from));
    }
    return out;
  }
  __device__ __forceinline__ uint32_t Bound(int list) const {
    const uint32_t first = __shfl_sync(0xFFFFFFFFu, bounds_[0], list, kLanes);
    const uint32_t second = __shfl_sync(0xFFFFFFFFu, bounds_[1], list - kLanes, kLanes);
    return list < kLanes ? first : second;
  }
  // This lane's entry of those from `at` on; 0 behind the end.
  __device__ __forceinline__ uint32_t Entry(uint32_t at) const {
    return at + lane_ < end_ ? __ldg(entries_ + at + lane_) : 0;
  }

  // This lane's entry onto the board.
  __device__ __forceinline__ void Post() {
    const uint32_t own = at_ + lane_;
    const bool valid = own < end_;
    uint32_t note = entry_ & 0xFFFFu, from = Bound(0);
#pragma unroll
    for (int list = 0; list < kMostLists; ++list) {
      const uint32_t to = Bound(list + 1);
      if (valid && list < lists_ && own >= from && own < to) {
        note |= static_cast<uint32_t>(list / kSegments) << kRowShift;
        if (own == from) note |= kBegin;
        if (own + 1 == to) note |= kEnd;
      }
      const uint32_t row = static_cast<uint32_t>(list / kSegments);
      if (list % kSegments == kSegments - 1 && own + 1 == to && (note >> kRowShift & 0xFu) == row) {
        note |= kRowEnd;
      }
      from = to;
    }
    const float weight = __half2float(__ushort_as_half(static_cast<uint16_t>(entry_ >> 16)));
    board_[lane_] = make_uint2(note, __float_as_uint(weight));
  }

  __device__ __forceinline__ void SumSome(const volatile uint2* notes, const float* x,
                                          float* extras, Vector* chain, Vector* sum) const {
    Vector values[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) values[k] = Load(x + (notes[k].x & 0xFFFFu) * kTokens);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const uint32_t note = notes[k].x;
      const float weight = __uint_as_float(notes[k].y);
#pragma unroll
      for (int t = 0; t < kLaneTokens; ++t) {
        chain->v[t] = __fmaf_rn(weight, values[k].v[t], note & kBegin ? 0.0f : chain->v[t]);
        if (note & kEnd) sum->v[t] = __fadd_rn(sum->v[t], chain->v[t]);
      }
      if (note & kRowEnd) {
        Store(extras + (note >> kRowShift & 0xFu) * kTokens, *sum);
        *sum = {};
      }
    }
  }

  uint2* board_;
  int lane_, first_row_, rows_;
  int lists_ = 0;
  const uint32_t* entries_ = nullptr;
  uint32_t bounds_[2] = {};  // the starts of lists `lane` and `lane` + kLanes
  uint32_t at_ = 0, end_ = 0, entry_ = 0, next_entry_ = 0;
};

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
  constexpr int kFirstThread = 32 * (kClusteredProductWarps + kClusteredFetchWarps);
  const int units = a.row_tiles * a.groups, clusters = gridDim.x / kClusterBlocks;
  const int own_row = static_cast<int>(ClusterRank()) * kClusteredOwnRows;
  float* extras = reinterpret_cast<float*>(shared + kL.extras);
  PipeCursor box;
  OutlierTeam<kForm> team(shared + kL.boards);
  const auto find = [&](int u) {
    if (u >= units) return;
    const WideUnit unit(a, u, 0, 0);
    const int row = unit.row_tile * kWideRows + own_row;
    if (unit.part->w.outliers == nullptr) return;
    team.Find(unit.part->w, row, unit.part->row_blocks * quant::kBlockRows - row);
  };
  // Outliers are summed one unit ahead of what comes from the product warps.
  const auto sum = [&](int u, float* to) {
    if (u >= units) return;
    const WideUnit unit(a, u, 0, 0);
    if (unit.part->w.outliers == nullptr) return;
    team.Sum(
        reinterpret_cast<const float*>(unit.Staged() + WideFloatsAt(unit.part->w.shape, kF.tokens)),
        to);
  };
  int u = blockIdx.x / kClusterBlocks;
  float* next_extras = extras + kClusteredOwnRows * kF.tokens;
  find(u);
  WaitForPreviousKernels();
  ClusterWait();
  sum(u, extras);
  find(u + clusters);
#pragma unroll 1
  for (; u < units; u += clusters) {
    const WideUnit unit(a, u, 0, 0);
    if (threadIdx.x == kFirstThread) BarrierExpect(barriers.inbox.full + box.stage, kInboxBytes);
    MeetClusteredHelpers<kForm>();
    sum(u + clusters, next_extras);
    find(u + 2 * clusters);
    BarrierWaitCluster(barriers.inbox.full + box.stage, box.parity);
    FinishUnit<kForm>(
        a, unit, unit.row_tile * kWideRows + own_row,
        reinterpret_cast<const float*>(shared + kL.inbox) + box.stage * kSegments * InboxFloats(kF),
        extras);
    MeetClusteredHelpers<kForm>();
    // Nobody waits for the last ones, and a block that has ended must not be reached.
    if (u + kF.inboxes * clusters < units && threadIdx.x - kFirstThread < kClusterBlocks) {
      BarrierArriveCluster(ClusterAddress(barriers.inbox.empty + box.stage, threadIdx.x % 32));
    }
    box.Advance(kF.inboxes);
    float* done = extras;
    extras = next_extras;
    next_extras = done;
  }
}

}  // namespace fewbit::cuda
