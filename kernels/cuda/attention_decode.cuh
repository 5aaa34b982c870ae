// Decoding: one query token per sequence against its cached keys and values, in runs of keys.
//
//   partial[run] = sum over the run's keys of 2^(s - m) v, with m the run's maximum and s = q . k
//
// A unit of work is one run of one part of a kv head's group. Blocks of 4 warps share the units out
// evenly, neighbouring ones to the same block, which prepares its queries once for all runs of a
// head. Of every 128 keys a warp has 32, two KV blocks; its ring in shared memory runs ahead over
// the ends of units: keys and values of earlier steps are asked for before the kernel before this
// one has finished. Keys are the rows of the tensor-core products and the query heads of the group
// their columns (S^T = K Q^T, O^T = V^T P^T), so up to 8 query heads cost what one does. The
// token's own key and value are made here, put into the copied block and into the cache. With few
// tokens the block that ends a head's last run also adds up its runs, in their order.
//
// Included by one file per cache type. Bytes: every key and value of the run once; per run and head
// padded D + 2 floats out.
#pragma once

#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/combine_runs.cuh"
#include "kernels/cuda/device/decode_products.cuh"
#include "kernels/cuda/device/head_row.cuh"
#include "kernels/cuda/device/kv_ring.cuh"
#include "kernels/cuda/launch.h"

namespace fewbit::cuda {

// A unit: one run of the keys of one part of a kv head's group. It moves on without dividing.
struct DecodeUnit {
  DecodeItem item;
  int kv_head, part;
  int split, splits, split_length, first_key;  // of the token

  static __device__ __forceinline__ DecodeUnit At(const DecodeArgs& a, int index) {
    const int per_run = a.num_kv_heads * a.head_parts;
    DecodeUnit u;
    u.LoadToken(a, index / per_run);
    const int local = index - u.item.base * per_run, head_part = local / u.splits;
    u.split = local - head_part * u.splits;
    u.kv_head = head_part / a.head_parts;
    u.part = head_part - u.kv_head * a.head_parts;
    return u;
  }
  // To the next unit; past the last one nothing is loaded.
  __device__ __forceinline__ void Advance(const DecodeArgs& a) {
    if (++split == splits) NextPart(a);
  }
  // To the first run of the next part.
  __device__ __forceinline__ void NextPart(const DecodeArgs& a) {
    split = 0;
    if (++part < a.head_parts) return;
    part = 0;
    if (++kv_head < a.num_kv_heads) return;
    kv_head = 0;
    const int next = item.base + splits;
    if (next < a.counts->decode_items) LoadToken(a, next);
  }

  __device__ int key_begin() const { return first_key + split * split_length; }
  __device__ int key_end() const { return min(key_begin() + split_length, item.kv_len); }
  __device__ int first_head(const DecodeArgs& a) const {
    return kv_head * a.group + part * a.part_heads;
  }
  __device__ int heads(const DecodeArgs& a) const {
    return min(a.part_heads, a.group - part * a.part_heads);
  }

 private:
  __device__ __forceinline__ void LoadToken(const DecodeArgs& a, int entry) {
    item = a.items[entry];
    first_key = FirstKey(item.kv_len, a.window);
    split_length = SplitTokens(item.kv_len - first_key);
    splits = (item.kv_len - first_key + split_length - 1) / split_length;
  }
};

// The KV blocks of one warp, unit after unit, asked for in the order in which they are consumed.
class KvStream {
 public:
  __device__ KvStream(const DecodeArgs& a, KvRing* ring, int first_unit, int end_unit)
      : a_(a), ring_(ring), left_(end_unit - first_unit), next_(DecodeUnit::At(a, first_unit)) {
    LookAhead();
    for (int i = 0; i < a.stages; ++i) Issue();
  }

  // Asks for one more block; to be called once for every block consumed.
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
    ring_->Issue(from_ + static_cast<size_t>(id) * a_.block_bytes, a_.head_bytes);
    ++block_;
  }

 private:
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
      next_ids_ =
          a_.block_table[static_cast<size_t>(next_.item.sequence) * a_.sizes->block_table_stride +
                         block];
    }
    next_from_ = a_.layer.cache + next_.kv_head * a_.head_bytes;
  }

  const DecodeArgs& a_;
  KvRing* const ring_;
  int left_;         // units not yet begun
  DecodeUnit next_;  // the first of them
  int block_ = 0, count_ = 0, ids_ = 0;
  const uint8_t* from_ = nullptr;
  int next_count_ = 0, next_ids_ = 0;
  const uint8_t* next_from_ = nullptr;
};

// What a part needs of its token besides old keys and values: queries, and if the block comes to
// the run that ends with the token (`want_fresh`), its key and value. Rows are asked for a part
// ahead.
template <kv::KvType kType, int kDim>
class RowMaker {
 public:
  __device__ RowMaker(const DecodeArgs& a, uint8_t* shared)
      : a_(a), shared_(shared), width_(a.layer.type == DType::kF32 ? 4 : 2) {}

  // Each warp asks for the rows that it will prepare.
  __device__ __forceinline__ void Ask(const DecodeUnit& u, bool want_fresh) {
#if __CUDA_ARCH__ >= 900
    const int bytes = a_.head.dim * width_, rows = u.heads(a_) + (want_fresh ? 2 : 0);
    for (int r = threadIdx.x / 32; r < rows; r += kDecodeWarps) {
      const uint8_t* from = Source(u, r);
      for (int i = 16 * (threadIdx.x % 32); i < bytes; i += 16 * 32) {
        CopyAsync16(Raw(r) + i, from + i);
      }
    }
    if (u.item.token != token_) {
      token_ = u.item.token;
      const float* from = reinterpret_cast<const float*>(Turns(u));
      for (int i = threadIdx.x % 32; i < a_.head.rotary_dim; i += 32) {
        CopyAsync4(OwnTurns() + 4 * i, from + i);
      }
    }
    CopyAsyncCommit();
#endif
  }

  // Leaves queries and, if wanted, the token's key and value as the cache has them, in shared
  // memory.
  __device__ __forceinline__ void Make(const DecodeUnit& u, bool want_fresh) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = a_.head.dim;
    float* row = reinterpret_cast<float*>(shared_ + a_.shared.rows) + warp * kDim;
    const AttentionLayer& l = a_.layer;
    const auto part = [d](const float* x, int head) { return x == nullptr ? x : x + head * d; };
    uint8_t* fresh = shared_ + a_.shared.fresh;
#if __CUDA_ARCH__ >= 900
    const float2* turns = reinterpret_cast<const float2*>(OwnTurns());
    CopyAsyncWait<0>();
    __syncwarp();
#else
    const float2* turns = Turns(u);
#endif
    const int heads = u.heads(a_);
    for (int r = warp; r < heads + (want_fresh ? 2 : 0); r += kDecodeWarps) {
#if __CUDA_ARCH__ >= 900
      HeadSource from = {Raw(r), a_.layer.type};
#else
      HeadSource from = {Source(u, r), a_.layer.type};
#endif
      if (r < heads) {
        const int head = u.first_head(a_) + r;
        from.bias = part(l.q_bias, head);
        from.norm = l.q_norm;
        from.turns = turns;
        PrepareHead<kDim>(a_.head, from, row);
        uint32_t* to =
            reinterpret_cast<uint32_t*>(shared_ + a_.shared.queries) + r * (kDim + kQueryPad) / 2;
        for (int i = lane; i < kDim / 2; i += 32) {
          to[i] = PackPair<kType>(row[2 * i] * a_.scale, row[2 * i + 1] * a_.scale);
        }
        continue;
      }
      const bool key = r == heads;
      from.bias = part(key ? l.k_bias : l.v_bias, u.kv_head);
      from.norm = key ? l.k_norm : nullptr;
      from.turns = key ? turns : nullptr;
      PrepareHead<kDim>(a_.head, from, row);
      constexpr int kBytes = kDim * kv::KvTypeBytes(kType);
      const __half scale = EncodeRow<kType, kDim>(row, fresh + (key ? 0 : kBytes));
      if (lane == 0) reinterpret_cast<__half*>(fresh + 2 * kBytes)[key ? 0 : 1] = scale;
    }
  }

 private:
  // Row r: query heads, then the key, then the value.
  __device__ __forceinline__ const uint8_t* Source(const DecodeUnit& u, int r) const {
    const AttentionLayer& l = a_.layer;
    const int heads = u.heads(a_);
    const void* x = r < heads ? l.q : r == heads ? l.k : l.v;
    const int64_t stride = r < heads ? l.q_stride : r == heads ? l.k_stride : l.v_stride;
    const int head = r < heads ? u.first_head(a_) + r : u.kv_head;
    return static_cast<const uint8_t*>(x) + (u.item.token * stride + head * a_.head.dim) * width_;
  }
  __device__ const float2* Turns(const DecodeUnit& u) const {
    return a_.turns + static_cast<int64_t>(u.item.token) * (a_.head.rotary_dim / 2);
  }
  __device__ uint8_t* Raw(int r) const { return shared_ + a_.shared.raw + r * kDim * 4; }
  __device__ uint8_t* OwnTurns() const {
    return shared_ + a_.shared.turns + threadIdx.x / 32 * kDim * 4;
  }

  const DecodeArgs& a_;
  uint8_t* const shared_;
  const int width_;
  int token_ = -1;  // whose turns are in shared memory, or on the way
};

// Puts the newest key and value where they belong in the copied block and in the cache, and zeros
// over what the block holds of no sequence, which may be anything.
template <kv::KvType kType, int kDim>
__device__ __forceinline__ void CompleteNewestBlock(const DecodeArgs& a, const DecodeUnit& u,
                                                    const uint8_t* fresh, uint8_t* slot) {
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
    const int id =
        a.block_table[static_cast<size_t>(u.item.sequence) * a.sizes->block_table_stride +
                      position / kv::kBlockTokens];
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

template <kv::KvType kType, int kDim>
__device__ __forceinline__ void LoadQueries(const uint8_t* shared, const DecodeArgs& a,
                                            QueryFragments<kDim / 16>& q) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint8_t* row = shared + a.shared.queries + 2 * g * (kDim + kQueryPad);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    if constexpr (kType == kv::KvType::kI8) {
      const uint2 pair = *reinterpret_cast<const uint2*>(row + 2 * (16 * k + 4 * t));
      q[k][0] = pair.x, q[k][1] = pair.y;
    } else {
      q[k][0] = *reinterpret_cast<const uint32_t*>(row + 2 * (16 * k + 2 * t));
      q[k][1] = *reinterpret_cast<const uint32_t*>(row + 2 * (16 * k + 8 + 2 * t));
    }
  }
}

// Leaves the warp's maxima, sums and outputs for MergeWarps.
template <kv::KvType kType, int kDim>
__device__ __forceinline__ void StoreWarp(const DecodeArgs& a, RunningSoftmax<kDim / 16>& softmax,
                                          int heads, uint8_t* shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float2* sums = reinterpret_cast<float2*>(shared + a.shared.sums) + warp * kMostGroupHeads;
  float* out = reinterpret_cast<float*>(shared + a.shared.outputs) + warp * a.part_heads * kDim;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float sum = softmax.sum[c];
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, mask);
    const int head = 2 * (lane % 4) + c;
    if (head >= heads) continue;
    if (lane < 4) sums[head] = make_float2(softmax.top[c], sum);
#pragma unroll
    for (int m = 0; m < kDim / 16; ++m) {
      constexpr float kLower = kType == kv::KvType::kI8 ? 1 / kWeightRaise : 1.0f;
      out[head * kDim + OutputDim<kType>(m, false)] = softmax.out[m][c] * kLower;
      out[head * kDim + OutputDim<kType>(m, true)] = softmax.out[m][c + 2] * kLower;
    }
  }
}

// The run's result from those of the warps, added in their order.
template <int kDim>
__device__ __forceinline__ void MergeWarps(const DecodeArgs& a, const DecodeUnit& u,
                                           const uint8_t* shared) {
  const float2* sums = reinterpret_cast<const float2*>(shared + a.shared.sums);
  const float* out = reinterpret_cast<const float*>(shared + a.shared.outputs);
  const int heads = u.heads(a), first_head = u.first_head(a);
  for (int i = threadIdx.x; i < heads * kDim; i += 32 * kDecodeWarps) {
    const int head = i / kDim, d = i - head * kDim;
    float top = kNoMaximum;
#pragma unroll
    for (int warp = 0; warp < kDecodeWarps; ++warp) {
      top = fmaxf(top, sums[warp * kMostGroupHeads + head].x);
    }
    float value = 0, sum = 0;
#pragma unroll
    for (int warp = 0; warp < kDecodeWarps; ++warp) {
      const float2 s = sums[warp * kMostGroupHeads + head];
      const float factor = Exp2(s.x - top);
      value = __fmaf_rn(out[(warp * a.part_heads + head) * kDim + d], factor, value);
      sum = __fmaf_rn(s.y, factor, sum);
    }
    const size_t row = (static_cast<size_t>(u.item.sequence) * a.num_heads + first_head + head) *
                           a.runs.max_splits +
                       u.split;
    a.runs.partials[row * kDim + d] = value;
    if (d == 0) a.runs.sums[row] = make_float2(top, sum);
  }
}

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

// After MergeWarps: the block that ends the last run of a part adds up its heads.
__device__ __forceinline__ void CombineLast(const DecodeArgs& a, const DecodeUnit& u) {
  __shared__ bool last;
  __syncthreads();  // all of the block have written the run
  if (threadIdx.x == 0) {
    uint32_t* arrivals =
        a.arrivals +
        (static_cast<size_t>(u.item.sequence) * a.num_kv_heads + u.kv_head) * a.head_parts + u.part;
    last = u.splits == 1 || ArriveAndSee(arrivals) + 1 == static_cast<uint32_t>(u.splits);
    if (last) *arrivals = 0;
  }
  __syncthreads();
  if (!last) return;
  const int dim = a.head.dim, first_head = u.first_head(a), elements = u.heads(a) * dim;
  float* to = a.attended + (static_cast<size_t>(u.item.token) * a.num_heads + first_head) * dim;
  const int64_t head_of_all = static_cast<int64_t>(u.item.sequence) * a.num_heads + first_head;
  for (int i = 4 * static_cast<int>(threadIdx.x); i < elements; i += 4 * 32 * kDecodeWarps) {
    const int head = i / dim;
    *reinterpret_cast<float4*>(to + i) =
        CombineRuns(a.runs, head_of_all + head, u.splits, i - head * dim);
  }
}

// The warp's keys of one unit.
template <kv::KvType kType, int kDim>
__device__ __forceinline__ void AttendUnit(const DecodeArgs& a, const DecodeUnit& u,
                                           const QueryFragments<kDim / 16>& q, const uint8_t* fresh,
                                           KvRing* ring, KvStream* stream,
                                           RunningSoftmax<kDim / 16>* softmax) {
  using Math = typename MathOf<kType>::Type;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int kv_len = u.item.kv_len, key_end = u.key_end();
  const int first_seen = a.window == 0 ? 0 : max(0, kv_len - a.window);
  for (int key = u.key_begin() + kStripeKeys * warp; key < key_end;
       key += kStripeKeys * kDecodeWarps) {
    // Where the second block is missing the first stands for it, with weights of 0.
    const bool both = key + kv::kBlockTokens < key_end;
    uint8_t* slots[2];
    slots[0] = ring->Wait();
    slots[1] = both ? ring->Wait() : slots[0];
    const int newest = kv_len - 1 - key;  // the token's own key within the stripe
    if (newest < kStripeKeys) {
      CompleteNewestBlock<kType, kDim>(a, u, fresh,
                                       newest < kv::kBlockTokens ? slots[0] : slots[1]);
    }
    float s[2][4];
#pragma unroll
    for (int b = 0; b < 2; ++b) ScoreKeys<kType, kDim>(slots[b], q, s[b]);
    if (newest < kStripeKeys || key < first_seen) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at = key + kv::kBlockTokens * (i / 4) + lane / 4 + 8 * (i % 4 / 2);
        if (at >= kv_len || at < first_seen) s[i / 4][i % 4] = __int_as_float(0xFF800000);
      }
    }
    softmax->Weigh(s);
    if constexpr (kType == kv::KvType::kI8) {
#pragma unroll
      for (int b = 0; b < 2; ++b) ScaleWeights<kDim>(slots[b], s[b]);
    }
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const uint32_t b0 = TransposeMatrix(Math::Pack(s[b][0], s[b][1]));
      const uint32_t b1 = TransposeMatrix(Math::Pack(s[b][2], s[b][3]));
      AddValues<kType, kDim>(slots[b], b0, b1, softmax->out);
    }
    stream->Issue();
    if (both) stream->Issue();
  }
}

template <kv::KvType kType, int kDim>
__global__ __launch_bounds__(32 * kDecodeWarps, DecodeResidency(kType, kDim)) void DecodeKernel(
    const __grid_constant__ DecodeArgs a) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / 32;
  LetNextKernelStart();
  const int units = a.counts->decode_items * a.num_kv_heads * a.head_parts;
  const int blocks = min(units, static_cast<int>(gridDim.x)), block = blockIdx.x;
  if (block >= blocks) {
    // Idle blocks keep their place, one on each multiprocessor, until the kernels before have
    // ended: two of the next kernel's blocks would take it together. One of them is also what keeps
    // this kernel from ending before those it depends on.
    if (block < a.multiprocessors) WaitForPreviousKernels();
    return;
  }
  const int begin = static_cast<int>(static_cast<int64_t>(units) * block / blocks);
  const int end = static_cast<int>(static_cast<int64_t>(units) * (block + 1) / blocks);
  KvRing ring(shared + warp * a.stages * a.shared.slot_bytes,
              reinterpret_cast<uint64_t*>(shared + a.shared.barriers) + warp * a.stages, a.stages,
              a.shared.slot_bytes);
  KvStream stream(a, &ring, begin, end);
  // Columns without a query head stay zero.
  uint32_t* queries = reinterpret_cast<uint32_t*>(shared + a.shared.queries);
  for (int i = threadIdx.x; i < kMostGroupHeads * (kDim + kQueryPad) / 2; i += blockDim.x) {
    queries[i] = 0;
  }
  __syncthreads();
  WaitForPreviousKernels();
  QueryFragments<kDim / 16> q;
  RowMaker<kType, kDim> rows(a, shared);
  DecodeUnit u = DecodeUnit::At(a, begin);
  // The run that ends with the token may be one that this block comes to later.
  const auto ends_here = [&](const DecodeUnit& unit, int index) {
    return index + unit.splits - 1 - unit.split < end;
  };
  rows.Ask(u, ends_here(u, begin));
  bool new_part = true;
  for (int index = begin; index < end; ++index) {
    if (new_part) {
      rows.Make(u, ends_here(u, index));
      const int next_index = index + u.splits - u.split;
      if (next_index < end) {
        DecodeUnit next = u;
        next.NextPart(a);
        rows.Ask(next, ends_here(next, next_index));
      }
      __syncthreads();
      LoadQueries<kType, kDim>(shared, a, q);
    }
    RunningSoftmax<kDim / 16> softmax;
    AttendUnit<kType, kDim>(a, u, q, shared + a.shared.fresh, &ring, &stream, &softmax);
    __syncthreads();  // the run before is merged
    StoreWarp<kType, kDim>(a, softmax, u.heads(a), shared);
    __syncthreads();
    MergeWarps<kDim>(a, u, shared);
    if (a.attended != nullptr) CombineLast(a, u);
    new_part = u.split + 1 == u.splits;
    if (index + 1 < end) u.Advance(a);
  }
}

// Calls visit with the kernel for `dim`, which is one of kv::kDeviceDims.
template <kv::KvType kType, typename Visit>
cudaError_t VisitDecodeKernel(int dim, const Visit& visit) {
  switch (dim) {
    case 16:
      return visit(DecodeKernel<kType, 16>);
    case 32:
      return visit(DecodeKernel<kType, 32>);
    case 64:
      return visit(DecodeKernel<kType, 64>);
    case 80:
      return visit(DecodeKernel<kType, 80>);
    case 96:
      return visit(DecodeKernel<kType, 96>);
    case 128:
      return visit(DecodeKernel<kType, 128>);
    case 256:
      return visit(DecodeKernel<kType, 256>);
  }
  return cudaErrorInvalidValue;
}

template <kv::KvType kType>
cudaError_t PrepareDecodeOf(int dim, size_t shared_bytes) {
  return VisitDecodeKernel<kType>(dim,
                                  [&](auto kernel) { return ReserveShared(kernel, shared_bytes); });
}

template <kv::KvType kType>
cudaError_t LaunchDecodeOf(int dim, const DecodeArgs& args, int blocks, size_t shared_bytes,
                           cudaStream_t stream) {
  return VisitDecodeKernel<kType>(dim, [&](auto kernel) {
    return LaunchDependent(kernel, dim3(blocks), dim3(32 * kDecodeWarps), shared_bytes, stream,
                           args);
  });
}

}  // namespace fewbit::cuda
