// What the roles of the wide kernel share: arguments, the order of the work, pipes of stages.
#pragma once

#include "kernels/cuda/cluster_instances.h"
#include "kernels/cuda/device/cluster.cuh"
#include "kernels/cuda/device/wide_words.cuh"
#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

// One matrix of the group.
struct ClusteredPart {
  DeviceMatrix w;
  const uint8_t* staged;
  size_t group_bytes, row_block_bytes;
  int tiles, row_blocks;
  int first_row_tile;  // in the numbering over all matrices
  int64_t column;      // of y
};

struct ClusteredArgs {
  ClusteredPart part[kMostParts];
  int parts, row_tiles, groups, m;
  void* y;
  int64_t y_stride;
  DType y_type;
};

// A unit of work: one segment of kWideRows rows of one matrix for one token group. The blocks of a
// cluster have the segments of the same rows; who has which changes from unit to unit, because
// segments differ in length.
struct ClusteredUnit {
  const ClusteredPart* part;
  int row_tile, group, segment, first_tile, end_tile;

  __device__ __forceinline__ ClusteredUnit(const ClusteredArgs& a, int unit, int turn, int rank) {
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
__device__ __forceinline__ void ForEachUnit(const ClusteredArgs& a, const Body& body) {
  const int units = a.row_tiles * a.groups, clusters = gridDim.x / kClusterBlocks;
  const int rank = static_cast<int>(ClusterRank());
  int turn = 0;
#pragma unroll 1
  for (int u = blockIdx.x / kClusterBlocks; u < units; u += clusters, ++turn) {
    body(ClusteredUnit(a, u, turn, rank), turn);
  }
}

struct ClusteredBarriers {
  PipeBarriers tiles, slices, inbox;

  __device__ __forceinline__ ClusteredBarriers(uint8_t* at, const ClusteredForm& f) {
    uint64_t* b = reinterpret_cast<uint64_t*>(at);
    tiles = {b, b + f.tile_stages};
    slices = {b + 2 * f.tile_stages, b + 2 * f.tile_stages + f.slice_stages};
    b += 2 * (f.tile_stages + f.slice_stages);
    inbox = {b, b + f.inboxes};
  }
};

}  // namespace fewbit::cuda
