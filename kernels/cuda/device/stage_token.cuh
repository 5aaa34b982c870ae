// Leaves one token's activations in the form that the next linear layer takes (staging.h), from
// inside the kernel that computes them. Same numbers whatever the form and whoever calls it.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/device/stage_slabs.cuh"
#include "kernels/cuda/device/store_plain.cuh"
#include "kernels/cuda/device_tile.h"
#include "kernels/cuda/half_tile.h"
#include "kernels/cuda/staging.h"

namespace fewbit::cuda {

// A lane has one quarter, 4 neighbouring channels, of each of the 4 strips of a quad of the tile:
// lane = 4 * quad + quarter. Those are 16 neighbouring bytes of a slab.
inline constexpr int kStageRounds = kQuadStrips;

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
  __device__ int quads() const { return strips / kQuadStrips; }
};

// The first of the 4 channels of x that this lane has in a round, or -1: none. It is a matter of
// weights alone.
__device__ __forceinline__ int SourceChannel(const StageTarget& to, const TileStrips& tile,
                                             int round) {
  const int lane = threadIdx.x % 32, strip = kQuadStrips * (lane / 4) + round;
  const uint16_t source =
      strip < tile.strips ? to.strip_order[tile.first + strip] : quant::kNoStrip;
  return source == quant::kNoStrip ? -1 : source * quant::kStripChannels + 4 * (lane % 4);
}

// Where a lane's channels of a tile are, -1: none.
struct TileChannels {
  int at[kStageRounds];

  TileChannels() = default;
  __device__ __forceinline__ TileChannels(const StageTarget& to, int tile) {
    const TileStrips place(to.shape, tile);
    const int lane = threadIdx.x % 32;
    uint2 strips = {0xFFFFFFFFu, 0xFFFFFFFFu};
    if (lane < 4 * place.quads()) {
      strips =
          *reinterpret_cast<const uint2*>(to.strip_order + place.first + kQuadStrips * (lane / 4));
    }
    const auto channel = [lane](uint32_t strip) {
      return strip == quant::kNoStrip
                 ? -1
                 : static_cast<int>(strip) * quant::kStripChannels + 4 * (lane % 4);
    };
    at[0] = channel(strips.x & 0xFFFFu);
    at[1] = channel(strips.x >> 16);
    at[2] = channel(strips.y & 0xFFFFu);
    at[3] = channel(strips.y >> 16);
  }
};

// The larger of a and |b|, NaN if either is.
__device__ __forceinline__ float MaxAbs(float a, float b) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(fabsf(b)));
  return a;
}

// The largest |x| of a tile, from the 16 numbers of each lane of a converged warp.
struct TileTop {
  float top, to_fixed;
  bool usable;

  // Below 1e-34 the factor would overflow, and the tile counts as zero, as one that is not finite.
  __device__ __forceinline__ explicit TileTop(const float4 (&x)[kStageRounds]) {
    float largest[2] = {};
#pragma unroll
    for (int i = 0; i < kStageRounds; ++i) {
      float& l = largest[i % 2];
      l = MaxAbs(MaxAbs(MaxAbs(MaxAbs(l, x[i].x), x[i].y), x[i].z), x[i].w);
    }
    top = MaxAbs(largest[0], largest[1]);
    top = __uint_as_float(__reduce_max_sync(0xFFFFFFFFu, __float_as_uint(top)));
    usable = top > 1e-34f && top < __int_as_float(0x7F800000);
    to_fixed = usable ? __fdiv_rn(static_cast<float>(kMaxActivation), top) : 0.0f;
  }
  // One of the fixed-point numbers.
  __device__ __forceinline__ float scale() const {
    return __fmul_rn(top, 1.0f / static_cast<float>(kMaxActivation));
  }
};

// Byte kByte of each, the first one lowest.
template <int kByte>
__device__ __forceinline__ uint32_t PackBytes(const uint32_t (&v)[4]) {
  constexpr uint32_t kPair = kByte | (4 + kByte) << 4;
  return __byte_perm(__byte_perm(v[0], v[1], kPair), __byte_perm(v[2], v[3], kPair), 0x5410);
}

// The 16 numbers of a lane in fixed point, by the last bits of a sum with 1.5 * 2^23 (the
// conversion instruction runs at a quarter of the rate): the nearest integer, ties to even.
struct FixedQuarters {
  static constexpr float kMagic = 12582912.0f;
  static constexpr uint32_t kMagicBits = 0x4B400000;
  // raw = kMagicBits + v + excess. The excess makes the byte above the lowest that of v + 128,
  // which is `high` of v = 256 high + low with signed bytes; if 2 v is wanted, of v + 64.
  uint32_t raw[kStageRounds][4];
  int excess;
  bool twice;

  __device__ __forceinline__ FixedQuarters(const float4 (&x)[kStageRounds], const TileTop& top,
                                           bool twice)
      : excess(twice ? 64 : 128), twice(twice) {
    const float magic = kMagic + static_cast<float>(excess);
#pragma unroll
    for (int i = 0; i < kStageRounds; ++i) {
      raw[i][0] = __float_as_uint(__fmaf_rn(x[i].x, top.to_fixed, magic));
      raw[i][1] = __float_as_uint(__fmaf_rn(x[i].y, top.to_fixed, magic));
      raw[i][2] = __float_as_uint(__fmaf_rn(x[i].z, top.to_fixed, magic));
      raw[i][3] = __float_as_uint(__fmaf_rn(x[i].w, top.to_fixed, magic));
    }
    if (top.usable) return;
#pragma unroll
    for (int i = 0; i < kStageRounds; ++i) {
#pragma unroll
      for (uint32_t& v : raw[i]) v = kMagicBits + excess;
    }
  }
  __device__ __forceinline__ int Value(int i, int k) const {
    return static_cast<int>(raw[i][k] - (kMagicBits + excess));
  }
  // Of v.
  __device__ __forceinline__ int Sum(int i) const {
    return static_cast<int>(raw[i][0] + raw[i][1] + raw[i][2] + raw[i][3] -
                            4 * (kMagicBits + excess));
  }
  __device__ __forceinline__ void Bytes(int i, uint32_t* high, uint32_t* low) const {
    uint32_t v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = twice ? 2 * raw[i][k] : raw[i][k];
    *high = PackBytes<1>(v);
    *low = PackBytes<0>(v) ^ 0x80808080u;
  }
};

// The bytes of a weight are 128 too large, in both planes of a 4-bit code.
__device__ __forceinline__ int StagedBias(bool two, int sum) {
  return static_cast<int>(0u - (two ? 128u : 128u * 5u) * static_cast<uint32_t>(sum));
}

__device__ __forceinline__ void StoreStagedMeta(const StageTarget& to, int token, int tile,
                                                float scale, int bias) {
  const int group = GroupOfToken(to, token), in_group = token - group * to.group_tokens;
  int2* meta = reinterpret_cast<int2*>(to.staged + static_cast<size_t>(group) * to.group_bytes);
  meta[tile * EvenTokens(to.group_tokens) + in_group] = make_int2(__float_as_int(scale), bias);
}

__device__ __forceinline__ void StoreColumns(const StageTarget& to, const FixedQuarters& v,
                                             int token, int first_quad) {
  const int lane = threadIdx.x % 32, group = GroupOfToken(to, token);
  const int in_group = token - group * to.group_tokens;
  const int meta_bytes = NumTiles(to.shape) * EvenTokens(to.group_tokens) * 8;
  uint8_t* at = to.staged + static_cast<size_t>(group) * to.group_bytes + meta_bytes +
                ((first_quad + lane / 4) * to.group_tokens + in_group) * 2 * kColumnBytes +
                4 * (lane % 4);
#pragma unroll
  for (int i = 0; i < kStageRounds; ++i) {
    uint32_t high, low;
    v.Bytes(i, &high, &low);
    *reinterpret_cast<uint32_t*>(at + quant::kStripChannels * i) = high;
    *reinterpret_cast<uint32_t*>(at + quant::kStripChannels * i + kColumnBytes) = low;
  }
}

// Neighbouring lanes have neighbouring slabs. One store instruction of both writes a slab's 32
// bytes: half of a sector at a time takes the L2 cache several times as long.
__device__ __forceinline__ void StoreSlabs(const StageTarget& to, const FixedQuarters& v,
                                           const SlabToken& at, int tile, int slabs) {
  uint32_t high[kStageRounds], low[kStageRounds];
#pragma unroll
  for (int i = 0; i < kStageRounds; ++i) v.Bytes(i, &high[i], &low[i]);
  const int lane = threadIdx.x % 32;
  const bool odd = lane % 2 != 0;
  // The even lane keeps its high bytes and gets those of the other, which gets low ones.
#pragma unroll
  for (int i = 0; i < kStageRounds; ++i) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, odd ? high[i] : low[i], 1);
    high[i] = odd ? other : high[i];
    low[i] = odd ? low[i] : other;
  }
  if (lane >= slabs) return;
  uint8_t* slab = at.Slab(to, FirstSlab(to.shape, tile) + lane / 2 * 2) + (odd ? kSlabBytes : 0);
  *reinterpret_cast<uint4*>(slab) = make_uint4(high[0], high[1], high[2], high[3]);
  *reinterpret_cast<uint4*>(slab + 2 * kSlabBytes * to.group_tokens) =
      make_uint4(low[0], low[1], low[2], low[3]);
}

// Numbers of kHalves: lane 4 quad + f has product f of its quad. Neighbouring lanes exchange
// halves, so that one store instruction of both writes the 32 bytes of a token, a sector, twice.
__device__ __forceinline__ void StoreHalves(const StageTarget& to, const float4 (&x)[kStageRounds],
                                            float factor, int token, int first_quad, int quads) {
  uint32_t halves[2][kStageRounds];
#pragma unroll
  for (int i = 0; i < kStageRounds; ++i) {
    const __half2 even = __floats2half2_rn(x[i].x * factor, x[i].z * factor);
    const __half2 odd = __floats2half2_rn(x[i].y * factor, x[i].w * factor);
    halves[0][i] = reinterpret_cast<const uint32_t&>(even);
    halves[1][i] = reinterpret_cast<const uint32_t&>(odd);
  }
  const int lane = threadIdx.x % 32, group = GroupOfToken(to, token);
  const int in_group = token - group * to.group_tokens;
  const bool second = lane % 2 != 0;
  // The even lane keeps its first half and gets that of the other, which gets the second one.
#pragma unroll
  for (int i = 0; i < kStageRounds; ++i) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, second ? halves[0][i] : halves[1][i], 1);
    halves[0][i] = second ? other : halves[0][i];
    halves[1][i] = second ? halves[1][i] : other;
  }
  if (lane >= 4 * quads) return;
  const int place = static_cast<int>(second) ^ (in_group / 4 % 2);
  uint8_t* at = to.staged + static_cast<size_t>(group) * to.group_bytes +
                static_cast<size_t>(first_quad + lane / 4) * HalfQuadBytes(to.group_tokens) +
                (lane % 4 / 2 * 2 * to.group_tokens + in_group) * kHalfTokenBytes + 16 * place;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    *reinterpret_cast<uint4*>(at + k * to.group_tokens * kHalfTokenBytes) =
        make_uint4(halves[k][0], halves[k][1], halves[k][2], halves[k][3]);
  }
}

// What a tile is multiplied by beside its scale; asked for when its bytes are on their way.
struct NoFactor {
  __device__ float operator()() const { return 1.0f; }
};

// One tile of one matrix by a converged warp; x: this lane's channels, 0 where it has none. The
// staged numbers are those of x times factor(). A tile whose largest |x| is infinite or NaN gets
// that as its scale, so that it reaches the result.
template <typename Factor = NoFactor>
__device__ __forceinline__ void StageValues(const StageTarget& to, const float4 (&x)[kStageRounds],
                                            int token, int tile, const Factor& factor = {}) {
  const int lane = threadIdx.x % 32;
  const TileStrips place(to.shape, tile);
  if (to.form == StagedForm::kHalves) {
    StoreHalves(to, x, factor(), token, place.first / 4,
                PaddedQuads(to.shape, place.bits(), place.of_width));
    return;
  }
  const bool slabs = to.form == StagedForm::kSlabs;
  const TileTop top(x);
  const FixedQuarters v(x, top, slabs && !place.two && !to.shape.zero_points);
  int sums[kStageRounds], sum = 0;
#pragma unroll
  for (int i = 0; i < kStageRounds; ++i) {
    sums[i] = v.Sum(i);
    sum += sums[i];
  }
  sum = __reduce_add_sync(0xFFFFFFFFu, sum);
  const auto scale = [&] { return __fmul_rn(top.scale(), factor()); };
  if (!slabs) {
    if (lane < place.quads() * 4) StoreColumns(to, v, token, place.first / 4);
    const float of_tile = scale();
    if (lane == 0) StoreStagedMeta(to, token, tile, of_tile, StagedBias(place.two, sum));
    return;
  }
  const SlabToken at(to, token);
  StoreSlabs(to, v, at, tile, 4 * PaddedQuads(to.shape, place.bits(), place.of_width));
  if (v.twice) StoreParitySlabs(to, at, tile, sums);
  const float of_tile = scale();
  if (lane == 0) StoreSlabMeta(to, at, tile, of_tile, sum);
}

// The same; load(channel) gives the float4 of 4 channels.
template <typename Load, typename Factor = NoFactor>
__device__ __forceinline__ void StageTile(const StageTarget& to, const Load& load, int token,
                                          int tile, const Factor& factor = {}) {
  const TileChannels channels(to, tile);
  float4 x[kStageRounds];
#pragma unroll
  for (int i = 0; i < kStageRounds; ++i) {
    x[i] = channels.at[i] < 0 ? make_float4(0, 0, 0, 0) : load(channels.at[i]);
  }
  StageValues(to, x, token, tile, factor);
}

// A tile of all parts: the part, and what is left of `item`; part = to.count behind the last.
__device__ __forceinline__ int PartOf(const LinearInput& to, int* item) {
  int part = 0;
  for (; part < to.count; ++part) {
    const int tiles = NumTiles(to.parts[part].shape);
    if (*item < tiles) break;
    *item -= tiles;
  }
  return part;
}

// The staged forms of one token, the tiles of all parts dealt out to `workers` warps.
template <typename Load>
__device__ __forceinline__ void StageTiles(const LinearInput& to, const Load& load, int token,
                                           int worker, int workers) {
  // Not unrolled: it runs about once per launch, where short code is the faster.
#pragma unroll 1
  for (int item = worker;; item += workers) {
    int tile = item;
    const int part = PartOf(to, &tile);
    if (part == to.count) return;
    StageTile(to.parts[part], load, token, tile);
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
