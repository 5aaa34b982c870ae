// What the roles of the wide kernel with clusters share: arguments, order of the work, barriers.
#pragma once

#include "kernels/cuda/cluster_instances.h"
#include "kernels/cuda/device/cluster.cuh"
#include "kernels/cuda/device/wide_words.cuh"
#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

struct ClusteredArgs {
  WidePart part[kMostParts];
  int parts, row_tiles, groups, m;
  int makers;          // blocks that make the floats of outliers, the first ones
  bool outliers;       // of any part
  uint32_t* exchange;  // where all blocks meet, see wide_instances.h
  void* y;
  int64_t y_stride;
  DType y_type;
};

// Runs body(unit, turn) for every unit of this cluster.
template <typename Body>
__device__ __forceinline__ void ForEachUnit(const ClusteredArgs& a, const Body& body) {
  const int units = a.row_tiles * a.groups, clusters = gridDim.x / kClusterBlocks;
  const int rank = static_cast<int>(ClusterRank());
  int turn = 0;
#pragma unroll 1
  for (int u = blockIdx.x / kClusterBlocks; u < units; u += clusters, ++turn) {
    body(WideUnit(a, u, turn, rank), turn);
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
