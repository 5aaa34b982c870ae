// The end of attention: the runs of a decoded row become one, and every row, decoded or prefilled,
// is left as the o layer reads it (staging.h).
//
//   out = sum over runs 2^(m_i - m) partial_i / sum over runs 2^(m_i - m) sum_i,   m = max m_i
//
// A block has one tile of one matrix' staged form and one token, a thread 4 channels of it; more
// blocks write the plain copy if there is one. Runs are added in their order.
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/fragment.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/launch.h"

namespace fewbit::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTileChannels = 512;
constexpr int kAtOnce = 8;
constexpr float kNoRun = -1e30f;  // the maximum of a run that is not there

struct CombineArgs {
  LinearInput out;
  const int32_t *sequence_of, *q_start, *kv_len;
  const float* partials;
  const float2* partial_sums;
  const float* attended;
  int head_dim, padded_dim, num_heads, max_splits, window, tiles;
};

__device__ __forceinline__ void AddScaled(float4* sum, const float4& x, float factor) {
  sum->x = __fmaf_rn(x.x, factor, sum->x);
  sum->y = __fmaf_rn(x.y, factor, sum->y);
  sum->z = __fmaf_rn(x.z, factor, sum->z);
  sum->w = __fmaf_rn(x.w, factor, sum->w);
}

// 4 channels of a decoded row. Runs are loaded 8 at a time, all before the first is used.
__device__ float4 CombineRuns(const CombineArgs& a, int sequence, int splits, int channel) {
  const int head = channel / a.head_dim, d = channel - head * a.head_dim;
  const size_t row = (static_cast<size_t>(sequence) * a.num_heads + head) * a.max_splits;
  const float2* sums = a.partial_sums + row;
  const float* partials = a.partials + row * a.padded_dim + d;
  float2 s[kAtOnce];
  float4 x[kAtOnce];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      s[i] = make_float2(kNoRun, 0);
      x[i] = make_float4(0, 0, 0, 0);
      if (first + i >= splits) continue;
      s[i] = sums[first + i];
      x[i] = *reinterpret_cast<const float4*>(partials + (first + i) * a.padded_dim);
    }
  };
  load(0);
  float top = s[0].x;
#pragma unroll
  for (int i = 1; i < kAtOnce; ++i) top = fmaxf(top, s[i].x);
#pragma unroll 8
  for (int i = kAtOnce; i < splits; ++i) top = fmaxf(top, sums[i].x);
  float4 value = make_float4(0, 0, 0, 0);
  float sum = 0;
  for (int first = 0; first < splits; first += kAtOnce) {
    if (first > 0) load(first);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float factor = exp2f(s[i].x - top);
      AddScaled(&value, x[i], factor);
      sum = __fmaf_rn(s[i].y, factor, sum);
    }
  }
  const float scale = __fdiv_rn(1.0f, sum);
  return make_float4(value.x * scale, value.y * scale, value.z * scale, value.w * scale);
}

// The source channel of this thread's 4 channels of a tile, or -1.
__device__ __forceinline__ int SourceChannel(const StageTarget& to, int tile) {
  const bool two = tile < to.shape.tiles(2);
  const int bits = two ? 2 : 4, of_width = two ? tile : tile - to.shape.tiles(2);
  const int strips = to.shape.tile_chunks(bits, of_width) * quant::ChunkStrips(bits);
  const int strip = threadIdx.x / 4;
  if (strip >= strips) return -1;
  const uint16_t source = to.strip_order[4 * FirstQuad(to.shape, tile) + strip];
  return source == quant::kNoStrip
             ? -1
             : source * quant::kStripChannels + 4 * static_cast<int>(threadIdx.x % 4);
}

__global__ __launch_bounds__(kThreads) void CombineKernel(const __grid_constant__ CombineArgs a) {
  __shared__ StageBoard board;
  LetNextKernelStart();
  const int token = blockIdx.y;
  int tile = blockIdx.x, part = 0;
  for (; part < a.out.count; ++part) {
    const int tiles = NumTiles(a.out.parts[part].shape);
    if (tile < tiles) break;
    tile -= tiles;
  }
  const bool plain = part == a.out.count;
  const int cols = a.num_heads * a.head_dim;
  int channel = kTileChannels * tile + 4 * static_cast<int>(threadIdx.x);
  if (!plain) {
    channel = SourceChannel(a.out.parts[part], tile);
  } else if (channel >= cols) {
    channel = -1;
  }
  // The step's arrays are older than the kernel before this one.
  const int sequence = a.sequence_of[token];
  bool decoded = false;
  int splits = 0;
  if (sequence >= 0 && a.q_start[sequence + 1] - a.q_start[sequence] == 1) {
    decoded = true;
    const int kv_len = a.kv_len[sequence];
    splits = SplitCount(kv_len - FirstKey(kv_len, a.window));
  }
  WaitForPreviousKernels();
  float4 value = make_float4(0, 0, 0, 0);
  if (channel >= 0 && sequence >= 0) {
    value = decoded ? CombineRuns(a, sequence, splits, channel)
                    : *reinterpret_cast<const float4*>(a.attended +
                                                       static_cast<size_t>(token) * cols + channel);
  }
  if (plain) {
    if (channel < 0) return;
    const size_t at = static_cast<size_t>(token) * cols + channel;
    StorePlain4(a.out.plain, a.out.plain_type, at, value);
    return;
  }
  // StageTile asks every thread for the channels that it has.
  StageTile(
      a.out.parts[part], [&](int) { return value; }, token, tile, FourWarps{&board});
}

}  // namespace

cudaError_t PrepareCombine() { return ReserveShared(CombineKernel, 0); }

cudaError_t LaunchCombine(const AttentionPlan& plan, const StepView& step, const uint8_t* base,
                          const LinearInput& out, cudaStream_t stream) {
  const AttentionDesc& d = plan.desc;
  CombineArgs a = {};
  a.out = out;
  a.sequence_of = step.sequence_of;
  a.q_start = step.q_start;
  a.kv_len = step.kv_len;
  a.partials = reinterpret_cast<const float*>(base + plan.partials);
  a.partial_sums = reinterpret_cast<const float2*>(base + plan.partial_sums);
  a.attended = reinterpret_cast<const float*>(base + plan.attended);
  a.head_dim = d.head_dim;
  a.padded_dim = plan.padded_dim;
  a.num_heads = d.num_heads;
  a.max_splits = plan.max_splits;
  a.window = d.window;
  const int cols = d.num_heads * d.head_dim;
  int blocks = out.plain == nullptr ? 0 : (cols + kTileChannels - 1) / kTileChannels;
  for (int p = 0; p < out.count; ++p) blocks += NumTiles(out.parts[p].shape);
  return LaunchDependent(CombineKernel, dim3(blocks, step.tokens), dim3(kThreads), 0, stream, a);
}

}  // namespace fewbit::cuda
