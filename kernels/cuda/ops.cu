#include <algorithm>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/input_row.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ops_plain.h"

namespace fewbit::cuda {
namespace {

constexpr int kSegment = kNormSegment;  // of a row, 4 elements per lane of a warp
constexpr int kMaxNormWarps = 16;       // a multiple of 4; half of a multiprocessor's registers
constexpr int kMaxSegmentsPerWarp = 8;
static_assert(kMaxRowElements == kSegment * kMaxNormWarps * kMaxSegmentsPerWarp);
constexpr int kPlainNormWarps = 8;  // of a block that stages nothing
static_assert(kMaxRowElements == kSegment * kPlainNormWarps * 16);

// The row that hidden starts from: an earlier hidden row, plus a linear layer's output.
struct FromHidden {
  static constexpr bool kFirstOfStep = false;
  const float* hidden;
  const int32_t* rows;
  const float* delta;
  int cols;

  struct Row {
    const float* hidden;
    const float* delta;
    // x[k] = elements at(k) .. at(k) + 3, 0 beyond the row. What is added is asked for before the
    // first sum needs any of it.
    template <int kCount, typename At>
    __device__ __forceinline__ void Load(int cols, const At& at, float4 (&x)[kCount]) const {
      const auto load = [&](const float* from, float4(&to)[kCount]) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          to[k] = at(k) < cols ? Load4(from + at(k)) : make_float4(0, 0, 0, 0);
        }
      };
      load(hidden, x);
      if (delta == nullptr) return;
      float4 d[kCount];
      load(delta, d);
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[k] = Add4(x[k], d[k]);
    }
  };
  __device__ Row Of(int token) const {
    const int64_t row = rows == nullptr ? token : rows[token];
    return {hidden + row * cols, delta == nullptr ? nullptr : delta + int64_t{1} * token * cols};
  }
};

// Starts a step: launched without dependence on a kernel, so that what the step's preparation wrote
// is visible to every later kernel from its start on.
struct FromEmbedding {
  static constexpr bool kFirstOfStep = true;
  DeviceDense table;
  StepView step;

  struct Row {
    const uint8_t* data;
    WeightType type;
    float scale;
    template <int kCount, typename At>
    __device__ __forceinline__ void Load(int cols, const At& at, float4 (&x)[kCount]) const {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        x[k] = at(k) < cols ? LoadWeights4(data, type, scale, at(k)) : make_float4(0, 0, 0, 0);
      }
    }
  };
  __device__ Row Of(int token) const {
    int id = step.token_ids[token];
    if (id == kLastSampledId) id = step.last_ids[step.slots[step.sequence_of[token]]];
    if (id < 0 || id >= table.rows) id = 0;
    const size_t bytes = static_cast<size_t>(table.cols) * WeightBytes(table.type);
    return {static_cast<const uint8_t*>(table.data) + id * bytes, table.type,
            table.type == WeightType::kI8 ? table.scales[id] : 1.0f};
  }
};

struct NormCall {
  float* hidden_out;
  const float* weight;
  float eps;
  int cols;
};

// What a warp knows of a tile before there is a row.
struct NormTile {
  int part, tile;
  TileChannels channels;
  float4 weight[kStageRounds] = {};

  __device__ __forceinline__ NormTile(const LinearInput& out, const float* weights, int item)
      : part(PartOf(out, &item)), tile(item) {
    if (part == out.count) return;
    channels = TileChannels(out.parts[part], tile);
#pragma unroll
    for (int i = 0; i < kStageRounds; ++i) {
      if (channels.at[i] >= 0) weight[i] = Load4(weights + channels.at[i]);
    }
  }
};

// Every block of a token sums the whole row and stages a share of the tiles, a warp each.
template <int kPerWarp, typename Source>
__global__ void __launch_bounds__(32 * kMaxNormWarps, kPerWarp <= 2 ? 2 : 1)
    NormKernel(const Source source, const NormCall call, const __grid_constant__ LinearInput out) {
  extern __shared__ float4 row4[];
  __shared__ float partial[kMaxNormWarps * kMaxSegmentsPerWarp];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int segments = NormSegments(call.cols), token = blockIdx.y;
  const int blocks = gridDim.x, rank = blockIdx.x;
  LetNextKernelStart();
  int item = warp * blocks + rank;
  NormTile tile(out, call.weight, item);
  float4 x[kPerWarp];
  WaitForPreviousKernels();
  const auto at = [&](int k) { return (warp + k * warps) * kSegment + 4 * lane; };
  source.Of(token).Load(call.cols, at, x);
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    const int segment = warp + k * warps, i = segment * kSegment + 4 * lane;
    if (segment >= segments) break;
    if (i < call.cols) row4[i / 4] = x[k];
    const float square = SegmentSquare(x[k]);
    if (lane == 0) partial[segment] = square;
  }
  __syncthreads();
  const auto scale = [&] { return NormScale(partial, call.cols, call.eps); };
#pragma unroll 1
  while (tile.part < out.count) {
    float4 values[kStageRounds];
#pragma unroll
    for (int i = 0; i < kStageRounds; ++i) {
      values[i] = tile.channels.at[i] < 0 ? make_float4(0, 0, 0, 0)
                                          : Mul4(row4[tile.channels.at[i] / 4], tile.weight[i]);
    }
    StageValues(out.parts[tile.part], values, token, tile.tile, scale);
    item += warps * blocks;
    tile = NormTile(out, call.weight, item);
  }
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    const int segment = warp + k * warps, i = segment * kSegment + 4 * lane;
    if (segment % blocks != rank || i >= call.cols) continue;
    const size_t at = static_cast<size_t>(token) * call.cols + i;
    if (call.hidden_out != nullptr) *reinterpret_cast<float4*>(call.hidden_out + at) = x[k];
  }
  if (out.plain == nullptr) return;
  const float factor = scale();
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    const int segment = warp + k * warps, i = segment * kSegment + 4 * lane;
    if (segment % blocks != rank || i >= call.cols) continue;
    StorePlain4(out.plain, out.plain_type, static_cast<size_t>(token) * call.cols + i,
                Norm4(x[k], factor, Load4(call.weight + i)));
  }
}

// A block per token where nothing is staged: the same sums in the same order, and no row in shared
// memory, so that many are under way.
template <int kPerWarp, typename Source>
__global__ void __launch_bounds__(32 * kPlainNormWarps)
    PlainNormKernel(const Source source, const NormCall call, void* out, const DType type) {
  __shared__ float partial[kPlainNormWarps * kPerWarp];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, token = blockIdx.x;
  const auto at = [&](int k) { return (warp + k * kPlainNormWarps) * kSegment + 4 * lane; };
  LetNextKernelStart();
  float4 x[kPerWarp], weight[kPerWarp];
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    if (at(k) < call.cols) weight[k] = Load4(call.weight + at(k));
  }
  WaitForPreviousKernels();
  source.Of(token).Load(call.cols, at, x);
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    const float square = SegmentSquare(x[k]);
    if (lane == 0) partial[warp + k * kPlainNormWarps] = square;
  }
  const size_t first = static_cast<size_t>(token) * call.cols;
  if (call.hidden_out != nullptr) {
#pragma unroll
    for (int k = 0; k < kPerWarp; ++k) {
      if (at(k) >= call.cols) break;
      *reinterpret_cast<float4*>(call.hidden_out + first + at(k)) = x[k];
    }
  }
  __syncthreads();
  const float factor = NormScale(partial, call.cols, call.eps);
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    if (at(k) >= call.cols) break;
    StorePlain4(out, type, first + at(k), Norm4(x[k], factor, weight[k]));
  }
}

int TotalTiles(const LinearInput& out) {
  int tiles = 0;
  for (int p = 0; p < out.count; ++p) tiles += NumTiles(out.parts[p].shape);
  return tiles;
}

// As many as find work and have a multiprocessor each on a GPU of 132.
int BlocksPerToken(int tokens, int tiles) {
  constexpr int kMostBlocks = 8, kResident = 132;
  int blocks = kMostBlocks;
  while (blocks > 1 && (blocks * tokens > kResident || blocks > tiles)) blocks /= 2;
  return blocks;
}

template <typename Source, typename... Parameters, typename... Arguments>
cudaError_t LaunchFrom(void (*kernel)(Source, Parameters...), dim3 grid, int warps, size_t shared,
                       cudaStream_t stream, const Arguments&... arguments) {
  const dim3 block(32 * warps);
  if (!Source::kFirstOfStep) {
    return LaunchDependent(kernel, grid, block, shared, stream, arguments...);
  }
  kernel<<<grid, block, shared, stream>>>(arguments...);
  return cudaGetLastError();
}

template <int kPerWarp, typename Source>
cudaError_t LaunchNormWith(const Source& source, const NormArgs& args, int warps, int blocks,
                           const LinearInput& out, cudaStream_t stream) {
  const NormCall call = {args.hidden_out, args.weight, args.eps, args.cols};
  return LaunchFrom(NormKernel<kPerWarp, Source>, dim3(blocks, args.tokens), warps,
                    sizeof(float) * args.cols, stream, source, call, out);
}

template <typename Source>
cudaError_t LaunchPlainNorm(const Source& source, const NormArgs& args, const LinearInput& out,
                            cudaStream_t stream) {
  const NormCall call = {args.hidden_out, args.weight, args.eps, args.cols};
  const auto launch = [&](auto kernel) {
    return LaunchFrom(kernel, dim3(args.tokens), kPlainNormWarps, 0, stream, source, call,
                      out.plain, out.plain_type);
  };
  const int segments = NormSegments(args.cols);
  return segments <= 4 * kPlainNormWarps   ? launch(PlainNormKernel<4, Source>)
         : segments <= 8 * kPlainNormWarps ? launch(PlainNormKernel<8, Source>)
                                           : launch(PlainNormKernel<16, Source>);
}

template <typename Source>
cudaError_t LaunchNorm(const Source& source, const NormArgs& args, const LinearInput& out,
                       cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  if (args.cols <= 0 || args.cols % 4 != 0 || args.cols > kMaxRowElements) {
    return cudaErrorInvalidValue;
  }
  if (out.count == 0) return LaunchPlainNorm(source, args, out, stream);
  const int segments = NormSegments(args.cols);
  const int per_warp = (segments + kMaxNormWarps - 1) / kMaxNormWarps;
  const int needed = (segments + per_warp - 1) / per_warp;
  const int warps = (needed + 3) / 4 * 4;
  const int blocks = BlocksPerToken(args.tokens, TotalTiles(out));
  if (per_warp == 1) return LaunchNormWith<1>(source, args, warps, blocks, out, stream);
  if (per_warp == 2) return LaunchNormWith<2>(source, args, warps, blocks, out, stream);
  if (per_warp <= 4) return LaunchNormWith<4>(source, args, warps, blocks, out, stream);
  return LaunchNormWith<kMaxSegmentsPerWarp>(source, args, warps, blocks, out, stream);
}

constexpr int kSiluWarps = 4;  // of a block

// A warp per (token, tile); the plain form is shared out among the blocks of the token.
template <typename T>
__global__ void __launch_bounds__(32 * kSiluWarps)
    SiluKernel(const SiluArgs args, const __grid_constant__ LinearInput out) {
  LetNextKernelStart();
  const int token = blockIdx.y;
  int tile = blockIdx.x * kSiluWarps + static_cast<int>(threadIdx.x) / 32;
  const int part = PartOf(out, &tile);
  TileChannels channels;
  if (part < out.count) channels = TileChannels(out.parts[part], tile);
  WaitForPreviousKernels();
  const T* gate = static_cast<const T*>(args.gate) + token * args.stride;
  const T* up = static_cast<const T*>(args.up) + token * args.stride;
  if (part < out.count) {
    float4 x[kStageRounds], y[kStageRounds];
#pragma unroll
    for (int i = 0; i < kStageRounds; ++i) {
      x[i] = y[i] = make_float4(0, 0, 0, 0);
      if (channels.at[i] < 0) continue;
      x[i] = Load4(gate + channels.at[i]);
      y[i] = Load4(up + channels.at[i]);
    }
#pragma unroll
    for (int i = 0; i < kStageRounds; ++i) x[i] = SiluMul4(x[i], y[i]);
    StageValues(out.parts[part], x, token, tile);
  }
  if (out.plain == nullptr) return;
  for (int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x); i < args.cols;
       i += 4 * gridDim.x * blockDim.x) {
    StorePlain4(out.plain, out.plain_type, static_cast<size_t>(token) * args.cols + i,
                SiluMul4(Load4(gate + i), Load4(up + i)));
  }
}

template <int kPerWarp, typename Source>
cudaError_t PrepareNorm() {
  const auto kernel = NormKernel<kPerWarp, Source>;
  const cudaError_t error = PreferShared(kernel);
  if (error != cudaSuccess || kPerWarp < kMaxSegmentsPerWarp) return error;
  // Rows for the other instances fit the default limit.
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kMaxRowElements * sizeof(float));
}

template <typename Source>
cudaError_t PrepareNorms() {
  for (const cudaError_t error :
       {PrepareNorm<1, Source>(), PrepareNorm<2, Source>(), PrepareNorm<4, Source>(),
        PrepareNorm<kMaxSegmentsPerWarp, Source>(), PreferShared(PlainNormKernel<4, Source>),
        PreferShared(PlainNormKernel<8, Source>), PreferShared(PlainNormKernel<16, Source>)}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t PrepareOps() {
  for (const cudaError_t error :
       {PrepareNorms<FromHidden>(), PrepareNorms<FromEmbedding>(), PreferShared(SiluKernel<float>),
        PreferShared(SiluKernel<__half>)}) {
    if (error != cudaSuccess) return error;
  }
  return PreparePlainOps();
}

cudaError_t LaunchAddNorm(const NormArgs& args, const LinearInput& out, cudaStream_t stream) {
  return LaunchNorm(FromHidden{args.hidden, args.rows, args.delta, args.cols}, args, out, stream);
}

cudaError_t LaunchEmbedNorm(const DeviceDense& table, const StepView& step, const NormArgs& args,
                            const LinearInput& out, cudaStream_t stream) {
  return LaunchNorm(FromEmbedding{table, step}, args, out, stream);
}

cudaError_t LaunchSiluMul(const SiluArgs& args, const LinearInput& out, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  if (out.count == 0) return LaunchPlainSiluMul(args, out, stream);
  const int staged = (TotalTiles(out) + kSiluWarps - 1) / kSiluWarps;
  constexpr int kPlainElements = 4 * 32 * kSiluWarps;
  const int plain = out.plain == nullptr ? 0 : (args.cols + kPlainElements - 1) / kPlainElements;
  const dim3 grid(std::max({staged, plain, 1}), args.tokens), block(32 * kSiluWarps);
  return args.type == DType::kF16
             ? LaunchDependent(SiluKernel<__half>, grid, block, 0, stream, args, out)
             : LaunchDependent(SiluKernel<float>, grid, block, 0, stream, args, out);
}

}  // namespace fewbit::cuda
