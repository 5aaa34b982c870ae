// Decoding: one query token per sequence against its cached keys and values, in runs of keys.
//
//   partial[run] = sum over the run's keys of 2^(s - m) v, with m the run's maximum and s = q . k
//
// A unit of work is one run of one part of a kv head's group. Blocks of 4 warps share the units out
// evenly, neighbouring ones to the same block, which prepares its queries once for all runs of a
// head; where a block starts is worked out once per step (DecodeStart). Of every 128 keys a warp
// has 32, two KV blocks; its ring in shared memory runs ahead over the ends of units: keys and
// values of earlier steps are asked for before the kernel before this one has finished. The warps
// never wait for one another at the end of a unit: they leave their results and go on, and one of
// them adds up a head while the next unit is under way. Where a block has but one
// (DecodeForm::kRowsInOrder) it goes one step after the other instead.
//
// Keys are the rows of the tensor-core products and the query heads of the group their columns (S^T
// = K Q^T, O^T = V^T P^T), so up to 8 query heads (i8: 4) cost what one does. The token's own key
// and value are made here, put into the copied block and into the cache. With few tokens the warp
// that ends a head's last run also adds up its runs, in their order.
//
// Included by one file per cache type. Bytes: every key and value of the run once; per run and head
// padded D + 2 floats out.
#pragma once

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/combine_runs.cuh"
#include "kernels/cuda/device/decode_rows.cuh"
#include "kernels/cuda/device/kv_ring.cuh"
#include "kernels/cuda/launch.h"

namespace fewbit::cuda {

// The KV blocks of one warp, unit after unit, asked for in the order in which they are consumed.
class KvStream {
 public:
  __device__ KvStream(const DecodeArgs& a, KvRing* ring, const DecodeStart& start)
      : a_(a),
        ring_(ring),
        stride_(start.block_table_stride),
        left_(start.end - start.begin),
        next_(DecodeUnit::First(start)) {
    LookAhead();
    for (int i = 0; i < a.stages; ++i) Issue();
  }

  // One more block has been consumed: asks for the next.
  __device__ __forceinline__ void Release() { Issue(); }

 private:
  __device__ __forceinline__ void Issue() {
    while (block_ == count_) {
      if (left_ == 0) {
        ring_->IssueNothing();
        return;
      }
      block_ = 0, count_ = next_count_, ids_ = next_ids_, from_ = next_from_;
      --left_;
      next_.Advance(a_);
      LookAhead();
    }
    const int id = __shfl_sync(0xFFFFFFFFu, ids_, block_);
    ring_->Issue(from_ + static_cast<size_t>(id) * a_.block_bytes, a_.head_bytes, id);
    ++block_;
  }

  // Loads what the next unit needs long before it is its turn. A lane has the number of one block.
  __device__ __forceinline__ void LookAhead() {
    if (left_ == 0) return;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr int kPerStripe = kStripeKeys / kv::kBlockTokens;
    const int block = next_.key_begin() / kv::kBlockTokens +
                      (lane / kPerStripe * kDecodeWarps + warp) * kPerStripe + lane % kPerStripe;
    const bool mine = block * kv::kBlockTokens < next_.key_end();
    next_count_ = __popc(__ballot_sync(0xFFFFFFFFu, mine));
    if (mine) {
      next_ids_ = a_.block_table[static_cast<size_t>(next_.item.sequence) * stride_ + block];
    }
    next_from_ = a_.layer.cache + next_.kv_head * a_.head_bytes;
  }

  const DecodeArgs& a_;
  KvRing* const ring_;
  const int stride_;
  int left_;         // units not yet begun
  DecodeUnit next_;  // the first of them
  int block_ = 0, count_ = 0, ids_ = 0;
  const uint8_t* from_ = nullptr;
  int next_count_ = 0, next_ids_ = 0;
  const uint8_t* next_from_ = nullptr;
};

// Puts the newest key and value where they belong in the copied block and in the cache, and zeros
// over what the block holds of no sequence, which may be anything.
template <kv::KvType kType, int kDim>
__device__ __forceinline__ void CompleteNewestBlock(const DecodeArgs& a, const DecodeUnit& u,
                                                    const uint8_t* fresh, uint8_t* slot, int id) {
  using View = BlockView<kType, kDim>;
  const int lane = threadIdx.x % 32, position = u.item.kv_len - 1;
  const int token = position % kv::kBlockTokens;
  PlaceRow<kType, kDim>(fresh, slot, token);
  PlaceRow<kType, kDim>(fresh + View::kRow, slot + View::kHalf, token);
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(fresh + 2 * View::kRow);
  uint16_t* slot_scales = reinterpret_cast<uint16_t*>(slot + 2 * View::kHalf);
  if constexpr (View::kBytes) {
    if (lane < 2) slot_scales[16 * lane + token] = scales[lane];
    if (lane > token && lane < 16) slot_scales[lane] = slot_scales[16 + lane] = 0;
  } else {
    const int rest = (kv::kBlockTokens - 1 - token) * View::kPieces;
    for (int i = lane; i < rest; i += 32) {
      const int at = kv::DeviceBlockShape::piece_offset(
          View::kPieces, token + 1 + i / View::kPieces, i % View::kPieces);
      *reinterpret_cast<uint4*>(slot + View::kHalf + at) = make_uint4(0, 0, 0, 0);
    }
  }
  FenceBeforeBulkCopies();
  if (u.part == 0) {
    uint8_t* cached =
        a.layer.cache + static_cast<size_t>(id) * a.block_bytes + u.kv_head * a.head_bytes;
    PlaceRow<kType, kDim>(fresh, cached, token);
    PlaceRow<kType, kDim>(fresh + View::kRow, cached + View::kHalf, token);
    if (View::kBytes && lane < 2) {
      reinterpret_cast<uint16_t*>(cached + 2 * View::kHalf)[16 * lane + token] = scales[lane];
    }
  }
  __syncwarp();
}

// The warps of a block hand each other the results of units, and queries. Whoever arrives goes on;
// nobody gets further ahead than one unit. (On sm_80 everybody waits for all.)
class WarpMeeting {
 public:
  // `barrier`: of the block. Before a block barrier.
  __device__ explicit WarpMeeting(uint64_t* barrier) : barrier_(barrier) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x > 0) return;
    BarrierInit(barrier, 32 * kDecodeWarps);
    BarrierInitFence();
#endif
  }
  // Once per turn.
  __device__ __forceinline__ void Arrive() {
#if __CUDA_ARCH__ >= 900
    BarrierArrive(barrier_);
#else
    __syncthreads();
#endif
  }
  // Until all warps have arrived `times` times.
  __device__ __forceinline__ void WaitFor(int times) {
#if __CUDA_ARCH__ >= 900
    for (; seen_ < times; ++seen_) BarrierWait(barrier_, seen_ & 1);
#endif
  }

 private:
  uint64_t* const barrier_;
  int seen_ = 0;
};

// The places of a block's warps for the results of a unit: two sets, used in turn.
struct WarpResults {
  float2* sums;  // [warps][heads of a part]
  float* out;    // [warps][heads of a part][padded D]

  static __device__ __forceinline__ WarpResults Of(const DecodeArgs& a, uint8_t* shared, int turn,
                                                   int dim) {
    const int rows = (turn & 1) * kDecodeWarps * a.part_heads;
    return {reinterpret_cast<float2*>(shared + a.shared.sums) + rows,
            reinterpret_cast<float*>(shared + a.shared.outputs) + rows * dim};
  }
};

// Counts one more arrival and returns how many there were. What this thread may read, and after a
// barrier its block, includes all that was written before the arrivals that it has counted.
__device__ __forceinline__ uint32_t ArriveAndSee(uint32_t* arrivals) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(arrivals)
               : "memory");
  return before;
}

// What is left to do for a unit when all warps have ended it.
struct EndedUnit {
  int head = 0;  // the first, counted through all sequences
  int row = 0;   // the same in the step's rows
  int heads = 0, split = 0, splits = 0;
};
__device__ __forceinline__ EndedUnit Ended(const DecodeArgs& a, const DecodeUnit& u) {
  const int first = u.first_head(a);
  return {u.item.sequence * a.num_heads + first, u.item.token * a.num_heads + first, u.heads(a),
          u.split, u.splits};
}

// By one warp after it has written a run of a head, the last or any other: whoever ends the last
// one adds up all.
__device__ __forceinline__ void CombineLast(const RunResults& runs, uint32_t* arrivals,
                                            int64_t head, int splits, int dim, float* to) {
  const int lane = threadIdx.x % 32;
  bool last = false;
  __syncwarp();  // all of the warp have written
  if (lane == 0) {
    last = splits == 1 || ArriveAndSee(arrivals + head) + 1 == static_cast<uint32_t>(splits);
    if (last) arrivals[head] = 0;
  }
  if (!__any_sync(0xFFFFFFFFu, last)) return;
  for (int d = 4 * lane; d < dim; d += 4 * 32) {
    *reinterpret_cast<float4*>(to + d) = CombineRuns(runs, head, splits, d);
  }
}

// The run's result from those of the warps, added in their order. A head is one warp's, in turn.
// kRows: whoever ends a head's last run adds up its runs.
template <int kDim, bool kRows>
__device__ __forceinline__ void MergeWarps(const DecodeArgs& a, const EndedUnit& u,
                                           const WarpResults& results, int turn) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int head = (warp - turn) & (kDecodeWarps - 1); head < u.heads; head += kDecodeWarps) {
    float2 s[kDecodeWarps];
    float top = kNoMaximum;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      s[w] = results.sums[w * a.part_heads + head];
      top = fmaxf(top, s[w].x);
    }
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      s[w].x = Exp2(s[w].x - top);
      sum = __fmaf_rn(s[w].y, s[w].x, sum);
    }
    const int64_t row = static_cast<int64_t>(u.head + head) * a.runs.max_splits + u.split;
#pragma unroll
    for (int d = 4 * lane; d < kDim; d += 4 * 32) {
      float4 value = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) {
        AddScaled(
            &value,
            *reinterpret_cast<const float4*>(results.out + (w * a.part_heads + head) * kDim + d),
            s[w].x);
      }
      *reinterpret_cast<float4*>(a.runs.partials + row * kDim + d) = value;
    }
    if (lane == 0) a.runs.sums[row] = make_float2(top, sum);
    if constexpr (kRows) {
      CombineLast(a.runs, a.arrivals, u.head + head, u.splits, a.head.dim,
                  a.attended + static_cast<int64_t>(u.row + head) * a.head.dim);
    }
  }
}

// The warp's keys of one unit.
template <kv::KvType kType, int kDim, typename Attention>
__device__ __forceinline__ void AttendUnit(const DecodeArgs& a, const DecodeUnit& u,
                                           const uint8_t* fresh, KvRing* ring, KvStream* stream,
                                           Attention* attention) {
  const int warp = threadIdx.x / 32;
  const int kv_len = u.item.kv_len, key_end = u.key_end();
  const int first_seen = a.window == 0 ? 0 : max(0, kv_len - a.window);
  attention->Start();
  for (int key = u.key_begin() + kStripeKeys * warp; key < key_end;
       key += kStripeKeys * kDecodeWarps) {
    // Where the second block is missing the first stands for it, with weights of 0.
    const bool both = key + kv::kBlockTokens < key_end;
    uint8_t* slots[2];
    int ids[2];
    slots[0] = ring->Wait(ids);
    slots[1] = both ? ring->Wait(ids + 1) : slots[0];
    const int newest = kv_len - 1 - key;  // the token's own key within the stripe
    if (newest < kStripeKeys) {
      const int b = newest < kv::kBlockTokens ? 0 : 1;
      CompleteNewestBlock<kType, kDim>(a, u, fresh, b == 0 ? slots[0] : slots[1],
                                       b == 0 ? ids[0] : ids[1]);
    }
    attention->AddStripe(slots, newest < kStripeKeys || key < first_seen, first_seen - key,
                         newest + 1, both, stream);
  }
}

// Whether a block that comes to `unit` in turn `turn` of `units` comes to the run that ends with
// the unit's token, there or later.
__device__ __forceinline__ bool ReachesEnd(const DecodeUnit& unit, int turn, int units) {
  return turn + unit.splits - 1 - unit.split < units;
}

// All units of a block, by its warps: with one turn before the first, which prepares queries, and
// one after the last.
template <kv::KvType kType, int kDim, typename Attention, bool kRows>
__device__ __forceinline__ void RunUnits(const DecodeArgs& a, const DecodeStart& start,
                                         KvRing* ring, KvStream* stream, WarpMeeting* meeting,
                                         uint8_t* shared) {
  const int warp = threadIdx.x / 32, units = start.end - start.begin;
  RowMaker<kType, kDim, Attention> rows(a, shared);
  const auto queries_of = [&](int part) {
    return shared + a.shared.queries + (part & 1) * a.shared.query_bytes;
  };
  const auto fresh_of = [&](int part) {
    return shared + a.shared.fresh + (part & 1) * a.shared.fresh_bytes;
  };
  DecodeUnit u = DecodeUnit::First(start);
  rows.Ask(u, ReachesEnd(u, 0, units));
  Attention attention;
  EndedUnit before;
  int part = -1, ready = 0;  // queries are ready after so many meetings
  bool new_part = false;
#pragma unroll 1
  for (int turn = -1; turn <= units; ++turn) {
    const bool attend = turn >= 0 && turn < units;
    const int next_turn = turn < 0 ? 0 : turn + u.splits - u.split;  // of the next part
    const bool prepare = turn < 0 || (new_part && attend && next_turn < units);
    if (attend) {
      if (new_part) {
        meeting->WaitFor(ready);
        attention.LoadQueries(queries_of(part), u.heads(a));
        if (prepare) {
          DecodeUnit next = u;
          next.NextPart(a);
          rows.Ask(next, ReachesEnd(next, next_turn, units));
        }
      }
      AttendUnit<kType, kDim>(a, u, fresh_of(part), ring, stream, &attention);
    }
    meeting->WaitFor(turn + 1);
    if (attend) {
      const WarpResults results = WarpResults::Of(a, shared, turn, kDim);
      attention.Store(u.heads(a), results.sums + warp * a.part_heads,
                      results.out + warp * a.part_heads * kDim);
    }
    if (turn > 0) {
      MergeWarps<kDim, kRows>(a, before, WarpResults::Of(a, shared, turn - 1, kDim), turn - 1);
    }
    if (prepare) {
      DecodeUnit next = u;
      if (turn >= 0) next.NextPart(a);
      rows.Make(next, ReachesEnd(next, next_turn, units), queries_of(part + 1), fresh_of(part + 1));
      ready = turn + 2;
    }
    meeting->Arrive();
    before = Ended(a, u);
    new_part = turn < 0 || u.split + 1 == u.splits;
    part += new_part;
    if (turn >= 0 && turn + 1 < units) u.Advance(a);
  }
}

// The same, one step after the other.
template <kv::KvType kType, int kDim, typename Attention>
__device__ __forceinline__ void RunInOrder(const DecodeArgs& a, const DecodeStart& start,
                                           KvRing* ring, KvStream* stream, uint8_t* shared) {
  const int warp = threadIdx.x / 32, units = start.end - start.begin;
  uint8_t *const queries = shared + a.shared.queries, *const fresh = shared + a.shared.fresh;
  RowMaker<kType, kDim, Attention> rows(a, shared);
  DecodeUnit u = DecodeUnit::First(start);
  rows.Ask(u, ReachesEnd(u, 0, units));
  bool new_part = true;
#pragma unroll 1
  for (int turn = 0; turn < units; ++turn) {
    Attention attention;
    if (new_part) {
      rows.Make(u, ReachesEnd(u, turn, units), queries, fresh);
      const int next_turn = turn + u.splits - u.split;
      if (next_turn < units) {
        DecodeUnit next = u;
        next.NextPart(a);
        rows.Ask(next, ReachesEnd(next, next_turn, units));
      }
      __syncthreads();
    }
    attention.LoadQueries(queries, u.heads(a));
    AttendUnit<kType, kDim>(a, u, fresh, ring, stream, &attention);
    const WarpResults results = WarpResults::Of(a, shared, turn, kDim);
    attention.Store(u.heads(a), results.sums + warp * a.part_heads,
                    results.out + warp * a.part_heads * kDim);
    __syncthreads();
    MergeWarps<kDim, true>(a, Ended(a, u), results, turn);
    new_part = u.split + 1 == u.splits;
    if (turn + 1 < units) u.Advance(a);
  }
}

template <kv::KvType kType, int kDim, int kColumns, DecodeForm kForm>
__global__ __launch_bounds__(
    32 * kDecodeWarps,
    DecodeResidency(kType, kDim,
                    kColumns)) void DecodeKernel(const __grid_constant__ DecodeArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / 32;
  LetNextKernelStart();
  const DecodeStart start = a.starts[blockIdx.x];
  if (start.begin == start.end) {
    // Idle blocks keep their place, one on each multiprocessor, until the kernels before have
    // ended: two of the next kernel's blocks would take it together. One of them is also what keeps
    // this kernel from ending before those it depends on.
    if (static_cast<int>(blockIdx.x) < a.multiprocessors) WaitForPreviousKernels();
    return;
  }
  uint64_t* barriers = reinterpret_cast<uint64_t*>(shared + a.shared.barriers);
  const int ring_at = warp * a.stages;
  KvRing ring(shared + ring_at * a.shared.slot_bytes,
              reinterpret_cast<int32_t*>(shared + a.shared.ids) + ring_at, barriers + ring_at,
              a.stages, a.shared.slot_bytes);
  KvStream stream(a, &ring, start);
  WarpMeeting meeting(barriers + kDecodeWarps * a.stages);
  // Columns without a query head stay zero.
  uint32_t* queries = reinterpret_cast<uint32_t*>(shared + a.shared.queries);
  for (int i = threadIdx.x; i < a.shared.query_bytes / 2; i += blockDim.x) queries[i] = 0;
  __syncthreads();
  WaitForPreviousKernels();
  using Attention = typename AttentionOf<kType, kDim, kColumns>::Type;
  if constexpr (kForm == DecodeForm::kRowsInOrder) {
    RunInOrder<kType, kDim, Attention>(a, start, &ring, &stream, shared);
  } else {
    constexpr bool kRows = kForm == DecodeForm::kRows;
    RunUnits<kType, kDim, Attention, kRows>(a, start, &ring, &stream, &meeting, shared);
  }
}

// Calls visit with the kernel for `dim`, which is one of kv::kDeviceDims.
template <kv::KvType kType, int kColumns, DecodeForm kForm, typename Visit>
cudaError_t VisitDecodeDim(int dim, const Visit& visit) {
  switch (dim) {
    case 16:
      return visit(DecodeKernel<kType, 16, kColumns, kForm>);
    case 32:
      return visit(DecodeKernel<kType, 32, kColumns, kForm>);
    case 64:
      return visit(DecodeKernel<kType, 64, kColumns, kForm>);
    case 80:
      return visit(DecodeKernel<kType, 80, kColumns, kForm>);
    case 96:
      return visit(DecodeKernel<kType, 96, kColumns, kForm>);
    case 128:
      return visit(DecodeKernel<kType, 128, kColumns, kForm>);
    case 256:
      return visit(DecodeKernel<kType, 256, kColumns, kForm>);
  }
  return cudaErrorInvalidValue;
}
// Of that form.
template <kv::KvType kType, int kColumns, typename Visit>
cudaError_t VisitDecodeForm(int dim, DecodeForm form, const Visit& visit) {
  switch (form) {
    case DecodeForm::kRuns:
      return VisitDecodeDim<kType, kColumns, DecodeForm::kRuns>(dim, visit);
    case DecodeForm::kRows:
      return VisitDecodeDim<kType, kColumns, DecodeForm::kRows>(dim, visit);
    case DecodeForm::kRowsInOrder:
      return VisitDecodeDim<kType, kColumns, DecodeForm::kRowsInOrder>(dim, visit);
  }
  return cudaErrorInvalidValue;
}
// And for parts of so many heads.
template <kv::KvType kType, typename Visit>
cudaError_t VisitDecodeKernel(int dim, int part_heads, DecodeForm form, const Visit& visit) {
  constexpr int kFew = DecodeColumns(kType, 1);
  return DecodeColumns(kType, part_heads) == kFew
             ? VisitDecodeForm<kType, kFew>(dim, form, visit)
             : VisitDecodeForm<kType, kMostGroupHeads>(dim, form, visit);
}

template <kv::KvType kType>
cudaError_t PrepareDecodeOf(int dim, int part_heads, size_t shared_bytes) {
  for (DecodeForm form : {DecodeForm::kRuns, DecodeForm::kRows, DecodeForm::kRowsInOrder}) {
    const cudaError_t error = VisitDecodeKernel<kType>(
        dim, part_heads, form, [&](auto kernel) { return ReserveShared(kernel, shared_bytes); });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <kv::KvType kType>
cudaError_t LaunchDecodeOf(int dim, DecodeForm form, const DecodeArgs& args, int blocks,
                           size_t shared_bytes, cudaStream_t stream) {
  return VisitDecodeKernel<kType>(dim, args.part_heads, form, [&](auto kernel) {
    return LaunchDependent(kernel, dim3(blocks), dim3(32 * kDecodeWarps), shared_bytes, stream,
                           args);
  });
}

}  // namespace fewbit::cuda
