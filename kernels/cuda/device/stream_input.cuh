// How a block of the persistent small-batch kernel comes by its x in shared memory: loaded as the
// kernel before left it, or made here from rows of floats (RowSource). Every block makes all of
// it: the time is that of one tile's chain of instructions, with or without the others.
#pragma once

#include "kernels/cuda/device/input_row.cuh"
#include "kernels/cuda/device/stage_token.cuh"
#include "kernels/cuda/device/stream_block.cuh"

namespace fewbit::cuda {

// The warps that make or load x, of which a thread is number `id`.
struct Loaders {
  int id, threads;

  __device__ int warp() const { return id / 32; }
  __device__ int warps() const { return threads / 32; }
  __device__ void Meet() const { NamedBarrier(1, threads); }
};

// As the kernel before left it. The L2 cache has that; plain loads come back sooner than a bulk
// copy.
__device__ __forceinline__ void LoadStaged(const StreamArgs& a, const StreamPart& p,
                                           const StreamBlock& b, const Loaders& loaders) {
  WaitForPreviousKernels();
  const uint4* from = reinterpret_cast<const uint4*>(p.x.staged);
  uint4* to = reinterpret_cast<uint4*>(b.shared + a.layout.x);
  const int count = p.x.group_bytes / sizeof(uint4);
#pragma unroll 4
  for (int i = loaders.id; i < count; i += loaders.threads) to[i] = __ldcg(from + i);
}

// x from load(token, channel), which reads what earlier kernels wrote. Warps take tiles in turn.
template <typename Load>
__device__ __forceinline__ void StageRows(const StreamArgs& a, const StageTarget& to, int tiles,
                                          const Loaders& loaders, const Load& load) {
  const auto channels_of = [&](int t) { return TileChannels(to, min(t, tiles - 1)); };
  int tile = loaders.warp();
  TileChannels channels = channels_of(tile);
  WaitForPreviousKernels();
#pragma unroll 1
  while (tile < tiles) {
    const int next = tile + loaders.warps();
    const TileChannels next_channels = channels_of(next);
#pragma unroll 1
    for (int token = 0; token < a.m; ++token) {
      float4 x[kStageRounds];
#pragma unroll
      for (int i = 0; i < kStageRounds; ++i) {
        x[i] = channels.at[i] < 0 ? make_float4(0, 0, 0, 0) : load(token, channels.at[i]);
      }
      StageValues(to, x, token, tile);
    }
    tile = next;
    channels = next_channels;
  }
}

// The norm of hidden rows, which a block keeps in shared memory until their squares are summed.
// The blocks share out the sums that are kept.
__device__ __forceinline__ void AddRows(const StreamArgs& a, float* rows, float* squares,
                                        const Loaders& loaders) {
  const RowSource& s = a.source;
  const int segments = NormSegments(a.cols), lane = loaders.id % 32;
#pragma unroll 1
  for (int token = 0; token < a.m; ++token) {
    const int64_t from = (s.rows == nullptr ? token : s.rows[token]) * s.stride;
#pragma unroll 2
    for (int segment = loaders.warp(); segment < segments; segment += loaders.warps()) {
      const int i = segment * kNormSegment + 4 * lane;
      float4 x = make_float4(0, 0, 0, 0);
      if (i < a.cols) {
        x = Add4(Load4(s.first + from + i), Load4(s.second + from + i));
        *reinterpret_cast<float4*>(rows + token * a.cols + i) = x;
        if (segment % static_cast<int>(gridDim.x) == static_cast<int>(blockIdx.x)) {
          *reinterpret_cast<float4*>(s.hidden_out + static_cast<int64_t>(token) * a.cols + i) = x;
        }
      }
      const float square = SegmentSquare(x);
      if (lane == 0) squares[token * segments + segment] = square;
    }
  }
}
__device__ __forceinline__ void StageNorms(const StreamArgs& a, const StageTarget& to, int tiles,
                                           const StreamBlock& b, const Loaders& loaders) {
  float* rows = reinterpret_cast<float*>(b.shared + a.layout.rows);
  float* squares = rows + a.m * a.cols;
  WaitForPreviousKernels();
  AddRows(a, rows, squares, loaders);
  bool first = true;
#pragma unroll 1
  for (int tile = loaders.warp(); first || tile < tiles; tile += loaders.warps()) {
    const TileChannels channels(to, min(tile, tiles - 1));
    float4 weight[kStageRounds] = {};
#pragma unroll
    for (int i = 0; i < kStageRounds; ++i) {
      if (channels.at[i] >= 0) weight[i] = Load4(a.source.weight + channels.at[i]);
    }
    // With the first weights on their way; who has no tile comes for this alone.
    if (first) loaders.Meet();
    first = false;
    if (tile >= tiles) break;
#pragma unroll 1
    for (int token = 0; token < a.m; ++token) {
      float4 x[kStageRounds];
#pragma unroll
      for (int i = 0; i < kStageRounds; ++i) {
        x[i] = channels.at[i] < 0 ? make_float4(0, 0, 0, 0)
                                  : Mul4(Load4(rows + token * a.cols + channels.at[i]), weight[i]);
      }
      StageValues(to, x, token, tile, [&] {
        return NormScale(squares + token * NormSegments(a.cols), a.cols, a.source.eps);
      });
    }
  }
}

// By all loaders, who then have x; `threads` of them.
template <int kTokens>
__device__ __forceinline__ void BringInput(const StreamArgs& a, const StreamPart& p,
                                           const StreamBlock& b, int id, int threads) {
  const Loaders loaders = {id, threads};
  if constexpr (kTokens <= kMostMadeTokens) {
    const RowSource& s = a.source;
    StageTarget to;  // p.x, but in shared memory; what is known here leaves short code
    to.form = StagedForm::kColumns;
    to.shape.chunks2 = p.x.shape.chunks2;
    to.shape.chunks4 = p.x.shape.chunks4;
    to.strip_order = p.x.strip_order;
    to.staged = b.shared + a.layout.x;
    to.group_tokens = kTokens;
    switch (s.kind) {
      case RowKind::kStaged:
        LoadStaged(a, p, b, loaders);
        break;
      case RowKind::kRows:
        StageRows(a, to, p.num_tiles, loaders, [&](int token, int channel) {
          return Load4(s.first + token * s.stride + channel);
        });
        break;
      case RowKind::kAddNorm:
        StageNorms(a, to, p.num_tiles, b, loaders);
        break;
      case RowKind::kSiluMul:
        StageRows(a, to, p.num_tiles, loaders, [&](int token, int channel) {
          return SiluMul4(Load4(s.first + token * s.stride + channel),
                          Load4(s.second + token * s.stride + channel));
        });
        break;
    }
  } else {
    LoadStaged(a, p, b, loaders);
  }
  loaders.Meet();
}

}  // namespace fewbit::cuda
