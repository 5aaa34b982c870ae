// How a block of the persistent small-batch kernel comes by its x in shared memory: loaded as the
// kernel before left it, or made here from rows of floats (RowSource). Every block makes all of
// it: the time is that of one tile's chain of instructions, with or without the others.
#pragma once

#include "kernels/cuda/device/input_row.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/device/stream_block.cuh"

namespace fewbit::cuda {

// The warps that make or load x, of which a thread is number `id`. The first ones are those of the
// outliers, which have less to do afterwards and take tiles last.
template <int kThreads, int kOutlierWarps>
struct Loaders {
  static constexpr int kWarps = kThreads / 32;
  int id;

  __device__ int warp() const { return id / 32; }
  __device__ int turn() const {
    return warp() + (warp() < kOutlierWarps ? kWarps : 0) - kOutlierWarps;
  }
  __device__ void Meet() const { NamedBarrier(1, kThreads); }
};

__device__ __forceinline__ NormBoard* NormBoardOf(const StreamArgs& a, uint8_t* shared) {
  return reinterpret_cast<NormBoard*>(shared + a.layout.norm);
}

// What the tile scales of a token are still to be multiplied with, once x has been brought: a
// norm's factor is summed while its tiles are staged.
template <int kTokens>
__device__ __forceinline__ float InputFactor(const StreamArgs& a, const StreamBlock& b, int token) {
  if (kTokens > kMostMadeTokens || a.source.kind != RowKind::kNorm) return 1.0f;
  return NormBoardOf(a, b.shared)->factors[token];
}

// As the kernel before left it. The L2 cache has that; plain loads come back sooner than a bulk
// copy.
template <typename Group>
__device__ __forceinline__ void LoadStaged(const StreamArgs& a, const StreamPart& p,
                                           uint8_t* shared, const Group& loaders) {
  WaitForPreviousKernels();
  const uint4* from = reinterpret_cast<const uint4*>(p.x.staged);
  uint4* to = reinterpret_cast<uint4*>(shared + a.layout.x);
  const int count = p.x.group_bytes / sizeof(uint4);
#pragma unroll 4
  for (int i = loaders.id; i < count; i += 32 * Group::kWarps) to[i] = __ldcg(from + i);
}

__device__ __forceinline__ int64_t SourceRow(const RowSource& s, int token) {
  return (s.rows == nullptr ? token : s.rows[token]) * s.stride;
}

// One tile of x as a warp makes it in shared memory, where neighbouring lanes store into
// neighbouring banks: a lane has a quarter, 4 neighbouring channels, of every eighth strip. A
// matter of weights: it needs no wait.
struct MadeTile {
  static constexpr int kRounds = kStageRounds, kRoundStrips = 8;
  int strips;       // in the tile
  int left;         // of them, from the lane's first one on
  int place;        // the lane's first channel, counted in strip order
  int at[kRounds];  // the lane's channels, -1: none
  bool two;

  __device__ __forceinline__ MadeTile(const StageTarget& to, int tile) {
    const TileStrips of(to.shape, tile);
    const int lane = OpaqueLane();
    strips = of.strips;
    left = strips - lane / 4;
    two = of.two;
    place = quant::kStripChannels * (of.first + lane / 4) + 4 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const uint16_t source =
          Has(i) ? to.strip_order[of.first + lane / 4 + kRoundStrips * i] : quant::kNoStrip;
      at[i] = source == quant::kNoStrip ? -1 : source * quant::kStripChannels + 4 * (lane % 4);
    }
  }
  // The lane's strip of a round is in the tile.
  __device__ __forceinline__ bool Has(int round) const { return kRoundStrips * round < left; }
  // Of the lane's channels of a round, in strip order.
  __device__ __forceinline__ int Place(int round) const {
    return place + quant::kStripChannels * kRoundStrips * round;
  }
};

// A token's tile into shared memory. The numbers are those of StageValues.
template <int kTokens>
__device__ __forceinline__ void StoreMade(const MadeTile& tile,
                                          const float4 (&x)[MadeTile::kRounds], uint8_t* planes,
                                          int2* meta) {
  const TileTop top(x);
  const FixedQuarters v(x, top, false);
  uint8_t* to = planes + tile.place / kColumnBytes * QuadBytes(kTokens) + tile.place % kColumnBytes;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < MadeTile::kRounds; ++i) {
    uint32_t high, low;
    v.Bytes(i, &high, &low);
    sum += v.Sum(i);
    if (!tile.Has(i)) continue;
    uint32_t* at = reinterpret_cast<uint32_t*>(to + 2 * i * QuadBytes(kTokens));
    at[0] = high;
    at[kColumnBytes / sizeof(uint32_t)] = low;
  }
  sum = __reduce_add_sync(0xFFFFFFFFu, sum);
  if (threadIdx.x % 32 != 0) return;
  *meta = make_int2(__float_as_int(top.scale()), StagedBias(tile.two, sum));
}

// Four channels of a row in global memory, zeros for -1.
__device__ __forceinline__ float4 LoadAt(const float* row, int at) {
  float4 x = make_float4(0, 0, 0, 0);
  if (at >= 0) x = __ldcg(reinterpret_cast<const float4*>(row + static_cast<uint32_t>(at)));
  return x;
}

// What x is made of: rows as they are, silu(gate) * up, or rows times a norm's weights, which have
// been asked for into shared memory, in strip order.
struct PlainRow {
  __device__ __forceinline__ void Make(const RowSource& s, int64_t from, const MadeTile& tile,
                                       float4 (&x)[MadeTile::kRounds]) const {
    const float* first = Opaque(s.first + from);
#pragma unroll
    for (int i = 0; i < MadeTile::kRounds; ++i) x[i] = LoadAt(first, tile.at[i]);
  }
};
struct GatedRow {
  __device__ __forceinline__ void Make(const RowSource& s, int64_t from, const MadeTile& tile,
                                       float4 (&x)[MadeTile::kRounds]) const {
    const float *first = Opaque(s.first + from), *second = Opaque(s.second + from);
    float4 up[MadeTile::kRounds];
#pragma unroll
    for (int i = 0; i < MadeTile::kRounds; ++i) {
      x[i] = LoadAt(first, tile.at[i]);
      up[i] = LoadAt(second, tile.at[i]);
    }
    __syncwarp();  // keeps all loads in front of the arithmetic
    constexpr int kHalf = MadeTile::kRounds / 2;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) x[i] = SiluMul4(x[i], up[i]);
    if (tile.strips <= kHalf * MadeTile::kRoundStrips) return;  // 4-bit codes: the rest is zeros
#pragma unroll
    for (int i = kHalf; i < MadeTile::kRounds; ++i) x[i] = SiluMul4(x[i], up[i]);
  }
};
struct NormRow {
  const float* weights;

  __device__ __forceinline__ void Make(const RowSource& s, int64_t from, const MadeTile& tile,
                                       float4 (&x)[MadeTile::kRounds]) const {
    const float* first = Opaque(s.first + from);
#pragma unroll
    for (int i = 0; i < MadeTile::kRounds; ++i) x[i] = LoadAt(first, tile.at[i]);
#pragma unroll
    for (int i = 0; i < MadeTile::kRounds; ++i) {
      float4 weight = make_float4(0, 0, 0, 0);
      if (tile.at[i] >= 0) weight = Load4(weights + tile.Place(i));
      x[i] = Mul4(x[i], weight);
    }
  }
};

// Makes the tiles that are this warp's turn, of which `tile` is the first.
template <int kTokens, typename Row, typename Group>
__device__ __forceinline__ void MakeTiles(const StreamArgs& a, const StageTarget& to, int tiles,
                                          const Group& loaders, const Row& row, MadeTile tile) {
  int2* meta = reinterpret_cast<int2*>(to.staged);
  uint8_t* planes = to.staged + tiles * EvenTokens(kTokens) * sizeof(int2);
#pragma unroll 1
  for (int number = loaders.turn(); number < tiles;) {
#pragma unroll 1
    for (int token = 0; token < a.m; ++token) {
      float4 x[MadeTile::kRounds];
      row.Make(a.source, SourceRow(a.source, token), tile, x);
      StoreMade<kTokens>(tile, x, planes + 2 * kColumnBytes * token,
                         meta + number * EvenTokens(kTokens) + token);
    }
    number += Group::kWarps;
    if (number < tiles) tile = MadeTile(to, number);
  }
}

// x from rows whose numbers need nothing of the others.
template <int kTokens, typename Row, typename Group>
__device__ __forceinline__ void MakeRows(const StreamArgs& a, const StageTarget& to, int tiles,
                                         const Group& loaders) {
  const MadeTile first(to, min(loaders.turn(), tiles - 1));
  WaitForPreviousKernels();
  MakeTiles<kTokens>(a, to, tiles, loaders, Row{}, first);
}

// The blocks share out what is to be copied of the rows.
__device__ __forceinline__ void KeepRows(const StreamArgs& a, int thread, int threads) {
  const RowSource& s = a.source;
  const int stride = 4 * threads * static_cast<int>(gridDim.x);
#pragma unroll 1
  for (int token = 0; token < a.m; ++token) {
    float* to = s.hidden_out + static_cast<int64_t>(token) * a.cols;
    const float* from = s.first + SourceRow(s, token);
#pragma unroll 1
    for (int i = 4 * (blockIdx.x * threads + thread); i < a.cols; i += stride) {
      *reinterpret_cast<float4*>(to + i) = Load4(from + i);
    }
  }
}

// By the warps of the outliers: the factors of the rows' norms.
template <int kOutlierWarps>
__device__ __forceinline__ void SumSquares(const StreamArgs& a, NormBoard* board, int warp) {
  constexpr int kAtOnce = 8;
  const RowSource& s = a.source;
  const int segments = NormSegments(a.cols), lane = threadIdx.x % 32;
#pragma unroll 1
  for (int token = 0; token < a.m; ++token) {
    const int64_t from = SourceRow(s, token);
#pragma unroll 1
    for (int first = warp; first < segments; first += kAtOnce * kOutlierWarps) {
      const auto channel = [&](int k) {
        return (first + k * kOutlierWarps) * kNormSegment + 4 * lane;
      };
      float4 x[kAtOnce];
      float square[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        x[k] = LoadAt(s.first + from, channel(k) < a.cols ? channel(k) : -1);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) square[k] = LaneSquare(x[k]);
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
#pragma unroll
        for (float& v : square) v += __shfl_xor_sync(~0u, v, offset);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int segment = first + k * kOutlierWarps;
        if (lane == 0 && segment < segments) board->squares[token][segment] = square[k];
      }
    }
  }
  NamedBarrier(2, 32 * kOutlierWarps);
  if (warp < a.m) {
    const float factor = NormScale(board->squares[warp], a.cols, s.eps);
    if (lane == 0) board->factors[warp] = factor;
  }
}

// The norm without the row's factor, which the tiles' scales get in the end.
template <int kTokens, int kOutlierWarps, typename Group>
__device__ __forceinline__ void MakeNorms(const StreamArgs& a, const StageTarget& to, int tiles,
                                          uint8_t* shared, const Group& loaders) {
  NormBoard* board = NormBoardOf(a, shared);
  float* weights = reinterpret_cast<float*>(board + 1);
  const auto ask = [&](const MadeTile& tile) {  // every lane for its own
#pragma unroll
    for (int i = 0; i < MadeTile::kRounds; ++i) {
      if (tile.at[i] >= 0) CopyAsync16(weights + tile.Place(i), a.source.weight + tile.at[i]);
    }
  };
  MadeTile first(to, min(loaders.turn(), tiles - 1));
  if (loaders.turn() < tiles) ask(first);
#pragma unroll 1
  for (int i = loaders.turn() + Group::kWarps; i < tiles; i += Group::kWarps) ask(MadeTile(to, i));
  CopyAsyncCommit();
  if (loaders.turn() < tiles) CopyAsyncWait<0>();
  WaitForPreviousKernels();
  if (loaders.warp() < kOutlierWarps) {
    if (a.source.hidden_out != nullptr) KeepRows(a, loaders.id, 32 * kOutlierWarps);
    SumSquares<kOutlierWarps>(a, board, loaders.warp());
    // Again, so that nothing has to be kept beside the sums: what the compiler moves out of the
    // registers here costs all warps a microsecond.
    first = MadeTile(to, min(loaders.turn(), tiles - 1));
  }
  MakeTiles<kTokens>(a, to, tiles, loaders, NormRow{weights}, first);
}

// By all loaders, who then have x.
template <int kTokens, int kThreads, int kOutlierWarps>
__device__ __forceinline__ void BringInput(const StreamArgs& a, const StreamPart& p,
                                           uint8_t* shared, int id) {
  const Loaders<kThreads, kOutlierWarps> loaders = {id};
  if constexpr (kTokens <= kMostMadeTokens) {
    const RowSource& s = a.source;
    StageTarget to;  // p.x, but in shared memory; what is known here leaves short code
    to.form = StagedForm::kColumns;
    to.shape.chunks2 = p.x.shape.chunks2;
    to.shape.chunks4 = p.x.shape.chunks4;
    to.strip_order = p.x.strip_order;
    to.staged = shared + a.layout.x;
    to.group_tokens = kTokens;
    switch (s.kind) {
      case RowKind::kStaged:
        LoadStaged(a, p, shared, loaders);
        break;
      case RowKind::kRows:
        MakeRows<kTokens, PlainRow>(a, to, p.num_tiles, loaders);
        break;
      case RowKind::kNorm:
        MakeNorms<kTokens, kOutlierWarps>(a, to, p.num_tiles, shared, loaders);
        break;
      case RowKind::kSiluMul:
        MakeRows<kTokens, GatedRow>(a, to, p.num_tiles, loaders);
        break;
    }
  } else {
    LoadStaged(a, p, shared, loaders);
  }
  loaders.Meet();
}

}  // namespace fewbit::cuda
