// The end of attention: the runs of a decoded row become one, and every row, decoded or prefilled,
// is left as the o layer reads it (staging.h).
//
// A block has one tile of one matrix' staged form and one token, a thread 4 channels of it, and one
// warp stages the tile. More blocks write the plain copy if there is one.
//
// Where nothing is staged, prefilled rows are in their places already: a block has a tile's worth
// of channels of one sequence's row, if that was decoded. More blocks clear the rows of padding.
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/combine_runs.cuh"
#include "kernels/cuda/device/fragment.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_launch.h"

namespace fewbit::cuda {
namespace {

constexpr int kThreads = 32 * kStageRounds;
constexpr int kTileChannels = 512;

struct CombineArgs {
  LinearInput out;
  const int32_t *sequence_of, *q_start, *kv_len;
  RunResults runs;
  const float* attended;  // prefilled rows, where any are staged
  const int32_t* wanted;  // tokens of the rows; null: all
  int head_dim, num_heads, window;
  int tokens, sequences;
};

// Runs of the row of a sequence that runs one token.
__device__ __forceinline__ int SplitsOf(const CombineArgs& a, int sequence) {
  const int kv_len = a.kv_len[sequence];
  return SplitCount(kv_len - FirstKey(kv_len, a.window));
}

__device__ __forceinline__ float4 DecodedRow(const CombineArgs& a, int sequence, int splits,
                                             int channel) {
  const int head = channel / a.head_dim;
  return CombineRuns(a.runs, sequence * a.num_heads + head, splits, channel - head * a.head_dim);
}

__global__ __launch_bounds__(kThreads) void PlaceKernel(const __grid_constant__ CombineArgs a) {
  LetNextKernelStart();
  const int sequence = blockIdx.y, cols = a.num_heads * a.head_dim;
  const int channel = kTileChannels * blockIdx.x + 4 * static_cast<int>(threadIdx.x);
  // The step's arrays are older than the kernel before this one.
  const int token = a.q_start[sequence];
  const bool padding = sequence == a.sequences;
  const bool decoded = !padding && a.q_start[sequence + 1] - token == 1;
  const int splits = decoded ? SplitsOf(a, sequence) : 0;
  // Also by those with nothing to do: the end of this kernel is that of those before it.
  WaitForPreviousKernels();
  if (channel >= cols || !(decoded || padding)) return;
  const auto store = [&](int row, const float4& value) {
    StorePlain4(a.out.plain, a.out.plain_type, static_cast<size_t>(row) * cols + channel, value);
  };
  if (decoded) {
    store(token, DecodedRow(a, sequence, splits, channel));
    return;
  }
  for (int row = token; row < a.tokens; ++row) store(row, make_float4(0, 0, 0, 0));
}

__global__ __launch_bounds__(kThreads) void CombineKernel(const __grid_constant__ CombineArgs a) {
  __shared__ float4 values[kStageRounds][32];
  LetNextKernelStart();
  const int row = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int tile = blockIdx.x;
  const int part = PartOf(a.out, &tile);
  const bool plain = part == a.out.count;
  const int cols = a.num_heads * a.head_dim;
  int channel = kTileChannels * tile + 4 * static_cast<int>(threadIdx.x);
  if (!plain) {
    const StageTarget& to = a.out.parts[part];
    channel = SourceChannel(to, TileStrips(to.shape, tile), warp);
  } else if (channel >= cols) {
    channel = -1;
  }
  // The step's arrays are older than the kernel before this one.
  const int token = a.wanted == nullptr ? row : a.wanted[row];
  const int sequence = a.sequence_of[token];
  bool decoded = false;
  int splits = 0;
  if (sequence >= 0 && a.q_start[sequence + 1] - a.q_start[sequence] == 1) {
    decoded = true;
    splits = SplitsOf(a, sequence);
  }
  WaitForPreviousKernels();
  float4 value = make_float4(0, 0, 0, 0);
  if (channel >= 0 && sequence >= 0) {
    value = decoded ? DecodedRow(a, sequence, splits, channel)
                    : *reinterpret_cast<const float4*>(a.attended +
                                                       static_cast<size_t>(token) * cols + channel);
  }
  if (plain) {
    if (channel < 0) return;
    const size_t at = static_cast<size_t>(row) * cols + channel;
    StorePlain4(a.out.plain, a.out.plain_type, at, value);
    return;
  }
  values[warp][lane] = value;
  __syncthreads();
  if (warp > 0) return;
  float4 x[kStageRounds];
#pragma unroll
  for (int i = 0; i < kStageRounds; ++i) x[i] = values[i][lane];
  StageValues(a.out.parts[part], x, row, tile);
}

}  // namespace

cudaError_t PrepareCombine() {
  const cudaError_t error = PreferShared(CombineKernel);
  return error != cudaSuccess ? error : PreferShared(PlaceKernel);
}

cudaError_t LaunchCombine(const AttentionPlan& plan, const StepView& step, uint8_t* base,
                          const LinearInput& out, const WantedRows& wanted, cudaStream_t stream) {
  const AttentionDesc& d = plan.desc;
  CombineArgs a = {};
  a.out = out;
  a.sequence_of = step.sequence_of;
  a.q_start = step.q_start;
  a.kv_len = step.kv_len;
  a.runs = RunResultsOf(plan, base);
  a.attended = reinterpret_cast<const float*>(base + plan.attended);
  a.tokens = step.tokens;
  a.sequences = step.sequences;
  a.head_dim = d.head_dim;
  a.num_heads = d.num_heads;
  a.window = d.window;
  const int cols = d.num_heads * d.head_dim;
  int blocks = out.plain == nullptr ? 0 : (cols + kTileChannels - 1) / kTileChannels;
  if (out.count == 0 && wanted.tokens == nullptr) {
    return LaunchDependent(PlaceKernel, dim3(blocks, step.sequences + 1), dim3(kThreads), 0, stream,
                           a);
  }
  for (int p = 0; p < out.count; ++p) blocks += NumTiles(out.parts[p].shape);
  a.wanted = wanted.tokens;
  const int rows = wanted.tokens == nullptr ? step.tokens : wanted.count;
  return LaunchDependent(CombineKernel, dim3(blocks, rows), dim3(kThreads), 0, stream, a);
}

}  // namespace fewbit::cuda
