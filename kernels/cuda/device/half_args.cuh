// What the roles of the kernel for many tokens share: arguments, the order of the work, barriers.
#pragma once

#include "kernels/cuda/device/cluster.cuh"
#include "kernels/cuda/device/wide_words.cuh"
#include "kernels/cuda/half_instances.h"
#include "kernels/cuda/linear.h"

namespace fewbit::cuda {

// One matrix of the group.
struct HalfPart {
  DeviceMatrix w;
  const uint8_t* staged;
  size_t group_bytes, row_block_bytes;
  int pairs;            // of a unit
  uint32_t first_item;  // in the list of pairs
  int64_t column;       // of y
};

struct HalfArgs {
  HalfPart part[kMostParts];
  int parts, groups, m;
  uint32_t items;      // pairs of all units
  uint32_t* exchange;  // see half_tile.h
  void* y;
  int64_t y_stride;
  DType y_type;
};

// The last cluster whose stretch begins at `item` or before.
__device__ __forceinline__ int HalfClusterOf(const HalfArgs& a, uint32_t item) {
  return static_cast<int>(((item + 1) * (gridDim.x / kHalfCluster) - 1) / a.items);
}

// This cluster's stretch, from where it has come to on.
struct HalfStretch {
  uint32_t item, end;

  __device__ __forceinline__ explicit HalfStretch(const HalfArgs& a) {
    const uint32_t clusters = gridDim.x / kHalfCluster, cluster = blockIdx.x / kHalfCluster;
    item = cluster * a.items / clusters;
    end = (cluster + 1) * a.items / clusters;
  }
};

// What a cluster does of one unit: pairs [first, end). `index` of `pieces` clusters that share the
// unit, of which the first is `first_cluster`.
struct HalfPiece {
  const HalfPart* part;
  int row_unit, group, first, end;
  int index, pieces, first_cluster;
  bool last_goes_on;  // the cluster of the unit's last piece has more to do

  // The next one of the stretch.
  __device__ __forceinline__ HalfPiece(const HalfArgs& a, const HalfStretch& at) {
    int p = 0;
    while (p + 1 < a.parts && at.item >= a.part[p + 1].first_item) ++p;
    part = &a.part[p];
    const uint32_t pairs = part->pairs, unit = (at.item - part->first_item) / pairs;
    const uint32_t first_item = part->first_item + unit * pairs;
    row_unit = unit / a.groups;
    group = unit - row_unit * a.groups;
    first = at.item - first_item;
    end = min(pairs, at.end - first_item);
    first_cluster = HalfClusterOf(a, first_item);
    pieces = HalfClusterOf(a, first_item + pairs - 1) - first_cluster + 1;
    index = static_cast<int>(blockIdx.x / kHalfCluster) - first_cluster;
    last_goes_on = HalfClusterOf(a, first_item + pairs) == first_cluster + pieces - 1;
  }
  // This block's first row.
  __device__ __forceinline__ int FirstRow() const {
    return (row_unit * kHalfCluster + static_cast<int>(ClusterRank())) * kHalfRows;
  }
  // That exist, of this block.
  __device__ __forceinline__ int RowBlocks() const {
    const int left = part->w.shape.row_blocks() - FirstRow() / quant::kBlockRows;
    return max(0, min(kHalfRowBlocks, left));
  }
};

// Runs body(piece) for every piece of this cluster.
template <typename Body>
__device__ __forceinline__ void ForEachPiece(const HalfArgs& a, const Body& body) {
#pragma unroll 1
  for (HalfStretch at(a); at.item < at.end;) {
    const HalfPiece piece(a, at);
    body(piece);
    at.item += piece.end - piece.first;
  }
}

// What a product warp has to know of a run of pairs that lie in one tile; who fetches the run
// leaves it beside the weights of each row block.
struct HalfRun {
  static constexpr uint32_t kPairs = 0xFF;
  static constexpr uint32_t kTwo = 0x100;         // bits
  static constexpr uint32_t kOutliers = 0x200;    // of the matrix, where there are two bits
  static constexpr uint32_t kMore = 0x400;        // of the same width follow in this piece
  static constexpr uint32_t kOtherWidth = 0x800;  // follows in this piece
  static constexpr uint32_t kLong = 0x1000;       // more outliers than lanes
  static constexpr int kFirstQuad = 16;           // of the tile: 3 bits from this one on
  static constexpr uint32_t kSkip = 4;            // more than the entries in front of a list

  uint32_t word;  // pairs and the bits above
  // kSkip times the outliers of the tile, plus the entries in front of its list that came along.
  uint32_t outliers;
  const uint32_t* entries;  // the tile's list
};
static_assert(sizeof(HalfRun) == kHalfRunBytes);

// A run as it is fetched.
struct HalfTile {
  uint32_t data, d_at;  // offsets in the row block: of the records, of the second-order scales
  int bytes, pairs;     // of the records
  int tile, first_pair;
};
// The pairs of the tile in which pair `at` of a unit is, up to `end`.
__device__ __forceinline__ HalfTile HalfTileAt(const quant::PackedShape& s, int at, int end) {
  const bool two = at < s.chunks2;
  const int bits = two ? 2 : 4, pair_chunks = two ? 1 : 2;
  const int chunk = two ? at : pair_chunks * (at - s.chunks2), tile = chunk / quant::kTileChunks;
  const int chunks = s.tile_chunks(bits, tile), in_tile = chunk % quant::kTileChunks;
  const int record = RecordBytes(bits, s.zero_points);
  HalfTile t;
  t.pairs = min((chunks - in_tile + pair_chunks - 1) / pair_chunks, end - at);
  t.bytes = min(chunks - in_tile, pair_chunks * t.pairs) * record;
  const uint32_t offset = static_cast<uint32_t>(s.tile_offset(bits, tile));
  t.tile = tile;
  t.first_pair = in_tile / pair_chunks;
  t.data = offset + in_tile * record;
  t.d_at = offset + chunks * record;
  return t;
}

// A place in a ring of stages, and the parity of the round it is in: how many were passed.
template <int kStages>
struct HalfCursor {
  static constexpr bool kPower = (kStages & (kStages - 1)) == 0;
  static constexpr uint32_t kRound = 0x10000;
  uint32_t passed = 0;  // or, where that would take a division, rounds and stage

  __device__ __forceinline__ uint32_t stage() const {
    return kPower ? passed % kStages : passed % kRound;
  }
  __device__ __forceinline__ uint32_t parity() const {
    return kPower ? passed / kStages % 2 : passed / kRound % 2;
  }
  __device__ __forceinline__ void Advance() {
    ++passed;
    if (!kPower && passed % kRound == kStages) passed += kRound - kStages;
  }
};

// The barriers of a ring, by shared address: `full` when data has come, `empty` when all readers
// are done with it.
template <int kStages>
struct HalfRing {
  uint32_t first;

  __device__ __forceinline__ uint32_t Full(int stage) const { return first + 8 * stage; }
  __device__ __forceinline__ uint32_t Empty(int stage) const {
    return first + 8 * (kStages + stage);
  }
};

template <int kForm>
struct HalfBarriers {
  static constexpr HalfForm kF = kHalfForms[kForm];
  HalfRing<kF.quad_stages> quads;
  HalfRing<kF.tile_stages> tiles;

  __device__ __forceinline__ explicit HalfBarriers(uint32_t at)
      : quads{at}, tiles{at + 16 * kF.quad_stages} {}
};

}  // namespace fewbit::cuda
