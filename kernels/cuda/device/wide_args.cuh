// What the roles of the wide kernel share: arguments, the order of the work, pipes of stages.
#pragma once

#include "kernels/cuda/device/async_copy.cuh"
#include "kernels/cuda/device/wide_words.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/wide_instances.h"

namespace fewbit::cuda {

inline constexpr int kFirstHelper = kWideProductWarps + kWideFetchWarps;

struct WideArgs {
  WidePart part[kMostParts];
  int parts, row_tiles, groups, m;
  bool outliers;       // of any part
  uint32_t* exchange;  // see wide_instances.h
  void* y;
  int64_t y_stride;
  DType y_type;
};

// What product warps have to know of a tile; the warp that fetches it leaves it beside the tile.
struct alignas(16) WideWork {
  int quads;  // even; 0: a segment without tiles
  int d_at;   // second-order scales, in the tile
  int two;    // bits
  int last;   // of the unit: 1 + its segment; else 0
};

// The blocks of a team have the segments of the same rows; they need not run at the same place.
struct WideTeam {
  int id, rank, teams, units;

  __device__ __forceinline__ explicit WideTeam(const WideArgs& a)
      : id(blockIdx.x / kWideTeam),
        rank(blockIdx.x % kWideTeam),
        teams(gridDim.x / kWideTeam),
        units(a.row_tiles * a.groups) {}
  __device__ __forceinline__ int Turns() const { return (units - id + teams - 1) / teams; }
  template <int kForm>
  __device__ __forceinline__ uint32_t* Box(const WideArgs& a, int box) const {
    return a.exchange + kWideMeetingWords +
           (id * kWideBoxes + box) * WideBoxWords(kWideForms[kForm]);
  }
  template <int kForm>
  __device__ __forceinline__ uint32_t* Flags(const WideArgs& a, int box) const {
    return a.exchange + kWideMeetingWords + teams * kWideBoxes * WideBoxWords(kWideForms[kForm]) +
           (id * kWideBoxes + box) * kWideBoxFlags;
  }
};

// Runs body(unit) for every unit of this block.
template <typename Body>
__device__ __forceinline__ void ForEachUnit(const WideArgs& a, const Body& body) {
  const WideTeam team(a);
  int turn = 0;
#pragma unroll 1
  for (int u = team.id; u < team.units; u += team.teams, ++turn) {
    body(WideUnit(a, u, turn, team.rank));
  }
}

struct WideBarriers {
  PipeBarriers tiles, slices;
  PipeBarriers sums;  // of outliers
  uint64_t* emptied;  // a box, as far as this block reads it

  __device__ __forceinline__ WideBarriers(uint8_t* at, const WideForm& f) {
    uint64_t* b = reinterpret_cast<uint64_t*>(at);
    tiles = {b, b + f.tile_stages};
    b += 2 * f.tile_stages;
    slices = {b, b + f.slice_stages};
    b += 2 * f.slice_stages;
    sums = {b, b + kWideSums};
    emptied = b + 2 * kWideSums;
  }
};

// Words of the exchange, read and written in the L2 cache.
__device__ __forceinline__ uint4 LoadExchange(const uint32_t* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ void StoreExchange(uint32_t* to, const uint4& v) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}
// Flags order nothing by themselves: who sets one puts __threadfence() in front, and who has seen
// it only stores afterwards.
__device__ __forceinline__ uint32_t LoadFlag(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ void StoreFlag(uint32_t* to, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

}  // namespace fewbit::cuda
