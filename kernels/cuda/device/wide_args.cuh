// What the roles of the wide kernel share: arguments, the order of the work, pipes of stages.
#pragma once

#include "kernels/cuda/device/cluster.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/wide_instances.h"

namespace fewbit::cuda {

// One matrix of the group.
struct WidePart {
  DeviceMatrix w;
  const uint8_t* staged;
  size_t group_bytes, row_block_bytes;
  int tiles, row_blocks;
  int first_row_tile;  // in the numbering over all matrices
  int64_t column;      // of y
};

struct WideArgs {
  WidePart part[kMostParts];
  int parts, row_tiles, groups, m;
  void* y;
  int64_t y_stride;
  DType y_type;
};

// One tile of a row block.
struct WideTile {
  uint32_t offset;  // in the row block
  int bytes, pairs, first_slab;
  bool two;

  __device__ __forceinline__ WideTile(const quant::PackedShape& s, int tile) {
    two = tile < s.tiles(2);
    const int bits = two ? 2 : 4, of_width = two ? tile : tile - s.tiles(2);
    const int chunks = s.tile_chunks(bits, of_width);
    offset = static_cast<uint32_t>(s.tile_offset(bits, of_width));
    bytes = static_cast<int>(quant::TileBytes(bits, chunks, s.zero_points));
    pairs = WidePairs(bits, chunks);
    first_slab = FirstSlab(s, tile);
  }
};

// A unit of work: one segment of kWideRows rows of one matrix for one token group. The blocks of a
// cluster have the segments of the same rows; who has which changes from unit to unit, because
// segments differ in length.
struct WideUnit {
  const WidePart* part;
  int row_tile, group, segment, first_tile, end_tile;

  __device__ __forceinline__ WideUnit(const WideArgs& a, int unit, int turn, int rank) {
    group = unit % a.groups;
    row_tile = unit / a.groups;
    int p = 0;
    while (p + 1 < a.parts && row_tile >= a.part[p + 1].first_row_tile) ++p;
    part = &a.part[p];
    row_tile -= part->first_row_tile;
    segment = (rank + turn) % kSegments;
    first_tile = SegmentBegin(part->tiles, segment);
    end_tile = SegmentBegin(part->tiles, segment + 1);
  }
  __device__ __forceinline__ int FirstRowBlock() const { return row_tile * kWideRowBlocks; }
  __device__ __forceinline__ const uint8_t* Staged() const {
    return part->staged + group * part->group_bytes;
  }
};

// Runs body(unit, turn) for every unit of this cluster.
template <typename Body>
__device__ __forceinline__ void ForEachUnit(const WideArgs& a, const Body& body) {
  const int units = a.row_tiles * a.groups, clusters = gridDim.x / kWideCluster;
  const int rank = static_cast<int>(ClusterRank());
  int turn = 0;
#pragma unroll 1
  for (int u = blockIdx.x / kWideCluster; u < units; u += clusters, ++turn) {
    body(WideUnit(a, u, turn, rank), turn);
  }
}

// A place in a ring of stages, and the parity of the round it is in.
struct PipeCursor {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Barriers of one ring: `full` when data has come, `empty` when all readers are done with it.
struct PipeBarriers {
  uint64_t* full;
  uint64_t* empty;
};

struct WideBarriers {
  PipeBarriers tiles, slices, inbox;

  __device__ __forceinline__ WideBarriers(uint8_t* at, const WideForm& f) {
    uint64_t* b = reinterpret_cast<uint64_t*>(at);
    tiles = {b, b + f.tile_stages};
    slices = {b + 2 * f.tile_stages, b + 2 * f.tile_stages + f.slice_stages};
    b += 2 * (f.tile_stages + f.slice_stages);
    inbox = {b, b + f.inboxes};
  }
};

}  // namespace fewbit::cuda
