// The codes of one tile of sixteen rows while they are chosen, and where they are kept.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/quant_pack.h"
#include "runtime/quantize/matrix_plan.h"
#include "runtime/quantize/tile_fit.h"

namespace fewbit {

inline constexpr int kMaxTileChannels = kMaxTileStrips * kGroup;

// Arrays are [channels][16 rows]. Thread rule: plain data.
struct TileCodes {
  int bits = 2;
  int channels = 0;
  uint8_t codes[kMaxTileChannels * kLanes];
  uint8_t is_outlier[kMaxTileChannels * kLanes];
  // What the code stands for; of an outlier, the weight it shall have.
  alignas(64) float values[kMaxTileChannels * kLanes];

  // Begins a tile of the row block: bits, channels and is_outlier.
  void Begin(const MatrixPlan& plan, int row_block, const TileRange& tile);

  // The nearest codes of a channel for `targets` [16 rows].
  void Choose(bool zero_points, const TileFit& fit, int channel, const float* targets);

  // The value of a weight that is no outlier.
  float ValueOf(bool zero_points, const TileFit& fit, int channel, int lane) const;
};

// What is known about a tile of sixteen rows between two visits, beside the codes in the result.
struct KeptTile {
  TileFit fit;
  std::vector<float> outliers;  // their values, by channel and row
};

// The tile into the codes of the result and `kept`.
void KeepTile(const MatrixPlan& plan, int row_block, const TileRange& tile, const TileCodes& codes,
              const TileFit& fit, quant::UnpackedMatrix* result, KeptTile* kept);

// And back, into what has been begun.
void RecallTile(const MatrixPlan& plan, int row_block, const TileRange& tile,
                const quant::UnpackedMatrix& result, const KeptTile& kept, TileCodes* codes);

// Everything of a tile's block but the weights; h [channels of the tile].
void FillTileBlock(const MatrixPlan& plan, int row_block, const TileRange& tile,
                   std::span<const float> h, TileBlock* block);

// The best 4-bit sub-scale of one strip under the d of `fit`, for the weights now in `block`.
void RefitSubScale(const LaneKernels& kernels, const TileBlock& block, int strip, TileFit* fit);

}  // namespace fewbit
