// What every layer of a step shares: the lists of work for the attention kernels, made on the
// device because lengths are known only there, where each decode block starts, and the turns of
// rope at the step's positions.
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/async_copy.cuh"

namespace fewbit::cuda {
namespace {

constexpr int kThreads = 256;

struct StepArgs {
  const StepSizes* sizes;
  const int32_t *positions, *q_start, *kv_len;
  const double* frequencies;
  WorkCounts* counts;
  DecodeItem* decode_items;
  DecodeStart* decode_starts;
  PrefillItem* prefill_items;
  float2* turns;
  int tokens, pairs, window;
  int decode_blocks, num_kv_heads, head_parts;
};

// Sum over the threads before this one; *total is that of all.
__device__ int ExclusiveSum(int value, int* warp_sums, int* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xFFFFFFFFu, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += warp_sums[w];
    all += warp_sums[w];
  }
  __syncthreads();
  *total = all;
  return before + sum - value;
}

// By one block: sequences in their order, each with its runs or tiles in ascending order. Returns
// the number of decode items.
__device__ int MakeLists(const StepArgs& a) {
  __shared__ int warp_sums[kThreads / 32];
  int decode_base = 0, prefill_base = 0;
  const int sequences = a.sizes->sequences;
  for (int base = 0; base < sequences; base += kThreads) {
    const int s = base + threadIdx.x;
    const int token = s < sequences ? a.q_start[s] : 0;
    const int rows = s < sequences ? a.q_start[s + 1] - token : 0;
    const int kv_len = s < sequences ? a.kv_len[s] : 0;
    const int first = FirstKey(kv_len, a.window), keys = kv_len - first;
    const int splits = rows == 1 ? SplitCount(keys) : 0;
    const int tiles = rows > 1 ? (rows + kQueryTile - 1) / kQueryTile : 0;
    int total_splits, total_tiles;
    const int split_at = decode_base + ExclusiveSum(splits, warp_sums, &total_splits);
    const int tile_at = prefill_base + ExclusiveSum(tiles, warp_sums, &total_tiles);
    for (int i = 0; i < splits; ++i) {
      a.decode_items[split_at + i] = {s, token, kv_len, split_at};
    }
    for (int i = 0; i < tiles; ++i) {
      const int row = i * kQueryTile;
      a.prefill_items[tile_at + i] = {s, token + row, min(kQueryTile, rows - row),
                                      kv_len - rows + row};
    }
    decode_base += total_splits;
    prefill_base += total_tiles;
  }
  if (threadIdx.x == 0) *a.counts = {decode_base, prefill_base};
  return decode_base;
}

// By the block that made the lists: every decode block gets an equal stretch of the units.
__device__ void MakeStarts(const StepArgs& a, int decode_items) {
  const int per_run = a.num_kv_heads * a.head_parts, units = decode_items * per_run;
  const int blocks = min(units, a.decode_blocks);
  for (int b = threadIdx.x; b < a.decode_blocks; b += kThreads) {
    DecodeStart s;
    if (b < blocks) {
      const int each = units / blocks, longer = units - each * blocks;  // blocks with one more
      s.begin = b * each + min(b, longer);
      s.end = s.begin + each + (b < longer);
      s.item = a.decode_items[s.begin / per_run];
      s.first_key = FirstKey(s.item.kv_len, a.window);
      s.split_length = SplitTokens(s.item.kv_len - s.first_key);
      s.splits = SplitCount(s.item.kv_len - s.first_key);
      const int local = s.begin - s.item.base * per_run, head_part = local / s.splits;
      s.split = local - head_part * s.splits;
      s.kv_head = head_part / a.head_parts;
      s.part = head_part - s.kv_head * a.head_parts;
      s.block_table_stride = a.sizes->block_table_stride;
    }
    a.decode_starts[b] = s;
  }
}

// Angles in double: a position times a frequency may be far beyond what a float resolves.
__device__ void FillTurns(const StepArgs& a, int first, int stride) {
  for (int i = first; i < a.tokens * a.pairs; i += stride) {
    const int token = i / a.pairs, pair = i - token * a.pairs;
    constexpr double kPerHalfTurn = 0.318309886183790671538;  // 1 / pi
    double sine, cosine;
    sincospi(a.positions[token] * (a.frequencies[pair] * kPerHalfTurn), &sine, &cosine);
    a.turns[i] = make_float2(static_cast<float>(cosine), static_cast<float>(sine));
  }
}

__global__ __launch_bounds__(kThreads) void StepKernel(const __grid_constant__ StepArgs a) {
  if (blockIdx.x == 0) {
    const int items = MakeLists(a);
    __syncthreads();
    MakeStarts(a, items);
  } else {
    FillTurns(a, (blockIdx.x - 1) * kThreads + threadIdx.x, (gridDim.x - 1) * kThreads);
  }
}

}  // namespace

cudaError_t LaunchAttentionStep(const AttentionPlan& plan, const StepView& step,
                                const double* frequencies, void* workspace, cudaStream_t stream) {
  uint8_t* base = static_cast<uint8_t*>(workspace);
  StepArgs a = {};
  a.sizes = step.sizes;
  a.positions = step.positions;
  a.q_start = step.q_start;
  a.kv_len = step.kv_len;
  a.frequencies = frequencies;
  a.counts = reinterpret_cast<WorkCounts*>(base + plan.counts);
  a.decode_items = reinterpret_cast<DecodeItem*>(base + plan.decode_items);
  a.decode_starts = reinterpret_cast<DecodeStart*>(base + plan.decode_starts);
  a.decode_blocks = DecodeGrid(plan, step.sequences);
  a.num_kv_heads = plan.desc.num_kv_heads;
  a.head_parts = plan.head_parts;
  a.prefill_items = reinterpret_cast<PrefillItem*>(base + plan.prefill_items);
  a.turns = reinterpret_cast<float2*>(base + plan.turns);
  a.tokens = step.tokens;
  a.pairs = plan.desc.rotary_dim / 2;
  a.window = plan.desc.window;
  constexpr int kMostBlocks = 512;
  const int blocks = min(kMostBlocks, (a.tokens * a.pairs + kThreads - 1) / kThreads);
  StepKernel<<<1 + blocks, kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace fewbit::cuda
