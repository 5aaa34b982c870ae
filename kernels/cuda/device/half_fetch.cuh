// The fetching warps of the kernel for many tokens, and those that place outliers.
#pragma once

#include "kernels/cuda/device/half_args.cuh"

namespace fewbit::cuda {

// Weights: never written, so nothing is waited for but room. A row block's place: second-order
// scales, then records.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void FetchHalfWeights(const HalfArgs& a, uint8_t* shared,
                                                 const HalfBarriers<kForm, kZeroPoints>& barriers) {
  constexpr HalfForm kF = kHalfForms[kForm];
  constexpr HalfShared kL = HalfLayout(kF, kZeroPoints);
  constexpr int kBlocks = kHalfRowBlocks;
  const int lane = threadIdx.x % 32, block = lane % kBlocks;
  HalfCursor<HalfTileStages(kF, kZeroPoints)> to;
  ForEachPiece(a, [&](const HalfPiece& piece) {
    const HalfPart& part = *piece.part;
    const int blocks = piece.RowBlocks();
    const uint8_t* row_block =
        part.w.tiles + (piece.FirstRow() / quant::kBlockRows + block) * part.row_block_bytes;
#pragma unroll 1
    for (int at = piece.first; at < piece.end; to.Advance()) {
      const HalfTile tile = HalfTileAt(part.w.shape, at, piece.end);
      BarrierWait(barriers.tiles.Empty(to.stage()), to.parity() ^ 1);
      const uint32_t full = barriers.tiles.Full(to.stage());
      at += tile.pairs;
      if (lane == 0) {
        const int two = part.w.shape.chunks2;
        uint32_t run = tile.pairs | (at <= two ? HalfRun::kTwo : 0) |
                       (part.w.outliers != nullptr ? HalfRun::kOutliers : 0);
        if (at < piece.end) run |= at == two ? HalfRun::kOtherWidth : HalfRun::kMore;
        reinterpret_cast<uint32_t*>(shared + kL.runs)[to.stage()] = run;
        BarrierExpect(full, blocks * (tile.bytes + quant::kSecondOrderBytes));
      }
      __syncwarp();
      uint8_t* place = shared + kL.tiles + (to.stage() * kBlocks + block) * kL.tile_bytes;
      if (block < blocks && lane < kBlocks) {
        BulkCopy(place + quant::kSecondOrderBytes, row_block + tile.data, tile.bytes, full);
      } else if (block < blocks && lane < 2 * kBlocks) {
        BulkCopy(place, row_block + tile.d_at, quant::kSecondOrderBytes, full);
      }
    }
  });
}

// Activations, by one thread: each block of the cluster copies its share of a quad to both.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void FetchHalfActivations(
    const HalfArgs& a, uint8_t* shared, const HalfBarriers<kForm, kZeroPoints>& barriers) {
  constexpr HalfForm kF = kHalfForms[kForm];
  constexpr HalfShared kL = HalfLayout(kF, kZeroPoints);
  constexpr int kShare = kL.quad_bytes / kHalfCluster;
  constexpr uint16_t kAll = (1 << kHalfCluster) - 1;
  const uint32_t share = ClusterRank() * kShare;
  HalfCursor<kF.quad_stages> to;
  ForEachPiece(a, [&](const HalfPiece& piece) {
    const uint8_t* from = piece.part->staged + piece.group * piece.part->group_bytes + share +
                          size_t{2} * piece.first * kL.quad_bytes;
#pragma unroll 1
    for (int quad = 2 * piece.first; quad < 2 * piece.end; ++quad, from += kL.quad_bytes) {
      BarrierWait(barriers.quads.Empty(to.stage()), to.parity() ^ 1);
      const uint32_t full = barriers.quads.Full(to.stage());
      BarrierExpect(full, kL.quad_bytes);
      BulkCopyToAll(shared + kL.quads + to.stage() * kL.quad_bytes + share, from, kShare, full,
                    kAll);
      to.Advance();
    }
  });
}

// The outliers of one row, a tile after the other. Those of the next tile are asked for when a tile
// begins, so that nobody waits for memory in the middle.
class RowOutliers {
 public:
  // Row `row` of the block and, in the matrix, `matrix_row`, from pair `first` on.
  __device__ __forceinline__ void Start(const DeviceMatrix& w, int row, int matrix_row, int first) {
    entries_ = w.outliers;
    row_ = row;
    next_ = end_ = 0;
    more_ = false;
    if (matrix_row < w.shape.rows) {
      const uint32_t* start = w.outlier_start + size_t{1} * matrix_row * kSegments;
      const int tile = first / quant::kTileChunks, tiles = NumTiles(w.shape);
      int segment = 0;
      while (tile >= SegmentBegin(tiles, segment + 1)) ++segment;
      next_ = start[segment];
      end_ = start[kSegments];
      while (next_ < end_ && Position(entries_[next_]) < quant::ChunkChannels(2) * first) ++next_;
    }
    LoadAhead();
  }
  // `set`: which of a lane's rows.
  __device__ __forceinline__ void BeginTile(int tile, int set) {
    if (more_) {
      while (InTile(next_, tile - 1)) ++next_;
      LoadAhead();
    }
    int count = 0;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const bool in_tile = next_ + i < end_ && Position(ahead_[i]) / kTileChannels <= tile;
      placed_[i] = Placed(in_tile ? ahead_[i] : 0, set);
      if (!in_tile) placed_[i].at = kNowhere;
      count += in_tile;
    }
    next_ += count;
    more_ = count == kAtOnce && InTile(next_, tile);
    LoadAhead();
  }
  // Stores those of a quad of the tile; returns which flags they raise: bit 16 set + 8 (lane / 16)
  // + f for product f.
  __device__ __forceinline__ uint32_t Store(int quad, int set, uint8_t* deltas) const {
    const uint32_t in_tile = quad % kTileQuads * kQuad;
    uint32_t flags = 0;
    const auto store = [&](const Place& place) {
      const uint32_t at = place.at - in_tile;
      if (at >= kQuad) return;
      *reinterpret_cast<uint16_t*>(deltas + at) = place.value;
      flags |= place.flag;
    };
#pragma unroll
    for (const Place& place : placed_) store(place);
    if (more_) {
      for (uint32_t i = next_; InTile(i, quad / kTileQuads); ++i) store(Placed(entries_[i], set));
    }
    return flags;
  }

  static constexpr int kTileChannels = quant::kTileChunks * quant::ChunkChannels(2);
  static constexpr int kTileQuads = quant::kTileChunks * ChunkQuads(2);

 private:
  static constexpr int kAtOnce = 4;
  static constexpr uint32_t kQuad = 0x10000, kNowhere = 0xFFFFFFFFu;
  struct Place {
    uint32_t at;  // in the deltas of a quad, and kQuad times the quad of the tile
    uint32_t flag;
    uint16_t value;
  };

  static __device__ __forceinline__ int Position(uint32_t entry) {
    return static_cast<int>(entry & 0xFFFF);
  }
  __device__ __forceinline__ bool InTile(uint32_t i, int tile) const {
    return i < end_ && Position(entries_[i]) / kTileChannels <= tile;
  }
  __device__ __forceinline__ Place Placed(uint32_t entry, int set) const {
    const uint32_t c = entry % quant::kStripChannels, strip = entry / quant::kStripChannels % 4;
    const uint32_t word = (c / 4 * 32 + 4 * (row_ % 8) + strip) * 4 + 2 * (c % 2) + row_ / 8 % 2;
    const uint32_t quad = entry % kTileChannels / (kTileChannels / kTileQuads);
    return {
        row_ / quant::kBlockRows * kHalfBlockDeltaBytes + 4 * word + c / 2 % 2 * 2 + quad * kQuad,
        1u << (16 * set + row_ / quant::kBlockRows % 2 * 8 + c / 4),
        static_cast<uint16_t>(entry >> 16)};
  }
  __device__ __forceinline__ void LoadAhead() {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (next_ + i < end_) ahead_[i] = __ldg(entries_ + next_ + i);
    }
  }

  const uint32_t* entries_;
  uint32_t row_;
  uint32_t next_, end_;  // behind those that are placed
  uint32_t ahead_[kAtOnce];
  Place placed_[kAtOnce];
  bool more_;  // of the tile follow
};

// A lane has a row of the block, or two. Flags say, for a row block, which of the four products of
// a quad have outliers.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void PlaceOutliers(const HalfArgs& a, int warp, uint8_t* shared,
                                              const HalfBarriers<kForm, kZeroPoints>& barriers) {
  constexpr HalfForm kF = kHalfForms[kForm];
  constexpr HalfShared kL = HalfLayout(kF, kZeroPoints);
  constexpr int kRows = 32 * kF.outlier_warps, kSets = kHalfRows / kRows;
  const int lane = threadIdx.x % 32, row = 32 * warp + lane;
  HalfCursor<kHalfDeltaStages> to;
  ForEachPiece(a, [&](const HalfPiece& piece) {
    const DeviceMatrix& w = piece.part->w;
    if (w.outliers == nullptr || piece.first >= w.shape.chunks2) return;
    RowOutliers rows[kSets];
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const int of_set = row + kRows * set;
      rows[set].Start(w, of_set, piece.FirstRow() + of_set, piece.first);
    }
    const int begin = 2 * piece.first, end = 2 * min(piece.end, w.shape.chunks2);
#pragma unroll 1
    for (int quad = begin; quad < end; ++quad, to.Advance()) {
      if (quad == begin || quad % RowOutliers::kTileQuads == 0) {
#pragma unroll
        for (int set = 0; set < kSets; ++set) {
          rows[set].BeginTile(quad / RowOutliers::kTileQuads, set);
        }
      }
      BarrierWait(barriers.deltas.Empty(to.stage()), to.parity() ^ 1);
      uint32_t flags = 0;
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        flags |= rows[set].Store(quad, set, shared + kL.deltas + to.stage() * kHalfDeltaBytes);
      }
      flags = __reduce_or_sync(0xFFFFFFFFu, flags);
      if (lane < 2 * kSets) {
        const int block =
            (row - lane) / quant::kBlockRows + lane % 2 + lane / 2 * (kRows / quant::kBlockRows);
        shared[kL.flags + to.stage() * kHalfRowBlocks + block] =
            static_cast<uint8_t>(flags >> (8 * lane));
      }
      __syncwarp();
      BarrierArrive(barriers.deltas.Full(to.stage()));
    }
  });
}

}  // namespace fewbit::cuda
