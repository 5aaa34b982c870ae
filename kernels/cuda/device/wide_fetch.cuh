// The two fetching warps of the wide kernel.
#pragma once

#include "kernels/cuda/device/wide_args.cuh"

namespace fewbit::cuda {

// Weights: never written, so nothing is waited for but room.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void FetchWeights(const WideArgs& a, uint8_t* shared,
                                             const WideBarriers& barriers) {
  constexpr WideForm kF = kWideForms[kForm];
  constexpr WideShared kL = WideLayout(kF, kZeroPoints);
  const int lane = threadIdx.x % 32;
  WideWork* works = reinterpret_cast<WideWork*>(shared + kL.works);
  PipeCursor at;
  ForEachUnit(a, [&](const WideUnit& unit) {
    const WidePart& part = *unit.part;
    const int blocks = min(kWideRowBlocks, part.row_blocks - unit.FirstRowBlock());
    if (unit.first_tile == unit.end_tile) {
      BarrierWait(barriers.tiles.empty + at.stage, at.parity ^ 1);
      if (lane == 0) {
        works[at.stage] = {0, 0, 0, 1 + unit.segment};
        BarrierArrive(barriers.tiles.full + at.stage);
      }
      at.Advance(kF.tile_stages);
    }
#pragma unroll 1
    for (int t = unit.first_tile; t < unit.end_tile; ++t, at.Advance(kF.tile_stages)) {
      const WideTile tile(part.w.shape, t);
      BarrierWait(barriers.tiles.empty + at.stage, at.parity ^ 1);
      uint64_t* full = barriers.tiles.full + at.stage;
      if (lane == 0) {
        works[at.stage] = {2 * tile.pairs, tile.bytes - quant::kSecondOrderBytes, tile.two,
                           t + 1 == unit.end_tile ? 1 + unit.segment : 0};
        BarrierExpect(full, blocks * tile.bytes);
      }
      __syncwarp();
      if (lane < blocks) {
        BulkCopy(shared + kL.tiles + (at.stage * kWideRowBlocks + lane) * kL.tile_bytes,
                 part.w.tiles + (unit.FirstRowBlock() + lane) * part.row_block_bytes + tile.offset,
                 tile.bytes, full);
      }
    }
  });
}

// Activations, by one thread: what belongs to a whole tile goes with the tile.
template <int kForm, bool kZeroPoints>
__device__ __forceinline__ void FetchActivations(const WideArgs& a, uint8_t* shared,
                                                 const WideBarriers& barriers) {
  constexpr WideForm kF = kWideForms[kForm];
  constexpr WideShared kL = WideLayout(kF, kZeroPoints);
  constexpr int kSlab = 2 * kF.tokens * kSlabBytes;
  PipeCursor at, slice;
  ForEachUnit(a, [&](const WideUnit& unit) {
    const quant::PackedShape& shape = unit.part->w.shape;
    const uint8_t* meta = unit.Staged();
    const uint8_t* slabs = meta + WideMetaBytes(shape, kF.tokens);
    if (unit.first_tile == unit.end_tile) {
      BarrierWait(barriers.tiles.empty + at.stage, at.parity ^ 1);
      BarrierArrive(barriers.tiles.full + at.stage);
      at.Advance(kF.tile_stages);
    }
#pragma unroll 1
    for (int t = unit.first_tile; t < unit.end_tile; ++t, at.Advance(kF.tile_stages)) {
      const WideTile tile(shape, t);
      const uint8_t* from = slabs + static_cast<size_t>(tile.first_slab) * kSlab;
      BarrierWait(barriers.tiles.empty + at.stage, at.parity ^ 1);
      uint64_t* full = barriers.tiles.full + at.stage;
      const bool parity = !tile.two && !kZeroPoints;
      BarrierExpect(full, kL.meta_bytes + (parity ? kL.parity_bytes : 0));
      BulkCopy(shared + kL.meta + at.stage * kL.meta_bytes, meta + t * kL.meta_bytes, kL.meta_bytes,
               full);
      if (parity) {
        BulkCopy(shared + kL.parity + at.stage * kL.parity_bytes,
                 from + tile.pairs * kPairSlabs * kSlab, kL.parity_bytes, full);
      }
#pragma unroll 1
      for (int i = 0; i < tile.pairs; ++i, slice.Advance(kF.slice_stages)) {
        BarrierWait(barriers.slices.empty + slice.stage, slice.parity ^ 1);
        BarrierExpect(barriers.slices.full + slice.stage, kL.slice_bytes);
        BulkCopy(shared + kL.slices + slice.stage * kL.slice_bytes, from + i * kL.slice_bytes,
                 kL.slice_bytes, barriers.slices.full + slice.stage);
      }
    }
  });
}

}  // namespace fewbit::cuda
