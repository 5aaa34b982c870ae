// Activations into fixed point and fragment order: see linear.h for the staged form.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/linear_launch.h"

namespace fewbit::cuda {
namespace {

constexpr int kStageWarps = kMostGroupTokens;  // a block takes one token group
constexpr int kFloatPitch = kStageWarps + 1;   // no bank conflicts between strips

struct StageArgs {
  quant::PackedShape shape;
  const uint16_t* strip_order;
  const uint16_t* x;
  int64_t x_stride;
  uint8_t* staged;
  size_t group_bytes;
  int m, group_tokens;
};

template <typename T>
__device__ float ToFloat(uint16_t bits);
template <>
__device__ float ToFloat<__half>(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
template <>
__device__ float ToFloat<__nv_bfloat16>(uint16_t bits) {
  return __bfloat162float(__ushort_as_bfloat16(bits));
}

// The 16 channels of the strip at `position`, zeros for padding and beyond the tile.
template <typename T>
__device__ void LoadStrip(const StageArgs& a, int token, int position, bool inside,
                          float (&x)[quant::kStripChannels]) {
  const uint16_t strip = inside ? a.strip_order[position] : quant::kNoStrip;
  union {
    uint4 vectors[2];
    uint16_t halves[quant::kStripChannels];
  } raw = {};
  if (strip != quant::kNoStrip) {
    const uint4* from =
        reinterpret_cast<const uint4*>(a.x + token * a.x_stride + strip * quant::kStripChannels);
    raw.vectors[0] = from[0];
    raw.vectors[1] = from[1];
  }
#pragma unroll
  for (int c = 0; c < quant::kStripChannels; ++c) x[c] = ToFloat<T>(raw.halves[c]);
}

// The floats of a tile for all tokens of the group, [channel][token], written in whole lines.
__device__ void StoreFloats(const StageArgs& a, const float* buffer, float* to, int channels,
                            int tokens) {
  for (int i = threadIdx.x; i < channels * a.group_tokens; i += blockDim.x) {
    const int channel = i / a.group_tokens, token = i - channel * a.group_tokens;
    const int strip = channel / quant::kStripChannels, c = channel % quant::kStripChannels;
    if (token < tokens) to[i] = buffer[(c * 32 + strip) * kFloatPitch + token];
  }
}

// One block per (tile, token group), one warp per token, one lane per strip. A tile whose largest
// |x| is infinite or NaN gets that as its scale, so that it reaches the result.
template <typename T>
__global__ void StageKernel(const StageArgs a) {
  __shared__ float buffer[quant::kStripChannels * 32 * kFloatPitch];
  const int lane = threadIdx.x % 32, tile = blockIdx.x;
  const int in_group = threadIdx.x / 32, token = blockIdx.y * a.group_tokens + in_group;
  LetNextKernelStart();
  WaitForPreviousKernels();
  const int tokens = min(a.group_tokens, a.m - static_cast<int>(blockIdx.y) * a.group_tokens);
  const bool two = tile < a.shape.tiles(2);
  const int of_width = two ? tile : tile - a.shape.tiles(2);
  const int bits = two ? 2 : 4;
  const int strips = a.shape.tile_chunks(bits, of_width) * quant::ChunkStrips(bits);
  const int first_quad = FirstQuad(a.shape, tile);
  float x[quant::kStripChannels];
  LoadStrip<T>(a, token, 4 * first_quad + lane, lane < strips && token < a.m, x);
  uint32_t largest = 0;
#pragma unroll
  for (float v : x) largest = max(largest, __float_as_uint(v) & 0x7FFFFFFFu);
  const float top = __uint_as_float(__reduce_max_sync(0xFFFFFFFFu, largest));
  // Below 1e-34 the factor would overflow, and the tile counts as zero.
  const bool finite = top > 1e-34f && top < __int_as_float(0x7F800000);
  const float to_fixed = finite ? __fdiv_rn(static_cast<float>(kMaxActivation), top) : 0.0f;
  uint32_t high[4] = {}, low[4] = {};
  int sum = 0;
  const float scale = __fdiv_rn(top, static_cast<float>(kMaxActivation));
#pragma unroll
  for (int c = 0; c < quant::kStripChannels; ++c) {
    const float scaled = fminf(fmaxf(x[c] * to_fixed, -1.0f * kMaxActivation), kMaxActivation);
    const int v = finite ? __float2int_rn(scaled) : 0;
    const int h = (v + 128) >> 8;
    sum += v;
    x[c] = __fmul_rn(__int2float_rn(v), scale);
    high[c / 4] |= static_cast<uint32_t>(h & 0xFF) << (8 * (c % 4));
    low[c / 4] |= static_cast<uint32_t>((v - 256 * h) & 0xFF) << (8 * (c % 4));
  }
  sum = __reduce_add_sync(0xFFFFFFFFu, sum);
  uint8_t* out = a.staged + blockIdx.y * a.group_bytes;
  const int meta_stride = (a.group_tokens + 1) / 2 * 2;
  uint8_t* planes = out + NumTiles(a.shape) * meta_stride * 8;
  if (token < a.m && lane == 0) {
    // The bytes of a weight are 128 too large, in both planes of a 4-bit code.
    const uint32_t excess = two ? 128u : 128u * 5u;
    reinterpret_cast<int2*>(out)[tile * meta_stride + in_group] = make_int2(
        __float_as_int(scale), static_cast<int>(0u - excess * static_cast<uint32_t>(sum)));
  }
  if (token < a.m && lane < strips) {
    uint4* to = reinterpret_cast<uint4*>(
        planes + static_cast<size_t>(first_quad + lane / 4) * QuadBytes(a.group_tokens) +
        128 * in_group + 16 * (lane % 4));
    to[0] = make_uint4(high[0], high[1], high[2], high[3]);
    to[4] = make_uint4(low[0], low[1], low[2], low[3]);
  }
  if (!two) return;
#pragma unroll
  for (int c = 0; c < quant::kStripChannels; ++c) {
    buffer[(c * 32 + lane) * kFloatPitch + in_group] = x[c];
  }
  __syncthreads();
  float* floats = reinterpret_cast<float*>(planes + static_cast<size_t>(NumQuads(a.shape)) *
                                                        QuadBytes(a.group_tokens)) +
                  static_cast<size_t>(4 * first_quad) * quant::kStripChannels * a.group_tokens;
  StoreFloats(a, buffer, floats, strips * quant::kStripChannels, tokens);
}

}  // namespace

cudaError_t StageActivations(const Desc& desc, const Plan& plan, const uint16_t* strip_order,
                             const void* x, int64_t x_stride, void* staged, cudaStream_t stream) {
  const StageArgs args = {desc.shape,
                          strip_order,
                          static_cast<const uint16_t*>(x),
                          x_stride,
                          static_cast<uint8_t*>(staged),
                          StagedGroupBytes(desc.shape, plan.group_tokens),
                          desc.m,
                          plan.group_tokens};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(NumTiles(desc.shape), plan.groups);
  config.blockDim = dim3(32 * plan.group_tokens);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return desc.x_type == DType::kF16 ? cudaLaunchKernelEx(&config, StageKernel<__half>, args)
                                    : cudaLaunchKernelEx(&config, StageKernel<__nv_bfloat16>, args);
}

}  // namespace fewbit::cuda
