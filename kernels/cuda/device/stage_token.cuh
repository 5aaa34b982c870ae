// Leaves one token's activations in the form that the next linear layer takes (staging.h), from
// inside the kernel that computes them. Same numbers whatever the form and whoever calls it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/device/stage_slabs.cuh"
#include "kernels/cuda/device_tile.h"
#include "kernels/cuda/staging.h"

namespace fewbit::cuda {

// A lane has 4 neighbouring channels of every eighth strip of a tile.
inline constexpr int kStageRounds = 4;

// Where the staged form has the 4 high bytes of position `position` (in strips), channels
// 4 * quarter and up, and how far behind them the low ones.
__device__ __forceinline__ uint8_t* StagedBytesAt(const StageTarget& to, int token, int position,
                                                  int quarter, int* to_low) {
  if (to.form == StagedForm::kSlabs) return SlabBytesAt(to, token, position, quarter, to_low);
  const int group = token / to.group_tokens, in_group = token - group * to.group_tokens;
  const int meta_bytes = NumTiles(to.shape) * EvenTokens(to.group_tokens) * 8;
  *to_low = kColumnBytes;
  return to.staged + static_cast<size_t>(group) * to.group_bytes + meta_bytes +
         (position / 4 * to.group_tokens + in_group) * 2 * kColumnBytes + 16 * (position % 4) +
         4 * quarter;
}

__device__ __forceinline__ void StoreStagedMeta(const StageTarget& to, int token, int tile,
                                                float scale, int bias) {
  const int group = token / to.group_tokens, in_group = token - group * to.group_tokens;
  int2* meta = reinterpret_cast<int2*>(to.staged + static_cast<size_t>(group) * to.group_bytes);
  meta[tile * EvenTokens(to.group_tokens) + in_group] = make_int2(__float_as_int(scale), bias);
}

// Who stages a tile: one warp, or four warps with one round each, which is sooner done.
struct OneWarp {
  static constexpr int kRounds = kStageRounds;
  __device__ int first_round() const { return 0; }
  __device__ uint32_t Max(uint32_t v) const { return __reduce_max_sync(0xFFFFFFFFu, v); }
  __device__ int Sum(int v) const { return __reduce_add_sync(0xFFFFFFFFu, v); }
};

// In shared memory, one per four warps.
struct StageBoard {
  uint32_t largest[4];
  int sums[4];
};

// Warps 4 q .. 4 q + 3 of a block; they meet at the block's named barrier 1 + q.
struct FourWarps {
  static constexpr int kRounds = 1;
  StageBoard* board;

  __device__ int first_round() const { return threadIdx.x / 32 % 4; }
  __device__ uint32_t Max(uint32_t v) const {
    v = __reduce_max_sync(0xFFFFFFFFu, v);
    if (threadIdx.x % 32 == 0) board->largest[first_round()] = v;
    Meet();
    return max(max(board->largest[0], board->largest[1]),
               max(board->largest[2], board->largest[3]));
  }
  __device__ int Sum(int v) const {
    v = __reduce_add_sync(0xFFFFFFFFu, v);
    if (threadIdx.x % 32 == 0) board->sums[first_round()] = v;
    Meet();
    return board->sums[0] + board->sums[1] + board->sums[2] + board->sums[3];
  }
  __device__ void Meet() const {
    asm volatile("bar.sync %0, 128;" ::"r"(1 + static_cast<int>(threadIdx.x) / 128) : "memory");
  }
};

// The strips of a tile.
struct TileStrips {
  bool two;  // 2-bit codes
  int of_width, strips, first;

  __device__ __forceinline__ TileStrips(const quant::PackedShape& shape, int tile)
      : two(tile < shape.tiles(2)),
        of_width(two ? tile : tile - shape.tiles(2)),
        strips(shape.tile_chunks(bits(), of_width) * quant::ChunkStrips(bits())),
        first(4 * FirstQuad(shape, tile)) {}
  __device__ int bits() const { return two ? 2 : 4; }
};

// The first of the 4 channels of x that this lane has in a round, or -1: none. It is a matter of
// weights alone.
template <typename Warps = OneWarp>
__device__ __forceinline__ int SourceChannel(const StageTarget& to, const TileStrips& tile,
                                             int round, const Warps& warps = {}) {
  const int strip = 8 * (warps.first_round() + round) + static_cast<int>(threadIdx.x) % 32 / 4;
  const uint16_t source =
      strip < tile.strips ? to.strip_order[tile.first + strip] : quant::kNoStrip;
  return source == quant::kNoStrip
             ? -1
             : source * quant::kStripChannels + 4 * static_cast<int>(threadIdx.x % 4);
}

// |x| < 2^22, to the nearest integer, ties to even: the last bits of a sum with 1.5 * 2^23. (The
// conversion instruction runs at a quarter of the rate.)
__device__ __forceinline__ int RoundToInt(float x) {
  constexpr float kMagic = 12582912.0f;
  return __float_as_int(__fadd_rn(x, kMagic)) - 0x4B400000;
}

// Byte kByte of each, the first one lowest.
template <int kByte>
__device__ __forceinline__ uint32_t PackBytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  constexpr uint32_t kPair = kByte | (4 + kByte) << 4;
  return __byte_perm(__byte_perm(a, b, kPair), __byte_perm(c, d, kPair), 0x5410);
}

// One tile of one matrix by converged warps; x: this lane's channels, 0 where it has none. A tile
// whose largest |x| is infinite or NaN gets that as its scale, so that it reaches the result.
template <typename Warps = OneWarp>
__device__ __forceinline__ void StageValues(const StageTarget& to,
                                            const float4 (&x)[Warps::kRounds], int token, int tile,
                                            const Warps& warps = {}) {
  const int lane = threadIdx.x % 32, quarter = lane % 4;
  const TileStrips place(to.shape, tile);
  const bool two = place.two;
  const int bits = place.bits(), of_width = place.of_width, strips = place.strips,
            first = place.first;
  const bool slabs = to.form == StagedForm::kSlabs;
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < Warps::kRounds; ++i) {
    for (float v : {x[i].x, x[i].y, x[i].z, x[i].w}) {
      largest = max(largest, __float_as_uint(v) & 0x7FFFFFFFu);
    }
  }
  const float top = __uint_as_float(warps.Max(largest));
  // Below 1e-34 the factor would overflow, and the tile counts as zero, as one that is not finite.
  const bool usable = top > 1e-34f && top < __int_as_float(0x7F800000);
  const float to_fixed = usable ? __fdiv_rn(static_cast<float>(kMaxActivation), top) : 0.0f;
  const float scale = __fdiv_rn(top, static_cast<float>(kMaxActivation));
  const bool twice = slabs && !two && !to.shape.zero_points;
  const int padded = slabs ? 4 * PaddedQuads(to.shape, bits, of_width) : strips;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < Warps::kRounds; ++i) {
    const int round = warps.first_round() + i, strip = 8 * round + lane / 4;
    const float values[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
    int v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = usable ? RoundToInt(__fmul_rn(values[k], to_fixed)) : 0;
    const int of_strip = v[0] + v[1] + v[2] + v[3];
    if (slabs && to.floats && two && strip < strips) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        StoreSlabFloat(to, token, 16 * (first + strip) + 4 * quarter + k,
                       __fmul_rn(__int2float_rn(v[k]), scale));
      }
    }
    if (twice) {
#pragma unroll
      for (int& u : v) u *= 2;
    }
    // v = 256 high + low with signed bytes: high is that of v + 128.
    const uint32_t low = PackBytes<0>(v[0], v[1], v[2], v[3]);
    const uint32_t high = PackBytes<1>(v[0] + 128, v[1] + 128, v[2] + 128, v[3] + 128);
    sum += of_strip;
    if (twice && round < 2) StoreParitySlabs(to, token, tile, strip, of_strip);
    if (strip < padded) {
      int to_low;
      uint8_t* at = StagedBytesAt(to, token, first + strip, quarter, &to_low);
      *reinterpret_cast<uint32_t*>(at) = high;
      *reinterpret_cast<uint32_t*>(at + to_low) = low;
    }
  }
  sum = warps.Sum(sum);
  const bool first_lane = lane == 0 && warps.first_round() == 0;
  if (slabs) {
    if (first_lane) StoreSlabMeta(to, token, tile, scale, sum);
    return;
  }
  // The bytes of a weight are 128 too large, in both planes of a 4-bit code.
  const uint32_t excess = two ? 128u : 128u * 5u;
  if (first_lane) {
    StoreStagedMeta(to, token, tile, scale,
                    static_cast<int>(0u - excess * static_cast<uint32_t>(sum)));
  }
}

// The same; load(channel) gives the float4 of 4 channels.
template <typename Load, typename Warps = OneWarp>
__device__ __forceinline__ void StageTile(const StageTarget& to, const Load& load, int token,
                                          int tile, const Warps& warps = {}) {
  const TileStrips place(to.shape, tile);
  float4 x[Warps::kRounds];
#pragma unroll
  for (int i = 0; i < Warps::kRounds; ++i) {
    const int channel = SourceChannel(to, place, i, warps);
    x[i] = channel < 0 ? make_float4(0, 0, 0, 0) : load(channel);
  }
  StageValues(to, x, token, tile, warps);
}

// The staged forms of one token, the tiles of all parts dealt out to `workers` (of warps, or of
// four warps each).
template <typename Load, typename Warps = OneWarp>
__device__ __forceinline__ void StageTiles(const LinearInput& to, const Load& load, int token,
                                           int worker, int workers, const Warps& warps = {}) {
  int item = worker;
  // Not unrolled: it runs about once per launch, where short code is the faster.
#pragma unroll 1
  for (int p = 0; p < to.count; ++p) {
    const int tiles = NumTiles(to.parts[p].shape);
#pragma unroll 1
    for (; item < tiles; item += workers) StageTile(to.parts[p], load, token, item, warps);
    item -= tiles;
  }
}

__device__ __forceinline__ void StorePlain(void* plain, DType type, size_t at, float value) {
  if (type == DType::kF32) {
    static_cast<float*>(plain)[at] = value;
  } else if (type == DType::kF16) {
    static_cast<__half*>(plain)[at] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(plain)[at] = __float2bfloat16_rn(value);
  }
}

// Elements at .. at + 3; `at` is a multiple of 4.
__device__ __forceinline__ void StorePlain4(void* plain, DType type, size_t at, const float4& x) {
  if (type == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(plain) + at) = x;
  } else if (type == DType::kF16) {
    const __half2 low = __floats2half2_rn(x.x, x.y), high = __floats2half2_rn(x.z, x.w);
    *reinterpret_cast<uint2*>(static_cast<__half*>(plain) + at) =
        make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
  } else {
    const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(x.z, x.w);
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(plain) + at) =
        make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
  }
}

// Writes all that `to` asks for, for one token, by the whole block (a multiple of 32 threads). x:
// [cols] floats in shared memory, 16-byte aligned, written before a block barrier; cols is a
// multiple of 16. The block must have passed WaitForPreviousKernels(). No barrier inside.
__device__ inline void StageToken(const LinearInput& to, const float* x, int cols, int token) {
  StageTiles(
      to, [x](int channel) { return *reinterpret_cast<const float4*>(x + channel); }, token,
      threadIdx.x / 32, blockDim.x / 32);
  if (to.plain == nullptr) return;
  for (int i = 4 * threadIdx.x; i < cols; i += 4 * blockDim.x) {
    StorePlain4(to.plain, to.plain_type, static_cast<size_t>(token) * cols + i,
                *reinterpret_cast<const float4*>(x + i));
  }
}

}  // namespace fewbit::cuda
