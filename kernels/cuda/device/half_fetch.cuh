// The fetching warps of the kernel for many tokens.
#pragma once

#include "kernels/cuda/device/half_args.cuh"

namespace fewbit::cuda {

// A row block's list of outliers of a tile: what is copied of it, in whole pieces of 16 bytes, and
// what is said of it.
struct HalfTileList {
  uint32_t first = 0, end = 0;

  HalfTileList() = default;
  __device__ __forceinline__ HalfTileList(const DeviceMatrix& w, int row_block, int tile) {
    const uint32_t* start = w.tile_outlier_start + row_block * w.shape.tiles(2) + tile;
    first = __ldg(start);
    end = __ldg(start + 1);
  }
  __device__ __forceinline__ uint32_t count() const { return end - first; }
  __device__ __forceinline__ uint32_t skip() const { return first % 4; }
  __device__ __forceinline__ uint32_t bytes() const {
    return first == end ? 0 : 4 * min(kHalfListEntries, (skip() + count() + 3) / 4 * 4);
  }
};

// Weights and outliers: never written, so nothing is waited for but room. A row block's place:
// second-order scales, then records.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void FetchHalfWeights(const HalfArgs& a, uint8_t* shared,
                                                 const HalfBarriers<kForm>& barriers) {
  constexpr HalfForm kF = kHalfForms[kForm];
  constexpr HalfShared kL = HalfLayout(kF, kZeroPoints);
  constexpr int kBlocks = kHalfRowBlocks;
  const int lane = threadIdx.x % 32, block = lane % kBlocks, kind = lane / kBlocks;
  HalfCursor<kF.tile_stages> to;
  ForEachPiece(a, [&](const HalfPiece& piece) {
    const HalfPart& part = *piece.part;
    const int blocks = piece.RowBlocks(), first_block = piece.FirstRow() / quant::kBlockRows;
    const uint8_t* row_block = part.w.tiles + (first_block + block) * part.row_block_bytes;
#pragma unroll 1
    for (int at = piece.first; at < piece.end; to.Advance()) {
      const HalfTile tile = HalfTileAt(part.w.shape, at, piece.end);
      const int two = part.w.shape.chunks2;
      uint32_t run = tile.pairs | (2 * tile.first_pair) << HalfRun::kFirstQuad;
      if (at < two) run |= HalfRun::kTwo;
      HalfTileList list;
      if (at < two && part.w.tile_outliers != nullptr) {
        run |= HalfRun::kOutliers;
        if (block < blocks) list = HalfTileList(part.w, first_block + block, tile.tile);
      }
      at += tile.pairs;
      if (at < piece.end) run |= at == two ? HalfRun::kOtherWidth : HalfRun::kMore;
      BarrierWait(barriers.tiles.Empty(to.stage()), to.parity() ^ 1);
      const uint32_t full = barriers.tiles.Full(to.stage());
      const int place = to.stage() * kBlocks + block;
      const int weight_bytes = block < blocks ? tile.bytes + quant::kSecondOrderBytes : 0;
      if (kind == 0) BarrierExpectBytes(full, weight_bytes);
      if (block < blocks) {
        uint8_t* weights = shared + kL.tiles + place * kL.tile_bytes;
        if (kind == 0) {
          BulkCopy(weights + quant::kSecondOrderBytes, row_block + tile.data, tile.bytes, full);
        } else if (kind == 1) {
          BulkCopy(weights, row_block + tile.d_at, quant::kSecondOrderBytes, full);
        }
      }
      // What is said of the list is awaited only now. Each writer of a run arrives.
      const uint32_t* entries = part.w.tile_outliers + list.first;
      if (kind == 0) {
        if (list.count() > 32) run |= HalfRun::kLong;
        reinterpret_cast<HalfRun*>(shared + kL.runs)[place] = {
            run, list.count() * HalfRun::kSkip + list.skip(), entries};
        BarrierExpect(full, list.bytes());
        if (list.bytes() > 0) {
          BulkCopy(shared + kL.lists + place * kL.list_bytes, entries - list.skip(), list.bytes(),
                   full);
        }
      }
    }
  });
}

// Activations, by one thread: each block of the cluster copies its share of a quad to both.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void FetchHalfActivations(const HalfArgs& a, uint8_t* shared,
                                                     const HalfBarriers<kForm>& barriers) {
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

}  // namespace fewbit::cuda
