#include <algorithm>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/exp.cuh"
#include "kernels/cuda/device/load4.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace fewbit::cuda {
namespace {

// A row is cut into segments of 128 elements, 4 per lane of a warp. The sum of squares is one tree
// per segment and one over the segments: the same bits for any number of warps.
constexpr int kSegment = 128;
constexpr int kMaxNormWarps = 32;
constexpr int kMaxSegmentsPerWarp = 4;
static_assert(kMaxRowElements == kSegment * kMaxNormWarps * kMaxSegmentsPerWarp);

__device__ __forceinline__ float WarpSum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  return v;
}

// The row that hidden starts from: an earlier hidden row, plus a linear layer's output.
struct FromHidden {
  static constexpr bool kFirstOfStep = false;
  const float* hidden;
  const int32_t* rows;
  const void* delta;
  int64_t delta_stride;
  bool half_delta;
  int cols;

  struct Row {
    const float* hidden;
    const void* delta;
    bool half_delta;
    __device__ float4 At(int i) const {
      const float4 h = *reinterpret_cast<const float4*>(hidden + i);
      if (delta == nullptr) return h;
      const float4 d = half_delta ? Load4(static_cast<const __half*>(delta) + i)
                                  : Load4(static_cast<const float*>(delta) + i);
      return make_float4(h.x + d.x, h.y + d.y, h.z + d.z, h.w + d.w);
    }
  };
  __device__ Row Of(int token) const {
    const int64_t row = rows == nullptr ? token : rows[token];
    const void* d =
        delta == nullptr ? nullptr
        : half_delta
            ? static_cast<const void*>(static_cast<const __half*>(delta) + row * delta_stride)
            : static_cast<const float*>(delta) + row * delta_stride;
    return {hidden + row * cols, d, half_delta};
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
    __device__ float4 At(int i) const { return LoadWeights4(data, type, scale, i); }
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

template <int kPerWarp, typename Source>
__global__ void __launch_bounds__(32 * kMaxNormWarps)
    NormKernel(const Source source, const NormCall call, const __grid_constant__ LinearInput out) {
  extern __shared__ float4 row4[];
  __shared__ float partial[kMaxNormWarps * kMaxSegmentsPerWarp];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int segments = (call.cols + kSegment - 1) / kSegment, token = blockIdx.x;
  LetNextKernelStart();
  float4 w[kPerWarp], x[kPerWarp];
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    const int i = (warp + k * warps) * kSegment + 4 * lane;
    if (i < call.cols) w[k] = *reinterpret_cast<const float4*>(call.weight + i);
  }
  WaitForPreviousKernels();
  const typename Source::Row row = source.Of(token);
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    const int i = (warp + k * warps) * kSegment + 4 * lane;
    x[k] = i < call.cols ? row.At(i) : make_float4(0, 0, 0, 0);
  }
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    const int segment = warp + k * warps, i = segment * kSegment + 4 * lane;
    if (segment >= segments) break;
    float square = x[k].x * x[k].x;
    square = fmaf(x[k].y, x[k].y, square);
    square = fmaf(x[k].z, x[k].z, square);
    square = WarpSum(fmaf(x[k].w, x[k].w, square));
    if (lane == 0) partial[segment] = square;
    if (call.hidden_out != nullptr && i < call.cols) {
      *reinterpret_cast<float4*>(call.hidden_out + static_cast<int64_t>(token) * call.cols + i) =
          x[k];
    }
  }
  __syncthreads();
  float sum = 0;
  for (int s = lane; s < segments; s += 32) sum += partial[s];
  const float mean = WarpSum(sum) / static_cast<float>(call.cols);
  const float scale = 1.0f / sqrtf(mean + call.eps);
#pragma unroll
  for (int k = 0; k < kPerWarp; ++k) {
    const int i = (warp + k * warps) * kSegment + 4 * lane;
    if (i < call.cols) {
      row4[i / 4] = make_float4(x[k].x * scale * w[k].x, x[k].y * scale * w[k].y,
                                x[k].z * scale * w[k].z, x[k].w * scale * w[k].w);
    }
  }
  __syncthreads();
  StageToken(out, reinterpret_cast<const float*>(row4), call.cols, token);
}

template <int kPerWarp, typename Source>
cudaError_t LaunchNormWith(const Source& source, const NormArgs& args, int warps,
                           const LinearInput& out, cudaStream_t stream) {
  const NormCall call = {args.hidden_out, args.weight, args.eps, args.cols};
  const size_t shared = sizeof(float) * args.cols;
  if (Source::kFirstOfStep) {
    NormKernel<kPerWarp><<<args.tokens, 32 * warps, shared, stream>>>(source, call, out);
    return cudaGetLastError();
  }
  return LaunchDependent(NormKernel<kPerWarp, Source>, dim3(args.tokens), dim3(32 * warps), shared,
                         stream, source, call, out);
}

template <typename Source>
cudaError_t LaunchNorm(const Source& source, const NormArgs& args, const LinearInput& out,
                       cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  if (args.cols <= 0 || args.cols % 4 != 0 || args.cols > kMaxRowElements) {
    return cudaErrorInvalidValue;
  }
  const int segments = (args.cols + kSegment - 1) / kSegment;
  const int per_warp = (segments + kMaxNormWarps - 1) / kMaxNormWarps;
  // Staging has work for more warps than a short row has segments.
  const int warps = std::max((segments + per_warp - 1) / per_warp, std::min(segments * 4, 8));
  if (per_warp == 1) return LaunchNormWith<1>(source, args, warps, out, stream);
  if (per_warp == 2) return LaunchNormWith<2>(source, args, warps, out, stream);
  return LaunchNormWith<kMaxSegmentsPerWarp>(source, args, warps, out, stream);
}

constexpr int kSiluWarps = 4;

template <typename T>
__device__ __forceinline__ float4 SiluMul4(const T* gate, const T* up) {
  const float4 g = Load4(gate), u = Load4(up);
  const auto one = [](float a, float b) { return __fdividef(a, 1.0f + ExpLikeCpu(-a)) * b; };
  return make_float4(one(g.x, u.x), one(g.y, u.y), one(g.z, u.z), one(g.w, u.w));
}

// A warp per (token, tile); the plain form is shared out among the blocks of the token.
template <typename T>
__global__ void __launch_bounds__(32 * kSiluWarps)
    SiluKernel(const SiluArgs args, const __grid_constant__ LinearInput out) {
  LetNextKernelStart();
  WaitForPreviousKernels();
  const int token = blockIdx.y;
  const T* gate = static_cast<const T*>(args.gate) + token * args.stride;
  const T* up = static_cast<const T*>(args.up) + token * args.stride;
  StageTiles(
      out, [&](int channel) { return SiluMul4(gate + channel, up + channel); }, token,
      blockIdx.x * kSiluWarps + threadIdx.x / 32, gridDim.x * kSiluWarps);
  if (out.plain == nullptr) return;
  for (int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x); i < args.cols;
       i += 4 * gridDim.x * blockDim.x) {
    const float4 v = SiluMul4(gate + i, up + i);
    const size_t at = static_cast<size_t>(token) * args.cols + i;
    StorePlain(out.plain, out.plain_type, at, v.x);
    StorePlain(out.plain, out.plain_type, at + 1, v.y);
    StorePlain(out.plain, out.plain_type, at + 2, v.z);
    StorePlain(out.plain, out.plain_type, at + 3, v.w);
  }
}

// Rows for the other instances fit the default limit.
template <typename Source>
cudaError_t AllowShared() {
  return cudaFuncSetAttribute(NormKernel<kMaxSegmentsPerWarp, Source>,
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kMaxRowElements * sizeof(float));
}

}  // namespace

cudaError_t PrepareOps() {
  const cudaError_t error = AllowShared<FromHidden>();
  return error != cudaSuccess ? error : AllowShared<FromEmbedding>();
}

cudaError_t LaunchAddNorm(const NormArgs& args, const LinearInput& out, cudaStream_t stream) {
  const FromHidden source = {
      args.hidden, args.rows, args.delta, args.delta_stride, args.delta_type == DType::kF16,
      args.cols};
  return LaunchNorm(source, args, out, stream);
}

cudaError_t LaunchEmbedNorm(const DeviceDense& table, const StepView& step, const NormArgs& args,
                            const LinearInput& out, cudaStream_t stream) {
  return LaunchNorm(FromEmbedding{table, step}, args, out, stream);
}

cudaError_t LaunchSiluMul(const SiluArgs& args, const LinearInput& out, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  int tiles = 0;
  for (int p = 0; p < out.count; ++p) tiles += NumTiles(out.parts[p].shape);
  const int plain_warps = out.plain == nullptr ? 0 : (args.cols + 127) / 128;
  const int items = std::max({tiles, plain_warps, 1});
  const dim3 grid((items + kSiluWarps - 1) / kSiluWarps, args.tokens), block(32 * kSiluWarps);
  return args.type == DType::kF16
             ? LaunchDependent(SiluKernel<__half>, grid, block, 0, stream, args, out)
             : LaunchDependent(SiluKernel<float>, grid, block, 0, stream, args, out);
}

}  // namespace fewbit::cuda
